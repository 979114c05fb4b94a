//! Chat templates: Jinja rendered as Transformers' `apply_chat_template` renders it.
//!
//! Owns the environment and its limits: a template comes with a model that somebody else
//! made. [`python`] has what Jinja takes from Python, [`json`] and [`clock`] what
//! Transformers adds, [`tags`] its `{% generation %}`; [`rewrite`] and [`budget`] keep a
//! hostile template within bounds. Does not own tokens.
//!
//! Reference: `transformers/utils/chat_template_utils.py` of Transformers 5.23.

mod budget;
mod clock;
mod json;
mod python;
mod rewrite;
mod tags;

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;
use minijinja::machinery::{CodeGenerator, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::conversation::Values;

/// Instructions that one rendering may take: a few hundred per message is usual.
const FUEL: u64 = 5_000_000;

/// Longest template; the longest published ones have 20 kB.
const MAX_SOURCE: usize = 128 << 10;

/// Stack on which templates are compiled: the deepest tree that [`MAX_SOURCE`] can spell
/// (`a~a~a…`) is walked recursively. Only what is used of it is ever backed by memory.
const COMPILE_STACK: usize = 512 << 20;

/// Macros in macros; published templates go three deep.
const MAX_RECURSION: usize = 100;

/// The name of the template in the errors of the engine.
const NAME: &str = "chat_template";

/// The variable that asks [`tags::GENERATION`] to mark what it stands for.
const MARKS: &str = "__marks";

/// Characters that nobody may interchange, around what `{% generation %}` marks.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// A compiled chat template.
pub(super) struct Template {
    environment: Environment<'static>,
    source: &'static str,
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
    special_tokens: BTreeMap<String, Value>,
    marks_assistant: bool,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a rendering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The template's own `raise_exception`.
    Refusal,
    /// It takes more than it may.
    Limit,
    /// Anything else: a filter that is not there, a key that no message has.
    Construct,
}

/// A failed compilation or rendering, in words that never carry conversation text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Why, in kind.
    pub(super) cause: Cause,
    /// Line of the template, from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) reason: String,
}

/// What a rendering is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The conversation as it is.
    Nothing,
    /// The opening of the assistant's next turn after it.
    Answer,
    /// Marks around what `{% generation %}` stands for.
    Marks,
}

impl Template {
    /// Compiles `source`; `special_tokens` (`bos_token`, `eos_token`, …) are its globals.
    pub(super) fn compile(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<Self, Failed> {
        if source.len() > MAX_SOURCE {
            let reason = format!("it has more than {MAX_SOURCE} bytes");
            return Err(Failed { cause: Cause::Limit, line: 1, reason });
        }
        // Jinja reads every line ending as a line feed, in strings too.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, marks_assistant) = tags::with_generation_filters(&source);
        // The instructions borrow from the source; it lives as long as the program, which
        // reads a handful of templates in all.
        let source: &'static str = source.leak();
        let (instructions, blocks) = on_a_deep_stack(|| compile(source))
            .unwrap_or_else(|| {
                Err(Error::new(ErrorKind::InvalidOperation, "it cannot be compiled"))
            })
            .map_err(|error| failed(&error, source))?;
        let mut template = Self {
            environment: environment(),
            source,
            instructions,
            blocks,
            special_tokens: special_tokens
                .into_iter()
                .map(|(name, token)| (name, Value::from(token)))
                .collect(),
            marks_assistant,
        };
        template.set_clock(now);
        Ok(template)
    }

    /// Fixes what `strftime_now` answers.
    pub(super) fn set_clock(&mut self, now: Timestamp) {
        python::set_clock(&mut self.environment, now);
    }

    /// Whether the template says with `{% generation %}` what the assistant wrote.
    pub(super) fn marks_assistant(&self) -> bool {
        self.marks_assistant
    }

    /// Renders messages; `others` are the rest of the conversation's values.
    pub(super) fn render(
        &self,
        others: &BTreeMap<String, Value>,
        messages: &[Value],
        ask: Ask,
    ) -> Result<String, Failed> {
        let mut context = self.special_tokens.clone();
        context.extend(others.iter().map(|(name, value)| (name.clone(), value.clone())));
        context.insert("messages".to_owned(), Value::from(messages.to_vec()));
        context.insert("add_generation_prompt".to_owned(), Value::from(ask == Ask::Answer));
        context.insert(MARKS.to_owned(), Value::from(ask == Ask::Marks));
        let mut out = String::with_capacity(self.source.len());
        // Ends the borrow of `out` before it is returned.
        let done = {
            let mut output = make_string_output(&mut out);
            let root = Value::from(context);
            let (instructions, blocks) = (&self.instructions, &self.blocks);
            eval(&self.environment, instructions, root, blocks, &mut output, AutoEscape::None)
                .map(|_| ())
        };
        done.map(|()| out).map_err(|error| failed(&error, self.source))
    }

    /// The bytes that `{% generation %}` marks in a conversation as it is rendered.
    pub(super) fn marks_in(
        &self,
        values: &Values,
        plain: &str,
    ) -> Result<Vec<Range<usize>>, Failed> {
        let marked = self.render(&values.others, &values.messages, Ask::Marks)?;
        let found = (!plain.contains([OPEN, CLOSE])).then(|| without_marks(&marked)).flatten();
        match found {
            Some((text, spans)) if text == plain => Ok(spans),
            _ => Err(Failed {
                cause: Cause::Construct,
                line: 1,
                reason: "it changes what it marks with `{% generation %}`".to_owned(),
            }),
        }
    }
}

/// Takes the marks out; `None` where they do not come in pairs.
fn without_marks(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut pieces = marked.split(OPEN);
    text.push_str(pieces.next()?);
    if text.contains(CLOSE) {
        return None;
    }
    for piece in pieces {
        let (inside, after) = piece.split_once(CLOSE)?;
        let start = text.len();
        text.push_str(inside);
        spans.push(start..text.len());
        if after.contains(CLOSE) {
            return None;
        }
        text.push_str(after);
    }
    Some((text, spans))
}

type Compiled =
    Result<(Instructions<'static>, BTreeMap<&'static str, Instructions<'static>>), Error>;

fn compile(source: &'static str) -> Compiled {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let tree = rewrite::template(&parse(source, NAME, syntax)?);
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    Ok(generator.finish())
}

/// `None` where the system gives no thread.
fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(COMPILE_STACK);
        builder.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    budget::install(&mut environment);
    python::install(&mut environment);
    environment.add_filter(tags::GENERATION, |state: &State, text: String| {
        let marks = state.lookup(MARKS).is_some_and(|marks| marks.is_true());
        if marks { format!("{OPEN}{text}{CLOSE}") } else { text }
    });
    environment
}

/// Describes an error of the template without quoting what it was rendering.
fn failed(error: &Error, source: &str) -> Failed {
    let line = error.line().unwrap_or(1);
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, None) => format!("it takes more than {FUEL} instructions"),
        (ErrorKind::OutOfFuel, Some(detail)) => detail.to_owned(),
        // A message that stands literally in the template says nothing about the data;
        // one that was put together may quote a turn.
        (_, Some(detail)) if source.contains(detail) => detail.to_owned(),
        (ErrorKind::SyntaxError, Some(detail)) => detail.to_owned(),
        (kind, _) => kind.to_string(),
    };
    Failed { cause: cause_of(error), line, reason }
}

fn cause_of(error: &Error) -> Cause {
    let mut link = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = link {
        if error.is::<python::Raised>() {
            return Cause::Refusal;
        }
        link = error.source();
    }
    let limits = ["recursion limit exceeded", "range has too many elements"];
    let detail = error.detail().unwrap_or_default();
    let beyond = limits.into_iter().any(|limit| detail.contains(limit));
    let limit = error.kind() == ErrorKind::OutOfFuel || beyond;
    if limit { Cause::Limit } else { Cause::Construct }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
