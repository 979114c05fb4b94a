//! Machine code for the kernels, by NVRTC.
//!
//! Owns compiling and the cache on disk. A file of the cache is named by the digest of all that
//! its contents hang on: the source, the options, the device's generation and NVRTC's version;
//! so none is ever out of date, and whoever cannot write there compiles every time.

#![expect(unsafe_code, reason = "functions of a library of C")]

use std::ffi::{CString, c_char};
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};
use fs_err as fs;
use heirloom::files;

use super::error::CudaError;
use super::{NUMBERS, Source};

/// Whose kernels are kept where, instead of the user's folder for caches.
pub(super) const CACHE_VARIABLE: &str = "HEIRLOOM_KERNEL_CACHE";

const OPTIONS: [&str; 1] = ["--std=c++17"];

/// The machine code of a source; from the cache only where `cached`.
pub(super) fn cubin(
    source: &Source,
    architecture: &str,
    cached: bool,
) -> Result<Vec<u8>, CudaError> {
    cubin_in(folder(), source, architecture, cached)
}

fn cubin_in(
    folder: Option<PathBuf>,
    source: &Source,
    architecture: &str,
    cached: bool,
) -> Result<Vec<u8>, CudaError> {
    let (major, minor) = version()?;
    let text = format!("{NUMBERS}\n{}", source.text);
    let key = format!("{major}.{minor}\n{architecture}\n{OPTIONS:?}\n{text}");
    let place = folder.map(|folder| {
        let digest = files::sha256_of_bytes(key.as_bytes());
        folder.join(format!("{}-{digest}.cubin", source.name))
    });
    if let (true, Some(place)) = (cached, &place)
        && let Ok(kept) = fs::read(place)
    {
        return Ok(kept);
    }
    let made = compile(source, &text, architecture)?;
    if let Some(place) = place {
        // Only the next start would gain by it.
        let _ = keep(&place, &made);
    }
    Ok(made)
}

fn keep(place: &std::path::Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    files::write_atomically(place, cubin)
}

/// Where machine code is kept, as the XDG base directories have it.
fn folder() -> Option<PathBuf> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = path(CACHE_VARIABLE) {
        return Some(folder);
    }
    let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
    Some(caches.join("heirloom").join("kernels"))
}

/// The version of NVRTC.
pub(super) fn version() -> Result<(i32, i32), CudaError> {
    super::driver::open_nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both places live throughout the call.
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let library = "libnvrtc.so.13";
    status.result().map_err(|_| CudaError::NoLibrary { library })?;
    Ok((major, minor))
}

/// Compiles; without the cache.
pub(super) fn compile(
    source: &Source,
    text: &str,
    architecture: &str,
) -> Result<Vec<u8>, CudaError> {
    let file = format!("engine/cuda/{}.cu", source.name);
    let refuse = |log: String| CudaError::Compile {
        file: file.clone(),
        architecture: architecture.to_owned(),
        log,
    };
    let program = Program::new(text, &file).map_err(&refuse)?;
    let mut options = vec![format!("--gpu-architecture=sm_{architecture}")];
    options.extend(OPTIONS.map(str::to_owned));
    program.cubin(&options).map_err(refuse)
}

/// A program of NVRTC's, which ends with it.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(text: &str, file: &str) -> Result<Self, String> {
        let zero = |_| "a zero byte in the source".to_owned();
        let (text, file) = (CString::new(text).map_err(zero)?, CString::new(file).map_err(zero)?);
        // NVRTC keeps copies of both.
        result::create_program(&text, Some(&file)).map(Self).map_err(|error| error.to_string())
    }

    fn cubin(&self, options: &[String]) -> Result<Vec<u8>, String> {
        let said = |error: result::NvrtcError| format!("{error}: {}", self.log());
        // SAFETY: the program is one of NVRTC's and not destroyed before `self` is.
        unsafe { result::compile_program(self.0, options) }.map_err(said)?;
        let mut size = 0usize;
        // SAFETY: as above; the place lives throughout the call.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result().map_err(said)?;
        let mut cubin = vec![0u8; size];
        let start: *mut c_char = cubin.as_mut_ptr().cast();
        // SAFETY: as above; there is room for as many bytes as NVRTC said.
        unsafe { sys::nvrtcGetCUBIN(self.0, start) }.result().map_err(said)?;
        Ok(cubin)
    }

    fn log(&self) -> String {
        // SAFETY: the program is one of NVRTC's and not destroyed before `self` is.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&log).trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody else destroys it. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ADAMW_SOURCE, GATED_SOURCE};
    use super::*;

    fn files(folder: &std::path::Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn what_was_compiled_is_kept_by_source_and_generation() {
        if super::super::tests::nvrtc_is_missing() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("new");
        let get = |source, architecture, cached| {
            cubin_in(Some(folder.clone()), source, architecture, cached).unwrap()
        };
        let made = get(&ADAMW_SOURCE, "90", true);
        assert_eq!(files(&folder).len(), 1);
        assert_eq!(fs::read(&files(&folder)[0]).unwrap(), made);
        // What lies there is taken as it is, and replaced where the driver would not have it.
        fs::write(&files(&folder)[0], b"damaged").unwrap();
        assert_eq!(get(&ADAMW_SOURCE, "90", true), b"damaged");
        assert_eq!(get(&ADAMW_SOURCE, "90", false), made);
        assert_eq!(get(&ADAMW_SOURCE, "90", true), made);
        assert_ne!(get(&ADAMW_SOURCE, "80", true), made);
        get(&GATED_SOURCE, "90", true);
        assert_eq!(files(&folder).len(), 3);
    }

    #[test]
    fn a_folder_that_takes_no_files_costs_time_alone() {
        if super::super::tests::nvrtc_is_missing() {
            return;
        }
        let place = tempfile::NamedTempFile::new().unwrap();
        for folder in [None, Some(place.path().join("below a file"))] {
            assert!(cubin_in(folder, &ADAMW_SOURCE, "90", true).unwrap().starts_with(b"\x7fELF"));
        }
    }
}
