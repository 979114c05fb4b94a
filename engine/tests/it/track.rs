//! One training, every tracker: all hold the same numbers. And a run folder has one writer.

#[path = "../../../tests/it/track/server.rs"]
#[allow(dead_code, reason = "the tests of `heirloom` use more of it")]
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use heirloom::track::line;
use server::Server;
use tempfile::TempDir;

use crate::runs::{heirloom, root};

/// A number by its name and step.
type Numbers = BTreeMap<(String, u64), f64>;

struct Place(TempDir);

impl Place {
    fn new(more: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let recipe = format!(
            "heirloom: 1\nname: tracked\nbase: {{ model: data/seedling }}\n\
             adapter: {{ lora: {{ rank: 4, alpha: 8, targets: [q_proj] }} }}\n\
             data:\n  purpose: [dpv:ServiceProvision]\n  sequence_length: 256\n  \
             train: [{{ path: data/catalogue/validation.parquet, format: chat }}]\n  \
             validation_split: 0.1\n\
             train: {{ epochs: 1, max_steps: 6, tokens_per_step: 512, seed: 3, validate_every: 3,\n  \
             optimizer: {{ adamw: {{ lr: 1.0e-3 }} }} }}\n{more}"
        );
        heirloom::files::write_atomically(&place.0.path().join("r.yaml"), recipe.as_bytes())
            .unwrap();
        place
    }

    fn run(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn train(&self, more: &[&str]) -> Command {
        let mut command = Command::new(heirloom());
        command.current_dir(root()).arg("train").arg(self.0.path().join("r.yaml"));
        command.arg("--run").arg(self.run()).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("OMP_NUM_THREADS", "1").env("HEIRLOOM_HOME", self.0.path());
        command
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fields of a message of Protocol Buffers: number, and bytes or the bits of a number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        found.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

/// Every scalar of an event file.
fn scalars(folder: &Path) -> Numbers {
    let file = fs_err::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let bytes = fs_err::read(file).unwrap();
    let (mut rest, mut numbers) = (bytes.as_slice(), Numbers::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = fields(&rest[12..12 + length]);
        rest = &rest[16 + length..];
        let field = |number| event.iter().find(|(found, _)| *found == number);
        let (Some((_, step)), Some((_, summary))) = (field(2), field(5)) else { continue };
        let step = u64::from_le_bytes(step.as_slice().try_into().unwrap());
        for (_, value) in fields(summary) {
            let value = fields(&value);
            let name = String::from_utf8(value[0].1.clone()).unwrap();
            let number = f32::from_le_bytes(value[1].1.as_slice().try_into().unwrap());
            numbers.insert((name, step), f64::from(number));
        }
    }
    numbers
}

#[test]
fn every_tracker_holds_the_numbers_of_the_one_training() {
    let server = Server::start();
    let place = Place::new(&format!(
        "track: [tensorboard, {{ wandb: {{ mode: online }} }}, {{ mlflow: {{ tracking_uri: \
         \"{}\" }} }}]\n",
        server.address
    ));
    let mut command = place.train(&[]);
    command.env("WANDB_API_KEY", "key").env("WANDB_BASE_URL", &server.address);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));

    let lines = line::read(&place.run().join("metrics.jsonl"), 0).unwrap();
    let mut expected = Numbers::new();
    for line in &lines {
        let values = line.values.iter();
        expected.extend(values.map(|(name, value)| ((name.clone(), line.step), *value)));
    }
    let steps = expected.keys().filter(|(name, _)| name == "loss").count();
    let validations = expected.keys().filter(|(name, _)| name == "validation_loss").count();
    assert_eq!((steps, validations), (6, 2));

    let rounded = expected.iter().map(|(key, value)| (key.clone(), f64::from(*value as f32)));
    assert_eq!(scalars(&place.run().join("tensorboard")), rounded.collect::<Numbers>());

    let mut wandb = Numbers::new();
    for row in server.wandb_rows() {
        let row = row.as_object().unwrap();
        let step = row["step"].as_u64().unwrap();
        let own = |name: &str| name.starts_with('_') || name == "step";
        let values = row.iter().filter(|(name, _)| !own(name));
        wandb.extend(values.map(|(name, value)| ((name.clone(), step), value.as_f64().unwrap())));
    }
    assert_eq!(wandb, expected);

    let metrics = server.mlflow_metrics().into_iter();
    let mlflow = metrics.map(|(name, step, _, value)| ((name, step), value.as_f64().unwrap()));
    assert_eq!(mlflow.collect::<Numbers>(), expected);

    let said = stderr(&output);
    for words in ["q_proj.lora_A.weight", "parameters are trained", "loss by step", "6 steps, "] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_second_trainer_on_a_run_folder_is_refused_and_the_first_is_not_disturbed() {
    let place = Place::new("");
    let mut first = place.train(&[]).spawn().unwrap();
    let begun = Instant::now();
    while !place.run().join("trainer.lock").is_file() {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing happened for two minutes");
        sleep(Duration::from_millis(1));
    }
    let second = place.train(&["--resume"]).output().unwrap();
    let first_ended = first.try_wait().unwrap().is_some();
    let said = stderr(&second);
    if !first_ended {
        assert_eq!(second.status.code(), Some(1), "{said}");
        let process = format!("process {}", first.id());
        assert!(said.contains("another program writes into the run"), "{said}");
        assert!(said.contains(&process), "{said}");
    }
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{}", stderr(&first));
    let lines = line::read(&place.run().join("metrics.jsonl"), 0).unwrap();
    assert_eq!(lines.len(), 8);
}
