//! Vector-based random matrix adaptation (VeRA, arXiv 2310.11454).
//!
//! Owns its settings. A layer's update is that of LoRA with a factor of one, whose A and B are
//! drawn once for all layers and stay as they are; two vectors for each layer scale their rows.
//! So it is a [`Lora`] with [`Vectors`], and everything that is not its own is LoRA's.
//!
//! Reference: `VeraConfig` of PEFT 0.21.2.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Lora, Targets};

/// The words of a recipe for it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vera {
    /// Folder of a PEFT adapter that is trained further.
    #[serde(default)]
    from: Option<PathBuf>,
    /// `r`: rows of the shared A.
    rank: u32,
    /// `target_modules`.
    #[serde(default)]
    targets: Targets,
    /// Blocks whose linear layers get an adapter; all of them where it is empty.
    #[serde(default)]
    layers_to_transform: Vec<u32>,
    /// `vera_dropout`.
    #[serde(default)]
    dropout: f64,
    #[serde(default = "d_initial")]
    d_initial: f64,
    #[serde(default)]
    projection_prng_key: u32,
    #[serde(default = "yes")]
    save_projection: bool,
}

/// What of VeRA is no setting of LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vectors {
    /// What the vector between A and B starts as.
    pub d_initial: f64,
    /// Seed of the shared A and B.
    pub projection_prng_key: u32,
    /// Whether A and B are written beside the vectors, and read.
    pub save_projection: bool,
}

fn d_initial() -> f64 {
    0.1
}

fn yes() -> bool {
    true
}

impl From<Vera> for Lora {
    fn from(vera: Vera) -> Self {
        let Vera { from, rank, targets, layers_to_transform, dropout, .. } = vera;
        let vectors = Vectors {
            d_initial: vera.d_initial,
            projection_prng_key: vera.projection_prng_key,
            save_projection: vera.save_projection,
        };
        Self {
            from,
            targets,
            layers_to_transform,
            dropout,
            vera: Some(vectors),
            ..Self::new(rank, f64::from(rank))
        }
    }
}

impl Vera {
    /// The words for what has vectors.
    pub(super) fn of(lora: &Lora, vectors: Vectors) -> Self {
        Self {
            from: lora.from.clone(),
            rank: lora.rank,
            targets: lora.targets.clone(),
            layers_to_transform: lora.layers_to_transform.clone(),
            dropout: lora.dropout,
            d_initial: vectors.d_initial,
            projection_prng_key: vectors.projection_prng_key,
            save_projection: vectors.save_projection,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::Adapter;

    #[test]
    fn it_is_read_as_it_is_written() {
        let text = r#"{"vera": {"rank": 8, "targets": ["q_proj"], "projection_prng_key": 7}}"#;
        let adapter: Adapter = serde_json::from_str(text).unwrap();
        let Adapter::Lora(lora) = &adapter else { panic!("{adapter:?}") };
        assert_eq!((lora.rank, lora.scaling_of("q_proj")), (8, 1.0));
        let vectors = lora.vera.unwrap();
        assert_eq!((vectors.d_initial, vectors.save_projection), (0.1, true));
        let written = serde_json::to_string(&adapter).unwrap();
        assert!(written.contains(r#""projection_prng_key":7"#), "{written}");
        assert_eq!(serde_json::from_str::<Adapter>(&written).unwrap(), adapter);
        serde_json::from_str::<Adapter>(r#"{"vera": {"rank": 8, "alpha": 2}}"#).unwrap_err();
    }
}
