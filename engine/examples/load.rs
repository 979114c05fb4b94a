//! Loads the weights of a model folder and says how much memory that took at most:
//! `load BASE float32|bfloat16`. For measuring; prints bytes as JSON.

use std::time::Instant;

use heirloom::base::BaseFolder;
use heirloom_engine::model::weights;
use tch::{Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: load BASE float32|bfloat16")?;
    let kind = match arguments.next().as_deref() {
        Some("float32") => Kind::Float,
        Some("bfloat16") => Kind::BFloat16,
        _ => return Err("the dtype is float32 or bfloat16".into()),
    };
    // What libtorch itself takes, its first tensor included.
    let _first = Tensor::f_zeros([1], (kind, tch::Device::Cpu))?;
    let before = peak()?;
    let started = Instant::now();
    let base = BaseFolder::open(folder.as_ref(), false)?;
    let checkpoint = base.checkpoint().ok_or("there are no weights")?;
    let mut tensors = Vec::new();
    for (name, _) in base.architecture.tensors() {
        tensors.push(weights::load_as(checkpoint, &name, kind)?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let model: usize = tensors.iter().map(|tensor| tensor.numel() * kind.elt_size_in_bytes()).sum();
    let peak = peak()?;
    let over = (peak - before) as f64 / model as f64;
    let report = serde_json::json!({
        "model_bytes": model,
        "before_bytes": before,
        "peak_bytes": peak,
        "peak_beyond_start_over_model": over,
        "seconds": seconds,
    });
    heirloom::cli::printer::Printer::Normal.data(&report.to_string())?;
    Ok(())
}

/// The most memory this process had resident, in bytes; pages of mapped files count.
fn peak() -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
