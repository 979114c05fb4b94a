//! Distillation against TRL's numbers (`tests/fixtures/distillation`), and against itself.

use std::path::Path;

use heirloom::base::BaseFolder;
use heirloom::dataset::logits::{Header, Said, Writer, key_of};
use heirloom::dataset::stream::MicroBatch;
use heirloom::recipe::{self, Dtype, Quantization, Storage, Teacher};
use heirloom_engine::model::Decoder;
use heirloom_engine::ops::reference;
use heirloom_engine::train::distillation::Distillation;
use heirloom_engine::train::loss;
use heirloom_engine::train::parameters::Parameters;
use serde_json::json;
use tch::{Device, Tensor};

use crate::support::{Golden, difference, fixture, model, with_adapter};

/// The bar for losses and gradients.
const SAME: f64 = 1e-4;

/// Names of the cases whose teacher is there as a whole.
const CASES: [&str; 7] =
    ["forward", "reverse", "between", "forward-warm", "reverse-cool", "between-warm", "ratio"];

fn golden() -> Golden {
    Golden::open("distillation/golden.safetensors")
}

fn settings([beta, temperature, kd_ratio]: [f64; 3]) -> recipe::Distillation {
    let teacher = Teacher {
        model: fixture("distillation/teacher"),
        dtype: Dtype::Float32,
        quantization: Quantization::None,
        unquantized: Vec::new(),
    };
    recipe::Distillation { teacher: Some(teacher), logits: None, beta, temperature, kd_ratio }
}

fn student() -> (Decoder, Parameters) {
    with_adapter(model("tiny-llama", Dtype::Float32), &fixture("lora-all-linear/adapter"))
}

/// The mean loss over the batches and its gradient.
fn learned(
    distillation: &Distillation,
    (model, parameters): &(Decoder, Parameters),
    batches: &[MicroBatch],
) -> (f64, Tensor) {
    let gradient = parameters.zero_gradient().unwrap();
    let weight: f64 = batches.iter().map(MicroBatch::weight).sum();
    let mut total = 0.0;
    for batch in batches {
        let Some(sum) = distillation.sum(model, batch, true, 0.0).unwrap() else { continue };
        let mean = sum / weight;
        total += mean.double_value(&[]);
        parameters.add_gradient(&mean, &gradient).unwrap();
    }
    (total, gradient)
}

#[test]
fn losses_and_gradients_equal_trl() {
    let (golden, student) = (golden(), student());
    for case in CASES {
        let words = golden.numbers(&format!("{case}.settings"));
        let settings = settings([words[0], words[1], words[2]]);
        let distillation = Distillation::open(&settings, Device::Cpu).unwrap();
        let check = || {
            let (of_loss, of_gradients) = apart(&golden, case, &student, &distillation);
            assert!(of_loss <= SAME && of_gradients <= SAME, "{case} {of_loss} {of_gradients}");
            println!("{case}: loss {of_loss:.1e}, gradients {of_gradients:.1e}");
        };
        check();
        reference::only(check);
    }
}

/// What the teacher said is written, read and learned from: as PyTorch does by itself.
#[test]
fn losses_and_gradients_of_the_most_likely_tokens_equal_pytorch() {
    let (golden, student) = (golden(), student());
    let batch = golden.packed();
    let folder = tempfile::tempdir().unwrap();
    for case in ["top-forward", "top-reverse", "top-between"] {
        let words = golden.numbers(&format!("{case}.settings"));
        let (top_k, path) = (words[3] as usize, folder.path().join(case));
        let settings = settings([words[0], words[1], words[2]]);
        let live = Distillation::open(&settings, Device::Cpu).unwrap();
        store(&path, &batch, &live.say(&batch, top_k, 97).unwrap(), top_k);
        let settings = recipe::Distillation { logits: Some(path), ..settings };
        let stored = Distillation::open(&settings, Device::Cpu).unwrap();
        let (of_loss, of_gradients) = apart(&golden, case, &student, &stored);
        println!("{case}: loss {of_loss:.1e}, gradients {of_gradients:.1e}");
        assert!(of_loss <= SAME && of_gradients <= SAME, "{case} {of_loss} {of_gradients}");
        // Another mask is another document.
        let mut other = batch.clone();
        let one = other.weights.iter().position(|weight| *weight > 0.0).unwrap();
        other.weights[one] = 0.0;
        assert!(stored.sum(&student.0, &other, true, 0.0).is_err());
    }
}

fn store(path: &Path, batch: &MicroBatch, said: &[Said], top_k: usize) {
    let header = Header {
        version: Header::version(),
        heirloom: heirloom::VERSION.to_owned(),
        teacher: serde_json::from_value(json!({
            "name": "teacher", "uri": "teacher", "licence": { "hub": "unknown" }, "files": [],
        }))
        .unwrap(),
        storage: Storage::default(),
        temperature: 1.0,
        top_k,
        vocabulary: 97,
        words: Default::default(),
        settings: Default::default(),
        data: Vec::new(),
    };
    heirloom::files::write_atomically_with(path, |file| {
        let mut writer = Writer::new(file, &header).unwrap();
        for (document, said) in documents(batch).iter().zip(said) {
            let key = key_of(&document.tokens, &document.weights);
            writer.push("row", key, said).unwrap();
        }
        writer.finish().unwrap();
        Ok(())
    })
    .unwrap();
}

/// The documents of a batch, each by itself.
fn documents(whole: &MicroBatch) -> Vec<MicroBatch> {
    let mut start = 0;
    let document = |length: &u32| {
        let range = start..start + *length as usize;
        start = range.end;
        MicroBatch {
            tokens: whole.tokens[range.clone()].to_vec(),
            weights: whole.weights[range].to_vec(),
            lengths: vec![*length],
            ..MicroBatch::default()
        }
    };
    whole.lengths.iter().map(document).collect()
}

/// How far loss and gradients of a case lie from the golden ones.
fn apart(
    golden: &Golden,
    case: &str,
    student: &(Decoder, Parameters),
    distillation: &Distillation,
) -> (f64, f64) {
    let (loss, gradient) = learned(distillation, student, &[golden.packed()]);
    let expected = golden.numbers(&format!("{case}.loss"))[0];
    let found = student.1.split(&gradient);
    let apart =
        found.map(|(key, found)| difference(&found, &golden.tensor(&format!("{case}.grad.{key}"))));
    let gradients: Vec<f64> = apart.collect();
    assert_eq!(golden.names(&format!("{case}.grad.")).len(), gradients.len());
    ((loss / expected - 1.0).abs(), gradients.into_iter().fold(0.0, f64::max))
}

/// Documents by themselves, two at a time, all together: the same gradient.
#[test]
fn micro_batches_do_not_change_the_gradient() {
    let (golden, student) = (golden(), student());
    let whole = golden.packed();
    let alone = documents(&whole);
    for words in [[0.0, 1.0, 1.0], [1.0, 2.0, 0.5], [0.3, 0.5, 1.0]] {
        let distillation = Distillation::open(&settings(words), Device::Cpu).unwrap();
        let (loss, gradient) = learned(&distillation, &student, std::slice::from_ref(&whole));
        let (apart, by_itself) = learned(&distillation, &student, &alone);
        assert!((loss / apart - 1.0).abs() < 1e-6, "{loss} {apart}");
        assert!(difference(&by_itself, &gradient) < 1e-5);
    }
}

/// Without a trained token there is nothing to learn, and a row without weight says nothing.
#[test]
fn rows_without_weight_teach_nothing() {
    let (golden, student) = (golden(), student());
    let distillation = Distillation::open(&settings([0.0, 1.0, 1.0]), Device::Cpu).unwrap();
    let mut batch = golden.packed();
    let (loss, _) = learned(&distillation, &student, std::slice::from_ref(&batch));
    let mut double = batch.clone();
    double.weights.iter_mut().for_each(|weight| *weight *= 2.0);
    let (doubled, _) = learned(&distillation, &student, &[double]);
    assert!((loss / doubled - 1.0).abs() < 1e-6);
    batch.weights.iter_mut().for_each(|weight| *weight = 0.0);
    assert!(distillation.sum(&student.0, &batch, true, 0.0).unwrap().is_none());
}

/// A student that is its teacher has nothing to learn; packed weights and bfloat16 teach nearly
/// what plain ones do.
#[test]
fn a_teacher_in_few_bits_teaches_nearly_the_same() {
    let (golden, student) = (golden(), student());
    let batch = [golden.packed()];
    let of = |teacher: Teacher| {
        let teacher = Some(teacher);
        let settings = recipe::Distillation { teacher, ..settings([0.0, 1.0, 1.0]) };
        let distillation = Distillation::open(&settings, Device::Cpu).unwrap();
        learned(&distillation, &student, &batch).0
    };
    let plain = settings([0.0, 1.0, 1.0]).teacher.unwrap();
    let exact = of(plain.clone());
    for (quantization, dtype, bar) in [
        (Quantization::Nf4, Dtype::Float32, 0.1),
        (Quantization::Int8, Dtype::Float32, 0.02),
        (Quantization::None, Dtype::Bfloat16, 0.02),
    ] {
        let loss = of(Teacher { quantization, dtype, ..plain.clone() });
        let apart = (loss / exact - 1.0).abs();
        assert!(apart > 0.0 && apart < bar, "{quantization:?} {dtype:?}: {apart}");
    }
    let own =
        Decoder::open(&BaseFolder::open(&fixture("tiny-llama"), false).unwrap(), Dtype::Float32);
    let distillation = Distillation::new(own.unwrap(), &settings([0.0, 1.0, 1.0]));
    let bare = model("tiny-llama", Dtype::Float32);
    let sum = distillation.sum(&bare, &batch[0], false, 0.0).unwrap().unwrap();
    assert!(sum.double_value(&[]).abs() < 1e-4);
}

/// With a share of nothing but the rows, the loss is that of supervised training.
#[test]
fn the_rest_of_the_share_is_the_cross_entropy() {
    let (golden, student) = (golden(), student());
    let batch = golden.packed();
    let of = |kd_ratio| {
        let distillation = Distillation::open(&settings([0.5, 2.0, kd_ratio]), Device::Cpu);
        learned(&distillation.unwrap(), &student, std::slice::from_ref(&batch)).0
    };
    let rows = loss::nll_sum(&student.0, &batch, true).unwrap().unwrap() / batch.weight();
    let mixed = 0.25 * of(1.0) + 0.75 * rows.double_value(&[]);
    assert!((of(0.25) / mixed - 1.0).abs() < 1e-6);
}
