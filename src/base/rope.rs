//! Rotary position embeddings as `config.json` describes them.
//!
//! Owns the kinds of scaling and their keys, in the old style (`rope_theta` beside
//! `rope_scaling`) and the new (`rope_parameters`). Does not own frequencies and angles (the
//! engine's `ops::rotary`). Reference: `modeling_rope_utils.py` of Transformers 5.23.

use super::BaseError;
use super::keys::Keys;

/// A rotary embedding (arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Features of a head that are rotated, from the first; even.
    pub dim: usize,
    /// How frequencies are changed for long sequences.
    pub scaling: RopeScaling,
    /// Cosines and sines are multiplied with this (YaRN, LongRoPE).
    pub attention_factor: f64,
    /// Whether pairs of neighbours are rotated instead of halves (DeepSeek).
    pub interleaved: bool,
    /// Whether the rotation is computed in f32 whatever the dtype of the model.
    pub wide: bool,
}

/// The kinds of scaling, by their `rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// A larger base for sequences longer than the original ones (NTK).
    Dynamic {
        /// How strongly.
        factor: f64,
        /// Longest original sequence.
        original: usize,
    },
    /// Low frequencies divided, high ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Longest original sequence.
        original: usize,
    },
    /// Interpolation by frequency (arXiv 2309.00071).
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Whether the bounds are rounded outwards to whole features.
        truncate: bool,
        /// Longest original sequence.
        original: usize,
    },
    /// A divisor for every frequency (arXiv 2402.13753).
    LongRope {
        /// For sequences up to the original length.
        short_factor: Vec<f64>,
        /// For longer ones.
        long_factor: Vec<f64>,
        /// Longest original sequence.
        original: usize,
    },
}

/// What stands outside the object of rotary parameters.
#[derive(Clone, Copy)]
pub(super) struct RopeContext {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// `max_position_embeddings`.
    pub(super) positions: usize,
    /// `original_max_position_embeddings`, which wins over the one in the object.
    pub(super) original: Option<usize>,
    /// `partial_rotary_factor`.
    pub(super) partial: f64,
    /// Whether the family is Phi-3, which alone rotates a part of a head, and where `yarn`
    /// means `longrope`.
    pub(super) phi3: bool,
}

/// A rotary embedding, and for how many positions its scaling was made.
pub(super) struct ReadRope {
    pub(super) rope: Rope,
    pub(super) positions: usize,
    /// `0.1 · mscale_all_dim · ln(factor) + 1`, which DeepSeek applies to scores, squared.
    pub(super) score_factor: f64,
}

/// Reads the rotary embedding of a model that has one for all layers; `context` holds the
/// family's defaults.
pub(super) fn read(keys: &Keys, mut context: RopeContext) -> Result<ReadRope, BaseError> {
    let (old, new) = (keys.object("rope_scaling")?, keys.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        return Err(keys.refuse("rope_scaling", "something beside `rope_parameters`"));
    }
    let object = old.or(new);
    context.theta = keys.positive("rope_theta")?.unwrap_or(context.theta);
    context.partial = keys.positive("partial_rotary_factor")?.unwrap_or(context.partial);
    let original = keys.size("original_max_position_embeddings")?;
    context.original = original.or(context.original);
    read_object(keys, object, context)
}

/// Reads one object of rotary parameters.
pub(super) fn read_object(
    keys: &Keys,
    object: Option<Keys>,
    mut context: RopeContext,
) -> Result<ReadRope, BaseError> {
    let mut scaling = Scaling::none();
    if let Some(object) = object {
        context.theta = object.positive("rope_theta")?.unwrap_or(context.theta);
        context.partial = object.positive("partial_rotary_factor")?.unwrap_or(context.partial);
        scaling = Scaling::read(&object, context)?;
        object.finish()?;
    }
    let RopeContext { theta, head_dim, partial, phi3, positions, .. } = context;
    if partial > 1.0 || (!phi3 && partial != 1.0) {
        return Err(keys.refuse("partial_rotary_factor", partial));
    }
    let dim = (head_dim as f64 * partial) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(keys.refuse("head_dim", head_dim));
    }
    let Scaling { kind, attention_factor, score_factor } = scaling;
    if ![attention_factor, score_factor].iter().all(|factor| factor.is_finite()) {
        return Err(keys.refuse("rope_scaling.factor", attention_factor));
    }
    if let RopeScaling::LongRope { short_factor, long_factor, .. } = &kind
        && let Some(wrong) = [short_factor, long_factor].iter().find(|f| f.len() != dim / 2)
    {
        return Err(keys.refuse("rope_scaling.long_factor", format!("{} numbers", wrong.len())));
    }
    let stretched = |length: usize, factor: f64| (length as f64 * factor) as usize;
    let positions = match kind {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => {
            stretched(positions, factor)
        }
        RopeScaling::Yarn { factor, original, .. } => positions.max(stretched(original, factor)),
        _ => positions,
    };
    let rope =
        Rope { theta, dim, scaling: kind, attention_factor, interleaved: false, wide: false };
    Ok(ReadRope { rope, positions, score_factor })
}

/// What an object of rotary parameters says about scaling.
struct Scaling {
    kind: RopeScaling,
    attention_factor: f64,
    score_factor: f64,
}

impl Scaling {
    fn none() -> Self {
        Self { kind: RopeScaling::Default, attention_factor: 1.0, score_factor: 1.0 }
    }

    fn read(object: &Keys, context: RopeContext) -> Result<Self, BaseError> {
        let old = object.text("type")?;
        let kind = object.text("rope_type")?.or(old).unwrap_or("default");
        let factor = || object.require("factor", Keys::positive);
        let inner = object.size("original_max_position_embeddings")?;
        let original = context.original.or(inner).unwrap_or(context.positions);
        let mut scaling = Self::none();
        scaling.kind = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()?, original: context.positions },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: object.require("low_freq_factor", Keys::positive)?,
                high_freq_factor: object.require("high_freq_factor", Keys::positive)?,
                original,
            },
            "yarn" if !context.phi3 => return Self::read_yarn(object, context.positions, original),
            "longrope" | "su" | "yarn" => {
                let ratio = context.positions as f64 / original as f64;
                let factor = object.positive("factor")?.unwrap_or(ratio);
                scaling.attention_factor = object
                    .positive("attention_factor")?
                    .unwrap_or_else(|| long_rope_factor(factor, original));
                let factors = |key| object.require(key, |object, key| object.list(key, positive));
                let (short_factor, long_factor) =
                    (factors("short_factor")?, factors("long_factor")?);
                RopeScaling::LongRope { short_factor, long_factor, original }
            }
            other => return Err(object.refuse("rope_type", other)),
        };
        Ok(scaling)
    }

    fn read_yarn(object: &Keys, positions: usize, original: usize) -> Result<Self, BaseError> {
        let factor = object.positive("factor")?.unwrap_or(positions as f64 / original as f64);
        let mscale = object.number("mscale")?.unwrap_or(0.0);
        let mscale_all = object.number("mscale_all_dim")?.unwrap_or(0.0);
        let usual = if mscale != 0.0 && mscale_all != 0.0 {
            yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
        } else {
            yarn_mscale(factor, 1.0)
        };
        Ok(Self {
            kind: RopeScaling::Yarn {
                factor,
                beta_fast: object.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: object.positive("beta_slow")?.unwrap_or(1.0),
                truncate: object.maybe_flag("truncate")?.unwrap_or(true),
                original,
            },
            attention_factor: object.positive("attention_factor")?.unwrap_or(usual),
            score_factor: if mscale_all == 0.0 { 1.0 } else { yarn_mscale(factor, mscale_all) },
        })
    }
}

fn positive(value: &serde_json::Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number > 0.0)
}

fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn long_rope_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}
