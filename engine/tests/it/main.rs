//! Integration tests of the engine, in one binary because linking libtorch is slow.

mod goldens;
mod support;
