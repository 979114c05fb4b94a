//! The rooms that compute: everything that touches libtorch.
//!
//! Calls the crate `heirloom`, never the other way round; a room here calls rooms above it
//! in this list, never below.

pub mod adapter;
pub mod error;
pub mod eval;
pub mod export;
pub mod generate;
pub mod jobs;
pub mod model;
pub mod ops;
pub mod train;

/// The version of libtorch that this crate is built for.
pub const LIBTORCH: &str = "2.11.0";
