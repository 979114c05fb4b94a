//! `heirloom check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::exit::ExitStatus;
use super::printer::Printer;
use super::target;
use crate::dataset::consent::{Counts, Reason};
pub(super) use crate::diagnose::grouped;
use crate::diagnose::{Diagnose as _, Failure, amount};
use crate::hub::Need;
use crate::job::Device;
use crate::recipe::lock::{Size, Split};
use crate::recipe::memory::limit::{self, Limit, LimitError};
use crate::recipe::memory::{Memory, MemoryError, Moment, Setting};
use crate::recipe::plan::{Parameters, Plan, Warning};
use crate::recipe::problem::{Place, Problem, RecipeError};
use crate::recipe::{
    self, Adapter, Base, Distillation, Literal, Objective, PUBLISHING, Quantization, Storage,
    WriteError,
};
use crate::track::rows::Rows;

/// Say what a recipe would do, or everything that is wrong with it, without training.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  heirloom check recipes/quickstart.yaml
  heirloom check recipes/quickstart.yaml --set train.epochs=1 --set adapter.lora.rank=8
  heirloom check recipes/quickstart.yaml --format json")]
pub(super) struct Arguments {
    /// The recipe, a YAML file.
    recipe: PathBuf,
    /// Change a value of the recipe; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Where the run would compute: `cpu`, `cuda` or `cuda:N`. The memory of a device of CUDA is
    /// not asked for.
    #[arg(long, default_value_t)]
    device: Device,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Output,
}

/// For whom a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let rows = Rows::new(printer.into());
    let planned = recipe::read(&arguments.recipe, &arguments.sets)
        .and_then(|literal| target::pin(literal, Need::Sizes, printer))
        .and_then(|literal| Plan::make(&literal, Timestamp::now(), &|more| rows.advance(more)));
    rows.finish();
    let (answer, status) = match (planned, arguments.format) {
        (Ok(plan), Output::Text) => {
            printer.data(&describe(&plan))?;
            warn(&plan, printer);
            fits(&plan, arguments.device)?;
            printer.note(&format!("\nnext: {}", next_command(arguments)));
            return Ok(ExitStatus::Success);
        }
        (Ok(plan), Output::Json) => {
            let limit = limit_of(arguments.device)?;
            let misfit = limit.and_then(|limit| plan.fits(limit).err());
            let status = if misfit.is_some() { ExitStatus::Failure } else { ExitStatus::Success };
            let path = &arguments.recipe;
            (
                json(&Answer::of(&plan, path, limit.map(|limit| limit.bytes), misfit.as_ref())),
                status,
            )
        }
        (Err(RecipeError::Problems { problems, .. }), Output::Json) => {
            (json(&Answer::bad(&problems)), ExitStatus::Failure)
        }
        (Err(error), _) => return Err(error.into()),
    };
    printer.data(&answer?)?;
    Ok(status)
}

/// Refuses what takes more memory than there is.
pub(super) fn fits(plan: &Plan, device: Device) -> Result<(), Failure> {
    match limit_of(device)? {
        Some(limit) => Ok(plan.fits(limit)?),
        None => Ok(()),
    }
}

/// What this machine has; what a device of CUDA has, only it knows.
pub(super) fn limit_of(device: Device) -> Result<Option<Limit>, LimitError> {
    if device == Device::Cpu { limit::read() } else { Ok(None) }
}

/// What a command that computes will do, after a look at everything it names; says what may be
/// a mistake.
pub(super) fn plan(literal: Literal, printer: Printer) -> Result<Plan, Failure> {
    let literal = target::pin(literal, Need::Model, printer)?;
    let rows = Rows::new(printer.into());
    let plan = Plan::make(&literal, Timestamp::now(), &|more| rows.advance(more));
    rows.finish();
    let plan = plan?;
    warn(&plan, printer);
    Ok(plan)
}

/// Says what may be a mistake.
pub(super) fn warn(plan: &Plan, printer: Printer) {
    for Warning { message, hint } in &plan.warnings {
        printer.note(&format!("\nwarning: {message}\n  hint: {hint}"));
    }
}

fn json(answer: &Answer<'_>) -> Result<String, WriteError> {
    serde_json::to_string_pretty(answer).map_err(WriteError::Json)
}

/// The command that does what was checked.
fn next_command(arguments: &Arguments) -> String {
    let mut command = format!("heirloom train {}", quoted(&arguments.recipe.to_string_lossy()));
    for set in &arguments.sets {
        command = format!("{command} --set {}", quoted(set));
    }
    match arguments.device {
        Device::Cpu => command,
        device => format!("{command} --device {device}"),
    }
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    problems: Vec<JsonProblem<'a>>,
    plan: Option<JsonPlan<'a>>,
}

#[derive(Serialize)]
struct JsonProblem<'a> {
    file: &'a Path,
    line: Option<usize>,
    column: Option<usize>,
    /// The `--set` that is wrong, where it is not the file.
    set: Option<&'a str>,
    message: String,
    hint: Option<String>,
}

#[derive(Serialize)]
struct JsonPlan<'a> {
    name: &'a str,
    base: &'a Path,
    /// Bytes of weights that `train` would download; while there are any, they are unchecked.
    download_bytes: u64,
    parameters: Parameters,
    rows: BTreeMap<String, Counts>,
    training: &'a Size,
    memory: Memory,
    memory_bytes: u64,
    /// When it is so much.
    memory_peak: Moment,
    /// What there is for the run, where that is known.
    memory_limit_bytes: Option<u64>,
    /// Settings with which it would fit, where it does not.
    fitting: &'a [Setting],
    added_tokens: usize,
    warnings: &'a [Warning],
}

impl<'a> Answer<'a> {
    fn of(
        plan: &'a Plan,
        recipe: &'a Path,
        limit: Option<u64>,
        misfit: Option<&'a MemoryError>,
    ) -> Self {
        let problem = |misfit: &MemoryError| JsonProblem {
            file: recipe,
            line: None,
            column: None,
            set: None,
            message: misfit.to_string(),
            hint: misfit.hint(),
        };
        let plan = JsonPlan {
            name: &plan.recipe.name,
            base: &plan.recipe.base.model,
            download_bytes: plan.pinned.as_ref().map_or(0, |pinned| pinned.lacking),
            parameters: plan.parameters,
            rows: rows_by_split(plan),
            training: &plan.training,
            memory: plan.memory,
            memory_bytes: plan.memory.total(),
            memory_peak: plan.memory.moment,
            memory_limit_bytes: limit,
            fitting: misfit.map_or(&[], |misfit| &misfit.fitting),
            added_tokens: plan.added_tokens,
            warnings: &plan.warnings,
        };
        let problems: Vec<_> = misfit.map(problem).into_iter().collect();
        Self { ok: problems.is_empty(), problems, plan: Some(plan) }
    }

    fn bad(problems: &'a [Problem]) -> Self {
        let problem = |problem: &'a Problem| {
            let (line, column, set) = match &problem.place {
                Place::File { line, column } => (Some(*line), Some(*column), None),
                Place::Set(words) => (None, None, Some(words.as_str())),
            };
            let (message, hint) = (problem.fault.to_string(), problem.fault.hint());
            JsonProblem { file: &problem.file, line, column, set, message, hint }
        };
        Self { ok: false, problems: problems.iter().map(problem).collect(), plan: None }
    }
}

/// Rows of `train`, `validation` and each suite.
fn rows_by_split(plan: &Plan) -> BTreeMap<String, Counts> {
    let mut rows: BTreeMap<String, Counts> = BTreeMap::new();
    for file in &plan.data {
        rows.entry(split_name(&file.split)).or_default().add(&file.rows);
    }
    rows
}

fn split_name(split: &Split) -> String {
    match split {
        Split::Train => "train".to_owned(),
        Split::Validation => "validation".to_owned(),
        Split::Test(suite) => format!("test/{suite}"),
    }
}

/// What is printed for people.
fn describe(plan: &Plan) -> String {
    let recipe = &plan.recipe;
    let mut lines = vec![line("run", &recipe.name), line("base", &base(&recipe.base))];
    if let Some(pinned) = plan.pinned.as_ref().filter(|pinned| pinned.lacking > 0) {
        let size = amount(pinned.lacking);
        lines.push(line("weights", &format!("{size} to download, and not looked at yet")));
    }
    lines.push(line(
        "adapter",
        &match &recipe.adapter {
            Adapter::Lora(lora) => {
                let (kind, rank) = (lora.method(), lora.rank);
                match lora.vera {
                    Some(_) => format!("{kind}, rank {rank}"),
                    None => format!("{kind}, rank {rank}, alpha {}", lora.alpha),
                }
            }
            Adapter::Full(names) if names.is_empty() => "none: every weight is trained".to_owned(),
            Adapter::Full(names) => format!("none: weights of {} are trained", names.join(", ")),
        },
    ));
    if recipe.objective != Objective::Supervised {
        lines.push(line("objective", &objective(&recipe.objective)));
    }
    if let Some(distillation) = recipe.objective.distillation() {
        lines.push(line("teacher", &teacher(distillation)));
    }
    if let Some(template) = &recipe.base.chat_template {
        lines.push(line("template", &template.display().to_string()));
    }
    if !recipe.base.added_tokens.is_empty() {
        let (new, named) = (plan.added_tokens, recipe.base.added_tokens.len());
        lines.push(line("tokens", &format!("{new} of {named} named ones are new to the base")));
    }
    let Parameters { trainable, frozen } = plan.parameters;
    let share = 100.0 * trainable as f64 / (trainable + frozen).max(1) as f64;
    lines.push(line(
        "parameters",
        &format!("{} trainable ({share:.2} %), {} frozen", grouped(trainable), grouped(frozen)),
    ));
    for (split, rows) in rows_by_split(plan) {
        lines.push(line("rows", &format!("{split}: {}", verdict(&rows))));
    }
    lines.extend(extent(plan));
    lines.push(line("memory", &memory(&plan.memory)));
    lines.join("\n")
}

/// The most that a run takes, and for what.
fn memory(memory: &Memory) -> String {
    let parts = [
        ("runtime", memory.runtime),
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("workspace", memory.workspace),
    ];
    let parts = parts.map(|(name, bytes)| format!("{name} {}", amount(bytes)));
    let when = match memory.moment {
        Moment::Teaching => "while the teacher reads",
        Moment::Loading => "while the base is read",
        Moment::Loss => "at the end of a forward pass",
        Moment::Backward => "in a backward pass",
        Moment::Validation => "while held-out rows are measured",
        Moment::Answers => "while a suite is answered",
        Moment::Reference => "while the base is asked",
    };
    format!("{} at most, {when} ({})", amount(memory.total()), parts.join(", "))
}

/// What is learned, and what it is compared with.
fn objective(objective: &Objective) -> String {
    let kind = match objective {
        Objective::Dpo(dpo) => format!("dpo, {}, beta {}", dpo.loss_type.name(), dpo.beta),
        Objective::Orpo(orpo) => format!("orpo, beta {}", orpo.beta),
        Objective::Kto(kto) => format!("kto, beta {}", kto.beta),
        Objective::Simpo(simpo) => {
            format!("simpo, beta {}, gamma {}", simpo.beta, simpo.simpo_gamma)
        }
        Objective::Distillation(Distillation { beta, temperature, kd_ratio, .. }) => {
            format!("distillation, beta {beta}, temperature {temperature}, kd_ratio {kd_ratio}")
        }
        Objective::Supervised => objective.name().to_owned(),
    };
    match objective.has_reference() {
        true => format!("{kind}, beside the base without adapter"),
        false => kind,
    }
}

/// The folder of a base, and how its weights are held.
fn base(base: &Base) -> String {
    held(&base.model, &base.storage())
}

/// The same of a teacher, or the file of what it said.
fn teacher(distillation: &Distillation) -> String {
    match (&distillation.logits, &distillation.teacher) {
        (Some(logits), _) => format!("what it said, from {}", logits.display()),
        (None, Some(teacher)) => held(&teacher.model, &teacher.storage()),
        (None, None) => "none".to_owned(),
    }
}

fn held(model: &Path, storage: &Storage) -> String {
    let held = match storage.quantization {
        Quantization::None => word(&storage.dtype),
        quantization => {
            format!("{}, frozen weights in {}", word(&storage.dtype), word(&quantization))
        }
    };
    format!("{}, {held}", model.display())
}

/// What training takes.
fn extent(plan: &Plan) -> Vec<String> {
    let (size, recipe) = (&plan.training, &plan.recipe);
    let about = if size.estimated { "about " } else { "" };
    let mut lines = Vec::new();
    let trained = plan.data.iter().filter(|file| file.split == Split::Train);
    let sources = recipe.data.train.iter().enumerate();
    for (index, source) in sources.filter(|_| recipe.data.train.len() > 1 && !size.estimated) {
        let files = trained.clone().filter(|file| file.source == index);
        let (tokens, learned) =
            files.fold((0, 0), |sums, file| (sums.0 + file.tokens, sums.1 + file.trained_tokens));
        let weight = source.weight.map(|weight| format!(", weight {weight}")).unwrap_or_default();
        let (tokens, learned) = (grouped(tokens), grouped(learned));
        let value = format!("{}: {tokens} tokens, {learned} trained{weight}", source.path);
        lines.push(line("source", &value));
    }
    lines.push(line(
        "tokens",
        &format!(
            "{about}{} a pass, {} trained",
            grouped(size.tokens),
            grouped(size.trained_tokens)
        ),
    ));
    let room = size.windows.saturating_mul(recipe.data.sequence_length as u64).max(1);
    lines.push(line(
        "windows",
        &format!(
            "{about}{} a pass of {} tokens, {:.1} % full, packed {}",
            grouped(size.windows),
            grouped(recipe.data.sequence_length as u64),
            100.0 * size.tokens as f64 / room as f64,
            word(&recipe.data.packing)
        ),
    ));
    for (rows, what) in [
        (size.dropped_overlong, "left out as too long"),
        (size.cut_overlong, "cut, being longer than a window"),
        (size.held_out, "of `data.train` held out for validation"),
    ] {
        if rows > 0 {
            lines.push(line("", &format!("{about}{} rows {what}", grouped(rows))));
        }
    }
    lines.push(line(
        "steps",
        &format!(
            "{about}{} of {} tokens, in {} epoch{}",
            grouped(size.steps),
            grouped(recipe.train.tokens_per_step as u64),
            recipe.train.epochs,
            if recipe.train.epochs == 1 { "" } else { "s" }
        ),
    ));
    if !recipe.data.processing.iter().any(|term| term == PUBLISHING) {
        let value = format!("not asked for: `data.processing` lacks `{PUBLISHING}`");
        lines.push(line("publishing", &value));
    }
    lines
}

fn line(name: &str, value: &str) -> String {
    format!("{name:<11} {value}")
}

/// The word by which a recipe calls a value.
fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn verdict(rows: &Counts) -> String {
    let mut text = format!("{} of {} used", grouped(rows.used), grouped(rows.seen));
    let reasons: Vec<String> = rows.excluded.iter().map(reason).collect();
    if !reasons.is_empty() {
        text = format!("{text}; left out: {}", reasons.join(", "));
    }
    text
}

fn reason((reason, rows): (&Reason, &u64)) -> String {
    format!("{} {}", grouped(*rows), word(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("recipes/a.yaml"), "recipes/a.yaml");
        assert_eq!(quoted("name=it's"), r"'name=it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
