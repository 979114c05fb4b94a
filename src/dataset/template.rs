//! Chat templates: Jinja rendered as Transformers' `apply_chat_template` renders it.
//!
//! Owns the environment (white-space rules, Python methods, the globals that Transformers
//! adds) and its limits: a template comes with a model that somebody else made. Does not
//! own tokens. Reference: `transformers/utils/chat_template_utils.py` of Transformers 5.23.

use std::collections::BTreeMap;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

use super::chat::Message;

/// Instructions that one rendering may take: a few hundred per message is usual.
const FUEL: u64 = 5_000_000;

/// The name under which the environment keeps the one template.
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    special_tokens: Value,
}

/// A failed compilation or rendering, in words that never carry conversation text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Line of the template, from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) reason: String,
}

impl Template {
    /// Compiles `source`; `special_tokens` (`bos_token`, `eos_token`, …) are its globals.
    pub(super) fn compile(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<Self, Failed> {
        let source = without_generation_tags(source);
        let mut environment = Environment::new();
        // The two markers are fixed and valid: building them cannot fail.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        add_clock(&mut environment, now);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| failed(&error, &source))?;
        Ok(Self { environment, source, special_tokens: Value::from(Serde(special_tokens)) })
    }

    /// Fixes what `strftime_now` answers.
    pub(super) fn set_clock(&mut self, now: Timestamp) {
        add_clock(&mut self.environment, now);
    }

    /// Renders a conversation, with or without the opening of the assistant's next turn.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, Failed> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => add_generation_prompt,
            ..self.special_tokens.clone(),
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| failed(&error, &self.source))
    }
}

/// Describes an error of the template without quoting what it was rendering.
fn failed(error: &minijinja::Error, source: &str) -> Failed {
    let line = error.line().unwrap_or(1);
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it takes more than {FUEL} instructions"),
        // A message that stands literally in the template says nothing about the data;
        // one that was put together may quote a turn.
        (_, Some(detail)) if source.contains(detail) => detail.to_owned(),
        (ErrorKind::SyntaxError, Some(detail)) => detail.to_owned(),
        (kind, _) => kind.to_string(),
    };
    Failed { line, reason }
}

/// `{% generation %}` marks the assistant's text for Transformers and prints nothing; here
/// the spans are found by rendering prefixes, so the tag becomes a condition that holds.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length];
        out.push_str(&rest[..start]);
        match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out + rest
}

fn add_clock(environment: &mut Environment<'static>, now: Timestamp) {
    let now = now.to_zoned(jiff::tz::TimeZone::UTC);
    environment.add_function("strftime_now", move |format: String| {
        jiff::fmt::strtime::format(&format, &now).map_err(|_| {
            minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown format")
        })
    });
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps`, which Transformers puts in the place of Jinja's HTML-escaping filter.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let unwritable = |_| minijinja::Error::new(ErrorKind::BadSerialization, "tojson");
    let mut value = serde_json::to_value(value).map_err(unwritable)?;
    if sort {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(MAX_INDENT));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    }
    .map_err(unwritable)?;
    let text = String::from_utf8_lossy(&out);
    Ok(if ascii { escape_non_ascii(&text) } else { text.into_owned() })
}

/// Widest indentation of `tojson(indent=…)`.
const MAX_INDENT: usize = 64;

/// Non-ASCII characters only ever stand in strings, so escaping may come last.
fn escape_non_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Python's separators: a space after `,` and `:`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_char_escape<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> std::io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, Failed> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let clock = "2026-03-04T05:06:07Z".parse().unwrap();
        Template::compile(source, tokens, clock)?.render(messages, true)
    }

    #[test]
    fn white_space_methods_and_globals_are_those_of_transformers() {
        let source = "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'user' %}\n\
                      U:{{ m['content'].strip() }}\n    {% endif %}\n{% endfor %}\n\
                      {{ strftime_now('%d %b %Y') }}{% if tools is none %}-{% endif %}";
        let rendered = render(source, &[message("user", "  hi ")]).unwrap();
        assert_eq!(rendered, "<s>U:hi\n04 Mar 2026-");
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        // json.dumps(..., ensure_ascii=False) of Python 3.11.
        let source = "{{ messages | tojson }}{{ messages[0].content | tojson(ensure_ascii=true) }}";
        let rendered = render(source, &[message("user", "<é & 'x'\">\n")]).unwrap();
        assert_eq!(
            rendered,
            "[{\"role\": \"user\", \"content\": \"<é & 'x'\\\">\\n\"}]\
             \"<\\u00e9 & 'x'\\\">\\n\""
        );
        let pretty = render("{{ {'b': 1, 'a': [1.0]} | tojson(indent=2, sort_keys=true) }}", &[]);
        assert_eq!(pretty.unwrap(), "{\n  \"a\": [\n    1.0\n  ],\n  \"b\": 1\n}");
    }

    #[test]
    fn generation_tags_print_nothing() {
        let source = "a{%- generation -%} b {%- endgeneration %}c";
        assert_eq!(render(source, &[]).unwrap(), "abc");
    }

    #[test]
    fn a_template_that_never_ends_runs_out_of_fuel() {
        let source =
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        let failed = render(source, &[]).unwrap_err();
        assert!(failed.reason.contains("instructions"), "{failed:?}");
    }

    #[test]
    fn a_refusal_is_quoted_only_when_it_stands_in_the_template() {
        let literal = render("\n{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(literal, Failed { line: 2, reason: "roles must alternate".to_owned() });
        let secret = [message("user", "my secret")];
        let built =
            render("{{ raise_exception('bad: ' + messages[0].content) }}", &secret).unwrap_err();
        assert!(!built.reason.contains("secret"), "{built:?}");
    }
}
