//! The vocabularies and chat templates that llama.cpp is tested with. `tools/llama-cpp-models` fetches them, writes what
//! Jinja2 makes of the templates, and runs this.

use std::path::PathBuf;

use basert_files::ModelFile;
use basert_text::{ChatRequest, ChatTemplate, EncodeOptions, Tokenizer};
use serde_json::{Map, Value};

use crate::common::gguf_vocabulary;

fn folder() -> PathBuf {
    std::env::var_os("BASERT_LLAMA_CPP_MODELS").expect("run tools/llama-cpp-models").into()
}

fn files(folder: PathBuf, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

#[test]
#[ignore = "tools/llama-cpp-models runs it"]
fn vocabularies() {
    let (mut same, mut differing, mut opened) = (0, Vec::new(), 0);
    for path in files(folder(), "gguf") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = ModelFile::open(&path).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf_vocabulary(&model)).unwrap_or_else(|error| panic!("{name}: {error}"));
        opened += 1;
        let read = |extension| std::fs::read_to_string(path.with_extension(extension));
        let (Ok(texts), Ok(expected)) = (read("gguf.inp"), read("gguf.out")) else { continue };
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        for (text, expected) in texts.iter().zip(expected) {
            let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            if ids == expected.trim() {
                same += 1;
            } else if name == "ggml-vocab-qwen35" && text.contains('\u{301}') {
                // The vector is of the pre-tokenizer alone; the model's tokenizer.json composes (NFC) first.
            } else {
                differing.push(format!("{name}: {text:?}\n    found {ids}\n expected {}", expected.trim()));
            }
        }
    }
    println!("{opened} vocabularies opened, {same} texts the same");
    assert!(differing.is_empty() && same > 700, "{} differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
#[ignore = "tools/llama-cpp-models runs it"]
fn templates() {
    let goldens: Value = serde_json::from_slice(&std::fs::read(folder().join("templates.json")).unwrap()).unwrap();
    let requests = goldens["requests"].as_object().unwrap();
    let (mut same, mut refused, mut more, mut differing) = (0, 0, 0, Vec::new());
    for (name, expected) in goldens["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder().join("templates").join(name)).unwrap();
        let variables = goldens["variables"].as_object().unwrap().clone();
        let template = match ChatTemplate::new(&source) {
            Ok(template) => template.with_variables(variables),
            Err(error) => {
                differing.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (case, request) in requests {
            let list = |key: &str| request[key].as_array().map(Vec::as_slice);
            let empty = Map::new();
            let rendered = template.render(&ChatRequest {
                messages: list("messages").unwrap(),
                tools: list("tools"),
                documents: list("documents"),
                add_generation_prompt: request["add_generation_prompt"] == true,
                variables: Some(request["variables"].as_object().unwrap_or(&empty)),
            });
            match (rendered, expected[case].as_str()) {
                (Ok(rendered), Some(expected)) if rendered == expected => same += 1,
                (Err(_), None) => refused += 1,
                // minijinja takes none for an empty list, and goes on.
                (Ok(_), None) => more += 1,
                // Jinja2 escapes what is added to a text that is marked as safe.
                (Ok(_), Some(expected)) if source.contains("safe") && expected.contains("&#34;") => more += 1,
                (found, expected) => {
                    differing.push(format!("{name}, {case}\n    found {found:?}\n expected {expected:?}"))
                }
            }
        }
    }
    println!("{same} texts the same, {refused} refused by both, {more} rendered where Jinja2 fails or escapes");
    assert!(differing.is_empty() && same > 700, "{} differ:\n{}", differing.len(), differing.join("\n"));
}
