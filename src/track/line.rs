//! A line of `metrics.jsonl` as numbers with names: what every tracker gets.
//!
//! Owns that all trackers hold the same: each number of a line goes to each of them under its
//! own name, and nothing else does. What is no number has no place in a line but the word of an
//! event, which becomes the number of such events at that step: 1.

use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;
use serde_json::Value;

/// What a line says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// Optimiser steps finished.
    pub step: u64,
    /// Seconds since the run began.
    pub seconds: f64,
    /// Everything that it says of them, by name, in its order; `seconds` too, `step` not.
    pub values: Vec<(String, f64)>,
}

impl Line {
    /// Of metrics that would be written as a line.
    pub fn of(metrics: &impl Serialize) -> io::Result<Self> {
        Self::from_json(&serde_json::to_value(metrics)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "metrics without a step"))
    }

    fn from_json(value: &Value) -> Option<Self> {
        let members = value.as_object()?;
        let mut line = Self { step: members.get("step")?.as_u64()?, ..Self::default() };
        for (name, value) in members {
            match value {
                Value::Number(number) if name != "step" => {
                    line.values.push((name.clone(), number.as_f64()?));
                }
                // What is no number or infinite has no number in JSON.
                Value::Null => line.values.push((name.clone(), f64::NAN)),
                Value::String(word) if name == "event" => {
                    line.values.push((format!("event/{word}"), 1.0));
                }
                _ => {}
            }
        }
        line.seconds = members.get("seconds").and_then(Value::as_f64).unwrap_or_default();
        Some(line)
    }
}

/// A number of JSON; for what JSON has none for, the word that Weights & Biases and Protocol
/// Buffers in JSON have.
pub(super) fn in_json(value: f64) -> Value {
    if value.is_finite() {
        value.into()
    } else if value.is_nan() {
        "NaN".into()
    } else {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.into()
    }
}

/// The complete lines of a file, from line `skip` on; none where there is no file.
pub fn read(path: &Path, skip: usize) -> io::Result<Vec<Line>> {
    let mut tail = Tail::new(path);
    tail.restart(skip)?;
    tail.next(usize::MAX)
}

/// Reads a file that grows. A last line that is still being written is left for the next time.
#[derive(Clone, Debug)]
pub struct Tail {
    path: PathBuf,
    /// Bytes and lines that are read.
    offset: u64,
    number: usize,
}

impl Tail {
    /// From the beginning.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, number: 0 }
    }

    /// Reads the first `lines` lines, or as many as there are; the next come after them.
    pub fn restart(&mut self, lines: usize) -> io::Result<Vec<Line>> {
        (self.offset, self.number) = (0, 0);
        self.next(lines)
    }

    /// At most so many further lines; none where there is no file.
    pub fn next(&mut self, most: usize) -> io::Result<Vec<Line>> {
        let mut file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::new(file);
        let (mut lines, mut text) = (Vec::new(), Vec::new());
        while lines.len() < most {
            text.clear();
            let bytes = reader.read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                break;
            }
            self.offset += bytes as u64;
            self.number += 1;
            let line = serde_json::from_slice(&text).ok().as_ref().and_then(Line::from_json);
            lines.push(line.ok_or_else(|| {
                let (number, path) = (self.number, self.path.display());
                let message = format!("line {number} of `{path}` is no metrics");
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{step, validation};
    use super::*;

    #[test]
    fn a_line_has_every_number_of_the_metrics_in_their_order() {
        let line = Line::of(&step(2)).unwrap();
        assert_eq!((line.step, line.seconds), (2, 2.0));
        let names: Vec<&str> = line.values.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "epoch",
            "loss",
            "lr",
            "grad_norm",
            "tokens",
            "trained_tokens",
            "tokens_per_second",
            "seconds",
        ];
        assert_eq!(names, expected);
        assert_eq!(line.values[1], ("loss".to_owned(), 0.5));
    }

    #[test]
    fn complete_lines_are_read_and_the_rest_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(read(&path, 0).unwrap(), []);
        let mut text = serde_json::to_string(&step(1)).unwrap() + "\n";
        text += &(serde_json::to_string(&validation(1)).unwrap() + "\n{\"step\": 2");
        fs_err::write(&path, &text).unwrap();
        let lines = read(&path, 0).unwrap();
        assert_eq!(lines, [Line::of(&step(1)).unwrap(), Line::of(&validation(1)).unwrap()]);
        assert_eq!(read(&path, 1).unwrap(), lines[1..]);
        assert_eq!(read(&path, 9).unwrap(), []);
    }

    #[test]
    fn text_never_becomes_a_value() {
        let value = serde_json::json!({
            "step": 3, "event": "skip", "cause": "loss is NaN", "loss": null, "seconds": 1.5,
        });
        let line = Line::from_json(&value).unwrap();
        let names: Vec<&str> = line.values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["event/skip", "loss", "seconds"]);
        assert!(line.values[1].1.is_nan());
    }

    #[test]
    fn a_file_that_is_not_metrics_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs_err::write(&path, "{\"step\": 1}\n[]\n").unwrap();
        assert!(read(&path, 0).unwrap_err().to_string().contains("line 2"));
    }
}
