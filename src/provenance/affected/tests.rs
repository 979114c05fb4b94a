use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, FixedSizeBinaryBuilder, RecordBatch, StringArray};
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;

use super::super::registry::{Entry, RunEntry, TrainedEntry};
use super::*;

/// A graph of runs and releases that lie nowhere: what their indexes say is made up.
#[derive(Default)]
struct Graph {
    known: Known,
    own: BTreeMap<String, Own>,
}

impl Graph {
    /// A run on a base whose weights are named, trained into weights of its own name.
    fn run(mut self, id: &str, base: &[&str], own: Own) -> Self {
        let base = base.iter().map(|digest| (*digest).to_owned()).collect();
        let created = Timestamp::from_second(self.own.len() as i64).unwrap();
        let entry = RunEntry { run: id.to_owned(), path: id.into(), created, base };
        self.known.add(Entry::Run(entry));
        self.own.insert(id.to_owned(), own);
        self
    }

    fn trained(mut self, run: &str, weights: &[&str]) -> Self {
        let weights = weights.iter().map(|digest| (*digest).to_owned()).collect();
        let kind = ExportKind::Merged;
        self.known.add(Entry::Trained(TrainedEntry { run: run.to_owned(), kind, weights }));
        self
    }

    fn release(mut self, id: &str, run: Option<&str>, base: &[&str], weights: &[&str]) -> Self {
        let owned = |digests: &[&str]| digests.iter().map(|digest| (*digest).to_owned()).collect();
        self.known.add(Entry::Release(ReleaseEntry {
            release: id.to_owned(),
            path: id.into(),
            kind: ExportKind::Merged,
            run: run.map(str::to_owned),
            base: owned(base),
            weights: owned(weights),
        }));
        self
    }

    /// `run` and what it comes from for the affected, `run?` for the unknown, sorted.
    fn answer(&self) -> Vec<String> {
        let mut nodes = nodes(&self.known, &Question::Record("r"));
        for (id, node) in &mut nodes {
            if let Some(own) = self.own.get(*id) {
                node.own = own.clone();
            }
        }
        let from = parents(&self.known, &nodes);
        for (node, from) in nodes.values_mut().zip(from) {
            node.from = from;
        }
        let answer = super::answer(&self.known, &nodes);
        let all = answer.affected.len() + answer.unknown.len() + answer.clear.len();
        assert_eq!(all, nodes.len(), "a run is left without an answer");
        let affected = answer.affected.iter().map(|run| match run.base_from.join("+") {
            from if from.is_empty() => run.run.clone(),
            from => format!("{}<{from}", run.run),
        });
        let unknown = answer.unknown.iter().map(|run| format!("{}?", run.run));
        affected.chain(unknown).collect()
    }
}

fn cannot_tell() -> Own {
    Own::CannotTell("gone".to_owned())
}

#[test]
fn what_is_made_on_top_of_what_is_made_on_top_is_affected() {
    let graph = Graph::default()
        .run("a", &["w0"], Own::Used(1))
        .release("ra", Some("a"), &["w0"], &["wa"])
        .run("b", &["wa"], Own::NotUsed(0))
        .release("rb", Some("b"), &["wa"], &["wb"])
        .run("c", &["wb"], Own::NotUsed(0))
        .run("d", &["w0"], Own::NotUsed(0))
        .run("e", &[], Own::NotUsed(0));
    assert_eq!(graph.answer(), ["a", "b<a", "c<b"]);
}

#[test]
fn a_model_in_its_run_folder_is_a_base_too() {
    let graph = Graph::default().run("a", &[], Own::Used(2)).trained("a", &["wa1", "wa2"]).run(
        "b",
        &["wa1", "wa2"],
        Own::NotUsed(0),
    );
    assert_eq!(graph.answer(), ["a", "b<a"]);
}

/// A merge leaves some shards as they are: these make no base of ours.
#[test]
fn a_base_is_ours_only_with_every_file() {
    let graph = Graph::default()
        .run("a", &["embedding", "layers"], Own::Used(1))
        .release("ra", Some("a"), &["embedding", "layers"], &["embedding", "merged"])
        .run("original", &["embedding", "layers"], Own::NotUsed(0))
        .run("ours", &["embedding", "merged"], Own::NotUsed(0));
    assert_eq!(graph.answer(), ["a", "ours<a"]);
}

#[test]
fn a_run_that_changed_nothing_does_not_come_from_itself() {
    let graph = Graph::default().run("a", &["w0"], Own::Used(1)).trained("a", &["w0"]);
    assert_eq!(graph.answer(), ["a"]);
}

#[test]
fn a_circle_that_somebody_made_up_ends() {
    let graph = Graph::default()
        .run("a", &["wb"], Own::NotUsed(0))
        .trained("a", &["wa"])
        .run("b", &["wa"], Own::Used(1))
        .trained("b", &["wb"]);
    assert_eq!(graph.answer(), ["a<b", "b<a"]);
}

#[test]
fn what_nobody_can_tell_is_never_called_clear() {
    let graph = Graph::default()
        .run("a", &["w0"], cannot_tell())
        .trained("a", &["wa"])
        .run("b", &["wa"], Own::NotUsed(3))
        .trained("b", &["wb"])
        .run("c", &["wb"], Own::Used(1))
        .run("d", &["w0"], Own::NotUsed(3));
    // `c` certainly is; `b` may be; `d` certainly is not.
    assert_eq!(graph.answer(), ["c", "a?", "b?"]);
}

#[test]
fn a_release_of_a_run_that_is_not_known_is_still_followed() {
    let graph = Graph::default()
        .run("a", &["w0"], Own::Used(1))
        .trained("a", &["wa"])
        .release("rx", Some("x"), &["wa"], &["wx"])
        .run("y", &["wx"], Own::NotUsed(0))
        .release("rz", None, &["w0"], &["wz"])
        .run("on-z", &["wz"], Own::NotUsed(0));
    assert_eq!(graph.answer(), ["x<a", "a", "y<x", "on-z?", "rz?"]);
}

/// An index of (record, subject, used), and the path of it.
fn index(rows: &[(&str, Option<u8>, bool)]) -> (tempfile::TempDir, PathBuf) {
    let mut subjects = FixedSizeBinaryBuilder::new(32);
    for (_, subject, _) in rows {
        match subject {
            Some(subject) => subjects.append_value([*subject; 32]).unwrap(),
            None => subjects.append_null(),
        }
    }
    let records: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)));
    let used: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.2)).collect::<BooleanArray>());
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("record_id", records, false),
        ("subject_ref", Arc::new(subjects.finish()) as ArrayRef, true),
        ("used", used, false),
    ]);
    write_index(&batch.unwrap())
}

fn write_index(batch: &RecordBatch) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(index::FILE);
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    crate::files::write_atomically(&path, &bytes).unwrap();
    (folder, path)
}

fn ask() -> Ask {
    Ask {
        purpose: vec!["dpv:ServiceProvision".to_owned()],
        processing: vec!["ai:ModelFineTuning".to_owned()],
        at: Timestamp::UNIX_EPOCH,
        until: Timestamp::MAX,
    }
}

#[test]
fn an_index_tells_used_from_left_out() {
    let (_folder, path) = index(&[
        ("a", Some(1), true),
        ("b", Some(1), false),
        ("c", None, true),
        ("d", Some(2), true),
        ("a", Some(1), true),
    ]);
    let look = |question| {
        let found = index::look_up(&path, &question, &ask()).unwrap();
        (found.used, found.left_out)
    };
    assert_eq!(look(Question::Record("a")), (2, 0));
    assert_eq!(look(Question::Record("b")), (0, 1));
    assert_eq!(look(Question::Record("nobody")), (0, 0));
    assert_eq!(look(Question::Subject(Digest([1; 32]))), (2, 1));
    assert_eq!(look(Question::Subject(Digest([0; 32]))), (0, 0));
}

#[test]
fn a_ledger_asks_for_all_its_records_and_subjects_by_scope() {
    use crate::dataset::ledger::{Kind, NewEvent, Scope, append};
    let (_folder, path) = index(&[
        ("a", None, true),
        ("b", Some(1), true),
        ("c", Some(1), true),
        ("d", None, true),
        ("e", None, false),
    ]);
    let ledgers = tempfile::tempdir().unwrap();
    let ledger = ledgers.path().join("withdrawals.jsonl");
    let marketing = Scope { purposes: vec!["dpv:Marketing".to_owned()], ..Scope::default() };
    for (record, subject, scope) in [
        (Some("a"), None, Scope::default()),
        (None, Some(1), Scope::default()),
        (Some("d"), None, marketing),
        (Some("e"), None, Scope::default()),
    ] {
        let event = NewEvent {
            record_id: record.map(str::to_owned),
            subject_ref: subject.map(|byte| Digest([byte; 32])),
            event: Kind::Withdrawn,
            scope,
            effective_at: Timestamp::now(),
            evidence_sha256: None,
        };
        append(&ledger, event, Timestamp::now()).unwrap();
    }
    let withdrawals = Withdrawals::open(&[ledger]).unwrap();
    let found = index::look_up(&path, &Question::Ledger(&withdrawals), &ask()).unwrap();
    assert_eq!((found.used, found.left_out), (3, 1));
}

#[test]
fn a_damaged_or_foreign_index_tells_nothing() {
    let (_folder, path) = index(&[("a", None, true)]);
    let look = || index::look_up(&path, &Question::Record("a"), &ask());
    assert_eq!(look().unwrap().used, 1);
    let whole = fs_err::read(&path).unwrap();
    for length in [0, 4, whole.len() / 2, whole.len() - 1] {
        fs_err::write(&path, &whole[..length]).unwrap();
        look().unwrap_err();
    }
    let numbers: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![1]));
    let names = [("record_id", Arc::clone(&numbers)), ("used", numbers)];
    let (_folder, path) = write_index(&RecordBatch::try_from_iter(names).unwrap());
    let told = index::look_up(&path, &Question::Record("a"), &ask()).unwrap_err();
    assert_eq!(told, "the index has not the columns of an index");
    let told = index::look_up(&path, &Question::Subject(Digest([0; 32])), &ask());
    assert!(told.is_err(), "{told:?}");
}

#[test]
fn no_run_at_all_is_no_answer() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::at(home.path());
    let error = affected(&registry, &[home.path().to_owned()], &Question::Record("a"));
    assert!(matches!(error, Err(AffectedError::NothingKnown { .. })));
}
