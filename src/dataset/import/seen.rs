//! How often something was seen before, in bounded memory.
//!
//! A count for each 128-bit key: in memory for the first 200,000, from then on in an open
//! addressing table in a temporary file without a name, which the system caches as it sees
//! fit. Keys are digests, so that their first bits say where to look.

use std::collections::HashMap;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fs_err::File;

/// Keys that are kept in memory, in about 9 MB: as many as a table of 2^18 buckets holds.
const IN_MEMORY: usize = 7 << 15;

/// A key, and how often it was seen; 0 is a free slot.
const SLOT_BYTES: u64 = 20;

/// Slots that are read at a time.
const SLOTS_READ: u64 = 32;

/// Counts keys.
pub(super) struct Seen {
    recent: HashMap<u128, u32>,
    in_memory: usize,
    table: Option<Table>,
    folder: std::path::PathBuf,
}

impl Seen {
    /// Nothing seen. What memory does not hold goes to a file in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self::with_room(folder, IN_MEMORY)
    }

    fn with_room(folder: &Path, in_memory: usize) -> Self {
        Self { recent: HashMap::new(), in_memory, table: None, folder: folder.to_owned() }
    }

    /// How often `key` was seen before; and counts this time.
    pub(super) fn count(&mut self, key: u128) -> io::Result<u32> {
        if self.table.is_none() && self.recent.len() >= self.in_memory {
            let mut table = Table::new(&self.folder, (self.in_memory as u64) * 4)?;
            let mut recent: Vec<(u128, u32)> =
                std::mem::take(&mut self.recent).into_iter().collect();
            recent.sort_unstable();
            for (key, times) in recent {
                table.add(key, times)?;
            }
            self.table = Some(table);
        }
        match &mut self.table {
            Some(table) => {
                if table.is_crowded() {
                    *table = table.grown(&self.folder)?;
                }
                table.add(key, 1)
            }
            None => {
                let times = self.recent.entry(key).or_default();
                *times = times.saturating_add(1);
                Ok(*times - 1)
            }
        }
    }
}

/// An open addressing table in a file.
struct Table {
    file: File,
    /// A power of two.
    slots: u64,
    used: u64,
}

impl Table {
    fn new(folder: &Path, slots: u64) -> io::Result<Self> {
        let file = File::from_parts(
            tempfile::tempfile_in(folder)?,
            folder.join("(a file without a name)"),
        );
        let slots = slots.max(SLOTS_READ).next_power_of_two();
        // Zeros that take no place until they are written.
        file.set_len(slots * SLOT_BYTES)?;
        Ok(Self { file, slots, used: 0 })
    }

    fn is_crowded(&self) -> bool {
        self.used * 4 > self.slots * 3
    }

    /// A table of four times the room. Slots are in the order of their keys' first bits, more
    /// or less, so that both files are gone through once, from front to back.
    fn grown(&mut self, folder: &Path) -> io::Result<Self> {
        let mut table = Self::new(folder, self.slots * 4)?;
        self.file.seek(SeekFrom::Start(0))?;
        let mut slots = io::BufReader::new(&self.file);
        let mut slot = [0; SLOT_BYTES as usize];
        for _ in 0..self.slots {
            slots.read_exact(&mut slot)?;
            let (key, times) = parts(&slot);
            if times > 0 {
                table.add(key, times)?;
            }
        }
        Ok(table)
    }

    /// Adds to the count of a key; returns what it was.
    fn add(&mut self, key: u128, times: u32) -> io::Result<u32> {
        let bits = self.slots.trailing_zeros();
        let mut at = u64::try_from(key >> (128 - bits)).unwrap_or_default();
        let mut block = [0; (SLOT_BYTES * SLOTS_READ) as usize];
        loop {
            let read = SLOTS_READ.min(self.slots - at);
            let bytes = usize::try_from(read * SLOT_BYTES).unwrap_or_default();
            let Some(block) = block.get_mut(..bytes) else { return Ok(0) };
            self.file.file().read_exact_at(block, at * SLOT_BYTES)?;
            for (index, slot) in block.chunks_exact(SLOT_BYTES as usize).enumerate() {
                let (found, before) = parts(slot);
                if before > 0 && found != key {
                    continue;
                }
                let mut slot = [0; SLOT_BYTES as usize];
                let after = before.saturating_add(times);
                slot[..16].copy_from_slice(&key.to_le_bytes());
                slot[16..].copy_from_slice(&after.to_le_bytes());
                self.file.file().write_all_at(&slot, (at + index as u64) * SLOT_BYTES)?;
                self.used += u64::from(before == 0);
                return Ok(before);
            }
            at = (at + read) % self.slots;
        }
    }
}

fn parts(slot: &[u8]) -> (u128, u32) {
    let (key, times) = slot.split_at(16);
    let key = key.try_into().map(u128::from_le_bytes).unwrap_or_default();
    (key, times.try_into().map(u32::from_le_bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_in_memory_is_counted_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spilling, mut plain) =
            (Seen::with_room(folder.path(), 10), Seen::new(folder.path()));
        // Few first bits, so that neighbours collide, and the last slots so that they wrap.
        let key = |n: u64| (u128::from(n % 700) << 121) ^ u128::from((n * n) % 700);
        for n in 0..5000 {
            assert_eq!(spilling.count(key(n)).unwrap(), plain.count(key(n)).unwrap(), "{n}");
        }
        let table = spilling.table.as_ref().unwrap();
        assert!(table.slots > 64, "it never grew: {}", table.slots);
        assert_eq!(table.used, plain.recent.len() as u64);
    }
}
