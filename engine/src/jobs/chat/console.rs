//! Where the lines of a chat come from.
//!
//! Owns line editing on a terminal, reading from a pipe elsewhere, and what Ctrl-C does:
//! while the model answers it ends the answer, at the prompt it clears the line, and
//! without a terminal, between answers, it ends the program as usual.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::error::Result;

/// Longest line that is read from a pipe, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Says that a line can be typed.
const PROMPT: &str = "> ";

/// The lines of a chat.
pub(super) struct Console {
    editor: Option<DefaultEditor>,
    /// Ctrl-C has its usual meaning.
    usual: Arc<AtomicBool>,
    /// Ctrl-C was pressed during an answer.
    interrupted: Arc<AtomicBool>,
}

impl Console {
    /// With line editing where people type and read.
    pub(super) fn open() -> Result<Self> {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let editor = terminal.then(DefaultEditor::new).transpose().map_err(into_io)?;
        let (usual, interrupted) = (Arc::new(AtomicBool::new(true)), Arc::default());
        flag::register_conditional_default(SIGINT, Arc::clone(&usual))?;
        flag::register(SIGINT, Arc::clone(&interrupted))?;
        Ok(Self { editor, usual, interrupted })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.editor.is_some()
    }

    /// The next line without its end; `None` when there is no more.
    pub(super) fn read(&mut self) -> Result<Option<String>> {
        let Some(editor) = &mut self.editor else { return read_pipe() };
        loop {
            match editor.readline(PROMPT) {
                Ok(line) => {
                    // Kept in memory alone, for the arrow keys.
                    let _ = editor.add_history_entry(line.as_str());
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(into_io(error).into()),
            }
        }
    }

    /// Tells when an answer begins and when it has ended.
    pub(super) fn answering(&self, answering: bool) {
        self.interrupted.store(false, Ordering::SeqCst);
        self.usual.store(!answering, Ordering::SeqCst);
    }

    /// Whether the answer shall end.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

fn read_pipe() -> Result<Option<String>> {
    let mut line = Vec::new();
    let mut stdin = io::stdin().lock().take(MAX_LINE_BYTES + 1);
    if stdin.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 > MAX_LINE_BYTES {
        let reason = format!("a line is longer than {MAX_LINE_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason).into());
    }
    let line = String::from_utf8(line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a line is not UTF-8"))?;
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn into_io(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other),
    }
}
