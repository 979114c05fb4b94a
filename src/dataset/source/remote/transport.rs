//! Requests to a server of objects: over `ureq`, whole answers at a time, tried again where
//! that may help.
//!
//! Owns what counts as transient, how long to wait, what a status means, and which servers
//! may be asked at all. `object_store` signs and reads; its own retries are off, since they
//! say nothing and draw their pauses at random.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

use super::address::shown;
use super::failure::Failure;

/// How often a request is made that brings nothing.
const MAX_ATTEMPTS: u32 = 8;

/// Time before the second attempt; doubled before each further one: a minute in all.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause, whatever a server asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// How long an answer may take that is never silent for long: some MB.
const ANSWER: Duration = Duration::from_secs(300);

/// Connections that are kept for the next request.
const CONNECTIONS: usize = 16;

/// Largest answer that is no part of an object: a page of a listing has 1,000 entries.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// As much of a refusal as is read for its reason.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;

/// How long servers are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often a request is made that brings nothing.
    pub attempts: u32,
    /// Time before the second attempt; doubled before each further one.
    pub first_pause: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
    /// How long an answer may take that is never silent for so long.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: MAX_ATTEMPTS, first_pause: FIRST_PAUSE, silence: SILENCE, answer: ANSWER }
    }
}

impl Patience {
    /// The time after so many attempts: doubled each time, and up to a quarter more, by the
    /// address, so that many readers do not come back at once.
    fn pause(&self, attempt: u32, url: &str, asked: Option<Duration>) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let mut hasher = DefaultHasher::new();
        (url, attempt).hash(&mut hasher);
        let more = doubled.mul_f64((hasher.finish() % 1024) as f64 / 4096.0);
        asked.unwrap_or(doubled.saturating_add(more)).min(LONGEST_PAUSE)
    }

    /// A client that waits so long.
    pub(super) fn agent(&self) -> Agent {
        let silence = Some(self.silence);
        Agent::config_builder()
            .http_status_as_error(false)
            // A redirect leads to where nobody said that the data lies.
            .max_redirects(0)
            .user_agent(concat!("heirloom/", env!("CARGO_PKG_VERSION")))
            // Parts of a compressed form would not be parts of the file.
            .accept_encoding("identity")
            .max_idle_connections_per_host(CONNECTIONS)
            .max_idle_connections(CONNECTIONS)
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .timeout_recv_body(Some(self.answer))
            .build()
            .new_agent()
    }
}

/// Hears of every attempt that failed and will be made again.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// Which servers may be asked.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// The host (with its port) of the named address.
    Host(String),
    /// Hosts that end so.
    Below(&'static str),
    /// Any: the environment names who gives credentials.
    Anywhere,
}

impl Reach {
    fn allows(&self, host: &str) -> bool {
        match self {
            Self::Host(only) => only.eq_ignore_ascii_case(host),
            Self::Below(end) => host.to_ascii_lowercase().ends_with(end),
            Self::Anywhere => true,
        }
    }
}

/// Makes the requests of one store.
#[derive(Clone)]
pub(super) struct Transport {
    pub(super) agent: Agent,
    pub(super) patience: Patience,
    pub(super) listener: Listener,
    pub(super) reach: Reach,
    /// Requests that may still be made, where a server could ask for more without end.
    pub(super) left: Option<Arc<AtomicU32>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Blocks: whoever asks has a thread of its own.
        self.send(&request).map_err(|failure| HttpError::new(HttpErrorKind::Unknown, failure))
    }
}

/// An attempt that failed.
enum Trouble {
    For(Failure),
    Now { reason: String, wait: Option<Duration> },
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::For(failure)
    }
}

impl Transport {
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, Failure> {
        let host = request.uri().authority().map_or("", |authority| authority.as_str());
        if !self.reach.allows(host) {
            return Err(Failure::Elsewhere { host: host.to_owned() });
        }
        if let Some(left) = &self.left
            && left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_err()
        {
            let reason = "its listing does not end".to_owned();
            return Err(Failure::Answer { reason });
        }
        let url = request.uri().to_string();
        let mut attempt = 1;
        loop {
            let (reason, wait) = match self.attempt(request) {
                Ok(response) => return Ok(response),
                Err(Trouble::For(failure)) => return Err(failure),
                Err(Trouble::Now { reason, wait }) => (reason, wait),
            };
            if attempt >= self.patience.attempts {
                return Err(Failure::GaveUp { reason, attempts: attempt });
            }
            let pause = self.patience.pause(attempt, &url, wait);
            (self.listener)(&format!(
                "{}: {reason}; trying again in {:.1} s ({attempt} of {})",
                shown(&url),
                pause.as_secs_f64(),
                self.patience.attempts - 1
            ));
            thread::sleep(pause);
            attempt += 1;
        }
    }

    fn attempt(&self, request: &HttpRequest) -> Result<HttpResponse, Trouble> {
        let (mut parts, body) = (request.clone().into_parts().0, request.body());
        parts.uri = without_plus(parts.uri);
        let response = match body.as_bytes().filter(|bytes| !bytes.is_empty()) {
            None => self.agent.run(ureq::http::Request::from_parts(parts, ())),
            Some(bytes) => self.agent.run(ureq::http::Request::from_parts(parts, bytes.to_vec())),
        };
        let response = response.map_err(trouble)?;
        let asked = text(request.headers(), header::RANGE).and_then(length_of);
        let verdict = judge(&response, asked);
        let (parts, mut body) = response.into_parts();
        verdict.map_err(|trouble| match trouble {
            Trouble::For(Failure::Refused { status, .. }) => {
                Failure::Refused { status, code: code_of(&mut body) }.into()
            }
            other => other,
        })?;
        // One more, since reading up to the limit counts as reading beyond it.
        let limit = asked.unwrap_or(MAX_ANSWER_BYTES).saturating_add(1);
        let room = asked.and_then(|asked| usize::try_from(asked).ok()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(room);
        let mut reader = body.with_config().limit(limit).reader();
        reader.read_to_end(&mut bytes).map_err(|error| trouble(error.into()))?;
        match asked.map(|asked| (bytes.len() as u64).cmp(&asked)) {
            Some(Less) => {
                let reason = "the answer was cut short".to_owned();
                return Err(Trouble::Now { reason, wait: None });
            }
            Some(Greater) => return Err(too_much()),
            Some(Equal) | None => {}
        }
        Ok(HttpResponse::from_parts(parts, Bytes::from(bytes).into()))
    }
}

/// An address whose query writes spaces as the signature has them: a server that reads a query
/// to the letter finds that a `+` was not signed. A plus sign itself is never written so.
fn without_plus(uri: Uri) -> Uri {
    let spaced = uri.query().filter(|query| query.contains('+')).and_then(|query| {
        let mut parts = uri.clone().into_parts();
        let written = format!("{}?{}", uri.path(), query.replace('+', "%20"));
        parts.path_and_query = Some(written.parse().ok()?);
        Uri::from_parts(parts).ok()
    });
    spaced.unwrap_or(uri)
}

/// What the status of an answer means; `asked` is the number of bytes that a part must have.
fn judge(response: &Response<Body>, asked: Option<u64>) -> Result<(), Trouble> {
    let status = response.status().as_u16();
    let headers = response.headers();
    Err(match status {
        200 if asked.is_some() => Failure::NoRanges.into(),
        200..=299 => return Ok(()),
        304 | 412 | 416 => Failure::Changed.into(),
        300..=399 => match headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok())
        {
            Some(region) => Failure::Region { region: region.to_owned() }.into(),
            None => {
                let to = text(headers, header::LOCATION).map(|to| shown(to).to_owned());
                Failure::Redirect { to }.into()
            }
        },
        404 | 410 => Failure::Absent.into(),
        408 | 425 | 429 | 500 | 502..=504 | 507..=599 => {
            let wait = text(headers, header::RETRY_AFTER).and_then(|value| value.parse().ok());
            let reason = format!("the server answers with status {status}");
            Trouble::Now { reason, wait: wait.map(Duration::from_secs) }
        }
        400 | 401 | 403 => Trouble::For(Failure::Refused { status, code: None }),
        _ => Failure::Status { status }.into(),
    })
}

/// What a store calls the reason of a refusal. Only the code: the rest may repeat what was
/// sent.
fn code_of(body: &mut Body) -> Option<String> {
    let text = body.with_config().limit(MAX_REFUSAL_BYTES).read_to_string().ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_code = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

fn text(headers: &header::HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Bytes of `bytes=FIRST-LAST`.
fn length_of(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

fn too_much() -> Trouble {
    Failure::Answer { reason: "it sends more than was asked for".to_owned() }.into()
}

/// What a request that got no answer means.
fn trouble(error: ureq::Error) -> Trouble {
    use ureq::Error as E;
    let now = |reason: String| Trouble::Now { reason, wait: None };
    match error {
        E::Timeout(_) => now("the server is silent".to_owned()),
        E::Io(error) => now(format!("the connection broke ({error})")),
        E::ConnectionFailed => now("the server takes no connection".to_owned()),
        // An answer that ends in its head.
        E::Protocol(error) => now(format!("the answer is no HTTP ({error})")),
        E::BodyExceedsLimit(_) => too_much(),
        E::HostNotFound => {
            Failure::Unreachable { reason: "nobody knows the host".to_owned() }.into()
        }
        // Without the address, which may be signed.
        E::BadUri(_) => Failure::Address { what: "is no web address" }.into(),
        other => Failure::Unreachable { reason: other.to_string() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_the_same_again() {
        let patience = Patience::default();
        let pauses = |url: &str| -> Vec<Duration> {
            (1..12).map(|attempt| patience.pause(attempt, url, None)).collect()
        };
        let one = pauses("http://host/a");
        assert_eq!(one, pauses("http://host/a"));
        assert_ne!(one, pauses("http://host/b"));
        for (attempt, pause) in one.iter().enumerate() {
            let doubled = FIRST_PAUSE * (1 << attempt);
            assert!(*pause >= doubled.min(LONGEST_PAUSE) && *pause <= LONGEST_PAUSE);
            assert!(*pause <= doubled * 5 / 4);
        }
        let asked = |seconds| patience.pause(1, "", Some(Duration::from_secs(seconds)));
        assert_eq!((asked(3), asked(9999)), (Duration::from_secs(3), LONGEST_PAUSE));
    }

    #[test]
    fn only_named_hosts_are_in_reach() {
        for (reach, host, allowed) in [
            (Reach::Host("Store:9000".to_owned()), "store:9000", true),
            (Reach::Host("store:9000".to_owned()), "store:9001", false),
            (Reach::Host("store".to_owned()), "169.254.169.254", false),
            (Reach::Below(".amazonaws.com"), "s3.eu-west-1.amazonaws.com", true),
            (Reach::Below(".amazonaws.com"), "amazonaws.com.evil", false),
            (Reach::Anywhere, "169.254.169.254", true),
        ] {
            assert_eq!(reach.allows(host), allowed, "{reach:?} {host}");
        }
    }

    #[test]
    fn a_space_in_a_query_is_sent_as_it_was_signed() {
        for (uri, sent) in [
            ("http://h:1/b?prefix=a+b%2F&x=%2B", "http://h:1/b?prefix=a%20b%2F&x=%2B"),
            ("http://h/a+b", "http://h/a+b"),
        ] {
            assert_eq!(without_plus(uri.parse().unwrap()).to_string(), sent);
        }
    }

    #[test]
    fn a_range_has_a_length() {
        assert_eq!(length_of("bytes=5-5"), Some(1));
        for range in
            ["bytes=5-4", "bytes=-5", "bytes=5-", "rows=1-2", "bytes=0-18446744073709551615"]
        {
            assert_eq!(length_of(range), None, "{range}");
        }
    }
}
