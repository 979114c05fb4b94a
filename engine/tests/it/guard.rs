//! Steps that go wrong, and runs that are done early: what the recipe says is done, exactly,
//! and it is always in the log.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::{MicroBatch, Position, Step};
use heirloom::recipe::lock::Size;
use heirloom::recipe::{self, Recipe};
use heirloom::track::{Cause, Event, Happened, Sink, StepMetrics, ValidationMetrics};
use heirloom_engine::error::EngineError;
use heirloom_engine::train::{Outcome, Trainer};
use tch::{Device, Kind, Tensor};

use crate::runs::root;

fn recipe(train: &str) -> Recipe {
    let text = format!(
        "heirloom: 1\nname: guarded\nbase: {{ model: data/seedling }}\n\
         adapter: {{ lora: {{ rank: 2, alpha: 4, targets: [q_proj] }} }}\n\
         data:\n  purpose: [dpv:ServiceProvision]\n  sequence_length: 64\n  \
         train: [{{ path: t.parquet, format: chat }}]\n  \
         validation: [{{ path: v.parquet, format: chat }}]\n\
         train:\n  epochs: 1\n  tokens_per_step: 64\n  seed: 3\n  checkpoint_every: 2\n  \
         validate_every: 2\n  optimizer: {{ adamw: {{ lr: 1.0e-3 }} }}\n  \
         schedule: {{ constant: {{ warmup_ratio: 0.0 }} }}\n{train}"
    );
    recipe::read::parse(Path::new("r.yaml"), &text, &[]).unwrap().recipe
}

fn batch(seed: u64) -> MicroBatch {
    let tokens: Vec<u32> =
        (0..48).map(|place| ((seed * 31 + place * place) % 900) as u32).collect();
    let weights = (0..48).map(|place| f32::from(u8::from(place > 0))).collect();
    MicroBatch { tokens, weights, lengths: vec![48], ..MicroBatch::default() }
}

fn step(number: u64) -> Step {
    Step {
        micro_batches: vec![batch(number)],
        epoch: 0,
        ends_epoch: false,
        position: Position::default(),
    }
}

fn open(recipe: &Recipe, folder: &Path) -> Trainer {
    let base = BaseFolder::open(&root().join("data/seedling"), false).unwrap();
    // However many steps there are: it ends when they do.
    let size = Size {
        tokens: 64,
        trained_tokens: 64,
        windows: 1,
        dropped_overlong: 0,
        cut_overlong: 0,
        held_out: 0,
        steps_by_epoch: vec![100],
        steps: 100,
        estimated: true,
    };
    let mut trainer =
        Trainer::open(recipe, &base, &size, Some(folder.to_owned()), Device::Cpu).unwrap();
    if trainer.progress.step == 0 {
        // Tests beside this one draw from the same generator.
        let flat = &mut trainer.parameters.flat;
        let numbers = Tensor::arange(flat.numel() as i64, (Kind::Float, Device::Cpu)).sin() * 0.02;
        tch::no_grad(|| flat.copy_(&numbers));
    }
    trainer
}

#[derive(Default)]
struct Log {
    steps: Vec<StepMetrics>,
    validations: Vec<ValidationMetrics>,
    events: Vec<Event>,
}

impl Sink for Log {
    fn step(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        self.steps.push(metrics.clone());
        Ok(())
    }
    fn validation(&mut self, metrics: &ValidationMetrics) -> io::Result<()> {
        self.validations.push(metrics.clone());
        Ok(())
    }
    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.events.push(event.clone());
        Ok(())
    }
}

/// Takes the steps of these numbers.
fn run(
    trainer: &mut Trainer,
    numbers: impl IntoIterator<Item = u64>,
    log: &mut Log,
) -> Result<Outcome, EngineError> {
    let stream = numbers.into_iter().map(|number| Ok(step(number)));
    let validation = || Ok(Some(vec![batch(1)]));
    trainer.run(stream, validation, |_| Ok(()), &[100], log, &AtomicBool::new(false))
}

/// Weights after which every loss is no number.
fn poison(trainer: &mut Trainer) {
    let flat = &mut trainer.parameters.flat;
    let _ = tch::no_grad(|| flat.f_fill_(1e30)).unwrap();
}

fn weights(trainer: &Trainer) -> Tensor {
    trainer.parameters.flat.detach().copy()
}

fn equal(one: &Tensor, other: &Tensor) -> bool {
    one.equal(other)
}

#[test]
fn a_roll_back_takes_the_weights_of_the_checkpoint_and_goes_on() {
    let (folder, mut log) = (tempfile::tempdir().unwrap(), Log::default());
    let recipe = recipe("  on_non_finite: roll-back\n");
    let mut trainer = open(&recipe, folder.path());
    run(&mut trainer, [1, 2, 3], &mut log).unwrap();
    poison(&mut trainer);
    run(&mut trainer, [4], &mut log).unwrap();
    let rolled_back = weights(&trainer);
    let event = log.events.first().unwrap();
    assert_eq!((event.event, event.cause), (Happened::RollBack, Cause::NonFiniteLoss));
    assert_eq!((event.step, event.to_step, event.value.as_str()), (4, Some(2), "NaN"));
    assert_eq!((log.steps[3].step, log.steps[3].loss.is_nan()), (4, true));
    run(&mut trainer, [5, 6], &mut log).unwrap();
    assert!(log.steps[5].loss.is_finite() && log.events.len() == 1);

    // Weights and optimiser are those of step 2: the same as never having seen 3 and 4.
    let other = tempfile::tempdir().unwrap();
    let mut undisturbed = open(&recipe, other.path());
    run(&mut undisturbed, [1, 2], &mut Log::default()).unwrap();
    assert!(equal(&weights(&undisturbed), &rolled_back));
    undisturbed.progress.step = 4;
    run(&mut undisturbed, [5, 6], &mut Log::default()).unwrap();
    assert!(equal(&weights(&undisturbed), &weights(&trainer)));
    assert_eq!(trainer.progress.updates, 4);
}

#[test]
fn a_skipped_step_leaves_weights_and_optimiser_alone() {
    let (folder, mut log) = (tempfile::tempdir().unwrap(), Log::default());
    let recipe = recipe("  on_non_finite: skip\n  loss_spike: { window: 2, factor: 1.0001 }\n");
    let mut trainer = open(&recipe, folder.path());
    run(&mut trainer, [1, 2], &mut log).unwrap();
    let before = weights(&trainer);
    // Other rows, of which it knows less than 0.01 % is enough to be a spike.
    let mut unusual = step(3);
    unusual.micro_batches[0].tokens.iter_mut().for_each(|token| *token = (*token * 7 + 1) % 1000);
    trainer.progress.seen.losses = vec![0.1, 0.1];
    let taken = trainer.step(&unusual, 100, std::time::Instant::now()).unwrap();
    let event = taken.event.unwrap();
    assert_eq!((event.event, event.cause), (Happened::Skip, Cause::LossSpike));
    assert_eq!(event.value, taken.metrics.loss.to_string());
    assert!(equal(&before, &weights(&trainer)));
    assert_eq!((trainer.progress.step, trainer.progress.updates), (3, 2));
}

#[test]
fn a_run_that_stops_says_so_in_the_log_and_keeps_its_checkpoint() {
    let (folder, mut log) = (tempfile::tempdir().unwrap(), Log::default());
    let recipe = recipe("");
    let mut trainer = open(&recipe, folder.path());
    run(&mut trainer, [1, 2], &mut log).unwrap();
    let good = weights(&trainer);
    poison(&mut trainer);
    let error = run(&mut trainer, [3, 4], &mut log).unwrap_err();
    assert_eq!(error.to_string(), "the loss of step 3 is NaN");
    assert_eq!((log.steps.len(), log.events.len()), (3, 1));
    assert_eq!(log.events[0].event, Happened::Stop);
    drop(trainer);
    let again = open(&recipe, folder.path());
    assert_eq!(again.progress.step, 2);
    assert!(equal(&weights(&again), &good));
}

#[test]
fn a_run_that_gets_no_better_is_done_and_stays_so() {
    let (folder, mut log) = (tempfile::tempdir().unwrap(), Log::default());
    let recipe = recipe(
        "  early_stopping: { patience: 2, threshold: 100.0 }\n  load_best_at_end: true\n  \
         keep_checkpoints: 1\n",
    );
    let mut trainer = open(&recipe, folder.path());
    run(&mut trainer, 1..=20, &mut log).unwrap();
    // The first validation is the best there is, the next two are not better by 100.
    assert_eq!(log.steps.len(), 6);
    assert_eq!(log.events[0].event, Happened::EarlyStop);
    let losses: Vec<f64> = log.validations.iter().map(|metrics| metrics.validation_loss).collect();
    let best = losses.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(trainer.progress.seen.best.unwrap().step, 2 * (best as u64 + 1));

    let result = weights(&trainer);
    drop(trainer);
    let mut again = open(&recipe, folder.path());
    let mut log = Log::default();
    run(&mut again, 7..=20, &mut log).unwrap();
    assert_eq!(log.steps.len(), 0, "it is done");
    assert!(equal(&weights(&again), &result));
}

/// A signal between two checkpoints leaves one of its own, which an undisturbed run has not: a
/// later roll-back must not go there.
#[test]
fn a_run_that_was_stopped_rolls_back_as_an_undisturbed_one() {
    let recipe = recipe("  on_non_finite: roll-back\n  keep_checkpoints: 1\n");
    let results: Vec<Tensor> = [false, true]
        .into_iter()
        .map(|stopped| {
            let folder = tempfile::tempdir().unwrap();
            let mut trainer = open(&recipe, folder.path());
            run(&mut trainer, [1, 2, 3], &mut Log::default()).unwrap();
            if stopped {
                let signal = AtomicBool::new(true);
                let stream = [4].into_iter().map(|number| Ok::<_, EngineError>(step(number)));
                let none = || Ok(None);
                let outcome =
                    trainer.run(stream, none, |_| Ok(()), &[100], &mut Log::default(), &signal);
                assert_eq!(outcome.unwrap(), Outcome::Stopped);
                drop(trainer);
                trainer = open(&recipe, folder.path());
                assert_eq!(trainer.progress.step, 3);
            }
            poison(&mut trainer);
            run(&mut trainer, [4, 5], &mut Log::default()).unwrap();
            weights(&trainer)
        })
        .collect();
    assert!(equal(&results[0], &results[1]));
}

/// A measurement, for a machine with nothing else to do:
/// `cargo test --release -p heirloom-engine --test it -- --ignored --nocapture checkpoints_take`.
#[test]
#[ignore = "measures time"]
fn checkpoints_take_at_most_a_hundredth_of_the_time_of_steps() {
    let folder = tempfile::tempdir().unwrap();
    let text = "  keep_checkpoints: 2\n";
    let mut recipe = recipe(text);
    recipe.train.checkpoint_every = 5;
    recipe.train.validate_every = 0;
    let mut trainer = open(&recipe, folder.path());
    let long = |number| Step { micro_batches: vec![batch(number); 64], ..step(number) };
    let stream = (1..=40).map(|number| Ok::<_, EngineError>(long(number)));
    let begun = std::time::Instant::now();
    let (mut log, none) = (Log::default(), || Ok(None));
    trainer.run(stream, none, |_| Ok(()), &[100], &mut log, &AtomicBool::new(false)).unwrap();
    let whole = begun.elapsed().as_secs_f64();
    let steps = trainer.progress.seconds;
    let share = 100.0 * (whole - steps) / steps;
    println!("{steps:.3} s of 40 steps, 8 checkpoints: {share:.3} % beside them");
    assert!(share < 1.0, "{share} %");
}
