//! A Hugging Face folder. The input is `config.json`, the index (none if empty) and `model.safetensors`, with a zero
//! byte after each of the first two.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use basert_files::{ModelFile, Value};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder").keep());

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    for name in ["config.json", "model.safetensors.index.json", "model.safetensors"] {
        let path = FOLDER.join(name);
        match parts.next() {
            Some(part) if !part.is_empty() => fs::write(path, part).expect("the folder can be written to"),
            _ => drop(fs::remove_file(path)),
        }
    }
    match ModelFile::open(FOLDER.as_path()) {
        Ok(model) => {
            for (key, value) in model.metadata() {
                let _ = value.to_string();
                // A field's name may have dots of its own; then the key is ambiguous, and that is all.
                let _ = model.get(&key).and_then(Value::as_u64);
            }
            for tensor in model.tensors() {
                assert_eq!(model.tensor(tensor.name).map(|found| found.offset), Some(tensor.offset));
                assert!(!tensor.bytes.is_empty());
            }
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
});
