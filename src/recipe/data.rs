//! The words of `data`: which rows, for what purpose, and what becomes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is trained on, for what purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What the result is for, as DPV terms (`dpv:ServiceProvision`); a row must allow all.
    pub purpose: Vec<String>,
    /// What is done with a row, as DPV AI terms; a row must allow all. Whoever publishes the
    /// result adds `dpv:MakeAvailable`.
    #[serde(default = "default_processing")]
    pub processing: Vec<String>,
    /// A row's consent must outlast the planned end of the run: its start plus so many hours.
    #[serde(default = "default_max_hours")]
    pub max_hours: u32,
    /// What is heard of consent after the rows were written.
    #[serde(default)]
    pub consent: Consent,
    /// Rows to learn from.
    pub train: Vec<Source>,
    /// When a mixture of weighted sources has come to the end of its pass, in the words of
    /// `datasets.interleave_datasets`.
    #[serde(default)]
    pub stopping_strategy: StoppingStrategy,
    /// Rows whose loss is watched during training.
    #[serde(default)]
    pub validation: Vec<Source>,
    /// Share of the rows of `train` that are held out as validation rows instead, whole
    /// conversations at a time.
    #[serde(default)]
    pub validation_split: f64,
    /// Rows held out for `eval`, each with the name of its suite.
    #[serde(default)]
    pub test: Vec<Suite>,
    /// Length of a training window, in tokens.
    pub sequence_length: usize,
    /// How conversations share a window; they never see each other.
    #[serde(default)]
    pub packing: Packing,
    /// What becomes of a conversation longer than a window.
    #[serde(default)]
    pub overlong: Overlong,
    /// Which tokens carry loss.
    #[serde(default)]
    pub train_on: TrainOn,
    /// Which of the tokens that end a turn carry loss.
    #[serde(default)]
    pub end_of_turn: EndOfTurn,
    /// Visit rows in a seeded order that differs by epoch.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// How much is tokenised before training, to know its steps.
    #[serde(default)]
    pub survey: SurveyOf,
}

impl Data {
    /// Whether rows are turns by their format. Prompts and completions may be either: there a
    /// row tells.
    pub fn has_conversations(&self) -> bool {
        let sources = self.train.iter().chain(&self.validation).map(|source| source.format);
        let mut formats = sources.chain(self.test.iter().map(|suite| suite.format));
        formats.any(|format| !matches!(format, Format::Text | Format::PromptCompletion))
    }
}

/// What is done with rows unless the recipe says something else.
pub const DEFAULT_PROCESSING: &str = "ai:ModelFineTuning";

/// What rows must allow before anything that was learned from them is published.
pub const PUBLISHING: &str = "dpv:MakeAvailable";

fn default_processing() -> Vec<String> {
    vec![DEFAULT_PROCESSING.to_owned()]
}

/// How long a run is taken to last unless the recipe says something else.
pub const DEFAULT_MAX_HOURS: u32 = 24;

fn default_max_hours() -> u32 {
    DEFAULT_MAX_HOURS
}

fn yes() -> bool {
    true
}

/// What is heard of consent after the rows were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// Ledgers of withdrawals (`withdrawals.jsonl`), relative to the current directory.
    #[serde(default)]
    pub ledgers: Vec<PathBuf>,
    /// What a running job does when a row of its own is withdrawn.
    #[serde(default)]
    pub on_withdrawal: OnWithdrawal,
}

/// What a running job does when a row of its own is withdrawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnWithdrawal {
    /// It stops, at the next epoch or checkpoint.
    #[default]
    Stop,
    /// It goes on without the row, from the next epoch or checkpoint.
    Drop,
}

/// One source of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Parquet file or glob, relative to the current directory; or an address of one:
    /// `s3://bucket/key`, `https://host/path`.
    pub path: String,
    /// Shape of a row.
    pub format: Format,
    /// Columns that are called otherwise: the format's name for a column, then the file's.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// Probability of drawing the next row from this source, relative to the other sources'.
    /// Where no source has a weight, every row of all sources is visited once a pass.
    #[serde(default)]
    pub weight: Option<f64>,
}

/// Held-out rows with a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Name by which `eval.suites` and `--suite` ask for it.
    pub name: String,
    /// Parquet file or glob, as in [`Source::path`].
    pub path: String,
    /// Shape of a row.
    pub format: Format,
    /// As in [`Source::columns`].
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// Longest answer that is generated, in tokens.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
}

/// Longest answer, in tokens, unless the recipe says something else.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 128;

fn default_max_new_tokens() -> usize {
    DEFAULT_MAX_NEW_TOKENS
}

/// Shapes of a row, by the names that TRL and the hub's data sets give them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `messages`: a list of `{role, content}`; `tools` where there are any.
    Chat,
    /// `conversations`: a list of `{from, value}`.
    Sharegpt,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `prompt` and `completion`: two texts, or two lists of messages.
    PromptCompletion,
    /// `text`.
    Text,
    /// `chosen` and `rejected`, with or without `prompt`.
    Preference,
    /// `prompt`, `completion` and `label`, as TRL's unpaired preference.
    Kto,
}

/// When a pass over weighted sources ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoppingStrategy {
    /// As soon as one source has no row left.
    #[default]
    FirstExhausted,
    /// When every source has been visited whole at least once; those that end earlier begin
    /// again, in another order.
    AllExhausted,
}

/// What becomes of a conversation that is longer than a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// The run is refused, naming the row.
    #[default]
    Refuse,
    /// The row is left out and counted.
    Drop,
    /// What goes beyond the window is cut off, and counted.
    Truncate,
    /// It is cut into windows that do not see each other, and counted.
    Split,
}

/// Which tokens carry loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// The assistant's turns.
    #[default]
    Assistant,
    /// The assistant's last turn.
    Last,
    /// Every token.
    All,
    /// What follows the prompt: in a conversation, the assistant's turns after the user's
    /// last.
    Completion,
}

/// Which of the tokens that end a turn carry loss. A run in which none does is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndOfTurn {
    /// That of every turn that carries loss.
    #[default]
    Every,
    /// That of the last turn that carries loss.
    Last,
}

/// How much is tokenised before training, to know its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SurveyOf {
    /// Every row: the steps are exact, and a bad row is found before training begins.
    #[default]
    All,
    /// A seeded sample: the steps are an estimate, and the gate still sees every row.
    Sample,
}

/// How documents share windows. `true` and `false` stand for the first and the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Each document in the fullest window that has room for it, in the order of the stream.
    #[default]
    #[serde(alias = "true")]
    BestFit,
    /// The longest documents first, each in the first window that has room for it.
    FirstFitDecreasing,
    /// Every document has a window of its own.
    #[serde(alias = "false")]
    None,
}
