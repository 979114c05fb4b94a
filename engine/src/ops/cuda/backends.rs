//! Whom tests put to the test.
//!
//! The bodies of tests of operations take a [`Backend`]: one body serves the loops, the
//! kernels on the emulated device and, where `HEIRLOOM_TEST_DEVICE` names one, those on a
//! device.

use std::sync::OnceLock;

use heirloom::job;
use tch::{Device, Tensor};

use super::emulated;

/// A device as `--device` takes it: tests then run on that one, too.
const DEVICE_VARIABLE: &str = "HEIRLOOM_TEST_DEVICE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Loops,
    Emulated,
    Cuda(usize),
}

impl Backend {
    /// All that there are here.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Loops, Self::Emulated];
        all.extend(device().map(Self::Cuda));
        all
    }

    /// Where it takes tensors from.
    pub(crate) fn device(self) -> Device {
        match self {
            Self::Loops | Self::Emulated => Device::Cpu,
            Self::Cuda(index) => Device::Cuda(index),
        }
    }

    /// The tensor, where this one takes it from.
    pub(crate) fn take(self, tensor: &Tensor) -> Tensor {
        tensor.to(self.device())
    }

    /// Runs `work`, whose operations this one computes.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Loops | Self::Cuda(_) => work(),
            Self::Emulated => {
                let before = emulated::launched();
                let result = emulated::only(work);
                assert!(emulated::launched() > before, "nothing was launched");
                result
            }
        }
    }
}

/// The device that is asked for; one that cannot be opened is a failure.
pub(crate) fn device() -> Option<usize> {
    static FOUND: OnceLock<Option<usize>> = OnceLock::new();
    let find = || {
        let asked = std::env::var(DEVICE_VARIABLE).ok()?;
        match crate::device::open(asked.parse::<job::Device>().unwrap()).unwrap() {
            Device::Cuda(index) => Some(index),
            _ => None,
        }
    };
    *FOUND.get_or_init(find)
}
