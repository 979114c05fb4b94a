//! What `config.json` says of quantised storage.
//!
//! Owns `quantization_config`: which methods the checkpoint layer can undo, and the size of
//! an fp8 block. Everything else about the stored tensors stands in their headers.
//! Activations are never quantised here, so their settings do not matter.

use std::path::Path;

use serde::Deserialize;

use super::BaseError;
use super::families::read_config;

#[derive(Deserialize)]
struct Config {
    quantization_config: Option<Quantization>,
}

#[derive(Deserialize)]
struct Quantization {
    quant_method: Option<String>,
    fmt: Option<String>,
    weight_block_size: Option<[usize; 2]>,
}

/// The size of an fp8 block, where the config of a folder names one. Methods that cannot be
/// undone are refused.
pub(super) fn fp8_block(folder: &Path) -> Result<Option<[usize; 2]>, BaseError> {
    let (path, Config { quantization_config }) = read_config(folder)?;
    let Some(Quantization { quant_method, fmt, weight_block_size }) = quantization_config else {
        return Ok(None);
    };
    let refuse = |key: &str, value: String| {
        let key = format!("quantization_config.{key}");
        Err(BaseError::Unsupported { path: path.clone(), key, value })
    };
    match quant_method.as_deref() {
        Some("fp8") => {}
        Some("mxfp4") => return Ok(None),
        other => return refuse("quant_method", other.unwrap_or("(absent)").to_owned()),
    }
    if let Some(fmt) = fmt.filter(|fmt| fmt != "e4m3") {
        return refuse("fmt", fmt);
    }
    match weight_block_size {
        Some(block) if block.contains(&0) => refuse("weight_block_size", format!("{block:?}")),
        block => Ok(block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<Option<[usize; 2]>, BaseError> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("config.json"), config).unwrap();
        fp8_block(folder.path())
    }

    #[test]
    fn published_methods_are_known() {
        let deepseek = r#"{"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
            "quant_method": "fp8", "weight_block_size": [128, 64]}}"#;
        assert_eq!(read(deepseek).unwrap(), Some([128, 64]));
        let gpt_oss = r#"{"quantization_config": {"quant_method": "mxfp4",
            "modules_to_not_convert": ["lm_head"]}}"#;
        assert_eq!(read(gpt_oss).unwrap(), None);
        assert_eq!(read(r#"{"quantization_config": null}"#).unwrap(), None);
        assert_eq!(read("{}").unwrap(), None);
    }

    #[test]
    fn methods_that_cannot_be_undone_are_refused() {
        for config in [
            r#"{"quant_method": "bitsandbytes"}"#,
            r#"{"quant_method": "fp8", "fmt": "e5m2"}"#,
            r#"{"quant_method": "fp8", "weight_block_size": [0, 128]}"#,
            r#"{"quant_method": "fp8", "weight_block_size": [128]}"#,
            r#"{"quant_method": "fp8", "weight_block_size": [-1, 128]}"#,
            "{}",
        ] {
            let error = read(&format!(r#"{{"quantization_config": {config}}}"#)).unwrap_err();
            assert!(matches!(error, BaseError::Unsupported { .. } | BaseError::Json { .. }));
        }
    }
}
