//! Preference objectives against TRL's own trainers; see `tests/fixtures/README.md`.

use std::collections::BTreeMap;

use heirloom::dataset::chat::Document;
use heirloom::dataset::stream::{MicroBatch, mismatched};
use heirloom::recipe::{self, Adamw, Dtype, Objective, RowsOf};
use heirloom_engine::model::Decoder;
use heirloom_engine::train::objective::{Figures, Measure};
use heirloom_engine::train::optimizer::{self, Optimizer};
use heirloom_engine::train::parameters::Parameters;
use tch::{Kind, Tensor};

use crate::support::{Golden, difference, fixture, model, with_adapter};

/// The bar for losses, rewards and log-likelihoods, and for gradients.
const SAME: f64 = 1e-4;
/// The bar for a curve of fifty steps.
const CURVE: f64 = 1e-3;

fn adapted() -> (Decoder, Parameters) {
    with_adapter(model("tiny-llama", Dtype::Float32), &fixture("lora-all-linear/adapter"))
}

/// The documents of a golden, each with its mask.
fn documents(golden: &Golden) -> Vec<Document> {
    let document = |number: usize| {
        let ids = golden.numbers(&format!("ids.{number}"));
        let tokens = ids.into_iter().map(|id| id as u32).collect();
        let trained = golden.numbers(&format!("trained.{number}"));
        let weights = trained.into_iter().map(|weight| weight as f32).collect();
        Document { tokens, weights, ..Document::default() }
    };
    (0..golden.names("ids.").len()).map(document).collect()
}

fn pairs(name: &str) -> Vec<Document> {
    let documents = documents(&Golden::open(name));
    let pair = |pair: &[Document]| Document::preferred([pair[0].clone(), pair[1].clone()]);
    documents.chunks(2).map(pair).collect()
}

fn labelled() -> Vec<Document> {
    let golden = Golden::open("preference/labelled.safetensors");
    let labels = golden.numbers("labels");
    let documents = documents(&golden).into_iter().zip(labels);
    documents.map(|(document, label)| document.labelled(label == 1.0)).collect()
}

/// Rows in micro-batches of so many, as the stream makes them of a step.
fn batches(rows: &[Document], of: usize) -> Vec<MicroBatch> {
    let others = mismatched(rows.iter(), 256);
    let batch = |number: usize, rows: &[Document]| {
        let mut batch = MicroBatch::default();
        for (place, row) in rows.iter().enumerate() {
            batch.push(row);
            if let Some(other) = others.get(number * of + place) {
                batch.push_mismatched(other, 40);
            }
        }
        batch
    };
    rows.chunks(of).enumerate().map(|(number, rows)| batch(number, rows)).collect()
}

/// Loss, gradient and figures of a step.
fn step(
    (model, parameters): (&mut Decoder, &Parameters),
    objective: &Objective,
    batches: &[MicroBatch],
) -> (f64, Tensor, BTreeMap<String, f64>) {
    let measure = Measure::of(objective, 0.0, model, batches, true).unwrap();
    let gradient = parameters.zero_gradient().unwrap();
    let (mut sum, mut figures) = (0.0, Figures::default());
    for batch in batches {
        let part = measure.part(model, batch).unwrap().unwrap();
        parameters.add_gradient(&part.graph.unwrap(), &gradient).unwrap();
        sum += part.sum;
        figures.extend(&part.figures);
    }
    (measure.mean(sum), gradient, measure.told(figures))
}

fn cases() -> BTreeMap<String, Objective> {
    let text = fs_err::read_to_string(fixture("preference/cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn rows(objective: &Objective) -> Vec<Document> {
    match objective.rows() {
        RowsOf::Verdicts => labelled(),
        _ => pairs("preference/pairs.safetensors"),
    }
}

fn apart(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(1e-2)
}

#[test]
fn losses_rewards_and_gradients_equal_trl() {
    let cases = cases();
    assert_eq!(cases.len(), 9);
    for (name, objective) in cases {
        let golden = Golden::open(&format!("preference/{name}.safetensors"));
        let (mut model, parameters) = adapted();
        let batches = batches(&rows(&objective), usize::MAX);
        let (loss, gradient, figures) = step((&mut model, &parameters), &objective, &batches);
        let loss = apart(loss, golden.numbers("loss")[0]);
        let mut told = 0.0f64;
        for figure in golden.names("figure.") {
            let found = figures.get(&figure).unwrap_or_else(|| panic!("{name} has no {figure}"));
            let found = apart(*found, golden.numbers(&format!("figure.{figure}"))[0]);
            assert!(found <= SAME, "{name}, {figure}: {found:e}");
            told = told.max(found);
        }
        assert_eq!(figures.len(), golden.names("figure.").len(), "{name}: {figures:?}");
        let mut gradients = 0.0f64;
        for (key, found) in parameters.split(&gradient) {
            gradients = gradients.max(difference(&found, &golden.tensor(&format!("grad.{key}"))));
        }
        println!("{name}: loss {loss:.1e}, figures {told:.1e}, gradients {gradients:.1e}");
        assert!(loss <= SAME && gradients <= SAME, "{name}: {loss:e}, {gradients:e}");
    }
}

#[test]
fn how_a_step_is_cut_into_micro_batches_changes_nothing() {
    for (name, objective) in cases() {
        let rows = rows(&objective);
        let (mut model, parameters) = adapted();
        let mut cut = |of| step((&mut model, &parameters), &objective, &batches(&rows, of));
        let (whole, one) = (cut(usize::MAX), cut(1));
        assert!((whole.0 - one.0).abs() <= 1e-6 * whole.0.abs(), "{name}: {} {}", whole.0, one.0);
        let gradients = difference(&one.1, &whole.1);
        assert!(gradients <= 1e-5, "{name}: {gradients:e}");
        for (figure, value) in &whole.2 {
            assert!(
                (value - one.2[figure]).abs() <= 1e-5 * value.abs().max(1.0),
                "{name} {figure}"
            );
        }
    }
}

#[test]
fn gradients_are_differences_of_losses() {
    for (name, objective) in cases() {
        let batches = batches(&rows(&objective), usize::MAX);
        let (mut model, parameters) = adapted();
        let (_, gradient, _) = step((&mut model, &parameters), &objective, &batches);
        // Along the gradient itself the loss moves by the square of its length.
        let length = gradient.square().sum(Kind::Double).sqrt().double_value(&[]);
        // What KTO takes as given must not move.
        let measure = Measure::of(&objective, 0.0, &mut model, &batches, false).unwrap();
        let step = 1e-3 / length;
        let mut moved = |by: f64| {
            let mut flat = parameters.flat.detach();
            let _ = tch::no_grad(|| flat.f_add_(&(&gradient * by)).unwrap());
            let part = measure.part(&mut model, &batches[0]).unwrap().unwrap();
            let _ = tch::no_grad(|| flat.f_sub_(&(&gradient * by)).unwrap());
            assert!(part.graph.is_none());
            measure.mean(part.sum)
        };
        let found = (moved(step) - moved(-step)) / (2.0 * step);
        let expected = length * length;
        assert!((found / expected - 1.0).abs() < 5e-3, "{name}: {found} {expected}");
    }
}

#[test]
fn the_base_answers_as_if_there_were_no_adapter() {
    let objective = Objective::Dpo(serde_json::from_str("{}").unwrap());
    let batches = batches(&pairs("preference/pairs.safetensors"), usize::MAX);
    let figures = |model: &mut Decoder| {
        let measure = Measure::of(&objective, 0.0, model, &batches, false).unwrap();
        let part = measure.part(model, &batches[0]).unwrap().unwrap();
        measure.told(part.figures)
    };
    // Of a model without an adapter, both are the same, and no answer is rewarded.
    let plain = figures(&mut model("tiny-llama", Dtype::Float32));
    assert_eq!((plain["rewards/chosen"], plain["rewards/rejected"]), (0.0, 0.0));
    let (mut model, _) = adapted();
    let adapted = figures(&mut model);
    assert!(adapted["rewards/chosen"].abs() > 0.1);
    // The adapter is on again afterwards.
    assert_eq!(figures(&mut model), adapted);
}

#[test]
fn fifty_steps_of_dpo_are_those_of_trl() {
    let golden = Golden::open("preference/curve.safetensors");
    let losses = golden.numbers("losses");
    let rows = pairs("preference/curve.safetensors");
    let (mut model, mut parameters) = adapted();
    let adamw: Adamw = serde_json::from_str(r#"{"lr": 1e-3}"#).unwrap();
    let mut optimizer = Optimizer::new(&recipe::Optimizer::Adamw(adamw), &parameters).unwrap();
    let objective = Objective::Dpo(serde_json::from_str("{}").unwrap());
    let mut largest = 0.0f64;
    let steps = rows.chunks(2).cycle().take(losses.len());
    for (number, (rows, expected)) in steps.zip(&losses).enumerate() {
        let batches = batches(rows, 1);
        let (loss, mut gradient, _) = step((&mut model, &parameters), &objective, &batches);
        let apart = (loss / expected - 1.0).abs();
        assert!(apart <= CURVE, "step {}: {loss} {expected}", number + 1);
        largest = largest.max(apart);
        optimizer::clip(&mut gradient, 1.0).unwrap();
        optimizer.update(&mut parameters, &gradient, 1e-3).unwrap();
    }
    println!("{} steps: {largest:.1e}", losses.len());
}
