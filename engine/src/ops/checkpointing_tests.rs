//! Bit for bit what is computed without checkpointing.

use std::sync::Arc;

use tch::Kind;

use super::*;

fn leaf(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind).set_requires_grad(true)
}

#[track_caller]
fn same(found: &[Tensor], wanted: &[Tensor]) {
    assert_eq!(found.len(), wanted.len());
    for (place, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(found.kind(), wanted.kind());
        assert!(found.equal(wanted), "{place}: {found:?} {wanted:?}");
    }
}

/// Some part of a model: its input is used twice, its weight once.
fn part(x: &Tensor, weight: &Tensor) -> Tensor {
    x + x.linear(&weight.to_kind(x.kind()), None::<Tensor>).silu()
}

/// Two parts, one behind the other: the output and all gradients.
fn both(x: &Tensor, weights: [&Tensor; 2], checkpointed: bool, host: bool) -> Vec<Tensor> {
    let mut y = x * 1.5;
    for weight in weights {
        y = if checkpointed {
            let (kept, held) = (if host { Kept::on_host(&y) } else { Ok(Kept::here(&y)) }, weight);
            let held = held.shallow_clone();
            let run = move |x: &Tensor| Ok(part(x, &held));
            checkpoint(&y, kept.unwrap(), vec![weight.shallow_clone()], run).unwrap()
        } else {
            part(&y, weight)
        };
    }
    let loss = (y.to_kind(Kind::Double) * y.to_kind(Kind::Double).cos()).sum(Kind::Double);
    let leaves: Vec<_> =
        [x, weights[0], weights[1]].into_iter().filter(|x| x.requires_grad()).collect();
    let found = Tensor::run_backward(&[loss], &leaves, false, false);
    std::iter::once(y.detach()).chain(found).collect()
}

#[test]
fn values_and_gradients_are_the_same_bits() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for rows in [0, 1, 33] {
            let x = leaf(&[rows, 24], kind);
            // A weight wider than the computation, as full training has them.
            let (first, second) = (leaf(&[24, 24], Kind::Float), leaf(&[24, 24], Kind::Float));
            for x in [&x, &x.detach()] {
                let wanted = both(x, [&first, &second], false, false);
                for host in [false, true] {
                    same(&both(x, [&first, &second], true, host), &wanted);
                }
            }
        }
    }
}

#[test]
fn a_frozen_part_before_trained_ones_asks_for_nothing() {
    let (x, frozen) = (leaf(&[3, 4], Kind::Float).detach(), leaf(&[4, 4], Kind::Float).detach());
    let run = move |x: &Tensor| Ok(part(x, &frozen));
    let y = checkpoint(&x, Kept::here(&x), Vec::new(), run).unwrap();
    assert!(!y.requires_grad());
}

#[test]
fn a_leaf_that_is_not_used_has_no_gradient() {
    let (x, idle) = (leaf(&[2, 4], Kind::Float), leaf(&[4], Kind::Float));
    let run = |x: &Tensor| Ok(x * 2.0);
    let y = checkpoint(&x, Kept::here(&x), vec![idle.shallow_clone()], run).unwrap();
    let found = Tensor::run_backward(&[y.sum(Kind::Float)], &[&x, &idle], false, false);
    assert!(found[0].defined() && !found[1].defined());
}

#[test]
fn what_is_kept_goes_with_the_graph_and_after_the_backward_pass() {
    let x = leaf(&[2, 4], Kind::Float);
    let make = || {
        let held = Arc::new(());
        let seen = Arc::downgrade(&held);
        let run = move |x: &Tensor| {
            let _held = &held;
            Ok(x * 2.0)
        };
        (checkpoint(&x, Kept::here(&x), Vec::new(), run).unwrap(), seen)
    };
    let (y, seen) = make();
    assert!(seen.upgrade().is_some());
    drop(y);
    assert!(seen.upgrade().is_none());
    let (y, seen) = make();
    y.sum(Kind::Float).backward();
    assert!(seen.upgrade().is_none());
    let (_, seen) = tch::no_grad(make);
    assert!(seen.upgrade().is_none());
}

#[test]
fn an_error_the_second_time_is_the_backward_pass_error() {
    let x = leaf(&[2, 4], Kind::Float);
    let times = std::sync::atomic::AtomicUsize::new(0);
    let run = move |x: &Tensor| match times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Ok(x * 2.0),
        _ => Err(tch::TchError::Torch("out of memory".to_owned()).into()),
    };
    let y = checkpoint(&x, Kept::here(&x), Vec::new(), run).unwrap();
    let error = Tensor::f_run_backward(&[y.sum(Kind::Float)], &[&x], false, false).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

#[test]
fn kept_tensors_come_back_as_they_were() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = leaf(&[5, 7], kind).tr();
        for kept in [Kept::here(&x), Kept::on_host(&x).unwrap()] {
            assert!(!kept.is_made_again());
            let back = kept.take().unwrap();
            assert!(!back.requires_grad() && back.kind() == kind && back.equal(&x));
        }
        let y = x.shallow_clone();
        let made = Kept::again(move || Ok(y * 2.0));
        assert!(made.is_made_again());
        let made = made.take().unwrap();
        assert!(!made.requires_grad() && made.equal(&(x * 2.0)));
    }
}

#[test]
fn what_is_kept_in_host_memory_is_a_copy() {
    let mut x = leaf(&[5], Kind::Float).detach();
    let (before, kept) = (x.copy(), Kept::on_host(&x).unwrap());
    let _ = x.fill_(0.0);
    assert!(kept.take().unwrap().equal(&before));
}

#[test]
fn a_trained_layer_has_the_bits_of_libtorch() {
    for (kind, biased) in [(Kind::Float, true), (Kind::BFloat16, true), (Kind::BFloat16, false)] {
        for rows in [1, 33] {
            let (x, weight) = (leaf(&[rows, 24], kind), leaf(&[40, 24], Kind::Float));
            let bias = biased.then(|| leaf(&[40], Kind::Float));
            let all = |again: bool| {
                let leaves: Vec<_> = [&x, &weight].into_iter().chain(&bias).collect();
                let x = &x * 1.5;
                let (w, b) = (weight.to_kind(kind), bias.as_ref().map(|bias| bias.to_kind(kind)));
                let y = if again {
                    let kept = x.detach();
                    let kept = Kept::again(move || Ok(kept));
                    trained_linear(&x, kept, &w, b.as_ref()).unwrap()
                } else {
                    x.linear(&w, b.as_ref())
                };
                let loss = (&y * y.cos()).to_kind(Kind::Double).sum(Kind::Double);
                let found = Tensor::run_backward(&[loss], &leaves, false, false);
                std::iter::once(y.detach()).chain(found).collect::<Vec<_>>()
            };
            same(&all(true), &all(false));
        }
    }
}
