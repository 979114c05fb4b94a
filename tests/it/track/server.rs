//! A double of both servers: it takes what Weights & Biases and MLflow take, keeps it, and can
//! be away or refuse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// A request: method, path, authorization, body.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) body: Value,
}

/// Listens on a port of its own until the tests end.
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    away: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (requests, away) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let server = Self { address, requests: Arc::clone(&requests), away: Arc::clone(&away) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, away) = (Arc::clone(&requests), Arc::clone(&away));
                thread::spawn(move || {
                    let _ = serve(stream, &requests, &away);
                });
            }
        });
        server
    }

    /// Answers with 503 from now on, or no longer.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The rows of a `file_stream`, by their offset: a row that is sent twice is there once.
    pub(crate) fn wandb_rows(&self) -> Vec<Value> {
        let mut rows = BTreeMap::new();
        for request in self.requests() {
            let history = request.body.pointer("/files/wandb-history.jsonl").cloned();
            let Some(history) = history else { continue };
            let first = history["offset"].as_u64().unwrap();
            for (number, row) in (first..).zip(history["content"].as_array().unwrap()) {
                rows.insert(number, serde_json::from_str(row.as_str().unwrap()).unwrap());
            }
        }
        assert!(rows.keys().copied().eq(0..rows.len() as u64), "a row is missing");
        rows.into_values().collect()
    }

    /// Metrics of MLflow: name, step, time and value, in the order in which they came.
    pub(crate) fn mlflow_metrics(&self) -> Vec<(String, u64, i64, Value)> {
        let batches = self
            .requests()
            .into_iter()
            .filter_map(|request| request.body.get("metrics").and_then(Value::as_array).cloned());
        let metric = |metric: Value| {
            (
                metric["key"].as_str().unwrap().to_owned(),
                metric["step"].as_u64().unwrap(),
                metric["timestamp"].as_i64().unwrap(),
                metric["value"].clone(),
            )
        };
        batches.flatten().map(metric).collect()
    }
}

fn serve(
    stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    away: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut authorization) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => authorization = value.to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (status, answer) = if away.load(Ordering::SeqCst) {
            (503, json!({ "error": "away" }))
        } else {
            let answer = answer(&path, &body);
            requests.lock().unwrap().push(Request { path, authorization, body });
            answer
        };
        let answer = answer.to_string();
        write!(
            reader.get_mut(),
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}

fn answer(path: &str, body: &Value) -> (u16, Value) {
    let project = &body["variables"]["project"];
    match path.split('?').next().unwrap_or_default() {
        "/graphql" => {
            let project = json!({ "name": project, "entity": { "name": "lab" } });
            let bucket =
                json!({ "id": "UnVu", "name": body["variables"]["name"], "project": project });
            (200, json!({ "data": { "upsertBucket": { "bucket": bucket } } }))
        }
        "/api/2.0/mlflow/experiments/get-by-name" => {
            (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST" }))
        }
        "/api/2.0/mlflow/experiments/create" => (200, json!({ "experiment_id": "7" })),
        "/api/2.0/mlflow/runs/create" => (200, json!({ "run": { "info": { "run_id": "r1" } } })),
        _ => (200, json!({})),
    }
}
