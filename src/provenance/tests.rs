//! A small release, made as the engine makes one.

use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::MANIFEST;
use super::release::{self, Facts, ReleaseError};
use super::statement::{Training, sha256};
use super::verify::{MAX_MANIFEST_BYTES, Problem, Verified, verify};
use crate::dataset::consent::{Ask, Counts, Reason};
use crate::files::{FolderInProgress, sha256_of_bytes, write_atomically};
use crate::job::ExportKind;
use crate::recipe::Recipe;
use crate::recipe::lock::{Lock, LockedData, LockedFile, Size, Split};
use crate::run::RunFolder;

mod making;
mod tampering;

const ROW_TEXT: &str = "twelve packets of the yellow beans for Miriam";

/// A finished run with its base, and a place for releases.
struct Finished {
    place: tempfile::TempDir,
    run: RunFolder,
    recipe: Recipe,
    lock: Lock,
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_atomically(path, text.as_bytes()).unwrap();
}

fn instant(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn locked(path: &str) -> LockedFile {
    LockedFile {
        path: path.into(),
        bytes: 9,
        sha256: sha256_of_bytes(path.as_bytes()),
        remote: None,
    }
}

fn rows(path: &str, split: Split, used: u64, excluded: &[(Reason, u64)]) -> LockedData {
    let left_out: u64 = excluded.iter().map(|(_, rows)| rows).sum();
    let counts =
        Counts { seen: used + left_out, used, excluded: excluded.iter().copied().collect() };
    LockedData {
        split,
        source: 0,
        file: locked(path),
        rows: counts,
        used_sha256: "d".repeat(64),
        tokens: 0,
        trained_tokens: 0,
    }
}

impl Finished {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().join("seedling");
        write(&base.join("README.md"), "---\nlicense: apache-2.0\n---\n# Seedling\n");
        write(&base.join("LICENSE"), "Apache License\n");
        let run = RunFolder::new(place.path().join("runs/quickstart"));
        write(&run.consent_report(), "{}\n");
        write(&run.metrics(), "{}\n");
        let scores =
            |exact_match, loss| json!({"exact_match": exact_match, "loss": loss, "tokens": 800});
        let report = json!({"suite": "catalogue", "rows": 200, "target": scores(0.955, 0.04),
            "baseline": scores(0.01, 3.2), "samples": [{"record_id": "0198f2c0", "prompt": ROW_TEXT,
            "reference": ROW_TEXT, "baseline": null, "target": ROW_TEXT}]});
        write(&run.eval("catalogue"), &report.to_string());
        let mut recipe: Recipe = serde_saphyr::from_str(
            "{heirloom: 1, name: quickstart, base: {model: seedling}, \
             adapter: {lora: {rank: 8, alpha: 16}}, \
             data: {purpose: ['dpv:ServiceProvision'], train: [{path: t.parquet, format: chat}], \
             sequence_length: 512}, train: {epochs: 1, tokens_per_step: 4096, \
             optimizer: {adamw: {lr: 1e-4}}, seed: 17}, eval: {suites: [catalogue]}}",
        )
        .unwrap();
        recipe.base.model = base.clone();
        let base_file = |name: &str| LockedFile { path: base.join(name), ..locked(name) };
        let lock = Lock {
            hub: None,
            heirloom: crate::VERSION.to_owned(),
            created: instant("2026-11-20T08:00:00.123Z"),
            recipe_sha256: "a".repeat(64),
            base: vec![base_file("config.json"), base_file("model.safetensors")],
            teacher: None,
            data: vec![
                rows(
                    "t-0.parquet",
                    Split::Train,
                    900,
                    &[(Reason::Withdrawn, 3), (Reason::Expired, 8)],
                ),
                rows("t-1.parquet", Split::Train, 850, &[(Reason::Withdrawn, 12)]),
                rows("test.parquet", Split::Test("catalogue".to_owned()), 200, &[]),
            ],
            ask: Ask {
                purpose: vec!["dpv:ServiceProvision".to_owned()],
                processing: vec!["ai:ModelFineTuning".to_owned()],
                at: instant("2026-11-20T08:00:00Z"),
                until: instant("2026-11-21T08:00:00Z"),
            },
            ledgers: Vec::new(),
            training: Size {
                tokens: 163_840,
                trained_tokens: 9000,
                windows: 320,
                steps_by_epoch: vec![40],
                steps: 40,
                ..Size::default()
            },
        };
        write(&run.lock(), &serde_json::to_string(&lock).unwrap());
        Self { place, run, recipe, lock }
    }

    fn facts(&self, kind: ExportKind) -> Facts<'_> {
        let peak_memory_bytes = Some(300 << 20);
        Facts {
            run: &self.run,
            recipe: &self.recipe,
            lock: &self.lock,
            kind,
            training: Training {
                steps: 40,
                tokens: 163_840,
                seconds: 61.5,
                peak_memory_bytes,
                withdrawn_rows: Default::default(),
            },
            finished: instant("2026-11-20T08:01:02.5Z"),
            device: "cpu",
            libtorch: "2.11.0",
            deterministic: true,
        }
    }

    fn target(&self) -> PathBuf {
        self.place.path().join("releases/out")
    }

    fn export(&self, kind: ExportKind, force: bool) -> Result<PathBuf, ReleaseError> {
        let folder = FolderInProgress::beside(&self.target()).unwrap();
        let names: &[&str] = match kind {
            ExportKind::Adapter => &["adapter_config.json", "adapter_model.safetensors"],
            ExportKind::Merged => &["config.json", "model.safetensors", "tokenizer.json"],
        };
        names.iter().for_each(|name| write(&folder.path().join(name), &format!("{name}\n")));
        release::finish(folder, &self.facts(kind), force)
    }
}

/// A good release; the guard keeps its place alive.
fn good() -> (Finished, PathBuf) {
    let finished = Finished::new();
    let release = finished.export(ExportKind::Adapter, false).unwrap();
    (finished, release)
}
