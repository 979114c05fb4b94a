//! A linear layer and what an adapter makes of it.
//!
//! Owns applying an update and merging it, side by side. Which layers have one, and where it
//! starts, is the adapter's; the products are `ops::linear`'s.
//!
//! Reference: PEFT 0.21's `lora.Linear` and `DoraLinearLayer`.

use tch::{Device, Kind, Tensor};

use super::magnitude::Magnitude;
use super::parts::Rows;
use super::weight::Weight;
use crate::error::{EngineError, Result};
use crate::ops;
use crate::ops::checkpointing::trained_linear;
use crate::ops::linear::Layer;

/// `y = x Wᵀ + bias`, plus the update of an adapter if there is one.
#[derive(Debug)]
pub struct Linear {
    /// Module path: the checkpoint key without `.weight`.
    pub name: String,
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// `[out_features]`, if there is one.
    pub bias: Option<Tensor>,
    /// What the adapter puts in the place of `bias`.
    pub trained_bias: Option<Tensor>,
    /// The adapter, if this layer has one.
    pub low_rank: Option<LowRank>,
}

/// The update `scaling · B A` of LoRA (arXiv 2106.09685), in PEFT's conventions.
#[derive(Debug)]
pub struct LowRank {
    /// `lora_A.weight`, `[r, in_features]`.
    pub a: Tensor,
    /// `lora_B.weight`, `[out_features, r]`.
    pub b: Tensor,
    /// What A and B started from, where that is taken out of the base: the layer computes with
    /// `W + scaling · (B A − B₀ A₀)`, and the weight stays what it is.
    pub start: Option<(Tensor, Tensor)>,
    /// The lengths of the rows, where they are trained by themselves.
    pub magnitude: Option<Magnitude>,
    /// What is trained in the place of A and B, which stay as they are.
    pub vectors: Option<Box<Vectors>>,
    /// `lora_alpha / r`, or as `use_rslora` has it.
    pub scaling: f64,
    /// Probability of dropping an input, while training.
    pub dropout: f64,
}

/// What VeRA (arXiv 2310.11454) trains: the rows of A and of B by these.
#[derive(Debug)]
pub struct Vectors {
    /// `vera_lambda_d`, `[r]`.
    pub d: Tensor,
    /// `vera_lambda_b`, `[out_features]`.
    pub b: Tensor,
    /// All of A and B, of which a layer has as much as it needs.
    pub shared: (Tensor, Tensor),
}

impl LowRank {
    /// What is trained of the update: A and B, or the vectors in their place.
    pub fn trained(&self) -> [&Tensor; 2] {
        match &self.vectors {
            Some(vectors) => [&vectors.d, &vectors.b],
            None => [&self.a, &self.b],
        }
    }

    /// A and B of the whole update, that of the start taken out.
    pub fn whole(&self) -> Result<(Tensor, Tensor)> {
        if let Some(Vectors { d, b, .. }) = self.vectors.as_deref() {
            return Ok((self.a.f_mul(&d.f_unsqueeze(1)?)?, self.b.f_mul(&b.f_unsqueeze(1)?)?));
        }
        match &self.start {
            None => Ok((self.a.shallow_clone(), self.b.shallow_clone())),
            Some((a, b)) => {
                Ok((Tensor::f_cat(&[&self.a, a], 0)?, Tensor::f_cat(&[&self.b, &b.f_neg()?], 1)?))
            }
        }
    }

    /// Keeps A and B as they are now as what is taken out of the base.
    pub fn keep_start(&mut self) -> Result<()> {
        let copy = |tensor: &Tensor| -> Result<Tensor> {
            let mut copy = tensor.f_detach()?.f_empty_like()?;
            copy.f_copy_(&tensor.f_detach()?)?;
            Ok(copy)
        };
        self.start = Some((copy(&self.a)?, copy(&self.b)?));
        Ok(())
    }

    /// The update as a matrix, in f32.
    fn delta(&self) -> Result<Tensor> {
        let (a, b) = self.whole()?;
        let product = b.f_to_kind(Kind::Float)?.f_matmul(&a.f_to_kind(Kind::Float)?)?;
        Ok(product.f_mul_scalar(self.scaling)?)
    }

    /// As a part of a product.
    fn part((a, b): (Tensor, Tensor), scaling: f64, dropout: f64) -> ops::linear::LowRank {
        ops::linear::LowRank { a, b, scaling, dropout }
    }

    /// What is subtracted of the base on inputs that nothing is dropped of.
    fn taken_out(&self) -> Result<Option<ops::linear::LowRank>> {
        let negative = |(a, b): &(Tensor, Tensor)| -> Result<_> {
            Ok(Self::part((a.shallow_clone(), b.f_neg()?), self.scaling, 0.0))
        };
        self.start.as_ref().map(negative).transpose()
    }
}

impl Linear {
    /// Applies the layer to `[n, in_features]`. `train` turns dropout on.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_rows(&Rows::kept(x), train)
    }

    /// The same, to rows that need not be kept.
    pub(super) fn forward_rows(&self, rows: &Rows<'_>, train: bool) -> Result<Tensor> {
        let [y] = Self::forward_all([self], rows, train)?;
        Ok(y)
    }

    /// Applies several layers to the same rows.
    pub(super) fn forward_all<const N: usize>(
        layers: [&Self; N],
        rows: &Rows<'_>,
        train: bool,
    ) -> Result<[Tensor; N]> {
        let outputs = if layers.iter().any(|layer| layer.weight.is_trained()) {
            layers.iter().map(|layer| layer.trained(rows)).collect::<Result<Vec<_>>>()?
        } else if train && layers.iter().any(|layer| layer.drops_apart()) {
            layers.iter().map(|layer| layer.apart(&rows.x)).collect::<Result<Vec<_>>>()?
        } else {
            let kind = rows.x.kind();
            let parts = layers.iter().map(|layer| layer.frozen(kind, train));
            let parts = parts.collect::<Result<_>>()?;
            let outputs = ops::linear::linears_over(&rows.x, rows.for_backward(), parts)?;
            let finished = layers.iter().zip(outputs).map(|(layer, y)| layer.finish(y));
            finished.collect::<Result<Vec<_>>>()?
        };
        outputs.try_into().map_err(|_| wrong_number())
    }

    /// Under full training, which keeps f32 weights under a bfloat16 computation.
    fn trained(&self, rows: &Rows<'_>) -> Result<Tensor> {
        let (x, kept) = (&rows.x, rows.for_backward());
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(x.kind())).transpose()?;
        match &self.weight {
            Weight::Dense(weight) if kept.is_made_again() => {
                trained_linear(x, kept, &weight.f_to_kind(x.kind())?, bias.as_ref())
            }
            weight => weight.linear(x, bias.as_ref()),
        }
    }

    fn frozen(&self, kind: Kind, train: bool) -> Result<Layer> {
        let part = |low_rank: &LowRank| -> Result<_> {
            let dropout = if train { low_rank.dropout } else { 0.0 };
            Ok(LowRank::part(low_rank.whole()?, low_rank.scaling, dropout))
        };
        let low_rank = self.low_rank.as_ref().map(part).transpose()?;
        // What comes after the product is added there.
        let bias = if self.finishes() { None } else { self.bias.as_ref() };
        let bias = bias.map(|bias| bias.f_to_kind(kind)).transpose()?;
        Ok(Layer { low_rank, ..self.base(kind, bias) })
    }

    /// The weight alone.
    fn base(&self, kind: Kind, bias: Option<Tensor>) -> Layer {
        let product = self.weight.product(kind);
        Layer { weight: self.weight.matrix(kind), product, bias, low_rank: None }
    }

    fn magnitude(&self) -> Option<&Magnitude> {
        self.low_rank.as_ref()?.magnitude.as_ref()
    }

    /// Whether something comes after the product.
    fn finishes(&self) -> bool {
        let bias = self.trained_bias.as_ref().or(self.bias.as_ref());
        bias.is_some_and(Tensor::requires_grad)
            || self.magnitude().is_some()
            || self.trained_bias.is_some()
    }

    /// What comes after the product: lengths of rows, and the bias.
    fn finish(&self, y: Tensor) -> Result<Tensor> {
        if !self.finishes() {
            return Ok(y);
        }
        let y = match self.scale()? {
            Some(scale) => y.f_mul(&scale.f_to_kind(y.kind())?)?,
            None => y,
        };
        self.add_bias(y)
    }

    fn add_bias(&self, y: Tensor) -> Result<Tensor> {
        match self.trained_bias.as_ref().or(self.bias.as_ref()) {
            Some(bias) => Ok(y.f_add(&bias.f_to_kind(y.kind())?)?),
            None => Ok(y),
        }
    }

    /// What the magnitude makes of each row, `[out_features]`.
    fn scale(&self) -> Result<Option<Tensor>> {
        let Some((low_rank, magnitude)) = self.low_rank.as_ref().zip(self.magnitude()) else {
            return Ok(None);
        };
        let (a, b) = low_rank.whole()?;
        Ok(Some(magnitude.scale(&self.weight, &a, &b, low_rank.scaling)?))
    }

    /// Whether parts of it see other inputs than the rest while training.
    fn drops_apart(&self) -> bool {
        self.low_rank.as_ref().is_some_and(|low_rank| {
            low_rank.dropout > 0.0 && (low_rank.magnitude.is_some() || low_rank.start.is_some())
        })
    }

    /// A layer whose update alone sees dropped inputs, of which others are parts: what is taken
    /// out of the base sees all of them, and what a magnitude scales sees the dropped ones.
    fn apart(&self, x: &Tensor) -> Result<Tensor> {
        let Some(low_rank) = &self.low_rank else {
            let [y] = Self::forward_all([self], &Rows::kept(x), false)?;
            return Ok(y);
        };
        let kind = x.kind();
        let dropped = x.f_dropout(low_rank.dropout, true)?;
        let one = |x: &Tensor, layer: Layer| -> Result<Tensor> {
            ops::linear::linears(x, vec![layer])?.into_iter().next().ok_or_else(wrong_number)
        };
        let taken_out = low_rank.taken_out()?;
        let base = Layer { low_rank: taken_out, ..self.base(kind, None) };
        let y = match self.scale()? {
            Some(scale) => {
                let part = LowRank::part(low_rank.whole()?, low_rank.scaling, 0.0);
                let adapted = Layer { low_rank: Some(part), ..self.base(kind, None) };
                let scaled = one(&dropped, adapted)?.f_mul(&scale.f_to_kind(kind)?)?;
                one(&x.f_sub(&dropped)?, base)?.f_add(&scaled)?
            }
            None => {
                let inner = dropped.f_linear(&low_rank.a.f_to_kind(kind)?, None::<Tensor>)?;
                let update = inner.f_linear(&low_rank.b.f_to_kind(kind)?, None::<Tensor>)?;
                one(x, base)?.f_add(&update.f_mul_scalar(low_rank.scaling)?)?
            }
        };
        self.add_bias(y)
    }

    /// The weight with the update merged in: `W + scaling · B A`, its rows as long as the
    /// magnitude says, computed in f32 and cast to the dtype of `W`. The counterpart of
    /// [`Linear::forward`].
    pub fn merged(&self) -> Result<Tensor> {
        let Some(low_rank) = &self.low_rank else {
            return self.weight.dense(self.weight.kind());
        };
        let mut merged = self.weight.dense(Kind::Float)?.f_add(&low_rank.delta()?)?;
        if let Some(magnitude) = &low_rank.magnitude {
            merged = magnitude.merged(&merged)?;
        }
        Ok(merged.f_to_kind(self.weight.kind())?)
    }

    /// The bias that goes with [`Linear::merged`], in the dtype of the base's.
    pub fn merged_bias(&self) -> Result<Option<Tensor>> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let trained = self.trained_bias.as_ref().unwrap_or(bias);
        Ok(Some(trained.f_detach()?.f_to_kind(bias.kind())?))
    }

    /// Everything that the adapter trains of this layer.
    pub fn trained_leaves(&self) -> impl Iterator<Item = &Tensor> {
        let low_rank = self.low_rank.as_ref();
        let pair = low_rank.into_iter().flat_map(LowRank::trained);
        let magnitude = self.magnitude().map(|magnitude| &magnitude.vector);
        pair.chain(magnitude).chain(&self.trained_bias)
    }

    /// Moves the adapter to a device, and computes once what depends on it alone: it changes no
    /// more.
    pub fn settle(&mut self, device: Device) -> Result<()> {
        if let Some(bias) = &mut self.trained_bias {
            *bias = bias.f_to(device)?;
        }
        if let Some(low_rank) = &mut self.low_rank {
            (low_rank.a, low_rank.b) = (low_rank.a.f_to(device)?, low_rank.b.f_to(device)?);
            if let Some(Vectors { d, b, .. }) = low_rank.vectors.as_deref_mut() {
                (*d, *b) = (d.f_to(device)?, b.f_to(device)?);
            }
            if let Some(magnitude) = &mut low_rank.magnitude {
                magnitude.vector = magnitude.vector.f_to(device)?;
            }
        }
        let scale = tch::no_grad(|| self.scale())?;
        let magnitude = self.low_rank.as_mut().and_then(|low_rank| low_rank.magnitude.as_mut());
        if let Some(magnitude) = magnitude {
            magnitude.settle(scale);
        }
        Ok(())
    }
}

/// As many results as layers: a defect of ours.
fn wrong_number() -> EngineError {
    EngineError::Defect("linear layers gave another number of results".to_owned())
}
