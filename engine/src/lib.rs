//! The rooms that compute: everything that touches libtorch.
//!
//! Calls the crate `heirloom`, never the other way round. [`ops`] calls no other room,
//! [`quant`] only that one, [`model`] those two; [`jobs`] alone knows the order of all.

pub mod adapter;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod generate;
pub mod jobs;
pub mod memory;
pub mod model;
pub mod ops;
pub mod quant;
pub mod train;

pub use heirloom::LIBTORCH;
