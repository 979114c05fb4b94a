//! A folder of its own for each test, with the bundled base and data at hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;
use tempfile::TempDir;

/// A recipe of which nothing is wrong, on the bundled data.
pub(crate) const RECIPE: &str = "\
heirloom: 1
name: small
base: { model: base, from_scratch: true }
adapter: full
data:
  purpose: [dpv:ServiceProvision]
  train: [{ path: data/train-*.parquet, format: chat }]
  validation: [{ path: data/validation.parquet, format: chat }]
  test: [{ name: catalogue, path: data/test.parquet, format: chat }]
  sequence_length: 512
train:
  epochs: 1
  tokens_per_step: 4096
  optimizer: { adamw: { lr: 1.0e-3 } }
  seed: 17
eval: { suites: [catalogue] }
";

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A folder that disappears with the test.
pub(crate) struct World {
    folder: TempDir,
    /// Where the registry lies: never that of whoever runs the tests.
    home: TempDir,
}

impl World {
    /// `base/` and `data/` as bundled (without the base's weights), and `recipe.yaml`.
    pub(crate) fn new() -> Self {
        let world = Self { folder: TempDir::new().unwrap(), home: TempDir::new().unwrap() };
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
        for (from, to) in [("seedling", "base"), ("catalogue", "data")] {
            fs::create_dir(world.path(to)).unwrap();
            for entry in fs::read_dir(bundled.join(from)).unwrap() {
                let path = entry.unwrap().path();
                // What describes the files would only disagree with those that tests change.
                if path.extension().is_some_and(|extension| extension == "json") && to == "data" {
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "safetensors") {
                    let name = path.file_name().unwrap();
                    fs::copy(&path, world.path(to).join(name)).unwrap();
                }
            }
        }
        world.write("recipe.yaml", RECIPE);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        heirloom::files::write_atomically(&path, content.as_ref()).unwrap();
    }

    /// Everything in the folder, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.folder.path()).unwrap();
                files.push(name.to_string_lossy().into_owned());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        files.sort();
        files
    }

    /// The program, in this folder, with a script as the engine that prints its job.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heirloom"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.env("HEIRLOOM_ENGINE", engine_script()).env("HEIRLOOM_HOME", self.home());
        // What tests run at the same time leave free is nothing to depend on.
        command.env("HEIRLOOM_MEMORY", "unlimited");
        command
    }

    pub(crate) fn heirloom(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that must be refused with exactly these words, and write nothing.
    pub(crate) fn refuses(&self, arguments: &[&str], words: &str) {
        let before = self.files();
        let ran = self.heirloom(arguments);
        assert_eq!(ran.stderr, words);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
        assert_eq!(self.files(), before, "something was written");
    }
}

/// A program that prints its arguments, one a line.
fn engine_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/engine.sh")
}
