//! Files for `wandb sync`.
//!
//! `offline-run-TIME-ID/run-ID.wandb` holds records of Protocol Buffers
//! (`wandb/proto/wandb_internal.proto`) in a log of LevelDB's format: a header, then blocks of
//! 32 KiB with frames that carry a checksum (`core/pkg/leveldb`; the checksum is the plain
//! CRC-32 of IEEE, where LevelDB masks CRC-32C). Read from the sources of wandb 0.31.0, and
//! checked with it (`scripts/interop.d/track.py`).
//!
//! Like an event file of TensorBoard, the file of a resumed run is made anew of
//! `metrics.jsonl`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use fs_err as fs;
use serde_json::Value;

use super::super::line::{self, Line};
use super::super::wire::Message;
use super::super::{End, Event, Sink, StepMetrics, ValidationMetrics};
use super::{Latest, RunInfo};
use crate::files;

/// `:W&B`, the number 0xBEE1, and version 0.
const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];

/// Frames do not cross the ends of blocks, which are counted from the beginning of the file.
const BLOCK: usize = 32 * 1024;

/// Checksum, length and kind of a frame.
const FRAME_HEADER: usize = 7;

/// Writes the file of a run.
#[derive(Debug)]
pub struct Offline {
    info: RunInfo,
    file: fs::File,
    log: Log,
    /// Lines so far.
    lines: usize,
    latest: Latest,
    seconds: f64,
}

impl Offline {
    /// A file below `folder` that begins with everything in `metrics`.
    pub fn open(folder: &Path, metrics: &Path, info: RunInfo) -> io::Result<Self> {
        let path = path(folder, &info);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let lines = line::read(metrics, 0)?;
        let (mut log, mut bytes) = (Log::default(), HEADER.to_vec());
        bytes.extend(log.record(&run(&info)));
        bytes.extend(log.record(&axis()));
        let (mut latest, mut seconds) = (Latest::default(), 0.0);
        for (number, line) in lines.iter().enumerate() {
            let row = info.row(number, line);
            bytes.extend(log.record(&history(&row)));
            latest.take(&row);
            seconds = line.seconds;
        }
        files::write_atomically(&path, &bytes)?;
        let file = fs::OpenOptions::new().append(true).open(&path)?;
        Ok(Self { info, file, log, lines: lines.len(), latest, seconds })
    }

    /// `run.log` of the client.
    fn log(&mut self, line: &Line) -> io::Result<()> {
        let row = self.info.row(self.lines, line);
        self.lines += 1;
        self.latest.take(&row);
        self.seconds = line.seconds;
        let frames = self.log.record(&history(&row));
        self.file.write_all(&frames)
    }
}

/// Where the file of a run lies, by the name that `wandb sync` looks for.
pub fn path(folder: &Path, info: &RunInfo) -> PathBuf {
    let began = info.began.strftime("%Y%m%d_%H%M%S");
    folder.join(format!("offline-run-{began}-{}", info.id)).join(format!("run-{}.wandb", info.id))
}

impl Sink for Offline {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        self.log(&Line::of(metrics)?)
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        self.log(&Line::of(metrics)?)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.log(&Line::of(event)?)
    }

    fn finish(&mut self, end: End) -> io::Result<()> {
        // What syncs does not make a summary of the rows by itself.
        let mut summary = Message::default();
        for (name, value) in &self.latest.0 {
            summary = summary.message(1, &item(name, value));
        }
        let mut frames = self.log.record(&Message::default().message(3, &summary));
        let exit = Message::default().number(1, end.code()).number(2, self.seconds as u64);
        frames.extend(self.log.record(&Message::default().message(18, &exit)));
        self.file.write_all(&frames)?;
        self.file.sync_all()
    }
}

/// `Record.run`: `RunRecord { run_id, entity, project, config, run_group, display_name, tags,
/// start_time }`.
fn run(info: &RunInfo) -> Message {
    let mut config = Message::default();
    for (name, value) in &info.config {
        config = config.message(1, &item(name, value));
    }
    let settings = &info.settings;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut run = Message::default()
        .text(1, &info.id)
        .text(2, &text(&settings.entity))
        .text(3, &settings.project)
        .message(4, &config)
        .text(6, &text(&settings.group))
        .text(8, &info.name);
    for tag in &settings.tags {
        run = run.text(10, tag);
    }
    let seconds = u64::try_from(info.began.as_second()).unwrap_or_default();
    let time = Message::default().number(1, seconds);
    Message::default().message(17, &run.message(17, &time))
}

/// `Record.metric`: everything is drawn over `step`.
fn axis() -> Message {
    let metric = Message::default().text(2, "*").text(4, "step");
    Message::default().message(12, &metric)
}

/// `Record.history`.
fn history(row: &[(String, Value)]) -> Message {
    let mut history = Message::default();
    for (name, value) in row {
        history = history.message(1, &item(name, value));
    }
    Message::default().message(2, &history)
}

/// `HistoryItem`, `SummaryItem` or `ConfigItem { key = 1, value_json = 16 }`.
fn item(name: &str, value: &Value) -> Message {
    Message::default().text(1, name).text(16, &value.to_string())
}

/// Where the log stands.
#[derive(Debug)]
struct Log {
    /// Bytes of the current block that are written.
    filled: usize,
    /// Records so far.
    records: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self { filled: HEADER.len(), records: 0 }
    }
}

impl Log {
    /// The frames of a record, which gets its number.
    fn record(&mut self, record: &Message) -> Vec<u8> {
        self.records += 1;
        let number = Message::default().number(1, self.records);
        let numbered = [number.encoded(), record.encoded()].concat();
        let (mut frames, mut rest, mut first) = (Vec::new(), numbered.as_slice(), true);
        loop {
            if BLOCK - self.filled < FRAME_HEADER {
                frames.resize(frames.len() + BLOCK - self.filled, 0);
                self.filled = 0;
            }
            let room = BLOCK - self.filled - FRAME_HEADER;
            let (now, later) = rest.split_at(rest.len().min(room));
            let kind = match (first, later.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            frames.extend(frame(kind, now));
            self.filled = (self.filled + FRAME_HEADER + now.len()) % BLOCK;
            (rest, first) = (later, false);
            if rest.is_empty() {
                return frames;
            }
        }
    }
}

fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let checked = [&[kind], bytes].concat();
    let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, &checked) as u32;
    let mut frame = crc.to_le_bytes().to_vec();
    frame.extend((bytes.len() as u16).to_le_bytes());
    frame.extend(checked);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every record of a log, put together again from its frames.
    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(bytes[..7], HEADER);
        let (mut place, mut records, mut open) = (7, Vec::new(), Vec::new());
        while place < bytes.len() {
            let left = BLOCK - place % BLOCK;
            if left < FRAME_HEADER {
                assert!(bytes[place..(place + left).min(bytes.len())].iter().all(|b| *b == 0));
                place += left;
                continue;
            }
            let head = &bytes[place..place + FRAME_HEADER];
            let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
            assert!(length + FRAME_HEADER <= left, "a frame crosses a block");
            let data = &bytes[place + FRAME_HEADER..place + FRAME_HEADER + length];
            assert_eq!(frame(head[6], data)[..4], head[..4], "checksum");
            match head[6] {
                1 => records.push(data.to_vec()),
                2 => open = data.to_vec(),
                3 => open.extend(data),
                4 => {
                    open.extend(data);
                    records.push(std::mem::take(&mut open));
                }
                kind => panic!("{kind}"),
            }
            place += FRAME_HEADER + length;
        }
        assert!(open.is_empty());
        records
    }

    #[test]
    fn records_of_any_length_come_back_out_of_the_blocks() {
        let (mut log, mut bytes, mut expected) = (Log::default(), HEADER.to_vec(), Vec::new());
        // Around the ends of blocks, and over several of them.
        for length in (0..40).chain(32_700..32_780).chain([100_000, 1]) {
            let record = Message::default().text(2, &"x".repeat(length));
            bytes.extend(log.record(&record));
            let number = Message::default().number(1, expected.len() as u64 + 1);
            expected.push([number.encoded(), record.encoded()].concat());
        }
        assert_eq!(records(&bytes), expected);
    }

    /// The checksum that the official reader computes: `zlib.crc32(b"\x01abc")`.
    #[test]
    fn a_frame_has_the_bytes_of_the_official_writer() {
        assert_eq!(frame(1, b"abc"), [0xa9, 0x20, 0x9d, 0x53, 3, 0, 1, b'a', b'b', b'c']);
    }
}
