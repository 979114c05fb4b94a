//! Trackers on servers: what is sent when, and what happens while one is away.
//!
//! A server is fed from `metrics.jsonl`, never from the loop: a thread reads the lines that are
//! new, sends them in batches and notes how many it has sent (`track/NAME.json`). So no step
//! waits for a server; one that is down is tried again, later and later, and gets what it missed;
//! and what is still missing when the run ends, `heirloom track sync RUN` sends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::line::{Line, Tail};
use super::progress::Voice;
use super::request::RequestError;
use super::{End, Event, Sink, StepMetrics, ValidationMetrics};
use crate::diagnose::Diagnose;
use crate::files;

/// Most lines of one request.
const MAX_LINES: usize = 500;

/// Time between two batches.
const BETWEEN_BATCHES: Duration = Duration::from_secs(2);

/// Time before another attempt; doubled with each one that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the end of a run waits for a server.
const FAREWELL: Duration = Duration::from_secs(10);

/// A tracker on a server.
pub trait Service: Send {
    /// Its word in a recipe.
    fn name(&self) -> &'static str;
    /// Makes the run known, or known again; `before` are the lines it has been sent.
    fn begin(&mut self, sent: &mut Sent, before: &[Line]) -> Result<(), RequestError>;
    /// Takes lines, the first of which has the number `first`, from 0.
    fn send(&mut self, first: usize, lines: &[Line]) -> Result<(), RequestError>;
    /// Nothing more will come; `last` is the last line.
    fn end(&mut self, end: End, last: Option<&Line>) -> Result<(), RequestError>;
}

/// What a server has been sent, as in `track/NAME.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// Lines of `metrics.jsonl`.
    pub lines: usize,
    /// The run's name on the server, where the server chose it.
    pub run: Option<String>,
    /// How the run ended, once that is said.
    pub ended: Option<End>,
}

/// Something could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// By the server's fault or its refusal.
    #[error("{}", .0.whole())]
    Request(#[from] RequestError),
    /// Nobody said where to, or with which key.
    #[error("{0} is not set")]
    Unset(&'static str),
    /// A file of the run folder.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What was noted is not what it should be.
    #[error("`{}` is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl Diagnose for FeedError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Request(RequestError::Refused { status: 401 | 403, .. }) => Some(
                "check the key: WANDB_API_KEY, or MLFLOW_TRACKING_TOKEN, or \
                 MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD"
                    .to_owned(),
            ),
            Self::Request(_) => Some(
                "check the address and that the server runs; then send again with `heirloom track \
                 sync RUN`"
                    .to_owned(),
            ),
            Self::Unset(name) => {
                Some(format!("set {name}, then send everything with `heirloom track sync RUN`"))
            }
            Self::Io(error) => error.hint(),
            Self::Json { .. } => {
                Some("remove the file: the tracker then gets everything again".to_owned())
            }
        }
    }
}

impl FeedError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Request(error) if error.is_transient())
    }
}

/// A server, and where it stands in `metrics.jsonl`.
pub struct Feed {
    service: Box<dyn Service>,
    tail: Tail,
    /// Where `sent` is noted.
    path: PathBuf,
    sent: Sent,
    begun: bool,
    last: Option<Line>,
    /// Lines that were sent, cut off when the run went back to a checkpoint, and are still to
    /// be written again: with the same losses, so that they are not sent twice.
    passed_over: usize,
    /// Lines that were read and not taken yet.
    waiting: Vec<Line>,
}

impl Feed {
    /// Of a run's `metrics`, with what was sent noted in `folder`.
    pub fn open(
        service: Box<dyn Service>,
        metrics: &Path,
        folder: &Path,
    ) -> Result<Self, FeedError> {
        let path = folder.join(format!("{}.json", service.name()));
        let sent = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| FeedError::Json { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Sent::default(),
            Err(error) => return Err(error.into()),
        };
        let tail = Tail::new(metrics);
        let (last, passed_over, waiting) = (None, 0, Vec::new());
        Ok(Self { service, tail, path, sent, begun: false, last, passed_over, waiting })
    }

    /// Its word in a recipe.
    pub fn name(&self) -> &'static str {
        self.service.name()
    }

    /// Sends everything that is new; gives how many lines that were.
    pub fn catch_up(&mut self) -> Result<usize, FeedError> {
        if !self.begun {
            self.begin()?;
        }
        let mut count = 0;
        loop {
            if self.waiting.is_empty() {
                self.waiting = self.tail.next(MAX_LINES)?;
                let again = self.passed_over.min(self.waiting.len());
                self.waiting.drain(..again);
                self.passed_over -= again;
            }
            if self.waiting.is_empty() {
                return Ok(count);
            }
            self.service.send(self.sent.lines, &self.waiting)?;
            count += self.waiting.len();
            self.sent.lines += self.waiting.len();
            self.last = self.waiting.pop();
            self.waiting.clear();
            self.note()?;
        }
    }

    fn begin(&mut self) -> Result<(), FeedError> {
        let before = self.tail.restart(self.sent.lines)?;
        self.last = before.last().cloned();
        self.passed_over = self.sent.lines - before.len();
        self.service.begin(&mut self.sent, &before)?;
        self.sent.ended = None;
        self.note()?;
        self.begun = true;
        Ok(())
    }

    /// Says how the run ended.
    pub fn end(&mut self, end: End) -> Result<(), FeedError> {
        if !self.begun {
            self.begin()?;
        }
        self.service.end(end, self.last.as_ref())?;
        self.sent.ended = Some(end);
        self.note()
    }

    /// Lines that are still to be sent.
    fn missing(&mut self) -> usize {
        let read = self.waiting.len();
        let begun = self.begun || self.tail.restart(self.sent.lines).is_ok();
        let unread =
            if begun { self.tail.next(usize::MAX).unwrap_or_default() } else { Vec::new() };
        read + unread.len()
    }

    fn note(&self) -> Result<(), FeedError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let path = self.path.clone();
        let text =
            serde_json::to_vec(&self.sent).map_err(|source| FeedError::Json { path, source })?;
        Ok(files::write_atomically(&self.path, &text)?)
    }
}

/// Feeds a server on a thread of its own, as a sink.
pub struct Remote {
    wake: SyncSender<()>,
    end: Arc<Mutex<Option<End>>>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    /// Begins at once.
    pub fn new(feed: Feed, voice: Voice) -> io::Result<Self> {
        // One word is enough: the thread looks for itself what is new.
        let (wake, woken) = sync_channel(1);
        let end = Arc::default();
        let sender = Sender { feed, voice, woken, end: Arc::clone(&end), failures: 0 };
        let builder = thread::Builder::new().name("tracker".to_owned());
        let thread = Some(builder.spawn(move || sender.run())?);
        Ok(Self { wake, end, thread })
    }

    fn wake(&self) -> io::Result<()> {
        // A thread that is busy, or has given up, needs no waking.
        let _ = self.wake.try_send(());
        Ok(())
    }
}

impl Sink for Remote {
    fn step(&mut self, _: &StepMetrics) -> io::Result<()> {
        self.wake()
    }

    fn validation(&mut self, _: &ValidationMetrics) -> io::Result<()> {
        self.wake()
    }

    fn event(&mut self, _: &Event) -> io::Result<()> {
        self.wake()
    }

    fn finish(&mut self, end: End) -> io::Result<()> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.wake()?;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(io::Error::other("its thread panicked")),
            _ => Ok(()),
        }
    }
}

/// What runs on the thread.
struct Sender {
    feed: Feed,
    voice: Voice,
    woken: Receiver<()>,
    end: Arc<Mutex<Option<End>>>,
    /// Attempts in a row that came to nothing.
    failures: u32,
}

impl Sender {
    fn run(mut self) {
        let mut next = Instant::now();
        loop {
            let woken = self.woken.recv_timeout(BETWEEN_BATCHES);
            let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(end) = end {
                return self.farewell(end);
            }
            if matches!(woken, Err(RecvTimeoutError::Disconnected)) {
                // The run failed before its end: what is missing can be sent later.
                return;
            }
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + BETWEEN_BATCHES;
            match self.feed.catch_up() {
                Ok(_) => self.failures = 0,
                Err(error) => {
                    if self.failures == 0 {
                        self.warn(&error, "the run goes on; it is tried again");
                    }
                    next = Instant::now() + self.pause(&error);
                    self.failures += 1;
                }
            }
        }
    }

    /// What a refusal was, it will stay for a while.
    fn pause(&self, error: &FeedError) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6));
        if error.is_transient() { doubled.min(LONGEST_PAUSE) } else { LONGEST_PAUSE }
    }

    /// Sends what is left, for as long as a run may wait at its end.
    fn farewell(&mut self, end: End) {
        let until = Instant::now() + FAREWELL;
        loop {
            let error = match self.feed.catch_up().and_then(|_| self.feed.end(end)) {
                Ok(()) => return,
                Err(error) => error,
            };
            let pause = self.pause(&error);
            self.failures += 1;
            if !error.is_transient() || Instant::now() + pause > until {
                let missing = self.feed.missing();
                let later = format!("{missing} lines are missing there");
                return self.warn(&error, &later);
            }
            thread::sleep(pause);
        }
    }

    fn warn(&self, error: &FeedError, what: &str) {
        let name = self.feed.name();
        self.voice.say(&format!(
            "warning: `track: {name}`: {error}; {what}\n  hint: `heirloom track sync RUN` sends \
             what is missing"
        ));
    }
}
