//! What the engine can be asked to do, from start to end: the one place that knows the
//! order of the rooms.

mod bench;
mod chat;
mod evaluate;
mod generate;
mod logits;
mod perplexity;
mod release;
mod train;

use heirloom::base::BaseFolder;
use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::ChatEncoder;
use heirloom::diagnose::Failure;
use heirloom::job::{Job, Target};
use tch::Device;

use crate::adapter::peft;
use crate::model::Decoder;

/// Does one job.
pub fn run(job: &Job, printer: Printer) -> Result<(), Failure> {
    match job {
        Job::Train { run, device } => train::train(run, *device, printer),
        Job::Bench(job) => bench::bench(job, printer),
        Job::Logits(job) => logits::logits(job, printer),
        Job::Evaluate(job) => evaluate::evaluate(job, printer),
        Job::Perplexity(job) => perplexity::perplexity(job, printer),
        Job::Generate(job) => generate::generate(job, printer),
        Job::Chat(job) => chat::chat(job, printer),
        Job::Export(job) => release::export(job, printer),
    }
}

/// Loads what a [`Target`] names, and what talks with it.
fn open(target: &Target) -> Result<(Decoder, ChatEncoder), Failure> {
    let encoder = ChatEncoder::open(target.words())?;
    Ok((model(target, encoder.vocab_size(), Device::Cpu)?, encoder))
}

/// Loads the model of a target onto a device, for a tokenizer that needs `rows` rows.
fn model(target: &Target, rows: usize, device: Device) -> Result<Decoder, Failure> {
    let mut base = BaseFolder::open(&target.base, false)?;
    if let Some(folder) = &target.adapter {
        // Rows that the adapter trains may lie beyond those of the base.
        base.grow(peft::rows(folder)?)?;
    }
    base.fits_tokenizer(rows)?;
    let mut model = Decoder::open_as(&base, &target.storage, device)?;
    if let Some(folder) = &target.adapter {
        peft::attach(&mut model, folder)?;
        model.settle(device)?;
    }
    Ok(model)
}
