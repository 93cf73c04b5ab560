//! Tokenizers of encoders: from a folder and from a GGUF file they find what `transformers` finds.
//!
//! They are written by tools/goldens/encoder_tokenizers.py.

use std::path::PathBuf;

use basert_files::{ModelFile, Value};
use basert_text::{EncodeOptions, GgufVocabulary, Tokenizer};

use crate::common::{corpus, gguf_vocabulary};

const NAMES: [&str; 5] = ["word-piece", "word-piece-cased", "unigram", "roberta", "modernbert"];

/// Names of special tokens that are in a vocabulary of text as well. Text that looks like them becomes them in
/// `transformers`, and not here.
const SPECIAL: [&str; 5] = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"];

const WHOLE: EncodeOptions = EncodeOptions { add_special: true, parse_special: false };

/// The corpus without them.
fn texts() -> impl Iterator<Item = String> {
    corpus().into_iter().filter(|text| !SPECIAL.iter().any(|special| text.contains(special)))
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoders").join(name)
}

fn from_gguf(name: &str) -> Tokenizer {
    let file = ModelFile::open(folder(name).with_extension("gguf")).unwrap();
    let charsmap = file.get("tokenizer.ggml.precompiled_charsmap").and_then(Value::as_array);
    let charsmap: Vec<u8> =
        charsmap.iter().flat_map(|bytes| bytes.iter()).map(|byte| byte.as_i64().unwrap() as u8).collect();
    let vocabulary = gguf_vocabulary(&file);
    Tokenizer::from_gguf(GgufVocabulary { precompiled_charsmap: Some(&charsmap), ..vocabulary }).unwrap()
}

#[test]
fn folders_give_the_ids_of_transformers() {
    for name in NAMES {
        let tokenizer = Tokenizer::from_hf_dir(folder(name)).unwrap();
        let expected = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        let all: Vec<Vec<u32>> = texts().map(|text| tokenizer.encode(&text, WHOLE).unwrap()).collect();
        assert_eq!(serde_json::json!(all[0]), expected["first"], "{name}");
        let line = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let lines = all.iter().map(line).collect::<Vec<_>>().join("\n");
        assert_eq!(crate::conformance::fnv1a(lines.as_bytes()), expected["hash"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn gguf_files_give_the_ids_of_folders() {
    let mut wrong = Vec::new();
    for name in NAMES {
        let (folder, file) = (Tokenizer::from_hf_dir(folder(name)).unwrap(), from_gguf(name));
        for text in texts() {
            let (expected, found) = (folder.encode(&text, WHOLE).unwrap(), file.encode(&text, WHOLE).unwrap());
            if expected != found {
                wrong.push(format!("{name}: {text:?}\n    found {found:?}\n expected {expected:?}"));
            }
        }
    }
    let some = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} differ:\n{some}", wrong.len());
}
