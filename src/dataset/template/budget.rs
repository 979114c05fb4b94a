//! What one rendering may cost, however the template is written.
//!
//! Fuel bounds the number of instructions, not what one of them does: a string that doubles
//! forty times, or a list that holds itself twice, forty deep, takes a few dozen. So every
//! operation whose cost grows with its operands counts them here first, in bytes, and all of
//! them together may not pass [`BUDGET`]. Owns the counter, the filters that
//! [`super::rewrite`] puts around operators, and the wrapper around every other filter.

use minijinja::value::{DynObject, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;

/// Bytes that all operations of one rendering may handle together: a conversation that
/// fills a context of a million tokens comes to about a tenth of it.
pub(super) const BUDGET: usize = 256 << 20;

/// Lists in lists; tool schemas nest about ten deep.
const MAX_DEPTH: usize = 64;

/// What it costs to copy an element of a list, in bytes that could be copied in its place.
const ELEMENT: usize = 64;

/// What it costs to visit one to compare or print it.
const VISIT: usize = 256;

/// Counts what a new list or mapping holds, with all that is in it.
pub(super) const HELD: &str = "__held";
/// Counts a value with all that is in it.
pub(super) const TREE: &str = "__tree";
/// Counts the length of a string or a list.
pub(super) const SIZE: &str = "__size";
/// Counts what a loop goes over, which has to be something that Python goes over.
pub(super) const ITERATED: &str = "__iterated";
/// Refuses what must not be kept in a namespace.
pub(super) const STORED: &str = "__stored";
/// `value[start:stop:step]`.
pub(super) const SLICE: &str = "__slice";
/// The operator `~`.
pub(super) const CONCAT: &str = "__concat";
/// The operator `*`.
pub(super) const MULTIPLY: &str = "__multiply";

/// Bytes handled so far by this rendering.
struct Spent(usize);

/// Counts `bytes`.
pub(super) fn charge(state: &mut State, bytes: usize) -> Result<(), Error> {
    let spent = state.get_or_insert_extension(Spent(0));
    spent.0 = spent.0.saturating_add(bytes);
    if spent.0 > BUDGET {
        return Err(Error::new(ErrorKind::OutOfFuel, "it handles too much text"));
    }
    Ok(())
}

/// Counts a value with all that is in it, as often as it is in it.
pub(super) fn charge_tree(state: &mut State, value: &Value) -> Result<(), Error> {
    walk(state, value, MAX_DEPTH)
}

fn walk(state: &mut State, value: &Value, depth: usize) -> Result<(), Error> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::new(ErrorKind::OutOfFuel, "it nests lists too deeply"));
    };
    match value.kind() {
        ValueKind::String => charge(state, value.as_str().map_or(0, str::len)),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                charge(state, VISIT)?;
                walk(state, &item?, depth)?;
            }
            Ok(())
        }
        ValueKind::Map => {
            let Some(object) = value.as_object() else { return Ok(()) };
            let Some(pairs) = object.try_iter_pairs() else { return Ok(()) };
            for (key, item) in pairs {
                charge(state, VISIT)?;
                walk(state, &key, depth)?;
                walk(state, &item, depth)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A namespace in a namespace could hold itself, and would never be freed. Nothing else can:
/// lists and mappings never change, and are refused when they are made of a namespace.
pub(super) fn refuse_namespace(value: &Value) -> Result<(), Error> {
    let namespace = |object: &DynObject| object.type_name().ends_with("::Namespace");
    if value.kind() == ValueKind::Map && value.as_object().is_some_and(namespace) {
        let why = "a namespace cannot be kept in another value";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    Ok(())
}

fn refuse_namespaces_in(list: &Value) -> Result<(), Error> {
    match list.as_object().filter(|_| list.kind() == ValueKind::Map) {
        Some(map) => {
            let mut pairs = map.try_iter_pairs().into_iter().flatten();
            pairs.try_for_each(|(_, item)| refuse_namespace(&item))
        }
        None => list.try_iter()?.try_for_each(|item| refuse_namespace(&item)),
    }
}

/// Replaces what minijinja has of its own accord by what the budget knows of.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(HELD, |state: &mut State, value: Value| {
        charge_tree(state, &value)?;
        refuse_namespaces_in(&value).map(|()| value)
    });
    environment.add_filter(TREE, |state: &mut State, value: Value| {
        charge_tree(state, &value).map(|()| value)
    });
    environment.add_filter(SIZE, |state: &mut State, value: Value| {
        charge_size(state, &value).map(|()| value)
    });
    environment.add_filter(ITERATED, |state: &mut State, value: Value| {
        python::check_iterable(&value)?;
        charge_size(state, &value).map(|()| value)
    });
    environment.add_filter(STORED, |value: Value| refuse_namespace(&value).map(|()| value));
    environment.add_filter(SLICE, slice);
    environment.add_filter(CONCAT, concat);
    environment.add_filter(MULTIPLY, multiply);
    environment.set_formatter(|out, state, value| {
        charge_tree(state, value)?;
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python::text_of(value)),
        }
        .map_err(Error::from)
    });
}

/// Counts a value by its length, whatever is in it.
pub(super) fn charge_size(state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len()),
        None => charge(state, value.len().unwrap_or(0).saturating_mul(ELEMENT)),
    }
}

fn concat(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    charge_tree(state, left)?;
    charge_tree(state, right)?;
    Ok(Value::from(python::text_of(left).into_owned() + &python::text_of(right)))
}

/// A part of a string or a list, as Python takes it; minijinja's own differs for steps back.
fn slice(
    state: &mut State,
    value: &Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge(state, text.len())?;
        if step.is_none_or(|step| step == 1) {
            let (first, count) = python::slice_bounds(text.chars().count(), start, stop);
            return Ok(Value::from(python::part(text, first, count)));
        }
        charge(state, text.len().saturating_mul(ELEMENT))?;
        let characters: Vec<char> = text.chars().collect();
        let taken = python::slice_indices(characters.len(), start, stop, step)?;
        let taken = taken.into_iter().filter_map(|at| characters.get(at));
        return Ok(Value::from(taken.collect::<String>()));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(Error::new(ErrorKind::InvalidOperation, "only lists and strings have parts"));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    charge(state, items.len().saturating_mul(ELEMENT))?;
    let taken = python::slice_indices(items.len(), start, stop, step)?;
    let taken: Vec<Value> = taken.into_iter().filter_map(|at| items.get(at).cloned()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(taken)) } else { Value::from(taken) })
}

/// `*` of numbers, and of a string or a list with a number.
fn multiply(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let impossible = || Error::new(ErrorKind::InvalidOperation, "these cannot be multiplied");
    let (repeated, times) = if left.is_number() { (right, left) } else { (left, right) };
    if repeated.is_number() {
        if left.is_integer() && right.is_integer() {
            let product = i128::try_from(left.clone())?.checked_mul(right.clone().try_into()?);
            return product.map(Value::from).ok_or_else(impossible);
        }
        return Ok(Value::from(f64::try_from(left.clone())? * f64::try_from(right.clone())?));
    }
    // As in Python, fewer than no copies are none.
    let times = usize::try_from(i128::try_from(times.clone())?.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = repeated.as_str() {
        charge(state, text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if repeated.kind() != ValueKind::Seq {
        return Err(impossible());
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    charge(state, items.len().saturating_mul(times).saturating_mul(ELEMENT))?;
    // Empty lists may be repeated as often as one likes.
    let times = if items.is_empty() { 0 } else { times };
    Ok(std::iter::repeat_n(&items, times).flatten().cloned().collect())
}

/// How a filter's operands are counted.
pub(super) type Count = fn(&mut State, &Value) -> Result<(), Error>;

/// Wraps a filter: its operands, what it is foreseen to make of them, and its result are
/// counted.
pub(super) fn counted(
    filter: Value,
    count: Count,
    foresee: fn(&[Value]) -> usize,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, arguments| {
        let arguments = arguments.into_values();
        arguments.iter().try_for_each(|argument| count(state, argument))?;
        charge(state, foresee(&arguments))?;
        let result = filter.call(state, &arguments)?;
        charge_size(state, &result)?;
        Ok(result)
    }
}

/// Elements of a list made of the characters or words of a string.
pub(super) fn pieces(arguments: &[Value]) -> usize {
    let text = arguments.first().and_then(Value::as_str);
    text.map_or(0, |text| text.len().saturating_mul(ELEMENT))
}

/// Result of `replace(old, new)`.
pub(super) fn replaced(arguments: &[Value]) -> usize {
    let [text, old, new, ..] = arguments else { return 0 };
    let [text, old, new] = [text, old, new].map(|value| python::text_of(value));
    let found = if old.is_empty() { text.len() + 1 } else { text.matches(&*old).count() };
    text.len().saturating_add(found.saturating_mul(new.len()))
}

/// Result of joining `arguments[list]` by `arguments[separator]`.
fn joined(list: Option<&Value>, separator: Option<&Value>) -> usize {
    let count = list.and_then(Value::len).unwrap_or(0);
    count.saturating_mul(separator.and_then(Value::as_str).map_or(0, str::len))
}

/// Result of the filter `join(separator)`; the elements count as operands.
pub(super) fn joined_by_filter(arguments: &[Value]) -> usize {
    joined(arguments.first(), arguments.get(1))
}

/// Result of a string's `join(list)`.
pub(super) fn joined_by_method(arguments: &[Value]) -> usize {
    joined(arguments.get(1), arguments.first())
}

/// Result of `indent(width)`.
pub(super) fn indented(arguments: &[Value]) -> usize {
    let lines = arguments.first().and_then(Value::as_str).map_or(0, |t| t.lines().count());
    let named = |value: &Value| value.get_attr("width").ok().and_then(|width| width.as_usize());
    let width = arguments.get(1).and_then(|value| value.as_usize().or_else(|| named(value)));
    lines.saturating_mul(width.unwrap_or(4))
}

/// Result of a format string: the widths that it names, and the widths that are given.
pub(super) fn formatted(arguments: &[Value]) -> usize {
    let Some(text) = arguments.first().and_then(Value::as_str) else { return 0 };
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let named = digits.map(|run| run.parse::<usize>().unwrap_or(usize::MAX));
    let given = arguments[1..].iter().map(|value| {
        if text.contains('*') || text.contains("{:{") { value.as_usize().unwrap_or(0) } else { 0 }
    });
    named.chain(given).fold(0, usize::saturating_add)
}
