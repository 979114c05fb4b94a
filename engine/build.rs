//! Compiles the shim (`shim/`) against the headers of the libtorch that torch-sys links, and
//! lets the engine find that libtorch at run time where it was found at build time.

use std::path::Path;

const FILES: [&str; 8] = [
    "shim/attention.cpp",
    "shim/cross_entropy.cpp",
    "shim/cuda.cpp",
    "shim/elementwise.cpp",
    "shim/memory.cpp",
    "shim/node.cpp",
    "shim/optimizers.cpp",
    "shim/quant.cpp",
];

/// Compiles the kernels for the processor, with the device that tests run them on. Only what is
/// built for tests links it: its search path is that of the shim.
fn emulate(root: &Path) {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-changed=tests/cuda");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("tests/cuda/emulation.cpp")
        .include(root.join("include"))
        .opt_level(1)
        // Products are rounded on their own unless a kernel says otherwise.
        .flag("-ffp-contract=off")
        .warnings(false)
        .cargo_metadata(false)
        .compile("heirloom_cuda_emulated");
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim");
    // Told by torch-sys, which is a direct dependency for this reason alone.
    let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    // An rpath, not a runpath of its dependencies: LD_LIBRARY_PATH still wins over it.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let beside = Path::new(&folder).parent().map(Path::to_path_buf).unwrap_or_default();
    let root = std::env::var("LIBTORCH_INCLUDE").map_or(beside, Into::into);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .files(FILES)
        .includes([root.join("include"), root.join("include/torch/csrc/api/include")])
        // Optimised in development, too: training in tests would take minutes.
        .opt_level(3)
        .flag("-fopenmp")
        // Nobody asks for `errno` or for floating-point exceptions; loops that might set them
        // are not vectorised.
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .warnings(false)
        .compile("heirloom_shim");
    emulate(&root);
    // The threads of the loops; at run time it is the one that libtorch brings.
    println!("cargo:rustc-link-lib=dylib=gomp");
}
