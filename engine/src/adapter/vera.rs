//! VeRA's matrices that all layers share, and the vectors that each of them trains.
//!
//! Owns their keys, and drawing them. Their use stands in `model::Linear`.
//!
//! Reference: `VeraModel` of PEFT 0.21.2, which draws from a generator of PyTorch's own; libtorch's
//! gives the same numbers from the same seed.

use heirloom::base::Checkpoint;
use heirloom::recipe::Lora;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::model::{Decoder, Vectors, weights};

/// Checkpoint keys of the shared A and B.
pub(super) const PROJECTIONS: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

/// A `[r, in]` and B `[out, r]`, as large as the largest layer needs them.
pub(super) struct Projections {
    a: Tensor,
    b: Tensor,
}

/// The keys of a layer's vectors: that between A and B, and that after B.
pub(super) fn keys(linear: &str) -> [String; 2] {
    ["d", "b"].map(|vector| format!("base_model.model.{linear}.vera_lambda_{vector}"))
}

/// The shapes of A and B.
pub(super) fn shapes(model: &Decoder, lora: &Lora) -> Result<[[i64; 2]; 2]> {
    let (mut inputs, mut outputs) = (0, 0);
    for linear in model.linears().filter(|linear| lora.chooses(&linear.name)) {
        let (out_features, in_features) = linear.weight.size2()?;
        (inputs, outputs) = (inputs.max(in_features), outputs.max(out_features));
    }
    let rank = i64::from(lora.rank);
    Ok([[rank, inputs], [outputs, rank]])
}

impl Projections {
    /// Those that the model has, or else those of the seed; `None` without VeRA.
    pub(super) fn of(model: &Decoder, lora: &Lora) -> Result<Option<Self>> {
        let Some(settings) = lora.vera else { return Ok(None) };
        let known = shared(model).map(|(a, b)| Self { a, b });
        let projections = match known {
            Some(known) => known,
            None => Self::draw(shapes(model, lora)?, settings.projection_prng_key)?,
        };
        let device = model.embedding.device();
        Ok(Some(Self { a: projections.a.f_to(device)?, b: projections.b.f_to(device)? }))
    }

    /// Kaiming-uniform, A before B.
    fn draw(shapes: [[i64; 2]; 2], key: u32) -> Result<Self> {
        // What is drawn afterwards depends on the seed of the run alone.
        let next = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?;
        tch::manual_seed(i64::from(key));
        let [a, b] = shapes.map(|shape| -> Result<Tensor> {
            let bound = 3f64.sqrt() * (2f64.sqrt() / (shape[1] as f64).sqrt());
            Ok(Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?.f_uniform_(-bound, bound)?)
        });
        tch::manual_seed(next.f_int64_value(&[0])?);
        Ok(Self { a: a?, b: b? })
    }

    /// Of one layer.
    pub(super) fn vectors(&self, d: Tensor, b: Tensor) -> Box<Vectors> {
        let shared = (self.a.shallow_clone(), self.b.shallow_clone());
        Box::new(Vectors { d, b, shared })
    }

    /// The parts of A and B that a layer of this shape has.
    pub(super) fn parts(&self, (outputs, inputs): (i64, i64)) -> Result<(Tensor, Tensor)> {
        Ok((self.a.f_narrow(1, 0, inputs)?, self.b.f_narrow(0, 0, outputs)?))
    }
}

/// A and B of a model that has them.
fn shared(model: &Decoder) -> Option<(Tensor, Tensor)> {
    let vectors = |low_rank: &crate::model::LowRank| {
        let (a, b) = &low_rank.vectors.as_ref()?.shared;
        Some((a.shallow_clone(), b.shallow_clone()))
    };
    model.linears().find_map(|linear| vectors(linear.low_rank.as_ref()?))
}

/// A and B by key, where they are written.
pub(super) fn written(model: &Decoder) -> Option<[(String, Tensor); 2]> {
    let (a, b) = shared(model)?;
    let [of_a, of_b] = PROJECTIONS.map(str::to_owned);
    Some([(of_a, a), (of_b, b)])
}

/// Puts the A and B of a file in the place of those that were drawn.
pub(super) fn load(model: &mut Decoder, checkpoint: &Checkpoint) -> Result<()> {
    let [a, b] = PROJECTIONS.map(|key| weights::load_as(checkpoint, key, Kind::Float));
    let projections = Projections { a: a?, b: b? };
    for linear in model.linears_mut()? {
        let Some(low_rank) = &mut linear.low_rank else { continue };
        (low_rank.a, low_rank.b) = projections.parts(linear.weight.size2()?)?;
        if let Some(vectors) = low_rank.vectors.take() {
            low_rank.vectors = Some(projections.vectors(vectors.d, vectors.b));
        }
    }
    Ok(())
}
