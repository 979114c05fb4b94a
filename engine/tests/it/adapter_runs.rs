//! Whole runs with kinds of adapters that start or compute in their own way: what is interrupted
//! goes on to the same bytes, is read by other commands, and can be trained further.

use std::path::{Path, PathBuf};
use std::process::Command;

use heirloom::base::Checkpoint;
use heirloom::files::sha256_of_file;
use tempfile::TempDir;

use crate::runs::{heirloom, root};

/// Everything at once: a start that is taken out, magnitudes, patterns, a second kind of scaling,
/// and dropout, which then takes a way of its own.
const LORA: &str = "lora: { rank: 4, alpha: 8, dropout: 0.1, use_dora: true, use_rslora: true, \
                    init_lora_weights: pissa, targets: [q_proj, v_proj, down_proj], \
                    rank_pattern: { down_proj: 2 }, layers_to_transform: [0, 1] }";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `heirloom` from the repository, and gives what it says.
    fn heirloom(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).args(words);
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.0.path());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn train(&self, run: &str, adapter: &str, more: &[&str]) -> Result<String, String> {
        let recipe = format!(
            "heirloom: 1\nname: small\nbase: {{ model: data/seedling }}\nadapter: {{ {adapter} }}\n\
             data:\n  purpose: [dpv:ServiceProvision]\n  train:\n    - {{ path: \
             data/catalogue/validation.parquet, format: chat }}\n  sequence_length: 256\n\
             train: {{ epochs: 1, max_steps: 4, tokens_per_step: 512, seed: 3, \
             checkpoint_every: 2, optimizer: {{ adamw: {{ lr: 1.0e-3 }} }} }}\n"
        );
        let path = self.0.path().join("small.yaml");
        heirloom::files::write_atomically(&path, recipe.as_bytes()).unwrap();
        let (path, run) = (path.display().to_string(), self.run(run).display().to_string());
        let words = ["train", &path, "--run", &run];
        self.heirloom(&[words.as_slice(), more].concat())
    }

    fn digest(&self, run: &str) -> String {
        sha256_of_file(&self.run(run).join("adapter/adapter_model.safetensors")).unwrap()
    }
}

/// Takes away what came after the first checkpoint.
fn back_to_the_first_checkpoint(run: &Path) {
    for folder in ["adapter", "checkpoints/step-000004"] {
        fs_err::remove_dir_all(run.join(folder)).unwrap();
    }
    fs_err::remove_file(run.join("summary.json")).unwrap();
}

#[test]
fn a_start_that_is_taken_out_is_the_same_after_resuming_and_can_be_used_and_trained_further() {
    let place = Place::new();
    place.train("run", LORA, &[]).unwrap();
    let whole = place.digest("run");
    back_to_the_first_checkpoint(&place.run("run"));
    place.train("run", LORA, &["--resume"]).unwrap();
    assert_eq!(place.digest("run"), whole);

    let run = place.run("run").display().to_string();
    let merged = place.run("merged").display().to_string();
    place.heirloom(&["export", &run, "--to", "merged", "-o", &merged]).unwrap();
    let text = |target: &str| {
        let words = ["generate", target, "--prompt", "What is it?", "--max-new-tokens", "8"];
        place.heirloom(&words).unwrap()
    };
    assert_eq!(text(&run), text(&merged));

    let from = format!("from: \"{run}/adapter\"");
    place.train("further", &from, &[]).unwrap();
    assert_ne!(place.digest("further"), whole);
    let further = place.run("further");
    let recipe = fs_err::read_to_string(further.join("recipe.yaml")).unwrap();
    // Twice the rank, as the update is one with what was taken out.
    assert!(recipe.contains("rank: 8") && recipe.contains("use_dora: true"), "{recipe}");
    let lock = fs_err::read_to_string(further.join("recipe.lock")).unwrap();
    assert!(lock.contains(&whole), "the adapter that it went on from is not locked");
    let digest = place.digest("further");
    back_to_the_first_checkpoint(&further);
    place.train("further", &from, &["--resume"]).unwrap();
    assert_eq!(place.digest("further"), digest);
}

#[test]
fn an_adapter_of_another_shape_and_a_folder_without_one_are_refused_at_their_line() {
    let place = Place::new();
    let folder = root().join("engine/tests/fixtures/lora-qv/adapter");
    let from = format!("from: \"{}\"", folder.display());
    let error = place.train("run", &from, &[]).unwrap_err();
    assert!(
        error.contains("small.yaml:4:") && error.contains("has no update of rank 4"),
        "{error}"
    );
    let error = place.train("run", "from: nowhere", &[]).unwrap_err();
    assert!(error.contains("small.yaml:4:") && error.contains("adapter_config.json"), "{error}");
    let words = "lora: { rank: 2, alpha: 2, exclude_modules: [qproj], bias: all, \
                 layers_to_transform: [99], rank_pattern: { up_prj: 2 } }";
    let error = place.train("run", words, &[]).unwrap_err();
    for what in ["`qproj`", "did you mean `q_proj`?", "is 99", "did you mean `up_proj`?", "biases"]
    {
        assert!(error.contains(what), "{what}: {error}");
    }
    assert!(!place.run("run").exists());
}

/// Only what is named moves, and the model is whole.
#[test]
fn a_model_trained_by_name_has_the_other_weights_of_its_base() {
    let place = Place::new();
    let words = "unfrozen_parameters: [layers.1.mlp.down_proj, layers.0.self_attn.q_proj]";
    place.train("run", words, &[]).unwrap();
    let path = place.run("run").join("model/model.safetensors");
    let whole = sha256_of_file(&path).unwrap();
    let trained = Checkpoint::open_file(&path).unwrap();
    let base = Checkpoint::open_file(&root().join("data/seedling/model.safetensors")).unwrap();
    let names: Vec<&str> = base.names().collect();
    assert_eq!(names, trained.names().collect::<Vec<_>>());
    let bytes = |checkpoint: &Checkpoint, name: &str| checkpoint.get(name).unwrap().bytes.to_vec();
    let moved = names.into_iter().filter(|name| bytes(&base, name) != bytes(&trained, name));
    let moved: Vec<&str> = moved.collect();
    let expected = ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"];
    assert_eq!(moved, expected.map(|name| format!("model.{name}.weight")));

    for folder in ["model", "checkpoints/step-000004"] {
        fs_err::remove_dir_all(place.run("run").join(folder)).unwrap();
    }
    fs_err::remove_file(place.run("run").join("summary.json")).unwrap();
    place.train("run", words, &["--resume"]).unwrap();
    assert_eq!(sha256_of_file(&path).unwrap(), whole);
    let error = place.train("other", "unfrozen_parameters: [layer.1]", &[]).unwrap_err();
    assert!(error.contains("small.yaml:4:") && error.contains("no weight of the base"), "{error}");
}
