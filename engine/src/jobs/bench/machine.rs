//! What the machine is and can do.
//!
//! Owns the measured rate of matrix products, against which a step is held, and the words by
//! which two measurements can be told to be comparable.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use fs_err as fs;
use heirloom::job::Device;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::device;
use crate::error::Result;

/// Width and height of the matrices: large enough to run at full rate, small enough to stay in
/// a processor's caches.
const SIZE: i64 = 1024;
/// The same on a device, which needs more to be busy.
const DEVICE_SIZE: i64 = 8192;
/// Products are repeated for so long, and at least so often.
const LONG_ENOUGH: Duration = Duration::from_millis(500);
const OFTEN_ENOUGH: usize = 5;

/// Instructions that matrix products hang on, by their names in `/proc/cpuinfo`.
const FEATURES: [&str; 9] =
    ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm"];

/// Switches that take instructions away from oneDNN or libtorch.
const SWITCHES: [&str; 3] = ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"];

/// The rate of matrix products.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct MatrixRate {
    /// Billions of floating-point operations a second: the most, since whatever else runs can
    /// only take some away.
    pub(super) gflops: f64,
    /// By its name in PyTorch.
    pub(super) dtype: &'static str,
    /// Of square matrices.
    pub(super) size: i64,
}

impl fmt::Display for MatrixRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} GFLOP/s in {}", self.gflops, self.dtype)
    }
}

/// Measures products as a linear layer makes them.
pub(super) fn matrix_rate(kind: Kind, device: tch::Device) -> Result<MatrixRate> {
    let size = if device == tch::Device::Cpu { SIZE } else { DEVICE_SIZE };
    let draw = || -> Result<Tensor> {
        Ok(Tensor::f_randn([size, size], (Kind::Float, device))?.f_to_kind(kind)?)
    };
    let (x, weight) = (draw()?, draw()?);
    let began = Instant::now();
    let (mut products, mut fastest) = (0, f64::INFINITY);
    while products < OFTEN_ENOUGH || began.elapsed() < LONG_ENOUGH {
        device::finish(device);
        let began = Instant::now();
        let _product = tch::no_grad(|| x.f_linear(&weight, None::<Tensor>))?;
        device::finish(device);
        fastest = began.elapsed().as_secs_f64().min(fastest);
        products += 1;
    }
    let operations = 2.0 * (size as f64).powi(3);
    let dtype = if kind == Kind::BFloat16 { "bfloat16" } else { "float32" };
    Ok(MatrixRate { gflops: operations / fastest.max(1e-9) / 1e9, dtype, size })
}

/// What two measurements must share to be compared.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cpu_features: Vec<&'static str>,
    /// Switches that are set.
    environment: BTreeMap<&'static str, String>,
    threads: i32,
    /// Where the steps were computed.
    device: Device,
    /// Programs that ran or wanted to, in the minute before.
    load_average: Option<f64>,
    versions: BTreeMap<&'static str, &'static str>,
}

impl Machine {
    /// Whether the processor computes.
    pub(super) fn is_processor(&self) -> bool {
        self.device == Device::Cpu
    }

    pub(super) fn look(device: Device) -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |names: [&str; 2]| {
            let line = text.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
            line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        let known: Vec<&str> = value(["flags", "Features"]).split_whitespace().collect();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let set = |name: &'static str| Some((name, std::env::var(name).ok()?));
        Self {
            cpu: value(["model name", "CPU part"]).to_owned(),
            cpu_features: FEATURES.into_iter().filter(|name| known.contains(name)).collect(),
            environment: SWITCHES.into_iter().filter_map(set).collect(),
            threads: tch::get_num_threads(),
            device,
            load_average: load.split_whitespace().next().and_then(|word| word.parse().ok()),
            versions: [("heirloom", heirloom::VERSION), ("libtorch", crate::LIBTORCH)].into(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        write!(f, "{}, {} {threads}", self.cpu, self.threads)?;
        let matrix_units = self.cpu_features.contains(&"amx_bf16");
        f.write_str(if matrix_units { ", AMX" } else { ", no AMX" })?;
        if !self.is_processor() {
            write!(f, ", {}", self.device)?;
        }
        for (name, value) in &self.environment {
            write!(f, ", {name}={value}")?;
        }
        let load = self.load_average.map(|load| format!("; load average {load:.2} before"));
        f.write_str(&load.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_dtype_that_is_asked_about() {
        let rate = matrix_rate(Kind::Float, tch::Device::Cpu).unwrap();
        assert!(rate.gflops.is_finite() && rate.gflops > 0.0, "{rate:?}");
        assert_eq!((rate.dtype, rate.size), ("float32", SIZE));
    }

    #[test]
    fn the_machine_says_what_it_is() {
        let machine = Machine::look(Device::Cpu);
        assert!(machine.threads >= 1);
        let text = machine.to_string();
        assert!(text.contains("thread") && text.contains("AMX"), "{text}");
    }
}
