//! The extent of training, estimated from some of the rows.
//!
//! Rows are taken in the order of the first pass: a shuffled pass begins with rows of row
//! groups from all over the files.

use std::sync::Arc;

use super::super::chat::ChatEncoder;
use super::super::error::DatasetError;
use super::super::spec::Spec;
use super::super::stream::{Position, Shape, Steps, expected_rows, opener, strands};
use super::SurveyedFile;
use crate::recipe::lock::{Size, Split};

/// Windows that are looked at.
const SAMPLE_WINDOWS: u64 = 1024;

/// Estimates what training takes from its first windows.
pub(super) fn estimate(
    spec: &Spec,
    encoder: &Arc<ChatEncoder>,
    files: &[SurveyedFile],
) -> Result<Size, DatasetError> {
    let shape = Shape::of(spec).once();
    let strands = strands(&Arc::new(spec.clone()), encoder)?;
    let open = opener(&shape, strands, |walk| Ok(Box::new(walk) as _));
    let mut steps = Steps::new(shape, open, &Position::default())?;
    let (mut seen, mut tokens, mut trained) = (0_u64, 0_u64, 0_u64);
    let (mut rows, mut windows, mut learned) = (0.0, 0.0, 1.0);
    while seen < SAMPLE_WINDOWS {
        let Some(step) = steps.next()? else { break };
        seen += step.windows.len() as u64;
        for piece in step.windows.iter().flatten() {
            tokens += piece.document.tokens.len() as u64;
            trained += piece.document.trained_tokens();
        }
        if step.ends_epoch {
            // Every row was seen: this is no estimate of a pass, but a pass.
            (rows, windows) = (0.0, seen as f64);
            break;
        }
        let gathered = steps.gathered();
        (rows, windows) = (gathered.rows as f64, (seen + gathered.waiting) as f64);
        learned = rows / (rows + steps.tally().dropped as f64);
    }
    let times = if rows > 0.0 { pass_rows(spec, files) * learned / rows } else { 1.0 };
    let windows_of_pass = windows * times;
    let of_pass = |tokens: u64| (tokens as f64 / seen.max(1) as f64 * windows_of_pass) as u64;
    let steps_of_pass = (windows_of_pass / spec.windows_per_step as f64).ceil() as u64;
    let steps = steps_of_pass.saturating_mul(spec.epochs.into());
    Ok(Size {
        tokens: of_pass(tokens),
        trained_tokens: of_pass(trained),
        windows: windows_of_pass as u64,
        dropped_overlong: share_of_rows(spec, files, 1.0 - learned),
        cut_overlong: 0,
        held_out: share_of_rows(spec, files, spec.validation_split),
        steps_by_epoch: vec![steps_of_pass; spec.epochs as usize],
        steps: steps.min(spec.max_steps.unwrap_or(u64::MAX)),
        estimated: true,
    })
}

/// Rows that a pass draws.
fn pass_rows(spec: &Spec, files: &[SurveyedFile]) -> f64 {
    let strands = spec.strands();
    let used = |files_of: &Vec<usize>| {
        let files = files_of.iter().filter_map(|file| files.get(*file));
        files.map(|file| file.rows.used).sum::<u64>()
    };
    let used: Vec<u64> = strands.iter().map(|strand| used(&strand.files)).collect();
    let weights: Vec<f64> = strands.iter().map(|strand| strand.weight).collect();
    expected_rows(&used, &weights, spec.stopping) * (1.0 - spec.validation_split)
}

/// Such a share of the training rows.
fn share_of_rows(spec: &Spec, files: &[SurveyedFile], share: f64) -> u64 {
    let files = files.iter().zip(&spec.files).filter(|(_, file)| file.split == Split::Train);
    let used: u64 = files.map(|(file, _)| file.rows.used).sum();
    (used as f64 * share) as u64
}
