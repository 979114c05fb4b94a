//! The blocks of remote objects that are held in memory, for all readers together.
//!
//! Owns the bound on them and that no two readers fetch the same block at the same time.
//! Does not know how a block is fetched.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::failure::Failure;

/// Size of a block.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;

/// Blocks that are held at most.
pub(super) const MAX_BLOCKS: usize = 64;

/// Blocks that one request brings at most.
pub(super) const BLOCKS_PER_REQUEST: u64 = 4;

/// The blocks of this process.
pub(super) static BLOCKS: Blocks = Blocks::new(MAX_BLOCKS);

/// A block of an object.
type Key = (u64, u64);

/// Blocks of several objects, the least recently used given up first.
pub(super) struct Blocks {
    most: usize,
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    slots: BTreeMap<Key, Slot>,
    /// Counts uses.
    clock: u64,
}

enum Slot {
    /// Somebody fetches it.
    Coming,
    Here {
        bytes: Bytes,
        used: u64,
    },
}

/// Blocks that one reader has taken upon itself to fetch.
pub(super) struct Claim<'a> {
    blocks: &'a Blocks,
    object: u64,
    run: Range<u64>,
    settled: bool,
}

/// What there is of a block.
enum Found<'a> {
    Here(Bytes),
    Ours(Claim<'a>),
}

impl Blocks {
    const fn new(most: usize) -> Self {
        let state = State { slots: BTreeMap::new(), clock: 0 };
        Self { most, state: Mutex::new(state), settled: Condvar::new() }
    }

    /// The bytes of a block, fetched together with those after it that are wanted too.
    pub(super) fn get(
        &self,
        object: u64,
        wanted: Range<u64>,
        fetch: impl FnOnce(Range<u64>) -> Result<Bytes, Failure>,
    ) -> Result<Bytes, Failure> {
        match self.find(object, &wanted) {
            Found::Here(bytes) => Ok(bytes),
            Found::Ours(claim) => {
                let fetched = fetch(claim.run.clone());
                claim.settle(fetched)
            }
        }
    }

    /// Takes upon the caller to fetch those of `wanted` that nobody has or fetches.
    pub(super) fn claim(&self, object: u64, wanted: Range<u64>) -> Option<Claim<'_>> {
        let mut state = self.lock();
        let free = |block: &u64| !state.slots.contains_key(&(object, *block));
        let start = wanted.clone().find(free)?;
        let last = wanted.end.min(start + BLOCKS_PER_REQUEST);
        let end = (start..last).find(|block| !free(block)).unwrap_or(last);
        for block in start..end {
            state.slots.insert((object, block), Slot::Coming);
        }
        Some(Claim { blocks: self, object, run: start..end, settled: false })
    }

    fn find(&self, object: u64, wanted: &Range<u64>) -> Found<'_> {
        let key = (object, wanted.start);
        loop {
            let mut state = self.lock();
            state.clock += 1;
            let now = state.clock;
            match state.slots.get_mut(&key) {
                Some(Slot::Here { bytes, used }) => {
                    *used = now;
                    return Found::Here(bytes.clone());
                }
                Some(Slot::Coming) => {
                    // Settled, or given up: either way it is looked for again.
                    drop(self.settled.wait(state).unwrap_or_else(PoisonError::into_inner));
                }
                None => {
                    drop(state);
                    // Someone else may have been quicker.
                    if let Some(claim) = self.claim_from(object, wanted) {
                        return Found::Ours(claim);
                    }
                }
            }
        }
    }

    fn claim_from(&self, object: u64, wanted: &Range<u64>) -> Option<Claim<'_>> {
        let end = wanted.end.max(wanted.start + 1);
        let claim = self.claim(object, wanted.start..end)?;
        (claim.run.start == wanted.start).then_some(claim)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an object that nobody reads any more.
    pub(super) fn forget(&self, object: u64) {
        self.lock().slots.retain(|(of, _), slot| *of != object || matches!(slot, Slot::Coming));
    }
}

impl Claim<'_> {
    /// The blocks.
    pub(super) fn run(&self) -> Range<u64> {
        self.run.clone()
    }

    /// Hands in what was fetched; the first block.
    pub(super) fn settle(mut self, fetched: Result<Bytes, Failure>) -> Result<Bytes, Failure> {
        self.settled = true;
        let mut state = self.blocks.lock();
        let first = match fetched {
            Ok(bytes) => {
                let size = BLOCK_BYTES as usize;
                // Each its own allocation: a block that is given up gives its memory back.
                let mut parts = bytes.chunks(size).map(Bytes::copy_from_slice);
                let mut first = Bytes::new();
                for block in self.run.clone() {
                    let bytes = parts.next().unwrap_or_default();
                    if block == self.run.start {
                        first = bytes.clone();
                    }
                    state.clock += 1;
                    let used = state.clock;
                    state.slots.insert((self.object, block), Slot::Here { bytes, used });
                }
                state.give_up_beyond(self.blocks.most);
                Ok(first)
            }
            Err(failure) => {
                for block in self.run.clone() {
                    state.slots.remove(&(self.object, block));
                }
                Err(failure)
            }
        };
        drop(state);
        self.blocks.settled.notify_all();
        first
    }
}

impl Drop for Claim<'_> {
    /// Nobody must wait for a block that will not come.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.blocks.lock();
        for block in self.run.clone() {
            state.slots.remove(&(self.object, block));
        }
        drop(state);
        self.blocks.settled.notify_all();
    }
}

impl State {
    fn give_up_beyond(&mut self, most: usize) {
        loop {
            let here = self.slots.iter().filter_map(|(key, slot)| match slot {
                Slot::Here { used, .. } => Some((*used, *key)),
                _ => None,
            });
            let (count, oldest) =
                here.fold((0, None), |(count, oldest): (usize, Option<_>), one| {
                    (count + 1, Some(oldest.map_or(one, |oldest| one.min(oldest))))
                });
            match oldest {
                Some((_, key)) if count > most => self.slots.remove(&key),
                _ => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn block(fill: u64) -> Bytes {
        Bytes::from(vec![fill as u8; BLOCK_BYTES as usize])
    }

    fn run(range: Range<u64>) -> Result<Bytes, Failure> {
        Ok(range.flat_map(|fill| block(fill).to_vec()).collect())
    }

    #[test]
    fn no_more_blocks_are_held_than_allowed_and_the_oldest_goes_first() {
        let blocks = Blocks::new(3);
        for index in [0, 1, 2, 0, 3] {
            assert_eq!(blocks.get(7, index..index + 1, run).unwrap()[0], index as u8);
        }
        let held: Vec<u64> = blocks.lock().slots.keys().map(|(_, block)| *block).collect();
        assert_eq!(held, [0, 2, 3]);
        blocks.forget(7);
        assert!(blocks.lock().slots.is_empty());
    }

    #[test]
    fn a_request_brings_what_is_lacking_and_no_more() {
        let blocks = Blocks::new(64);
        blocks.get(1, 2..3, run).unwrap();
        let mut asked = Vec::new();
        for start in [0, 3] {
            let fetch = |range: Range<u64>| {
                asked.push(range.clone());
                run(range)
            };
            blocks.get(1, start..start + 9, fetch).unwrap();
        }
        assert_eq!(asked, [0..2, 3..7]);
    }

    #[test]
    fn one_reader_fetches_and_the_others_wait() {
        let blocks = Blocks::new(64);
        let fetches = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let bytes = blocks.get(1, 5..6, |range| {
                        fetches.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20));
                        run(range)
                    });
                    assert_eq!(bytes.unwrap()[0], 5);
                });
            }
        });
        assert_eq!(fetches.into_inner(), 1);
    }

    #[test]
    fn after_a_failure_the_next_reader_tries_again() {
        let blocks = Blocks::new(64);
        assert_eq!(blocks.get(1, 0..1, |_| Err(Failure::Absent)), Err(Failure::Absent));
        let ahead = blocks.claim(1, 0..4).unwrap();
        assert_eq!(ahead.run(), 0..4);
        assert_eq!(ahead.settle(Err(Failure::Changed)), Err(Failure::Changed));
        assert!(blocks.get(1, 0..1, run).is_ok());
        drop(blocks.claim(1, 1..2).unwrap());
        assert!(blocks.get(1, 1..2, run).is_ok());
    }
}
