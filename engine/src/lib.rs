//! The rooms that compute: everything that touches libtorch.
//!
//! Calls the crate `heirloom`, never the other way round; a room here calls rooms above it
//! in this list, never below.

pub mod adapter;
pub mod error;
pub mod eval;
pub mod export;
pub mod jobs;
pub mod generate;
pub mod model;
pub mod ops;
pub mod train;
