//! A small server of objects, as a web server and as a store that speaks S3, with faults on
//! demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// The only key that the store accepts.
pub(crate) const KEY: &str = "AKIDTEST";

/// Keys on a page of a listing: few, so that listings have several.
const PAGE: usize = 2;

/// What goes wrong with an answer to a request for a part of an object.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing comes for so long.
    Silence(Duration),
    /// So many bytes of the body come, then nothing for so long.
    SilenceAfter(usize, Duration),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// The connection ends inside the head.
    CutHead,
    /// Another protocol.
    Garbage,
    /// A status, with headers.
    Status(u16, &'static str),
    /// A refusal as S3 has it.
    Refusal(u16, &'static str),
    /// The part is said to begin one byte later.
    WrongRange,
    /// The range is ignored.
    WholeFile,
    /// The part lacks its last bytes, and the head knows it.
    Short,
    /// A body without an end.
    Endless,
}

/// An object.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// As sent, with its query.
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    faults: VecDeque<Fault>,
    always: Option<Fault>,
    /// Goes wrong at every so manieth request for a part.
    often: Option<(usize, Fault)>,
    /// From so many requests for a part on, nothing but this.
    doom: Option<(usize, Fault)>,
    parts: usize,
    /// The object's next version, put in place after so many answers with parts.
    change: Option<(usize, String, Stored)>,
    deaf_to_if_match: bool,
    endless_listing: bool,
    requests: Vec<Request>,
}

/// A server on this machine, until the test ends.
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    pub(crate) endpoint: String,
}

impl Server {
    pub(crate) fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(&state, stream.unwrap()));
            }
        });
        Self { state, endpoint }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stores an object, by its decoded path below the endpoint: `/bucket/key`.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.put_as(path, bytes, Some("\"one\""), Some("Sat, 21 Nov 2026 10:00:00 GMT"));
    }

    pub(crate) fn put_as(
        &self,
        path: &str,
        bytes: &[u8],
        etag: Option<&str>,
        modified: Option<&'static str>,
    ) {
        let stored = Stored { bytes: bytes.to_vec(), etag: etag.map(str::to_owned), modified };
        self.state().objects.insert(path.to_owned(), stored);
    }

    /// Lets the next request for a part go wrong; may be called again.
    pub(crate) fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Lets every request go wrong from now on.
    pub(crate) fn always(&self, fault: Fault) {
        self.state().always = Some(fault);
    }

    /// Lets one request for a part in so many go wrong from now on.
    pub(crate) fn often(&self, one_in: usize, fault: Fault) {
        self.state().often = Some((one_in, fault));
    }

    /// Answers so many more requests for parts, and none after them.
    pub(crate) fn dies_after(&self, parts: usize, fault: Fault) {
        let mut state = self.state();
        state.doom = Some((state.parts + parts, fault));
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn recover(&self) {
        let mut state = self.state();
        state.faults.clear();
        (state.always, state.often, state.doom) = (None, None, None);
    }

    /// Replaces an object after so many parts of it.
    pub(crate) fn change_after(&self, parts: usize, path: &str, stored: Stored) {
        self.state().change = Some((parts, path.to_owned(), stored));
    }

    pub(crate) fn ignore_if_match(&self) {
        self.state().deaf_to_if_match = true;
    }

    pub(crate) fn list_without_end(&self) {
        self.state().endless_listing = true;
    }

    /// What was asked since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, headers: Vec<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers, body: body.into() }
    }

    fn refusal(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>secret</Message></Error>"
        );
        Self::new(status, Vec::new(), body)
    }
}

fn serve(state: &Mutex<State>, mut stream: TcpStream) {
    let Some(request) = read(&stream) else { return };
    let (fault, mut answer) = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let part = request.headers.contains_key("range");
        let mut fault = if part { state.faults.pop_front() } else { None };
        if part {
            state.parts += 1;
            let parts = state.parts;
            let due = |(one_in, _): &&(usize, Fault)| parts.is_multiple_of(*one_in);
            fault =
                fault.or_else(|| state.often.as_ref().filter(due).map(|(_, fault)| fault.clone()));
        }
        // The dead answer nothing at all.
        let dead = state.doom.as_ref().filter(|(last, _)| state.parts > *last);
        let fault = dead.map(|(_, fault)| fault.clone()).or(fault).or_else(|| state.always.clone());
        let whole = matches!(fault, Some(Fault::WholeFile));
        (fault, answer(&mut state, &request, whole))
    };
    let mut sent = answer.body.len();
    match &fault {
        None | Some(Fault::WholeFile | Fault::SilenceAfter(..)) => {}
        Some(Fault::Silence(time)) => thread::sleep(*time),
        Some(Fault::CutAfter(bytes)) => sent = sent.min(*bytes),
        Some(Fault::CutHead) => {
            let _ = stream.write_all(b"HTTP/1.1 206 Part\r\nContent-Le");
            return;
        }
        Some(Fault::Garbage) => {
            let _ = stream.write_all(b"220 ready\r\n\r\n");
            return;
        }
        Some(Fault::Status(status, headers)) => {
            let headers = headers.split('\n').filter(|line| !line.is_empty()).map(str::to_owned);
            answer = Answer::new(*status, headers.collect(), []);
            sent = 0;
        }
        Some(Fault::Refusal(status, code)) => {
            answer = Answer::refusal(*status, code);
            sent = answer.body.len();
        }
        Some(Fault::WrongRange) => {
            for header in &mut answer.headers {
                if let Some((_, rest)) = header.split_once("Content-Range: bytes ") {
                    let (first, rest) = rest.split_once('-').unwrap();
                    let first = first.parse::<u64>().unwrap() + 1;
                    *header = format!("Content-Range: bytes {first}-{rest}");
                }
            }
        }
        Some(Fault::Short) => {
            answer.body.truncate(sent / 2);
            sent /= 2;
        }
        Some(Fault::Endless) => {
            let head = head(&answer).replace("Content-Length", "X-Length");
            let head = head.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let chunk = [&b"10000\r\n"[..], &[0; 0x10000], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
            return;
        }
    }
    let _ = stream.write_all(head(&answer).as_bytes());
    if request.method == "HEAD" {
        return;
    }
    if let Some(Fault::SilenceAfter(bytes, time)) = fault {
        let _ = stream.write_all(&answer.body[..bytes.min(sent)]);
        thread::sleep(time);
        return;
    }
    let _ = stream.write_all(&answer.body[..sent]);
}

fn head(answer: &Answer) -> String {
    let mut head = format!(
        "HTTP/1.1 {} Answer\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for header in &answer.headers {
        head = format!("{head}{header}\r\n");
    }
    format!("{head}\r\n")
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

fn answer(state: &mut State, request: &Request, whole: bool) -> Answer {
    if let Some(signed) = request.headers.get("authorization")
        && !signed.contains(&format!("Credential={KEY}/"))
    {
        return Answer::refusal(403, "InvalidAccessKeyId");
    }
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let path = decoded(path);
    if query.contains("list-type=2") {
        return listing(state, &path, query);
    }
    let Some(stored) = state.objects.get(&path).cloned() else {
        return Answer::refusal(404, "NoSuchKey");
    };
    let named = request.headers.get("if-match");
    if named.is_some() && named != stored.etag.as_ref() && !state.deaf_to_if_match {
        return Answer::refusal(412, "PreconditionFailed");
    }
    let mut headers = vec!["Accept-Ranges: bytes".to_owned()];
    headers.extend(stored.etag.map(|etag| format!("ETag: {etag}")));
    headers.extend(stored.modified.map(|modified| format!("Last-Modified: {modified}")));
    let range = request.headers.get("range").filter(|_| !whole).map(|range| part(range));
    let Some(range) = range else { return Answer::new(200, headers, stored.bytes) };
    let size = stored.bytes.len();
    let range = range.start.min(size)..range.end.min(size);
    headers.push(format!("Content-Range: bytes {}-{}/{size}", range.start, range.end - 1));
    if let Some((parts, at, next)) = &mut state.change
        && *at == path
    {
        *parts -= 1;
        if *parts == 0 {
            let (path, next) = (path, next.clone());
            state.objects.insert(path, next);
            state.change = None;
        }
    }
    Answer::new(206, headers, &stored.bytes[range])
}

fn part(range: &str) -> Range<usize> {
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
}

fn listing(state: &State, bucket: &str, query: &str) -> Answer {
    let value = |name: &str| {
        let found = query.split('&').find_map(|part| part.strip_prefix(&format!("{name}=")));
        found.map(decoded)
    };
    let prefix =
        format!("{}/{}", bucket.trim_end_matches('/'), value("prefix").unwrap_or_default());
    let skip: usize = value("continuation-token").map_or(0, |token| token.parse().unwrap());
    let keys: Vec<&String> = state.objects.keys().filter(|key| key.starts_with(&prefix)).collect();
    let mut body = String::from("<ListBucketResult>");
    for key in keys.iter().skip(skip).take(PAGE) {
        let name = &key[bucket.trim_end_matches('/').len() + 1..];
        let name = name.replace('&', "&amp;");
        body += &format!(
            "<Contents><Key>{name}</Key><LastModified>2026-11-21T10:00:00.000Z</LastModified>\
             <ETag>\"one\"</ETag><Size>1</Size></Contents>"
        );
    }
    if skip + PAGE < keys.len() || state.endless_listing {
        body += &format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>",
            skip + PAGE
        );
    }
    Answer::new(200, Vec::new(), body + "</ListBucketResult>")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                let digits = std::str::from_utf8(&digits).unwrap().to_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap()
}
