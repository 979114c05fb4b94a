//! `strftime_now`: Python's `datetime.now().strftime(format)` for a clock that stands still.
//!
//! Reference: glibc's `strftime` in the C locale, which CPython calls. Transformers asks the
//! machine for its local time; here the time is given, in UTC, so that a run can be repeated.

use jiff::civil::DateTime;
use jiff::fmt::strtime;
use minijinja::{Error, ErrorKind};

/// Formats `now`; a naive time has no zone, so that `%Z` and `%z` are empty as in Python.
pub(super) fn strftime(format: &str, now: DateTime) -> Result<String, Error> {
    let mut out = String::with_capacity(format.len() + 16);
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        let directive = &rest[start..];
        let length = directive_length(directive);
        out.push_str(&directive_text(&directive[..length], now)?);
        rest = &directive[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// `%`, an optional flag of glibc's, one character.
fn directive_length(directive: &str) -> usize {
    let mut characters = directive.char_indices().skip(1);
    let (mut at, mut found) = characters.next().unwrap_or((directive.len(), '\0'));
    while matches!(found, '-' | '_' | '0' | '^' | '#') {
        (at, found) = characters.next().unwrap_or((directive.len(), '\0'));
    }
    (at + found.len_utf8()).min(directive.len())
}

fn directive_text(directive: &str, now: DateTime) -> Result<String, Error> {
    let plain = match directive {
        "%Z" | "%z" => return Ok(String::new()),
        "%f" => return Ok(format!("{:06}", now.subsec_nanosecond() / 1000)),
        "%c" => "%a %b %e %H:%M:%S %Y",
        "%x" => "%m/%d/%y",
        "%X" => "%H:%M:%S",
        "%r" => "%I:%M:%S %p",
        other => other,
    };
    strtime::format(plain, now)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_those_of_the_c_locale() {
        let now: DateTime = "2026-03-04T05:06:07.089".parse().unwrap();
        // date -u -d '2026-03-04 05:06:07' +FORMAT, with LC_ALL=C.
        for (format, expected) in [
            ("%d %b %Y", "04 Mar 2026"),
            ("%A, %-d %B %y", "Wednesday, 4 March 26"),
            ("%c|%x|%X", "Wed Mar  4 05:06:07 2026|03/04/26|05:06:07"),
            ("%e|%j|%U|%W|%w|%u|%G-%V", " 4|063|09|09|3|3|2026-10"),
            ("%I:%M %p|%H%M|%F %T|%D|%R", "05:06 AM|0506|2026-03-04 05:06:07|03/04/26|05:06"),
            ("100%%é%Z%z.%f", "100%é.089000"),
        ] {
            assert_eq!(strftime(format, now).unwrap(), expected);
        }
        for wrong in ["%", "%Q!", "%-"] {
            assert!(strftime(wrong, now).is_err(), "{wrong}");
        }
    }
}
