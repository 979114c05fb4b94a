//! Distillation by the real programs on the bundled model and data: a teacher that is asked, one
//! that was asked before, and those that cannot teach.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fs_err as fs;
use heirloom::dataset::logits::Header;
use serde_json::Value;
use tempfile::TempDir;

use crate::runs::{heirloom, root};

/// A student that is not its teacher, because it learns from the rows, too.
const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: data/seedling }
adapter:
  lora: { rank: 4, alpha: 8, targets: [q_proj, v_proj] }
objective:
  distillation:
    teacher: { model: data/seedling }
    beta: 0.5
    temperature: 2.0
    kd_ratio: 0.5
data:
  purpose: [dpv:ServiceProvision]
  train:
    - { path: data/catalogue/validation.parquet, format: chat }
  validation_split: 0.1
  sequence_length: 256
train:
  epochs: 1
  max_steps: 2
  tokens_per_step: 1024
  optimizer: { adamw: { lr: 1.0e-2 } }
  seed: 3
";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("small.yaml"), RECIPE).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What it says on stderr, and whether it went well.
    fn heirloom(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).args(arguments).stdin(Stdio::null());
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.0.path());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn recipe(&self, command: &str, more: &[&str]) -> (bool, String) {
        let recipe = self.path("small.yaml");
        self.heirloom(&[&[command, recipe.to_str().unwrap()], more].concat())
    }

    /// Stores what the teacher says.
    fn say(&self, name: &str, more: &[&str]) -> PathBuf {
        let path = self.path(name);
        let (good, said) = self.recipe("logits", &[&["-o", path.to_str().unwrap()], more].concat());
        assert!(good, "{said}");
        path
    }

    /// Trains into a folder; its steps and validations.
    fn train(&self, run: &str, more: &[&str]) -> Vec<Value> {
        let folder = self.path(run);
        let (good, said) =
            self.recipe("train", &[&["--run", folder.to_str().unwrap()], more].concat());
        assert!(good, "{said}");
        let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The id of a row that the recipe uses.
    fn a_row(&self) -> String {
        let recipe = self.path("small.yaml");
        let mut command = Command::new(heirloom());
        command.current_dir(root()).args(["data", "show", recipe.to_str().unwrap()]);
        let shown = command.args(["--random", "1", "--format", "json"]).output().unwrap();
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["rows"][0]["record_id"].as_str().unwrap().to_owned()
    }

    /// Why `check` refuses the recipe.
    fn refusal(&self, more: &[&str]) -> String {
        let (good, said) = self.recipe("check", more);
        assert!(!good, "{said}");
        said
    }
}

fn set_logits(path: &Path) -> String {
    format!("objective.distillation.logits={}", path.display())
}

fn numbers(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line[key].as_f64()).collect()
}

fn furthest(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    let apart = one.iter().zip(other).map(|(one, other)| (one / other - 1.0).abs());
    apart.fold(0.0, f64::max)
}

#[test]
fn what_is_stored_teaches_what_the_teacher_does() {
    let place = Place::new();
    // All tokens but one: the rest is one token, and the divergence is the whole.
    let all = set_logits(&place.say("all.parquet", &["--top-k", "1023"]));
    // The same rows in other windows and micro-batches find what was said to them, too.
    let other = ["--set", "data.packing=none", "--set", "train.micro_batch_tokens=256"];
    for (name, more) in [("packed", &[][..]), ("alone", &other)] {
        let live = place.train(&format!("live-{name}"), more);
        let stored = place.train(name, &[&["--set", &all], more].concat());
        assert_eq!(numbers(&live, "loss").len(), 2);
        for key in ["loss", "validation_loss", "grad_norm"] {
            let apart = furthest(&numbers(&stored, key), &numbers(&live, key));
            assert!(apart < 1e-4, "{name} {key}: {apart:e}");
        }
    }
    let few = place.say("few.parquet", &["--top-k", "4"]);
    place.train("few", &["--set", &set_logits(&few), "--set", "train.max_steps=1"]);
    let header = Header::read(&few).unwrap();
    assert_eq!((header.top_k, header.vocabulary, header.temperature), (4, 1024, 2.0));
    assert_eq!(header.teacher.licence.hub, "apache-2.0");
    assert!(header.teacher.files.iter().any(|file| file.path.ends_with("model.safetensors")));
    // Only its owner reads it, and it is the same file again.
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&few).unwrap().permissions());
    assert_eq!(mode & 0o077, 0);
    let again = place.say("again.parquet", &["--top-k", "4"]);
    assert!(fs::read(&few).unwrap() == fs::read(&again).unwrap());
    let lock: Value =
        serde_json::from_slice(&fs::read(place.path("few/recipe.lock")).unwrap()).unwrap();
    assert_eq!(lock["teacher"]["name"], "seedling");
    assert_eq!(lock["teacher"]["logits"]["path"], few.to_str().unwrap());
}

#[test]
fn what_was_said_to_something_else_is_refused() {
    let place = Place::new();
    let said = set_logits(&place.say("said.parquet", &["--top-k", "2"]));
    let (good, problem) = place.recipe("check", &["--set", &said]);
    assert!(good, "{problem}");
    let grown = place.path("grown");
    copy_model(&grown);
    fs::write(grown.join("chat_template.jinja"), "{{ messages[0].content }}{{ eos_token }}\n")
        .unwrap();
    let weights = place.path("weights");
    copy_model(&weights);
    let mut bytes = fs::read(weights.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(weights.join("model.safetensors"), bytes).unwrap();
    let teacher = format!("objective.distillation.teacher.model={}", weights.display());
    let template = format!("base.chat_template={}", grown.join("chat_template.jinja").display());
    for (set, expected) in [
        ("objective.distillation.temperature=1.0", "was made at `temperature: 2`"),
        ("data.sequence_length=512", "was made with `data.sequence_length: 256`"),
        ("data.train_on=all", "was made with `data.train_on: assistant`"),
        (
            "data.train=[{path: data/catalogue/train-00000.parquet, format: chat}]",
            "was made of other rows than",
        ),
        (teacher.as_str(), "was said by another model than"),
        (template.as_str(), "was made with another `chat_template.jinja`"),
    ] {
        let problem = place.refusal(&["--set", &said, "--set", set]);
        assert!(problem.contains(expected), "{set}: {problem}");
    }
}

#[test]
fn a_teacher_with_other_tokens_is_refused() {
    let place = Place::new();
    let other = place.path("other");
    copy_model(&other);
    let path = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (one, two) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    vocabulary.insert("a".to_owned(), two);
    vocabulary.insert("b".to_owned(), one.clone());
    fs::write(&path, tokenizer.to_string()).unwrap();
    let set = format!("objective.distillation.teacher.model={}", other.display());
    let problem = place.refusal(&["--set", &set]);
    assert!(problem.contains(&format!("to which {one} is `b`, and to the base `a`")), "{problem}");
    assert!(problem.contains("name a teacher of the same family"), "{problem}");
}

/// What a teacher said to a row is of no use once the row is withdrawn.
#[test]
fn a_row_that_is_withdrawn_teaches_nothing_though_its_logits_are_stored() {
    let place = Place::new();
    let path = place.say("said.parquet", &["--top-k", "2"]);
    let whole =
        place.train("whole", &["--set", &set_logits(&path), "--set", "train.max_steps=null"]);
    let ledger = place.path("ledger.jsonl");
    let record = place.a_row();
    let (good, said) = place.heirloom(&[
        "data",
        "withdraw",
        "--ledger",
        ledger.to_str().unwrap(),
        "--record",
        &record,
    ]);
    assert!(good, "{said}");
    let ledgers = format!("data.consent.ledgers=[{}]", ledger.display());
    let less = place.train(
        "less",
        &["--set", &set_logits(&path), "--set", "train.max_steps=null", "--set", &ledgers],
    );
    let tokens = |lines: &[Value]| numbers(lines, "trained_tokens").iter().sum::<f64>();
    assert!(tokens(&less) < tokens(&whole), "{} {}", tokens(&less), tokens(&whole));
}

#[test]
fn logits_need_a_teacher_and_fewer_tokens_than_there_are() {
    let place = Place::new();
    let to = place.path("said.parquet");
    let to = to.to_str().unwrap();
    let (good, said) = place.recipe("logits", &["-o", to, "--set", "objective=supervised"]);
    assert!(!good && said.contains("has no teacher"), "{said}");
    let (good, said) = place.recipe("logits", &["-o", to, "--top-k", "1024"]);
    assert!(!good && said.contains("leaves none of 1024 tokens"), "{said}");
    assert!(!Path::new(to).exists(), "nothing is half-written");
}

#[test]
fn logits_never_replace_a_file_of_another_kind() {
    let place = Place::new();
    for (name, bytes) in [("rows.parquet", &b"PAR1 rows"[..]), ("mine.yaml", b"heirloom: 1\n")] {
        let path = place.path(name);
        fs::write(&path, bytes).unwrap();
        for more in [&[][..], &["--force"]] {
            let (good, said) =
                place.recipe("logits", &[&["-o", path.to_str().unwrap()], more].concat());
            assert!(!good && said.contains("does not hold what a teacher said"), "{said}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

fn copy_model(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(root().join("data/seedling")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
