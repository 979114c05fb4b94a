//! The words of generation: what a user asks for, what the model's own file says, and the
//! settings that come of both.
//!
//! Owns [`Options`] (the command line's, also typed in a chat), [`Settings`] (resolved and
//! checked), reading requests ([`input`]) and turning them into tokens ([`text`]). Does not
//! own decoding: that is the engine's `generate`.
//!
//! Reference: `GenerationConfig` of Transformers 5.23: a model's `generation_config.json`
//! is the default, what the user gives replaces it key by key, and the rest is
//! Transformers' own default ([`TOP_K`] included).

pub mod config;
mod error;
pub mod input;
mod parquet;
pub mod text;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use error::GenerationError;

use config::GenerationConfig;

/// Longest answer, in tokens, where neither the user nor the model says.
pub const MAX_NEW_TOKENS: usize = 128;

/// Transformers' own default where sampling is on and nobody says otherwise.
pub const TOP_K: usize = 50;

/// What the user asks for; where nothing is given, the model's `generation_config.json`
/// decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[command(next_help_heading = "Decoding")]
pub struct Options {
    /// Longest answer, in tokens [default: what the model says, or 128]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<usize>, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Always take the likeliest token, whatever the model's own settings
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub greedy: bool,
    /// Sample; below 1 is bolder towards the likely, above 1 more even, 0 is greedy
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample from the K likeliest tokens; 0 takes the limit away
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<usize>, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample from the fewest likeliest tokens whose probabilities reach P
    #[arg(long, allow_negative_numbers = true, value_name = "P")]
    pub top_p: Option<f64>,
    /// Sample from tokens at least P times as likely as the likeliest
    #[arg(long, allow_negative_numbers = true, value_name = "P")]
    pub min_p: Option<f64>,
    /// Make tokens that occurred, the prompt's too, less likely; 1 is no penalty
    #[arg(long, allow_negative_numbers = true, value_name = "R")]
    pub repetition_penalty: Option<f64>,
    /// Seed of sampling: the same seed gives the same answers
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// End an answer before this text (repeat for several)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// End at this token id instead of the model's own (repeat for several)
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>, value_name = "ID", conflicts_with = "ignore_eos")]
    pub eos_token_id: Vec<u32>,
    /// Go on to the full length, past every end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Leave the sampling settings of the model's `generation_config.json` aside
    #[arg(long)]
    pub no_generation_config: bool,
}

/// A number of tokens, an id or a seed.
fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "it must be a whole number, 0 or more, and not too large".to_owned())
}

/// How tokens are chosen and when an answer ends: resolved, and within range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// How to sample; the likeliest token otherwise.
    pub sampling: Option<Sampling>,
    /// 1 is none.
    pub repetition_penalty: f64,
    /// Texts before which an answer ends.
    pub stop: Vec<String>,
    /// Token ids at which an answer ends; `None` for the model's own.
    pub eos_token_id: Option<Vec<u32>>,
}

/// Sampling, in the order in which it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits.
    pub temperature: f64,
    /// 0 is no limit.
    pub top_k: usize,
    /// 1 is no limit.
    pub top_p: f64,
    /// 0 is no limit.
    pub min_p: f64,
    /// Of the random numbers.
    pub seed: u64,
}

impl Options {
    /// The settings for the model in `folder`.
    pub fn resolve(&self, folder: &Path) -> Result<Settings, GenerationError> {
        let file = GenerationConfig::read(folder)?;
        let file = if self.no_generation_config { GenerationConfig::default() } else { file };
        file.check()?;
        self.over(&file)
    }

    /// What was asked for, over what the model says.
    fn over(&self, file: &GenerationConfig) -> Result<Settings, GenerationError> {
        let settings = Settings {
            max_new_tokens: self.max_new_tokens.or(file.max_new_tokens).unwrap_or(MAX_NEW_TOKENS),
            sampling: self.samples(file).then(|| Sampling {
                temperature: self.temperature.or(file.temperature).unwrap_or(1.0),
                top_k: self.top_k.or(file.top_k).unwrap_or(TOP_K),
                top_p: self.top_p.or(file.top_p).unwrap_or(1.0),
                min_p: self.min_p.or(file.min_p).unwrap_or(0.0),
                seed: self.seed,
            }),
            repetition_penalty: self.repetition_penalty.or(file.repetition_penalty).unwrap_or(1.0),
            stop: if self.stop.is_empty() { file.stop_strings.clone() } else { self.stop.clone() },
            eos_token_id: match (self.ignore_eos, self.eos_token_id.as_slice()) {
                (true, _) => Some(Vec::new()),
                (false, []) => None,
                (false, ids) => Some(ids.to_vec()),
            },
        };
        settings.check()?;
        Ok(settings)
    }

    /// Transformers samples only with `do_sample`; here a setting of sampling is enough to
    /// ask for it, since nobody gives a temperature to have it ignored.
    fn samples(&self, file: &GenerationConfig) -> bool {
        let asked = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some();
        !self.greedy && self.temperature != Some(0.0) && (asked || file.do_sample)
    }

    /// Changes one option by its name, as `/set` does; `default` takes a value back.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), GenerationError> {
        let mut changed = self.clone();
        match key.replace('-', "_").as_str() {
            "max_new_tokens" => changed.max_new_tokens = number(key, value)?,
            "temperature" => changed.temperature = number(key, value)?,
            "top_k" => changed.top_k = number(key, value)?,
            "top_p" => changed.top_p = number(key, value)?,
            "min_p" => changed.min_p = number(key, value)?,
            "repetition_penalty" => changed.repetition_penalty = number(key, value)?,
            "seed" => changed.seed = number(key, value)?.unwrap_or_default(),
            "greedy" => changed.greedy = number(key, value)?.unwrap_or_default(),
            _ => return Err(GenerationError::NoSuchOption { key: key.to_owned() }),
        }
        changed.over(&GenerationConfig::default())?;
        *self = changed;
        Ok(())
    }
}

/// What [`Options::set`] takes, for a message that lists them.
pub const SETTABLE: [&str; 8] = [
    "greedy",
    "max_new_tokens",
    "min_p",
    "repetition_penalty",
    "seed",
    "temperature",
    "top_k",
    "top_p",
];

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>, GenerationError> {
    if value == "default" {
        return Ok(None);
    }
    let (key, value) = (key.to_owned(), value.to_owned());
    value.parse().map(Some).map_err(|_| GenerationError::NotAValue { key, value })
}

impl Settings {
    /// The likeliest token, up to `max_new_tokens` of them.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: None,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            eos_token_id: None,
        }
    }

    fn check(&self) -> Result<(), GenerationError> {
        let check = |key, value: f64, holds: bool, wanted| {
            let refused = GenerationError::OutOfRange { key, value, wanted };
            if holds { Ok(()) } else { Err(refused) }
        };
        check("max_new_tokens", self.max_new_tokens as f64, self.max_new_tokens > 0, "at least 1")?;
        let penalty = self.repetition_penalty;
        check("repetition_penalty", penalty, penalty > 0.0 && penalty.is_finite(), "above 0")?;
        if self.stop.iter().any(String::is_empty) {
            return Err(GenerationError::EmptyStop);
        }
        let Some(Sampling { temperature: t, top_p, min_p, .. }) = self.sampling else {
            return Ok(());
        };
        check("temperature", t, t > 0.0 && t.is_finite(), "0 or more")?;
        check("top_p", top_p, (0.0..=1.0).contains(&top_p), "between 0 and 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "between 0 and 1")
    }
}

/// One line that says what is used.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sampling {
            None => write!(f, "greedy")?,
            Some(Sampling { temperature, top_k, top_p, min_p, seed }) => {
                write!(f, "sampling: temperature {temperature}")?;
                if *top_k > 0 {
                    write!(f, ", top-k {top_k}")?;
                }
                if *top_p < 1.0 {
                    write!(f, ", top-p {top_p}")?;
                }
                if *min_p > 0.0 {
                    write!(f, ", min-p {min_p}")?;
                }
                write!(f, ", seed {seed}")?;
            }
        }
        if self.repetition_penalty != 1.0 {
            write!(f, ", repetition penalty {}", self.repetition_penalty)?;
        }
        write!(f, ", at most {} new tokens", self.max_new_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> GenerationConfig {
        serde_json::from_str(text).unwrap()
    }

    const INSTRUCT: &str =
        r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "stop_strings": "END"}"#;

    #[test]
    fn the_models_file_decides_until_the_user_does() {
        let settings = Options::default().over(&file(INSTRUCT)).unwrap();
        assert_eq!(
            settings.to_string(),
            "sampling: temperature 0.6, top-k 50, top-p 0.9, seed 0, at most 128 new tokens"
        );
        assert_eq!(settings.stop, ["END"]);
        let options = Options { top_k: Some(0), temperature: Some(0.2), ..Options::default() };
        let settings = options.over(&file(INSTRUCT)).unwrap();
        assert_eq!(
            settings.to_string(),
            "sampling: temperature 0.2, top-p 0.9, seed 0, at most 128 new tokens"
        );
    }

    #[test]
    fn greedy_is_asked_for_or_what_nobody_denied() {
        let sampled = |options: Options, text| options.over(&file(text)).unwrap().sampling;
        assert_eq!(sampled(Options::default(), "{}"), None);
        // Transformers ignores a temperature without `do_sample`, in the file as well.
        assert_eq!(sampled(Options::default(), r#"{"temperature": 0.6}"#), None);
        assert_eq!(sampled(Options { greedy: true, ..Options::default() }, INSTRUCT), None);
        let zero = Options { temperature: Some(0.0), ..Options::default() };
        assert_eq!(sampled(zero, INSTRUCT), None);
        let asked = Options { min_p: Some(0.1), ..Options::default() };
        assert_eq!(sampled(asked, "{}").unwrap().min_p, 0.1);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let refused = |options: Options| options.over(&file("{}")).unwrap_err().to_string();
        let nan = Options { temperature: Some(f64::NAN), ..Options::default() };
        assert_eq!(refused(nan), "`temperature` is NaN, not 0 or more");
        let top_p = Options { top_p: Some(1.5), ..Options::default() };
        assert_eq!(refused(top_p), "`top_p` is 1.5, not between 0 and 1");
        let penalty = Options { repetition_penalty: Some(0.0), ..Options::default() };
        assert_eq!(refused(penalty), "`repetition_penalty` is 0, not above 0");
        let length = Options { max_new_tokens: Some(0), ..Options::default() };
        assert_eq!(refused(length), "`max_new_tokens` is 0, not at least 1");
        let stop = Options { stop: vec![String::new()], ..Options::default() };
        assert_eq!(refused(stop), "a stop string is empty");
    }

    #[test]
    fn options_are_set_by_name_and_stay_when_the_value_is_wrong() {
        let mut options = Options::default();
        options.set("temperature", "0.7").unwrap();
        options.set("top-k", "5").unwrap();
        assert_eq!((options.temperature, options.top_k), (Some(0.7), Some(5)));
        assert!(options.set("top_p", "2").is_err());
        assert!(options.set("top_p", "much").is_err());
        assert!(options.set("top_q", "1").is_err());
        options.set("temperature", "default").unwrap();
        let expected = Options { top_k: Some(5), ..Options::default() };
        assert_eq!(options, expected);
        for key in SETTABLE {
            options.set(key, "default").unwrap();
        }
    }
}
