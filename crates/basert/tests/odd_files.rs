//! Files as others write them, which other programs open, are opened.

use std::fs;
use std::path::Path;

use basert::graph::Graph;
use basert::{Model, Options, Pooling};
use basert_testkit::tiny;
use serde_json::{Value, json};

/// The tiny Qwen3 folder with a tokenizer of single letters.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(tiny().join("qwen3").join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true },
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3 }, "merges": ["a b"] },
    });
    write(folder.path(), "tokenizer.json", &tokenizer.to_string());
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn change(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
    change(&mut json);
    write(folder, name, &json.to_string());
}

fn open(folder: &Path) -> Model {
    let options = Options { max_context: Some(64), sessions: 1, threads: Some(1), ..Options::default() };
    Model::open(folder, options).unwrap()
}

#[test]
fn a_token_without_a_row_is_refused_where_a_prompt_has_it() {
    let folder = folder();
    let rows = Graph::open(&basert::files::ModelFile::open(folder.path()).unwrap(), &[]).unwrap().vocabulary;
    change(folder.path(), "tokenizer.json", |json| {
        json["added_tokens"] = json!([{ "id": rows, "content": "<|extra|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }]);
        // Ids without tokens are few in published files.
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        for id in 4..rows {
            vocabulary.insert(format!("unused {id}"), id.into());
        }
    });
    let model = open(folder.path());
    assert_eq!(model.tokenizer().vocab_size(), rows + 1);
    let options = basert::Generation { max_tokens: Some(4), ..Default::default() };
    assert!(model.generate("ab", &options, |_| true).is_ok());
    let error = model.generate("ab<|extra|>", &options, |_| true).unwrap_err().to_string();
    assert!(error.contains(&format!("token {rows} is not one of the {rows}")), "{error}");
}

#[test]
fn configurations_of_other_versions() {
    let folder = folder();
    change(folder.path(), "config.json", |json| {
        json.as_object_mut().unwrap().remove("model_type");
        json["architectures"] = json!(["Qwen3ForCausalLM"]);
    });
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config = config.trim_end().trim_end_matches('}');
    write(folder.path(), "config.json", &format!("\u{feff}{config}, \"x\": [0.0, Infinity], \"y\": NaN}}"));
    write(folder.path(), "generation_config.json", r#"{"eos_token_id": [-1, 2]}"#);
    write(folder.path(), "special_tokens_map.json", r#"{"bos_token": {"content": "a"}, "eos_token": "b"}"#);
    let templates = json!({ "bos_token": null, "chat_template": [{ "name": "rag", "template": "R{{ bos_token }}" }] });
    write(folder.path(), "tokenizer_config.json", &format!("\u{feff}{templates}"));
    let model = open(folder.path());
    assert_eq!(model.tokenizer().end_of_generation(), [1, 2]);
    assert_eq!(model.chat_prompt(&[], &[], None).unwrap().tokens, model.text_tokens("Ra").unwrap());

    write(folder.path(), "chat_template.jinja", "\u{feff}abc");
    assert_eq!(open(folder.path()).chat_prompt(&[], &[], None).unwrap().tokens, [3, 2]);
}

#[test]
fn embeddings_are_pooled_as_the_files_say() {
    let pooling = |files: &[(&str, Value)]| {
        let folder = folder();
        files.iter().for_each(|(name, json)| write(folder.path(), name, &json.to_string()));
        open(folder.path()).pooling().map_err(|error| error.to_string())
    };
    let mode = |name: &str| json!({ "word_embedding_dimension": 64, format!("pooling_mode_{name}"): true });
    let modules = |kind: &str| {
        json!([{ "type": "sentence_transformers.models.Transformer", "path": "" },
        { "type": "sentence_transformers.models.Pooling", "path": "2_Pooling" }, { "type": kind, "path": "3" }])
    };
    assert_eq!(pooling(&[]), Ok(Pooling::Mean));
    assert_eq!(pooling(&[("1_Pooling/config.json", mode("lasttoken"))]), Ok(Pooling::Last));
    assert_eq!(pooling(&[("1_Pooling/config.json", mode("cls_token"))]), Ok(Pooling::First));
    assert_eq!(pooling(&[("1_Pooling/config.json", json!({ "pooling_mode": "mean" }))]), Ok(Pooling::Mean));
    let normalised = modules("sentence_transformers.models.Normalize");
    let files = [("modules.json", normalised), ("2_Pooling/config.json", mode("lasttoken"))];
    assert_eq!(pooling(&files), Ok(Pooling::Last));
    let refused = pooling(&[("1_Pooling/config.json", mode("max_tokens"))]).unwrap_err();
    assert!(refused.contains("pooling by max_tokens"), "{refused}");
    let refused = pooling(&[("modules.json", modules("sentence_transformers.models.LSTM"))]).unwrap_err();
    assert!(refused.contains("the module \"LSTM\""), "{refused}");
}
