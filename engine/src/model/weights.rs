//! Tensors from mapped safetensors, and new ones from a seed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use fs_err as fs;
use heirloom::base::{
    Architecture, Checkpoint, EMBEDDING, Mismatch, NormKind, OUTPUT, StoredTensor, View,
};
use heirloom::recipe::{Dtype, Quantization};
use tch::{Device, Kind, Tensor};

use super::stored;
use crate::error::{EngineError, Result};
use crate::quant::{Fp8, Quantized};

/// The libtorch name of a recipe's dtype.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Bfloat16 => Kind::BFloat16,
    }
}

/// The libtorch name of a safetensors dtype that is loaded as it is.
pub fn stored_kind(view: View<'_>) -> Option<Kind> {
    match view.dtype {
        safetensors::Dtype::F32 => Some(Kind::Float),
        safetensors::Dtype::BF16 => Some(Kind::BFloat16),
        safetensors::Dtype::F16 => Some(Kind::Half),
        safetensors::Dtype::I64 => Some(Kind::Int64),
        safetensors::Dtype::U8 => Some(Kind::Uint8),
        _ => None,
    }
}

/// Bytes of a file that are in memory beside the tensor that is made of them.
const PIECE_BYTES: usize = 4 << 20;

/// Copies one tensor out of a checkpoint, in the dtype in which it is stored; a quantised
/// one as bfloat16, as Transformers dequantises.
pub fn load(checkpoint: &Checkpoint, name: &str) -> Result<Tensor> {
    let kind = match checkpoint.stored(name) {
        Some(StoredTensor::Plain(view)) => stored_kind(view),
        _ => Some(Kind::BFloat16),
    };
    load_as(checkpoint, name, kind.ok_or_else(|| missing(checkpoint, name))?)
}

/// Copies one tensor out of a checkpoint as `kind`, dequantised where it is stored so. Piece
/// by piece: beside the tensor itself, only a few megabytes are in memory.
pub fn load_as(checkpoint: &Checkpoint, name: &str, kind: Kind) -> Result<Tensor> {
    match checkpoint.stored(name) {
        Some(StoredTensor::Plain(view)) => plain(view, kind)?,
        Some(StoredTensor::Fp8 { weight, scale, block }) => {
            Some(stored::fp8(weight, &plain_scale(scale)?, block, kind)?)
        }
        Some(StoredTensor::Mxfp4 { blocks, scales }) => Some(stored::mxfp4(blocks, scales, kind)?),
        None => None,
    }
    .ok_or_else(|| missing(checkpoint, name))
}

/// One tensor of a checkpoint as a frozen weight of a model that computes in `kind`.
pub fn frozen(checkpoint: &Checkpoint, name: &str, shape: &[usize], kind: Kind) -> Result<Tensor> {
    // Only ever compared with scores in f32; Transformers keeps it so, too.
    let wide = name.ends_with("e_score_correction_bias");
    let stored = load_as(checkpoint, name, if wide { Kind::Float } else { kind })?;
    grown(name, stored, shape)
}

/// One tensor of a checkpoint in fewer bits, quantised from `kind`; `None` where `how` leaves
/// it as it is. What is stored in fp8 and is wanted so is taken as it is.
pub fn load_quantized(
    checkpoint: &Checkpoint,
    name: &str,
    kind: Kind,
    how: Quantization,
) -> Result<Option<Quantized>> {
    if how == Quantization::None {
        return Ok(None);
    }
    if let (Quantization::Fp8, Some(StoredTensor::Fp8 { weight, scale, block })) =
        (how, checkpoint.stored(name))
    {
        let shape = sizes(weight.shape);
        let values = Tensor::f_from_data_size(weight.bytes, &shape, Kind::Float8e4m3fn)?;
        weight.release(0..weight.bytes.len());
        let block = (block[0] as i64, block[1] as i64);
        let stored = Fp8::stored(values, &plain_scale(scale)?, block, kind)?;
        return Ok(Some(Quantized::Fp8(stored)));
    }
    Quantized::pack(&load_as(checkpoint, name, kind)?, how)
}

fn plain(view: View<'_>, kind: Kind) -> Result<Option<Tensor>> {
    let Some(stored) = stored_kind(view) else {
        return Ok(None);
    };
    let tensor = Tensor::f_empty(sizes(view.shape), (kind, Device::Cpu))?;
    let flat = tensor.f_view(-1)?;
    let width = stored.elt_size_in_bytes();
    for (index, piece) in view.bytes.chunks(PIECE_BYTES).enumerate() {
        let (start, count) = (index * PIECE_BYTES, (piece.len() / width) as i64);
        let values = Tensor::f_from_data_size(piece, &[count], stored)?;
        flat.f_narrow(0, (start / width) as i64, count)?.f_copy_(&values)?;
        view.release(start..start + piece.len());
    }
    Ok(Some(tensor))
}

/// The factors of an fp8 tensor, in f32.
fn plain_scale(scale: View<'_>) -> Result<Tensor> {
    let unknown = || tch::TchError::Kind(format!("fp8 scales of dtype {:?}", scale.dtype));
    Ok(plain(scale, Kind::Float)?.ok_or_else(unknown)?)
}

/// A shape as libtorch takes it.
pub(super) fn sizes(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|size| *size as i64).collect()
}

fn missing(checkpoint: &Checkpoint, name: &str) -> EngineError {
    EngineError::Tensors {
        path: checkpoint.files().next().unwrap_or(Path::new("")).to_owned(),
        problems: vec![Mismatch::Missing { tensor: name.to_owned(), nearest: None }],
    }
}

/// A stored tensor as large as `shape`: an embedding or output projection that has fewer rows
/// gets the mean of its rows for each new token. Transformers' `resize_token_embeddings` draws
/// them around that mean with a 1e-9th of the rows' covariance; here nothing is drawn.
pub fn grown(name: &str, stored: Tensor, shape: &[usize]) -> Result<Tensor> {
    let wanted = shape.first().map_or(0, |rows| *rows as i64);
    let (EMBEDDING | OUTPUT) = name else { return Ok(stored) };
    let (rows, _) = stored.size2()?;
    if rows >= wanted {
        return Ok(stored);
    }
    let mean = stored.f_mean_dim([0i64].as_slice(), true, Kind::Float)?;
    let new = mean.f_to_kind(stored.kind())?.f_expand([wanted - rows, -1], false)?;
    Ok(Tensor::f_cat(&[stored, new], 0)?)
}

/// Draws a new weight: norms start as the identity, biases at zero, the rest is normal with the config's
/// `initializer_range`, as `LlamaPreTrainedModel._init_weights`. Uses libtorch's generator of
/// the device.
pub fn draw(
    architecture: &Architecture,
    name: &str,
    shape: &[usize],
    device: Device,
) -> Result<Tensor> {
    let (shape, options) = (sizes(shape), (Kind::Float, device));
    // A weight that is added to one starts at zero.
    let one_plus = architecture.norm.kind == NormKind::OnePlusWeight;
    if name.ends_with("norm.weight") && !one_plus {
        return Ok(Tensor::f_ones(&shape, options)?);
    }
    let zero = ["norm.weight", "bias", "sinks"];
    if zero.iter().any(|part| name.ends_with(part)) {
        return Ok(Tensor::f_zeros(&shape, options)?);
    }
    Ok(Tensor::f_randn(&shape, options)?.f_mul_scalar(architecture.initializer_range)?)
}

/// Writes tensors to a safetensors file: sorted by name, one tensor at a time in memory
/// beyond those given, with the one metadata key that Transformers asks for.
///
/// `path` must lie in a folder that is not yet in its place: the file is not atomic.
pub fn save(path: &Path, tensors: Vec<(String, Lazy<'_>)>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let failure = RefCell::new(None);
    let views = tensors.iter().map(|(name, lazy)| (name, Writing { lazy, failure: &failure }));
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|source| EngineError::WriteSafetensors { path: path.to_owned(), source })?;
    if let Some(error) = failure.take() {
        return Err(error);
    }
    // The crate writes through a temporary file that only its owner may read.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(fs::File::open(path)?.sync_all()?)
}

/// A tensor that is computed when it is written.
pub struct Lazy<'a> {
    shape: Vec<usize>,
    kind: Kind,
    compute: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl<'a> Lazy<'a> {
    /// A tensor to be written as `kind`, whose values `compute` gives.
    pub fn new(shape: &[i64], kind: Kind, compute: impl Fn() -> Result<Tensor> + 'a) -> Self {
        let shape = shape.iter().map(|size| *size as usize).collect();
        Self { shape, kind, compute: Box::new(compute) }
    }

    /// A tensor that is there already.
    pub fn ready(tensor: Tensor) -> Lazy<'static> {
        let shape = tensor.size().iter().map(|size| *size as usize).collect();
        let kind = tensor.kind();
        Lazy { shape, kind, compute: Box::new(move || Ok(tensor.shallow_clone())) }
    }

    /// Little-endian, row-major.
    fn bytes(&self) -> Result<Vec<u8>> {
        let tensor = (self.compute)()?.f_to(Device::Cpu)?.f_to_kind(self.kind)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * self.kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        Ok(bytes)
    }
}

/// A [`Lazy`] under the hand of a writer that cannot be told of failures: they are kept
/// aside, and [`save`] reports the last.
struct Writing<'a> {
    lazy: &'a Lazy<'a>,
    failure: &'a RefCell<Option<EngineError>>,
}

impl safetensors::View for Writing<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.lazy.kind {
            Kind::BFloat16 => safetensors::Dtype::BF16,
            Kind::Half => safetensors::Dtype::F16,
            Kind::Uint8 => safetensors::Dtype::U8,
            _ => safetensors::Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.lazy.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.lazy.bytes().unwrap_or_else(|error| {
            self.failure.replace(Some(error));
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        self.lazy.shape.iter().product::<usize>() * self.lazy.kind.elt_size_in_bytes()
    }
}
