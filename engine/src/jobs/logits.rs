//! `heirloom logits`: what a teacher says to the rows of a recipe, stored.

use std::io::{self, Write};

use heirloom::cli::printer::Printer;
use heirloom::dataset::chat::Document;
use heirloom::dataset::documents;
use heirloom::dataset::logits::{Header, Writer, key_of};
use heirloom::dataset::stream::{MicroBatch, Spec};
use heirloom::dataset::vocabulary::Vocabulary;
use heirloom::diagnose::Failure;
use heirloom::files;
use heirloom::job::{Logits, Work};

use super::train;
use crate::device;
use crate::error::{EngineError, Result};
use crate::train::distillation::Distillation;

/// Tokens that are read in one forward pass.
const BATCH_TOKENS: usize = 8192;

/// Asks the teacher of the work that comes on the standard input.
pub(super) fn logits(job: &Logits, printer: Printer) -> Result<(), Failure> {
    // Before anything else asks libtorch: it learns of CUDA now or never.
    let device = device::open(job.device)?;
    let Work { mut recipe, lock } = serde_json::from_reader(io::stdin().lock())
        .map_err(|source| EngineError::NoJob { source })?;
    let (base, encoder, _) = train::open(&mut recipe, &lock)?;
    let lacking = || EngineError::Defect("a recipe without a teacher".to_owned());
    let settings = recipe.objective.distillation().ok_or_else(lacking)?;
    let (words, teacher) = settings.live().zip(lock.teacher.clone()).ok_or_else(lacking)?;
    let distillation = Distillation::open(settings, device)?;
    // What the student cannot say, nobody is asked about.
    let rows = base.architecture.vocab_size;
    let vocabulary = distillation.tokens().unwrap_or(rows).min(rows);
    if job.top_k >= vocabulary {
        return Err(EngineError::TopK { top_k: job.top_k, vocabulary }.into());
    }
    let digests = Vocabulary::open(base.folder(), &recipe.base)?.digests(base.folder());
    let header = Header {
        version: Header::version(),
        heirloom: heirloom::VERSION.to_owned(),
        teacher,
        storage: words.storage(),
        temperature: settings.temperature,
        top_k: job.top_k,
        vocabulary,
        words: digests.map_err(EngineError::from)?,
        settings: Header::settings(&recipe),
        data: lock.data.iter().map(|data| data.file.sha256.clone()).collect(),
    };
    let spec = Spec::locked(&recipe, &lock)?;
    let bar = printer.bar(lock.data.iter().map(|data| data.rows.used).sum(), "rows");
    let mut failed = None;
    let written = files::write_privately_with(&job.output, |file| {
        let mut asked = Asked {
            distillation: &distillation,
            header: &header,
            writer: Writer::new(file, &header).map_err(io::Error::other)?,
            waiting: Vec::new(),
            tokens: 0,
        };
        let all = documents::each(&spec, &encoder, |record_id, document| {
            bar.inc(1);
            asked.add(record_id, document)
        });
        let all = all.and_then(|()| asked.finish());
        all.map_err(|error| {
            failed = Some(error);
            io::Error::other("it is not complete")
        })
    });
    bar.finish_and_clear();
    match failed {
        Some(error) => return Err(error),
        None => written.map_err(EngineError::from)?,
    }
    printer.note(&format!("wrote `{}`", job.output.display()));
    Ok(())
}

/// Documents on their way to the teacher, and its answers on their way to the file.
struct Asked<'a, W: Write + Send> {
    distillation: &'a Distillation,
    header: &'a Header,
    writer: Writer<W>,
    waiting: Vec<(String, Document)>,
    tokens: usize,
}

impl<W: Write + Send> Asked<'_, W> {
    fn add(&mut self, record_id: &str, document: Document) -> Result<(), Failure> {
        let length = document.tokens.len();
        if !self.waiting.is_empty() && self.tokens + length > BATCH_TOKENS {
            self.ask()?;
        }
        self.tokens += length;
        self.waiting.push((record_id.to_owned(), document));
        Ok(())
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let mut batch = MicroBatch::default();
        self.waiting.iter().for_each(|(_, document)| batch.push(document));
        let Header { top_k, vocabulary, .. } = *self.header;
        let said = self.distillation.say(&batch, top_k, vocabulary)?;
        for ((record_id, document), said) in self.waiting.drain(..).zip(said) {
            let key = key_of(&document.tokens, &document.weights);
            self.writer.push(&record_id, key, &said)?;
        }
        self.tokens = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        if !self.waiting.is_empty() {
            self.ask()?;
        }
        Ok(self.writer.finish()?)
    }
}
