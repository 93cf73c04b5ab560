//! The digest that identifies a model.

use basert_files::ModelFile;
use basert_graph::Graph;
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, text};

/// Bytes that are read before the system may drop them from memory.
const PART: usize = 16 << 20;

/// A digest of weights, metadata, tokenizer and graph: XXH3 of all files and of the graph. It is as fast as reading the
/// files. It is not cryptographic: two models with the same digest can be made on purpose.
pub(crate) fn of(file: &ModelFile, graph: &Graph) -> Result<String, Error> {
    let mut hash = Xxh3::new();
    for map in file.mappings() {
        hash.update(&(map.len() as u64).to_le_bytes());
        for part in map.chunks(PART) {
            hash.update(part);
            file.release(part);
        }
    }
    for name in text::TOKENIZER_FILES {
        if let Some(map) = file.companion(name)? {
            hash.update(&(map.len() as u64).to_le_bytes());
            hash.update(&map);
        }
    }
    hash.update(format!("{graph:?}").as_bytes());
    Ok(format!("{:032x}", hash.digest128()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Model, Options};

    fn digest(path: &std::path::Path) -> String {
        let file = ModelFile::open(path).unwrap();
        of(&file, &Model::plan_of(&file, &Options::default()).unwrap().graph).unwrap()
    }

    #[test]
    fn one_bit_of_any_file_makes_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = basert_testkit::tiny();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(tiny.join("qwen3").join(name), folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let gguf = folder.path().join("qwen3.gguf");
        fs::copy(tiny.join("qwen3.gguf"), &gguf).unwrap();
        let files = [(&*gguf, "qwen3.gguf"), (folder.path(), "model.safetensors"), (folder.path(), "tokenizer.json")];
        for (model, file) in files {
            let before = digest(model);
            assert_eq!(before, digest(model));
            let file = folder.path().join(file);
            let mut bytes = fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&file, bytes).unwrap();
            assert_ne!(digest(model), before, "{}", file.display());
        }
    }
}
