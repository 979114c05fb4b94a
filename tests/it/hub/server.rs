//! A small hub: one model, several commits, large files on another host, and faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The model that the server has.
pub(crate) const REPO: &str = "org/seed";

/// Entries on a page of a listing: few, so that every listing has several.
const PAGE: usize = 4;

/// What shall go wrong with the next request for a path that contains a word.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    DropAfter(usize),
    /// Other bytes of the same number.
    WrongBytes,
    /// The range that was asked for is ignored.
    WholeFile,
    /// A status with headers.
    Status(u16, &'static str),
    /// Nothing comes for so long.
    Silence(Duration),
    /// Another body, as JSON.
    Says(String),
    /// A page of a listing, empty, whose next page is this one.
    NextPage(String),
    /// A redirect.
    Redirect(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) host: Host,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Hub,
    /// Where large files are.
    Cdn,
}

#[derive(Default)]
struct State {
    commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    revisions: BTreeMap<String, String>,
    faults: Vec<(String, Fault)>,
    /// Bytes that every file of weights is said to have.
    claim: Option<u64>,
    requests: Vec<Request>,
}

/// A hub on this machine, until the test ends.
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    pub(crate) endpoint: String,
}

impl Server {
    pub(crate) fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let cdn = listen(&state, Host::Cdn, String::new());
        let endpoint = listen(&state, Host::Hub, cdn);
        Self { state, endpoint }
    }

    /// Adds a commit and lets `revision` point to it.
    pub(crate) fn commit(&self, revision: &str, files: BTreeMap<String, Vec<u8>>) -> String {
        let mut hasher = Sha1::new();
        for (name, bytes) in &files {
            hasher.update(name);
            hasher.update(bytes);
        }
        let commit = heirloom::files::hex(&hasher.finalize());
        let mut state = self.state.lock().unwrap();
        state.commits.insert(commit.clone(), files);
        state.revisions.insert(revision.to_owned(), commit.clone());
        state.revisions.insert(commit.clone(), commit.clone());
        commit
    }

    /// Lets the next request whose path contains `word` go wrong; may be called again.
    pub(crate) fn fault(&self, word: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((word.to_owned(), fault));
    }

    /// Says of every file of weights that it has so many bytes.
    pub(crate) fn claim(&self, bytes: u64) {
        self.state.lock().unwrap().claim = Some(bytes);
    }

    /// What was asked since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn listen(state: &Arc<Mutex<State>>, host: Host, cdn: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (state, own) = (Arc::clone(state), endpoint.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (state, own, cdn) = (Arc::clone(&state), own.clone(), cdn.clone());
            thread::spawn(move || serve(&state, host, &own, &cdn, stream.unwrap()));
        }
    });
    endpoint
}

fn serve(state: &Mutex<State>, host: Host, own: &str, cdn: &str, mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            None => break,
        }
    }
    let request = Request { host, path, headers };
    let (fault, mut answer) = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let index = state.faults.iter().position(|(word, _)| request.path.contains(word));
        let fault = index.map(|index| state.faults.remove(index).1);
        (fault, answer(&state, &request, own, cdn))
    };
    let start = range(&request).filter(|start| {
        !matches!(fault, Some(Fault::WholeFile))
            && answer.status == 200
            && *start < answer.body.len()
    });
    if let Some(start) = start {
        let size = answer.body.len();
        answer.status = 206;
        answer.headers.push(format!("Content-Range: bytes {start}-{}/{size}", size - 1));
        answer.body.drain(..start);
    }
    let mut sent = answer.body.len();
    match fault {
        None | Some(Fault::WholeFile) => {}
        Some(Fault::DropAfter(bytes)) => sent = sent.min(bytes),
        Some(Fault::WrongBytes) => answer.body.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Silence(time)) => thread::sleep(time),
        Some(Fault::Status(status, headers)) => {
            let headers = headers.split('\n').filter(|line| !line.is_empty()).map(str::to_owned);
            answer = Answer { status, headers: headers.collect(), body: Vec::new() };
            sent = 0;
        }
        Some(Fault::Says(body)) => {
            sent = body.len();
            answer = Answer { status: 200, headers: Vec::new(), body: body.into_bytes() };
        }
        Some(Fault::NextPage(url)) => {
            let headers = vec![format!("Link: <{url}>; rel=\"next\"")];
            answer = Answer { status: 200, headers, body: b"[]".to_vec() };
            sent = 2;
        }
        Some(Fault::Redirect(to)) => {
            answer = Answer { status: 302, headers: vec![format!("Location: {to}")], body: vec![] };
            sent = 0;
        }
    }
    let mut head = format!(
        "HTTP/1.1 {} Answer\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for header in &answer.headers {
        head = format!("{head}{header}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&answer.body[..sent]);
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

fn answer(state: &State, request: &Request, own: &str, cdn: &str) -> Answer {
    let refuse = |code: &str| Answer {
        status: 404,
        headers: vec![format!("X-Error-Code: {code}")],
        body: b"{\"error\": \"no\"}".to_vec(),
    };
    let ok = |headers, body| Answer { status: 200, headers, body };
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if request.host == Host::Cdn {
        let wanted = path.trim_start_matches("/cdn/");
        let mut files = state.commits.values().flat_map(BTreeMap::values);
        let bytes = files.find(|bytes| sha256(bytes) == wanted);
        return bytes
            .map_or_else(|| refuse("EntryNotFound"), |bytes| ok(Vec::new(), bytes.clone()));
    }
    let commit_of = |revision: &str| state.revisions.get(&revision.replace("%2F", "/"));
    let api = format!("/api/models/{REPO}/");
    if let Some(revision) = path.strip_prefix(&format!("{api}revision/")) {
        return match commit_of(revision) {
            Some(commit) => ok(
                Vec::new(),
                format!("{{\"id\": \"{REPO}\", \"sha\": \"{commit}\"}}").into_bytes(),
            ),
            None => refuse("RevisionNotFound"),
        };
    }
    if let Some(revision) = path.strip_prefix(&format!("{api}tree/")) {
        let Some(commit) = commit_of(revision) else { return refuse("RevisionNotFound") };
        let cursor: usize = query
            .split('&')
            .find_map(|part| part.strip_prefix("cursor="))
            .map_or(0, |cursor| cursor.parse().unwrap());
        let files = &state.commits[commit];
        let page = files.iter().skip(cursor).take(PAGE);
        let page: Vec<String> = page.map(|(name, bytes)| entry(name, bytes, state.claim)).collect();
        let mut headers = Vec::new();
        if cursor + PAGE < files.len() {
            let next = format!("{own}{path}?recursive=true&cursor={}", cursor + PAGE);
            headers.push(format!("Link: <{next}>; rel=\"next\""));
        }
        return ok(headers, format!("[{}]", page.join(",")).into_bytes());
    }
    let Some(rest) = path.strip_prefix(&format!("/{REPO}/resolve/")) else {
        return refuse("RepoNotFound");
    };
    let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(commit) = commit_of(revision) else { return refuse("RevisionNotFound") };
    let Some(bytes) = state.commits[commit].get(name) else { return refuse("EntryNotFound") };
    let mut headers = vec![format!("X-Repo-Commit: {commit}")];
    if !is_large(name) {
        headers.push(format!("ETag: \"{}\"", git(bytes)));
        return ok(headers, bytes.clone());
    }
    headers.push(format!("X-Linked-Etag: \"{}\"", sha256(bytes)));
    headers.push(format!("X-Linked-Size: {}", bytes.len()));
    headers.push(format!("Location: {cdn}/cdn/{}?signature=secret", sha256(bytes)));
    Answer { status: 302, headers, body: Vec::new() }
}

fn entry(name: &str, bytes: &[u8], claim: Option<u64>) -> String {
    let weights = name.ends_with(".safetensors");
    let size = claim.filter(|_| weights).unwrap_or(bytes.len() as u64);
    if is_large(name) {
        let (pointer, oid) = (git(name.as_bytes()), sha256(bytes));
        format!(
            "{{\"type\":\"file\",\"oid\":\"{pointer}\",\"size\":{size},\"path\":\"{name}\",\
             \"lfs\":{{\"oid\":\"{oid}\",\"size\":{size},\"pointerSize\":134}}}}"
        )
    } else {
        let oid = git(bytes);
        format!("{{\"type\":\"file\",\"oid\":\"{oid}\",\"size\":{size},\"path\":\"{name}\"}}")
    }
}

/// The hub keeps large and binary files apart from git.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "tokenizer.json" || name.ends_with(".bin")
}

fn range(request: &Request) -> Option<usize> {
    request.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    heirloom::files::hex(&Sha256::digest(bytes))
}

fn git(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    heirloom::files::hex(&hasher.finalize())
}
