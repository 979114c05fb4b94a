//! Integration tests of the engine, in one binary because linking libtorch is slow.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod accumulation;
mod adapter_kinds;
mod adapter_runs;
mod adapters;
mod bench;
mod checkpointing;
mod distillation;
mod distillation_runs;
mod experts;
mod export;
mod families;
mod formats;
mod generate;
mod goldens;
mod guard;
mod optimizers;
mod perplexity;
mod preference;
mod quantised;
mod runs;
mod support;
mod tokens;
mod track;
mod vera;
mod weights;
mod withdrawals;
mod words;
