//! Every kernel compiles for every generation that it is to run on, and the cache keeps it.

use super::{Source, compile};

const SOURCES: [&Source; 8] = [
    &super::RMS_NORM_SOURCE,
    &super::ROTARY_SOURCE,
    &super::GATED_SOURCE,
    &super::ADAMW_SOURCE,
    &super::CROSS_ENTROPY_SOURCE,
    &super::NF4_SOURCE,
    &super::BYTES_SOURCE,
    &super::FP8_ROWS_SOURCE,
];

/// Says so where NVRTC is not installed; `HEIRLOOM_TEST_NVRTC=1` makes that a failure.
pub(super) fn nvrtc_is_missing() -> bool {
    let missing = compile::version().is_err();
    assert!(!missing || std::env::var_os("HEIRLOOM_TEST_NVRTC").is_none(), "no libnvrtc.so.13");
    if missing {
        use std::io::Write as _;
        // Not captured, as what is printed in a test is.
        let _ = writeln!(std::io::stderr(), "skipped: libnvrtc.so.13 is not installed");
    }
    missing
}

#[test]
fn every_source_compiles_for_every_generation() {
    if nvrtc_is_missing() {
        return;
    }
    for source in SOURCES {
        let text = format!("{}\n{}", super::NUMBERS, source.text);
        for architecture in ["80", "90", "100"] {
            let cubin = compile::compile(source, &text, architecture).unwrap();
            assert!(cubin.starts_with(b"\x7fELF"), "{source:?} {architecture}");
            if let Some(folder) = std::env::var_os("HEIRLOOM_TEST_CUBINS") {
                let name = format!("{}-sm_{architecture}.cubin", source.name);
                fs_err::write(std::path::Path::new(&folder).join(name), &cubin).unwrap();
            }
        }
    }
}

/// The constant is what is launched; the name in the source is what the driver looks for.
#[test]
fn every_kernel_is_in_its_source_for_the_dtypes_it_has() {
    for (kernel, dtypes) in [
        (super::RMS_NORM, "f32 bf16"),
        (super::RMS_NORM_BACKWARD, "f32 bf16"),
        (super::RMS_NORM_WEIGHT, "f32 bf16"),
        (super::ROTATE, "f32 bf16"),
        (super::GATED, "f32 bf16"),
        (super::GATED_BACKWARD, "f32 bf16"),
        (super::ADAMW, "f32"),
        (super::CROSS_ENTROPY, "f32 bf16"),
        (super::NF4, "f32 bf16 f16"),
        (super::INT8, "f32 bf16 f16"),
        (super::E4M3, "f32 bf16 f16"),
        (super::FP8_ROWS, "f32 bf16"),
    ] {
        for dtype in dtypes.split(' ') {
            let head = format!("__global__ void {}_{dtype}(const ", kernel.name);
            assert!(kernel.source.text.contains(&head), "{head}");
        }
    }
}

#[test]
fn a_source_that_is_none_is_an_error_with_what_the_compiler_says() {
    if nvrtc_is_missing() {
        return;
    }
    let source = Source { name: "broken", text: "" };
    let error = compile::compile(&source, "__global__ void broken(", "90").unwrap_err();
    let said = error.to_string();
    assert!(said.contains("engine/cuda/broken.cu") && said.contains("error"), "{said}");
}
