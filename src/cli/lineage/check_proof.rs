//! `heirloom lineage check-proof`.

use std::path::{Path, PathBuf};

use crate::cli::exit::ExitStatus;
use crate::cli::printer::Printer;
use crate::diagnose::{Diagnose, Failure};
use crate::files::{hex, read_bounded};
use crate::provenance::counts::Published;
use crate::provenance::statement::RecordTree;
use crate::provenance::tree::{
    self, Commitment, Evidence, Expected, Fault, Hash, Key, MAX_PROOF_BYTES, Proof, TreeError,
};
use crate::provenance::verify;
use crate::recipe::Format;
use crate::run::RunFolder;

/// Check a proof of `heirloom lineage prove`: exit status 0 only if it holds.
///
/// Everything is computed again up to the root, which comes from elsewhere: a release, a run
/// or the digits themselves. That the token belongs to the record is shown by the run's key;
/// for an inclusion, the data can show it instead.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("tree").required(true).args(["root", "manifest"])),
    after_help = "\
Examples:
  heirloom lineage check-proof proof.json --manifest releases/quickstart --key record_key
  heirloom lineage check-proof proof.json --manifest releases/quickstart \\
      --data data/catalogue/train-00000.parquet
  heirloom lineage check-proof proof.json --key record_key \\
      --root 5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
)]
pub(in crate::cli) struct Arguments {
    /// The proof.
    proof: PathBuf,
    /// The root of the record tree, 64 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    root: Option<String>,
    /// What states the root: a release folder, its `provenance.json` or a run folder.
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,
    /// The run's `record_key`, where the proof does not hold it.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A file of rows in which the record has the content that was used.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The format of its rows [default: told from its columns].
    #[arg(long, value_enum, requires = "data")]
    format: Option<Format>,
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("`{}` is no proof at line {line}, column {column}: {what}", path.display())]
    NotAProof { path: PathBuf, line: usize, column: usize, what: String },
    #[error("`{}` does not hold: {fault}", path.display())]
    Fails { path: PathBuf, fault: Fault },
    #[error("`{root}` is not a root of 64 lower-case hexadecimal digits")]
    Root { root: String },
    #[error("`{}` states no record tree", path.display())]
    NoTree { path: PathBuf },
}

impl Diagnose for CheckError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotAProof { .. } => "name a file that `heirloom lineage prove` wrote".to_owned(),
            Self::Fails { fault, .. } => return fault.hint(),
            Self::Root { .. } => "copy the `root` of the manifest's `recordTree`".to_owned(),
            Self::NoTree { .. } => {
                "name a release, its `provenance.json` or a run that has a record tree".to_owned()
            }
        })
    }
}

pub(super) fn run(arguments: &Arguments, printer: Printer) -> Result<ExitStatus, Failure> {
    let proof = read(&arguments.proof)?;
    let stated = stated(arguments)?;
    let key = arguments.key.as_deref().map(Key::read).transpose()?;
    let data = arguments.data.as_deref();
    let contents =
        data.map(|path| contents(path, arguments.format, &proof.record_id)).transpose()?;
    let expected = Expected { key, contents, ..stated };
    let has_data = expected.contents.is_some();
    tree::check(&proof, &expected)
        .map_err(|fault| CheckError::Fails { path: arguments.proof.clone(), fault })?;
    let (is, content) = match &proof.proof {
        Evidence::Inclusion(_) if has_data => ("is in", ", with the content that the data has"),
        Evidence::Inclusion(_) => ("is in", ""),
        Evidence::Exclusion { .. } => ("is not in", ""),
    };
    printer.data(&format!(
        "`{}` {is} the tree {}{content}: the proof holds",
        proof.record_id,
        hex(&proof.tree.root)
    ))?;
    Ok(ExitStatus::Success)
}

fn read(path: &Path) -> Result<Proof, Failure> {
    let bytes = read_bounded(path, MAX_PROOF_BYTES)?;
    Ok(serde_json::from_slice(&bytes).map_err(|error| CheckError::NotAProof {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        what: error.to_string(),
    })?)
}

/// What is known of the tree.
fn stated(arguments: &Arguments) -> Result<Expected, Failure> {
    let nothing = |root| Expected { root, size: None, key_id: None, key: None, contents: None };
    if let Some(root) = &arguments.root {
        let wrong = || CheckError::Root { root: root.clone() };
        return Ok(nothing(tree::hash_from_hex(root).ok_or_else(wrong)?));
    }
    let path = arguments.manifest.clone().unwrap_or_default();
    let run = RunFolder::new(&path);
    if run.record_tree().is_file() {
        let Commitment { size, root, key_id, .. } = Commitment::read(&run.record_tree())?;
        let size = Some(Published::exactly(size));
        return Ok(Expected { size, key_id: Some(key_id), ..nothing(root) });
    }
    let stated = if path.is_dir() {
        verify::verify(&path)?.record_tree
    } else {
        verify::record_tree(&path)?
    };
    let RecordTree { size, root, key_id, .. } =
        stated.ok_or_else(|| CheckError::NoTree { path: path.clone() })?;
    Ok(Expected { size: Some(size), key_id: Some(key_id), ..nothing(root) })
}

/// Digests of what a file of rows holds under an id.
fn contents(path: &Path, format: Option<Format>, record_id: &str) -> Result<Vec<Hash>, TreeError> {
    let mut digests = Vec::new();
    tree::each_digest(path, format, Some(record_id), |_, digest| {
        digests.push(digest);
        Ok(())
    })?;
    Ok(digests)
}
