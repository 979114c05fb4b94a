//! What the words SOURCE and SPLIT of `heirloom data` stand for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use crate::cli::printer::Printer;
use crate::cli::target;
use crate::dataset::consent::purposes;
use crate::dataset::gate::Gate;
use crate::dataset::look::Look;
use crate::dataset::spec::Spec;
use crate::dataset::stats::split_name;
use crate::dataset::vocabulary::Vocabulary;
use crate::diagnose::{Blame, Diagnose, Failure};
use crate::hub::{self, Address, Need};
use crate::recipe::lock::Split;
use crate::recipe::problem::listed;
use crate::recipe::{self, Format, Recipe, plan};

/// Rows without the words that are needed to look at them.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    #[error("nothing says for what purpose `{}` may be read", path.display())]
    NoPurpose { path: PathBuf },
    #[error("nothing says by which model `{}` is read", path.display())]
    NoModel { path: PathBuf },
    #[error("`--{option}` is for a file of rows; `{}` is a recipe", path.display())]
    OfRecipe { option: &'static str, key: &'static str, path: PathBuf },
    #[error("`--set` changes a recipe; `{}` is a file of rows", path.display())]
    OfRows { path: PathBuf },
    #[error("there are no rows of the split `{split}`")]
    NoSplit { split: String, known: Vec<String> },
    #[error("the words for a file of rows make no recipe")]
    Words(#[source] serde_json::Error),
}

impl Diagnose for LookError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoPurpose { .. } => {
                "add `--purpose` with a DPV term, such as `--purpose dpv:ServiceProvision`, or \
                 give a recipe"
                    .to_owned()
            }
            Self::NoModel { .. } => {
                "add `--model` with a model folder, such as `--model data/seedling`, or give a \
                 recipe"
                    .to_owned()
            }
            Self::OfRecipe { key, .. } => format!("leave it out, or change `{key}` of the recipe"),
            Self::OfRows { .. } => {
                "leave it out, or write a recipe that names the file and give that".to_owned()
            }
            Self::NoSplit { known, .. } => {
                format!("there is {}", listed(known.iter().map(String::as_str)))
            }
            Self::Words(_) => return None,
        })
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Words(_) => Blame::Defect,
            _ => Blame::User,
        }
    }
}

/// As `data.purpose` of a recipe: a term that DPV does not have would leave every row out.
fn purpose(text: &str) -> Result<String, String> {
    if purposes::is_known(text) {
        return Ok(text.to_owned());
    }
    let nearest = purposes::nearest(text).unwrap_or("dpv:ServiceProvision");
    Err(format!("`{text}` is no purpose of DPV 2.3; did you mean `{nearest}`?"))
}

/// Rows of a file that no recipe names.
#[derive(Debug, clap::Args)]
pub(super) struct Loose {
    /// Read with the tokenizer and the chat template of this model instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// For a file of rows: a DPV term that rows must allow; may be given again
    #[arg(long, value_name = "TERM", value_parser = purpose)]
    purpose: Vec<String>,
    /// For a file of rows: the shape of a row [default: chat]
    #[arg(long = "as", value_enum, value_name = "FORMAT")]
    shape: Option<Format>,
    /// For a file of rows: a ledger of withdrawals; may be given again
    #[arg(long = "ledger", value_name = "FILE")]
    ledgers: Vec<PathBuf>,
}

/// A window that nothing exceeds: a file of rows alone says nothing of windows.
const NO_WINDOW: usize = u32::MAX as usize;

/// A recipe is YAML; anything else is a file of rows, or a glob or an address of some.
pub(super) fn is_recipe(source: &Path) -> bool {
    let text = source.to_string_lossy();
    let rows = text.ends_with(".parquet") || text.contains('*') || text.contains("://");
    !rows
}

/// What a recipe sees of its rows.
pub(super) fn of_recipe(
    path: &Path,
    sets: &[String],
    model: Option<&Path>,
    printer: Printer,
) -> Result<(Look, Recipe), Failure> {
    let mut literal = recipe::read(path, sets)?;
    if let Some(model) = model {
        literal.recipe.base.model = model.to_owned();
    }
    let recipe = target::pin(literal, Need::Description, printer)?.recipe;
    Ok((open(&recipe)?, recipe))
}

/// What a file of rows shows to a model; the gate is asked all the same.
fn of_rows(path: &Path, loose: &Loose, printer: Printer) -> Result<Look, Failure> {
    let path = path.to_owned();
    if loose.purpose.is_empty() {
        return Err(LookError::NoPurpose { path }.into());
    }
    let Some(model) = &loose.model else { return Err(LookError::NoModel { path }.into()) };
    let model = match Address::of(model) {
        Some(address) => hub::fetch(&address?, Need::Description, printer.into())?.folder,
        None => model.clone(),
    };
    let rows =
        json!({ "path": path.to_string_lossy(), "format": loose.shape.unwrap_or(Format::Chat) });
    let recipe = json!({
        "heirloom": recipe::FORMAT,
        "name": "rows",
        "base": { "model": model },
        "adapter": "full",
        "data": { "purpose": loose.purpose, "consent": { "ledgers": loose.ledgers },
                  "train": [rows], "sequence_length": NO_WINDOW },
        "train": { "epochs": 1, "tokens_per_step": NO_WINDOW, "seed": 0,
                   "optimizer": { "adamw": { "lr": 0.0 } } },
    });
    open(&serde_json::from_value(recipe).map_err(LookError::Words)?)
}

/// What SOURCE shows.
pub(super) fn of_source(
    source: &Path,
    sets: &[String],
    loose: &Loose,
    printer: Printer,
) -> Result<Look, Failure> {
    if !is_recipe(source) {
        if !sets.is_empty() {
            return Err(LookError::OfRows { path: source.to_owned() }.into());
        }
        return of_rows(source, loose, printer);
    }
    for (is_given, option, key) in [
        (!loose.purpose.is_empty(), "purpose", "data.purpose"),
        (loose.shape.is_some(), "as", "format"),
        (!loose.ledgers.is_empty(), "ledger", "data.consent.ledgers"),
    ] {
        if is_given {
            return Err(LookError::OfRecipe { option, key, path: source.to_owned() }.into());
        }
    }
    Ok(of_recipe(source, sets, loose.model.as_deref(), printer)?.0)
}

fn open(recipe: &Recipe) -> Result<Look, Failure> {
    let now = Timestamp::now();
    let folder = hub::local(&recipe.base.model)?;
    let vocabulary = Vocabulary::open(&folder, &recipe.base)?;
    let gate = Gate::open(plan::ask(&recipe.data, now), &recipe.data.consent.ledgers)?;
    let spec = Spec::new(recipe, Arc::new(gate))?;
    Ok(Look::new(spec, vocabulary.encoder.with_clock(now)))
}

/// The split that is called so.
pub(super) fn split(look: &Look, name: &str) -> Result<Split, LookError> {
    // A suite may be called by its name alone.
    let named = |split: &Split| match split {
        Split::Test(suite) => suite == name || split_name(split) == name,
        _ => split_name(split) == name,
    };
    let splits = look.splits();
    splits.iter().find(|split| named(split)).cloned().ok_or_else(|| {
        let known = splits.iter().map(split_name).collect();
        LookError::NoSplit { split: name.to_owned(), known }
    })
}
