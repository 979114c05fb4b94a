//! What `hf://org/name@revision` says.

use std::fmt;
use std::path::Path;

use super::error::HubError;

/// How an address begins.
const SCHEME: &str = "hf://";

/// Revision of an address that names none: the branch that the hub itself makes.
const MAIN: &str = "main";

/// Longest part of a repository's name, as the hub has it.
const MAX_NAME_CHARS: usize = 96;

/// Longest revision: what a file system takes as the name of a ref.
const MAX_REVISION_CHARS: usize = 200;

/// First words by which other tools name what is no model.
const NO_MODELS: [&str; 5] = ["datasets", "spaces", "kernels", "buckets", "models"];

/// A model on the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `org/name`, or a bare name as the hub's oldest models have it.
    pub repo: String,
    /// Branch, tag, or commit, whole or short.
    pub revision: String,
}

impl Address {
    /// Reads `hf://org/name` or `hf://org/name@revision`.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let refuse = |what| HubError::Address { text: text.to_owned(), what };
        let rest =
            text.strip_prefix(SCHEME).ok_or_else(|| refuse("does not begin with `hf://`"))?;
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) {
            return Err(refuse("does not name a model as `org/name`"));
        }
        if let [first, _] = parts.as_slice()
            && NO_MODELS.contains(first)
        {
            return Err(refuse("names something else than a model"));
        }
        if !is_revision(revision) {
            return Err(refuse("has a revision that no branch, tag or commit can have"));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// The address that `path` is, if it is one and not a path in the file system.
    pub fn of(path: &Path) -> Option<Result<Self, HubError>> {
        let text = path.to_str().filter(|text| text.starts_with(SCHEME))?;
        Some(Self::parse(text))
    }

    /// Whether the revision is a whole commit, which can never mean anything else.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The same model at a commit.
    pub fn at(&self, commit: &str) -> Self {
        Self { repo: self.repo.clone(), revision: commit.to_owned() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.repo, self.revision)
    }
}

/// Whether `text` is a whole commit: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` is so many lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `--` separates organisation and name in the cache, so that no name may have it.
fn is_name(part: &str) -> bool {
    let edge = |c: char| c == '-' || c == '.';
    (1..=MAX_NAME_CHARS).contains(&part.len())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// A revision is a path below `refs/` of the cache: git forbids more than this lets through,
/// but nothing that would leave that folder.
fn is_revision(revision: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    (1..=MAX_REVISION_CHARS).contains(&revision.len())
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || "._/+-".contains(c))
        && !revision.contains("..")
        && !revision.starts_with('-')
        && revision.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_model_and_a_revision() {
        for (text, repo, revision) in [
            ("hf://org/Name-1.5B", "org/Name-1.5B", "main"),
            ("hf://org/name@v1.0", "org/name", "v1.0"),
            ("hf://gpt2@refs/pr/3", "gpt2", "refs/pr/3"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.repo.as_str(), address.revision.as_str()), (repo, revision));
            assert_eq!(address.to_string(), format!("hf://{repo}@{revision}"));
        }
        assert!(Address::parse(&format!("hf://o/n@{}", "0a".repeat(20))).unwrap().is_pinned());
        assert!(!Address::parse("hf://o/n@0a0a0a0").unwrap().is_pinned());
    }

    #[test]
    fn an_address_that_would_leave_the_cache_is_refused() {
        for text in [
            "hf://",
            "hf:///name",
            "hf://org/",
            "hf://../name",
            "hf://org/..",
            "hf://org/a--b",
            "hf://org/name/file",
            "hf://org/name@",
            "hf://org/name@../../x",
            "hf://org/name@/etc",
            "hf://org/name@a//b",
            "hf://org/name@.hidden",
            "hf://org/name@a b",
            "hf://org/name@a?b",
            "hf://datasets/name",
        ] {
            assert!(matches!(Address::parse(text), Err(HubError::Address { .. })), "{text}");
        }
    }

    #[test]
    fn a_folder_is_no_address() {
        assert!(Address::of(Path::new("data/seedling")).is_none());
        assert!(Address::of(Path::new("hf:/x")).is_none());
        assert!(Address::of(Path::new("hf://org/name")).unwrap().is_ok());
    }
}
