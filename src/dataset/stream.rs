//! The stream of optimiser steps.

use serde::{Deserialize, Serialize};

/// Where a stream stands: everything before it has been used. Travels with every step, so
/// that resuming is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Passes completed.
    pub epoch: u32,
    /// Shuffle block within the pass.
    pub block: u64,
    /// Rows of that block (in its shuffled order) that are used up.
    pub row: u64,
}

/// Tokens for one forward pass, several conversations one after the other.
///
/// There is no padding: document `d` is `tokens[sum(lengths[..d])..][..lengths[d]]`.
/// Attention and positions never cross a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all documents, shape `[n]`.
    pub tokens: Vec<u32>,
    /// Whether `tokens[i]` carries loss (predicted from the token before it), shape `[n]`;
    /// false at the start of every document.
    pub trained: Vec<bool>,
    /// Length of each document; sums to `n`.
    pub lengths: Vec<u32>,
}

impl MicroBatch {
    /// Tokens that carry loss.
    pub fn trained_tokens(&self) -> u64 {
        self.trained.iter().filter(|trained| **trained).count() as u64
    }
}

/// Everything for one optimiser step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Forward passes whose gradients are added up.
    pub micro_batches: Vec<MicroBatch>,
    /// Pass over the data that this step belongs to, from 0.
    pub epoch: u32,
    /// Whether this is the last step of its pass.
    pub ends_epoch: bool,
    /// Where the stream stands after this step.
    pub position: Position,
}
