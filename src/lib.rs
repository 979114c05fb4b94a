//! Heirloom adapts open-weight language models: one declarative recipe in, an adapted
//! model out, with a lineage that anyone can check.
//!
//! Data flows one way through the rooms:
//!
//! ```text
//! recipe ──▶ plan ──▶ dataset ──▶ model + adapter ──▶ train ──▶ eval ──▶ export ──▶ provenance
//! ```
//!
//! This crate holds every room that needs no tensors. Whatever computes lives in the
//! workspace member `heirloom-engine`, which calls this crate; this crate never calls it
//! (it only starts its program, see [`job`]).

pub mod allocator;
pub mod base;
pub mod cli;
pub mod dataset;
pub mod diagnose;
pub mod files;
pub mod generation;
pub mod hub;
pub mod job;
mod json;
pub mod peft;
pub mod provenance;
pub mod recipe;
pub mod run;
pub mod track;

/// The version of both programs; they are released together and refuse each other otherwise.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of libtorch that the engine is written for.
pub const LIBTORCH: &str = "2.11.0";
