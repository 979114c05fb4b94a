//! Lets the engine find libtorch at run time where it was found at build time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Told by torch-sys, which is a direct dependency for this reason alone.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // An rpath, not a runpath of its dependencies: LD_LIBRARY_PATH still wins over it.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
