//! Requests to trackers' servers.
//!
//! Owns how long they may take, and what of an answer is said. Does not own when one is tried
//! again: that is [`super::service`]'s. Redirects are not followed, so that a key never goes to
//! another host than the one that was named.

use std::io;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request};

/// All but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// What of a refusal is repeated, in characters.
const MAX_SHOWN: usize = 200;

/// A request that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody answered.
    #[error("`{url}` cannot be reached")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The answer is a refusal.
    #[error("`{url}` answered with {status}: {message}")]
    Refused {
        /// Where.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// The beginning of what it said.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("`{url}` gave an answer without `{what}`")]
    Malformed {
        /// Where.
        url: String,
        /// What should be in it.
        what: &'static str,
    },
}

impl RequestError {
    /// Whether the same request may do better later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Malformed { .. } => false,
        }
    }

    /// The error, and what is below it, on one line.
    pub fn whole(&self) -> String {
        match self {
            Self::Unreachable { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// Speaks to one server.
pub(super) struct Client {
    agent: Agent,
    base: String,
    authorization: Option<String>,
}

impl Client {
    pub(super) fn new(base: &str, authorization: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("heirloom/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        Self { agent, base: base.trim_end_matches('/').to_owned(), authorization }
    }

    /// Sends JSON to `path`, which begins with a slash, and reads JSON.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, RequestError> {
        self.call(Method::POST, path, body.to_string())
    }

    /// Reads JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value, RequestError> {
        self.call(Method::GET, path, String::new())
    }

    fn call(&self, method: Method, path: &str, body: String) -> Result<Value, RequestError> {
        let url = format!("{}{path}", self.base);
        let unreachable =
            |source| RequestError::Unreachable { url: url.clone(), source: Box::new(source) };
        let mut request = Request::builder().method(method).uri(&url);
        request = request.header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(body).map_err(|error| unreachable(error.into()))?;
        let mut response = self.agent.run(request).map_err(unreachable)?;
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let answer = answer.map_err(unreachable)?;
        if !(200..300).contains(&status) {
            let said = String::from_utf8_lossy(&answer);
            let message = said.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
            return Err(RequestError::Refused { url, status, message });
        }
        // Some answers are empty.
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// An answer that lacks something.
    pub(super) fn malformed(&self, path: &str, what: &'static str) -> RequestError {
        RequestError::Malformed { url: format!("{}{path}", self.base), what }
    }
}

impl From<RequestError> for io::Error {
    fn from(error: RequestError) -> Self {
        Self::other(error)
    }
}

/// Text as a part of an address.
pub(super) fn url_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_an_address() {
        assert_eq!(url_encoded("a b/ö"), "a%20b%2F%C3%B6");
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
        let refused =
            |status| RequestError::Refused { url: String::new(), status, message: String::new() };
        assert!(refused(503).is_transient() && refused(429).is_transient());
        assert!(!refused(401).is_transient() && !refused(404).is_transient());
    }
}
