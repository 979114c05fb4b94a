//! `json.dumps` of Python 3, which Transformers puts in the place of Jinja's filter.
//!
//! Owns the exact bytes: separators, indentation, escapes and numbers. Reference: `json` of
//! CPython 3.11 with the defaults of Transformers' `tojson` (`ensure_ascii=False`).

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::budget::{BUDGET, charge, charge_tree};
use super::python;

/// How to write.
struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

/// The filter `tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(super) fn tojson(
    state: &mut State,
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    charge_tree(state, value)?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(value)?.clamp(0, 64)).unwrap_or(0)),
        }),
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(unwritable("tojson: `separators` are two")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let ascii = match ensure_ascii {
        Some(ascii) => ascii,
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut out = String::new();
    write(&mut out, value, &Style { indent, item, key, ascii, sort }, 0)?;
    charge(state, out.len())?;
    Ok(out)
}

fn unwritable(why: &'static str) -> Error {
    Error::new(ErrorKind::BadSerialization, why)
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    // Indentation is not part of the value, so that counting the value does not bound it.
    if out.len() > BUDGET {
        return Err(Error::new(ErrorKind::OutOfFuel, "it handles too much text"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            list(out, ('[', ']'), &items, style, depth, |out, item| {
                write(out, item, style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let object = value.as_object().ok_or_else(|| unwritable("tojson: not a mapping"))?;
            let mut pairs: Vec<(String, Value)> = object
                .try_iter_pairs()
                .ok_or_else(|| unwritable("tojson: not a mapping"))?
                .map(|(key, item)| Ok((key_text(&key)?, item)))
                .collect::<Result<_, Error>>()?;
            if style.sort {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            list(out, ('{', '}'), &pairs, style, depth, |out, (key, item)| {
                string(out, key, style.ascii);
                out.push_str(&style.key);
                write(out, item, style, depth + 1)
            })?;
        }
        _ => return Err(unwritable("tojson: not a value that JSON has")),
    }
    Ok(())
}

fn list<T>(
    out: &mut String,
    (open, close): (char, char),
    items: &[T],
    style: &Style,
    depth: usize,
    mut each: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item);
        }
        line(out, depth + 1);
        each(out, item)?;
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn number(value: &Value) -> String {
    match python::text_of(value).as_ref() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        finite => finite.to_owned(),
    }
}

/// Python writes the JSON of a key that is no string, in quotes.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number => number(key),
        _ => return Err(unwritable("tojson: a key that JSON has not")),
    })
}

fn string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => escape(out, character),
            '\u{7f}'.. if ascii && character != '\u{7f}' => escape(out, character),
            other => out.push(other),
        }
    }
    out.push('"');
}

fn escape(out: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}
