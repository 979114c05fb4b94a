//! TensorBoard's event files: every number of every line as a scalar.
//!
//! A file is a sequence of TFRecords (length, masked CRC-32C of the length, bytes, masked
//! CRC-32C of the bytes), each an `Event` (`tensorflow/core/util/event.proto`,
//! `summary.proto`). The layout and the first event are those of `torch.utils.tensorboard`.
//!
//! A run that is resumed writes a new file of everything that `metrics.jsonl` still holds, and
//! removes the old ones: no number is in them twice. Times are those of `metrics.jsonl`, counted
//! from when the run began.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use fs_err as fs;
use jiff::Timestamp;

use super::line::{self, Line};
use super::wire::Message;
use super::{End, Event, Sink, StepMetrics, ValidationMetrics};
use crate::files;

/// What names of event files begin with; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// The version that the first event of a file names.
const VERSION: &str = "brain.Event:2";

/// Writes an event file.
#[derive(Debug)]
pub struct TensorBoard {
    file: fs::File,
    began: f64,
}

impl TensorBoard {
    /// A file in `folder` that begins with everything in `metrics`, the lines of a run that
    /// began at `began`.
    pub fn open(folder: &Path, metrics: &Path, began: Timestamp) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let old = event_files(folder)?;
        let name = |number: usize| format!("{PREFIX}{}.heirloom.{number}.0", began.as_second());
        let free = |path: &PathBuf| !old.contains(path);
        let path = (0..).map(|number| folder.join(name(number))).find(free).unwrap_or_default();
        let began = began.as_nanosecond() as f64 / 1e9;
        let lines = line::read(metrics, 0)?;
        files::write_atomically_with(&path, |file| {
            file.write_all(&record(&Message::default().double(1, began).text(3, VERSION)))?;
            lines.iter().try_for_each(|line| file.write_all(&record(&event(line, began))))
        })?;
        for old in old {
            fs::remove_file(old)?;
        }
        let file = fs::OpenOptions::new().append(true).open(&path)?;
        Ok(Self { file, began })
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        // In one write: a reader never sees half an event for long.
        self.file.write_all(&record(&event(line, self.began)))
    }
}

fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// `Event { wall_time = 1, step = 2, summary = 5 }` with
/// `Summary { value = 1 { tag = 1, simple_value = 2 } }`.
fn event(line: &Line, began: f64) -> Message {
    let mut summary = Message::default();
    for (name, value) in &line.values {
        let scalar = Message::default().text(1, name).float_in_oneof(2, *value as f32);
        summary = summary.message(1, &scalar);
    }
    Message::default().double(1, began + line.seconds).number(2, line.step).message(5, &summary)
}

fn record(event: &Message) -> Vec<u8> {
    let bytes = event.encoded();
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_crc(bytes).to_le_bytes());
    record
}

/// As `tensorflow/core/lib/hash/crc32c.h`: rotated and shifted, so that a checksum of bytes
/// that hold checksums is as good as any.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

impl Sink for TensorBoard {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        self.write(&Line::of(metrics)?)
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        self.write(&Line::of(metrics)?)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.write(&Line::of(event)?)
    }

    fn finish(&mut self, _: End) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::Jsonl;
    use super::super::tests::{step, validation};
    use super::*;

    /// Made by the `RecordWriter` of TensorBoard 2.21.0, which `torch.utils.tensorboard` uses.
    #[test]
    fn an_event_has_the_bytes_of_tensorboards_writer() {
        let line = Line { step: 3, seconds: 0.5, values: vec![("loss".to_owned(), 0.25)] };
        let bytes = record(&event(&line, 1_700_000_000.0));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "1a00000000000000129bd82d0900002040fc54d94110032a0d0a0b0a046c6f7373150000\
        803ebcf29b54";

    fn only_file(folder: &Path) -> PathBuf {
        let files = event_files(folder).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    #[test]
    fn a_resumed_run_has_one_file_with_the_bytes_of_an_undisturbed_one() {
        let place = tempfile::tempdir().unwrap();
        let (metrics, folder) = (place.path().join("metrics.jsonl"), place.path().join("events"));
        let began = Timestamp::from_second(1_700_000_000).unwrap();
        let run = |from: u64, to: u64| {
            let mut jsonl = Jsonl::open(&metrics, from).unwrap();
            let mut board = TensorBoard::open(&folder, &metrics, began).unwrap();
            for number in from + 1..=to {
                for sink in [&mut jsonl as &mut dyn Sink, &mut board] {
                    sink.step(&step(number)).unwrap();
                    sink.validation(&validation(number)).unwrap();
                }
            }
            jsonl.finish(End::Complete).unwrap();
            board.finish(End::Complete).unwrap();
            fs::read(only_file(&folder)).unwrap()
        };
        let undisturbed = run(0, 4);
        run(0, 3);
        assert_eq!(run(2, 4), undisturbed);
        assert_eq!(run(0, 4), undisturbed);
    }
}
