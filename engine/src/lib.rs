//! The rooms that compute: everything that touches libtorch.
//!
//! Calls the crate `heirloom`, never the other way round; a room here calls rooms above it
//! in this list, never below.
