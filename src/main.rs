//! The program `heirloom`: see `heirloom::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    heirloom::cli::main()
}
