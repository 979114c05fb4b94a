//! `heirloom data stats`.

use std::path::PathBuf;

use owo_colors::OwoColorize as _;

use super::words::{plural, verdicts};
use super::{look, visible};
use crate::cli::check::{Output, grouped};
use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::dataset::error::DatasetError;
use crate::dataset::look::Look;
use crate::dataset::stats::{
    Bar, Duplicates, Found, Leak, Leakage, Overlap, Script, SplitStats, Stats, stats,
};
use crate::diagnose::Failure;
use crate::recipe::{Data, Overlong, WriteError};

/// Rows between two movements of the progress bar.
const BETWEEN_MOVES: u64 = 256;

/// Columns of the longest bar.
const BAR_WIDTH: u64 = 40;

/// Read every row once: lengths, scripts, duplicates, odd turns, leakage.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Rows that the consent gate refuses are counted, and nothing else is known of them. What is
printed has record ids and never a text.

Examples:
  heirloom data stats recipes/quickstart.yaml
  heirloom data stats recipes/quickstart.yaml --model data/seedling
  heirloom data stats recipes/quickstart.yaml --set data.sequence_length=128 --format json")]
pub(super) struct Arguments {
    /// The recipe, a YAML file
    recipe: PathBuf,
    /// Read with the tokenizer and the chat template of this model instead of the recipe's
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Change a value of the recipe; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let Arguments { recipe, model, sets, format } = arguments;
    let (look, recipe) = look::of_recipe(recipe, sets, model.as_deref(), printer)?;
    let stats = read(&look, &recipe.data, printer)?;
    printer.data(&match format {
        Output::Text => text(&stats),
        Output::Json => visible::json(&stats).map_err(WriteError::Json)?,
    })?;
    Ok(ExitStatus::Success)
}

fn read(look: &Look, data: &Data, printer: Printer) -> Result<Stats, DatasetError> {
    let mut rows = 0;
    for split in look.splits() {
        rows += look.rows(&split)?;
    }
    let bar = printer.bar(rows, "rows");
    let mut done = 0;
    let result = stats(look, data, || {
        done += 1;
        if done % BETWEEN_MOVES == 0 {
            bar.inc(BETWEEN_MOVES);
        }
    });
    bar.finish_and_clear();
    result
}

fn text(stats: &Stats) -> String {
    let mut parts: Vec<String> = stats.splits.iter().map(|split| of_split(split, stats)).collect();
    parts.push(section("tokens per character, by script", scripts(&stats.scripts)));
    parts.push(section("duplicates in train", duplicates(&stats.duplicates)));
    if !stats.leakage.splits.is_empty() {
        parts.push(section("held-out rows that are in train as well", leakage(&stats.leakage)));
    }
    parts.join("\n\n")
}

fn section(title: &str, lines: Vec<String>) -> String {
    let lines = lines.iter().map(|line| format!("\n  {line}"));
    format!("{}{}", title.bold(), lines.collect::<String>())
}

fn of_split(split: &SplitStats, stats: &Stats) -> String {
    let rows = &split.rows;
    let used = format!("{} of {} used", grouped(rows.used), grouped(rows.seen));
    let mut lines = vec![line("rows", &used)];
    if !rows.excluded.is_empty() {
        lines.push(line("refused", &verdicts(rows)));
    }
    if split.held_out > 0 {
        let rows = plural(split.held_out, "row");
        lines.push(line("held out", &format!("{rows}, by `data.validation_split`")));
    }
    lines.push(line(
        "tokens",
        &format!("{}, {} trained", grouped(split.tokens), grouped(split.trained_tokens)),
    ));
    if split.sources.len() > 1 {
        for source in &split.sources {
            let path = visible::visible(&source.path);
            let (tokens, trained) = (grouped(source.tokens), grouped(source.trained_tokens));
            lines.push(line("", &format!("{tokens:>11} {trained:>11} trained  {path}")));
        }
    }
    let lengths = &split.lengths;
    lines.push(line(
        "lengths",
        &format!(
            "min {}, median {}, p95 {}, p99 {}, max {} tokens",
            grouped(lengths.min.into()),
            grouped(lengths.median.into()),
            grouped(lengths.p95.into()),
            grouped(lengths.p99.into()),
            grouped(lengths.max.into())
        ),
    ));
    lines.extend(histogram(&lengths.histogram));
    lines.extend(overlong(split, stats));
    let mut odd = |name: &str, found: &Found, what: &str| {
        if found.rows > 0 {
            let text = format!("{} {what}", plural(found.rows, "row"));
            lines.push(line(name, &text).yellow().to_string());
            lines.push(line("", &ids(found)));
        }
    };
    odd("broken", &split.broken, "that cannot be tokenised: a run is refused");
    odd("empty", &split.empty_turns, "with a turn in which nothing is said");
    odd("roles", &split.not_alternating, "in which user and assistant do not take turns");
    let said = split.special_tokens_said.iter();
    let said = said.map(|(token, rows)| format!("{} ({rows})", visible::visible(token)));
    let said = said.collect::<Vec<_>>().join(", ");
    odd(
        "special",
        &split.special_tokens,
        &format!("in which somebody says a special token: {said}"),
    );
    section(&split.split, lines)
}

fn line(name: &str, value: &str) -> String {
    format!("{name:<11} {value}")
}

/// `a, b, …`
fn ids(found: &Found) -> String {
    let more = if found.rows > found.examples.len() as u64 { ", …" } else { "" };
    let ids: Vec<String> = found.examples.iter().map(|id| visible::visible(id)).collect();
    format!("{}{more}", ids.join(", "))
}

fn histogram(bars: &[Bar]) -> Vec<String> {
    let most = bars.iter().map(|bar| bar.rows).max().unwrap_or_default().max(1);
    let label = |bar: &Bar| match bar.from == bar.to {
        true => grouped(bar.from.into()),
        false => format!("{}–{}", grouped(bar.from.into()), grouped(bar.to.into())),
    };
    let width = bars.iter().map(|bar| label(bar).chars().count()).max().unwrap_or_default();
    let row = |bar: &Bar| {
        // In eighths of a column, so that few rows are not none.
        let eighths = (bar.rows * BAR_WIDTH * 8).div_ceil(most);
        let blocks = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
        let mut shape = "█".repeat((eighths / 8) as usize);
        shape.extend((eighths % 8).checked_sub(1).and_then(|part| blocks.get(part as usize)));
        line("", &format!("{:>width$} {} {}", label(bar), shape.cyan(), grouped(bar.rows)))
    };
    bars.iter().map(row).collect()
}

/// What becomes of rows longer than a window.
fn overlong(split: &SplitStats, stats: &Stats) -> Vec<String> {
    let window = grouped(stats.sequence_length as u64);
    if split.split != "train" {
        return Vec::new();
    }
    if split.overlong.rows == 0 {
        return vec![line("overlong", &format!("none is longer than a window of {window}"))];
    }
    let rows = plural(split.overlong.rows, "row");
    let lost = grouped(split.trained_tokens_lost);
    let left_out = match split.overlong_left_out {
        0 => String::new(),
        rows => format!("; {} of them left out, being without a trained token", grouped(rows)),
    };
    let fate = match stats.overlong {
        Overlong::Refuse => "a run is refused".to_owned(),
        Overlong::Drop => format!("left out, with {lost} trained tokens"),
        Overlong::Truncate => {
            format!("cut off there, with {lost} trained tokens beyond{left_out}")
        }
        Overlong::Split => format!("cut into windows that do not see each other{left_out}"),
    };
    let text = format!("{rows} longer than a window of {window}: {fate}");
    vec![line("overlong", &text).yellow().to_string(), line("", &ids(&split.overlong))]
}

/// Scripts whose characters are syllables or words: a token each is no waste.
const DENSE: [&str; 8] =
    ["Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Yi", "Ethiopic", "Cherokee"];

/// Times the cheapest script from which one costs notably more.
const NOTABLE: f64 = 2.0;

/// Tokens a character from which a dense script costs notably more.
const NOTABLE_DENSE: f64 = 1.2;

/// Characters below which a script's cost says little.
const FEW_CHARACTERS: u64 = 100;

fn scripts(scripts: &[Script]) -> Vec<String> {
    let mut lines: Vec<String> = scripts
        .iter()
        .map(|script| {
            format!(
                "{:<22} {:>6.2}   {} in {}",
                script.script,
                script.tokens_per_character,
                plural(script.characters, "character"),
                plural(script.tokens, "token")
            )
        })
        .collect();
    let cheapest = cheapest(scripts);
    lines.extend(scripts.iter().filter_map(|script| costs_more(script, cheapest?)));
    lines
}

/// The script with which others are compared.
fn cheapest(scripts: &[Script]) -> Option<&Script> {
    let counts = |script: &&Script| {
        script.characters >= FEW_CHARACTERS
            && script.script != "Common"
            && !DENSE.contains(&script.script)
    };
    let all = scripts.iter().filter(counts);
    all.min_by(|one, other| one.tokens_per_character.total_cmp(&other.tokens_per_character))
}

/// A sentence on a script that costs notably more than the cheapest.
fn costs_more(script: &Script, cheapest: &Script) -> Option<String> {
    let Script { script: name, characters, tokens_per_character: cost, .. } = script;
    let times = cost / cheapest.tokens_per_character;
    let dense = DENSE.contains(name);
    let notable = if dense { *cost > NOTABLE_DENSE } else { times >= NOTABLE };
    if !notable || *characters < FEW_CHARACTERS || *name == "Common" {
        return None;
    }
    let sentence = format!(
        "{name} takes {cost:.1} tokens a character, {times:.1} times {}: a window holds so much \
         less of it, and each character costs so much more to train and to generate",
        cheapest.script
    );
    Some(sentence.yellow().to_string())
}

fn duplicates(found: &Duplicates) -> Vec<String> {
    let about = if found.sampled_one_in > 1 { "about " } else { "" };
    let mut lines = vec![
        line("exact", &format!("{about}{}", plural(found.exact, "row"))),
        line(
            "normalised",
            &format!(
                "{about}{}, when case and white space do not count ({} within a file, {} across \
                 files)",
                plural(found.normalised, "row"),
                grouped(found.within_files),
                grouped(found.across_files)
            ),
        ),
    ];
    for repeat in &found.examples {
        let (id, earlier) =
            (visible::visible(&repeat.record_id), visible::visible(&repeat.repeats));
        lines.push(line("", &format!("{id} repeats {earlier}")));
    }
    if found.sampled_one_in > 1 {
        let one_in = grouped(found.sampled_one_in);
        lines.push(line("", &format!("estimated from one text in {one_in}")));
    }
    lines
}

fn leakage(leakage: &Leakage) -> Vec<String> {
    let mut lines = Vec::new();
    let width = leakage.splits.iter().map(|leak| leak.split.chars().count()).max();
    let width = width.unwrap_or_default().max(11);
    for leak in &leakage.splits {
        let leaks = leak.same_conversation + leak.same_opening + leak.near_duplicate > 0;
        let text = format!("{:<width$} {}", leak.split, of_leak(leak));
        lines.push(if leaks { text.yellow().to_string() } else { text });
        for example in &leak.examples {
            let how = match example.overlap {
                Overlap::SameConversation => "says the same as",
                Overlap::SameOpening => "opens like",
                Overlap::NearDuplicate => "is much like",
            };
            let (id, train) =
                (visible::visible(&example.record_id), visible::visible(&example.train));
            lines.push(line("", &format!("{id} {how} {train}")));
        }
    }
    if leakage.not_compared > 0 {
        let rows = plural(leakage.not_compared, "further row");
        lines.push(format!("{rows} not compared"));
    }
    lines
}

fn of_leak(leak: &Leak) -> String {
    format!(
        "of {}: {} the same conversation, {} the same opening, {} near-duplicates",
        plural(leak.rows, "row"),
        grouped(leak.same_conversation),
        grouped(leak.same_opening),
        grouped(leak.near_duplicate)
    )
}
