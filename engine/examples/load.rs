//! Loads the weights of a model folder and says how much memory that took at most:
//! `load BASE float32|bfloat16 [nf4|nf4-double|int8|fp8]`. For measuring; prints bytes as JSON.

use std::time::Instant;

use heirloom::base::BaseFolder;
use heirloom::recipe::{Dtype, Quantization, Storage};
use heirloom_engine::memory;
use heirloom_engine::model::{Decoder, weights};
use tch::{Device, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: load BASE float32|bfloat16")?;
    let words = "the dtype is float32 or bfloat16";
    let dtype: Dtype = word(&arguments.next().ok_or(words)?)?;
    let quantization: Quantization = word(arguments.next().as_deref().unwrap_or("none"))?;
    let kind = weights::kind(dtype);
    // As the engine does.
    memory::use_blocks();
    // What libtorch itself takes, its first tensor included.
    let _first = Tensor::f_zeros([1], (kind, Device::Cpu))?;
    let before = resident("VmRSS:")?;
    let started = Instant::now();
    let base = BaseFolder::open(folder.as_ref(), false)?;
    let storage = Storage { quantization, ..Storage::plain(dtype) };
    let _model = Decoder::open_as(&base, &storage, Device::Cpu)?;
    let seconds = started.elapsed().as_secs_f64();
    let model = base.architecture.parameter_count() * kind.elt_size_in_bytes() as u64;
    let after = resident("VmRSS:")?;
    let peak = resident("VmHWM:")?;
    let over = (peak - before) as f64 / model as f64;
    let report = serde_json::json!({
        "model_bytes": model,
        "before_bytes": before,
        "after_bytes": after,
        "peak_bytes": peak,
        "peak_beyond_start_over_model": over,
        "seconds": seconds,
    });
    heirloom::cli::printer::Printer::Normal.data(&report.to_string())?;
    Ok(())
}

/// A word of the recipe.
fn word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(word.into())
}

/// Memory that this process has resident, or had at most, in bytes; pages of mapped files count.
fn resident(what: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
