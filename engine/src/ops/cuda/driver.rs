//! Kernels loaded and launched, by the driver.
//!
//! Owns the functions that were loaded, for each device. They live in libtorch's own (primary)
//! context of the device and run on the stream that libtorch computes on, so that what was
//! launched before is done before and memory is given out again in the same order.

#![expect(unsafe_code, reason = "functions of libraries of C, and kernels that take what they get")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::compile;
use super::error::CudaError;
use super::{Grid, Source};
use crate::device;
use crate::ops::native;

unsafe extern "C" {
    fn heirloom_cuda_stream(device: i32, stream: *mut *mut c_void) -> *mut c_char;
}

/// A device as the driver sees it.
#[derive(Clone, Copy)]
struct Context {
    context: sys::CUcontext,
    /// Compute capability.
    capability: (i32, i32),
}

/// A function that was loaded; it stays for as long as the program runs.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: both are handles that the driver takes from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Send for Function {}

static CONTEXTS: Mutex<BTreeMap<usize, Context>> = Mutex::new(BTreeMap::new());
static FUNCTIONS: Mutex<BTreeMap<(usize, String), Function>> = Mutex::new(BTreeMap::new());

/// The compute capability of a device.
pub(crate) fn capability(index: usize) -> Result<(i32, i32), CudaError> {
    Ok(context(index)?.capability)
}

/// Launches a kernel of a source behind whatever libtorch launched before.
///
/// # Safety
///
/// The kernel must take this job by value, and all that the job points to must lie on the
/// device, be as large as the kernel takes it to be, and be given back to libtorch alone.
pub(super) unsafe fn launch<J>(
    index: usize,
    source: &Source,
    name: &str,
    grid: Grid,
    job: &J,
) -> Result<(), CudaError> {
    let context = context(index)?;
    let _current = Current::make(context.context)?;
    let function = function(index, &context, source, name)?;
    let stream = stream(index)?;
    let mut parameters = [std::ptr::from_ref(job).cast_mut().cast::<c_void>()];
    // SAFETY: the function is loaded in the current context and the stream is of its device; the
    // driver copies the job before it returns. The rest is the caller's promise.
    let launched = unsafe {
        let (blocks, threads) = ((grid.blocks, 1, 1), (grid.threads, 1, 1));
        result::launch_kernel(function.0, blocks, threads, 0, stream, &mut parameters)
    };
    launched.map_err(|error| failed(format!("launching `{name}`"), error))
}

/// Opens NVRTC, or finds it open.
pub(super) fn open_nvrtc() -> Result<(), CudaError> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = || {
        // libtorch's own wrapper names NVRTC among its needs and knows where it lies; whatever is
        // open is found again by name.
        device::open_nvrtc();
        // SAFETY: NVRTC's initialisers ask nothing of their caller.
        unsafe { cudarc::nvrtc::sys::is_culib_present() }
    };
    // Asked before anything else: cudarc panics where the library is missing.
    match FOUND.get_or_init(found) {
        true => Ok(()),
        false => Err(CudaError::NoLibrary { library: "libnvrtc.so.13" }),
    }
}

fn open_driver() -> Result<(), CudaError> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: the driver's initialisers ask nothing of their caller.
    let found = || unsafe { sys::is_culib_present() };
    match FOUND.get_or_init(found) {
        true => Ok(()),
        false => Err(CudaError::NoLibrary { library: "libcuda.so.1" }),
    }
}

/// libtorch's context of a device.
fn context(index: usize) -> Result<Context, CudaError> {
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = contexts.get(&index) {
        return Ok(*context);
    }
    open_driver()?;
    let opening = |error| failed(format!("opening `cuda:{index}`"), error);
    result::init().map_err(opening)?;
    let device = result::device::get(index as i32).map_err(opening)?;
    // SAFETY: the device is the driver's own. Its primary context is libtorch's; retained, it
    // stays as long as the program.
    let context = unsafe {
        use sys::CUdevice_attribute as Attribute;
        let number = |attribute| result::device::get_attribute(device, attribute);
        let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        Context {
            context: result::primary_ctx::retain(device).map_err(opening)?,
            capability: (major.map_err(opening)?, minor.map_err(opening)?),
        }
    };
    contexts.insert(index, context);
    Ok(context)
}

/// A kernel, compiled and loaded when it is first asked for. The context must be current.
fn function(
    index: usize,
    context: &Context,
    source: &Source,
    name: &str,
) -> Result<Function, CudaError> {
    let mut functions = FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = functions.get(&(index, name.to_owned())) {
        return Ok(*function);
    }
    let (major, minor) = context.capability;
    let architecture = format!("{major}{minor}");
    let load = |cached| load(&compile::cubin(source, &architecture, cached)?, name);
    // What the driver cannot load was damaged on the disk: compiled anew, it takes its place.
    let function = load(true).or_else(|_| load(false))?;
    functions.insert((index, name.to_owned()), function);
    Ok(function)
}

fn load(cubin: &[u8], name: &str) -> Result<Function, CudaError> {
    let loading = |error| failed(format!("loading `{name}`"), error);
    let zero = |_| CudaError::Driver {
        doing: format!("naming `{name}`"),
        code: "CUDA_ERROR_NOT_FOUND".to_owned(),
    };
    let name = CString::new(name).map_err(zero)?;
    // SAFETY: the image is an ELF file whose length the driver finds in it; the module is never
    // unloaded, so the function stays.
    let function = unsafe {
        let module = result::module::load_data(cubin.as_ptr().cast()).map_err(loading)?;
        result::module::get_function(module, name).map_err(loading)?
    };
    Ok(Function(function))
}

/// The stream that libtorch computes on, on this thread.
fn stream(index: usize) -> Result<sys::CUstream, CudaError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: the place lives throughout the call.
    let message = unsafe { heirloom_cuda_stream(index as i32, &raw mut stream) };
    match native::text(message) {
        Some(reason) => Err(CudaError::NoStream { index, reason }),
        None => Ok(stream.cast()),
    }
}

/// Makes a context this thread's current one until it is dropped.
struct Current {
    before: Option<sys::CUcontext>,
}

impl Current {
    fn make(context: sys::CUcontext) -> Result<Self, CudaError> {
        let switching = |error| failed("asking for the current context".to_owned(), error);
        let current = result::ctx::get_current().map_err(switching)?;
        if current == Some(context) {
            return Ok(Self { before: None });
        }
        set(context).map_err(switching)?;
        Ok(Self { before: current })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // libtorch sets its own before every call that needs one.
            let _ = set(before);
        }
    }
}

fn set(context: sys::CUcontext) -> Result<(), DriverError> {
    // SAFETY: contexts here are primary ones that are retained for good, or were current before.
    unsafe { result::ctx::set_current(context) }
}

fn failed(doing: String, DriverError(code): DriverError) -> CudaError {
    CudaError::Driver { doing, code: format!("{code:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_there_is_an_error_and_no_panic() {
        if tch::Cuda::is_available() {
            return;
        }
        let error = stream(0).unwrap_err();
        assert!(matches!(error, CudaError::NoStream { index: 0, .. }), "{error}");
        let error = capability(0).unwrap_err();
        let missing = CudaError::NoLibrary { library: "libcuda.so.1" };
        let known =
            error.to_string() == missing.to_string() || matches!(error, CudaError::Driver { .. });
        assert!(known, "{error}");
    }
}
