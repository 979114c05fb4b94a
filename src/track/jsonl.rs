//! `metrics.jsonl`: one JSON object a line, in the order in which things happened.
//!
//! Owns appending, and cutting the file back to the step from which a run goes on, so that
//! the file of an interrupted run tells the same story as that of an undisturbed one.

use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{End, Event, Sink, StepMetrics, ValidationMetrics};

/// Appends metrics to a file.
#[derive(Debug)]
pub struct Jsonl {
    file: fs::File,
}

impl Jsonl {
    /// Opens or creates `path` and removes everything after `resume_step`, and a last line
    /// that was only half written. A run that begins anew resumes from step 0.
    pub fn open(path: &Path, resume_step: u64) -> io::Result<Self> {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let keep = if resume_step == 0 { 0 } else { end_of_step(&mut file, path, resume_step)? };
        file.set_len(keep)?;
        file.seek(SeekFrom::Start(keep))?;
        Ok(Self { file })
    }

    /// One line in one write: a reader never sees two halves of different lines.
    fn append(&mut self, metrics: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(metrics)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// Bytes up to the end of the last complete line of `step` or before.
fn end_of_step(file: &mut fs::File, path: &Path, step: u64) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let mut reader = BufReader::new(file);
    let (mut end, mut line, mut number) = (0, Vec::new(), 0);
    loop {
        line.clear();
        number += 1;
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(end);
        }
        let found: Line = serde_json::from_slice(&line).map_err(|_| {
            let message = format!("line {number} of `{}` has no `step`", path.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        if found.step > step {
            return Ok(end);
        }
        end += read as u64;
    }
}

impl Sink for Jsonl {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        self.append(metrics)
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        self.append(metrics)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.append(event)
    }

    fn finish(&mut self, _: End) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{step, validation};
    use super::*;

    /// A file with steps 1 to 4 and a validation after each second.
    fn written(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("metrics.jsonl");
        let mut jsonl = Jsonl::open(&path, 0).unwrap();
        for number in 1..=4 {
            jsonl.step(&step(number)).unwrap();
            if number % 2 == 0 {
                jsonl.validation(&validation(number)).unwrap();
            }
        }
        jsonl.finish(End::Complete).unwrap();
        path
    }

    fn steps(path: &Path) -> Vec<(u64, bool)> {
        let text = fs::read_to_string(path).unwrap();
        let objects = text.lines().map(|line| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            (object["step"].as_u64().unwrap(), object.get("validation_loss").is_some())
        });
        objects.collect()
    }

    #[test]
    fn every_event_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder);
        let all = [(1, false), (2, false), (2, true), (3, false), (4, false), (4, true)];
        assert_eq!(steps(&path), all);
        let text = fs::read_to_string(&path).unwrap();
        let first: StepMetrics = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first, step(1));
    }

    #[test]
    fn resuming_tells_the_story_of_an_undisturbed_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder);
        let undisturbed = fs::read(&path).unwrap();
        // Killed at any byte after the checkpoint of step 2, and resumed from it.
        let checkpoint = end_of_step(&mut fs::File::open(&path).unwrap(), &path, 2).unwrap();
        for length in checkpoint as usize..=undisturbed.len() {
            fs_err::write(&path, &undisturbed[..length]).unwrap();
            let mut jsonl = Jsonl::open(&path, 2).unwrap();
            jsonl.step(&step(3)).unwrap();
            jsonl.step(&step(4)).unwrap();
            jsonl.validation(&validation(4)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), undisturbed, "{length}");
        }
    }

    #[test]
    fn a_new_run_starts_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder);
        Jsonl::open(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_file_that_is_not_metrics_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs_err::write(&path, b"{\"step\": 1}\nhello\n").unwrap();
        let error = Jsonl::open(&path, 5).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"{\"step\": 1}\nhello\n");
    }
}
