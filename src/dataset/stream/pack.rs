//! How documents fill windows, and windows fill forward passes.
//!
//! Owns packing a pool of documents into windows, over plain lengths. Does not own which
//! documents are in a pool (`steps`).
//!
//! References: best fit and first fit decreasing as in Johnson, Demers, Ullman, Garey and
//! Graham (1974); packing of conversations without contamination as in arXiv 2107.02027.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::recipe::Packing;

/// The documents of each window, as indices into `lengths`; none is longer than a window.
pub(super) fn pack(packing: Packing, window: usize, lengths: &[usize]) -> Vec<Vec<usize>> {
    match packing {
        Packing::None => (0..lengths.len()).map(|document| vec![document]).collect(),
        Packing::BestFit => best_fit(window, lengths),
        Packing::FirstFitDecreasing => first_fit_decreasing(window, lengths),
    }
}

/// In their order, each in the window in which it leaves the least room.
fn best_fit(window: usize, lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut windows: Vec<Vec<usize>> = Vec::new();
    // Room and number of every window that has any: of equal rooms, the first window's.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (document, length) in lengths.iter().enumerate() {
        let fitting = rooms.range((*length, 0)..).next().copied();
        let (room, number) = fitting.unwrap_or((window, windows.len()));
        match windows.get_mut(number) {
            Some(open) => open.push(document),
            None => windows.push(vec![document]),
        }
        rooms.remove(&(room, number));
        if room > *length {
            rooms.insert((room - length, number));
        }
    }
    windows
}

/// The longest first, each in the first window that has room for it; equal ones in order.
fn first_fit_decreasing(window: usize, lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let length = |document: &usize| lengths.get(*document).copied().unwrap_or_default();
    order.sort_by_key(|document| std::cmp::Reverse(length(document)));
    let mut windows: Vec<(usize, Vec<usize>)> = Vec::new();
    for document in order {
        let length = length(&document);
        match windows.iter_mut().find(|(room, _)| *room >= length) {
            Some((room, open)) => {
                *room -= length;
                open.push(document);
            }
            None => windows.push((window.saturating_sub(length), vec![document])),
        }
    }
    windows.into_iter().map(|(_, documents)| documents).collect()
}

/// Splits windows, given their lengths, into micro-batches of at most `most` tokens; a
/// window that is longer gets one of its own.
pub(super) fn micro_batches(windows: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, window) in windows.iter().enumerate() {
        if index > start && tokens + window > most {
            batches.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += window;
    }
    if start < windows.len() {
        batches.push(start..windows.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Packing; 3] = [Packing::None, Packing::BestFit, Packing::FirstFitDecreasing];

    #[test]
    fn each_way_fills_windows_as_it_is_called() {
        let lengths = [4, 7, 3, 6, 1, 9];
        // Worked by hand: 4 opens; 7 opens; 3 fits best beside 7; 6 beside 4; 1 opens; 9 after 1.
        let expected = [vec![0, 3], vec![1, 2], vec![4, 5]];
        assert_eq!(pack(Packing::BestFit, 10, &lengths), expected);
        // 9, 7, 6, 4, 3, 1: 4 beside 6, 3 beside 7, 1 beside 9.
        let expected = [vec![5, 4], vec![1, 2], vec![3, 0]];
        assert_eq!(pack(Packing::FirstFitDecreasing, 10, &lengths), expected);
        assert_eq!(pack(Packing::None, 10, &[1, 1]), [vec![0], vec![1]]);
    }

    proptest! {
        #[test]
        fn every_document_is_packed_once_and_no_window_overflows(
            lengths in proptest::collection::vec(1_usize..=20, 0..200),
        ) {
            for packing in ALL {
                let windows = pack(packing, 20, &lengths);
                let mut all: Vec<usize> = windows.iter().flatten().copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
                let sum = |window: &Vec<usize>| window.iter().map(|d| lengths[*d]).sum::<usize>();
                prop_assert!(windows.iter().all(|window| sum(window) <= 20));
                // Two windows that are half empty would have been one.
                let half = windows.iter().filter(|window| sum(window) <= 10).count();
                prop_assert!(packing == Packing::None || half <= 1);
            }
        }
    }

    #[test]
    fn micro_batches_hold_as_many_windows_as_they_may() {
        assert_eq!(micro_batches(&[4, 4, 4, 9, 1], 8), [0..2, 2..3, 3..4, 4..5]);
        assert!(micro_batches(&[], 8).is_empty());
    }
}
