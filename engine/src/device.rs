//! Where tensors live.
//!
//! Owns opening CUDA, and what a device says of itself. libtorch's CUDA part is a library of its own that registers itself
//! when it is opened; opened after anything has asked libtorch about CUDA it stays absent
//! for good. So it is opened here, before the first question, and only when asked for.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use heirloom::job;
use tch::{Cuda, Device};

use crate::error::{EngineError, Result};
use crate::ops::native;

/// The library that brings CUDA into libtorch.
const LIBRARY: &CStr = c"libtorch_cuda.so";

/// `RTLD_NOW | RTLD_GLOBAL` of Linux: its symbols must be seen by all of libtorch.
const NOW_AND_GLOBAL: c_int = 0x2 | 0x100;

#[expect(unsafe_code, reason = "the loader of the C library, which Rust's own does not offer")]
unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

#[expect(unsafe_code, reason = "a function of C++")]
unsafe extern "C" {
    fn heirloom_cuda_memory(device: i32, forget: bool, bytes: *mut i64) -> *mut c_char;
    fn heirloom_deterministic() -> *mut c_char;
}

/// Makes sure that a device is there.
pub fn open(device: job::Device) -> Result<Device> {
    let job::Device::Cuda(index) = device else {
        return Ok(Device::Cpu);
    };
    let refuse = |reason| EngineError::NoDevice { device, reason };
    load(LIBRARY).map_err(refuse)?;
    let found = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    if (index as i64) < found {
        return Ok(Device::Cuda(index));
    }
    Err(refuse(match found {
        0 => "libtorch finds no driver or no device".to_owned(),
        1 => "there is only `cuda:0`".to_owned(),
        _ => format!("there are only `cuda:0` to `cuda:{}`", found - 1),
    }))
}

/// Holds a device to operations that give the same bytes again (`train.deterministic`), as
/// `torch.use_deterministic_algorithms`; before anything is computed on it. A CPU needs none of
/// that.
pub fn only_deterministic(device: Device) -> Result<()> {
    if device == Device::Cpu {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "a function of C++")]
    // SAFETY: it takes nothing, and no thread of ours reads the environment by now.
    native::check(unsafe { heirloom_deterministic() })
}

/// Waits until a device has done all that was asked of it.
pub fn finish(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Most bytes of a device that libtorch gave out at once, since it was told to forget; `None` of
/// what is no device of CUDA.
pub fn peak(device: Device) -> Result<Option<u64>> {
    memory(device, false)
}

/// Forgets the peak, and gives back what is kept for later.
pub fn forget_peak(device: Device) -> Result<()> {
    memory(device, true).map(drop)
}

fn memory(device: Device, forget: bool) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut bytes = 0;
    #[expect(unsafe_code, reason = "a function of C++")]
    // SAFETY: the place lives throughout the call.
    native::check(unsafe { heirloom_cuda_memory(index as i32, forget, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).ok())
}

/// The library of libtorch that needs NVRTC, and so opens it from where it lies.
const WITH_NVRTC: &CStr = c"libcaffe2_nvrtc.so";

/// Opens NVRTC if it lies where libtorch expects it. Whoever needs it asks by its name, which
/// finds what is open; so a failure is found there.
pub(crate) fn open_nvrtc() {
    if load(WITH_NVRTC).is_ok() {
        return;
    }
    // Without a driver that one cannot be opened. Beside the folder of libtorch, as the wheels
    // lie, NVRTC can, which is enough to compile.
    let maps = fs_err::read_to_string("/proc/self/maps").unwrap_or_default();
    let libtorch = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let libtorch = libtorch.map(Path::new).find(|path| path.ends_with("libtorch_cpu.so"));
    let Some(packages) = libtorch.and_then(|path| path.ancestors().nth(3)) else { return };
    let path = packages.join("nvidia/cu13/lib/libnvrtc.so.13");
    if let Ok(path) = CString::new(path.into_os_string().into_encoded_bytes()) {
        let _ = load(&path);
    }
}

fn load(library: &CStr) -> Result<(), String> {
    #[expect(
        unsafe_code,
        reason = "opening a library runs its initialisers; these are part of the libtorch that \
                  the program is linked with, or of CUDA beside it"
    )]
    // SAFETY: the name is a string with an end, `dlerror` gives one or nothing, and nobody
    // else opens libraries meanwhile.
    unsafe {
        if !dlopen(library.as_ptr(), NOW_AND_GLOBAL).is_null() {
            return Ok(());
        }
        let reason = dlerror();
        if reason.is_null() {
            return Err("the library cannot be opened".to_owned());
        }
        Err(CStr::from_ptr(reason).to_string_lossy().into_owned())
    }
}
