//! Trackers: every one holds what `metrics.jsonl` holds, whether its server was there or away.

pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs_err as fs;
use heirloom::recipe::lock::Lock;
use heirloom::recipe::{self, Recipe};
use heirloom::run::RunFolder;
use heirloom::run::hold::Hold;
use heirloom::track::line::{self, Line};
use heirloom::track::mlflow::{self, Mlflow};
use heirloom::track::progress::Voice;
use heirloom::track::service::{Feed, Remote, Service};
use heirloom::track::trackers::About;
use heirloom::track::wandb::{RunInfo, online::Online};
use heirloom::track::{Cause, End, Event, Happened, Sink, StepMetrics, ValidationMetrics};
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;

use crate::world::World;

const BEGAN: i64 = 1_700_000_000;

/// A folder that looks like a run's, as far as trackers look.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn run(&self) -> RunFolder {
        RunFolder::new(self.0.path())
    }

    fn metrics(&self) -> PathBuf {
        self.run().metrics()
    }

    /// The file as a run leaves it after so many steps.
    fn write(&self, steps: u64) {
        let text: String = (1..=steps).flat_map(lines).map(|line| format!("{line}\n")).collect();
        heirloom::files::write_atomically(&self.metrics(), text.as_bytes()).unwrap();
    }

    fn feed(&self, service: impl Service + 'static) -> Feed {
        Feed::open(Box::new(service), &self.metrics(), &self.run().track()).unwrap()
    }
}

/// What is written at a step; at the third one the loss is no number, and the step skipped.
fn lines(step: u64) -> Vec<Value> {
    let bad = step == 3;
    let metrics = StepMetrics {
        step,
        epoch: step as f64 / 10.0,
        loss: if bad { f64::NAN } else { 3.0 / step as f64 },
        lr: 1e-4,
        grad_norm: 0.5,
        tokens: 100 * step,
        trained_tokens: 40,
        tokens_per_second: 1000.0,
        seconds: step as f64 / 8.0,
        figures: [("rewards/margins".to_owned(), step as f64)].into(),
    };
    let seconds = metrics.seconds;
    let mut lines = vec![serde_json::to_value(&metrics).unwrap()];
    if bad {
        let event = Event {
            step,
            epoch: 0.3,
            event: Happened::Skip,
            cause: Cause::NonFiniteLoss,
            value: "NaN".to_owned(),
            to_step: None,
            seconds,
        };
        lines.push(serde_json::to_value(event).unwrap());
    }
    if step.is_multiple_of(2) {
        let validation = ValidationMetrics {
            step,
            epoch: 0.2,
            validation_loss: 2.5,
            validation_tokens: 9,
            seconds,
            figures: [("validation_rewards/margins".to_owned(), 0.5)].into(),
        };
        lines.push(serde_json::to_value(validation).unwrap());
    }
    lines
}

fn info() -> RunInfo {
    RunInfo {
        id: "abc123".to_owned(),
        name: "small".to_owned(),
        settings: recipe::Wandb { project: "trees".to_owned(), ..recipe::Wandb::default() },
        config: serde_json::Map::from_iter([("train".to_owned(), json!({ "seed": 1 }))]),
        began: jiff::Timestamp::from_second(BEGAN).unwrap(),
    }
}

fn wandb(server: &Server) -> Online {
    Online::new(&server.address, "key", info())
}

fn mlflow(server: &Server) -> Mlflow {
    let info = mlflow::RunInfo {
        experiment: "trees".to_owned(),
        name: "small".to_owned(),
        params: info().config,
        began: BEGAN * 1000,
    };
    Mlflow::new(&server.address, None, info)
}

/// A value as it is sent.
fn number(value: f64) -> Value {
    if value.is_nan() { json!("NaN") } else { json!(value) }
}

/// Whether the server of Weights & Biases holds these lines, each once.
fn holds_wandb(server: &Server, expected: &[Line]) {
    let rows = server.wandb_rows();
    assert_eq!(rows.len(), expected.len());
    for (index, (row, line)) in rows.iter().zip(expected).enumerate() {
        assert_eq!((&row["_step"], &row["step"]), (&json!(index), &json!(line.step)));
        assert_eq!(row["_timestamp"], json!(BEGAN as f64 + line.seconds));
        for (name, value) in &line.values {
            assert_eq!(row[name], number(*value), "{name}");
        }
    }
}

/// Whether the server of MLflow does.
fn holds_mlflow(server: &Server, expected: &[Line]) {
    let expected: Vec<_> = expected
        .iter()
        .flat_map(|line| {
            let time = BEGAN * 1000 + (line.seconds * 1000.0).round() as i64;
            let values = line.values.iter();
            values.map(move |(name, value)| (name.clone(), line.step, time, number(*value)))
        })
        .collect();
    assert_eq!(server.mlflow_metrics(), expected);
}

#[test]
fn both_servers_hold_every_number_of_the_file() {
    let (place, server) = (Place::new(), Server::start());
    place.write(1200);
    let expected = line::read(&place.metrics(), 0).unwrap();
    for mut feed in [place.feed(wandb(&server)), place.feed(mlflow(&server))] {
        assert_eq!(feed.catch_up().unwrap(), expected.len());
        assert_eq!(feed.catch_up().unwrap(), 0);
        feed.end(End::Complete).unwrap();
    }
    holds_wandb(&server, &expected);
    holds_mlflow(&server, &expected);
    let requests = server.requests();
    // base64 of `api:key`.
    assert_eq!(requests[0].authorization, "Basic YXBpOmtleQ==");
    let variables = &requests[0].body["variables"];
    let config: Value = serde_json::from_str(variables["config"].as_str().unwrap()).unwrap();
    assert_eq!(config["train"], json!({ "value": { "seed": 1 } }));
    let last = requests.iter().rfind(|request| request.path.ends_with("file_stream")).unwrap();
    assert_eq!(last.path, "/files/lab/trees/abc123/file_stream");
    assert_eq!((&last.body["complete"], &last.body["exitcode"]), (&json!(true), &json!(0)));
    let summary = last.body["files"]["wandb-summary.json"]["content"][0].as_str().unwrap();
    let summary: Value = serde_json::from_str(summary).unwrap();
    assert_eq!((&summary["step"], &summary["loss"]), (&json!(1200), &json!(3.0 / 1200.0)));
    let params = requests.iter().find_map(|request| request.body.get("params"));
    assert_eq!(params.unwrap(), &json!([{ "key": "train.seed", "value": "1" }]));
    assert_eq!(requests.last().unwrap().body["status"], "FINISHED");
}

#[test]
fn a_server_that_was_away_gets_what_it_missed_and_nothing_twice() {
    let (place, server) = (Place::new(), Server::start());
    place.write(4);
    let (mut first, mut second) = (place.feed(wandb(&server)), place.feed(mlflow(&server)));
    first.catch_up().unwrap();
    second.catch_up().unwrap();
    server.set_away(true);
    place.write(7);
    for feed in [&mut first, &mut second] {
        let error = feed.catch_up().unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        feed.end(End::Complete).unwrap_err();
    }
    server.set_away(false);
    // Another program, later: it has only the files.
    drop((first, second));
    for mut feed in [place.feed(wandb(&server)), place.feed(mlflow(&server))] {
        feed.catch_up().unwrap();
        feed.end(End::Complete).unwrap();
        feed.catch_up().unwrap();
    }
    let expected = line::read(&place.metrics(), 0).unwrap();
    holds_wandb(&server, &expected);
    holds_mlflow(&server, &expected);
    let creations = server.requests().iter().filter(|r| r.path.ends_with("runs/create")).count();
    assert_eq!(creations, 1, "it is the same run");
}

#[test]
fn steps_that_a_resumed_run_writes_again_are_not_sent_again() {
    let (place, server) = (Place::new(), Server::start());
    place.write(9);
    for mut feed in [place.feed(wandb(&server)), place.feed(mlflow(&server))] {
        feed.catch_up().unwrap();
    }
    // Killed, and resumed from step 5; the feeds begin while the file is short.
    place.write(5);
    let (mut first, mut second) = (place.feed(wandb(&server)), place.feed(mlflow(&server)));
    for steps in [5, 7, 12] {
        place.write(steps);
        first.catch_up().unwrap();
        second.catch_up().unwrap();
    }
    let expected = line::read(&place.metrics(), 0).unwrap();
    holds_wandb(&server, &expected);
    holds_mlflow(&server, &expected);
}

#[test]
fn a_server_that_never_answers_holds_up_no_step() {
    let place = Place::new();
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    place.write(1);
    let feed = place.feed(Online::new(&address, "key", info()));
    let mut remote = Remote::new(feed, Voice::Silent).unwrap();
    let metrics: StepMetrics = serde_json::from_value(lines(1)[0].clone()).unwrap();
    let (mut longest, begun) = (Duration::ZERO, Instant::now());
    while begun.elapsed() < Duration::from_millis(300) {
        let step = Instant::now();
        remote.step(&metrics).unwrap();
        longest = longest.max(step.elapsed());
    }
    assert!(longest < Duration::from_millis(100), "{longest:?}");
}

#[test]
fn sync_sends_what_is_missing_and_says_what_it_did() {
    let (world, server) = (World::new(), Server::start());
    let track = format!(
        "track: [{{ wandb: {{ mode: online }} }}, {{ mlflow: {{ tracking_uri: \"{}\" }} }}]\n",
        server.address
    );
    world.write("recipe.yaml", world.read("recipe.yaml") + &track);
    let ran = world.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let run = RunFolder::new(world.path("runs/small"));
    let text: String = (1..=4).flat_map(lines).map(|line| format!("{line}\n")).collect();
    world.write("runs/small/metrics.jsonl", text);

    let sync = || {
        let mut command = world.command(&["track", "sync", "runs/small"]);
        command.env("WANDB_API_KEY", "key").env("WANDB_BASE_URL", &server.address);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    server.set_away(true);
    let (status, said) = sync();
    assert_eq!(status, Some(1));
    assert!(said.contains("2 of 2 trackers did not get everything"), "{said}");
    server.set_away(false);
    let (status, said) = sync();
    assert_eq!((status, said.as_str()), (Some(0), "wandb: 7 lines sent\nmlflow: 7 lines sent\n"));
    assert_eq!(sync().1, "wandb: 0 lines sent\nmlflow: 0 lines sent\n");
    assert_eq!(server.wandb_rows().len(), 7);
    // Not finished: the engine of these tests trains nothing.
    assert_eq!(server.requests().last().unwrap().body["status"], "KILLED");

    // While it is held, by a trainer for example, nobody else writes into the folder.
    let hold = Hold::take(&run).unwrap();
    let (status, said) = sync();
    assert_eq!(status, Some(1));
    assert!(said.contains("another program writes into the run"), "{said}");
    drop(hold);
    no_text_of_rows(&world, &server);
}

/// Nothing of any row, no path of data and no address of a tracker is ever sent.
fn no_text_of_rows(world: &World, server: &Server) {
    let sent = format!("{:?}", server.requests());
    assert!(sent.contains("sequence_length") && sent.contains("seed"), "{sent}");
    for private in
        ["parquet", "catalogue", "tracking_uri", "dpv:", &world.path("").to_string_lossy()]
    {
        assert!(!sent.contains(private), "{private}");
    }
}

#[test]
fn a_run_without_servers_has_nothing_to_sync() {
    let world = World::new();
    let with = |track: &str| {
        world.write("recipe.yaml", crate::world::RECIPE.to_owned() + track);
        let _ = fs::remove_dir_all(world.path("runs"));
        assert_eq!(world.heirloom(&["train", "recipe.yaml"]).status, Some(0));
        world.heirloom(&["track", "sync", "runs/small"])
    };
    let ran = with("");
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("name trackers with `track`"), "{}", ran.stderr);
    let ran = with("track: [{ wandb: {} }]\n");
    assert!(ran.stderr.contains("wandb sync runs/small/wandb/*"), "{}", ran.stderr);
}

#[test]
fn a_run_is_known_by_its_lock() {
    let world = World::new();
    world.heirloom(&["train", "recipe.yaml"]);
    let run = RunFolder::new(world.path("runs/small"));
    let lock = Lock::read(&run.lock()).unwrap();
    let recipe: Recipe = recipe::read(&run.recipe(), &[]).unwrap().recipe;
    let about = About::new(&run, &recipe, &lock).unwrap();
    let digest = heirloom::files::sha256_of_file(Path::new(&run.lock())).unwrap();
    assert_eq!(about.id, digest[..12]);
    assert_eq!(about.began, lock.created);
}
