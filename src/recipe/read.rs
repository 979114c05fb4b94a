//! A recipe file to a [`Recipe`], with every problem of the file at once.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::lock::Pin;
use super::problem::{Fault, Place, Problem, RecipeError};
use super::yaml::Node;
use super::{Recipe, decode, overrides, rules, yaml};
use crate::files::sha256_of_bytes;
use crate::hub::{Address, HubError};

/// Largest recipe that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// A recipe, and where each of its values stands.
#[derive(Debug)]
pub struct Literal {
    /// The recipe with defaults and overrides.
    pub recipe: Recipe,
    /// SHA-256 of the file as the user wrote it, without overrides.
    pub sha256: String,
    /// The base on the hub, once its revision is pinned.
    pub pinned: Option<Pinned>,
    path: PathBuf,
    tree: Node,
}

/// What the hub said about the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// What the lock keeps of it.
    pub pin: Pin,
    /// Bytes of weights that the cache lacks: then only what needs no weights can be known.
    pub lacking: u64,
}

impl Literal {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the value of `key` stands (`data.train[0].path`); for a key that is left to its
    /// default, where the nearest key above it stands.
    pub fn locate(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some((_, place)) = self.tree.find(key) {
                return place.clone();
            }
            key = key.rsplit_once(['.', '[']).map_or("", |(above, _)| above);
        }
    }

    /// The base on the hub, if it lies there.
    pub fn hub_base(&self) -> Option<Result<Address, HubError>> {
        Address::of(&self.recipe.base.model)
    }

    /// Makes the base the commit that its revision is.
    pub fn pin(&mut self, asked: &Address, commit: &str, lacking: u64) {
        let pin = Pin { model: asked.to_string(), commit: commit.to_owned() };
        self.recipe.base.model = asked.at(commit).to_string().into();
        self.pinned = Some(Pinned { pin, lacking });
    }

    /// Everything of what it names that only the hub could tell is this one problem.
    pub fn hub_problem(&self, cause: HubError) -> RecipeError {
        let problem = self.problem("base.model", Fault::Input { cause: cause.into() });
        RecipeError::Problems { path: self.path.clone(), problems: vec![problem] }
    }

    /// A problem with the value of `key`.
    pub fn problem(&self, key: &str, fault: Fault) -> Problem {
        Problem { file: self.path.clone(), place: self.locate(key), fault }
    }
}

/// Reads the recipe at `path`, changed by `sets` (`key=value` each, in order), with the settings
/// of an adapter that it goes on from.
pub fn read(path: &Path, sets: &[String]) -> Result<Literal, RecipeError> {
    let mut literal = parse(path, &read_text(path)?, sets)?;
    if let Err(error) = literal.recipe.adapter.resolve() {
        let problem = literal.problem("adapter.from", Fault::Input { cause: error.into() });
        return Err(RecipeError::Problems { path: path.to_owned(), problems: vec![problem] });
    }
    Ok(literal)
}

/// Like [`read`], from text that came from `path`, without a look at what it names.
pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<Literal, RecipeError> {
    let fail = |mut faults: Vec<(Place, Fault)>| {
        faults.sort_by(|one, other| one.0.cmp(&other.0));
        let problems = faults.into_iter();
        let problems = problems
            .map(|(place, fault)| Problem { file: path.to_owned(), place, fault })
            .collect();
        Err(RecipeError::Problems { path: path.to_owned(), problems })
    };
    let parsed = yaml::parse(text);
    let mut faults = parsed.faults;
    let Some(mut tree) = parsed.root else {
        if faults.is_empty() {
            faults.push((Place::File { line: 1, column: 1 }, empty()));
        }
        return fail(faults);
    };
    for words in sets {
        if let Err(more) = overrides::apply(&mut tree, words) {
            faults.extend(more);
        }
    }
    let mut healed = tree.clone();
    let decoded = decode::decode::<Recipe>(&mut healed);
    faults.extend(decoded.faults);
    let Some(recipe) = decoded.value else { return fail(faults) };
    let literal = Literal {
        recipe,
        sha256: sha256_of_bytes(text.as_bytes()),
        pinned: None,
        path: path.to_owned(),
        tree,
    };
    for (key, fault) in rules::check(&literal.recipe, &decoded.holes) {
        faults.push((literal.locate(&key), fault));
    }
    if faults.is_empty() { Ok(literal) } else { fail(faults) }
}

fn empty() -> Fault {
    Fault::Syntax {
        what: "there is nothing in this file".to_owned(),
        hint: "write a recipe, beginning with `heirloom: 1`".to_owned(),
    }
}

fn read_text(path: &Path) -> Result<String, RecipeError> {
    let failed = |source: io::Error| RecipeError::Read { path: path.to_owned(), source };
    let file = fs_err::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed: a pipe or a device has no size to ask for.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(RecipeError::TooLarge { path: path.to_owned(), limit: MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|error| RecipeError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
