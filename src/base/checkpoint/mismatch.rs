//! Differences between the tensors that are there and those that should be.
//!
//! Owns telling all of them in few lines: the same difference in many layers is one line,
//! `model.layers.{0..31}.self_attn.q_proj.bias`.

use std::collections::{BTreeMap, BTreeSet};

use super::header::shown;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Mismatch {
    /// Expected and not there.
    #[error("`{tensor}` is missing{}", like(nearest))]
    Missing {
        /// Checkpoint key.
        tensor: String,
        /// The unexpected name that is most alike.
        nearest: Option<String>,
    },
    /// There and not expected.
    #[error("`{tensor}` is unexpected{}", like(nearest))]
    Unexpected {
        /// Checkpoint key.
        tensor: String,
        /// The expected name that is most alike.
        nearest: Option<String>,
    },
    /// Another shape.
    #[error("`{tensor}` has shape {found:?} instead of {expected:?}")]
    Shape {
        /// Checkpoint key.
        tensor: String,
        /// By the architecture.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A dtype that cannot be loaded.
    #[error("`{tensor}` has dtype {dtype}, which cannot be loaded")]
    Dtype {
        /// Checkpoint key.
        tensor: String,
        /// In the file.
        dtype: String,
    },
    /// Quantised values without the scales that make numbers of them.
    #[error("`{tensor}` has dtype {dtype} and no `{scale}` beside it")]
    NoScale {
        /// Checkpoint key.
        tensor: String,
        /// In the file.
        dtype: String,
        /// Checkpoint key of the scales.
        scale: String,
    },
    /// Not in the shard that the index says.
    #[error("{}", place(tensor, expected.as_deref(), found.as_deref()))]
    Place {
        /// Checkpoint key.
        tensor: String,
        /// By the index, if it names the tensor.
        expected: Option<String>,
        /// Where it is, if it is anywhere.
        found: Option<String>,
    },
}

fn place(tensor: &str, expected: Option<&str>, found: Option<&str>) -> String {
    match (expected, found) {
        (Some(expected), Some(found)) => format!("`{tensor}` is in `{found}`, not in `{expected}`"),
        (Some(expected), None) => format!("`{tensor}` is not in `{expected}`"),
        (None, found) => {
            format!("`{tensor}` in `{}` is not in the index", found.unwrap_or_default())
        }
    }
}

fn like(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (nearest: `{name}`)")).unwrap_or_default()
}

/// At most so many lines, each for one kind of tensor. Checkpoints of real models that
/// belong to another architecture have dozens.
const MAX_LINES: usize = 1000;

/// Names without a counterpart are compared with every other kind of name only so often.
const MAX_COMPARED: usize = 1000;

impl Mismatch {
    fn name(&self) -> &str {
        match self {
            Self::Missing { tensor, .. }
            | Self::Unexpected { tensor, .. }
            | Self::Shape { tensor, .. }
            | Self::Dtype { tensor, .. }
            | Self::NoScale { tensor, .. }
            | Self::Place { tensor, .. } => tensor,
        }
    }

    /// The same difference with every name in it passed through `change`.
    fn renamed(&self, change: impl Fn(&str) -> String) -> Self {
        let mut renamed = self.clone();
        match &mut renamed {
            Self::Missing { tensor, nearest } | Self::Unexpected { tensor, nearest } => {
                *tensor = change(tensor);
                *nearest = nearest.as_deref().map(change);
            }
            Self::NoScale { tensor, scale, .. } => {
                *tensor = change(tensor);
                *scale = change(scale);
            }
            Self::Shape { tensor, .. }
            | Self::Dtype { tensor, .. }
            | Self::Place { tensor, .. } => *tensor = change(tensor),
        }
        renamed
    }
}

/// How many of each kind.
pub(super) fn summary(problems: &[Mismatch]) -> String {
    if let [problem] = problems {
        return problem.renamed(shown).to_string();
    }
    let kind = |problem: &Mismatch| match problem {
        Mismatch::Missing { .. } => "missing",
        Mismatch::Unexpected { .. } => "unexpected",
        Mismatch::Shape { .. } => "misshapen",
        Mismatch::Dtype { .. } | Mismatch::NoScale { .. } => "unloadable",
        Mismatch::Place { .. } => "misplaced",
    };
    let kinds = ["missing", "unexpected", "misshapen", "unloadable", "misplaced"];
    let count = |name| problems.iter().filter(|problem| kind(problem) == name).count();
    let counted = kinds.into_iter().map(|name| (name, count(name)));
    let words = counted.filter(|(_, count)| *count > 0).map(|(name, n)| format!("{n} {name}"));
    format!("{} tensors", words.collect::<Vec<_>>().join(", "))
}

/// All of them: by kind, one line for what differs only in the numbers of layers and experts.
pub(super) fn lines(problems: &[Mismatch]) -> Vec<String> {
    if problems.len() == 1 {
        return Vec::new();
    }
    let mut groups: BTreeMap<Mismatch, BTreeSet<Vec<usize>>> = BTreeMap::new();
    for problem in problems {
        let numbers = Pattern::of(problem.name()).numbers;
        // A nearest name of another layer stays as it is.
        let kind = problem.renamed(|name| {
            let pattern = Pattern::of(name);
            if pattern.numbers == numbers { pattern.text } else { name.to_owned() }
        });
        groups.entry(kind).or_default().insert(numbers);
    }
    let mut lines = Vec::new();
    for (problem, numbers) in &groups {
        let numbers: Vec<&[usize]> = numbers.iter().map(Vec::as_slice).collect();
        for ranges in collapse(&numbers) {
            lines.push(problem.renamed(|name| shown(&fill(name, &ranges))).to_string());
        }
    }
    let more = lines.len().saturating_sub(MAX_LINES);
    lines.truncate(MAX_LINES);
    if more > 0 {
        lines.push(format!("and {more} more of other names"));
    }
    lines
}

/// A name with its numbers taken out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    /// With [`HOLE`] in the place of each part that is a number.
    text: String,
    numbers: Vec<usize>,
}

/// Stands for a number. A name that has it itself is only told a little worse.
const HOLE: &str = "\u{0}";

impl Pattern {
    fn of(name: &str) -> Self {
        let mut numbers = Vec::new();
        let parts: Vec<&str> = name
            .split('.')
            .map(|part| match part.parse::<usize>() {
                // `007` would not come back as it was.
                Ok(number) if number.to_string() == part => {
                    numbers.push(number);
                    HOLE
                }
                _ => part,
            })
            .collect();
        Self { text: parts.join("."), numbers }
    }
}

/// Puts one text into each hole, as far as they reach.
fn fill(text: &str, holes: &[String]) -> String {
    let mut holes = holes.iter();
    let fill = |part| if part == HOLE { holes.next().map_or(HOLE, String::as_str) } else { part };
    text.split('.').map(fill).collect::<Vec<_>>().join(".")
}

/// Rows of numbers (sorted, of one length) as few products of ranges: `{0..31}`, `{1,3}`.
fn collapse(rows: &[&[usize]]) -> Vec<Vec<String>> {
    let mut tails: BTreeMap<usize, Vec<&[usize]>> = BTreeMap::new();
    for row in rows {
        match row.split_first() {
            Some((first, tail)) => tails.entry(*first).or_default().push(tail),
            None => return vec![Vec::new()],
        }
    }
    // Firsts with the same tails are one product.
    let mut products: BTreeMap<Vec<Vec<String>>, Vec<usize>> = BTreeMap::new();
    for (first, tails) in tails {
        products.entry(collapse(&tails)).or_default().push(first);
    }
    let mut products: Vec<_> = products.into_iter().collect();
    products.sort_by(|a, b| a.1.cmp(&b.1));
    let mut result = Vec::new();
    for (tails, firsts) in products {
        for tail in tails {
            result.push([vec![ranges(&firsts)], tail].concat());
        }
    }
    result
}

/// Sorted numbers in words: `5`, `{0..3}`, `{0..3,7}`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let words = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}..{last}"),
    });
    let words = words.collect::<Vec<_>>().join(",");
    if numbers.len() > 1 { format!("{{{words}}}") } else { words }
}

/// Finds for a name the most alike among others.
///
/// Compares kinds of names rather than names: a checkpoint of a mixture of experts has
/// tens of thousands.
pub(super) struct Nearest<'a> {
    others: BTreeMap<String, Vec<&'a str>>,
    found: BTreeMap<String, Option<String>>,
}

impl<'a> Nearest<'a> {
    pub(super) fn new(others: impl IntoIterator<Item = &'a str>) -> Self {
        let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for name in others {
            kinds.entry(Pattern::of(name).text).or_default().push(name);
        }
        for names in kinds.values_mut() {
            names.sort_unstable();
        }
        Self { others: kinds, found: BTreeMap::new() }
    }

    /// The name most like `name`, in the same layer where there is one.
    pub(super) fn to(&mut self, name: &str) -> Option<String> {
        let Pattern { text, numbers } = Pattern::of(name);
        if !self.found.contains_key(&text) && self.found.len() >= MAX_COMPARED {
            return None;
        }
        let others = &self.others;
        // First by the parts at the end, which say what a tensor does; the beginning differs
        // wherever a whole model stands under another name.
        let alike = |other: &str| (same_end(other, &text), strsim::jaro(other, &text));
        let kind = self.found.entry(text.clone()).or_insert_with(|| {
            let scored = others.keys().take(MAX_COMPARED).map(|other| (alike(other), other));
            let nearest = scored.max_by(|((ends, jaro), _), ((other_ends, other_jaro), _)| {
                ends.cmp(other_ends).then(jaro.total_cmp(other_jaro))
            });
            nearest.map(|(_, other)| other.clone())
        });
        let kind = kind.as_deref()?;
        let names = others.get(kind)?;
        let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
        let same = fill(kind, &numbers);
        let name = names.binary_search(&same.as_str()).map_or(names.first(), |at| names.get(at));
        name.map(|name| (*name).to_owned())
    }
}

/// How many dotted parts at their ends two names share.
fn same_end(a: &str, b: &str) -> usize {
    a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(tensor: &str) -> Mismatch {
        Mismatch::Missing { tensor: tensor.to_owned(), nearest: None }
    }

    #[test]
    fn layers_and_experts_are_told_as_ranges() {
        let mut problems = Vec::new();
        for layer in 0..4 {
            problems.push(missing(&format!("model.layers.{layer}.self_attn.q_proj.bias")));
            for expert in 0..8 {
                problems.push(missing(&format!("model.layers.{layer}.mlp.experts.{expert}.w1")));
            }
        }
        problems.push(missing("model.layers.7.mlp.experts.3.w1"));
        problems.push(missing("model.layers.9.self_attn.q_proj.bias"));
        assert_eq!(
            lines(&problems),
            [
                "`model.layers.{0..3}.mlp.experts.{0..7}.w1` is missing",
                "`model.layers.7.mlp.experts.3.w1` is missing",
                "`model.layers.{0..3,9}.self_attn.q_proj.bias` is missing",
            ]
        );
        assert_eq!(summary(&problems), "38 missing tensors");
    }

    #[test]
    fn one_difference_is_told_in_the_sentence() {
        let problems = [missing("model.norm.weight")];
        assert_eq!(summary(&problems), "`model.norm.weight` is missing");
        assert!(lines(&problems).is_empty());
    }

    #[test]
    fn the_nearest_name_is_one_of_the_same_layer() {
        let names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.up_proj.weight"];
        let names = names.into_iter().chain(["model.layers.3.self_attn.q_proj.weight", "norm"]);
        let mut nearest = Nearest::new(names);
        let found = nearest.to("model.layers.3.attn.q_proj.weight");
        assert_eq!(found.as_deref(), Some("model.layers.3.self_attn.q_proj.weight"));
        // Without one in its layer, the first.
        let found = nearest.to("model.layers.5.attn.q_proj.weight");
        assert_eq!(found.as_deref(), Some("model.layers.0.self_attn.q_proj.weight"));
        assert_eq!(Nearest::new([]).to("norm"), None);
    }

    #[test]
    fn a_projection_under_another_beginning_is_told_as_itself() {
        let parts = ["q_proj", "k_proj", "v_proj", "o_proj"];
        let found = parts.map(|part| format!("layers.3.self_attn.{part}.weight"));
        let mut nearest = Nearest::new(found.iter().map(String::as_str));
        for (part, found) in parts.iter().zip(&found) {
            let asked = format!("model.layers.3.self_attn.{part}.weight");
            assert_eq!(nearest.to(&asked).as_ref(), Some(found));
        }
        // A name that is no end of any other is found by its letters.
        let found = nearest.to("layers.3.self_attn.k_proj.wieght");
        assert_eq!(found.as_deref(), Some("layers.3.self_attn.k_proj.weight"));
    }

    #[test]
    fn a_name_that_would_move_the_cursor_is_shown_without() {
        let problems =
            [missing("\u{1b}[2Jgone"), missing(&"long".repeat(1000)), missing("a\u{0}b")];
        let lines = lines(&problems);
        assert!(lines.iter().all(|line| line.len() < 300), "{lines:?}");
        assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{lines:?}");
    }

    #[test]
    fn a_million_strange_names_end() {
        let problems: Vec<Mismatch> = (0..100_000).map(|n| missing(&format!("t{n}x"))).collect();
        assert_eq!(lines(&problems).len(), MAX_LINES + 1);
    }
}
