//! What several tests need.

use std::path::{Path, PathBuf};

use heirloom::base::{BaseFolder, Checkpoint};
use heirloom::dataset::stream::MicroBatch;
use heirloom_engine::adapter::{self, peft};
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::train::{loss, parameters::Parameters};
use tch::{Kind, Tensor};

/// A file or folder under `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The numbers of the reference implementation, by tensor name.
pub(crate) struct Golden(Checkpoint);

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        Self(Checkpoint::open_file(&fixture(name)).unwrap())
    }

    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let named = self.0.names().filter(|name| name.starts_with(prefix));
        named.map(|name| name[prefix.len()..].to_owned()).collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.names().any(|known| known == name)
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        weights::load(&self.0, name).unwrap()
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<f64> {
        Vec::try_from(self.tensor(name).to_kind(Kind::Double).view(-1)).unwrap()
    }

    /// All documents of the file, laid end to end.
    pub(crate) fn packed(&self) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for document in 0..self.names("ids.").len() {
            let ids = Vec::<i64>::try_from(self.tensor(&format!("ids.{document}"))).unwrap();
            batch.lengths.push(ids.len() as u32);
            batch.tokens.extend(ids.iter().map(|id| *id as u32));
            let trained = self.0.get(&format!("trained.{document}")).unwrap().bytes;
            batch.weights.extend(trained.iter().map(|byte| f32::from(*byte)));
        }
        batch
    }

    /// The reference's logits of all documents, one below the other.
    pub(crate) fn logits(&self, prefix: &str) -> Tensor {
        let documents = self.names(prefix).len();
        let all: Vec<Tensor> =
            (0..documents).map(|document| self.tensor(&format!("{prefix}{document}"))).collect();
        Tensor::cat(&all, 0)
    }
}

/// Opens a model of the fixtures.
pub(crate) fn model(name: &str, dtype: heirloom::recipe::Dtype) -> Decoder {
    let base = BaseFolder::open(&fixture(name), false).unwrap();
    Decoder::open(&base, dtype).unwrap()
}

/// Logits of a packed batch.
pub(crate) fn logits(model: &Decoder, batch: &MicroBatch) -> Tensor {
    let layout = heirloom_engine::ops::Layout::new(&batch.lengths, tch::Device::Cpu).unwrap();
    let tokens: Vec<i64> = batch.tokens.iter().map(|token| i64::from(*token)).collect();
    let hidden = model.hidden(&Tensor::from_slice(&tokens), &layout, false).unwrap();
    model.logits(&hidden).unwrap()
}

/// Largest absolute difference over largest absolute value of `reference`.
pub(crate) fn difference(found: &Tensor, reference: &Tensor) -> f64 {
    let (found, reference) = (found.to_kind(Kind::Double), reference.to_kind(Kind::Double));
    assert_eq!(found.size(), reference.size());
    let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
    largest(found - &reference) / largest(reference.shallow_clone())
}

/// `model` with the adapter of a folder as trained leaves.
pub(crate) fn with_adapter(mut model: Decoder, folder: &Path) -> (Decoder, Parameters) {
    let described = peft::attach(&mut model, folder).unwrap();
    let parameters = Parameters::new(adapter::weights(&model), tch::Device::Cpu).unwrap();
    adapter::attach(&mut model, &described.lora, |key, _| Ok(parameters.get(key).unwrap()))
        .unwrap();
    (model, parameters)
}

/// Mean loss of a batch over its trained tokens, and its gradient.
pub(crate) fn mean_gradient(
    model: &Decoder,
    parameters: &Parameters,
    batch: &MicroBatch,
) -> (f64, Tensor) {
    let gradient = parameters.zero_gradient().unwrap();
    let sum = loss::nll_sum(model, batch, true).unwrap().unwrap();
    let mean = sum / batch.trained_tokens() as f64;
    parameters.add_gradient(&mean, &gradient).unwrap();
    (mean.double_value(&[]), gradient)
}
