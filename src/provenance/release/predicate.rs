//! The manifest's predicate: from the facts of a run to the words of SLSA provenance.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use jiff::Timestamp;
use serde_json::Value;

use super::{Facts, ReleaseError, digest_of, render};
use crate::files::sha256_of_bytes;
use crate::provenance::counts::{Published, Rows};
use crate::provenance::origin::Origin;
use crate::provenance::statement::{
    Annotations, BASE, BUILD_TYPE, BUILDER_ID, BuildDefinition, Builder, Consent, Digests,
    Evaluation, External, IntendedUse, Internal, Metadata, RecordTree, Resolved, Resource,
    RunDetails, TEACHER, sha256,
};
use crate::provenance::tree::{Commitment, TreeError};
use crate::recipe::lock::{LockedData, LockedFile, LockedTeacher, Split};
use crate::run::EvalReport;

/// `train`, `validation` or `test/SUITE`.
fn split_label(split: &Split) -> String {
    match split {
        Split::Train => "train".to_owned(),
        Split::Validation => "validation".to_owned(),
        Split::Test(suite) => format!("test/{suite}"),
    }
}

/// Sums of the published counts.
pub(super) fn rows_by_split(data: &[LockedData]) -> BTreeMap<String, Rows> {
    let mut by_split = BTreeMap::<String, Rows>::new();
    for file in data {
        by_split.entry(split_label(&file.split)).or_default().add(&Rows::of(&file.rows));
    }
    by_split
}

pub(super) fn build_definition(
    facts: &Facts,
    origin: &Origin,
) -> Result<BuildDefinition, ReleaseError> {
    let Facts { recipe, lock, .. } = facts;
    let recipe_value: Value = serde_json::to_value(recipe).map_err(|error| render(&error))?;
    Ok(BuildDefinition {
        build_type: BUILD_TYPE.to_owned(),
        external_parameters: External {
            recipe: recipe_value,
            recipe_source: Resource {
                name: "recipe".to_owned(),
                digest: sha256(&lock.recipe_sha256),
                media_type: Some("application/yaml".to_owned()),
                ..Resource::default()
            },
            export: facts.kind,
            intended_use: IntendedUse {
                purposes: lock.ask.purpose.clone(),
                processing: lock.ask.processing.clone(),
            },
        },
        internal_parameters: Internal {
            resolved: Resolved {
                steps: lock.training.steps,
                tokens_per_epoch: lock.training.tokens,
                trained_tokens_per_epoch: lock.training.trained_tokens,
                seed: recipe.train.seed,
            },
            device: facts.device.to_owned(),
            libtorch: facts.libtorch.to_owned(),
            deterministic: facts.deterministic,
        },
        resolved_dependencies: dependencies(facts, origin),
    })
}

/// Every input: the base as a whole, its files, the same of a teacher, the files of rows, the
/// toolkit.
fn dependencies(facts: &Facts, origin: &Origin) -> Vec<Resource> {
    let Facts { recipe, lock, .. } = facts;
    let mut resources = vec![Resource {
        name: BASE.to_owned(),
        uri: Some(origin.uri.clone()),
        annotations: Some(Annotations {
            licence: Some(origin.licence.clone()),
            ..Annotations::default()
        }),
        ..Resource::default()
    }];
    for file in &lock.base {
        let name = file.path.strip_prefix(&recipe.base.model).unwrap_or(&file.path);
        resources.push(Resource {
            name: format!("{BASE}/{}", name.display()),
            digest: sha256(&file.sha256),
            ..Resource::default()
        });
    }
    resources.extend(lock.teacher.iter().flat_map(teacher));
    for data in &lock.data {
        let rows = Rows::of(&data.rows);
        resources.push(Resource {
            name: data.file.path.display().to_string(),
            digest: input_digest(&data.file),
            media_type: Some("application/vnd.apache.parquet".to_owned()),
            annotations: Some(Annotations {
                split: Some(split_label(&data.split)),
                consent: Some(Consent {
                    schema: "consent/v1".to_owned(),
                    evaluated_at: lock.ask.at,
                    required_until: lock.ask.until,
                    rows_seen: rows.seen(),
                    rows_used: rows.used,
                    excluded: rows.excluded,
                }),
                ..Annotations::default()
            }),
            ..Resource::default()
        });
    }
    resources.push(Resource {
        name: "toolkit".to_owned(),
        uri: Some(format!("pkg:cargo/heirloom@{}", lock.heirloom)),
        ..Resource::default()
    });
    resources
}

/// A model whose distributions were learned, and its files.
fn teacher(teacher: &LockedTeacher) -> Vec<Resource> {
    let licence = Some(teacher.licence.clone());
    let whole = Resource {
        name: TEACHER.to_owned(),
        uri: Some(teacher.uri.clone()),
        annotations: Some(Annotations { licence, ..Annotations::default() }),
        ..Resource::default()
    };
    let file = |file: &LockedFile| Resource {
        name: format!("{TEACHER}/{}", file.path.display()),
        digest: sha256(&file.sha256),
        ..Resource::default()
    };
    // What it said is no file of its folder.
    let said = teacher.logits.iter().map(|logits| Resource {
        name: format!("{TEACHER} {}", logits.path.display()),
        ..file(logits)
    });
    std::iter::once(whole).chain(teacher.files.iter().map(file)).chain(said).collect()
}

/// The digest of an input. Of an object on a server only the Parquet footer was digested: that
/// must not pass for the digest of its bytes.
fn input_digest(file: &LockedFile) -> Digests {
    match &file.remote {
        None => sha256(&file.sha256),
        Some(_) => Digests::from([("parquetFooterSha256".to_owned(), file.sha256.clone())]),
    }
}

pub(super) fn run_details(
    facts: &Facts,
    byproducts: Vec<Resource>,
    latest: Timestamp,
) -> RunDetails {
    let at_most = |instant: Timestamp| {
        let instant = instant.min(latest);
        // Whole seconds: more would only look exact.
        Timestamp::from_second(instant.as_second()).unwrap_or(instant)
    };
    let version = [("heirloom", crate::VERSION), ("libtorch", facts.libtorch)];
    RunDetails {
        builder: Builder {
            id: BUILDER_ID.to_owned(),
            version: version.map(|(of, is)| (of.to_owned(), is.to_owned())).into(),
        },
        metadata: Metadata {
            invocation_id: String::new(), // the seal, set when the statement is written
            started_on: at_most(facts.lock.created),
            finished_on: at_most(facts.finished),
        },
        byproducts,
    }
}

/// What stays in the run folder, by digest: reports and metrics.
pub(super) fn byproducts(facts: &Facts) -> Result<Vec<Resource>, ReleaseError> {
    let run = facts.run;
    let mut resources = vec![
        // Which run it was: see the registry.
        Resource {
            name: "recipe.lock".to_owned(),
            digest: digest_of(&run.lock())?,
            ..Resource::default()
        },
        Resource {
            name: "consent_report.json".to_owned(),
            digest: digest_of(&run.consent_report())?,
            ..Resource::default()
        },
        Resource {
            name: "metrics.jsonl".to_owned(),
            digest: digest_of(&run.metrics())?,
            annotations: Some(Annotations {
                training: Some(facts.training),
                ..Annotations::default()
            }),
            ..Resource::default()
        },
    ];
    resources.extend(record_tree(facts)?);
    for suite in &facts.recipe.eval.suites {
        let path = run.eval(suite);
        if path.exists() {
            resources.push(evaluation(&path, suite)?);
        }
    }
    Ok(resources)
}

/// The commitment to the records, where the run made one. Its file is not digested: from the
/// digest, its few bytes could be guessed, and with them a size that is not published.
fn record_tree(facts: &Facts) -> Result<Option<Resource>, ReleaseError> {
    let path = facts.run.record_tree();
    if !path.exists() {
        return Ok(None);
    }
    let wrong = |error: TreeError| ReleaseError::Run {
        path: path.clone(),
        line: 1,
        what: error.to_string(),
    };
    let Commitment { algorithm, size, root, key_id } = Commitment::read(&path).map_err(wrong)?;
    let mut used = Published::default();
    facts.lock.data.iter().for_each(|data| used += Published::of(data.rows.used));
    let record_tree = RecordTree { algorithm, size: used.bound(size), root, key_id };
    Ok(Some(Resource {
        name: "record_tree.json".to_owned(),
        annotations: Some(Annotations { record_tree: Some(record_tree), ..Annotations::default() }),
        ..Resource::default()
    }))
}

/// Numbers and digest of an evaluation.
fn evaluation(path: &Path, suite: &str) -> Result<Resource, ReleaseError> {
    let bytes = fs::read(path)
        .map_err(|source| ReleaseError::Unreadable { path: path.to_owned(), source })?;
    let wrong = |line, what: String| ReleaseError::Run { path: path.to_owned(), line, what };
    let report: EvalReport = serde_json::from_slice(&bytes)
        // Only the category: the message could quote the text of a row.
        .map_err(|error| wrong(error.line(), format!("{:?} error", error.classify())))?;
    if report.suite != suite {
        return Err(wrong(1, format!("it is of the suite `{}`", report.suite)));
    }
    let evaluation = Evaluation {
        suite: report.suite,
        rows: Published::of(report.rows),
        target: report.target,
        baseline: report.baseline,
    };
    Ok(Resource {
        name: format!("eval/{suite}.json"),
        digest: sha256(sha256_of_bytes(&bytes)),
        annotations: Some(Annotations { evaluation: Some(evaluation), ..Annotations::default() }),
        ..Resource::default()
    })
}
