//! What the engine can be asked to do, from start to end: the one place that knows the
//! order of the rooms.

mod chat;
mod evaluate;
mod generate;
mod perplexity;
mod release;
mod train;

use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::diagnose::Failure;
use heirloom::job::{Job, Target};

use crate::adapter::peft;
use crate::model::Decoder;

/// Does one job.
pub fn run(job: &Job, printer: Printer) -> Result<(), Failure> {
    match job {
        Job::Train { run } => train::train(run, printer),
        Job::Evaluate(job) => evaluate::evaluate(job, printer),
        Job::Perplexity(job) => perplexity::perplexity(job, printer),
        Job::Generate(job) => generate::generate(job, printer),
        Job::Chat(job) => chat::chat(job, printer),
        Job::Export(job) => release::export(job, printer),
    }
}

/// The base of a target, with the rows that its adapter trains.
fn base(target: &Target) -> Result<BaseFolder, Failure> {
    let mut base = BaseFolder::open(&target.base, false)?;
    if let Some(folder) = &target.adapter {
        base.grow(peft::rows(folder)?)?;
    }
    Ok(base)
}

/// Loads what a [`Target`] names.
fn open(target: &Target) -> Result<(Decoder, ChatEncoder), Failure> {
    let base = base(target)?;
    let encoder = ChatEncoder::open(target.words())?;
    base.fits_tokenizer(encoder.vocab_size())?;
    let mut model = Decoder::open(&base, target.dtype)?;
    if let Some(folder) = &target.adapter {
        peft::attach(&mut model, folder)?;
    }
    Ok((model, encoder))
}
