//! Quantised bases: the bits are those of bitsandbytes and Transformers, and so are the
//! numbers of whole models; see `tests/fixtures/README.md`.

use heirloom::base::{BaseFolder, Checkpoint};
use heirloom::recipe::{Dtype, Quantization, Storage};
use heirloom_engine::model::{Decoder, Weight, weights};
use heirloom_engine::quant::{Absmax, Fp8, Int8, Nf4, Quantized};
use tch::{Device, Kind, Tensor};

use crate::support::{Golden, difference, fixture, logits, mean_gradient, with_adapter};

const KINDS: [(&str, Kind); 2] = [("float32", Kind::Float), ("bfloat16", Kind::BFloat16)];

/// The bytes of a tensor, whatever it is of.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view(-1).view_dtype(Kind::Uint8)).unwrap()
}

struct Formats(Checkpoint);

impl Formats {
    fn open(file: &str) -> Self {
        Self(Checkpoint::open_file(&fixture(&format!("quantised/{file}"))).unwrap())
    }

    /// The names of the weights of a file, and the weights.
    fn weights(&self) -> Vec<(String, Tensor)> {
        let names = self.0.names().filter_map(|name| name.strip_prefix("weight."));
        let names: Vec<String> = names.map(str::to_owned).collect();
        let load = |name: String| {
            let weight = weights::load(&self.0, &format!("weight.{name}")).unwrap();
            (name, weight)
        };
        names.into_iter().map(load).collect()
    }

    /// Whether a tensor has the bytes that the reference gave it.
    #[track_caller]
    fn same(&self, name: &str, found: &Tensor) {
        let expected = self.0.get(name).unwrap_or_else(|| panic!("no `{name}`"));
        assert!(bytes(found) == expected.bytes, "{name}");
    }
}

#[test]
fn nf4_has_the_bits_of_bitsandbytes() {
    let golden = Formats::open("nf4.safetensors");
    let weights = golden.weights();
    assert_eq!(weights.len(), 11);
    for (name, weight) in weights {
        let plain = Nf4::pack(&weight).unwrap();
        golden.same(&format!("packed.{name}"), &plain.packed);
        golden.same(&format!("absmax.{name}"), &plain.absmax.unpack().unwrap());
        let double = Nf4::pack(&weight).unwrap().doubled().unwrap();
        let Absmax::Double { codes, scales, offset, table } = &double.absmax else {
            panic!("plain scales")
        };
        golden.same("table", table);
        golden.same(&format!("offset.{name}"), offset);
        golden.same(&format!("scales.{name}"), scales);
        golden.same(&format!("codes.{name}"), codes);
        if name == "many" {
            continue;
        }
        for (dtype, kind) in KINDS {
            golden.same(&format!("plain.{dtype}.{name}"), &plain.unpack(kind).unwrap());
            golden.same(&format!("double.{dtype}.{name}"), &double.unpack(kind).unwrap());
        }
    }
}

#[test]
fn int8_has_the_bits_of_bitsandbytes() {
    let golden = Formats::open("int8.safetensors");
    let weights = golden.weights();
    assert_eq!(weights.len(), 2);
    for (name, weight) in weights {
        let packed = Int8::pack(&weight).unwrap();
        golden.same(&format!("values.{name}"), &packed.values);
        golden.same(&format!("absmax.{name}"), &packed.absmax);
        for (dtype, kind) in KINDS {
            golden.same(&format!("{dtype}.{name}"), &packed.unpack(kind).unwrap());
        }
    }
}

#[test]
fn fp8_has_the_bits_of_transformers() {
    let golden = Formats::open("fp8.safetensors");
    let weights = golden.weights();
    assert_eq!(weights.len(), 3);
    for (name, weight) in weights {
        let block = weights::load(&golden.0, &format!("block.{name}")).unwrap();
        let block = (block.int64_value(&[0]), block.int64_value(&[1]));
        let packed = match block.0 {
            1 => Fp8::pack_rows(&weight).unwrap(),
            _ => Fp8::pack_blocks(&weight, block).unwrap(),
        };
        golden.same(&format!("values.{name}"), &packed.values);
        golden.same(&format!("scales.{name}"), &packed.scales);
        for (dtype, kind) in KINDS {
            golden.same(&format!("{dtype}.{name}"), &packed.unpack(kind).unwrap());
        }
    }
}

/// Computed in float32.
fn storage(quantization: Quantization, unquantized: &[&str]) -> Storage {
    let unquantized = unquantized.iter().map(|name| (*name).to_owned()).collect();
    Storage { dtype: Dtype::Float32, quantization, unquantized }
}

fn open(folder: &str, storage: &Storage) -> Decoder {
    let base = BaseFolder::open(&fixture(folder), false).unwrap();
    Decoder::open_as(&base, storage, Device::Cpu).unwrap()
}

#[test]
fn logits_and_gradients_over_quantised_bases_equal_the_reference() {
    let kept = ["lm_head", "model.layers.0", "down_proj"];
    for (file, quantization, unquantized) in [
        ("nf4", Quantization::Nf4, [].as_slice()),
        ("nf4-double", Quantization::Nf4Double, &[]),
        ("nf4-unquantized", Quantization::Nf4, &kept),
        ("int8", Quantization::Int8, &[]),
        ("fp8", Quantization::Fp8, &[]),
    ] {
        let golden = Golden::open(&format!("quantised/tiny-llama.{file}.safetensors"));
        let model = open("tiny-llama", &storage(quantization, unquantized));
        let quantised = model.linears().filter(|l| matches!(l.weight, Weight::Quantized(_)));
        assert_eq!(quantised.count(), if unquantized.is_empty() { 14 } else { 6 }, "{file}");
        let (model, parameters) = with_adapter(model, &fixture("lora-all-linear/adapter"));
        let batch = golden.packed();
        let found = tch::no_grad(|| logits(&model, &batch));
        let apart = difference(&found, &golden.logits("logits."));
        assert!(apart <= 1e-5, "{file} logits: {apart:e}");
        let (loss, gradient) = mean_gradient(&model, &parameters, &batch);
        let expected = golden.numbers("loss")[0];
        assert!((loss / expected - 1.0).abs() <= 1e-5, "{file} loss");
        for (key, found) in parameters.split(&gradient) {
            let apart = difference(&found, &golden.tensor(&format!("grad.{key}")));
            assert!(apart <= 1e-4, "{file} gradient of {key}: {apart:e}");
        }
    }
}

/// A model with the weights of another, unpacked.
fn unpacked(folder: &str, storage: &Storage) -> Decoder {
    let base = BaseFolder::open(&fixture(folder), false).unwrap();
    let layers = base.architecture.quantizable_layers();
    Decoder::build(&base.architecture, Kind::Float, |name, _| {
        let checkpoint = base.checkpoint().unwrap();
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let weight = weights::load_as(checkpoint, name, Kind::Float)?;
        Ok(match layers.iter().any(|each| each.name == layer) {
            true => {
                let packed = Quantized::pack(&weight, storage.quantization)?.unwrap();
                packed.unpack(Kind::Float)?.into()
            }
            false => weight.into(),
        })
    })
    .unwrap()
}

#[test]
fn experts_are_quantised_where_each_has_its_own_weights() {
    for (family, matrices) in [("qwen3_moe", true), ("deepseek_v2", true), ("gpt_oss", false)] {
        let folder = format!("families/{family}");
        let storage = storage(Quantization::Nf4, &[]);
        let base = BaseFolder::open(&fixture(&folder), false).unwrap();
        let all = base.architecture.quantizable_layers().len();
        assert_eq!(all > base.architecture.linear_layers().len(), matrices, "{family}");
        let golden = Golden::open(&format!("{folder}/golden.safetensors"));
        let batch = golden.packed();
        let adapter = fixture(&format!("{folder}/adapter"));
        let (packed, parameters) = with_adapter(open(&folder, &storage), &adapter);
        let (dense, same) = with_adapter(unpacked(&folder, &storage), &adapter);
        let (ours, gradient) = mean_gradient(&packed, &parameters, &batch);
        let (expected, plain) = mean_gradient(&dense, &same, &batch);
        assert_eq!(ours, expected, "{family}");
        assert!(difference(&gradient, &plain) <= 1e-6, "{family}");
    }
}

#[test]
fn a_checkpoint_in_fp8_is_taken_as_it_is() {
    let folder = "stored/deepseek_v3-fp8";
    let golden = Golden::open(&format!("{folder}/golden.safetensors"));
    let model = open(folder, &storage(Quantization::Fp8, &[]));
    let found = tch::no_grad(|| logits(&model, &golden.packed()));
    let apart = difference(&found, &golden.tensor("logits.0"));
    assert!(apart <= 1e-5, "{apart:e}");
    let blocks = model.linears().filter_map(|linear| match &linear.weight {
        Weight::Quantized(packed) => match &**packed {
            Quantized::Fp8(weight) => Some(weight.block),
            _ => None,
        },
        Weight::Dense(_) => None,
    });
    let blocks: Vec<_> = blocks.collect();
    assert_eq!(blocks.len(), model.linears().count());
    assert!(blocks.iter().all(|block| *block == (16, 16)), "{blocks:?}");
}
