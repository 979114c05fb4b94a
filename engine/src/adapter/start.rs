//! Where an adapter starts: `init_lora_weights`.
//!
//! Owns the initial values of every trained weight of an adapter. Those that decompose the weight
//! (PiSSA, OLoRA) are taken out of it again by [`keep`], without changing the base: PEFT changes
//! it, and converts the adapter when it saves
//! (`save_pretrained(path_initial_model_for_weight_conversion=…)`); here it is one of the base as
//! it is all along.
//!
//! Reference: `LoraLayer.update_layer` of PEFT 0.21.2, and `replace_lora_weights_loftq` for
//! LoftQ, where a factor other than one is divided out, too.

use heirloom::recipe::{Lora, Start};
use tch::{Device, Kind, Tensor};

use super::{Keys, experts, tokens};
use crate::error::Result;
use crate::model::{Decoder, Linear, lengths};

/// Initial values of everything that `lora` trains, by key, in the order of
/// [`attach`](super::attach). `stored` gives the weight of a layer before it was quantised. Uses
/// libtorch's generator.
pub fn initial(
    model: &Decoder,
    lora: &Lora,
    stored: impl Fn(&Linear) -> Result<Tensor>,
) -> Result<Vec<(String, Tensor)>> {
    let mut initial = Vec::new();
    tch::no_grad(|| -> Result<()> {
        for linear in model.linears() {
            let wrapped = lora.chooses(&linear.name);
            let keys = Keys::new(&linear.name, wrapped);
            if let (true, Some(settings)) = (wrapped, lora.vera) {
                let (out_features, _) = linear.weight.size2()?;
                let shape = [i64::from(lora.rank)];
                let [d, b] = keys.vectors;
                let kind = (Kind::Float, Device::Cpu);
                initial.push((d, Tensor::f_full(shape, settings.d_initial, kind)?));
                initial.push((b, Tensor::f_zeros([out_features], kind)?));
            } else if wrapped {
                let (a, b) = pair(linear, lora, &stored)?;
                if lora.use_dora {
                    let lengths = magnitude(linear, lora, &a, &b)?;
                    initial.extend([(keys.a, a), (keys.b, b), (keys.magnitude, lengths)]);
                } else {
                    initial.extend([(keys.a, a), (keys.b, b)]);
                }
            }
            if let (Some(bias), true) = (&linear.bias, lora.trains_bias(&linear.name)) {
                initial.push((keys.bias, bias.f_to_kind(Kind::Float)?));
            }
        }
        initial.extend(experts::initial(model, lora)?);
        Ok(())
    })?;
    initial.extend(tokens::initial(model, lora)?);
    Ok(initial)
}

/// Takes what A and B start from out of the base, where that is how they start. To be called
/// before they change.
pub fn keep(model: &mut Decoder, lora: &Lora) -> Result<()> {
    if lora.init_lora_weights.is_taken_out() {
        for low_rank in model.linears_mut()?.filter_map(|linear| linear.low_rank.as_mut()) {
            low_rank.keep_start()?;
        }
    }
    Ok(())
}

/// A `[r, in]` and B `[out, r]`, f32.
fn pair(
    linear: &Linear,
    lora: &Lora,
    stored: &impl Fn(&Linear) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (out_features, in_features) = linear.weight.size2()?;
    let rank = i64::from(lora.rank_of(&linear.name));
    let scaling = lora.scaling_of(&linear.name);
    let dense = || linear.weight.dense(Kind::Float);
    match lora.init_lora_weights {
        Start::Default => {
            let mut a = zeros([rank, in_features])?;
            // Kaiming-uniform with a = √5.
            let bound = 1.0 / (in_features as f64).sqrt();
            let _ = a.f_uniform_(-bound, bound)?;
            Ok((a, zeros([out_features, rank])?))
        }
        Start::Gaussian => {
            let mut a = zeros([rank, in_features])?;
            let _ = a.f_normal_(0.0, 1.0 / rank as f64)?;
            Ok((a, zeros([out_features, rank])?))
        }
        Start::Pissa => shared_out(largest(&dense()?, rank)?, scaling),
        Start::PissaNiter(iterations) => {
            shared_out(largest_by_iteration(&dense()?, rank, iterations)?, scaling)
        }
        Start::Olora => {
            let (q, r) = Tensor::f_linalg_qr(&dense()?, "reduced")?;
            Ok((r.f_narrow(0, 0, rank)?.f_contiguous()?, q.f_narrow(1, 0, rank)?.f_contiguous()?))
        }
        Start::Loftq => {
            let lost = stored(linear)?.f_to_kind(Kind::Float)?.f_sub(&dense()?)?;
            shared_out(largest(&lost, rank)?, scaling)
        }
    }
}

/// The lengths of the rows of what the layer computes with at first.
fn magnitude(linear: &Linear, lora: &Lora, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut weight = linear.weight.dense(Kind::Float)?;
    if !lora.init_lora_weights.is_taken_out() {
        let update = b.f_mm(a)?.f_mul_scalar(lora.scaling_of(&linear.name))?;
        weight = weight.f_add(&update.f_to(weight.device())?)?;
    }
    lengths(&weight)
}

fn zeros(shape: [i64; 2]) -> Result<Tensor> {
    Ok(Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?)
}

/// The largest singular values `[r]` of a matrix with their vectors, `[out, r]` and `[r, in]`.
type Parts = (Tensor, Tensor, Tensor);

fn largest(matrix: &Tensor, rank: i64) -> Result<Parts> {
    // `linalg.svd` by its older name: tch's newer one names a driver, which the CPU refuses.
    let (u, values, v) = matrix.f_svd(true, true)?;
    Ok((u.f_narrow(1, 0, rank)?, values.f_narrow(0, 0, rank)?, v.f_narrow(1, 0, rank)?.f_tr()?))
}

/// The same, nearly, in less time: `torch.svd_lowrank` (arXiv 0909.4061, algorithm 5.1).
fn largest_by_iteration(matrix: &Tensor, rank: i64, iterations: u32) -> Result<Parts> {
    let basis =
        |product: Tensor| -> Result<Tensor> { Ok(Tensor::f_linalg_qr(&product, "reduced")?.0) };
    let (_, in_features) = matrix.size2()?;
    let across = matrix.f_tr()?;
    let drawn = Tensor::f_randn([in_features, rank], (Kind::Float, Device::Cpu))?;
    let mut q = basis(matrix.f_mm(&drawn.f_to(matrix.device())?)?)?;
    for _ in 0..iterations {
        q = basis(matrix.f_mm(&basis(across.f_mm(&q)?)?)?)?;
    }
    let (u, values, v) = largest(&q.f_tr()?.f_mm(matrix)?, rank)?;
    Ok((q.f_mm(&u)?, values, v))
}

/// A and B with `scaling · B A = U diag(values) V`, the values shared between them.
fn shared_out((u, values, v): Parts, scaling: f64) -> Result<(Tensor, Tensor)> {
    let roots = values.f_div_scalar(scaling)?.f_sqrt()?;
    Ok((v.f_mul(&roots.f_unsqueeze(1)?)?.f_contiguous()?, u.f_mul(&roots)?.f_contiguous()?))
}
