//! The provenance room: what a release is made of, in words that anyone can check.
//!
//! Owns the release's `provenance.json` ([`statement`]), its model card ([`card`]), writing
//! both over a finished payload ([`release`]), checking a release against its manifest
//! ([`verify`]), which row counts may be published ([`counts`]), and the commitment to the
//! records that were used, with its proofs ([`tree`]). Does not own the
//! payload (the engine writes weights) nor the run folder ([`crate::run`]).
//!
//! Reference: in-toto Statement v1 with the SLSA provenance v1 predicate; the Hugging Face
//! hub's model card metadata.

pub mod affected;
pub mod card;
pub mod counts;
mod folder;
pub mod origin;
pub mod registry;
pub mod release;
pub mod statement;
pub mod tree;
pub mod verify;
pub mod watch;

#[cfg(test)]
mod tests;

/// Name of the manifest, at the root of a release.
pub const MANIFEST: &str = "provenance.json";
