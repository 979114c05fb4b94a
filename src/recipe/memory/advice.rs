//! A run that does not fit, and the settings that would.
//!
//! Owns the refusal ([`MemoryError`]) and the search: smaller micro-batches, blocks made again in
//! the backward pass, a base in fewer bits, bfloat16, shorter windows, each alone before any
//! two together. Only settings whose
//! own prediction fits are named.

use super::limit::{By, Limit, VARIABLE};
use super::{Memory, Run};
use crate::diagnose::{Diagnose, amount};
use crate::recipe::{
    ActivationCheckpointing, Adapter, DEFAULT_MICRO_BATCH_TOKENS, Dtype, Quantization, Recipe,
};

/// Windows are not made shorter than this.
const SHORTEST_WINDOW: usize = 128;

/// No more settings are named than people read.
const MOST_SETTINGS: usize = 4;

/// A run that needs more memory than there is.
#[derive(Debug, thiserror::Error)]
#[error("the run would take {}, and {} {}", amount(*.needed), whose(.limit.by), amount(.limit.bytes))]
pub struct MemoryError {
    /// Predicted bytes.
    pub needed: u64,
    /// What there is.
    pub limit: Limit,
    /// Settings that fit, the smallest change first.
    pub fitting: Vec<Setting>,
}

/// Changes to a recipe with which it fits.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// As `--set` takes them.
    pub set: Vec<String>,
    /// Predicted bytes.
    pub memory_bytes: u64,
}

impl Setting {
    /// For people.
    pub fn words(&self) -> String {
        let sets = self.set.iter().map(|set| format!("--set {set}")).collect::<Vec<_>>();
        format!("{} with `{}`", amount(self.memory_bytes), sets.join(" "))
    }
}

impl Diagnose for MemoryError {
    fn details(&self) -> Vec<String> {
        self.fitting.iter().map(Setting::words).collect()
    }

    fn hint(&self) -> Option<String> {
        let first = match self.fitting.is_empty() {
            false => "use one of these settings",
            true => {
                "use a smaller base or another machine: no micro-batch, precision or length fits"
            }
        };
        Some(format!("{first}, or set `{VARIABLE}=unlimited` to start it all the same"))
    }
}

fn whose(by: By) -> &'static str {
    match by {
        By::Machine => "the machine has only",
        By::ControlGroup => "the control group of this process leaves only",
        By::Variable => "`HEIRLOOM_MEMORY` allows only",
    }
}

/// The refusal of a run that does not fit.
pub(super) fn refusal(run: &Run<'_>, memory: &Memory, limit: Limit) -> MemoryError {
    MemoryError { needed: memory.total(), limit, fitting: fitting(run, limit.bytes) }
}

pub(super) fn fitting(run: &Run<'_>, limit: u64) -> Vec<Setting> {
    let mut found: Vec<Setting> = Vec::new();
    for way in ways(run.recipe) {
        for window in windows(run.recipe) {
            let Some(setting) = largest_micro_batch(run, &way, window, limit) else { continue };
            if !found.contains(&setting) {
                found.push(setting);
            }
            // Windows are made shorter only where nothing else helps.
            break;
        }
    }
    // A stable sort: of as many changes, in the order of the search.
    found.sort_by_key(|setting| setting.set.len());
    found.truncate(MOST_SETTINGS);
    found
}

/// What may change beside lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Way {
    /// `false` where checkpoints are to be written between steps.
    background: Option<bool>,
    checkpointing: Option<ActivationCheckpointing>,
    quantization: Option<Quantization>,
    dtype: Option<Dtype>,
}

/// Checkpoints between steps, blocks that are made again, a base in four bits, bfloat16; each
/// alone, the last three in twos, and all together.
fn ways(recipe: &Recipe) -> Vec<Way> {
    let packs = matches!(recipe.adapter, Adapter::Lora(_))
        && !matches!(recipe.base.quantization, Quantization::Nf4 | Quantization::Nf4Double);
    let block = ActivationCheckpointing::Block;
    let checkpointing = (recipe.train.activation_checkpointing != block).then_some(block);
    let quantization = packs.then_some(Quantization::Nf4);
    let dtype = (recipe.base.dtype == Dtype::Float32).then_some(Dtype::Bfloat16);
    let background = recipe.writes_in_background().then_some(false);
    let none = Way::default();
    vec![
        none,
        Way { background, ..none },
        Way { checkpointing, ..none },
        Way { quantization, ..none },
        Way { dtype, ..none },
        Way { checkpointing, quantization, ..none },
        Way { checkpointing, dtype, ..none },
        Way { quantization, dtype, ..none },
        Way { checkpointing, quantization, dtype, ..none },
        Way { checkpointing, quantization, dtype, background },
    ]
}

/// The windows of a recipe and shorter ones.
fn windows(recipe: &Recipe) -> impl Iterator<Item = usize> {
    let given = recipe.data.sequence_length;
    let shorter = std::iter::successors(Some(given / 2), |window| Some(window / 2));
    std::iter::once(given).chain(shorter.take_while(|window| *window >= SHORTEST_WINDOW))
}

/// The largest micro-batch with which a recipe so changed fits.
fn largest_micro_batch(run: &Run<'_>, way: &Way, window: usize, limit: u64) -> Option<Setting> {
    let (mut recipe, mut set) = (run.recipe.clone(), Vec::new());
    let Way { background, checkpointing, quantization, dtype } = *way;
    if let Some(background) = background {
        recipe.train.checkpoint_in_background = Some(background);
        set.push(format!("train.checkpoint_in_background={background}"));
    }
    if let Some(checkpointing) = checkpointing {
        recipe.train.activation_checkpointing = checkpointing;
        set.push(format!("train.activation_checkpointing={}", word(&checkpointing)));
    }
    if let Some(quantization) = quantization {
        recipe.base.quantization = quantization;
        set.push(format!("base.quantization={}", word(&quantization)));
    }
    if let Some(dtype) = dtype {
        recipe.base.dtype = dtype;
        set.push(format!("base.dtype={}", word(&dtype)));
    }
    if window != recipe.data.sequence_length {
        recipe.data.sequence_length = window;
        set.push(format!("data.sequence_length={window}"));
    }
    let train = &recipe.train;
    let given = train.micro_batch_tokens;
    let whole = given.unwrap_or(DEFAULT_MICRO_BATCH_TOKENS).min(train.tokens_per_step);
    let smaller = std::iter::successors(Some(whole / 2), |tokens| Some(tokens / 2));
    // Rounded down to whole windows, of which there is at least one.
    let smaller = smaller.map(|tokens| (tokens / window).max(1) * window);
    let mut last = None;
    for tokens in std::iter::once(None).chain(smaller.map(Some)) {
        if tokens.is_some() && tokens == last {
            return None;
        }
        last = tokens;
        if tokens.is_some() {
            recipe.train.micro_batch_tokens = tokens;
        }
        let bytes = Memory::predict(&Run { recipe: &recipe, ..*run }).total();
        if bytes <= limit {
            set.extend(tokens.map(|tokens| format!("train.micro_batch_tokens={tokens}")));
            // Without a change it is the run that does not fit.
            return (!set.is_empty()).then_some(Setting { set, memory_bytes: bytes });
        }
    }
    None
}

/// The word by which a recipe calls a value.
fn word(value: &impl serde::Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
