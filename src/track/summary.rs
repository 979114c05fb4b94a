//! What is said of a run at its end.

use super::line::Line;
use super::plot::plot;
use crate::diagnose::{amount, grouped};

/// A few lines on a run, and a diagram of its loss.
pub fn summary(lines: &[Line], peak_memory: Option<u64>) -> String {
    let losses = series(lines, "loss");
    let mut text = Vec::new();
    if let Some(last) = lines.iter().rev().find(|line| value(line, "loss").is_some()) {
        let tokens = value(last, "tokens").unwrap_or_default();
        let time = indicatif::HumanDuration(
            std::time::Duration::try_from_secs_f64(last.seconds).unwrap_or_default(),
        );
        let pace = tokens / last.seconds.max(1e-9);
        let memory = peak_memory.map(|bytes| format!(", {} at most", amount(bytes)));
        text.push(format!(
            "{} steps, {} tokens in {time} ({pace:.0} tokens/s){}",
            grouped(last.step),
            grouped(tokens as u64),
            memory.unwrap_or_default()
        ));
    }
    if let [(_, first), .., (_, last)] = losses.as_slice() {
        text.push(format!("loss {first:.4} at first, {last:.4} at last"));
    }
    let validations = series(lines, "validation_loss");
    let finite = validations.iter().filter(|(_, loss)| loss.is_finite());
    if let Some((step, best)) = finite.min_by(|(_, one), (_, other)| one.total_cmp(other)) {
        text.push(format!("validation loss {best:.4} at best, at step {}", grouped(*step)));
    }
    let (skips, backs) =
        (series(lines, "event/skip").len(), series(lines, "event/roll-back").len());
    if skips + backs > 0 {
        text.push(format!("steps skipped: {skips}, rolled back: {backs}; metrics.jsonl says why"));
    }
    text.extend(plot("loss by step", &losses));
    text.join("\n")
}

fn value(line: &Line, name: &str) -> Option<f64> {
    line.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// Steps with the value of that name.
fn series(lines: &[Line], name: &str) -> Vec<(u64, f64)> {
    lines.iter().filter_map(|line| Some((line.step, value(line, name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, step, validation};
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let mut lines: Vec<Line> = (1..=4).map(|number| Line::of(&step(number)).unwrap()).collect();
        lines.push(Line::of(&event(3)).unwrap());
        lines.push(Line::of(&validation(4)).unwrap());
        let text = summary(&lines, Some(5 << 20));
        let expected = "4 steps, 400 tokens in 4 seconds (100 tokens/s), 5.0 MiB at most\n\
            loss 1.0000 at first, 0.2500 at last\nvalidation loss 2.0000 at best, at step 4\n\
            steps skipped: 1, rolled back: 0; metrics.jsonl says why\nloss by step\n1.0000 ┤";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(summary(&[], None), "");
    }
}
