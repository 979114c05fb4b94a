//! What the weights of a base take, however they are held.

use std::collections::BTreeSet;

use super::bytes_of;
use crate::base::Architecture;
use crate::recipe::{Adapter, Dtype, Quantization, Storage};

/// Values that share a scale in NF4, and scales that share one of their own.
const NF4_BLOCKS: (f64, f64) = (64.0, 256.0);

/// What the codes of such scales stand for: 256 numbers in f32.
const NF4_TABLE: f64 = 1024.0;

/// Bytes of a base in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Base {
    /// All weights.
    pub(super) bytes: f64,
    /// The largest tensor as it is read, where it is packed afterwards.
    pub(super) largest_unpacked: f64,
}

/// Bytes of a number.
pub(super) fn width(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float32 => 4.0,
        Dtype::Bfloat16 => 2.0,
    }
}

/// What frozen weights take.
pub(super) fn frozen(
    architecture: &Architecture,
    storage: &Storage,
    stays: impl Fn(&str) -> bool,
) -> Base {
    let layers = architecture.quantizable_layers();
    let chosen = layers.iter().filter(|layer| storage.quantizes(&layer.name));
    let chosen: BTreeSet<String> = chosen.map(|layer| format!("{}.weight", layer.name)).collect();
    let mut base = Base::default();
    for (name, shape) in architecture.tensors().into_iter().filter(|(name, _)| stays(name)) {
        let plain = bytes_of(&shape, width(storage.dtype));
        if chosen.contains(&name) {
            base.bytes += packed(&shape, storage.quantization, plain);
            base.largest_unpacked = base.largest_unpacked.max(plain);
        } else {
            base.bytes += plain;
        }
    }
    base
}

/// What VeRA shares between all layers.
pub(super) fn shared(architecture: &Architecture, adapter: &Adapter) -> f64 {
    let Adapter::Lora(lora) = adapter else { return 0.0 };
    if lora.vera.is_none() {
        return 0.0;
    }
    let chosen: Vec<_> = architecture
        .linear_layers()
        .into_iter()
        .filter(|layer| lora.chooses(&layer.name))
        .collect();
    let inputs = chosen.iter().map(|layer| layer.in_features).max().unwrap_or_default();
    let outputs = chosen.iter().map(|layer| layer.out_features).max().unwrap_or_default();
    bytes_of(&[lora.rank as usize, inputs + outputs], 4.0)
}

/// A packed weight with its scales.
fn packed(shape: &[usize], quantization: Quantization, plain: f64) -> f64 {
    let values = bytes_of(shape, 1.0);
    let rows = shape.first().map_or(0.0, |rows| *rows as f64);
    let blocks = (values / NF4_BLOCKS.0).ceil();
    match quantization {
        Quantization::None => plain,
        Quantization::Nf4 => (values / 2.0).ceil() + 4.0 * blocks,
        Quantization::Nf4Double => {
            (values / 2.0).ceil() + blocks + 4.0 * (blocks / NF4_BLOCKS.1).ceil() + NF4_TABLE
        }
        Quantization::Int8 | Quantization::Fp8 => values + 4.0 * rows,
    }
}
