//! Cross-entropy of hidden states through the output projection, without ever holding the
//! logits of more than [`ROWS`] rows.
//!
//! The gradient of the hidden states is found in the forward pass, while a chunk's logits are
//! at hand; the backward pass scales it. After Liger kernels (arXiv 2410.10989) and Cut
//! Cross-Entropy (arXiv 2411.09009). [`frozen`] is what adapters need; [`chunked`] serves every
//! projection and every device.

#![expect(unsafe_code, reason = "a function of C++ that takes pointers to the memory of tensors")]

use std::ffi::{c_char, c_void};

use tch::{Kind, Reduction, Tensor};

use super::cuda::{self, Grid, MOST_THREADS};
use super::{chunked, native};
use crate::error::{EngineError, Result};

/// Rows of a chunk: enough for the matrix products to run at full speed.
const ROWS: i64 = 512;

unsafe extern "C" {
    fn heirloom_cross_entropy(job: *const Job) -> *mut c_char;
}

/// As in `cross_entropy.cpp`.
#[repr(C)]
struct Job {
    bfloat16s: i32,
    differentiate: i32,
    rows: i64,
    width: i64,
    scaling: f32,
    softcap: f32,
    smoothing: f32,
    logits: *mut c_void,
    targets: *const i64,
    weights: *const f32,
    losses: *mut f32,
}

/// What rows are to predict, and how much each counts.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `[m]`, i64, each less than the vocabulary.
    pub ids: &'a Tensor,
    /// `[m]`, f32; 1 where there are none.
    pub weights: Option<&'a Tensor>,
    /// Share of what is to be predicted that all tokens have alike (arXiv 1512.00567).
    pub smoothing: f64,
}

impl Targets<'_> {
    /// Works with those of some rows alone.
    pub fn of_rows<T>(
        &self,
        start: i64,
        count: i64,
        work: impl FnOnce(Targets<'_>) -> Result<T>,
    ) -> Result<T> {
        let weights = self.weights.map(|weights| weights.f_narrow(0, start, count));
        let (ids, weights) = (self.ids.f_narrow(0, start, count)?, weights.transpose()?);
        work(Targets { ids: &ids, weights: weights.as_ref(), smoothing: self.smoothing })
    }
}

/// How products become logits: `cap · tanh(x / scaling / cap)`.
#[derive(Clone, Copy, Debug)]
pub struct Logits {
    /// What products are divided by.
    pub scaling: f64,
    /// The cap, if there is one.
    pub softcap: Option<f64>,
}

/// Whether [`frozen`] computes with such hidden states and such a projection.
pub fn computes(hidden: &Tensor, output: &Tensor) -> bool {
    cuda::known(hidden.kind())
        && cuda::by(hidden.device()).is_some()
        && output.device() == hidden.device()
        && !output.requires_grad()
}

/// Sum of the negative log-likelihoods of `targets` under hidden states `[m, hidden]`, in nats,
/// where the projection `output` (`[vocabulary, hidden]`) is not trained.
pub fn frozen(
    hidden: &Tensor,
    output: &Tensor,
    logits: Logits,
    targets: Targets<'_>,
) -> Result<Tensor> {
    let differentiate = hidden.requires_grad();
    let device = hidden.device();
    if targets.ids.device() != device || targets.weights.is_some_and(|w| w.device() != device) {
        return Err(EngineError::Defect("targets on another device".to_owned()));
    }
    inside(targets.ids, output.size2()?.0)?;
    let (losses, gradient) = tch::no_grad(|| -> Result<_> {
        let output = output.f_to_kind(hidden.kind())?;
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for chunk in chunks(hidden, targets)? {
            let products = chunk.hidden.f_linear(&output, None::<Tensor>)?.f_contiguous()?;
            losses.push(differentiated(
                &products,
                logits,
                &chunk,
                targets.smoothing,
                differentiate,
            )?);
            if differentiate {
                gradients.push(products.f_matmul(&output)?);
            }
        }
        let gradient = if differentiate { vec![Tensor::f_cat(&gradients, 0)?] } else { vec![] };
        Ok((Tensor::f_cat(&losses, 0)?.f_sum(Kind::Float)?, gradient))
    })?;
    chunked::scaled(&[hidden], losses, gradient)
}

/// The negative log-likelihood of each of `ids` under hidden states `[m, hidden]`, in nats and
/// outside of any graph: `[m]`.
pub fn each(
    hidden: &Tensor,
    ids: &Tensor,
    project: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let targets = Targets { ids, weights: None, smoothing: 0.0 };
    let losses = tch::no_grad(|| -> Result<Vec<Tensor>> {
        let loss = |chunk: Chunk| {
            let logits = project(&chunk.hidden)?.f_contiguous()?;
            inside(&chunk.ids, logits.size2()?.1)?;
            if cuda::known(logits.kind()) && cuda::by(logits.device()).is_some() {
                let plain = Logits { scaling: 1.0, softcap: None };
                return differentiated(&logits, plain, &chunk, 0.0, false);
            }
            let logits = logits.f_to_kind(Kind::Float)?;
            let none = None::<Tensor>;
            Ok(logits.f_cross_entropy_loss(&chunk.ids, none, Reduction::None, -100, 0.0)?)
        };
        chunks(hidden, targets)?.into_iter().map(loss).collect()
    })?;
    Ok(Tensor::f_cat(&losses, 0)?)
}

/// As [`frozen`], through any function of hidden states: the gradients of `trained`, weights
/// that `project` uses, add up chunk by chunk.
pub fn chunked(
    hidden: &Tensor,
    trained: &[&Tensor],
    targets: Targets<'_>,
    project: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    chunked::summed(hidden, trained, ROWS, |leaf, start| {
        let logits = project(leaf)?;
        targets.of_rows(start, leaf.size2()?.0, |some| super::cross_entropy_sum(&logits, some))
    })
}

/// Some rows and what they are to predict.
struct Chunk {
    hidden: Tensor,
    ids: Tensor,
    weights: Option<Tensor>,
}

fn chunks(hidden: &Tensor, targets: Targets<'_>) -> Result<Vec<Chunk>> {
    let chunk = |(start, hidden): (i64, Tensor)| -> Result<Chunk> {
        let count = hidden.size2()?.0;
        let some = |x: &Tensor| x.f_narrow(0, start, count)?.f_contiguous();
        Ok(Chunk {
            ids: some(targets.ids)?,
            weights: targets.weights.map(some).transpose()?,
            hidden,
        })
    };
    chunked::chunks(hidden, ROWS)?.into_iter().map(chunk).collect()
}

/// Refuses targets that the vocabulary does not have: a loop would read beyond the logits. Asked
/// once for all chunks, since a device has to finish what it does before it can answer.
fn inside(ids: &Tensor, vocabulary: i64) -> Result<()> {
    let outside = ids.f_ge(vocabulary)?.f_logical_or(&ids.f_lt(0)?)?;
    if outside.f_any()?.f_int64_value(&[])? != 0 {
        return Err(EngineError::Defect("a target outside the vocabulary".to_owned()));
    }
    Ok(())
}

/// The losses of rows; their gradients take the place of the products if asked for.
fn differentiated(
    products: &Tensor,
    logits: Logits,
    chunk: &Chunk,
    smoothing: f64,
    differentiate: bool,
) -> Result<Tensor> {
    let (rows, width) = products.size2()?;
    let losses = Tensor::f_empty([rows], (Kind::Float, products.device()))?;
    let job = Job {
        bfloat16s: i32::from(products.kind() == Kind::BFloat16),
        differentiate: i32::from(differentiate),
        rows,
        width,
        scaling: logits.scaling as f32,
        softcap: logits.softcap.unwrap_or(0.0) as f32,
        smoothing: smoothing as f32,
        logits: products.data_ptr(),
        targets: chunk.ids.data_ptr().cast_const().cast(),
        weights: chunk.weights.as_ref().map_or(std::ptr::null(), |w| w.data_ptr().cast()),
        losses: losses.data_ptr().cast(),
    };
    // SAFETY: the tensors are dense, on one device, live throughout the call, and have as many
    // rows as said; the targets were looked at.
    unsafe {
        let by_loop = |job: &Job| native::check(heirloom_cross_entropy(job));
        let grid = Grid::rows(rows, width, MOST_THREADS);
        cuda::run(products, &job, by_loop, cuda::CROSS_ENTROPY, products.kind(), grid)?;
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::ops::cuda::backends::Backend;

    const PLAIN: Logits = Logits { scaling: 1.0, softcap: None };
    const CAPPED: Logits = Logits { scaling: 8.0, softcap: Some(3.0) };

    fn draw(sizes: &[i64]) -> Tensor {
        Tensor::randn(sizes, (Kind::BFloat16, Device::Cpu)).to_kind(Kind::Double)
    }

    fn logits(hidden: &Tensor, output: &Tensor, how: Logits) -> Tensor {
        let logits = hidden.linear(output, None::<Tensor>) / how.scaling;
        match how.softcap {
            Some(cap) => super::super::soft_cap(&logits, cap).unwrap(),
            None => logits,
        }
    }

    /// The loss and the gradients of hidden states and projection, all at once.
    fn whole(hidden: &Tensor, output: &Tensor, how: Logits, targets: Targets<'_>) -> [Tensor; 3] {
        let leaves = [hidden, output].map(|x| x.detach().set_requires_grad(true));
        let each = logits(&leaves[0], &leaves[1], how).log_softmax(-1, hidden.kind());
        let even = each.mean_dim([1i64].as_slice(), false, hidden.kind());
        let each = each.gather(1, &targets.ids.unsqueeze(1), false).squeeze_dim(1);
        let each = -(each * (1.0 - targets.smoothing) + even * targets.smoothing);
        let loss = match targets.weights {
            Some(weights) => (each * weights).sum(Kind::Double),
            None => each.sum(Kind::Double),
        };
        let mut gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
        let output = gradients.pop().unwrap();
        [loss.detach(), gradients.pop().unwrap(), output]
    }

    fn apart(found: &Tensor, exact: &Tensor) -> f64 {
        assert_eq!(found.size(), exact.size());
        let length = |x: Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
        let exact = exact.to_kind(Kind::Double);
        // What is next to nothing is a difference of larger numbers.
        let norm = length(exact.shallow_clone()).max(1.0);
        length(found.to_kind(Kind::Double) - exact) / norm
    }

    #[test]
    fn losses_and_gradients_are_those_of_all_logits_at_once() {
        tch::manual_seed(3);
        for (rows, vocabulary, how, weighted, smoothing) in [
            (1, 7, PLAIN, false, 0.0),
            (513, 1000, PLAIN, true, 0.0),
            (513, 100, PLAIN, true, 0.1),
            (1025, 33, CAPPED, true, 0.3),
            (512, 1, CAPPED, false, 0.0),
            // So many that kernels take packs of numbers and several warps a row.
            (3, 5000, PLAIN, true, 0.2),
            (2, 4097, CAPPED, false, 0.0),
            (2, 4097, CAPPED, false, 0.9),
        ] {
            let (hidden, output) = (draw(&[rows, 24]), draw(&[vocabulary, 24]));
            let ids = Tensor::randint(vocabulary, [rows], (Kind::Int64, Device::Cpu));
            let weights = Tensor::rand([rows], (Kind::Float, Device::Cpu));
            let targets = Targets { ids: &ids, weights: weighted.then_some(&weights), smoothing };
            let exact = whole(&hidden, &output, how, targets);
            for (kind, bar) in [(Kind::Float, 2e-6), (Kind::BFloat16, 4e-3)] {
                let as_kind = |x: &Tensor| x.to_kind(kind).set_requires_grad(true);
                let theirs = whole(&as_kind(&hidden), &as_kind(&output), how, targets);
                let theirs = |place| 1.1 * apart(&theirs[place as usize], &exact[place as usize]);
                let check = |found: &Tensor, place: u8| {
                    let (ours, theirs) = (apart(found, &exact[place as usize]), theirs(place));
                    assert!(
                        ours <= bar + 1e-7 + theirs,
                        "{rows} {kind:?} {place}: {ours:e} {theirs:e}"
                    );
                };
                let (h, o) = (as_kind(&hidden), as_kind(&output));
                for backend in Backend::all() {
                    let mut h = h.detach().to(backend.device()).set_requires_grad(true);
                    let weights = targets.weights.map(|weights| backend.take(weights));
                    let ids = backend.take(targets.ids);
                    let targets = Targets { ids: &ids, weights: weights.as_ref(), smoothing };
                    let o = backend.take(&o.detach());
                    let loss = backend.run(|| frozen(&h, &o, how, targets)).unwrap();
                    (&loss * 3.0).backward();
                    check(&loss.detach().to(Device::Cpu), 0);
                    check(&(h.grad().to(Device::Cpu) / 3.0), 1);
                    h.zero_grad();
                }
                let h = as_kind(&hidden);
                let project = |h: &Tensor| Ok(logits(h, &o, how));
                let loss = chunked(&h, &[&o], targets, project).unwrap();
                (&loss * 2.0).backward();
                check(&loss.detach(), 0);
                check(&(h.grad() / 2.0), 1);
                check(&(o.grad() / 2.0), 2);
            }
        }
    }

    #[test]
    fn without_a_graph_only_the_loss_is_found() {
        let (hidden, output) = (draw(&[600, 8]).to_kind(Kind::Float), draw(&[5, 8]));
        let output = output.to_kind(Kind::Float).set_requires_grad(true);
        let ids = Tensor::zeros([600], (Kind::Int64, Device::Cpu));
        let targets = Targets { ids: &ids, weights: None, smoothing: 0.0 };
        let project = |h: &Tensor| Ok(logits(h, &output, PLAIN));
        let first = tch::no_grad(|| chunked(&hidden, &[&output], targets, project)).unwrap();
        let second = frozen(&hidden, &output.detach(), PLAIN, targets).unwrap();
        assert!(!first.requires_grad() && !second.requires_grad());
        assert!((first - second).abs().double_value(&[]) < 1e-2);
    }

    #[test]
    fn large_logits_stay_numbers_and_nan_stays_nan() {
        let output = Tensor::from_slice(&[100.0f32, -100.0, 0.0]).view([3, 1]);
        let ids = Tensor::from_slice(&[0i64, 1]);
        let targets = Targets { ids: &ids, weights: None, smoothing: 0.0 };
        for backend in Backend::all() {
            let loss = |values: &[f32]| {
                let hidden = backend.take(&Tensor::from_slice(values).view([2, 1]));
                let ids = backend.take(targets.ids);
                let targets = Targets { ids: &ids, weights: None, smoothing: 0.0 };
                let loss = backend.run(|| frozen(&hidden, &backend.take(&output), PLAIN, targets));
                loss.unwrap().double_value(&[])
            };
            assert_eq!(loss(&[100.0, 100.0]), 20000.0);
            assert!(loss(&[f32::NAN, 1.0]).is_nan());
        }
    }

    #[test]
    fn no_rows_lose_nothing() {
        let hidden = Tensor::zeros([0, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (output, ids) = (
            Tensor::zeros([5, 8], (Kind::Float, Device::Cpu)),
            Tensor::zeros([0], (Kind::Int64, Device::Cpu)),
        );
        let loss =
            frozen(&hidden, &output, PLAIN, Targets { ids: &ids, weights: None, smoothing: 0.0 })
                .unwrap();
        assert_eq!(loss.double_value(&[]), 0.0);
        loss.backward();
        assert_eq!(hidden.grad().size(), [0, 8]);
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_an_error() {
        for target in [-1i64, 5] {
            let (hidden, output) = (draw(&[1, 8]).to_kind(Kind::Float), draw(&[5, 8]));
            let ids = Tensor::from_slice(&[target]);
            let targets = Targets { ids: &ids, weights: None, smoothing: 0.0 };
            assert!(frozen(&hidden, &output, PLAIN, targets).is_err());
        }
    }
}
