//! Bytes as lower-case hexadecimal, and no other spelling, in JSON and on the command line.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::Serializer;

use super::Hash;
use crate::files::hex;

/// 32 bytes from 64 lower-case hexadecimal digits.
pub fn hash_from_hex(text: &str) -> Option<Hash> {
    token_from_hex(text)
}

/// So many bytes from twice as many lower-case hexadecimal digits.
pub fn token_from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

pub(in super::super) fn serialize<S: Serializer, const N: usize>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

pub(in super::super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let wrong = || D::Error::custom(format!("expected {} lower-case hexadecimal digits", 2 * N));
    token_from_hex(&text).ok_or_else(wrong)
}

/// The same for a list.
pub(super) mod list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Hash;

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "super")] Hash);

    pub(in super::super) fn serialize<S: Serializer>(
        hashes: &[Hash],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(|hash| One(*hash)))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Hash>, D::Error> {
        let list = Vec::<One>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|One(hash)| hash).collect())
    }
}
