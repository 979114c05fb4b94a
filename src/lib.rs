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

pub mod base;
pub mod cli;
pub mod dataset;
pub mod diagnose;
pub mod files;
pub mod generation;
pub mod hub;
pub mod job;
mod json;
pub mod provenance;
pub mod recipe;
pub mod run;
pub mod track;

/// Of every program that links this crate. Documents are made by some threads and freed by
/// another, between buffers a thousand times their size: with glibc's allocator the stream of
/// 5 GB came to hold half as much again as that of 0.2 GB, with this one the same.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The version of both programs; they are released together and refuse each other otherwise.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of libtorch that the engine is written for.
pub const LIBTORCH: &str = "2.11.0";
