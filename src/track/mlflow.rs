//! MLflow, by its REST interface (`/api/2.0/mlflow`).
//!
//! The experiment is made where it is not there; the run once, and its id is kept beside what
//! was sent. Metrics go in batches of `runs/log-batch`.
//!
//! Reference: <https://mlflow.org/docs/latest/rest-api.html>, checked with a real server by
//! `scripts/interop.d/track.py`.

use serde_json::{Map, Value, json};

use super::End;
use super::line::{Line, in_json};
use super::request::{Client, RequestError, url_encoded};
use super::service::{Sent, Service};

/// Most metrics of one call, by MLflow's documentation.
const MAX_METRICS: usize = 1000;

/// Most parameters of one call, likewise.
const MAX_PARAMS: usize = 100;

/// Longest value of a parameter, in characters.
const MAX_VALUE: usize = 500;

const API: &str = "/api/2.0/mlflow";

/// A run, in MLflow's words.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    /// `experiment_name`.
    pub experiment: String,
    /// `run_name`.
    pub name: String,
    /// Parameters.
    pub params: Map<String, Value>,
    /// When it began, in milliseconds since 1970.
    pub began: i64,
}

/// Sends metrics.
pub struct Mlflow {
    client: Client,
    info: RunInfo,
    run: String,
}

impl Mlflow {
    /// A client that has not connected yet.
    pub fn new(address: &str, authorization: Option<String>, info: RunInfo) -> Self {
        Self { client: Client::new(address, authorization), info, run: String::new() }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, RequestError> {
        self.client.post(&format!("{API}{path}"), body)
    }

    fn text(&self, answer: &Value, path: &str, what: &'static str) -> Result<String, RequestError> {
        let text = answer.pointer(path).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| self.client.malformed(API, what))
    }

    fn experiment(&self) -> Result<String, RequestError> {
        let name = url_encoded(&self.info.experiment);
        let path = format!("{API}/experiments/get-by-name?experiment_name={name}");
        match self.client.get(&path) {
            Err(RequestError::Refused { status: 404, .. }) => {
                let body = json!({ "name": self.info.experiment });
                let made = self.post("/experiments/create", &body)?;
                self.text(&made, "/experiment_id", "experiment_id")
            }
            found => self.text(&found?, "/experiment/experiment_id", "experiment_id"),
        }
    }

    fn create(&self) -> Result<String, RequestError> {
        let made = self.post(
            "/runs/create",
            &json!({
                "experiment_id": self.experiment()?,
                "run_name": self.info.name,
                "start_time": self.info.began,
            }),
        )?;
        self.text(&made, "/run/info/run_id", "run_id")
    }

    fn time_of(&self, line: &Line) -> i64 {
        self.info.began + (line.seconds * 1000.0).round() as i64
    }

    fn metrics(&self, line: &Line) -> Vec<Value> {
        let timestamp = self.time_of(line);
        let metric = |(name, value): &(String, f64)| {
            json!({
                "key": name,
                "value": in_json(*value),
                "timestamp": timestamp,
                "step": line.step,
            })
        };
        line.values.iter().map(metric).collect()
    }
}

impl Service for Mlflow {
    fn name(&self) -> &'static str {
        "mlflow"
    }

    fn begin(&mut self, sent: &mut Sent, _: &[Line]) -> Result<(), RequestError> {
        if let Some(run) = &sent.run {
            self.run.clone_from(run);
            let body = json!({ "run_id": run, "status": "RUNNING" });
            return self.post("/runs/update", &body).map(drop);
        }
        self.run = self.create()?;
        sent.run = Some(self.run.clone());
        let mut params = Vec::new();
        flatten("", &Value::Object(self.info.params.clone()), &mut params);
        for params in params.chunks(MAX_PARAMS) {
            self.post("/runs/log-batch", &json!({ "run_id": self.run, "params": params }))?;
        }
        Ok(())
    }

    fn send(&mut self, _: usize, lines: &[Line]) -> Result<(), RequestError> {
        let metrics: Vec<Value> = lines.iter().flat_map(|line| self.metrics(line)).collect();
        for metrics in metrics.chunks(MAX_METRICS) {
            self.post("/runs/log-batch", &json!({ "run_id": self.run, "metrics": metrics }))?;
        }
        Ok(())
    }

    fn end(&mut self, end: End, last: Option<&Line>) -> Result<(), RequestError> {
        let status = match end {
            End::Complete => "FINISHED",
            End::Stopped => "KILLED",
            End::Failed => "FAILED",
        };
        let end_time = last.map_or(self.info.began, |line| self.time_of(line));
        let body = json!({ "run_id": self.run, "status": status, "end_time": end_time });
        self.post("/runs/update", &body).map(drop)
    }
}

/// `{"train": {"seed": 1}}` as `train.seed`.
fn flatten(path: &str, value: &Value, into: &mut Vec<Value>) {
    if let Value::Object(members) = value {
        let dot = if path.is_empty() { "" } else { "." };
        return members
            .iter()
            .for_each(|(name, value)| flatten(&format!("{path}{dot}{name}"), value, into));
    }
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text: String = text.chars().take(MAX_VALUE).collect();
    into.push(json!({ "key": path, "value": text }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_parameters_by_their_path() {
        let mut params = Vec::new();
        let value = json!({ "train": { "seed": 1, "schedule": { "cosine": {} } }, "name": "a" });
        flatten("", &value, &mut params);
        let expected =
            [json!({"key": "train.seed", "value": "1"}), json!({"key": "name", "value": "a"})];
        assert_eq!(params, expected);
    }
}
