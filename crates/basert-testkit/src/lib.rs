//! What tests share: where their models are.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// SmolLM2-135M-Instruct, Q4_1.
pub fn smollm2() -> PathBuf {
    fetched("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma 3 270M, Q4_K_M.
pub fn gemma3() -> PathBuf {
    fetched("gemma-3-270m-q4_k_m.gguf")
}

/// The folder of tiny random models.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

/// The folder of tiny models that rank texts, or embed them with layers of their own.
pub fn rankers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/rankers")
}

/// A file that `tools/fetch-test-data` fetches.
///
/// # Panics
/// When it is not there.
pub fn fetched(name: &str) -> PathBuf {
    let folder = std::env::var_os("BASERT_TEST_DATA")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache/basert-test"), PathBuf::from);
    let found = [folder.join(name), folder.join("models").join(name)].into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not in {}; run tools/fetch-test-data first", folder.display()))
}
