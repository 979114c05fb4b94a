//! The values of an adapter's settings: which layers, which biases, where it starts, and numbers
//! by name.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::recipe::is_tail;

/// PEFT's word for every linear layer but the output projection.
const ALL_LINEAR: &str = "all-linear";

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
