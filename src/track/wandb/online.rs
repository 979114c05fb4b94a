//! Weights & Biases over HTTP.
//!
//! `UpsertBucket` of GraphQL makes the run known; rows go to its `file_stream`, each call with
//! the number of the first row, so that one that is sent twice is there once. Shapes as the
//! official client's, recorded from wandb 0.31.0.

use serde_json::{Map, Value, json};

use super::super::End;
use super::super::line::Line;
use super::super::request::{Client, RequestError, url_encoded};
use super::super::service::{Sent, Service};
use super::{Latest, RunInfo};

/// Where runs go unless `WANDB_BASE_URL` says something else.
pub const DEFAULT_BASE_URL: &str = "https://api.wandb.ai";

const UPSERT: &str = "mutation UpsertBucket($name: String, $project: String, $entity: String, \
    $groupName: String, $displayName: String, $config: JSONString, $tags: [String!]) { \
    upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, \
    groupName: $groupName, displayName: $displayName, config: $config, tags: $tags}) { \
    bucket { id name project { name entity { name } } } } }";

/// Sends rows.
pub struct Online {
    client: Client,
    info: RunInfo,
    /// `/files/ENTITY/PROJECT/ID/file_stream`, once the server has said it.
    stream: Option<String>,
    latest: Latest,
}

impl Online {
    /// A client that has not connected yet.
    pub fn new(base_url: &str, key: &str, info: RunInfo) -> Self {
        use base64::Engine as _;
        let login = base64::engine::general_purpose::STANDARD.encode(format!("api:{key}"));
        let client = Client::new(base_url, Some(format!("Basic {login}")));
        Self { client, info, stream: None, latest: Latest::default() }
    }

    fn stream(&self, body: &Value) -> Result<(), RequestError> {
        let absent = || self.client.malformed("/graphql", "upsertBucket");
        let path = self.stream.as_deref().ok_or_else(absent)?;
        self.client.post(path, body).map(drop)
    }

    fn summary(&self) -> Value {
        json!({ "offset": 0, "content": [json!(self.latest.0).to_string()] })
    }

    /// `{"lr": {"value": 1e-4}}` as text, with the axis of all diagrams.
    fn config(&self) -> String {
        let config = self.info.config.iter();
        let mut config: Map<String, Value> =
            config.map(|(name, value)| (name.clone(), json!({ "value": value }))).collect();
        let step = json!({ "1": "step", "6": [], "7": [] });
        let all = json!({ "2": "*", "5": 1, "6": [1], "7": [] });
        config.insert("_wandb".to_owned(), json!({ "value": { "m": [step, all] } }));
        Value::Object(config).to_string()
    }
}

impl Service for Online {
    fn name(&self) -> &'static str {
        "wandb"
    }

    fn begin(&mut self, _: &mut Sent, before: &[Line]) -> Result<(), RequestError> {
        for (number, line) in before.iter().enumerate() {
            self.latest.take(&self.info.row(number, line));
        }
        let settings = &self.info.settings;
        let variables = json!({
            "name": self.info.id,
            "project": settings.project,
            "entity": settings.entity,
            "groupName": settings.group,
            "displayName": self.info.name,
            "config": self.config(),
            "tags": settings.tags,
        });
        let body =
            json!({ "query": UPSERT, "variables": variables, "operationName": "UpsertBucket" });
        let answer = self.client.post("/graphql", &body)?;
        let bucket = answer.pointer("/data/upsertBucket/bucket");
        let text = |path: &str| bucket.and_then(|bucket| bucket.pointer(path)?.as_str());
        let absent = || self.client.malformed("/graphql", "upsertBucket");
        let entity = text("/project/entity/name").ok_or_else(absent)?;
        let project = text("/project/name").ok_or_else(absent)?;
        let [entity, project] = [entity, project].map(url_encoded);
        self.stream = Some(format!("/files/{entity}/{project}/{}/file_stream", self.info.id));
        Ok(())
    }

    fn send(&mut self, first: usize, lines: &[Line]) -> Result<(), RequestError> {
        let mut content = Vec::with_capacity(lines.len());
        for (number, line) in (first..).zip(lines) {
            let row = self.info.row(number, line);
            self.latest.take(&row);
            content.push(Value::Object(row.into_iter().collect()).to_string());
        }
        self.stream(&json!({ "files": {
            "wandb-history.jsonl": { "offset": first, "content": content },
            "wandb-summary.json": self.summary(),
        } }))
    }

    fn end(&mut self, end: End, _: Option<&Line>) -> Result<(), RequestError> {
        let summary = json!({ "wandb-summary.json": self.summary() });
        self.stream(&json!({ "files": summary, "complete": true, "exitcode": end.code() }))
    }
}
