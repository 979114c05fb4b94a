//! What Jinja takes from Python: how values print, string methods, filters, tests, globals.
//!
//! Owns the differences between minijinja and Jinja2 3.1 that published templates can see;
//! whatever is not listed here is an unknown filter, as it is in Transformers. Reference:
//! `jinja2.filters`, `jinja2.tests` and CPython's `str`.

use std::borrow::Cow;

use jiff::Timestamp;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat;

use super::budget::{
    charge, charge_size, charge_tree, counted, formatted, indented, joined_by_filter,
    joined_by_method, pieces, refuse_namespace, replaced,
};
use super::{clock, json};

/// Replaces filters, methods, tests and globals by those of Transformers' environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    // Jinja2 has none of these, or has them otherwise.
    for name in ["bool", "lines", "split", "chain", "zip", "batch", "slice", "pprint", "groupby"] {
        environment.remove_filter(name);
    }
    for name in ["startingwith", "endingwith", "int", "safe"] {
        environment.remove_test(name);
    }
    environment.remove_global("debug");
    add_filters(environment);
    environment.add_test("sequence", is_iterable);
    environment.add_test("iterable", is_iterable);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    for (name, function) in [
        ("range", Value::from_function(minijinja::functions::range)),
        ("dict", Value::from_function(minijinja::functions::dict)),
        ("namespace", Value::from_function(minijinja::functions::namespace)),
    ] {
        environment.add_function(name, counted_result(function));
    }
}

/// Fixes what `strftime_now` answers.
pub(super) fn set_clock(environment: &mut Environment<'static>, now: Timestamp) {
    let now = now.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    environment.add_function("strftime_now", move |state: &mut State, format: &str| {
        charge(state, format.len().saturating_mul(16))?;
        clock::strftime(format, now)
    });
}

fn add_filters(environment: &mut Environment<'static>) {
    macro_rules! add {
        ($count:ident: $($name:ident $foresee:expr;)*) => {
            $(environment.add_filter(
                stringify!($name),
                counted(Value::from_function(filters::$name), $count, $foresee),
            );)*
        };
    }
    let nothing = |_: &[Value]| 0;
    // These look at a list and its elements, not at what is in the elements.
    add! { charge_size:
        attr nothing; first nothing; items nothing; last nothing; length nothing; list pieces;
        map pieces; reject pieces; rejectattr nothing; reverse pieces; safe nothing;
        select pieces; selectattr nothing;
    }
    add! { charge_tree:
        abs nothing; capitalize nothing; dictsort nothing; escape nothing; float nothing;
        format formatted; indent indented; int nothing; join joined_by_filter; lower nothing;
        max nothing; min nothing; round nothing; sort pieces; sum nothing; title nothing;
        unique pieces; upper nothing;
    }
    for (name, filter) in [
        ("count", Value::from_function(filters::length)),
        ("d", Value::from_function(default)),
        ("default", Value::from_function(default)),
    ] {
        environment.add_filter(name, counted(filter, charge_size, nothing));
    }
    for (name, filter) in [
        ("e", Value::from_function(filters::escape)),
        ("string", Value::from_function(|value: &Value| text_of(value).into_owned())),
        ("trim", Value::from_function(trim)),
    ] {
        environment.add_filter(name, counted(filter, charge_tree, nothing));
    }
    let replace = counted(Value::from_function(replace), charge_tree, replaced);
    environment.add_filter("replace", replace);
    environment.add_filter("tojson", json::tojson);
}

/// `default(default_value='', boolean=false)`.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => options.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => options.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if missing { other } else { value.clone() })
}

/// `replace(old, new, count=None)`.
fn replace(value: &Value, old: &Value, new: &Value, count: Option<i64>) -> String {
    let (text, old, new) = (text_of(value), text_of(old), text_of(new));
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(&*old, &new, count),
        None => text.replace(&*old, &new),
    }
}

/// What Python goes over; unlike minijinja, not `None`.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

/// Refuses what Python does not go over.
pub(super) fn check_iterable(value: &Value) -> Result<(), Error> {
    if is_iterable(value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, "neither a number nor `None` has elements"))
}

/// A function whose arguments and result are counted.
fn counted_result(
    function: Value,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, arguments| {
        let arguments = arguments.into_values();
        for argument in &arguments {
            charge_tree(state, argument)?;
            refuse_namespace(argument)?;
        }
        let result = function.call(state, &arguments)?;
        charge_size(state, &result)?;
        Ok(result)
    }
}

/// Tells what a template refuses itself from what fails in it.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
pub(super) struct Raised;

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
}

/// `str(value)`.
pub(super) fn text_of(value: &Value) -> Cow<'_, str> {
    if let Some(text) = value.as_str() {
        return Cow::Borrowed(text);
    }
    match f64::try_from(value.clone()) {
        Ok(float) if value.is_number() && !value.is_integer() => Cow::Owned(float_text(float)),
        _ => Cow::Owned(value.to_string()),
    }
}

/// `repr(float)`: the shortest digits that read back, with an exponent beyond 16 places.
fn float_text(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float == 0.0 || (-4..16).contains(&exponent) {
        return format!("{float:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The elements of `value[start:stop:step]` in their order (`slice.indices` of CPython).
pub(super) fn slice_indices(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Vec<usize>, Error> {
    let step = step.unwrap_or(1);
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let bound = |bound: i64| {
        let from_end = if bound < 0 { bound.saturating_add(length) } else { bound };
        from_end.clamp(lowest, highest)
    };
    let (first, last) = if step < 0 { (highest, lowest) } else { (lowest, highest) };
    let (start, stop) = (start.map_or(first, bound), stop.map_or(last, bound));
    let stride = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    let index = |at: i64| usize::try_from(at).ok();
    match step {
        0 => Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero")),
        1.. => Ok((start..stop).step_by(stride).filter_map(index).collect()),
        _ => Ok((stop + 1..=start).rev().step_by(stride).filter_map(index).collect()),
    }
}

/// Where `value[start:stop]` starts, and how many elements it has.
pub(super) fn slice_bounds(length: usize, start: Option<i64>, stop: Option<i64>) -> (usize, usize) {
    let bound = |bound: i64| match usize::try_from(bound) {
        Ok(bound) => bound.min(length),
        Err(_) => length.saturating_sub(usize::try_from(bound.unsigned_abs()).unwrap_or(length)),
    };
    let (start, stop) = (start.map_or(0, bound), stop.map_or(length, bound));
    (start, stop.saturating_sub(start))
}

/// Characters of a text, without walking over each of them here.
pub(super) fn part(text: &str, first: usize, count: usize) -> &str {
    let after = |text: &str, skipped: usize| {
        let mut characters = text.chars();
        if skipped > 0 {
            characters.nth(skipped - 1);
        }
        text.len() - characters.as_str().len()
    };
    let rest = &text[after(text, first)..];
    &rest[..after(rest, count)]
}

/// Python counts the four ASCII separators as white space, Unicode does not.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// The ends of a string that `strip` takes off.
#[derive(Clone, Copy)]
enum Ends {
    Both,
    Left,
    Right,
}

fn strip(text: &str, characters: Option<&str>, ends: Ends) -> String {
    let taken = |c: char| characters.map_or_else(|| is_space(c), |all| all.contains(c));
    match ends {
        Ends::Both => text.trim_matches(taken),
        Ends::Left => text.trim_start_matches(taken),
        Ends::Right => text.trim_end_matches(taken),
    }
    .to_owned()
}

fn trim(value: &Value, characters: Option<&str>) -> String {
    strip(&text_of(value), characters, Ends::Both)
}

/// A method of a string, a list or a mapping.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, arguments);
    };
    charge(state, text.len())?;
    for argument in arguments {
        charge_tree(state, argument)?;
    }
    let with_receiver = || [std::slice::from_ref(value), arguments].concat();
    let foreseen = match name {
        "split" | "rsplit" | "splitlines" => pieces(&with_receiver()),
        "replace" => replaced(&with_receiver()),
        "format" => formatted(&with_receiver()),
        "join" => joined_by_method(&with_receiver()),
        _ => 0,
    };
    charge(state, foreseen)?;
    let result = match string_method(text, name, arguments) {
        Some(result) => result,
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }?;
    charge(state, result.as_str().map_or(0, str::len))?;
    Ok(result)
}

/// Methods that minijinja lacks or has otherwise; `None` for all others.
fn string_method(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let ends = match name {
        "strip" => Ends::Both,
        "lstrip" => Ends::Left,
        "rstrip" => Ends::Right,
        _ => return other_string_method(text, name, arguments),
    };
    let stripped = minijinja::value::from_args::<(Option<&str>,)>(arguments);
    Some(stripped.map(|(characters,)| Value::from(strip(text, characters, ends))))
}

fn other_string_method(
    text: &str,
    name: &str,
    arguments: &[Value],
) -> Option<Result<Value, Error>> {
    type One<'a> = (&'a str,);
    let one = minijinja::value::from_args::<One<'_>>(arguments);
    let unchanged = |cut: Option<&str>| Value::from(cut.unwrap_or(text));
    Some(match name {
        "title" => minijinja::value::from_args::<()>(arguments).map(|()| Value::from(title(text))),
        "split" | "rsplit" => split(text, name == "rsplit", arguments),
        "removeprefix" => one.map(|(prefix,)| unchanged(text.strip_prefix(prefix))),
        "removesuffix" => one.map(|(suffix,)| unchanged(text.strip_suffix(suffix))),
        "partition" => one.map(|(separator,)| {
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = before.len() < text.len();
            [before, if found { separator } else { "" }, after].into_iter().collect()
        }),
        _ => return None,
    })
}

/// `str.title`: a capital after whatever is no letter, an apostrophe too.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = character.is_lowercase() || character.is_uppercase();
    }
    out
}

/// `split(sep=None, maxsplit=-1)` and `rsplit`.
fn split(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) =
        minijinja::value::from_args(arguments)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => options.get::<Option<Value>>("sep")?,
    };
    let most = match most {
        Some(most) => Some(most),
        None => options.get::<Option<i64>>("maxsplit")?,
    };
    options.assert_all_used()?;
    // No limit, or a negative one, splits everywhere.
    let limit =
        most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most + 1);
    let separator = separator.filter(|separator| !separator.is_none());
    let Some(separator) = separator else { return Ok(split_at_spaces(text, limit, from_right)) };
    let separator =
        separator.as_str().filter(|separator| !separator.is_empty()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, "split: the separator is not a string")
        })?;
    if from_right {
        let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
        parts.reverse();
        return Ok(parts.into_iter().collect());
    }
    Ok(text.splitn(limit, separator).collect())
}

fn split_at_spaces(text: &str, limit: usize, from_right: bool) -> Value {
    let mut parts = Vec::new();
    let mut rest = if from_right {
        text.trim_end_matches(is_space)
    } else {
        text.trim_start_matches(is_space)
    };
    while !rest.is_empty() {
        let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at.filter(|_| parts.len() + 1 < limit) else {
            parts.push(rest);
            break;
        };
        let space = rest[at..].chars().next().map_or(0, char::len_utf8);
        if from_right {
            parts.push(&rest[at + space..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at + space..].trim_start_matches(is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts.into_iter().collect()
}
