//! What objectives make of the log-likelihoods of answers.
//!
//! Owns losses, rewards and derivatives, over plain numbers. Does not own where the numbers
//! come from.
//!
//! References: `DPOTrainer` and `KTOTrainer` of TRL 1.16, `ORPOTrainer` and `CPOTrainer` of its
//! `experimental`. With a Δ that is the wrong way round with probability `ε`, the loss is the
//! mean of both ways (conservative DPO, as TRL's `CPOTrainer` has it).

use heirloom::dataset::stream::Verdict;
use heirloom::recipe::{Dpo, Kto, LossType, Orpo, Simpo};

/// An answer, as a model finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Answer {
    /// Log-likelihood of all its tokens, in nats.
    pub logp: f64,
    /// The same by the base; 0 where that is not asked.
    pub reference: f64,
    /// How many tokens it has.
    pub tokens: f64,
}

impl Answer {
    /// How much more likely it has become.
    fn gain(&self) -> f64 {
        self.logp - self.reference
    }

    /// Log-likelihood of a token.
    fn mean(&self) -> f64 {
        self.logp / self.tokens.max(1.0)
    }
}

/// What an objective thinks of two answers, the better one first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Grade {
    /// The loss.
    pub loss: f64,
    /// Its derivatives by the log-likelihoods.
    pub slopes: [f64; 2],
    /// What the model is taken to think of the answers.
    pub rewards: [f64; 2],
}

/// Direct preference optimisation.
pub fn dpo(settings: &Dpo, answers: [Answer; 2]) -> Grade {
    let Dpo { beta, loss_type, label_smoothing } = *settings;
    let gains = answers.map(|answer| answer.gain());
    let rewards = gains.map(|gain| beta * gain);
    match loss_type {
        LossType::Sigmoid => {
            let (loss, slope) = smoothed(rewards[0] - rewards[1], label_smoothing);
            Grade { loss, slopes: [beta * slope, -beta * slope], rewards }
        }
        LossType::Hinge => {
            let short = 1.0 - (rewards[0] - rewards[1]);
            let slope = if short > 0.0 { beta } else { 0.0 };
            Grade { loss: short.max(0.0), slopes: [-slope, slope], rewards }
        }
        LossType::Ipo => {
            let tokens = answers.map(|answer| answer.tokens.max(1.0));
            let apart = gains[0] / tokens[0] - gains[1] / tokens[1] - 1.0 / (2.0 * beta);
            let slopes = [2.0 * apart / tokens[0], -2.0 * apart / tokens[1]];
            Grade { loss: apart * apart, slopes, rewards }
        }
    }
}

/// Simple preference optimisation.
pub fn simpo(settings: &Simpo, answers: [Answer; 2]) -> Grade {
    let Simpo { beta, simpo_gamma, label_smoothing } = *settings;
    let rewards = answers.map(|answer| beta * answer.mean());
    let (loss, slope) = smoothed(rewards[0] - rewards[1] - simpo_gamma, label_smoothing);
    let per_token = answers.map(|answer| beta * slope / answer.tokens.max(1.0));
    Grade { loss, slopes: [per_token[0], -per_token[1]], rewards }
}

/// The part of odds ratio preference optimisation that compares, and the log odds ratio.
pub fn orpo(settings: &Orpo, answers: [Answer; 2]) -> (Grade, f64) {
    let beta = settings.beta;
    let means = answers.map(|answer| answer.mean());
    let log_odds = means.map(|mean| mean - log1mexp(mean));
    let ratio = log_odds[0] - log_odds[1];
    let (loss, slope) = smoothed(ratio, 0.0);
    // d/da (a − log(1 − eᵃ)) = 1 / (1 − eᵃ).
    let per_token =
        answers.map(|answer| beta * slope / -answer.mean().exp_m1() / answer.tokens.max(1.0));
    let slopes = [per_token[0], -per_token[1]];
    (Grade { loss: beta * loss, slopes, rewards: means.map(|mean| beta * mean) }, ratio)
}

/// Kahneman–Tversky optimisation of one answer, where the model has moved by `kl` nats: the
/// loss, its derivative, the reward.
pub fn kto(settings: &Kto, answer: Answer, verdict: Verdict, kl: f64) -> (f64, f64, f64) {
    let Kto { beta, desirable_weight, undesirable_weight } = *settings;
    let gain = answer.gain();
    let (weight, sign) = match verdict {
        Verdict::Chosen => (desirable_weight, 1.0),
        Verdict::Rejected => (undesirable_weight, -1.0),
    };
    let value = sigmoid(sign * beta * (gain - kl));
    let slope = -sign * weight * beta * value * (1.0 - value);
    (weight * (1.0 - value), slope, beta * gain)
}

/// `−(1 − ε) log σ(x) − ε log σ(−x)`, and its derivative.
fn smoothed(x: f64, smoothing: f64) -> (f64, f64) {
    let loss = (1.0 - smoothing) * softplus(-x) + smoothing * softplus(x);
    (loss, smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x))
}

fn sigmoid(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// `log(1 + eˣ)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `log(1 − eˣ)` of what is negative, as TRL computes it.
fn log1mexp(x: f64) -> f64 {
    match x < -std::f64::consts::LN_2 {
        true => (-x.exp()).ln_1p(),
        false => (-x.exp_m1()).ln(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: f64 = 1e-5;

    fn pairs() -> Vec<[Answer; 2]> {
        let answer = |logp, reference, tokens| Answer { logp, reference, tokens };
        vec![
            [answer(-3.0, -3.5, 4.0), answer(-9.0, -8.0, 6.0)],
            [answer(-40.0, -12.0, 7.0), answer(-1.0, -30.0, 2.0)],
            [answer(-0.02, -0.5, 1.0), answer(-0.3, -0.4, 3.0)],
            [answer(-600.0, -100.0, 300.0), answer(-100.0, -900.0, 200.0)],
        ]
    }

    /// Slopes against differences of losses.
    fn check(grade: impl Fn([Answer; 2]) -> Grade) {
        for answers in pairs() {
            for index in 0..2 {
                let moved = |by: f64| {
                    let mut answers = answers;
                    answers[index].logp += by;
                    grade(answers).loss
                };
                let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let found = grade(answers).slopes[index];
                assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{answers:?}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_losses() {
        for loss_type in [LossType::Sigmoid, LossType::Ipo, LossType::Hinge] {
            let smoothing = if loss_type == LossType::Sigmoid { 0.2 } else { 0.0 };
            for label_smoothing in [0.0, smoothing] {
                check(|answers| dpo(&Dpo { beta: 0.3, loss_type, label_smoothing }, answers));
            }
        }
        for label_smoothing in [0.0, 0.1] {
            let settings = Simpo { beta: 2.0, simpo_gamma: 0.5, label_smoothing };
            check(|answers| simpo(&settings, answers));
        }
        check(|answers| orpo(&Orpo { beta: 0.1 }, answers).0);
    }

    #[test]
    fn the_slope_of_one_answer_is_that_of_its_loss() {
        let settings = Kto { beta: 0.3, desirable_weight: 1.5, undesirable_weight: 0.7 };
        for answer in pairs().concat() {
            for verdict in [Verdict::Chosen, Verdict::Rejected] {
                let loss = |by: f64| {
                    kto(&settings, Answer { logp: answer.logp + by, ..answer }, verdict, 0.4).0
                };
                let expected = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
                let found = kto(&settings, answer, verdict, 0.4).1;
                assert!((found - expected).abs() < 1e-8, "{answer:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn hopeless_answers_still_have_finite_losses() {
        let answer = |logp| Answer { logp, reference: 0.0, tokens: 10.0 };
        for answers in [[answer(-1e6), answer(-1.0)], [answer(-1.0), answer(-1e6)]] {
            let settings = Simpo { beta: 2.0, simpo_gamma: 0.5, label_smoothing: 0.1 };
            for grade in [simpo(&settings, answers), orpo(&Orpo { beta: 0.1 }, answers).0] {
                let all = [[grade.loss, 0.0], grade.slopes, grade.rewards].concat();
                assert!(all.iter().all(|number| number.is_finite()), "{grade:?}");
            }
        }
    }
}
