//! Sorting entries by key, whatever their number, in a few dozen megabytes.
//!
//! Keys begin with an HMAC, so they spread evenly: entries go to 256 buckets by their leading
//! bits, a bucket that fits into memory is sorted there, and any other is dealt out again by
//! the first bits in which its keys differ. Entries of one key keep the order in which they
//! came. Buckets that stay small never touch the disk.

use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;
use tempfile::TempDir;

/// What entries are sorted by.
pub(super) type Key = [u8; 64];

const KEY_BITS: u32 = 512;
const FAN: usize = 256;

/// How much of a bucket waits in memory.
const WAITING: usize = 64 << 10;
/// The largest bucket that is sorted in memory.
const IN_MEMORY: usize = 32 << 20;

/// Sorts entries by key.
#[derive(Debug)]
pub(super) struct Sorter {
    folder: TempDir,
    buckets: Vec<Bucket>,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    waiting: usize,
    in_memory: usize,
}

impl Sorter {
    /// Sorts with temporary files in `folder`, in a folder that only its owner can enter.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        Self::with_limits(folder, Limits { waiting: WAITING, in_memory: IN_MEMORY })
    }

    fn with_limits(folder: &Path, limits: Limits) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        let folder = builder.prefix(".heirloom-").suffix(".partial").tempdir_in(folder)?;
        let buckets = fan(folder.path(), "");
        Ok(Self { folder, buckets, limits })
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, key: &Key, entry: &[u8]) -> io::Result<()> {
        match self.buckets.get_mut(window(key, 0)) {
            Some(bucket) => bucket.add(key, entry, self.limits),
            None => Ok(()), // a window is below FAN
        }
    }

    /// Hands out every entry by key.
    pub(super) fn drain<E: From<io::Error>>(
        self,
        mut visit: impl FnMut(&Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for bucket in self.buckets {
            drain(bucket, self.limits, &mut visit)?;
        }
        Ok(self.folder.close()?)
    }
}

/// What an entry is handed to.
type Visit<'a, E> = dyn FnMut(&Key, &[u8]) -> Result<(), E> + 'a;

/// Entries whose keys have some leading bits in common.
#[derive(Debug)]
struct Bucket {
    /// Where what does not fit into memory goes; there once something went.
    path: PathBuf,
    /// Bytes in the file.
    filed: usize,
    waiting: Vec<u8>,
    first: Option<Key>,
    /// Leading bits that all keys have in common.
    common: u32,
}

fn fan(folder: &Path, name: &str) -> Vec<Bucket> {
    let bucket = |part| Bucket {
        path: folder.join(format!("{name}{part:02x}")),
        filed: 0,
        waiting: Vec::new(),
        first: None,
        common: KEY_BITS,
    };
    (0..FAN).map(bucket).collect()
}

impl Bucket {
    fn add(&mut self, key: &Key, entry: &[u8], limits: Limits) -> io::Result<()> {
        self.common = self.common.min(common_bits(self.first.get_or_insert(*key), key));
        let length = u32::try_from(entry.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a record id of 4 GiB"))?;
        self.waiting.extend_from_slice(key);
        self.waiting.extend_from_slice(&length.to_le_bytes());
        self.waiting.extend_from_slice(entry);
        if self.waiting.len() >= limits.waiting {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(&self.waiting)?;
            self.filed += self.waiting.len();
            self.waiting = Vec::new();
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.filed + self.waiting.len()
    }

    /// Hands out every entry in the order in which it came, and removes the file.
    fn read<E: From<io::Error>>(
        self,
        mut visit: impl FnMut(&Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut key = [0; 64];
        let mut length = [0; 4];
        let mut entry = Vec::new();
        let mut next = |from: &mut dyn Read| -> Result<(), E> {
            from.read_exact(&mut key)?;
            from.read_exact(&mut length)?;
            entry.resize(u32::from_le_bytes(length) as usize, 0);
            from.read_exact(&mut entry)?;
            visit(&key, &entry)
        };
        if self.filed > 0 {
            let mut file = BufReader::with_capacity(1 << 18, fs::File::open(&self.path)?);
            while !io::BufRead::fill_buf(&mut file)?.is_empty() {
                next(&mut file)?;
            }
            fs::remove_file(&self.path)?;
        }
        let mut waiting = self.waiting.as_slice();
        while !waiting.is_empty() {
            next(&mut waiting)?;
        }
        Ok(())
    }
}

fn drain<E: From<io::Error>>(
    bucket: Bucket,
    limits: Limits,
    visit: &mut Visit<'_, E>,
) -> Result<(), E> {
    if bucket.bytes() <= limits.in_memory {
        let mut bytes = Vec::with_capacity(bucket.bytes());
        let mut entries = Vec::new();
        bucket.read::<E>(|key, entry| {
            entries.push((*key, bytes.len()..bytes.len() + entry.len()));
            bytes.extend_from_slice(entry);
            Ok(())
        })?;
        entries.sort_by_key(|(key, _)| *key);
        for (key, place) in entries {
            visit(&key, bytes.get(place).unwrap_or_default())?;
        }
        return Ok(());
    }
    if bucket.common == KEY_BITS {
        return bucket.read(visit);
    }
    // The bit after the common ones differs, so that no part is the whole again.
    let (from, path) = (bucket.common, bucket.path.clone());
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = fan(folder, &name);
    bucket.read::<E>(|key, entry| match parts.get_mut(window(key, from)) {
        Some(part) => Ok(part.add(key, entry, limits)?),
        None => Ok(()), // a window is below FAN
    })?;
    parts.into_iter().try_for_each(|part| drain(part, limits, visit))
}

/// Eight bits of `key`; zeros follow its end.
fn window(key: &Key, from: u32) -> usize {
    let at = (from / 8) as usize;
    let byte = |at: usize| u16::from(key.get(at).copied().unwrap_or(0));
    let two = byte(at) << 8 | byte(at + 1);
    usize::from(two >> (8 - from % 8) & 0xff)
}

fn common_bits(one: &Key, other: &Key) -> u32 {
    let bytes = one.iter().zip(other).enumerate();
    for (at, (one, other)) in bytes {
        if one != other {
            return at as u32 * 8 + (one ^ other).leading_zeros();
        }
    }
    KEY_BITS
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Entries as they come out, and whether anything was left in the folder.
    fn sorted(entries: &[(Key, Vec<u8>)], limits: Limits) -> Vec<(Key, Vec<u8>)> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::with_limits(folder.path(), limits).unwrap();
        for (key, entry) in entries {
            sorter.add(key, entry).unwrap();
        }
        let mut out = Vec::new();
        sorter
            .drain::<io::Error>(|key, entry| {
                out.push((*key, entry.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        out
    }

    fn key(bytes: &[u8]) -> Key {
        let mut key = [7; 64];
        key[64 - bytes.len()..].copy_from_slice(bytes);
        key
    }

    proptest! {
        #[test]
        fn entries_come_out_as_a_stable_sort_gives_them(
            keys in vec((vec(0..3_u8, 0..4), any::<bool>()), 0..300),
            waiting in 1..200_usize,
            in_memory in 1..2000_usize,
        ) {
            let mut number = 0_u32;
            let entries: Vec<(Key, Vec<u8>)> = keys.iter().map(|(bytes, front)| {
                number += 1;
                let mut key = key(bytes);
                if *front { key.reverse(); }
                (key, number.to_le_bytes()[..1 + number as usize % 4].to_vec())
            }).collect();
            let mut expected = entries.clone();
            expected.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(sorted(&entries, Limits { waiting, in_memory }), expected);
        }
    }

    #[test]
    fn one_key_for_everything_is_handed_out_in_order() {
        let entries: Vec<_> =
            (0..1000_u32).map(|n| (key(b"x"), n.to_le_bytes().to_vec())).collect();
        assert_eq!(sorted(&entries, Limits { waiting: 50, in_memory: 100 }), entries);
    }

    #[test]
    fn windows_are_bits_of_the_key() {
        let mut key = [0; 64];
        key[..3].copy_from_slice(&[0b1010_0101, 0b1111_0000, 0b0000_1111]);
        key[63] = 0b1100_0011;
        assert_eq!(window(&key, 0), 0b1010_0101);
        assert_eq!(window(&key, 4), 0b0101_1111);
        assert_eq!(window(&key, 9), 0b1110_0000);
        assert_eq!(window(&key, 510), 0b1100_0000);
        let mut other = key;
        assert_eq!(common_bits(&key, &other), 512);
        other[63] ^= 1;
        assert_eq!(common_bits(&key, &other), 511);
        other[1] ^= 0b0000_1000;
        assert_eq!(common_bits(&key, &other), 12);
    }
}
