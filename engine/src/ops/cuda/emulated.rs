//! The kernels on the processor, for tests (`engine/tests/cuda`).
//!
//! Where it is asked for, jobs over tensors in ordinary memory are done by the source that
//! CUDA gets, compiled for the processor; all that leads there is what leads to a device.

#![expect(unsafe_code, reason = "functions of C++ that take a pointer to a job")]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

use super::{CudaError, Grid};
use crate::error::Result;

#[link(name = "heirloom_cuda_emulated", kind = "static")]
unsafe extern "C" {
    fn heirloom_emulate(
        kernel: *const c_char,
        blocks: u32,
        threads: u32,
        job: *const c_void,
    ) -> *const c_char;
}

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static LAUNCHED: Cell<u64> = const { Cell::new(0) };
}

/// Whether this thread's jobs go to the emulated device.
pub(super) fn asked() -> bool {
    ASKED.get()
}

/// Runs `work` with an emulated device in place of the loops.
pub(crate) fn only<T>(work: impl FnOnce() -> T) -> T {
    let before = ASKED.replace(true);
    let result = work();
    ASKED.set(before);
    result
}

/// Launches of this thread's so far, those of empty grids among them.
pub(crate) fn launched() -> u64 {
    LAUNCHED.get()
}

/// Runs a kernel to its end.
///
/// # Safety
///
/// As for a launch on a device.
pub(super) unsafe fn launch<J>(name: &str, grid: Grid, job: &J) -> Result<()> {
    let kernel = CString::new(name).unwrap();
    LAUNCHED.set(LAUNCHED.get() + 1);
    if grid.blocks == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises; a message is a constant of C++.
    let message = unsafe {
        let job = std::ptr::from_ref(job).cast();
        let message = heirloom_emulate(kernel.as_ptr(), grid.blocks, grid.threads, job);
        (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned())
    };
    match message {
        None => Ok(()),
        Some(reason) => Err(CudaError::Emulated { kernel: name.to_owned(), reason }.into()),
    }
}
