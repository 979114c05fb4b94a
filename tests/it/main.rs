//! The program `heirloom` as people run it: what it prints, how it ends, what it writes.
//!
//! Everything that computes is the engine's and tested there; here a script stands in its
//! place and shows the job that it is handed.

#[cfg(test)]
mod advice;
#[cfg(test)]
mod affected;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod consent;
#[cfg(test)]
mod data;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod families;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod hub;
#[cfg(test)]
mod import;
#[cfg(test)]
mod inputs;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod lineage;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod recipes;
#[cfg(test)]
mod remote;
#[cfg(test)]
mod remote_stream;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod surface;
#[cfg(test)]
mod track;
#[cfg(test)]
mod withdrawals;
#[cfg(test)]
mod words;
#[cfg(test)]
mod world;
