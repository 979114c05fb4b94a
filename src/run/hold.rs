//! One writer to a run folder.
//!
//! Owns the lock that a program holds while it writes there. It is the kernel's (`flock`), so
//! that it goes with the program however that ends; what the file says is for people alone.

use std::fs::TryLockError;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::RunFolder;
use crate::diagnose::Diagnose;

/// Longest file that is read to say who holds it, in bytes.
const MAX_HOLDER_BYTES: u64 = 4096;

/// The right to write into a run folder, until it is dropped or the program ends.
#[derive(Debug)]
pub struct Hold {
    /// Never read: that it is open holds the lock.
    _file: fs::File,
}

/// Who holds a run folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub process: u32,
    /// The machine that it runs on.
    pub host: String,
    /// Since when.
    pub since: jiff::Timestamp,
}

/// A run folder that cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Another program writes into it.
    #[error("another program writes into the run `{}`{}", run.display(), holder.as_ref().map(told).unwrap_or_default())]
    Held {
        /// The run folder.
        run: PathBuf,
        /// Which, as far as its file says.
        holder: Option<Holder>,
    },
    /// The file of the lock cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn told(holder: &Holder) -> String {
    format!(": process {} on `{}`, since {}", holder.process, holder.host, holder.since)
}

impl Diagnose for HoldError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Held { .. } => Some(
                "wait for it or stop it, then run the same command again; or train into another \
                 folder with `--run`"
                    .to_owned(),
            ),
            Self::Io(error) => error.hint(),
        }
    }
}

impl Hold {
    /// Takes a run folder, which has to be there; refused while another program has it.
    pub fn take(run: &RunFolder) -> Result<Self, HoldError> {
        let path = run.trainer_lock();
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let run = run.path().to_owned();
                return Err(HoldError::Held { run, holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(named(&path, &source).into()),
        }
        let holder = Holder {
            process: std::process::id(),
            host: host().unwrap_or_else(|| "unknown".to_owned()),
            since: jiff::Timestamp::now(),
        };
        let text = serde_json::to_vec(&holder).map_err(io::Error::from)?;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&text)?;
        Ok(Self { _file: file })
    }

    /// Says whether [`Hold::take`] would be refused, and changes nothing.
    pub fn look(run: &RunFolder) -> Result<(), HoldError> {
        if run.trainer_lock().is_file() { Self::take(run).map(drop) } else { Ok(()) }
    }
}

fn named(path: &Path, source: &io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("cannot lock `{}`: {source}", path.display()))
}

/// Only a help for people: a file that says nothing is no error.
fn holder(file: &mut fs::File) -> Option<Holder> {
    let mut text = Vec::new();
    file.take(MAX_HOLDER_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The name of this machine, where the system tells.
fn host() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_once_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        Hold::look(&run).unwrap();
        assert!(!run.trainer_lock().exists(), "looking writes nothing");
        let first = Hold::take(&run).unwrap();
        for refused in [Hold::take(&run).map(drop), Hold::look(&run)] {
            let HoldError::Held { holder: Some(holder), .. } = refused.unwrap_err() else {
                panic!("not held by anyone")
            };
            assert_eq!(holder.process, std::process::id());
        }
        drop(first);
        Hold::look(&run).unwrap();
        drop(Hold::take(&run).unwrap());
    }

    #[test]
    fn a_file_of_rubbish_holds_nobody_back_and_is_believed_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        crate::files::write_atomically(&run.trainer_lock(), &[0xff; 9000]).unwrap();
        let hold = Hold::take(&run).unwrap();
        drop(hold);
        let error = HoldError::Held { run: "runs/a".into(), holder: None };
        assert_eq!(error.to_string(), "another program writes into the run `runs/a`");
    }
}
