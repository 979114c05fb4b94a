//! Where the hub is, where its cache lies, and who asks: the environment variables of
//! `huggingface_hub`, with the same defaults and the same precedence.

use std::env;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::error::HubError;

const PUBLIC_HUB: &str = "https://huggingface.co";

/// How long a connection may be silent, unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the environment says about the hub.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what the token file holds.
    pub token: Option<Token>,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// The variable that forbids requests.
    pub offline: Option<&'static str>,
    /// How long a connection may be silent.
    pub timeout: Duration,
}

/// Proves to the hub who asks; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(super) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Environment {
    /// Reads the variables of this process.
    pub fn read() -> Result<Self, HubError> {
        Self::from(|name| env::var(name).ok())
    }

    /// Like [`Environment::read`], from any source of variables.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home_folder = set("HOME").map(PathBuf::from);
        let path = |name: &str| set(name).map(|value| expand(&value, home_folder.as_ref()));

        let cache_home =
            path("XDG_CACHE_HOME").or_else(|| home_folder.as_ref().map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| cache_home.map(|cache| cache.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| home.as_ref().map(|home| home.join("hub")));
        let cache = cache.ok_or(HubError::NoHome)?;

        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::Endpoint { endpoint });
        }
        let token_file =
            path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")));
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        let token = if implicit {
            let named = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
            match (named, token_file) {
                (Some(token), _) => clean(&token)?,
                (None, Some(file)) => read_token(file)?,
                (None, None) => None,
            }
        } else {
            None
        };
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find(|name| set(name).is_some_and(|value| is_true(&value)));
        let seconds = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.parse().ok());
        let timeout = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(Self { endpoint, token, cache, offline, timeout: timeout.unwrap_or(DEFAULT_TIMEOUT) })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

/// `~` as a shell has it.
fn expand(value: &str, home: Option<&PathBuf>) -> PathBuf {
    match (value.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        (None, Some(home)) if value == "~" => home.clone(),
        _ => PathBuf::from(value),
    }
}

fn read_token(file: PathBuf) -> Result<Option<Token>, HubError> {
    match fs_err::read_to_string(&file) {
        Ok(text) => clean(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::Io { path: file, source }),
    }
}

/// A token without the line feed that editors leave behind it.
fn clean(text: &str) -> Result<Option<Token>, HubError> {
    let token = text.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(HubError::Token);
    }
    Ok((!token.is_empty()).then(|| Token(token.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, HubError> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Environment::from(value)
    }

    #[test]
    fn the_cache_lies_where_the_python_tools_have_it() {
        for (variables, cache) in [
            (vec![("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (vec![("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (vec![("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (vec![("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
        ] {
            assert_eq!(read(&variables).unwrap().cache, PathBuf::from(cache), "{variables:?}");
        }
        assert!(matches!(read(&[]), Err(HubError::NoHome)));
    }

    #[test]
    fn the_token_comes_from_the_variable_before_the_file() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().to_str().unwrap();
        crate::files::write_atomically(&place.path().join("token"), b"from-file\n").unwrap();
        let token = |more: &[(&str, &str)]| {
            read(&[&[("HF_HOME", home)], more].concat()).unwrap().token.map(|token| token.0)
        };
        assert_eq!(token(&[]).as_deref(), Some("from-file"));
        assert_eq!(token(&[("HF_TOKEN", " named ")]).as_deref(), Some("named"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert!(matches!(read(&[("HOME", "/h"), ("HF_TOKEN", "a\r\nX: y")]), Err(HubError::Token)));
    }

    #[test]
    fn a_token_is_never_shown() {
        let environment = read(&[("HOME", "/h"), ("HF_TOKEN", "secret")]).unwrap();
        assert!(!format!("{environment:?}").contains("secret"));
    }

    #[test]
    fn offline_names_the_variable_that_says_so() {
        let offline = |variables: &[(&str, &str)]| {
            read(&[&[("HOME", "/h")], variables].concat()).unwrap().offline
        };
        assert_eq!(offline(&[]), None);
        assert_eq!(offline(&[("HF_HUB_OFFLINE", "0")]), None);
        assert_eq!(offline(&[("HF_HUB_OFFLINE", "True")]), Some("HF_HUB_OFFLINE"));
        assert_eq!(offline(&[("TRANSFORMERS_OFFLINE", "1")]), Some("TRANSFORMERS_OFFLINE"));
    }

    #[test]
    fn an_endpoint_is_a_web_address() {
        let endpoint = |value| read(&[("HOME", "/h"), ("HF_ENDPOINT", value)]);
        assert_eq!(
            endpoint("https://mirror.example/hf//").unwrap().endpoint,
            "https://mirror.example/hf"
        );
        assert!(matches!(endpoint("file:///etc"), Err(HubError::Endpoint { .. })));
    }
}
