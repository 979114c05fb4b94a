//! The program `heirloom-engine`: started by `heirloom`, never by people.

use std::process::ExitCode;

use heirloom::VERSION;
use heirloom::cli::exit::{self, ExitStatus};
use heirloom::cli::printer::Printer;
use heirloom::diagnose::Failure;
use heirloom::job::Envelope;
use heirloom_engine::error::EngineError;
use heirloom_engine::{LIBTORCH, jobs, memory, ops};

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    // `heirloom doctor` asks, to see that the libraries are found.
    if argument == "--version" {
        let version = format!("heirloom-engine {VERSION} (libtorch {LIBTORCH})");
        let said = Printer::Normal.data(&version).map(|()| ExitStatus::Success);
        return exit::conclude(Printer::Normal, said.map_err(Failure::from));
    }
    match serde_json::from_str::<Envelope>(&argument) {
        Ok(envelope) => {
            let printer = Printer::from(envelope.verbosity);
            heirloom::cli::say_retries(printer);
            exit::conclude(printer, run(&envelope, printer))
        }
        Err(source) => exit::conclude(Printer::Normal, Err(EngineError::NoJob { source }.into())),
    }
}

fn run(envelope: &Envelope, printer: Printer) -> Result<ExitStatus, Failure> {
    if envelope.version != VERSION {
        let (engine, sender) = (VERSION.to_owned(), envelope.version.clone());
        return Err(EngineError::Version { engine, sender }.into());
    }
    ops::reference::check_variable()?;
    // Before the first tensor.
    memory::use_blocks();
    jobs::run(&envelope.job, printer)?;
    Ok(ExitStatus::Success)
}
