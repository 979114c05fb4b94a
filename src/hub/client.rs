//! Requests to the hub: who asks, what is followed, what is tried again.
//!
//! A token goes to the endpoint's own origin and nowhere else: large files are redirected to
//! other hosts, with addresses that are signed already.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::address::Address;
use super::environment::{Environment, Token};
use super::error::HubError;

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 5;

/// Largest answer that is not a file: 100,000 entries of a listing need some 20 MB.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// How often a request is made that brings nothing new.
pub(super) const MAX_ATTEMPTS: u32 = 5;

/// Time before the second attempt; doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest that the hub may ask us to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Speaks to one endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
}

impl Client {
    /// A client that has not connected yet.
    pub(super) fn new(environment: &Environment) -> Result<Self, HubError> {
        let endpoint = environment.endpoint.clone();
        let token = environment.token.clone();
        if token.is_some() && endpoint.starts_with("http://") && !is_this_machine(&endpoint) {
            return Err(HubError::OpenToken { endpoint });
        }
        let timeout = Some(environment.timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where it is known what may go with them.
            .max_redirects(0)
            .user_agent(concat!("heirloom/", env!("CARGO_PKG_VERSION")))
            // Files are digested as they are stored.
            .accept_encoding("identity")
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, token })
    }

    /// The address of `path` (which begins with a slash) at the endpoint.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }

    /// Waits before another attempt, as long as `error` asks or longer each time.
    pub(super) fn pause(&self, attempt: u32, error: &HubError) {
        let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(6));
        thread::sleep(error.retry_after().unwrap_or(doubled).min(LONGEST_PAUSE));
    }

    /// A JSON answer, and the address of the next page if there is one.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        address: &Address,
        url: &str,
        what: &'static str,
    ) -> Result<(T, Option<String>), HubError> {
        let mut attempt = 1;
        let (bytes, next) = loop {
            match self.answer(address, url) {
                Err(error) if error.is_transient() && attempt < MAX_ATTEMPTS => {
                    self.pause(attempt, &error);
                    attempt += 1;
                }
                answer => break answer?,
            }
        };
        let malformed =
            |source| HubError::Malformed { url: shown(url), what, source: Some(source) };
        Ok((serde_json::from_slice(&bytes).map_err(malformed)?, next))
    }

    fn answer(&self, address: &Address, url: &str) -> Result<(Vec<u8>, Option<String>), HubError> {
        let mut response = self.get(url, 0)?;
        if response.status() != 200 {
            return Err(self.refusal(address, "", url, &response));
        }
        let next = header(&response, "link").and_then(next_page);
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        Ok((body.map_err(|source| HubError::Unreachable { url: shown(url), source })?, next))
    }

    /// One request, for the bytes from `from` on, with its redirects.
    pub(super) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut here = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&here);
            if let Some(Token(token)) = self.token.as_ref().filter(|_| self.is_own(&here)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request
                .call()
                .map_err(|source| HubError::Unreachable { url: shown(&here), source })?;
            match (response.status().as_u16(), header(&response, "location")) {
                (301 | 302 | 303 | 307 | 308, Some(to)) => here = redirected(&here, to)?,
                _ => return Ok(response),
            }
        }
        Err(HubError::Redirects { url: shown(url), limit: MAX_REDIRECTS })
    }

    /// Whether `url` is of the endpoint's own origin.
    pub(super) fn is_own(&self, url: &str) -> bool {
        origin(url).is_some_and(|one| origin(&self.endpoint) == Some(one))
    }

    /// What an answer without the wished-for content means. The hub says more in
    /// `X-Error-Code` than in the status; for what a user may not see, it answers 401.
    pub(super) fn refusal(
        &self,
        address: &Address,
        file: &str,
        url: &str,
        response: &Response<Body>,
    ) -> HubError {
        let (repo, token) = (address.repo.clone(), self.token.is_some());
        let status = response.status().as_u16();
        let bad_token = header(response, "x-error-message")
            .is_some_and(|message| message == "Invalid credentials in Authorization header");
        match (status, header(response, "x-error-code")) {
            (_, Some("GatedRepo")) => {
                HubError::Gated { repo, endpoint: self.endpoint.clone(), token }
            }
            (_, Some("RevisionNotFound")) => {
                HubError::NoRevision { repo, revision: address.revision.clone() }
            }
            (_, Some("EntryNotFound")) => HubError::NoEntry { repo, file: file.to_owned() },
            (401, _) if bad_token => HubError::BadToken,
            (_, Some("RepoNotFound")) | (401, _) => HubError::NoRepository { repo, token },
            _ => {
                let seconds = header(response, "retry-after").and_then(|value| value.parse().ok());
                let retry_after = seconds.map(Duration::from_secs);
                HubError::Status { url: shown(url), status, retry_after }
            }
        }
    }

    /// Every page of a listing, each given to `take`.
    pub(super) fn pages<T: DeserializeOwned>(
        &self,
        address: &Address,
        first: String,
        what: &'static str,
        max_pages: usize,
        mut take: impl FnMut(T) -> Result<(), HubError>,
    ) -> Result<(), HubError> {
        let mut seen = BTreeSet::new();
        let mut page = Some(first);
        while let Some(url) = page {
            if !self.is_own(&url) {
                return Err(HubError::Redirect { url: self.endpoint.clone(), to: shown(&url) });
            }
            let (answer, next) = self.json(address, &url, what)?;
            take(answer)?;
            if !seen.insert(url) || seen.len() > max_pages {
                return Err(HubError::Loop { repo: address.repo.clone() });
            }
            page = next;
        }
        Ok(())
    }
}

/// A header's value, where it is text.
pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// An address without its query, which may be a signature.
pub(super) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// The address of `rel="next"` in a `Link` header.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    rest.split_once('>').map(|(url, _)| url.to_owned())
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default = if scheme == "https" { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(default);
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

fn is_this_machine(endpoint: &str) -> bool {
    let host = origin(endpoint).map(|(_, host, _)| host).unwrap_or_default();
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// Where a redirect leads. From an encrypted address never to one that is not.
fn redirected(from: &str, to: &str) -> Result<String, HubError> {
    let refuse = || HubError::Redirect { url: shown(from), to: shown(to) };
    let uri: Uri = from.parse().map_err(|_| refuse())?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(refuse)?;
    if let Some(rest) = to.strip_prefix("//") {
        return Ok(format!("{scheme}://{rest}"));
    }
    if to.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{to}"));
    }
    let encrypted = to.starts_with("https://");
    if encrypted || (to.starts_with("http://") && scheme == "http") {
        return Ok(to.to_owned());
    }
    Err(refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_encryption() {
        for (from, to, leads) in [
            ("https://hub/a", "/b", Some("https://hub/b")),
            ("https://hub/a", "https://cdn/b?sig=1", Some("https://cdn/b?sig=1")),
            ("https://hub/a", "//cdn/b", Some("https://cdn/b")),
            ("http://hub:1/a", "http://cdn:2/b", Some("http://cdn:2/b")),
            ("https://hub/a", "http://cdn/b", None),
            ("https://hub/a", "file:///etc/passwd", None),
            ("https://hub/a", "b", None),
        ] {
            assert_eq!(redirected(from, to).ok().as_deref(), leads, "{from} {to}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://Hub/a"), origin("https://hub:443/b"));
        for other in
            ["http://hub/a", "https://hub:444/a", "https://hub.evil/a", "https://hub@evil/"]
        {
            assert_ne!(origin("https://hub/a"), origin(other), "{other}");
        }
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        let link = "<https://hub/1>; rel=\"first\", <https://hub/2?cursor=a>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://hub/2?cursor=a"));
        assert_eq!(next_page("<https://hub/1>; rel=\"first\""), None);
    }

    #[test]
    fn a_token_goes_nowhere_unencrypted() {
        let environment = |endpoint: &str| Environment {
            endpoint: endpoint.to_owned(),
            token: Some(Token("secret".to_owned())),
            cache: "/c".into(),
            offline: None,
            timeout: Duration::from_secs(1),
        };
        for (endpoint, fine) in [
            ("https://hub", true),
            ("http://127.0.0.1:8080", true),
            ("http://localhost", true),
            ("http://mirror.example", false),
            ("http://localhost.evil", false),
        ] {
            assert_eq!(Client::new(&environment(endpoint)).is_ok(), fine, "{endpoint}");
        }
    }
}
