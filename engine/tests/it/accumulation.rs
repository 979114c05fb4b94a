//! How conversations are spread over micro-batches, windows and padding does not change the
//! gradient, whatever their lengths: it is that of the mean over all trained tokens.

use heirloom::base::BaseFolder;
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::Dtype;
use heirloom_engine::model::{Decoder, weights};
use heirloom_engine::train::loss;
use heirloom_engine::train::parameters::Parameters;
use tch::{Device, Kind, Tensor};

use crate::support::{fixture, model, with_adapter};

/// The bar for gradients in f32, relative to their length.
const SAME: f64 = 1e-5;

/// Lengths of eight conversations: alike, of all kinds, one far longer, and the least.
const LENGTHS: [[usize; 8]; 5] = [
    [16; 8],
    [2, 3, 5, 9, 17, 33, 64, 120],
    [200, 3, 3, 3, 3, 3, 3, 3],
    [2, 2, 2, 2, 2, 2, 2, 2],
    [61, 7, 128, 31, 2, 90, 15, 44],
];

/// A conversation: tokens, and the weight of each in the loss.
type Conversation = (Vec<u32>, Vec<f32>);

fn conversations(lengths: [usize; 8]) -> Vec<Conversation> {
    // Any numbers that do not repeat soon.
    let draw = |number: usize| (number * number * 31 + number * 7 + 3) % 1009;
    let conversation = |(place, length): (usize, usize)| {
        let token = |at: usize| (draw(place * 211 + at) % 97) as u32;
        // Of some conversations the first half is the prompt, and some messages count twice.
        let weight = |at: usize| match at {
            0 => 0.0,
            _ if place % 2 == 1 && at < length / 2 => 0.0,
            _ if place % 3 == 2 => 2.0,
            _ => 1.0,
        };
        ((0..length).map(token).collect(), (0..length).map(weight).collect())
    };
    lengths.into_iter().enumerate().map(conversation).collect()
}

/// Conversations in one micro-batch.
fn together(conversations: &[&Conversation]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (tokens, weights) in conversations {
        batch.tokens.extend(tokens);
        batch.weights.extend(weights);
        batch.lengths.push(tokens.len() as u32);
    }
    batch
}

/// As long as the longest, with tokens that nothing is to be learnt from.
fn padded(conversations: &[Conversation]) -> Vec<Conversation> {
    let longest = conversations.iter().map(|(tokens, _)| tokens.len()).max().unwrap();
    let pad = |(mut tokens, mut weights): Conversation| {
        tokens.resize(longest, 1);
        weights.resize(longest, 0.0);
        (tokens, weights)
    };
    conversations.iter().cloned().map(pad).collect()
}

/// The mean loss of a step of these micro-batches, and its gradient, as the trainer adds it up.
fn step(model: &Decoder, parameters: &Parameters, batches: &[MicroBatch]) -> (f64, Tensor) {
    let weight: f64 = batches.iter().map(MicroBatch::weight).sum();
    let gradient = parameters.zero_gradient().unwrap();
    let mut mean = 0.0;
    for batch in batches {
        let Some(sum) = loss::sum(model, batch, true, 0.1).unwrap() else { continue };
        mean += sum.double_value(&[]) / weight;
        parameters.add_gradient(&(sum / weight), &gradient).unwrap();
    }
    (mean, gradient)
}

fn shapes(conversations: &[Conversation]) -> Vec<(&'static str, Vec<MicroBatch>)> {
    let all: Vec<&Conversation> = conversations.iter().collect();
    let backwards: Vec<&Conversation> = all.iter().rev().copied().collect();
    let padded = padded(conversations);
    let wide: Vec<&Conversation> = padded.iter().collect();
    let each = |all: &[&Conversation]| all.iter().map(|one| together(&[one])).collect();
    let by = |all: &[&Conversation], count| all.chunks(count).map(together).collect();
    vec![
        ("8 × 1", each(&all)),
        ("2 × 4", by(&all, 4)),
        ("3, 3 and 2, backwards", by(&backwards, 3)),
        ("1 × 8, padded", vec![together(&wide)]),
        ("8 × 1, padded", each(&wide)),
        ("4 × 2, padded", by(&wide, 2)),
    ]
}

fn length(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).norm().double_value(&[])
}

fn check(name: &str, model: &Decoder, parameters: &Parameters) {
    for lengths in LENGTHS {
        let conversations = conversations(lengths);
        let packed = together(&conversations.iter().collect::<Vec<_>>());
        let (loss, gradient) = step(model, parameters, &[packed]);
        assert!(length(&gradient) > 0.0);
        for (shape, batches) in shapes(&conversations) {
            let (found, other) = step(model, parameters, &batches);
            let apart = length(&(&other - &gradient)) / length(&gradient);
            assert!((found / loss - 1.0).abs() <= SAME, "{name} {shape}: {found} {loss}");
            assert!(apart <= SAME, "{name} {shape} {lengths:?}: {apart:e}");
        }
    }
}

#[test]
fn batches_packing_and_padding_do_not_change_the_gradient_of_an_adapter() {
    let folder = fixture("lora-all-linear/adapter");
    let (model, parameters) = with_adapter(model("tiny-llama", Dtype::Float32), &folder);
    check("LoRA", &model, &parameters);
}

#[test]
fn batches_packing_and_padding_do_not_change_the_gradient_of_all_weights() {
    for name in ["tiny-llama", "tiny-llama-tied-sharded"] {
        let base = BaseFolder::open(&fixture(name), false).unwrap();
        let load = |(name, _): (String, Vec<usize>)| {
            let tensor = weights::load_as(base.checkpoint().unwrap(), &name, Kind::Float).unwrap();
            (name, tensor)
        };
        let initial = base.architecture.tensors().into_iter().map(load).collect();
        let parameters = Parameters::new(initial, Device::Cpu).unwrap();
        let get = |name: &str, _: &[usize]| Ok(parameters.get(name).unwrap().into());
        let model = Decoder::build(&base.architecture, Kind::Float, get).unwrap();
        check(name, &model, &parameters);
    }
}
