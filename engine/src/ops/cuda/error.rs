//! What can go wrong between a job and its kernel.

use heirloom::diagnose::{Blame, Diagnose};

/// Errors of CUDA.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library of CUDA cannot be opened.
    #[error("`{library}` cannot be opened")]
    NoLibrary {
        /// Its name.
        library: &'static str,
    },
    /// NVRTC refused a source of ours.
    #[error("the kernels in `{file}` cannot be compiled for sm_{architecture}: {log}")]
    Compile {
        /// The file in `engine/cuda`.
        file: String,
        /// Compute capability, as NVRTC names it.
        architecture: String,
        /// What NVRTC says.
        log: String,
    },
    /// A call of the driver failed.
    #[error("{doing} failed with `{code}`")]
    Driver {
        /// What was being done.
        doing: String,
        /// The driver's name of the error.
        code: String,
    },
    /// libtorch does not tell which stream it computes on.
    #[error("libtorch gives no stream of `cuda:{index}`: {reason}")]
    NoStream {
        /// The device.
        index: usize,
        /// What libtorch says.
        reason: String,
    },
    /// Tensors on a device that has neither loops nor kernels.
    #[error("there are no kernels for the device `{device}`")]
    Elsewhere {
        /// As tch calls it.
        device: String,
    },
    /// The emulated device of the tests found a kernel at fault.
    #[cfg(test)]
    #[error("`{kernel}`: {reason}")]
    Emulated {
        /// Its name.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
}

impl Diagnose for CudaError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoLibrary { .. } | Self::NoStream { .. } => {
                "install the driver and the libraries that `scripts/libtorch-cuda.txt` lists; with \
                 `HEIRLOOM_OPS=reference` no kernels are compiled"
            }
            Self::Compile { .. } => {
                "please report this as a defect; with `HEIRLOOM_OPS=reference` no kernels are \
                 compiled"
            }
            Self::Driver { .. } => {
                "if the device ran out of memory, lower `train.micro_batch_tokens`; otherwise \
                 please report this as a defect"
            }
            _ => "please report this as a defect",
        };
        Some(hint.to_owned())
    }

    fn blame(&self) -> Blame {
        match self {
            Self::NoLibrary { .. } | Self::NoStream { .. } => Blame::User,
            _ => Blame::Defect,
        }
    }
}
