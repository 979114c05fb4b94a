//! The program `heirloom`: see `heirloom::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    heirloom::allocator::settle();
    heirloom::cli::main()
}
