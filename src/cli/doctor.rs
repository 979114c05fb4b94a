//! `heirloom doctor`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use super::exit::ExitStatus;
use super::printer::Printer;
use crate::diagnose::{Diagnose as _, Failure, amount};
use crate::hub::Environment;
use crate::{LIBTORCH, VERSION, job};

/// Show what this machine has of what Heirloom needs, and what to do about the rest.
///
/// The exit status says whether training can work here.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

/// What was found out about one thing.
struct Finding {
    thing: &'static str,
    found: String,
    /// What to do, where something is missing.
    remedy: Option<String>,
    /// Whether training works without it.
    optional: bool,
}

pub(super) fn run(_: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let findings = [program(), engine(), libtorch(), cores(), memory(), gpu(), hub()];
    let mut lines = Vec::new();
    for finding in &findings {
        lines.push(format!("{:<9} {}", finding.thing, finding.found));
        lines.extend(finding.remedy.iter().map(|remedy| format!("{:<9} -> {remedy}", "")));
    }
    printer.data(&lines.join("\n"))?;
    let healthy = findings.iter().all(|finding| finding.remedy.is_none() || finding.optional);
    Ok(if healthy { ExitStatus::Success } else { ExitStatus::Failure })
}

fn fine(thing: &'static str, found: String) -> Finding {
    Finding { thing, found, remedy: None, optional: false }
}

fn missing(thing: &'static str, found: String, remedy: &str) -> Finding {
    Finding { thing, found, remedy: Some(remedy.to_owned()), optional: false }
}

fn program() -> Finding {
    let place = env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    fine("heirloom", format!("{VERSION} ({place})"))
}

/// Where the engine is, and whether it starts: that is what loads libtorch.
fn engine() -> Finding {
    let path = match job::engine() {
        Ok(path) => path,
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            return missing("engine", error.to_string(), &hint);
        }
    };
    let place = path.display();
    match Command::new(&path).arg("--version").output() {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if said.split_whitespace().any(|word| word == VERSION) {
                fine("engine", format!("{said} ({place})"))
            } else {
                let found = format!("{said} ({place}), which is not version {VERSION}");
                missing("engine", found, "build both programs again: `cargo build --release`")
            }
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it says nothing");
            let found = format!("{place} does not start: {said}");
            missing("engine", found, "run `scripts/setup`, then `cargo build --release`")
        }
        Err(error) => {
            let found = format!("{place} does not start: {error}");
            missing("engine", found, "build it again: `cargo build --release`")
        }
    }
}

/// The folder of libtorch that builds use: the engine remembers where it was.
fn libtorch() -> Finding {
    let beside = |program: PathBuf| {
        program.ancestors().map(|folder| folder.join(".libtorch/torch")).find(|path| path.is_dir())
    };
    let named = env::var_os("LIBTORCH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let here = Some(PathBuf::from(".libtorch/torch")).filter(|path| path.is_dir());
    let place = named.or(here).or_else(|| env::current_exe().ok().and_then(beside));
    let Some(place) = place else {
        let remedy = "run `scripts/setup`; only builds need it, so a working engine does not mind";
        let mut finding = missing("libtorch", "no folder found".to_owned(), remedy);
        finding.optional = true;
        return finding;
    };
    let found = place.display();
    match version_of(&place) {
        Some(version) if version.split('+').next() == Some(LIBTORCH) => {
            fine("libtorch", format!("{version} ({found})"))
        }
        Some(version) => missing(
            "libtorch",
            format!("{version} ({found}), which is not {LIBTORCH}"),
            "run `scripts/setup`, which gets the right one",
        ),
        None => missing(
            "libtorch",
            format!("{found} holds no libtorch"),
            "run `scripts/setup`, or unset `LIBTORCH`",
        ),
    }
}

/// The version, from the wheel's `version.py` or the archive's `build-version`.
fn version_of(folder: &Path) -> Option<String> {
    if let Ok(text) = fs_err::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs_err::read_to_string(folder.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim_matches('\'').to_owned())
}

fn cores() -> Finding {
    match available_parallelism() {
        Ok(cores) => fine("cores", cores.to_string()),
        Err(error) => fine("cores", format!("unknown: {error}")),
    }
}

fn memory() -> Finding {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let read = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    match (read("MemTotal:"), read("MemAvailable:")) {
        (Some(total), Some(free)) => {
            fine("memory", format!("{}, of which {} are free", amount(total), amount(free)))
        }
        _ => fine("memory", "unknown: this system has no /proc/meminfo".to_owned()),
    }
}

fn gpu() -> Finding {
    match fs_err::read_to_string("/sys/module/nvidia/version") {
        Ok(version) => fine("GPU", format!("NVIDIA driver {}", version.trim())),
        Err(_) => fine("GPU", "no NVIDIA driver; training runs on the CPU".to_owned()),
    }
}

/// What the environment says of the hub, which is not asked.
fn hub() -> Finding {
    match Environment::read() {
        Ok(Environment { endpoint, token, cache, offline, .. }) => {
            let token = if token.is_some() { "a token" } else { "no token" };
            let offline = offline.map(|name| format!(", offline by `{name}`")).unwrap_or_default();
            fine("hub", format!("{endpoint}, {token}, cache {}{offline}", cache.display()))
        }
        Err(error) => {
            let remedy = error.hint().unwrap_or_default();
            let mut finding = missing("hub", error.to_string(), &remedy);
            finding.optional = true;
            finding
        }
    }
}
