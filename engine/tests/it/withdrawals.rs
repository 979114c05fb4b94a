//! Withdrawals as they reach a job that is running, one that lies stopped and one that has
//! not begun, and what can be proven of each afterwards: the real programs on the bundled
//! model and data.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fs_err as fs;
use heirloom::dataset::ledger::Withdrawals;
use heirloom::files::sha256_of_file;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::runs::{heirloom, root};

/// Three passes of some 14 steps, looked at every other step.
const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: data/seedling }
adapter:
  lora: { rank: 2, alpha: 4, targets: [q_proj] }
data:
  purpose: [dpv:ServiceProvision]
  consent: { ledgers: [LEDGER], on_withdrawal: ACTION }
  train:
    - { path: data/catalogue/validation.parquet, format: chat }
  sequence_length: 256
train:
  epochs: 3
  tokens_per_step: 1024
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 3
  checkpoint_every: 2
";

/// The only file of rows.
const ROWS: &str = "data/catalogue/validation.parquet";

/// The ledger begins with an event on a record that is none of these.
const STRANGER: &str = "nobody-of-these";

/// A folder with a recipe for each answer to a withdrawal, and a ledger.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let ledger = place.path("ledger.jsonl");
        for action in ["stop", "drop"] {
            let recipe = RECIPE.replace("LEDGER", ledger.to_str().unwrap());
            let recipe = recipe.replace("ACTION", action);
            fs::write(place.path(&format!("{action}.yaml")), recipe).unwrap();
        }
        place.withdraw(STRANGER);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.folder.path());
        command
    }

    /// Exit status, stdout and stderr.
    fn heirloom(&self, arguments: &[&str]) -> (i32, String, String) {
        said(self.command(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (status, stdout, stderr) = self.heirloom(arguments);
        assert_eq!(status, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    fn withdraw(&self, record: &str) {
        let ledger = self.path("ledger.jsonl");
        let arguments = ["data", "withdraw", "--ledger", ledger.to_str().unwrap()];
        let (status, _, stderr) =
            self.heirloom(&[arguments.as_slice(), &["--record", record]].concat());
        assert_eq!(status, 0, "{stderr}");
    }

    fn train(&self, action: &str, run: &str, more: &[&str]) -> Command {
        let recipe = self.path(&format!("{action}.yaml"));
        let mut command = self.command(&["train", recipe.to_str().unwrap(), "--run"]);
        command.arg(self.path(run)).args(more);
        command
    }

    fn finish(&self, action: &str, run: &str, more: &[&str]) -> String {
        let (status, _, stderr) = said(self.train(action, run, more).output().unwrap());
        assert_eq!(status, 0, "{stderr}");
        stderr
    }

    /// Lines of `metrics.jsonl` that a step wrote.
    fn steps(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        // A line is whole once it has its end.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts a run, waits for a step, and lets something happen beside it.
    fn meanwhile(
        &self,
        action: &str,
        run: &str,
        step: usize,
        event: impl FnOnce(&mut Child),
    ) -> (i32, String) {
        let mut child = self.train(action, run, &[]).spawn().unwrap();
        let begun = Instant::now();
        while self.steps(run).len() < step {
            if child.try_wait().unwrap().is_some() {
                panic!("it ended by itself: {:?}", said(child.wait_with_output().unwrap()));
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "nothing happened");
            sleep(Duration::from_millis(1));
        }
        event(&mut child);
        let (status, _, stderr) = said(child.wait_with_output().unwrap());
        (status, stderr)
    }

    /// A row of the run, and its tokens.
    fn a_row(&self) -> (String, u64) {
        let recipe = self.path("stop.yaml");
        let shown = self.json(&[
            "data",
            "show",
            recipe.to_str().unwrap(),
            "--random",
            "1",
            "--format",
            "json",
        ]);
        let row = &shown["rows"][0];
        (row["record_id"].as_str().unwrap().to_owned(), row["tokens"].as_u64().unwrap())
    }

    /// Checkpoints of a run, and nothing that was begun and not finished.
    fn checkpoints(&self, run: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(run).join("checkpoints")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert!(names.iter().all(|name| name.starts_with("step-")), "{names:?}");
        names
    }

    fn assert_stopped_cleanly(&self, run: &str) {
        let steps = self.steps(run).len();
        let newest = format!("step-{steps:06}");
        assert_eq!(self.checkpoints(run).last(), Some(&newest));
        assert!(
            steps.is_multiple_of(2)
                || self.steps(run)[steps - 1]["epoch"].as_f64().unwrap().fract() == 0.0
        );
        for entry in fs::read_dir(self.path(run)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with(".heirloom-"), "{name}");
        }
        for late in ["adapter", "summary.json"] {
            assert!(!self.path(run).join(late).exists(), "{late}");
        }
    }
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Tokens of every step.
fn tokens(steps: &[Value]) -> Vec<u64> {
    let sums = steps.iter().map(|step| step["tokens"].as_u64().unwrap());
    sums.scan(0, |before, sum| Some(sum - std::mem::replace(before, sum))).collect()
}

/// The step that a run said it goes on with without its row.
fn left_out_from(said: &str) -> usize {
    let (_, rest) =
        said.split_once("withdrawn since the run began: 1 row, left out from step ").unwrap();
    rest.split_once(" on").unwrap().0.parse().unwrap()
}

/// Checks that after `from` steps a run is the undisturbed one without a row of so many tokens.
fn assert_without(undisturbed: &[Value], dropped: &[Value], from: usize, row: u64) {
    assert_eq!(dropped.len(), undisturbed.len());
    let (before, after) = (tokens(undisturbed), tokens(dropped));
    assert_eq!(before[..from], after[..from], "nothing changes before the look");
    let mut missing = std::collections::BTreeMap::<u64, u64>::new();
    for step in from..before.len() {
        // The pass to which the step belongs: its end is a whole number.
        let pass = undisturbed[step]["epoch"].as_f64().unwrap().ceil() as u64;
        *missing.entry(pass).or_default() += before[step] - after[step];
    }
    let begun = undisturbed[from.max(1) - 1]["epoch"].as_f64().unwrap();
    assert!(!missing.is_empty());
    for (pass, missing) in missing {
        if pass as f64 - 1.0 >= begun {
            assert_eq!(missing, row, "pass {pass} goes without the row");
        } else {
            assert!(missing == 0 || missing == row, "the row may have come before");
        }
    }
}

#[test]
fn a_job_that_is_to_stop_does_so_at_the_next_checkpoint() {
    let place = Place::new();
    let (record, _) = place.a_row();
    let (status, stderr) = place.meanwhile("stop", "run", 5, |_| place.withdraw(&record));
    let steps = place.steps("run").len();
    assert_eq!(status, 1, "{stderr}");
    let run = place.path("run");
    let expected = format!(
        "error: 1 row of the run `{}` was withdrawn; it stopped after step {steps}",
        run.display()
    );
    assert!(stderr.contains(&expected), "{stderr}");
    assert!(stderr.contains("hint: train anew with another `--run`"), "{stderr}");
    assert!(!stderr.contains(&record), "ids of rows are private: {stderr}");
    assert!((5..42).contains(&steps));
    place.assert_stopped_cleanly("run");

    // Going on would use the row: that is refused, and training anew leaves it out.
    let (status, _, stderr) = said(place.train("stop", "run", &["--resume"]).output().unwrap());
    assert_eq!(status, 1);
    assert!(
        stderr.contains(&format!("error: 1 row of `{ROWS}` may be used no longer")),
        "{stderr}"
    );
    place.assert_stopped_cleanly("run");
    place.finish("stop", "anew", &["--set", "train.max_steps=2"]);
    let report: Value =
        serde_json::from_slice(&fs::read(place.path("anew/consent_report.json")).unwrap()).unwrap();
    let first: Value =
        serde_json::from_slice(&fs::read(place.path("run/consent_report.json")).unwrap()).unwrap();
    let count = |report: &Value, key: &str| report[key].as_u64().unwrap();
    assert_eq!(count(&report, "seen"), count(&first, "seen"));
    assert_eq!(count(&report, "used") + 1, count(&first, "used"));
    let withdrawn = |report: &Value| report["excluded"]["withdrawn"].as_u64().unwrap();
    assert_eq!(withdrawn(&report), withdrawn(&first) + 1);
}

#[test]
fn a_withdrawal_of_somebody_else_stops_nothing() {
    let place = Place::new();
    let (status, stderr) =
        place.meanwhile("stop", "run", 3, |_| place.withdraw("also-nobody-of-these"));
    assert_eq!(status, 0, "{stderr}");
    let summary: Value =
        serde_json::from_slice(&fs::read(place.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["withdrawn_rows"], 0);
}

#[test]
fn a_job_that_is_to_drop_goes_on_without_the_row() {
    let place = Place::new();
    place.finish("drop", "undisturbed", &[]);
    let undisturbed = place.steps("undisturbed");
    let (record, row) = place.a_row();
    let (status, stderr) = place.meanwhile("drop", "run", 5, |_| place.withdraw(&record));
    assert_eq!(status, 0, "{stderr}");
    let from = left_out_from(&stderr);
    assert!(from > 5 && from < undisturbed.len(), "{stderr}");
    assert_without(&undisturbed, &place.steps("run"), from - 1, row);
    let summary: Value =
        serde_json::from_slice(&fs::read(place.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!(
        (&summary["withdrawn_rows"], &summary["steps"]),
        (&json!(1), &json!(undisturbed.len()))
    );
    assert!(!stderr.contains(&record), "{stderr}");
}

#[test]
fn a_dropped_row_stays_out_when_the_job_is_killed_and_resumed() {
    let place = Place::new();
    place.finish("drop", "undisturbed", &[]);
    let undisturbed = place.steps("undisturbed");
    let (record, row) = place.a_row();
    let run = "killed";
    let (status, _) = place.meanwhile("drop", run, 5, |child| {
        place.withdraw(&record);
        let now = place.steps(run).len();
        while place.steps(run).len() < now + 4 && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
    });
    assert_eq!(status, -1, "it ended before it was killed");
    let at = place.steps(run).len();
    let stderr = place.finish("drop", run, &["--resume"]);
    // The job says at once that it has heard, whatever its forerunner had said.
    let from = left_out_from(&stderr);
    assert!(from <= at + 1, "{from} {at}");
    let resumed = place.steps(run);
    assert_eq!(resumed.len(), undisturbed.len());
    // The last two passes begin after the withdrawal.
    let last = |steps: &[Value]| {
        let of_last = tokens(steps).into_iter().zip(steps);
        of_last
            .filter(|(_, step)| step["epoch"].as_f64().unwrap() > 2.0)
            .map(|(tokens, _)| tokens)
            .sum::<u64>()
    };
    assert_eq!(last(&undisturbed), last(&resumed) + row);
    let summary: Value =
        serde_json::from_slice(&fs::read(place.path("killed/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["withdrawn_rows"], 1);
}

#[test]
fn a_row_withdrawn_while_the_job_lay_stopped_is_dropped_from_the_next_step_on() {
    let place = Place::new();
    place.finish("drop", "undisturbed", &[]);
    let undisturbed = place.steps("undisturbed");
    let (record, row) = place.a_row();
    let (status, _) = place.meanwhile("drop", "run", 4, |child| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    });
    assert_eq!(status, 1);
    let at = place.steps("run").len();
    place.withdraw(&record);
    let stderr = place.finish("drop", "run", &["--resume"]);
    assert_eq!(left_out_from(&stderr), at + 1);
    assert_without(&undisturbed, &place.steps("run"), at, row);
}

#[test]
fn a_ledger_that_breaks_stops_the_job_which_resumes_once_it_is_whole() {
    let place = Place::new();
    place.withdraw("somebody-else");
    let ledger = place.path("ledger.jsonl");
    let whole = fs::read_to_string(&ledger).unwrap();
    place.finish("drop", "undisturbed", &[]);
    let adapter = |run: &str| fs::read(place.path(run).join("adapter/adapter_model.safetensors"));
    let first = whole.lines().next().unwrap();
    for (run, action, broken, expected) in [
        ("edited", "stop", whole.replacen(STRANGER, "somebody", 1), "error: line 2 of the ledger"),
        (
            "edited-d",
            "drop",
            whole.replacen(STRANGER, "somebody", 1),
            "error: line 2 of the ledger",
        ),
        (
            "cut",
            "drop",
            format!("{first}\n"),
            "no longer goes on from its line 2: that line is gone",
        ),
        ("torn", "drop", whole[..whole.len() - 9].to_owned(), "is cut short"),
        ("noise", "stop", format!("{whole}\u{fffd}\n"), "error: line 3 of the ledger"),
    ] {
        let (status, stderr) = place.meanwhile(action, run, 3, |_| {
            heirloom::files::write_atomically(&ledger, broken.as_bytes()).unwrap();
        });
        assert_eq!(status, 1, "{run}: {stderr}");
        assert!(stderr.contains(expected) && stderr.contains("hint: "), "{run}: {stderr}");
        place.assert_stopped_cleanly(run);
        let (status, _, stderr) = said(place.train(action, run, &["--resume"]).output().unwrap());
        assert_eq!(status, 1, "{run}: {stderr}");
        assert!(stderr.contains(expected), "{run}: {stderr}");
        heirloom::files::write_atomically(&ledger, whole.as_bytes()).unwrap();
        place.finish(action, run, &["--resume"]);
        assert_eq!(adapter(run).unwrap(), adapter("undisturbed").unwrap(), "{run}");
    }
    let (status, stderr) =
        place.meanwhile("stop", "gone", 3, |_| fs::remove_file(&ledger).unwrap());
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("cannot be read") && stderr.contains("hint: "), "{stderr}");
    place.assert_stopped_cleanly("gone");
}

/// From the row to everything that was made of it, and to proofs of both.
#[test]
fn a_record_is_followed_into_the_release_and_proven_out_of_the_next_run() {
    let place = Place::new();
    let (record, _) = place.a_row();
    let short = ["--set", "train.max_steps=2"];
    place.finish("stop", "first", &short);
    let (release, run) = (place.path("release"), place.path("first"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let export = |run: &Path, to: &Path| {
        let (status, _, stderr) =
            place.heirloom(&["export", &text(run), "--to", "merged", "-o", &text(to)]);
        assert_eq!(status, 0, "{stderr}");
    };
    export(&run, &release);

    place.withdraw(&record);
    place.finish("stop", "second", &short);
    let (second, after) = (place.path("second"), place.path("release-2"));
    export(&second, &after);

    let ledger = text(&place.path("ledger.jsonl"));
    for whose in [["--record", record.as_str()], ["--ledger", &ledger]] {
        let answer = place
            .json(&[["lineage", "affected"].as_slice(), &whose, &["--format", "json"]].concat());
        let affected = answer["affected"].as_array().unwrap();
        assert_eq!((affected.len(), &affected[0]["rows"]), (1, &json!(1)), "{answer}");
        let real = |path: &Path| json!(text(&fs::canonicalize(path).unwrap()));
        assert_eq!(affected[0]["places"][0]["path"], real(&run));
        let models = affected[0]["models"].to_string();
        for kind in ["adapter", "merged"] {
            assert!(models.contains(&format!("\"kind\":\"{kind}\"")), "{models}");
        }
        assert!(models.contains(&real(&release).to_string()), "{models}");
        assert_eq!(answer["clear"].as_array().unwrap().len(), 1);
        let clear = sha256_of_file(&second.join("recipe.lock")).unwrap();
        assert_eq!(answer["clear"][0]["run"], clear);
    }

    let (proof, key) = (text(&place.path("proof.json")), text(&run.join("record_key")));
    let prove = |run: &Path, more: &[&str]| {
        let arguments = ["lineage", "prove", &text(run), "--record", &record, "-o", &proof];
        let (status, _, stderr) = place.heirloom(&[arguments.as_slice(), more].concat());
        assert_eq!(status, 0, "{stderr}");
    };
    let check = |against: &Path, more: &[&str]| {
        let arguments = ["lineage", "check-proof", &proof, "--manifest", &text(against)];
        place.heirloom(&[arguments.as_slice(), more].concat())
    };
    prove(&run, &[]);
    for more in [["--data", ROWS], ["--key", &key]] {
        let (status, stdout, stderr) = check(&release, &more);
        assert_eq!(status, 0, "{stderr}");
        assert!(format!("{stdout}{stderr}").contains("is in the tree"), "{stdout}{stderr}");
    }
    let (status, _, stderr) = check(&after, &["--data", ROWS]);
    assert_eq!(status, 1);
    assert!(stderr.contains("it is about the tree"), "{stderr}");
    prove(&second, &["--include-key"]);
    let (status, stdout, stderr) = check(&after, &[]);
    assert_eq!(status, 0, "{stderr}");
    assert!(format!("{stdout}{stderr}").contains("is not in the tree"), "{stdout}{stderr}");
    assert_eq!(check(&release, &[]).0, 1);
    assert_eq!(Withdrawals::open(&[place.path("ledger.jsonl")]).unwrap().len(), 2);
}

/// Rows that are measured on are no row of training, but may be used no longer either.
#[test]
fn a_row_that_is_measured_on_is_left_out_from_then_on() {
    let place = Place::new();
    let ledger = place.path("ledger.jsonl");
    let recipe = RECIPE.replace("LEDGER", ledger.to_str().unwrap()).replace("ACTION", "stop");
    let recipe = recipe.replace(ROWS, "data/catalogue/test.parquet").replace(
        "  sequence_length",
        &format!(
            "  validation: [{{ path: {ROWS}, format: chat }}]
  test: [{{ name: held-out, path: {ROWS}, format: chat, max_new_tokens: 1 }}]
  sequence_length"
        ),
    );
    let recipe = recipe.replace(
        "checkpoint_every: 2",
        "checkpoint_every: 2\n  validate_every: 2\n  max_steps: 10",
    );
    let path = place.path("measured.yaml");
    fs::write(&path, recipe + "eval: { suites: [held-out] }\n").unwrap();
    let show = ["data", "show", path.to_str().unwrap(), "--split", "validation"];
    let shown = place.json(&[show.as_slice(), &["--first", "1", "--format", "json"]].concat());
    let row = &shown["rows"][0];
    let record = row["record_id"].as_str().unwrap().to_owned();
    let (status, stderr) = place.meanwhile("measured", "run", 3, |_| place.withdraw(&record));
    assert_eq!(status, 0, "{stderr}");
    let measured = place.steps("run").into_iter();
    let measured: Vec<u64> =
        measured.filter_map(|line| line["validation_tokens"].as_u64()).collect();
    let (before, after) = (measured[0], measured[measured.len() - 1]);
    assert_eq!(before - after, row["trained_tokens"].as_u64().unwrap(), "{measured:?}");
    let report = fs::read(place.path("run/eval/held-out.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let check = place.json(&["check", path.to_str().unwrap(), "--format", "json"]);
    // By now the plan leaves it out, too.
    let rows = &check["plan"]["rows"];
    assert_eq!(report["rows"], rows["validation"]["used"], "{rows}");
    assert_eq!(rows["validation"]["used"], 199);
    assert!(!report.to_string().contains(&record));
}
