//! Whole runs of the real programs on the bundled model and data: what is interrupted goes
//! on to the same bytes, and what fails leaves nothing half-written.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use heirloom::files::sha256_of_file;
use heirloom::provenance::registry::{Entry, Registry, ReleaseEntry};
use tempfile::TempDir;

/// Optimiser steps of the small run.
const STEPS: usize = 10;

/// A few quick steps on the validation rows, with a checkpoint every other step.
const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: data/seedling }
adapter:
  lora: { rank: 4, alpha: 8, dropout: 0.1, targets: [q_proj, v_proj] }
data:
  purpose: [dpv:ServiceProvision]
  train:
    - { path: data/catalogue/validation.parquet, format: chat }
  test:
    - { name: held-out, path: data/catalogue/validation.parquet, format: chat, max_new_tokens: 2 }
  sequence_length: 256
eval: { suites: [held-out] }
train:
  epochs: 2
  max_steps: 10
  tokens_per_step: 512
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 3
  checkpoint_every: 2
";

/// The repository, where the paths of the recipe begin.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `heirloom`, which lies beside the engine once the workspace is built.
pub(crate) fn heirloom() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_heirloom-engine")).with_file_name("heirloom");
    assert!(program.is_file(), "build the whole workspace: `cargo build`");
    program
}

/// A folder with the recipe and, later, its runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        heirloom::files::write_atomically(&place.0.path().join("small.yaml"), RECIPE.as_bytes())
            .unwrap();
        place
    }

    fn run(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn train(&self, run: &str, more: &[&str]) -> Command {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).arg("train").arg(self.0.path().join("small.yaml"));
        command.arg("--run").arg(self.run(run)).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // One thread, so that the test beside this one costs time but no patience.
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.0.path());
        command
    }

    /// Trains to the end and gives the digest of the adapter.
    fn finish(&self, run: &str, more: &[&str]) -> String {
        let output = self.train(run, more).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        self.adapter(run)
    }

    fn adapter(&self, run: &str) -> String {
        sha256_of_file(&self.run(run).join("adapter/adapter_model.safetensors")).unwrap()
    }

    /// Lines of `metrics.jsonl`, or none while there is no such file.
    fn steps(&self, run: &str) -> usize {
        let text = fs_err::read_to_string(self.run(run).join("metrics.jsonl"));
        text.unwrap_or_default().lines().count()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `ready`, or until the program has ended by itself.
fn wait_until(child: &mut Child, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing happened for two minutes");
        sleep(Duration::from_millis(1));
    }
}

fn has_partial(folder: &Path) -> bool {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".heirloom-"))
}

#[test]
fn a_second_run_gives_the_same_bytes() {
    let place = Place::new();
    assert_eq!(place.finish("first", &[]), place.finish("second", &[]));
    assert_eq!(place.steps("first"), STEPS);
}

#[test]
fn killed_at_several_moments_a_run_resumes_to_the_same_bytes() {
    let place = Place::new();
    let undisturbed = place.finish("undisturbed", &[]);
    let run = "killed";
    let checkpoints = place.run(run).join("checkpoints");
    type Moment<'a> = (&'a str, Box<dyn Fn() -> bool + 'a>);
    let moments: Vec<Moment<'_>> = vec![
        ("once the run folder is there", Box::new(|| place.run(run).is_dir())),
        ("after the first step", Box::new(|| place.steps(run) >= 1)),
        ("while a checkpoint is written", Box::new(|| has_partial(&checkpoints))),
        ("after the fifth step", Box::new(|| place.steps(run) >= 5)),
        ("once there is a later checkpoint", Box::new(|| checkpoints.join("step-000008").is_dir())),
        ("when the last step is done", Box::new(|| place.steps(run) >= STEPS)),
        ("while the suite is measured", Box::new(|| place.run(run).join("summary.json").is_file())),
    ];
    let mut killed = 0;
    for (moment, ready) in &moments {
        let more: &[&str] = if place.run(run).is_dir() { &["--resume"] } else { &[] };
        let mut child = place.train(run, more).spawn().unwrap();
        wait_until(&mut child, ready);
        // SIGKILL: nothing of ours runs any more.
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.signal() == Some(9) {
            killed += 1;
        } else {
            assert!(status.success(), "{moment}: {status}");
        }
    }
    assert!(killed >= 5, "only {killed} of {} moments were caught", moments.len());
    let suite = place.run(run).join("eval/held-out.json");
    if !suite.is_file() {
        place.finish(run, &["--resume"]);
    }
    assert!(suite.is_file());
    assert_eq!(place.adapter(run), undisturbed);
    assert_eq!(place.steps(run), STEPS, "every step once in metrics.jsonl");
}

/// Methods that are killed at random moments, as changes to the recipe.
const METHODS: [(&str, &[&str]); 14] = [
    ("lora", &[]),
    ("lora-guarded", &["--set", "train.loss_spike={factor: 1.05, window: 3, action: roll-back}"]),
    (
        "distillation",
        &[
            "--set",
            "objective={distillation: {teacher: {model: data/seedling}, beta: 0.5, kd_ratio: 0.5}}",
        ],
    ),
    ("full", &["--set", "adapter=full", "--set", "train.checkpoint_in_background=true"]),
    (
        "full-muon",
        &[
            "--set",
            "adapter=full",
            "--set",
            "train.optimizer={muon: {lr: 0.01, adamw: {lr: 0.001}}}",
        ],
    ),
    ("dora", &["--set", "adapter.lora.use_dora=true", "--set", "adapter.lora.dropout=0.1"]),
    ("pissa", &["--set", "adapter.lora.init_lora_weights=pissa"]),
    (
        "qlora-8bit",
        &["--set", "base.quantization=nf4", "--set", "train.optimizer={adamw_8bit: {lr: 0.001}}"],
    ),
    ("adafactor", &["--set", "train.optimizer={adafactor: {lr: 0.001}}"]),
    ("lion", &["--set", "train.optimizer={lion: {lr: 0.0001}}"]),
    ("dpo", &["--set", "objective={dpo: {}}", "--set", PAIRS, "--set", COMPLETION, "--set", DROP]),
    (
        "orpo",
        &["--set", "objective={orpo: {}}", "--set", PAIRS, "--set", COMPLETION, "--set", DROP],
    ),
    (
        "simpo",
        &["--set", "objective={simpo: {}}", "--set", PAIRS, "--set", COMPLETION, "--set", DROP],
    ),
    ("kto", &["--set", "objective={kto: {}}", "--set", LABELLED, "--set", COMPLETION]),
];

/// Rows of answers that are judged.
const PAIRS: &str = "data.train=[{path: data/preference/validation.parquet, format: preference}]";
const LABELLED: &str =
    "data.train=[{path: data/preference/labelled-validation.parquet, format: kto}]";
const COMPLETION: &str = "data.train_on=completion";
/// A window of the recipe holds most of them.
const DROP: &str = "data.overlong=drop";

/// One method for each way to what is written: adapter, guard, whole model, pairs of rows.
const USUAL: [&str; 4] = ["lora", "lora-guarded", "full", "dpo"];

/// One kill of each usual method, or as many of every method as `HEIRLOOM_KILLS` says, which is
/// what `scripts/kill-nine` does.
#[test]
fn killed_at_random_moments_every_method_resumes_to_the_same_bytes() {
    let kills = std::env::var("HEIRLOOM_KILLS").ok().and_then(|kills| kills.parse().ok());
    let methods = METHODS.into_iter().filter(|(name, _)| kills.is_some() || USUAL.contains(name));
    for (method, sets) in methods {
        kill_at_random(method, sets, kills.unwrap_or(1));
    }
}

fn kill_at_random(method: &str, sets: &[&str], kills: u32) {
    let place = Place::new();
    let output = |run: &str| {
        let file = match method.starts_with("full") {
            true => "model/model.safetensors",
            false => "adapter/adapter_model.safetensors",
        };
        sha256_of_file(&place.run(run).join(file)).unwrap()
    };
    let begun = Instant::now();
    let ran = place.train("undisturbed", sets).output().unwrap();
    assert!(ran.status.success(), "{}", stderr(&ran));
    let whole = begun.elapsed().as_micros() as u64;
    let expected = (output("undisturbed"), losses(&place.run("undisturbed")));
    let (mut state, mut caught, mut number) = (7u64, 0, 0);
    while caught < kills {
        number += 1;
        assert!(number <= 10 * kills, "{method}: only {caught} were caught");
        let run = format!("killed-{number}");
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = Duration::from_micros((state >> 33) % whole);
        let mut child = place.train(&run, sets).spawn().unwrap();
        sleep(moment);
        // SIGKILL: nothing of ours runs any more.
        child.kill().unwrap();
        if child.wait().unwrap().signal() != Some(9) {
            continue;
        }
        caught += 1;
        if !place.run(&run).join("eval/held-out.json").is_file() {
            let resume: &[&str] = if place.run(&run).is_dir() { &["--resume"] } else { &[] };
            let ran = place.train(&run, &[sets, resume].concat()).output().unwrap();
            assert!(ran.status.success(), "{method}, {moment:?}: {}", stderr(&ran));
        }
        assert_eq!((output(&run), losses(&place.run(&run))), expected, "{method}, {moment:?}");
        fs_err::remove_dir_all(place.run(&run)).unwrap();
    }
}

/// What `metrics.jsonl` says but times.
fn losses(run: &Path) -> Vec<String> {
    let text = fs_err::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut line: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap();
        line.retain(|name, _| !["seconds", "tokens_per_second"].contains(&name.as_str()));
        serde_json::to_string(&line).unwrap()
    };
    text.lines().map(timeless).collect()
}

#[test]
fn ctrl_c_leaves_a_run_that_resumes_to_the_same_bytes() {
    let place = Place::new();
    let undisturbed = place.finish("undisturbed", &[]);
    let mut child = place.train("stopped", &[]).spawn().unwrap();
    wait_until(&mut child, || place.steps("stopped") >= 3);
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("stopped by a signal after step") && said.contains("--resume"), "{said}");
    assert_eq!(place.finish("stopped", &["--resume"]), undisturbed);
}

/// A file-size limit is a disk that is full, without needing a disk: writing past it fails.
#[test]
fn a_full_disk_stops_the_run_with_nothing_half_written() {
    let place = Place::new();
    let mut limited = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 1500; exec \"$0\" \"$@\"";
    limited.current_dir(root()).arg("-c").arg(script).arg(heirloom()).arg("train");
    limited.arg(place.run("small.yaml")).arg("--run").arg(place.run("full"));
    // A checkpoint larger than everything that a run begins with.
    let large = ["--set", "adapter.lora.rank=32"];
    limited.args(large).env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", place.0.path());
    let output = limited.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("state.safetensors"), "{said}");
    let checkpoints = place.run("full").join("checkpoints");
    assert_eq!(fs_err::read_dir(checkpoints).unwrap().count(), 0, "no half checkpoint");
    assert!(!place.run("full").join("adapter").exists());
    let resumed = place.finish("full", &[&large[..], &["--resume"]].concat());
    assert_eq!(resumed, place.finish("undisturbed", &large));
}

/// A limit of address space is a machine with too little memory.
#[test]
fn a_step_that_runs_out_of_memory_says_what_would_fit_and_loses_nothing() {
    let place = Place::new();
    let mut limited = Command::new("sh");
    let script = "ulimit -v 2000000; exec \"$0\" \"$@\"";
    limited.current_dir(root()).arg("-c").arg(script).arg(heirloom()).arg("train");
    limited.arg(place.run("small.yaml")).arg("--run").arg(place.run("large"));
    let one = "train.tokens_per_step=65536";
    let rows = "data.train=[{path: data/catalogue/train-*.parquet, format: chat}]";
    let large = ["--set", one, "--set", rows, "--set", "train.micro_batch_tokens=65536"];
    limited.args(large).env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", place.0.path());
    // The plan would say no beforehand.
    limited.env("HEIRLOOM_MEMORY", "unlimited");
    let output = limited.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let words = ["step 1 ran out of memory in the ", "not enough memory for a tensor of "];
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    assert!(said.contains("`--set train.micro_batch_tokens="), "{said}");
    assert_eq!(place.steps("large"), 0);
}

/// Full training leaves a whole model folder that can be run as it is.
#[test]
fn a_fully_trained_run_generates() {
    let place = Place::new();
    let more = ["--set", "adapter=full", "--set", "train.max_steps=1"];
    let output = place.train("grown", &more).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let run = place.run("grown");
    let arguments =
        ["generate", run.to_str().unwrap(), "--prompt", "Repeat: 7", "--max-new-tokens", "2"];
    let answered = Command::new(heirloom()).current_dir(root()).args(arguments).output().unwrap();
    assert!(answered.status.success(), "{}", stderr(&answered));
}

#[test]
fn a_release_of_either_kind_verifies_and_generates() {
    let place = Place::new();
    place.finish("run", &[]);
    for (kind, payload) in
        [("adapter", "adapter_model.safetensors"), ("merged", "model.safetensors")]
    {
        let release = place.run(kind);
        let heirloom = |arguments: &[&str]| {
            let mut command = Command::new(heirloom());
            command.current_dir(root()).args(arguments).env("HEIRLOOM_HOME", place.0.path());
            command.output().unwrap()
        };
        let (run, target) = (place.run("run"), release.to_str().unwrap());
        let exported = heirloom(&["export", run.to_str().unwrap(), "--to", kind, "-o", target]);
        assert!(exported.status.success(), "{}", stderr(&exported));
        let verified = heirloom(&["verify", target]);
        assert!(verified.status.success(), "{}", stderr(&verified));
        let prompt =
            ["generate", target, "--prompt", "Say after me: Nora", "--max-new-tokens", "8"];
        let answered = heirloom(&prompt);
        assert!(answered.status.success(), "{}", stderr(&answered));

        // An existing folder stays as it is without `--force`.
        let before = sha256_of_file(&release.join(payload)).unwrap();
        let again = heirloom(&["export", run.to_str().unwrap(), "--to", kind, "-o", target]);
        assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
        assert_eq!(sha256_of_file(&release.join(payload)).unwrap(), before);

        registered(&place, &release, kind);
        heirloom::files::write_atomically(&release.join(payload), b"changed").unwrap();
        let changed = heirloom(&["verify", target]);
        assert_eq!(changed.status.code(), Some(1), "{}", stderr(&changed));
    }
}

/// The registry leads from the run to its release, by digest.
fn registered(place: &Place, release: &Path, kind: &str) {
    let entries = Registry::at(place.0.path()).read().unwrap();
    let run = entries.iter().find_map(|entry| match entry {
        Entry::Run(run) => Some(run),
        _ => None,
    });
    let run = run.unwrap();
    assert_eq!(run.run, sha256_of_file(&place.run("run").join("recipe.lock")).unwrap());
    let weights = sha256_of_file(&root().join("data/seedling/model.safetensors")).unwrap();
    assert_eq!(run.base, [weights]);
    let trained = entries.iter().find_map(|entry| match entry {
        Entry::Trained(trained) => Some(trained),
        _ => None,
    });
    assert_eq!(trained.unwrap().weights, [place.adapter("run")]);
    let released = entries.iter().rev().find_map(|entry| match entry {
        Entry::Release(release) => Some(release),
        _ => None,
    });
    assert_eq!(released, Some(&ReleaseEntry::of(release).unwrap()), "{kind}");
    assert_eq!(released.unwrap().run.as_ref(), Some(&run.run));
    assert_eq!(released.unwrap().base, run.base);
}
