//! Writes the logits of a token sequence, for comparisons with other programs:
//! `logits BASE [--adapter DIR] --ids 1,2,3 -o FILE` writes `logits`, `[n, vocab_size]` f32.

use std::path::PathBuf;

use heirloom::base::BaseFolder;
use heirloom::recipe::Dtype;
use heirloom_engine::adapter::peft;
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::ops::Layout;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let base = PathBuf::from(arguments.next().ok_or("usage: logits BASE [--adapter DIR] --ids …")?);
    let (mut adapter, mut ids, mut output) =
        (None, Vec::new(), PathBuf::from("logits.safetensors"));
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or("every flag has a value")?;
        match flag.as_str() {
            "--adapter" => adapter = Some(PathBuf::from(value)),
            "--ids" => ids = value.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>()?,
            "-o" => output = PathBuf::from(value),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let mut base = BaseFolder::open(&base, false)?;
    if let Some(folder) = &adapter {
        base.grow(peft::rows(folder)?)?;
    }
    let mut model = Decoder::open(&base, Dtype::Float32)?;
    if let Some(folder) = adapter {
        peft::attach(&mut model, &folder)?;
    }
    let logits = tch::no_grad(|| {
        let layout = Layout::new(&[ids.len() as u32], Device::Cpu)?;
        model.logits(&model.hidden(&Tensor::f_from_slice(&ids)?, &layout, false)?)
    })?;
    let logits = weights::Lazy::ready(logits.to_kind(Kind::Float));
    weights::save(&output, vec![("logits".to_owned(), logits)])?;
    Ok(())
}
