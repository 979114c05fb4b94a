//! The program `heirloom-engine`: started by `heirloom`, never by people.
fn main() {}
