//! CUDA: the kernels of `engine/cuda`, compiled where they run and launched among libtorch's
//! own.
//!
//! Owns which kernels there are and how a job reaches one: [`compile`] makes machine code of
//! their source with NVRTC, [`driver`] loads and launches it, on the stream and the memory
//! that libtorch computes with. Does not own what the jobs are: those are the ones that the
//! loops of the shim get on the CPU ([`super::loops`], `crate::quant`), which makes one set of
//! checks and one set of tests serve both.
//!
//! Written and proven on the CPU: every kernel is compiled by NVRTC in tests, and its source
//! runs on an emulated device there (`engine/tests/cuda`).

#[cfg(test)]
pub(crate) mod backends;
mod compile;
mod driver;
#[cfg(test)]
pub(crate) mod emulated;
mod error;
#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};

pub(crate) use driver::capability;
pub use error::CudaError;

use crate::error::Result;

/// What every source begins with.
const NUMBERS: &str = include_str!("../../../cuda/numbers.cuh");

/// Threads of a block where nothing asks for another number: enough to hide what memory takes,
/// few enough for several blocks at once.
pub(crate) const THREADS: u32 = 256;
/// The most that a block may have.
pub(crate) const MOST_THREADS: u32 = 1024;
/// Threads that go together.
const WARP: i64 = 32;
/// Elements that a thread takes at once, roughly.
const AT_ONCE: i64 = 4;
/// Blocks of a kernel that takes elements in turns: some for each of the multiprocessors of the
/// largest devices.
const MOST_BLOCKS: i64 = 132 * 16;

/// A file of `engine/cuda`.
#[derive(Debug)]
pub(crate) struct Source {
    /// Without its ending.
    name: &'static str,
    text: &'static str,
}

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!(concat!("../../../cuda/", $name, ".cu")) }
    };
}

static RMS_NORM_SOURCE: Source = source!("rms_norm");
static ROTARY_SOURCE: Source = source!("rotary");
static GATED_SOURCE: Source = source!("gated");
static ADAMW_SOURCE: Source = source!("adamw");
static CROSS_ENTROPY_SOURCE: Source = source!("cross_entropy");
static NF4_SOURCE: Source = source!("nf4");
static BYTES_SOURCE: Source = source!("bytes");
static FP8_ROWS_SOURCE: Source = source!("fp8_rows");

/// A function in a source, one for each dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    source: &'static Source,
    /// Without the dtype.
    name: &'static str,
}

macro_rules! kernels {
    ($($constant:ident = $source:ident, $name:literal;)*) => {
        $(pub(crate) const $constant: Kernel = Kernel { source: &$source, name: $name };)*
    };
}

kernels! {
    RMS_NORM = RMS_NORM_SOURCE, "rms_norm";
    RMS_NORM_BACKWARD = RMS_NORM_SOURCE, "rms_norm_backward";
    RMS_NORM_WEIGHT = RMS_NORM_SOURCE, "rms_norm_weight";
    ROTATE = ROTARY_SOURCE, "rotate";
    GATED = GATED_SOURCE, "gated";
    GATED_BACKWARD = GATED_SOURCE, "gated_backward";
    ADAMW = ADAMW_SOURCE, "adamw";
    CROSS_ENTROPY = CROSS_ENTROPY_SOURCE, "cross_entropy";
    NF4 = NF4_SOURCE, "nf4";
    INT8 = BYTES_SOURCE, "int8";
    E4M3 = BYTES_SOURCE, "e4m3";
    FP8_ROWS = FP8_ROWS_SOURCE, "fp8_rows";
}

/// How many threads do a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    blocks: u32,
    threads: u32,
}

/// So many blocks; more than a grid can have would not fit into any memory.
fn blocks(count: i64) -> u32 {
    count.clamp(0, i64::from(i32::MAX)) as u32
}

fn ceil_div(number: i64, by: i64) -> i64 {
    (number + by - 1) / by
}

impl Grid {
    /// A block for each row, of at most so many threads: a few elements for each at least.
    pub(crate) fn rows(rows: i64, width: i64, most: u32) -> Self {
        let warps = ceil_div(width, AT_ONCE * WARP).clamp(1, i64::from(most) / WARP);
        Self { blocks: blocks(rows), threads: (warps * WARP) as u32 }
    }

    /// A block for as many columns as a warp has threads.
    pub(crate) fn columns(width: i64) -> Self {
        Self { blocks: blocks(ceil_div(width, WARP)), threads: MOST_THREADS }
    }

    /// Threads that take so many elements in turns, some of them at once.
    pub(crate) fn elements(count: i64) -> Self {
        let wanted = ceil_div(ceil_div(count, AT_ONCE), i64::from(THREADS));
        Self { blocks: blocks(wanted.min(MOST_BLOCKS)), threads: THREADS }
    }
}

/// Who computes with tensors that lie on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The loops of the shim.
    Loops,
    /// The kernels, on the device of this number.
    Kernels(usize),
    /// The kernels on the processor.
    #[cfg(test)]
    Emulated,
}

/// Who computes with what lies there; nobody but libtorch's own calls where `None`.
pub(crate) fn by(device: Device) -> Option<By> {
    match device {
        #[cfg(test)]
        Device::Cpu if emulated::asked() => Some(By::Emulated),
        Device::Cpu => Some(By::Loops),
        Device::Cuda(index) => Some(By::Kernels(index)),
        _ => None,
    }
}

/// Does a job with a loop or a kernel, as its tensors lie where `like` does.
///
/// # Safety
///
/// The loop and the kernel must take this job, and all that it points to must live until the
/// loop returns, lie on the device of `like`, and be as large as the job says. Memory that
/// libtorch gives back is given out again behind what was launched before on the same stream,
/// so tensors may be dropped after the launch.
#[expect(unsafe_code, reason = "jobs hold pointers to the memory of tensors")]
pub(crate) unsafe fn run<J>(
    like: &Tensor,
    job: &J,
    by_loop: impl FnOnce(&J) -> Result<()>,
    kernel: Kernel,
    kind: Kind,
    grid: Grid,
) -> Result<()> {
    let name = || format!("{}_{}", kernel.name, suffix(kind));
    match by(like.device()) {
        Some(By::Loops) => by_loop(job),
        #[cfg(test)]
        // SAFETY: as the caller promises.
        Some(By::Emulated) => unsafe { emulated::launch(&name(), grid, job) },
        // A grid without blocks cannot be launched: there is nothing to do.
        Some(_) if grid.blocks == 0 => Ok(()),
        // SAFETY: as the caller promises.
        Some(By::Kernels(index)) => {
            Ok(unsafe { driver::launch(index, kernel.source, &name(), grid, job) }?)
        }
        None => Err(CudaError::Elsewhere { device: format!("{:?}", like.device()) }.into()),
    }
}

/// What names of kernels end in.
fn suffix(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}

/// Whether kernels compute with this dtype.
pub(crate) fn known(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16)
}
