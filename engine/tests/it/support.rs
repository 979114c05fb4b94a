//! What several tests need.

use std::path::{Path, PathBuf};

use heirloom::base::{BaseFolder, Checkpoint};
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{self, ActivationCheckpointing, Adamw};
use heirloom_engine::adapter::{self, peft};
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::train::{loss, optimizer::Optimizer, parameters::Parameters};
use tch::{Kind, Tensor};

/// The bar for logits, gradients and losses beside PEFT's.
pub(crate) const SAME: f64 = 1e-4;

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

/// Losses of steps of AdamW with a rate, as the fixtures were made.
pub(crate) fn course(
    model: &Decoder,
    parameters: &mut Parameters,
    batch: &MicroBatch,
    lr: f64,
    steps: usize,
) -> Vec<f64> {
    let settings = Adamw { lr, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 };
    let settings = recipe::Optimizer::Adamw(settings);
    let mut adamw = Optimizer::new(&settings, parameters).unwrap();
    let step = |_| {
        let (loss, gradient) = mean_gradient(model, parameters, batch);
        adamw.update(parameters, &gradient, lr).unwrap();
        loss
    };
    (0..steps).map(step).collect()
}

/// The largest relative distance of two courses.
pub(crate) fn furthest(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let apart = found.iter().zip(expected).map(|(found, expected)| (found / expected - 1.0).abs());
    apart.fold(0.0, f64::max)
}

/// Logits, gradients and losses of three steps of an adapted model beside PEFT's; prints how far
/// they are apart.
#[expect(clippy::print_stdout, reason = "for whoever asks with `--nocapture`")]
pub(crate) fn check_numbers(
    case: &str,
    golden: &Golden,
    (model, mut parameters): (Decoder, Parameters),
    lr: f64,
) {
    let batch = golden.packed();
    let found = tch::no_grad(|| logits(&model, &batch));
    let of_logits = difference(&found, &golden.logits("logits."));
    let (_, gradient) = mean_gradient(&model, &parameters, &batch);
    assert_eq!(golden.names("grad.").len(), parameters.split(&gradient).count(), "{case}");
    let apart = parameters
        .split(&gradient)
        .map(|(key, found)| difference(&found, &golden.tensor(&format!("grad.{key}"))));
    let of_gradients = apart.fold(0.0, f64::max);
    let losses = course(&model, &mut parameters, &batch, lr, 3);
    let of_losses = furthest(&losses, &golden.numbers("losses"));
    println!(
        "{case}: logits {of_logits:.1e}, gradients {of_gradients:.1e}, losses {of_losses:.1e}"
    );
    assert!(of_logits <= SAME && of_gradients <= SAME && of_losses <= SAME, "{case}");
}

/// The same bits, whatever is computed again in the backward pass.
pub(crate) fn check_computed_again(
    case: &str,
    golden: &Golden,
    (mut model, parameters): (Decoder, Parameters),
) {
    let batch = golden.packed();
    let (_, once) = mean_gradient(&model, &parameters, &batch);
    for checkpointing in [ActivationCheckpointing::Selective, ActivationCheckpointing::Block] {
        model.checkpointing = checkpointing;
        let (_, again) = mean_gradient(&model, &parameters, &batch);
        assert_eq!(again, once, "{case} {checkpointing:?}");
    }
}
