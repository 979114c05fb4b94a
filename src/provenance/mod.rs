//! The provenance room: what a release is made of, in words that anyone can check.
