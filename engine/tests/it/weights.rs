//! Quantised weights: what is loaded equals what Transformers makes of the same bytes.

use heirloom::base::Checkpoint;
use heirloom_engine::model::weights;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use crate::support::{Golden, difference, fixture, logits, model};

/// The bits of a tensor: numbers that are none equal nothing, their bits do.
fn bits(tensor: &Tensor) -> Vec<i64> {
    let like = if tensor.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
    let flat = tensor.contiguous().view(-1).view_dtype(like);
    Vec::try_from(flat.to_kind(Kind::Int64)).unwrap()
}

/// Compares every tensor of a file with what the reference made of it; gives their names.
fn compare(file: &str) -> Vec<String> {
    let checkpoint = Checkpoint::open_file(&fixture(file)).unwrap();
    let expected = checkpoint.names().filter_map(|name| name.strip_prefix("float32."));
    let names: Vec<String> = expected.map(str::to_owned).collect();
    for name in &names {
        for (prefix, kind) in [("float32", Kind::Float), ("bfloat16", Kind::BFloat16)] {
            let expected = weights::load(&checkpoint, &format!("{prefix}.{name}")).unwrap();
            let found = weights::load_as(&checkpoint, name, kind).unwrap();
            assert_eq!((found.kind(), found.size()), (kind, expected.size()), "{name}");
            assert!(bits(&found) == bits(&expected), "{name} in {prefix}");
        }
        // As stored means in the dtype that the reference dequantises to.
        assert_eq!(weights::load(&checkpoint, name).unwrap().kind(), Kind::BFloat16);
    }
    names
}

#[test]
fn fp8_blocks_are_dequantised_bit_for_bit() {
    assert_eq!(compare("weights/fp8.safetensors").len(), 6);
}

#[test]
fn mxfp4_blocks_are_dequantised_bit_for_bit() {
    assert_eq!(compare("weights/mxfp4.safetensors"), ["mlp.experts.gate_up_proj"]);
}

#[test]
fn large_tensors_are_whole_although_they_are_read_in_pieces() {
    // More than a piece of a plain tensor, and more than a band of an fp8 one.
    let (rows, columns) = (3000, 1000);
    let values = Tensor::arange(rows * columns, (Kind::Float, tch::Device::Cpu));
    let plain = values.remainder(4099.0).view([rows, columns]);
    let weight = plain.remainder(7.0).to_kind(Kind::Float8e4m3fn);
    let bytes = |tensor: &Tensor| -> Vec<u8> {
        Vec::try_from(tensor.view(-1).view_dtype(Kind::Uint8)).unwrap()
    };
    let parts =
        [("plain", Dtype::F32, bytes(&plain)), ("eight.weight", Dtype::F8_E4M3, bytes(&weight))];
    let mut views = parts
        .each_ref()
        .map(|(name, dtype, bytes)| {
            (*name, TensorView::new(*dtype, vec![3000, 1000], bytes).unwrap())
        })
        .to_vec();
    let half = 0.5f32.to_le_bytes();
    views.push(("eight.weight_scale_inv", TensorView::new(Dtype::F32, vec![1, 1], &half).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    assert_eq!(weights::load(&checkpoint, "plain").unwrap(), plain);
    // Reading again what was given back reads the same.
    assert_eq!(weights::load_as(&checkpoint, "plain", Kind::Float).unwrap(), plain);
    let eight = weights::load_as(&checkpoint, "eight.weight", Kind::Float).unwrap();
    assert_eq!(eight, plain.remainder(7.0) * 0.5);
}

#[test]
fn models_with_quantised_weights_compute_what_transformers_computes() {
    for name in ["deepseek_v3-fp8", "gpt_oss-mxfp4"] {
        let model = model(&format!("stored/{name}"), heirloom::recipe::Dtype::Float32);
        let golden = Golden::open(&format!("stored/{name}/golden.safetensors"));
        let found = tch::no_grad(|| logits(&model, &golden.packed()));
        let apart = difference(&found, &golden.tensor("logits.0"));
        assert!(apart <= 1e-5, "{name}: {apart:e}");
    }
}
