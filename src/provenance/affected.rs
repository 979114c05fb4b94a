//! `heirloom lineage affected`: what was made of a record.
//!
//! Owns following a record from the runs that used it to their adapters and models, to the
//! releases of these, to the runs whose base is one of them, and so on. Each step goes by
//! digest: a run's base is a model of ours where every file of the base's weights is one of
//! the model's. Does not own where that is remembered ([`super::registry`]).
//!
//! An answer is never "no" for want of knowledge: where the index of a run is gone, or is not
//! the one that the run committed to, that is the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::registry::{Registry, RegistryError, ReleaseEntry};
use super::tree::check_index;
use crate::dataset::consent::Ask;
use crate::dataset::ledger::{Digest, Withdrawals};
use crate::diagnose::Diagnose;
use crate::job::ExportKind;
use crate::recipe::lock::Lock;
use crate::run::RunFolder;
use places::Known;

mod index;
mod places;
#[cfg(test)]
mod tests;

pub use places::Place;

/// Whose traces are looked for.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// Those of a record.
    Record(&'a str),
    /// Those of every record of a subject.
    Subject(Digest),
    /// Those of every record that an event concerns, whenever it takes effect, for a purpose
    /// or a processing of the run.
    Ledger(&'a Withdrawals),
}

/// The question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum AffectedError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is nothing to ask.
    #[error("no run is known: the registry `{}` has none, and no search found one", path.display())]
    NothingKnown {
        /// The registry.
        path: PathBuf,
        /// What a search could not read.
        unread: Vec<String>,
    },
    /// The private index of a run cannot be read.
    #[error("nobody can tell which rows the run used: {reason}")]
    Index {
        /// What is wrong with it.
        reason: String,
    },
    /// A search that would not end.
    #[error("there are more than {limit} folders to search")]
    TooManyFolders {
        /// The limit.
        limit: usize,
    },
}

impl Diagnose for AffectedError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Registry(error) => return error.hint(),
            Self::NothingKnown { .. } => {
                "name the folder below which runs and releases lie with `--search`".to_owned()
            }
            Self::Index { .. } => {
                "the index `record_index.parquet` belongs into the run folder; without it, train \
                 anew"
                    .to_owned()
            }
            Self::TooManyFolders { .. } => "name a smaller folder with `--search`".to_owned(),
        })
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::NothingKnown { unread, .. } => unread.clone(),
            _ => Vec::new(),
        }
    }
}

/// Rows that a run used, by its private index, and that `withdrawals` forbid what it asks.
pub fn used_rows(index: &Path, withdrawals: &Withdrawals, ask: &Ask) -> Result<u64, AffectedError> {
    let found = index::look_up(index, &Question::Ledger(withdrawals), ask);
    found.map(|found| found.used).map_err(|reason| AffectedError::Index { reason })
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// Runs that used a record, or whose base did.
    pub affected: Vec<AffectedRun>,
    /// Runs and releases of which nobody can tell.
    pub unknown: Vec<Unknown>,
    /// Runs that certainly used none.
    pub clear: Vec<ClearRun>,
    /// What a search could not read.
    pub unread: Vec<String>,
}

impl Affected {
    /// Whether there is nothing of which nobody can tell.
    pub fn is_complete(&self) -> bool {
        self.unknown.is_empty() && self.unread.is_empty()
    }
}

/// A run that used a record, itself or through its base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffectedRun {
    /// SHA-256 of its `recipe.lock`.
    pub run: String,
    /// Where it lies.
    pub places: Vec<Place>,
    /// Rows that it used itself; absent where that cannot be told.
    pub rows: Option<u64>,
    /// The affected runs that its base comes from.
    pub base_from: Vec<String>,
    /// What was made of it.
    pub models: Vec<Model>,
}

/// An adapter or a whole model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Which of the two.
    pub kind: ExportKind,
    /// SHA-256 over its files, where it is a release; absent for what lies in the run folder.
    pub release: Option<String>,
    /// SHA-256 of its weights.
    pub weights: Vec<String>,
    /// Where it lies.
    pub places: Vec<Place>,
}

/// A run of which nobody can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// SHA-256 of its `recipe.lock`; of a release whose manifest names no run, its own.
    pub run: String,
    /// Where it lies, or lay.
    pub places: Vec<Place>,
    /// Why nobody can tell.
    pub why: String,
    /// What was made of it.
    pub models: Vec<Model>,
}

/// A run that used no such record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClearRun {
    /// SHA-256 of its `recipe.lock`.
    pub run: String,
    /// Rows that its gate left out.
    pub left_out: u64,
}

/// What a run's own index says.
#[derive(Clone, Debug)]
enum Own {
    Used(u64),
    NotUsed(u64),
    CannotTell(String),
}

/// A run; or what stands for it where only its releases are known.
#[derive(Debug)]
struct Node<'a> {
    base: &'a [String],
    own: Own,
    /// The runs that made its base.
    from: BTreeSet<&'a str>,
}

type Nodes<'a> = BTreeMap<&'a str, Node<'a>>;

/// Answers `question` for every run of the registry and below the folders of `search`.
pub fn affected(
    registry: &Registry,
    search: &[PathBuf],
    question: &Question<'_>,
) -> Result<Affected, AffectedError> {
    let mut known = Known::default();
    for entry in registry.read()? {
        known.add(entry);
    }
    let mut unread = Vec::new();
    for folder in search {
        unread.extend(known.search(folder)?);
    }
    known.complete();
    if known.runs.is_empty() && known.releases.is_empty() {
        return Err(AffectedError::NothingKnown { path: registry.path().to_owned(), unread });
    }
    let mut nodes = nodes(&known, question);
    let from = parents(&known, &nodes);
    for (node, from) in nodes.values_mut().zip(from) {
        node.from = from;
    }
    Ok(Affected { unread, ..answer(&known, &nodes) })
}

/// Every run, with what its index says.
fn nodes<'a>(known: &'a Known, question: &Question<'_>) -> Nodes<'a> {
    let node = |base, own| Node { base, own, from: BTreeSet::new() };
    let mut nodes = Nodes::new();
    for release in known.releases.values() {
        let why = match &release.run {
            Some(_) => "only releases of it are known here",
            None => "the manifest does not say of which run it is",
        };
        nodes.insert(maker(release), node(&release.base, Own::CannotTell(why.to_owned())));
    }
    for (id, run) in &known.runs {
        nodes.insert(id, node(&run.base, own(known, id, question)));
    }
    nodes
}

/// The run that made a release; the release itself stands in for one that it does not name.
fn maker(release: &ReleaseEntry) -> &str {
    release.run.as_ref().unwrap_or(&release.release)
}

/// Asks the index of one run.
fn own(known: &Known, run: &str, question: &Question<'_>) -> Own {
    let Some(folder) = known.folder(run) else {
        return Own::CannotTell("its folder is gone".to_owned());
    };
    let index = folder.join(index::FILE);
    if !index.is_file() {
        return Own::CannotTell(format!("its `{}` is gone", index::FILE));
    }
    let run = RunFolder::new(folder);
    let ask = match Lock::read(&run.lock()) {
        Ok(lock) => Ask { until: Timestamp::MAX, ..lock.ask },
        Err(error) => return Own::CannotTell(error.to_string()),
    };
    match index::look_up(&index, question, &ask) {
        // Whoever takes a row out of an index hides it; nobody adds one to be hit.
        Ok(found) if found.used > 0 => Own::Used(found.used),
        Ok(found) => match check_index(&run) {
            Ok(()) => Own::NotUsed(found.left_out),
            Err(error) => Own::CannotTell(format!("its index cannot be believed: {error}")),
        },
        Err(why) => Own::CannotTell(why),
    }
}

/// For every node, which runs made its base: those of which a model has every file of it.
fn parents<'a>(known: &'a Known, nodes: &Nodes<'a>) -> Vec<BTreeSet<&'a str>> {
    let trained = known.trained.values().map(|made| (made.run.as_str(), &made.weights));
    let releases = known.releases.values().map(|made| (maker(made), &made.weights));
    let made: Vec<(&str, &Vec<String>)> = trained.chain(releases).collect();
    let mut by_digest: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, (_, weights)) in made.iter().enumerate() {
        for digest in *weights {
            by_digest.entry(digest).or_default().push(index);
        }
    }
    let from = |(id, node): (&&'a str, &Node<'a>)| {
        let candidates = node.base.first().and_then(|digest| by_digest.get(digest.as_str()));
        let candidates = candidates.into_iter().flatten().filter_map(|index| made.get(*index));
        let whole = candidates
            .filter(|(_, weights)| node.base.iter().all(|digest| weights.contains(digest)));
        // A run that changed nothing has its own base for a result.
        whole.map(|(run, _)| *run).filter(|run| run != id).collect()
    };
    nodes.iter().map(from).collect()
}

/// What has something below it of which `seed` is true, and that itself.
fn spread<'a>(nodes: &Nodes<'a>, seed: impl Fn(&Own) -> bool) -> BTreeSet<&'a str> {
    let seeds = nodes.iter().filter(|(_, node)| seed(&node.own));
    let mut reached: BTreeSet<&str> = seeds.map(|(id, _)| *id).collect();
    loop {
        let next = nodes.iter().filter(|(id, node)| {
            !reached.contains(*id) && node.from.iter().any(|from| reached.contains(from))
        });
        let next: Vec<&str> = next.map(|(id, _)| *id).collect();
        if next.is_empty() {
            return reached;
        }
        reached.extend(next);
    }
}

fn answer(known: &Known, nodes: &Nodes<'_>) -> Affected {
    let affected = spread(nodes, |own| matches!(own, Own::Used(_)));
    let unknown = spread(nodes, |own| matches!(own, Own::CannotTell(_)));
    let mut answer = Affected::default();
    for (id, node) in nodes {
        let run = (*id).to_owned();
        let (places, models) = (|| known.places(id), || models(known, id));
        if affected.contains(id) {
            let rows = match node.own {
                Own::Used(rows) => Some(rows),
                Own::NotUsed(_) => Some(0),
                Own::CannotTell(_) => None,
            };
            let from = node.from.iter().filter(|from| affected.contains(*from));
            let base_from = from.map(|from| (*from).to_owned()).collect();
            let (places, models) = (places(), models());
            answer.affected.push(AffectedRun { run, places, rows, base_from, models });
            continue;
        }
        let why = match &node.own {
            Own::CannotTell(why) => why.clone(),
            _ if unknown.contains(id) => "its base is a model of which nobody can tell".to_owned(),
            Own::NotUsed(left_out) => {
                answer.clear.push(ClearRun { run, left_out: *left_out });
                continue;
            }
            // It would be affected.
            Own::Used(_) => continue,
        };
        let (places, models) = (places(), models());
        answer.unknown.push(Unknown { run, places, why, models });
    }
    let created = |run: &AffectedRun| known.runs.get(&run.run).map(|run| run.created);
    answer.affected.sort_by_key(created);
    answer
}

/// What was made of a run: what lies in its folder, and its releases.
fn models(known: &Known, run: &str) -> Vec<Model> {
    let mut models = Vec::new();
    if let Some(trained) = known.trained.get(run) {
        let inside = |place: Place| {
            let folder = RunFolder::new(&place.path);
            let path = match trained.kind {
                ExportKind::Adapter => folder.adapter(),
                ExportKind::Merged => folder.model(),
            };
            Place { there: place.there && path.is_dir(), path }
        };
        models.push(Model {
            kind: trained.kind,
            release: None,
            weights: trained.weights.clone(),
            places: known.places(run).into_iter().map(inside).collect(),
        });
    }
    let of_run = known.releases.values().filter(|release| maker(release) == run);
    models.extend(of_run.map(|release| Model {
        kind: release.kind,
        release: Some(release.release.clone()),
        weights: release.weights.clone(),
        places: known.places(&release.release),
    }));
    models
}
