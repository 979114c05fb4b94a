//! The sinks that a recipe asks for.
//!
//! Owns which sink stands for which word of `track`, and that none of them can end a run: what
//! a tracker cannot take costs a warning, and is in `metrics.jsonl`.

use std::io;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::jsonl::Jsonl;
use super::mlflow::{self, Mlflow};
use super::progress::Voice;
use super::service::{Feed, FeedError, Remote, Service};
use super::tensorboard::TensorBoard;
use super::wandb::offline::Offline;
use super::wandb::online::{DEFAULT_BASE_URL, Online};
use super::wandb::{self};
use super::{End, Event, Sink, Sinks, StepMetrics, ValidationMetrics};
use crate::files::sha256_of_file;
use crate::recipe::lock::Lock;
use crate::recipe::{Recipe, Tracker, WandbMode};
use crate::run::RunFolder;

/// Digits of the lock's digest that are a run's name on a server.
const ID_DIGITS: usize = 12;

/// What a run tells its trackers of itself.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Its folder.
    pub run: &'a RunFolder,
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// Its own name among all runs: the same when it is resumed.
    pub id: String,
    /// When it began.
    pub began: Timestamp,
}

impl<'a> About<'a> {
    /// Of a run that has begun.
    pub fn new(run: &'a RunFolder, recipe: &'a Recipe, lock: &Lock) -> io::Result<Self> {
        let id = sha256_of_file(&run.lock())?.chars().take(ID_DIGITS).collect();
        Ok(Self { run, recipe, id, began: lock.created })
    }
}

/// What trackers are told of a recipe: how it trains, and never on what. Paths of data stay
/// here, and so do the addresses of trackers.
pub(super) fn settings(recipe: &Recipe) -> Map<String, Value> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(recipe) else { return Map::new() };
    settings.retain(|name, _| ["base", "adapter", "data", "train"].contains(&name.as_str()));
    if let Some(Value::Object(data)) = settings.get_mut("data") {
        let told = ["sequence_length", "packing", "overlong", "train_on", "end_of_turn", "shuffle"];
        data.retain(|name, _| told.contains(&name.as_str()));
    }
    settings
}

/// `metrics.jsonl`, kept up to step `done`, and every tracker of the recipe, in this order: the
/// trackers are filled from the file. Only the file can fail.
pub fn open(about: &About<'_>, done: u64, voice: &Voice) -> io::Result<Sinks> {
    let mut sinks = Sinks::default();
    sinks.push(Jsonl::open(&about.run.metrics(), done)?);
    for tracker in &about.recipe.track {
        let name = tracker.name();
        match sink(about, tracker, voice) {
            Ok(Some(sink)) => {
                sinks.push(Lenient { name, sink: Some(sink), voice: voice.clone() });
            }
            Ok(None) => {}
            Err(error) => warn(voice, name, &error),
        }
    }
    Ok(sinks)
}

fn sink(about: &About<'_>, tracker: &Tracker, voice: &Voice) -> io::Result<Option<Box<dyn Sink>>> {
    if let Some(feed) = feed(about, tracker).map_err(io::Error::other)? {
        return Ok(Some(Box::new(Remote::new(feed, voice.clone())?)));
    }
    Ok(match tracker {
        Tracker::Tensorboard => Some(tensorboard(about)?),
        Tracker::Wandb(settings) => {
            let info = wandb::RunInfo::of(about, settings);
            Some(Box::new(Offline::open(&about.run.wandb(), &about.run.metrics(), info)?))
        }
        Tracker::Jsonl | Tracker::Mlflow(_) => None,
    })
}

/// What feeds a tracker that is a server; nothing of others.
pub fn feed(about: &About<'_>, tracker: &Tracker) -> Result<Option<Feed>, FeedError> {
    let service: Box<dyn Service> = match tracker {
        Tracker::Wandb(settings) if settings.mode == WandbMode::Online => {
            let key = variable("WANDB_API_KEY").ok_or(FeedError::Unset("WANDB_API_KEY"))?;
            let address = variable("WANDB_BASE_URL");
            let address = address.as_deref().unwrap_or(DEFAULT_BASE_URL);
            Box::new(Online::new(address, &key, wandb::RunInfo::of(about, settings)))
        }
        Tracker::Mlflow(settings) => {
            let address = settings.tracking_uri.clone().or_else(|| variable("MLFLOW_TRACKING_URI"));
            let address = address.ok_or(FeedError::Unset("MLFLOW_TRACKING_URI"))?;
            let info = mlflow::RunInfo {
                experiment: settings.experiment_name.clone(),
                name: about.recipe.name.clone(),
                params: self::settings(about.recipe),
                began: about.began.as_millisecond(),
            };
            Box::new(Mlflow::new(&address, mlflow_login(), info))
        }
        _ => return Ok(None),
    };
    Feed::open(service, &about.run.metrics(), &about.run.track()).map(Some)
}

/// As MLflow's own client: a token, or a name with a password.
fn mlflow_login() -> Option<String> {
    use base64::Engine as _;
    if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
        return Some(format!("Bearer {token}"));
    }
    let name = variable("MLFLOW_TRACKING_USERNAME")?;
    let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
    Some(format!("Basic {login}"))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn tensorboard(about: &About<'_>) -> io::Result<Box<dyn Sink>> {
    let (folder, metrics) = (about.run.tensorboard(), about.run.metrics());
    Ok(Box::new(TensorBoard::open(&folder, &metrics, about.began)?))
}

fn warn(voice: &Voice, name: &str, error: &io::Error) {
    voice.say(&format!(
        "warning: `track: {name}` gets nothing more: {error}\n  hint: the run goes on, and \
         everything is in metrics.jsonl"
    ));
}

/// A sink that is left out from its first failure on.
struct Lenient {
    name: &'static str,
    sink: Option<Box<dyn Sink>>,
    voice: Voice,
}

impl Lenient {
    fn tell(&mut self, tell: impl FnOnce(&mut dyn Sink) -> io::Result<()>) -> io::Result<()> {
        let Some(sink) = &mut self.sink else { return Ok(()) };
        if let Err(error) = tell(sink.as_mut()) {
            warn(&self.voice, self.name, &error);
            self.sink = None;
        }
        Ok(())
    }
}

impl Sink for Lenient {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        self.tell(|sink| sink.step(metrics))
    }

    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        self.tell(|sink| sink.validation(metrics))
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.tell(|sink| sink.event(event))
    }

    fn finish(&mut self, end: End) -> io::Result<()> {
        self.tell(|sink| sink.finish(end))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Full, step};
    use super::*;

    #[test]
    fn a_tracker_that_fails_does_not_end_the_run() {
        let sink: Option<Box<dyn Sink>> = Some(Box::new(Full));
        let mut lenient = Lenient { name: "tensorboard", sink, voice: Voice::Silent };
        lenient.step(&step(1)).unwrap();
        assert!(lenient.sink.is_none());
        lenient.step(&step(2)).unwrap();
        lenient.finish(End::Complete).unwrap();
    }
}
