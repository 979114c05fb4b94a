//! How a base is adapted, in PEFT's words.
//!
//! Owns the settings of an adapter, and what they say of one linear layer: whether it is
//! wrapped, with which rank and with which factor. Does not own the weights (that is the
//! engine's).
//!
//! Reference: `LoraConfig` of PEFT 0.21.2; a name chooses layers as there, by the full path or by
//! the last parts of it, and is no regular expression.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Module, TokenIndices, is_part, is_tail};
use crate::peft::{self, PeftError};

/// PEFT's word for every linear layer but the output projection.
const ALL_LINEAR: &str = "all-linear";

/// Families where PEFT takes every target called like a layer of a feed-forward part for the
/// experts; the layers outside the attention are named as parameters (`target_parameters`)
/// instead.
pub const FEED_FORWARD_AS_PARAMETERS: [&str; 4] =
    ["deepseek_v2", "deepseek_v3", "mixtral", "qwen3_moe"];

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Words", into = "Words")]
#[expect(clippy::large_enum_variant, reason = "there is one for each recipe")]
pub enum Adapter {
    /// Low-rank adaptation (arXiv 2106.09685) of linear layers; the base stays frozen.
    Lora(Lora),
    /// Weights of the base itself: those with these names, or every one where there are none.
    Full(Vec<String>),
}

/// The words of a recipe for it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one for each recipe")]
enum Words {
    Lora(Lora),
    Full,
    UnfrozenParameters(Vec<String>),
    From(PathBuf),
}

impl From<Adapter> for Words {
    fn from(adapter: Adapter) -> Self {
        match adapter {
            Adapter::Lora(lora) => Self::Lora(lora),
            Adapter::Full(names) if names.is_empty() => Self::Full,
            Adapter::Full(names) => Self::UnfrozenParameters(names),
        }
    }
}

impl From<Words> for Adapter {
    fn from(words: Words) -> Self {
        match words {
            Words::Lora(lora) => Self::Lora(lora),
            Words::Full => Self::Full(Vec::new()),
            Words::UnfrozenParameters(mut names) => {
                if names.is_empty() {
                    // A list without a name trains nothing; a rule says so.
                    names.push(String::new());
                }
                Self::Full(names)
            }
            // Its settings stand in the folder, see `resolve`.
            Words::From(folder) => Self::Lora(Lora { from: Some(folder), ..Lora::new(0, 1.0) }),
        }
    }
}

impl Adapter {
    /// Whether the weight of the base with this checkpoint key is trained itself.
    pub fn trains(&self, key: &str) -> bool {
        match self {
            Self::Lora(_) => false,
            Self::Full(names) => names.is_empty() || names.iter().any(|name| names_key(name, key)),
        }
    }

    /// Whether `from` alone was written.
    pub fn is_unread(&self) -> bool {
        matches!(self, Self::Lora(Lora { from: Some(_), rank: 0, .. }))
    }

    /// Reads the settings of an adapter that is gone on from, where nothing else was written.
    pub fn resolve(&mut self) -> Result<(), PeftError> {
        if let (true, Self::Lora(lora)) = (self.is_unread(), &mut *self)
            && let Some(folder) = lora.from.take()
        {
            *lora = Lora { from: Some(folder.clone()), ..peft::describe(&folder)?.lora };
        }
        Ok(())
    }
}

/// Settings of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Folder of a PEFT adapter that is trained further; `null` starts a new one.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// `r`: the rank of the update.
    pub rank: u32,
    /// `lora_alpha`: the update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// `lora_dropout`: probability of dropping an input of the low-rank path.
    #[serde(default)]
    pub dropout: f64,
    /// Scale by `alpha / √rank` instead (arXiv 2312.03732).
    #[serde(default)]
    pub use_rslora: bool,
    /// Train the length of every row of a weight by itself (arXiv 2402.09353).
    #[serde(default)]
    pub use_dora: bool,
    /// Where the update starts.
    #[serde(default)]
    pub init_lora_weights: Start,
    /// `target_modules`.
    #[serde(default)]
    pub targets: Targets,
    /// Linear layers that get no adapter although `targets` names them.
    #[serde(default)]
    pub exclude_modules: Vec<String>,
    /// Blocks whose linear layers get an adapter; all of them where it is empty.
    #[serde(default)]
    pub layers_to_transform: Vec<u32>,
    /// Other ranks for layers by name.
    #[serde(default)]
    pub rank_pattern: Pattern<u32>,
    /// Other alphas for layers by name.
    #[serde(default)]
    pub alpha_pattern: Pattern<f64>,
    /// Which biases are trained.
    #[serde(default)]
    pub bias: Bias,
    /// `modules_to_save`: modules of which every weight is trained.
    #[serde(default)]
    pub modules_to_save: Vec<Module>,
    /// `trainable_token_indices`: rows that are trained besides those of added tokens.
    #[serde(default)]
    pub trainable_token_indices: TokenIndices,
}

impl Lora {
    /// On every linear layer, with defaults.
    pub fn new(rank: u32, alpha: f64) -> Self {
        Self {
            from: None,
            rank,
            alpha,
            dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: Start::Default,
            targets: Targets::AllLinear,
            exclude_modules: Vec::new(),
            layers_to_transform: Vec::new(),
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
            bias: Bias::None,
            modules_to_save: Vec::new(),
            trainable_token_indices: TokenIndices::default(),
        }
    }

    /// Whether the linear layer `name` gets an adapter, as `check_target_module_exists` says.
    pub fn chooses(&self, name: &str) -> bool {
        let layers = &self.layers_to_transform;
        self.targets.choose(name)
            && !self.exclude_modules.iter().any(|module| is_tail(name, module))
            && (layers.is_empty() || block_of(name).is_some_and(|block| layers.contains(&block)))
    }

    /// The rank of a layer's update.
    pub fn rank_of(&self, name: &str) -> u32 {
        self.rank_pattern.of(name).unwrap_or(self.rank)
    }

    /// The factor of a layer's update.
    pub fn scaling_of(&self, name: &str) -> f64 {
        let (rank, alpha) = (f64::from(self.rank_of(name)), self.alpha_pattern.of(name));
        alpha.unwrap_or(self.alpha) / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The largest rank of all layers.
    pub fn largest_rank(&self) -> u32 {
        let others = self.rank_pattern.0.iter().map(|(_, rank)| *rank);
        others.fold(self.rank, u32::max)
    }

    /// Whether the bias of the layer `name` is trained.
    pub fn trains_bias(&self, name: &str) -> bool {
        match self.bias {
            Bias::None => false,
            Bias::All => true,
            Bias::LoraOnly => self.chooses(name),
        }
    }

    /// The settings of an update of twice the rank that has the same factors.
    #[must_use]
    pub fn doubled(&self) -> Self {
        let mut doubled = self.clone();
        // √2 where the rank counts by its root.
        let more = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        doubled.rank = doubled.rank.saturating_mul(2);
        doubled.alpha *= more;
        for (_, rank) in &mut doubled.rank_pattern.0 {
            *rank = rank.saturating_mul(2);
        }
        for (_, alpha) in &mut doubled.alpha_pattern.0 {
            *alpha *= more;
        }
        doubled
    }
}

/// Whether `name` is a checkpoint key or its module, or the first or the last parts of one.
pub(super) fn names_key(name: &str, key: &str) -> bool {
    let module = key.rsplit_once('.').map_or(key, |(module, _)| module);
    is_part(key, name) || is_part(module, name)
}

/// The number of the block that a layer is in: the first number in its path.
fn block_of(name: &str) -> Option<u32> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Which linear layers get an adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Targets {
    /// `all-linear`: every linear layer but the output projection.
    #[default]
    AllLinear,
    /// The last parts of module names: `q_proj`, `down_proj`, …
    Modules(Vec<String>),
}

/// Biases that are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of all linear layers.
    All,
    /// Those of layers with an adapter.
    LoraOnly,
}

impl Bias {
    /// PEFT's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// Where the update starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// `true`: A uniform within ±1/√in_features, B zero.
    #[default]
    Default,
    /// A normal with deviation `1 / rank`, B zero.
    Gaussian,
    /// The largest singular values of the weight (arXiv 2404.02948), found exactly.
    Pissa,
    /// The same by so many power iterations.
    PissaNiter(u32),
    /// The first columns of the weight's QR decomposition (arXiv 2406.01775).
    Olora,
    /// What quantising the weight lost (arXiv 2310.08659).
    Loftq,
}

/// The words of [`Start`]; a number follows the last one.
const STARTS: [&str; 6] = ["true", "gaussian", "pissa", "olora", "loftq", PISSA_NITER];

const PISSA_NITER: &str = "pissa_niter_";

impl Start {
    /// Whether the update is taken out of the base before training, so that only what training
    /// changes of it is an update of the base.
    pub fn is_taken_out(self) -> bool {
        matches!(self, Self::Pissa | Self::PissaNiter(_) | Self::Olora)
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("true"),
            Self::Gaussian => f.write_str("gaussian"),
            Self::Pissa => f.write_str("pissa"),
            Self::PissaNiter(iterations) => write!(f, "{PISSA_NITER}{iterations}"),
            Self::Olora => f.write_str("olora"),
            Self::Loftq => f.write_str("loftq"),
        }
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_bool(true),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Start;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true` or the name of a start, such as `pissa`")
            }
            fn visit_bool<E: de::Error>(self, word: bool) -> Result<Start, E> {
                self.visit_str(if word { "true" } else { "false" })
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Start, E> {
                if let Some(Ok(iterations)) = word.strip_prefix(PISSA_NITER).map(str::parse) {
                    return Ok(Start::PissaNiter(iterations));
                }
                let all =
                    [Start::Default, Start::Gaussian, Start::Pissa, Start::Olora, Start::Loftq];
                let found = all.into_iter().find(|start| start.to_string() == word);
                found.ok_or_else(|| E::unknown_variant(word, &STARTS))
            }
            // What stands for a value that is already reported.
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Start, A::Error> {
                match seq.next_element::<de::IgnoredAny>()? {
                    Some(_) => Err(de::Error::invalid_type(de::Unexpected::Seq, &self)),
                    None => Ok(Start::Default),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Values for layers by name; the first name that is a layer's counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern<T>(pub Vec<(String, T)>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Pattern<T> {
    /// The value for the layer `name`, if there is one.
    pub fn of(&self, name: &str) -> Option<T> {
        self.0.iter().find(|(module, _)| is_tail(name, module)).map(|(_, value)| *value)
    }
}

impl<T: Serialize> Serialize for Pattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Pattern<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping from names of layers to numbers")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pattern<T>, A::Error> {
                let mut pattern = Pattern::default();
                while let Some(entry) = map.next_entry()? {
                    pattern.0.push(entry);
                }
                Ok(pattern)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

impl Targets {
    /// Whether they name the linear layer `name`.
    pub fn choose(&self, name: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Modules(modules) => modules.iter().any(|module| is_tail(name, module)),
        }
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str(ALL_LINEAR),
            Self::Modules(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Targets;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`{ALL_LINEAR}` or a list of module names")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Targets, E> {
                match word {
                    ALL_LINEAR => Ok(Targets::AllLinear),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Targets, A::Error> {
                let names = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                Ok(Targets::Modules(names))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(more: &str) -> Lora {
        serde_json::from_str(&format!(r#"{{"rank": 4, "alpha": 8{more}}}"#)).unwrap()
    }

    #[test]
    fn a_layer_is_chosen_by_target_exclusion_and_block() {
        let lora = lora(
            r#", "targets": ["q_proj", "mlp.up_proj"], "exclude_modules": ["layers.1.mlp.up_proj"],
               "layers_to_transform": [1, 12]"#,
        );
        for (name, chosen) in [
            ("model.layers.1.self_attn.q_proj", true),
            ("model.layers.12.mlp.up_proj", true),
            ("model.layers.1.mlp.up_proj", false),
            ("model.layers.2.self_attn.q_proj", false),
            ("model.layers.1.self_attn.xq_proj", false),
            ("q_proj", false),
        ] {
            assert_eq!(lora.chooses(name), chosen, "{name}");
        }
    }

    #[test]
    fn the_first_name_of_a_pattern_counts_and_its_order_is_kept() {
        let lora =
            lora(r#", "rank_pattern": {"q_proj": 2, "layers.1.q_proj": 6}, "use_rslora": true"#);
        assert_eq!(lora.rank_of("model.layers.1.q_proj"), 2);
        assert_eq!(lora.rank_of("model.layers.1.v_proj"), 4);
        assert_eq!(lora.scaling_of("model.layers.1.v_proj"), 8.0 / 2.0);
        let text = serde_json::to_string(&lora).unwrap();
        assert_eq!(serde_json::from_str::<Lora>(&text).unwrap(), lora);
    }

    #[test]
    fn twice_the_rank_has_the_same_factors() {
        for more in ["", r#", "use_rslora": true"#] {
            let patterns = r#", "rank_pattern": {"a": 3}, "alpha_pattern": {"b": 5.0}"#;
            let lora = lora(&format!("{patterns}{more}"));
            let doubled = lora.doubled();
            for name in ["a", "b", "c"] {
                assert_eq!(doubled.rank_of(name), 2 * lora.rank_of(name));
                assert!((doubled.scaling_of(name) / lora.scaling_of(name) - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn every_start_reads_back_as_itself() {
        for word in ["true", r#""true""#, r#""gaussian""#, r#""pissa""#, r#""pissa_niter_16""#] {
            let start: Start = serde_json::from_str(word).unwrap();
            let text = serde_json::to_string(&start).unwrap();
            assert_eq!(serde_json::from_str::<Start>(&text).unwrap(), start, "{word}");
        }
        for wrong in ["false", r#""pissa_niter_""#, r#""pissa_niter_-1""#, r#""PiSSA""#, "1"] {
            assert!(serde_json::from_str::<Start>(wrong).is_err(), "{wrong}");
        }
    }
}
