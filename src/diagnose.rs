//! What every error of the project can say beyond its message: how to mend it, and whose
//! fault it is.
//!
//! Owns the trait, the boxed form that crosses rooms, and how sizes are said. Does not own rendering (that is
//! `cli::printer`) nor any particular error: each room has a typed enum that carries data
//! (file, key, line, shape, dtype, offset) and implements [`Diagnose`].

use std::error::Error;

use crate::files::FileError;

/// Who can do something about an error; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The user can fix it: exit status 1.
    User,
    /// A defect of ours: exit status 2.
    Defect,
}

/// An error that people will read.
///
/// The `Display` of an error is one sentence without a full stop; its `source()` is the
/// next link of the cause chain; `hint` is one sentence that says what to do.
pub trait Diagnose: Error {
    /// What the reader can do about it.
    fn hint(&self) -> Option<String> {
        None
    }

    /// What belongs under the sentence, an entry each, when one error stands for several.
    fn details(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whose fault it is.
    fn blame(&self) -> Blame {
        Blame::User
    }
}

/// Any error of any room on its way to the printer.
pub type Failure = Box<dyn Diagnose + Send + Sync>;

impl<E: Diagnose + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Box::new(error)
    }
}

impl Diagnose for std::io::Error {
    fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        let inner = self.get_ref().and_then(|inner| inner.downcast_ref::<FileError>());
        if let Some(error) = inner {
            return error.hint();
        }
        match self.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Some("free some disk space, then run the same command again".to_owned())
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Some("choose a place that you may read and write".to_owned())
            }
            ErrorKind::NotFound => Some("check the path for a typing mistake".to_owned()),
            _ => None,
        }
    }
}

/// Bytes in a unit that people can picture.
pub fn amount(number: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut size = number as f64;
    let mut unit = 0;
    while size >= 999.5 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && size < 99.95);
    format!("{size:.decimals$} {}", units.get(unit).copied().unwrap_or_default())
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn bytes_have_three_digits() {
        for (number, text) in [
            (12, "12 bytes"),
            (2048, "2.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (244_355_072, "233 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(amount(number), text);
        }
    }
}
