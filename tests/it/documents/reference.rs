//! The tables of the reference against the types that they describe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use heirloom::recipe;
use heirloom::run::{EvalReport, RunFolder, Sample, Scores, Summary};
use heirloom::track::{Cause, Event, FIGURES, Happened, StepMetrics, ValidationMetrics};
use serde_json::Value;

use super::{fenced, read};
use crate::world::World;

/// Cells of the tables whose header begins with `header`.
fn rows<'t>(text: &'t str, header: &str) -> Vec<Vec<&'t str>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        inside = line.starts_with('|') && (inside || line.starts_with(header));
        if inside && line.starts_with("| `") {
            // A bar within a cell is written `\|`, and none is needed here.
            rows.push(line.trim_matches('|').split('|').map(str::trim).collect());
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Every leaf and every list of `value` by its key, numbers of entries as `[]`.
fn keys(value: &Value, path: &str, into: &mut BTreeMap<String, Value>) {
    if !path.is_empty() {
        into.insert(path.to_owned(), value.clone());
    }
    match value {
        Value::Object(members) => members.iter().for_each(|(key, member)| {
            let dot = if path.is_empty() { "" } else { "." };
            keys(member, &format!("{path}{dot}{key}"), into);
        }),
        Value::Array(entries) if entries.iter().any(Value::is_object) => {
            entries.iter().for_each(|entry| keys(entry, &format!("{path}[]"), into));
        }
        _ => {}
    }
}

/// A cell such as `[ai:ModelFineTuning]` or `1.0e-8` as the recipe would read it.
fn default_of(cell: &str) -> Option<Value> {
    let text = quoted(cell).first().copied()?;
    let read = |text: &str| serde_json::from_str(text).ok();
    let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let list = list.map(|word| Value::from(vec![word.to_owned()]));
    read(text).or(list).or(Some(Value::from(text)))
}

/// As numbers are equal, not as they are written.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        _ => one == other,
    }
}

#[test]
fn the_recipe_reference_has_every_key_with_its_default() {
    let reference = read("docs/reference/recipe.md");
    let example = fenced(&reference, "yaml").join("\n");
    let path = Path::new("docs/reference/recipe.md");
    let literal = recipe::read::parse(path, &example, &[]).unwrap();
    let mut found = BTreeMap::new();
    keys(&serde_json::to_value(&literal.recipe).unwrap(), "", &mut found);
    // What is off unless it is written, with its defaults.
    let on = [
        "train.loss_spike={}",
        "train.early_stopping={patience: 1}",
        "track=[{wandb: {}}, {mlflow: {}}]",
    ];
    let literal = recipe::read::parse(path, &example, &on.map(str::to_owned)).unwrap();
    let mut off = BTreeMap::new();
    keys(&serde_json::to_value(&literal.recipe).unwrap(), "", &mut off);
    off.retain(|key, _| !found.contains_key(key));
    found.extend(off);
    // Of what there are several of, the example has one.
    let muon = "train.optimizer={muon: {lr: 1, adamw: {lr: 1}}}";
    let others = ["adamw_8bit", "adafactor", "lion"].map(optimizer);
    let schedules = ["constant", "linear", "cosine_with_restarts", "warmup_stable_decay"];
    let schedules = schedules.map(schedule).into_iter().chain([schedule("inverse_sqrt")]);
    let sets = others.into_iter().chain(schedules).map(|set| vec![set]);
    let objectives = ["dpo", "orpo", "kto", "simpo"];
    let format = |word| if word == "kto" { "kto" } else { "preference" };
    let objective = |word| {
        let mut sets = vec![format!("objective={{{word}: {{}}}}")];
        sets.push("data.train_on=completion".to_owned());
        let lists = ["train", "validation"].into_iter();
        sets.extend(lists.map(|list| format!("data.{list}[0].format={}", format(word))));
        sets
    };
    let sets = sets.chain(objectives.map(objective));
    let taught = "objective={distillation: {teacher: {model: m}}}".to_owned();
    let sets = sets.chain([vec![taught]]);
    let groups = "train.param_groups=[{params: [lora_B]}]".to_owned();
    let vera = "adapter={vera: {rank: 1}}".to_owned();
    let muon = vec![muon.to_owned(), "adapter=full".to_owned()];
    for sets in sets.chain([muon, vec![groups], vec![vera]]) {
        let literal = recipe::read::parse(path, &example, &sets).unwrap();
        let mut more = BTreeMap::new();
        keys(&serde_json::to_value(&literal.recipe).unwrap(), "", &mut more);
        more.into_iter().for_each(|(key, value)| {
            found.entry(key).or_insert(value);
        });
    }

    let mut documented = BTreeSet::new();
    for row in rows(&reference, "| key | default |") {
        let [names, default, _] = row.as_slice() else { panic!("{row:?}") };
        for key in quoted(names) {
            documented.insert(key.to_owned());
            let Some(default) = default_of(default) else {
                // Without a default: refused when it is left out.
                continue;
            };
            let written = example_has(&example, key);
            if let Some(value) = found.get(key).filter(|_| !written) {
                assert!(same(value, &default), "`{key}` is {value}, not {default}");
            }
        }
    }
    // Of `constant`, the other schedule, and of what is off unless it is written, the example
    // has nothing.
    let others = ["train.schedule.constant.", "train.loss_spike.", "train.early_stopping."];
    let known =
        |key: &String| found.contains_key(key) || others.iter().any(|other| key.starts_with(other));
    let unknown: Vec<&String> = documented.iter().filter(|key| !known(key)).collect();
    assert!(unknown.is_empty(), "no such keys: {unknown:?}");
    let leaf = |key: &&String| {
        let below = |other: &String| {
            other.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let entry = key.ends_with("[]");
        !entry && !found.keys().any(below)
    };
    let missing: Vec<&String> =
        found.keys().filter(leaf).filter(|key| !documented.contains(*key)).collect();
    assert!(missing.is_empty(), "not in the reference: {missing:?}");
}

fn optimizer(word: &str) -> String {
    format!("train.optimizer={{{word}: {{lr: 1}}}}")
}

fn schedule(word: &str) -> String {
    format!("train.schedule={{{word}: {{}}}}")
}

/// Whether the example writes the last part of a key: it is short, and has no word twice
/// that has a default.
fn example_has(example: &str, key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    example.contains(&format!("{last}:"))
}

#[test]
fn the_reference_of_metrics_has_every_field() {
    let scores = Scores { exact_match: 0.0, loss: 0.0, tokens: 0 };
    let step = StepMetrics {
        step: 0,
        epoch: 0.0,
        loss: 0.0,
        lr: 0.0,
        grad_norm: 0.0,
        tokens: 0,
        trained_tokens: 0,
        tokens_per_second: 0.0,
        seconds: 0.0,
        figures: FIGURES.map(|name| (name.to_owned(), 0.0)).into(),
    };
    let validation = ValidationMetrics {
        step: 0,
        epoch: 0.0,
        validation_loss: 0.0,
        validation_tokens: 0,
        seconds: 0.0,
        figures: [].into(),
    };
    let event = Event {
        step: 0,
        epoch: 0.0,
        event: Happened::RollBack,
        cause: Cause::LossSpike,
        value: String::new(),
        to_step: Some(0),
        seconds: 0.0,
    };
    let report = EvalReport {
        suite: String::new(),
        rows: 0,
        target: scores,
        baseline: None,
        samples: Vec::new(),
    };
    let fields = |value: Result<Value, serde_json::Error>| -> Vec<String> {
        value.unwrap().as_object().unwrap().keys().cloned().collect()
    };
    let expected = [
        fields(serde_json::to_value(step)),
        fields(serde_json::to_value(validation)),
        fields(serde_json::to_value(event)),
        fields(serde_json::to_value(report)),
        fields(serde_json::to_value(scores)),
    ]
    .concat();
    let reference = read("docs/reference/metrics.md");
    let documented: Vec<&str> =
        rows(&reference, "| field |").iter().flat_map(|row| quoted(row[0])).collect();
    assert_eq!(documented, expected);
    assert!(reference.contains("`validation_rewards/margins`"));
    let sample = Sample {
        record_id: String::new(),
        prompt: String::new(),
        reference: String::new(),
        baseline: None,
        target: String::new(),
    };
    for field in fields(serde_json::to_value(sample)) {
        assert!(reference.contains(&format!("`{field}`")), "`{field}` of a sample");
    }
}

#[test]
fn the_reference_of_the_run_folder_has_every_file() {
    let reference = read("docs/reference/run-folder.md");
    let run = RunFolder::new("");
    let files = [
        run.recipe(),
        run.lock(),
        run.consent_report(),
        run.record_tree(),
        run.record_index(),
        run.record_key(),
        run.metrics(),
        run.tensorboard(),
        run.wandb(),
        run.track(),
        run.trainer_lock(),
        run.checkpoints(),
        run.adapter(),
        run.model(),
        run.summary(),
        run.evals(),
        PathBuf::from(run.eval("SUITE").file_name().unwrap()),
    ];
    let listed = fenced(&reference, "");
    for file in files {
        let name = file.to_str().unwrap();
        let has = |line: &&str| {
            line.split_whitespace().next().map(|word| word.trim_end_matches('/')) == Some(name)
        };
        assert!(listed.iter().any(has), "`{name}` is not listed");
    }
    let summary = Summary {
        steps: 0,
        tokens: 0,
        trained_tokens: 0,
        seconds: 0.0,
        peak_memory_bytes: None,
        finished: jiff::Timestamp::UNIX_EPOCH,
        withdrawn_rows: 0,
        trainable_parameters: 0,
        threads: 1,
        libtorch: String::new(),
    };
    for field in serde_json::to_value(summary).unwrap().as_object().unwrap().keys() {
        assert!(reference.contains(&format!("`{field}`")), "`{field}` of the summary");
    }
}

#[test]
fn the_reference_of_commands_has_every_command_and_option() {
    let reference = read("docs/reference/cli.md");
    let world = World::new();
    let options = |help: &str| -> BTreeSet<String> {
        let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        // A line of dashes is a table's.
        let option = |word: &&str| word.starts_with("--") && !word.trim_matches('-').is_empty();
        words.filter(option).map(str::to_owned).collect()
    };
    let commands = |help: &str| -> Vec<String> {
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        // The lines on a command are indented by two, what follows them by more.
        let starts = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = starts.filter_map(|line| line.split_whitespace().next());
        names.filter(|name| *name != "help").map(str::to_owned).collect()
    };
    let all = commands(&world.heirloom(&["--help"]).stdout);
    assert!(all.iter().any(|command| command == "check"), "{all:?}");
    for command in all.iter().map(String::as_str) {
        let start = format!("\n## {command}\n");
        let section = reference.split_once(&start).map(|(_, rest)| rest);
        let section = section.unwrap_or_else(|| panic!("no section on `{command}`"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let common: BTreeSet<String> = ["--help", "--quiet"].map(str::to_owned).into();
        let help = world.heirloom(&[command, "--help"]).stdout;
        let mut real = options(&help);
        for part in commands(&help) {
            assert!(section.contains(&format!("heirloom {command} {part}")), "`{command} {part}`");
            real.extend(options(&world.heirloom(&[command, part.as_str(), "--help"]).stdout));
        }
        let told = options(section);
        let missing: Vec<_> =
            real.difference(&told).filter(|word| !common.contains(*word)).collect();
        assert!(missing.is_empty(), "`{command}` also has {missing:?}");
        let invented: Vec<_> = told.difference(&real).collect();
        assert!(invented.is_empty(), "`{command}` has no {invented:?}");
    }
}
