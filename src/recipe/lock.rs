//! The lock: every input of a run, pinned by digest, and what the plan found in them.
//!
//! `recipe.lock` is JSON. A run may only be resumed, evaluated or exported while its inputs
//! still are what the lock says.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::dataset::consent::{Ask, Counts};

/// Contents of `recipe.lock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of Heirloom that wrote it.
    pub heirloom: String,
    /// When the plan was made: the start of the run, in UTC.
    pub created: Timestamp,
    /// SHA-256 of the recipe file as the user wrote it.
    pub recipe_sha256: String,
    /// Files of the base folder that are read, sorted by path.
    pub base: Vec<LockedFile>,
    /// Files of rows, in the order in which they are read.
    pub data: Vec<LockedData>,
    /// What was asked of every row.
    pub ask: Ask,
    /// What training takes.
    pub training: Size,
}

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// As named by the recipe, or found by its glob.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// Which part of the recipe reads a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// `data.train`.
    Train,
    /// `data.validation`.
    Validation,
    /// `data.test`, by the name of the suite.
    Test(String),
}

/// One file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedData {
    /// Who reads it.
    pub split: Split,
    /// The file.
    pub file: LockedFile,
    /// The gate's verdict on its rows.
    pub rows: Counts,
    /// SHA-256 over the `record_id`s of the used rows, each followed by a line feed, in file
    /// order: a resumed run must still be allowed the same rows.
    pub used_sha256: String,
}

/// The extent of the training rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Tokens in one pass.
    pub tokens: u64,
    /// Of these, tokens that carry loss.
    pub trained_tokens: u64,
    /// Conversations left out of a pass because they are longer than a window.
    pub dropped_overlong: u64,
    /// Optimiser steps of each pass.
    pub steps_by_epoch: Vec<u64>,
    /// Optimiser steps of the run: the sum, or `train.max_steps` if that is less.
    pub steps: u64,
}
