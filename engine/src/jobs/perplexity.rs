//! `heirloom eval --suite perplexity`.

use std::path::Path;
use std::time::Instant;

use heirloom::cli::printer::Printer;
use heirloom::dataset::text;
use heirloom::diagnose::Failure;
use heirloom::job::{Device, Perplexity};
use heirloom::recipe::Dtype;
use serde::Serialize;

use crate::device;
use crate::error::EngineError;
use crate::eval::perplexity;

/// Longest window where none is asked for: what most published figures were taken with.
const DEFAULT_WINDOW: usize = 2048;

/// What is printed for programs.
#[derive(Serialize)]
struct Report<'a> {
    nll: f64,
    perplexity: f64,
    tokens: u64,
    text_tokens: usize,
    windows: u64,
    window: usize,
    stride: usize,
    dtype: Dtype,
    device: Device,
    model: &'a Path,
    adapter: Option<&'a Path>,
    seconds: f64,
}

/// Measures how well a model predicts a text.
pub(super) fn perplexity(job: &Perplexity, printer: Printer) -> Result<(), Failure> {
    let tokens = text::tokens(&job.text, job.target.words())?;
    // Before anything else asks libtorch: it learns of CUDA now or never.
    let device = device::open(job.device)?;
    let rows = tokens.iter().max().map_or(0, |token| *token as usize + 1);
    let model = super::model(&job.target, rows, device)?;
    let limit = model.architecture.max_position_embeddings;
    let window = job.window.unwrap_or(limit.min(DEFAULT_WINDOW));
    let stride = job.stride.unwrap_or(window);
    let count = perplexity::windows(tokens.len(), window, stride).len();
    let bar = printer.bar(count as u64, "windows");
    let started = Instant::now();
    let tick = |windows| bar.inc(windows as u64);
    let score = perplexity::perplexity(&model, &tokens, window, stride, tick)?;
    bar.finish_and_clear();
    let report = Report {
        nll: score.nll,
        perplexity: score.nll.exp(),
        tokens: score.tokens,
        text_tokens: tokens.len(),
        windows: score.windows,
        window,
        stride,
        dtype: job.target.storage.dtype,
        device: job.device,
        model: &job.target.base,
        adapter: job.target.adapter.as_deref(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if job.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|source| EngineError::Json { path: job.text.clone(), source })?;
        printer.data(&text)?;
        return Ok(());
    }
    let row = [
        job.text.display().to_string(),
        score.tokens.to_string(),
        format!("{:.6}", report.nll),
        format!("{:.4}", report.perplexity),
    ];
    Ok(printer.table(["text", "tokens scored", "nats per token", "perplexity"], &[row])?)
}
