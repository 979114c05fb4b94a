//! How far the distributions of a student lie from those of a teacher, row by row.
//!
//! The generalised Jensen-Shannon divergence of arXiv 2306.13649, as TRL's
//! `GKDTrainer.generalized_jsd_loss` computes it: with `m = (1 - β) student + β teacher`,
//! `β KL(teacher ‖ m) + (1 - β) KL(student ‖ m)`; where β is 0 the forward divergence
//! `KL(teacher ‖ student)`, where it is 1 the reverse one, `KL(student ‖ teacher)`. Logits are
//! divided by the temperature first, and the sum is not multiplied by its square.
//!
//! [`sum`] finds the gradient of the student's logits in the forward pass, in place of what it
//! no longer needs; [`super::chunked`] gives it some rows at a time. [`plain`] is the same in
//! readable calls. Both know teachers of whom only the most likely tokens are known.

use tch::{Kind, Tensor};

use super::{chunked, reference};
use crate::error::Result;

/// Rows of a chunk: enough for the matrix products to run at full speed, and few, because five
/// numbers are held for each row and each token of the vocabulary.
pub const ROWS: i64 = 256;

/// Which divergence.
#[derive(Clone, Copy, Debug)]
pub struct Divergence {
    /// From the forward divergence (0) to the reverse one (1).
    pub beta: f64,
    /// What logits are divided by.
    pub temperature: f64,
}

/// What a teacher says about some rows.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// Its logits: `[m, vocabulary]`.
    Logits(&'a Tensor),
    /// Its `k` most likely tokens, and all others in one bucket. They are compared with the
    /// student's in the same buckets: that is never more than the divergence over all tokens,
    /// and zero for the teacher itself.
    TopK {
        /// `[m, k]`, i64, no token twice, not all there are.
        ids: &'a Tensor,
        /// `[m, k + 1]`, at the temperature; the last is that of the bucket.
        log_probs: &'a Tensor,
    },
}

/// Sum over rows of the divergence of logits `[m, vocabulary]` from the teacher, each times its
/// weight (`[m]`), in nats, computed in f32.
pub fn sum(
    student: &Tensor,
    teacher: Teacher<'_>,
    weights: Option<&Tensor>,
    how: Divergence,
) -> Result<Tensor> {
    if reference::asked() {
        return plain(student, teacher, weights, how);
    }
    let differentiate = student.requires_grad();
    let (loss, gradient) =
        tch::no_grad(|| differentiated(student, teacher, weights, how, differentiate))?;
    chunked::scaled(&[student], loss, gradient.into_iter().collect())
}

/// The same by libtorch's own graph.
pub fn plain(
    student: &Tensor,
    teacher: Teacher<'_>,
    weights: Option<&Tensor>,
    how: Divergence,
) -> Result<Tensor> {
    let all = log_probs(student, how.temperature)?;
    let (student, teacher) = buckets(&all, teacher, how.temperature)?;
    let kl = |from: &Tensor, to: &Tensor| -> Result<Tensor> {
        let apart = from.f_exp()?.f_mul(&from.f_sub(to)?)?;
        Ok(apart.f_sum_dim_intlist([1i64].as_slice(), false, apart.kind())?)
    };
    let each = match how.beta {
        0.0 => kl(&teacher, &student)?,
        1.0 => kl(&student, &teacher)?,
        beta => {
            let mixed = mixture(&student, &teacher, beta)?;
            let of_teacher = kl(&teacher, &mixed)?.f_mul_scalar(beta)?;
            of_teacher.f_add(&kl(&student, &mixed)?.f_mul_scalar(1.0 - beta)?)?
        }
    };
    weighed(&each, weights)
}

/// The sum, and the gradient of the student's logits.
fn differentiated(
    student: &Tensor,
    teacher: Teacher<'_>,
    weights: Option<&Tensor>,
    how: Divergence,
    differentiate: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let mut all = log_probs(student, how.temperature)?;
    let (mine, theirs) = buckets(&all, teacher, how.temperature)?;
    let (each, slope) = slope(&mine, theirs, how.beta)?;
    let loss = weighed(&each, weights)?;
    if !differentiate {
        return Ok((loss, None));
    }
    // Of a softmax: what a logit moves, less its share of what all of them move.
    let drawn = slope.f_sum_dim_intlist([1i64].as_slice(), true, slope.kind())?;
    let mut gradient = match teacher {
        Teacher::Logits(_) => slope,
        Teacher::TopK { ids, .. } => {
            let known = ids.size2()?.1;
            // Tokens of the bucket share what it moves by their probabilities within it.
            let mut spread = all.f_sub(&mine.f_narrow(1, known, 1)?)?;
            let _ = spread.f_exp_()?.f_mul_(&slope.f_narrow(1, known, 1)?)?;
            spread.f_scatter_(1, ids, &slope.f_narrow(1, 0, known)?)?
        }
    };
    drop(mine);
    let share = all.f_exp_()?.f_mul_(&drawn)?;
    let mut gradient = gradient.f_sub_(&share)?.f_div_scalar_(how.temperature)?;
    if let Some(weights) = weights {
        gradient = gradient.f_mul_(&weights.f_unsqueeze(1)?)?;
    }
    Ok((loss, Some(gradient.f_to_kind(student.kind())?)))
}

/// The divergence of each row, and what it changes by with the log-probability of each of the
/// student's buckets, but for a multiple of their probabilities, which a softmax does not feel.
fn slope(student: &Tensor, teacher: Tensor, beta: f64) -> Result<(Tensor, Tensor)> {
    let over = |x: &Tensor| x.f_sum_dim_intlist([1i64].as_slice(), false, x.kind());
    if beta == 0.0 {
        let mut slope = teacher.f_exp()?;
        let each = over(&{ teacher }.f_sub_(student)?.f_mul_(&slope)?)?;
        return Ok((each, slope.f_neg_()?));
    }
    if beta == 1.0 {
        let slope = { teacher }.f_neg_()?.f_add_(student)?.f_mul_(&student.f_exp()?)?;
        return Ok((over(&slope)?, slope));
    }
    let mixed = mixture(student, &teacher, beta)?;
    let likely = teacher.f_exp()?;
    let of_teacher = over(&{ teacher }.f_sub_(&mixed)?.f_mul_(&likely)?)?.f_mul_scalar(beta)?;
    drop(likely);
    let apart = { mixed }.f_neg_()?.f_add_(student)?.f_mul_(&student.f_exp()?)?;
    let slope = { apart }.f_mul_scalar_(1.0 - beta)?;
    Ok((of_teacher.f_add(&over(&slope)?)?, slope))
}

/// Log-probabilities over all tokens, in f32 (f64 of f64).
pub fn log_probs(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let logits = logits.f_to_kind(kind)?;
    let logits = if temperature == 1.0 { logits } else { logits.f_div_scalar(temperature)? };
    Ok(logits.f_log_softmax(-1, kind)?)
}

/// Those of some tokens (`[m, k]`), and last that of all others together: `[m, k + 1]`.
pub fn with_the_rest(all: &Tensor, ids: &Tensor) -> Result<Tensor> {
    // Not one less what is known: of a sure teacher nothing would be left of the difference.
    let others = all.f_scatter_value(1, ids, f64::NEG_INFINITY)?;
    let rest = others.f_logsumexp([1i64].as_slice(), true)?;
    Ok(Tensor::f_cat(&[all.f_gather(1, ids, false)?, rest], 1)?)
}

/// Log-probabilities of both in the same buckets; those of a teacher are new tensors.
fn buckets(all: &Tensor, teacher: Teacher<'_>, temperature: f64) -> Result<(Tensor, Tensor)> {
    match teacher {
        Teacher::Logits(logits) => Ok((all.shallow_clone(), log_probs(logits, temperature)?)),
        Teacher::TopK { ids, log_probs } => {
            Ok((with_the_rest(all, ids)?, log_probs.f_to_dtype(all.kind(), false, true)?))
        }
    }
}

/// The log-probabilities of the mixture of both.
fn mixture(student: &Tensor, teacher: &Tensor, beta: f64) -> Result<Tensor> {
    let student = student.f_add_scalar((-beta).ln_1p())?;
    Ok(student.f_logaddexp(&teacher.f_add_scalar(beta.ln())?)?)
}

fn weighed(each: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    match weights {
        Some(weights) => Ok(each.f_mul(weights)?.f_sum(each.kind())?),
        None => Ok(each.f_sum(each.kind())?),
    }
}

#[cfg(test)]
#[path = "divergence_tests.rs"]
mod tests;
