//! `heirloom generate`: one answer as it comes, or a file of answers.

use std::path::Path;

use heirloom::cli::printer::Printer;
use heirloom::diagnose::Failure;
use heirloom::files;
use heirloom::generation::Settings;
use heirloom::generation::input::{self, Request};
use heirloom::generation::text::Text;
use heirloom::job::{Asked, Generate};
use serde::Serialize;

use crate::error::EngineError;
use crate::generate::reply::{Reply, replies};
use crate::generate::{self, Finish, Prompt, Timing};
use crate::model::Decoder;

/// A line of the answers.
#[derive(Serialize)]
struct Record<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'r serde_json::Value>,
    /// Line or row of the input, from 1.
    number: u64,
    text: &'r str,
    prompt_tokens: usize,
    completion_tokens: usize,
    finish_reason: Finish,
    settings: &'r Settings,
}

/// Does the job.
pub(super) fn generate(job: &Generate, printer: Printer) -> Result<(), Failure> {
    // Before the model is loaded: a mistake in a file should not cost that wait.
    let (requests, many) = match &job.asked {
        Asked::Prompt(text) => (vec![Request::single(text.clone())], false),
        Asked::File(path) => (vec![Request::single(input::read_prompt(path)?)], false),
        Asked::Requests(path) => (input::read_requests(path)?, true),
    };
    let text = Text::open(job.target.words(), job.raw)?;
    let system = job.system.as_deref();
    let prompts: Vec<Vec<u32>> =
        requests.iter().map(|request| text.prompt(request, system)).collect::<Result<_, _>>()?;
    let model = super::model(&job.target, text.vocab_size(), tch::Device::Cpu)?;
    printer.note(&job.settings.to_string());
    let timing = if many || job.output.is_some() {
        let (answers, timing) = answer_all(job, &model, &text, &prompts, printer)?;
        let lines = lines(&requests, &prompts, &answers, &job.settings)?;
        match &job.output {
            Some(path) => files::write_atomically_with(path, |file| file.write_all(&lines))?,
            None => printer.text(&String::from_utf8_lossy(&lines))?,
        }
        timing
    } else {
        answer_one(job, &model, &text, &prompts, printer)?
    };
    if job.stats {
        printer.note(&stats(&timing));
    }
    Ok(())
}

/// The answer, printed as it comes.
fn answer_one(
    job: &Generate,
    model: &Decoder,
    text: &Text,
    prompts: &[Vec<u32>],
    printer: Printer,
) -> Result<Timing, Failure> {
    let prompts: Vec<Prompt<'_>> =
        prompts.iter().map(|tokens| Prompt { tokens, stream: 0 }).collect();
    let settings = within(&job.settings, model, prompts.first().map_or(0, |p| p.tokens.len()));
    let replies = replies(model, text, &settings, &prompts, None, |_, piece| {
        printer.text(piece)?;
        Ok(true)
    })?;
    printer.data("")?;
    Ok(replies.timing)
}

/// An answer ends where the model's positions do. Only where one answer is asked for: in a
/// batch, whose rows share their room, a length that does not fit is an error.
pub(super) fn within(settings: &Settings, model: &Decoder, prompt_tokens: usize) -> Settings {
    let room = model.architecture.max_position_embeddings.saturating_sub(prompt_tokens);
    let max_new_tokens = settings.max_new_tokens.min(room.max(1));
    Settings { max_new_tokens, ..settings.clone() }
}

/// The answers by request, whatever the order in which they are computed.
fn answer_all(
    job: &Generate,
    model: &Decoder,
    text: &Text,
    prompts: &[Vec<u32>],
    printer: Printer,
) -> Result<(Vec<Option<Reply>>, Timing), Failure> {
    let bar = printer.bar(prompts.len() as u64, "generate");
    let mut answers = vec![None; prompts.len()];
    let mut timing = Timing::default();
    for batch in generate::by_length(prompts, job.batch_size, |_, _| true) {
        let found = replies(model, text, &job.settings, &batch, None, |_, _| Ok(true))?;
        for (prompt, reply) in batch.iter().zip(found.rows) {
            answers[prompt.stream as usize] = Some(reply);
        }
        timing.add(&found.timing);
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok((answers, timing))
}

/// The answers as JSONL, in the order of the requests.
fn lines(
    requests: &[Request],
    prompts: &[Vec<u32>],
    answers: &[Option<Reply>],
    settings: &Settings,
) -> Result<Vec<u8>, Failure> {
    let mut lines = Vec::new();
    for ((request, prompt), reply) in requests.iter().zip(prompts).zip(answers.iter().flatten()) {
        let record = Record {
            id: request.id.as_ref(),
            number: request.number,
            text: &reply.text,
            prompt_tokens: prompt.len(),
            completion_tokens: reply.tokens,
            finish_reason: reply.finish,
            settings,
        };
        serde_json::to_writer(&mut lines, &record)
            .map_err(|source| EngineError::Json { path: Path::new("answers").into(), source })?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// One line about speed.
pub(super) fn stats(timing: &Timing) -> String {
    let Timing { prompt_tokens, prefill, decoded_tokens, decode } = timing;
    let (prefill, decode) = (prefill.as_secs_f64(), decode.as_secs_f64());
    let rate = if decode > 0.0 { *decoded_tokens as f64 / decode } else { 0.0 };
    format!(
        "{prompt_tokens} prompt tokens in {prefill:.3} s, {decoded_tokens} tokens in {decode:.3} s \
         ({rate:.1} tokens per second)"
    )
}
