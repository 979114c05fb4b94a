//! How a base is adapted, in PEFT's words.
//!
//! Owns the settings of an adapter, and what they say of one linear layer: whether it is
//! wrapped, with which rank and with which factor. Does not own the weights (that is the
//! engine's).
//!
//! Reference: `LoraConfig` of PEFT 0.21.2; a name chooses layers as there, by the full path or by
//! the last parts of it, and is no regular expression.

mod parameters;
mod vera;
mod words;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Module, TokenIndices, is_part, is_tail};
use crate::peft::{self, PeftError};
pub use parameters::{PairKeys, parameter_keys};
pub use vera::Vectors;
use vera::Vera;
pub use words::{Bias, Pattern, Start, Targets};

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
enum Words {
    Lora(Lora),
    Vera(Vera),
    Full,
    UnfrozenParameters(Vec<String>),
    From(PathBuf),
}

impl From<Adapter> for Words {
    fn from(adapter: Adapter) -> Self {
        match adapter {
            Adapter::Lora(lora) => match lora.vera {
                Some(vectors) => Self::Vera(Vera::of(&lora, vectors)),
                None => Self::Lora(lora),
            },
            Adapter::Full(names) if names.is_empty() => Self::Full,
            Adapter::Full(names) => Self::UnfrozenParameters(names),
        }
    }
}

impl From<Words> for Adapter {
    fn from(words: Words) -> Self {
        match words {
            Words::Lora(lora) => Self::Lora(lora),
            Words::Vera(vera) => Self::Lora(vera.into()),
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

    /// A key of [`Lora`] as this adapter's words have it.
    pub(super) fn key(&self, key: &str) -> String {
        match (self, key.strip_prefix("adapter.lora.")) {
            (Self::Lora(Lora { vera: Some(_), .. }), Some(rest)) => format!("adapter.vera.{rest}"),
            _ => key.to_owned(),
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
    /// Weights of routed experts that get an adapter.
    #[serde(default)]
    pub target_parameters: Vec<String>,
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
    /// VeRA: A and B are shared and stay as they are, and vectors are trained in their place. Has
    /// words of its own.
    #[serde(skip)]
    pub vera: Option<Vectors>,
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
            target_parameters: Vec::new(),
            exclude_modules: Vec::new(),
            layers_to_transform: Vec::new(),
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
            bias: Bias::None,
            modules_to_save: Vec::new(),
            trainable_token_indices: TokenIndices::default(),
            vera: None,
        }
    }

    /// What the method is called.
    pub fn method(&self) -> &'static str {
        match (self.vera, self.use_dora) {
            (Some(_), _) => "VeRA",
            (None, true) => "DoRA",
            (None, false) => "LoRA",
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
}
