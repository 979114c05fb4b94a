//! The loss of a student: how far its distributions lie from those of a teacher.
//!
//! Owns the teacher, frozen beside the model that learns or stored before, and what is made of
//! both ([`divergence`] has the arithmetic). A token that carries no loss is neither projected
//! nor compared; what its weight is in supervised training, it is here.

use heirloom::base::BaseFolder;
use heirloom::dataset::logits::{LogitsError, Said, Stored, key_of};
use heirloom::dataset::stream::MicroBatch;
use heirloom::hub;
use heirloom::recipe;
use tch::{Device, Kind, Tensor};

use super::loss::{Predicting, trained, trained_output};
use crate::error::{EngineError, Result};
use crate::model::Decoder;
use crate::ops::cross_entropy::Targets;
use crate::ops::divergence::{self, Divergence, ROWS, Teacher};
use crate::ops::profile::scope;
use crate::ops::{self, chunked};

/// A teacher, and how it is followed.
#[derive(Debug)]
pub struct Distillation {
    source: Source,
    how: Divergence,
    kd_ratio: f64,
}

/// Where a teacher's distributions come from.
#[derive(Debug)]
enum Source {
    /// The model itself.
    Live(Box<Decoder>),
    /// What it said before.
    Stored(Box<Stored>),
}

/// What a teacher has for the rows of a batch that predict.
#[derive(Debug)]
enum Taught<'a> {
    /// Its hidden states: `[m, hidden]`.
    Hidden(&'a Decoder, Tensor),
    /// Its most likely tokens (`[m, k]`), their log-probabilities with that of the rest
    /// (`[m, k + 1]`), of so many tokens in all.
    TopK(Tensor, Tensor, i64),
}

impl Distillation {
    /// Loads the teacher that a recipe names onto a device, or finds what it said.
    pub fn open(settings: &recipe::Distillation, device: Device) -> Result<Self> {
        if let Some(path) = &settings.logits {
            return Ok(Self::of(Source::Stored(Box::new(Stored::open(path)?)), settings));
        }
        let nobody = || EngineError::Defect("distillation without a teacher".to_owned());
        let words = settings.teacher.as_ref().ok_or_else(nobody)?;
        let base = BaseFolder::open(&hub::local(&words.model)?, false)?;
        let teacher = Decoder::open_as(&base, &words.storage(), device)?;
        Ok(Self::new(teacher, settings))
    }

    /// With a teacher that is loaded already.
    pub fn new(teacher: Decoder, settings: &recipe::Distillation) -> Self {
        Self::of(Source::Live(Box::new(teacher)), settings)
    }

    fn of(source: Source, settings: &recipe::Distillation) -> Self {
        let recipe::Distillation { beta, temperature, kd_ratio, .. } = *settings;
        Self { source, how: Divergence { beta, temperature }, kd_ratio }
    }

    /// The model that teaches, if it is loaded.
    pub fn teacher(&self) -> Option<&Decoder> {
        match &self.source {
            Source::Live(teacher) => Some(teacher),
            Source::Stored(_) => None,
        }
    }

    /// How many tokens it knows, if it is loaded.
    pub fn tokens(&self) -> Option<usize> {
        Some(self.teacher()?.architecture.vocab_size)
    }

    /// Sum over the trained tokens of the loss of predicting each, times its weight, in nats,
    /// as a graph that can be differentiated; `None` when no token is trained.
    pub fn sum(
        &self,
        model: &Decoder,
        batch: &MicroBatch,
        train: bool,
        smoothing: f64,
    ) -> Result<Option<Tensor>> {
        let (places, weights) = trained(batch);
        if places.is_empty() {
            return Ok(None);
        }
        let by_teacher = self.teacher().is_some_and(Decoder::rounds_rows);
        let rounded = model.rounds_rows() || by_teacher;
        // First, while nothing of the student is kept yet.
        let taught = self.taught(batch, &places, rounded)?;
        let mine = Predicting::run_as(model, batch, &places, train, rounded)?;
        let taught = taught.filled(mine.ids.size1()?, mine.ids.device())?;
        let weights = mine.weights(weights)?;
        let targets = Targets { ids: &mine.ids, weights: weights.as_ref(), smoothing };
        let loss = chunked::summed(&mine.hidden, &[trained_output(model)], ROWS, |leaf, start| {
            let logits = model.logits(leaf)?;
            let count = leaf.size2()?.0;
            targets.of_rows(start, count, |some| self.of_rows(&logits, &taught, start, some))
        })?;
        Ok(Some(loss))
    }

    /// What the teacher has for the rows that predict the tokens at `places`.
    fn taught(&self, batch: &MicroBatch, places: &[usize], rounded: bool) -> Result<Taught<'_>> {
        let _scope = scope("teacher");
        match &self.source {
            Source::Live(teacher) => {
                let read = || Predicting::run_as(teacher, batch, places, false, rounded);
                Ok(Taught::Hidden(teacher, tch::no_grad(read)?.hidden))
            }
            Source::Stored(stored) => recalled(stored, batch),
        }
    }

    /// The loss of the rows from one on, from the student's logits.
    fn of_rows(
        &self,
        logits: &Tensor,
        taught: &Taught<'_>,
        start: i64,
        targets: Targets<'_>,
    ) -> Result<Tensor> {
        let (count, mine) = logits.size2()?;
        // Models of one family may have more rows than there are tokens, and not as many more.
        let common = |theirs: i64| logits.f_narrow(1, 0, mine.min(theirs));
        let apart = match taught {
            Taught::Hidden(teacher, hidden) => {
                let theirs = tch::no_grad(|| teacher.logits(&hidden.f_narrow(0, start, count)?))?;
                let tokens = theirs.size2()?.1;
                let theirs = theirs.f_narrow(1, 0, mine.min(tokens))?;
                let teacher = Teacher::Logits(&theirs);
                divergence::sum(&common(tokens)?, teacher, targets.weights, self.how)?
            }
            Taught::TopK(ids, log_probs, tokens) => {
                let ids = &ids.f_narrow(0, start, count)?;
                let log_probs = &log_probs.f_narrow(0, start, count)?;
                let teacher = Teacher::TopK { ids, log_probs };
                divergence::sum(&common(*tokens)?, teacher, targets.weights, self.how)?
            }
        };
        if self.kd_ratio == 1.0 {
            return Ok(apart);
        }
        let said = ops::cross_entropy_sum(logits, targets)?;
        let said = said.f_mul_scalar(1.0 - self.kd_ratio)?;
        Ok(apart.f_mul_scalar(self.kd_ratio)?.f_add(&said)?)
    }

    /// What the teacher says to the trained tokens of each document of a batch: the `top_k` most
    /// likely of the first so many tokens.
    pub fn say(&self, batch: &MicroBatch, top_k: usize, tokens: usize) -> Result<Vec<Said>> {
        let missing = || EngineError::Defect("there is no teacher to be asked".to_owned());
        let teacher = self.teacher().ok_or_else(missing)?;
        let (places, _) = trained(batch);
        let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
        tch::no_grad(|| -> Result<()> {
            let hidden = Predicting::run(teacher, batch, &places, false)?.hidden;
            let hidden = hidden.f_narrow(0, 0, places.len() as i64)?;
            for (_, chunk) in chunked::chunks(&hidden, ROWS)? {
                let logits = teacher.logits(&chunk)?.f_narrow(1, 0, tokens as i64)?;
                let all = divergence::log_probs(&logits, self.how.temperature)?;
                let (_, likely) = all.f_topk(top_k as i64, 1, true, true)?;
                let said = divergence::with_the_rest(&all, &likely)?;
                let likely = likely.f_to_kind(Kind::Int)?.f_to(Device::Cpu)?;
                ids.extend(Vec::<i32>::try_from(likely.f_contiguous()?.f_view([-1])?)?);
                let said = said.f_to(Device::Cpu)?.f_contiguous()?.f_view([-1])?;
                log_probs.extend(Vec::<f32>::try_from(said)?);
            }
            Ok(())
        })?;
        let mut said = ids.chunks(top_k).zip(log_probs.chunks(top_k + 1));
        let mut documents = Vec::new();
        for (_, weights) in of_documents(batch) {
            let mut document = Said::default();
            for (position, _) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                let Some((ids, log_probs)) = said.next() else { break };
                document.positions.push(position as i32);
                document.ids.extend(ids);
                document.logprobs.extend(log_probs.iter().take(top_k));
                document.rest.extend(log_probs.last());
            }
            documents.push(document);
        }
        Ok(documents)
    }
}

impl Taught<'_> {
    /// With as many rows as the student has, on its device.
    fn filled(self, rows: i64, device: Device) -> Result<Self> {
        let Self::TopK(ids, log_probs, tokens) = self else { return Ok(self) };
        // Those that are added have no weight.
        let fill = |x: Tensor| -> Result<Tensor> {
            let (known, width) = x.size2()?;
            let more = x.f_narrow(0, 0, 1)?.f_expand([rows - known, width], false)?;
            Ok(Tensor::f_cat(&[x, more], 0)?.f_to(device)?)
        };
        Ok(Self::TopK(fill(ids)?, fill(log_probs)?, tokens))
    }
}

/// What was stored for the documents of a batch.
fn recalled<'a>(stored: &Stored, batch: &MicroBatch) -> Result<Taught<'a>> {
    let mut said = Said::default();
    for (tokens, weights) in of_documents(batch) {
        let trained = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        let positions: Vec<i32> = trained.map(|(position, _)| position as i32).collect();
        if positions.is_empty() {
            continue;
        }
        let of_document = stored.said(&key_of(tokens, weights))?;
        if of_document.positions != positions {
            let path = stored.path().to_owned();
            return Err(LogitsError::OtherPositions { path }.into());
        }
        said.extend(&of_document);
    }
    let (rows, known) = (said.rest.len() as i64, stored.header().top_k as i64);
    let ids = Tensor::f_from_slice(&said.ids)?.f_to_kind(Kind::Int64)?.f_view([rows, known])?;
    let likely = Tensor::f_from_slice(&said.logprobs)?.f_view([rows, known])?;
    let rest = Tensor::f_from_slice(&said.rest)?.f_view([rows, 1])?;
    let log_probs = Tensor::f_cat(&[likely, rest], 1)?;
    Ok(Taught::TopK(ids, log_probs, stored.header().vocabulary as i64))
}

/// The tokens and weights of each document.
fn of_documents(batch: &MicroBatch) -> impl Iterator<Item = (&[u32], &[f32])> {
    let mut start = 0;
    batch.lengths.iter().map(move |length| {
        let range = start..start + *length as usize;
        start = range.end;
        let tokens = batch.tokens.get(range.clone()).unwrap_or_default();
        (tokens, batch.weights.get(range).unwrap_or_default())
    })
}
