//! The header of a safetensors file: eight bytes of length, then JSON.
//!
//! Owns reading it without believing it. Types and the arithmetic (shapes that overflow,
//! gaps, overlaps, sizes that are not the product of the shape) are those of the
//! `safetensors` crate; added here is what it leaves open: a key that stands twice, bytes
//! after the last tensor in words that name them, and sums that no file can reach.
//!
//! Reference: the format's description in the README of safetensors 0.8.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// Largest header that is read; the limit of the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The key that is no tensor.
const METADATA: &str = "__metadata__";

/// What can be wrong with a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Not even a length.
    #[error("it has {bytes} bytes, fewer than the 8 that such a file begins with")]
    TooShort {
        /// Size of the file.
        bytes: usize,
    },
    /// A length that no header has.
    #[error("its header has {header} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Length of the header by its own account.
        header: u64,
        /// The limit.
        limit: u64,
    },
    /// A header that ends after the file.
    #[error("its header has {header} bytes, but the file only {bytes}")]
    HeaderCut {
        /// Length of the header by its own account.
        header: u64,
        /// Size of the file.
        bytes: usize,
    },
    /// A header that is not text.
    #[error("its header is not UTF-8 at byte {offset}")]
    NotText {
        /// Offset in the header.
        offset: usize,
    },
    /// A header that is not the JSON it should be.
    #[error("its header is not valid: {0}")]
    Json(serde_json::Error),
    /// Tensors that overlap, leave gaps or have another size than their shape.
    #[error("{0}")]
    Tensor(SafeTensorError),
    /// More or fewer bytes than the tensors have.
    #[error("its tensors have {promised} bytes, but {found} follow the header")]
    Data {
        /// By the header.
        promised: usize,
        /// In the file.
        found: usize,
    },
}

/// Tensors in the order in which they lie in the file, and where the first one begins.
pub(super) struct Header {
    pub(super) tensors: Vec<(String, TensorInfo)>,
    pub(super) start: usize,
}

/// Reads and checks the header of a whole file.
pub(super) fn read(file: &[u8]) -> Result<Header, HeaderError> {
    let bytes = file.len();
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(HeaderError::TooShort { bytes });
    };
    let header = u64::from_le_bytes(*length);
    if header > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLarge { header, limit: MAX_HEADER_BYTES });
    }
    let Some((text, data)) = rest.split_at_checked(header as usize) else {
        return Err(HeaderError::HeaderCut { header, bytes });
    };
    let text = str::from_utf8(text)
        .map_err(|error| HeaderError::NotText { offset: error.valid_up_to() })?;
    let Tensors(mut tensors) = serde_json::from_str(text).map_err(HeaderError::Json)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    // Checks every tensor, and that each begins where the one before it ends.
    Metadata::new(None, tensors.clone()).map_err(HeaderError::Tensor)?;
    let promised = tensors.last().map_or(0, |(_, info)| info.data_offsets.1);
    if promised != data.len() {
        return Err(HeaderError::Data { promised, found: data.len() });
    }
    Ok(Header { tensors, start: bytes - data.len() })
}

/// The JSON of a header; a key that stands twice is an error, where a map would take one.
struct Tensors(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TensorsVisitor)
    }
}

struct TensorsVisitor;

impl<'de> Visitor<'de> for TensorsVisitor {
    type Value = Tensors;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
        let (mut seen, mut tensors) = (HashSet::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("`{}` stands twice", shown(&name))));
            }
            if name == METADATA {
                map.next_value::<BTreeMap<String, String>>()?;
            } else {
                tensors.push((name, map.next_value()?));
            }
        }
        Ok(Tensors(tensors))
    }
}

/// Longest name that is shown whole, in characters.
const MAX_SHOWN: usize = 200;

/// A name out of a file as it can be shown: without control characters, and not without end.
pub(super) fn shown(name: &str) -> String {
    let escaped = |letter: char| {
        if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() }
    };
    let mut text: String = name.chars().take(MAX_SHOWN).map(escaped).collect();
    if name.chars().nth(MAX_SHOWN).is_some() {
        text.push('…');
    }
    text
}
