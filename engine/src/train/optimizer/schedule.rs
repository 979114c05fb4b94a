//! Learning-rate schedules.
//!
//! Reference: the functions of `transformers.optimization` that `get_scheduler` calls by the
//! same names, number for number; with warm-up, the first step has rate 0.

use std::f64::consts::PI;

use heirloom::recipe::{Curve, Schedule, WarmupStableDecay};

/// What the peak learning rate is multiplied by in the step that follows `done` steps, of
/// `steps` in all. A run whose steps were estimated may be longer: it ends as it would have.
pub fn factor(schedule: &Schedule, done: u64, steps: u64) -> f64 {
    let (ratio, number) = schedule.warmup();
    let warmup = number.unwrap_or_else(|| share(ratio, steps));
    if let Schedule::WarmupStableDecay(stable) = schedule {
        return warmup_stable_decay(stable, done as f64, warmup as f64, steps);
    }
    if done < warmup {
        return done as f64 / warmup.max(1) as f64;
    }
    let beyond = (done - warmup) as f64;
    let progress = (beyond / steps.saturating_sub(warmup).max(1) as f64).min(1.0);
    match schedule {
        Schedule::Constant(_) | Schedule::WarmupStableDecay(_) => 1.0,
        Schedule::Linear(_) => 1.0 - progress,
        Schedule::Cosine(cosine) => floored(wave(progress), cosine.min_lr_ratio),
        Schedule::CosineWithRestarts(_) if progress >= 1.0 => 0.0,
        Schedule::CosineWithRestarts(restarts) => {
            wave((f64::from(restarts.num_cycles) * progress) % 1.0)
        }
        Schedule::InverseSqrt(inverse) => {
            let timescale = inverse.timescale.unwrap_or(if warmup > 0 { warmup } else { 10_000 });
            1.0 / (1.0 + beyond / timescale.max(1) as f64).sqrt()
        }
    }
}

/// A share of all steps, as Transformers' `TrainingArguments.get_warmup_steps` counts it.
fn share(ratio: f64, steps: u64) -> u64 {
    (steps as f64 * ratio).ceil() as u64
}

/// Half a cosine, from 1 to 0.
fn wave(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

fn floored(factor: f64, floor: f64) -> f64 {
    floor + (1.0 - floor) * factor
}

fn warmup_stable_decay(stable: &WarmupStableDecay, done: f64, warmup: f64, steps: u64) -> f64 {
    let decay = stable.decay_steps.unwrap_or_else(|| share(stable.decay_ratio, steps));
    // Where warm-up and decay are longer than the run, the decay begins part of the way down.
    let from = steps as f64 - decay as f64;
    let factor = if done < warmup {
        up(stable.warmup_type, done / warmup.max(1.0))
    } else if done < from {
        return 1.0;
    } else if done < steps as f64 {
        down(stable.decay_type, (done - from) / decay.max(1) as f64)
    } else {
        0.0
    };
    floored(factor, stable.min_lr_ratio)
}

fn up(curve: Curve, progress: f64) -> f64 {
    match curve {
        Curve::Linear => progress,
        Curve::Cosine => 1.0 - wave(progress),
        Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
    }
}

fn down(curve: Curve, progress: f64) -> f64 {
    match curve {
        Curve::Linear => 1.0 - progress,
        Curve::Cosine => wave(progress),
        Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
    }
}
