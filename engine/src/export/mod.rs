//! The export room: from a finished run to the payload of a release.
//!
//! Owns the shapes of a release: a PEFT adapter, or a merged model in Hugging Face format
//! with its tokenizer. The papers beside the payload (card, manifest) are
//! `heirloom::provenance`'s.

use std::path::Path;

use fs_err as fs;
use heirloom::base::BaseFolder;
use heirloom::run::RunFolder;

use crate::adapter::peft;
use crate::error::Result;
use crate::model::{Decoder, weights};

/// Files of a base folder that a merged model takes over as they are.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// Copies the run's adapter into `folder`.
pub fn adapter(run: &RunFolder, folder: &Path) -> Result<()> {
    for name in [peft::CONFIG, peft::WEIGHTS] {
        copy(&run.adapter().join(name), &folder.join(name))?;
    }
    Ok(())
}

/// Merges the run's adapter into its base, in the dtype in which the base is stored:
/// tensors are computed one by one while they are written.
pub fn merged(run: &RunFolder, base: &BaseFolder, folder: &Path) -> Result<()> {
    let Some(checkpoint) = base.checkpoint() else {
        return Ok(());
    };
    // As stored, so that nothing is lost or invented on the way.
    let mut model = Decoder::build(&base.architecture, tch::Kind::Float, |name, _| {
        weights::load(checkpoint, name)
    })?;
    peft::attach(&mut model, &run.adapter())?;
    let mut tensors = Vec::new();
    for (name, _) in base.architecture.tensors() {
        let linear = model.linears().find(|linear| name == format!("{}.weight", linear.name));
        let tensor = match linear {
            Some(linear) => {
                weights::Lazy::new(&linear.weight, linear.weight.kind(), || linear.merged())
            }
            None => weights::Lazy::ready(weights::load(checkpoint, &name)?),
        };
        tensors.push((name, tensor));
    }
    weights::save(&folder.join("model.safetensors"), tensors)?;
    tokenizer(base.folder(), folder)
}

/// Copies the model of a fully trained run.
pub fn full(run: &RunFolder, base: &BaseFolder, folder: &Path) -> Result<()> {
    copy(&run.model().join("model.safetensors"), &folder.join("model.safetensors"))?;
    tokenizer(base.folder(), folder)
}

/// Copies the files of a model folder that are not weights.
pub fn tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        if from.join(name).is_file() {
            copy(&from.join(name), &to.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)?;
    Ok(fs::File::open(to)?.sync_all()?)
}
