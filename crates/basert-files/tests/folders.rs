//! Hugging Face folders, GGUF models in several parts, and what lies in a folder.

use std::fs;
use std::path::Path;

use basert_core::Format;
use basert_files::hf::{parse_safetensors, write_folder};
use basert_files::{Kind, ModelFile, TensorSpec, Value, gguf};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": { "factor": 8, "rope_type": "llama3" },
        "sliding_window": null,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": true,
        "pad_token_id": -1,
    })
}

fn tensors() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("model.norm.weight", Format::F32, &[64]),
        TensorSpec::new("lm_head.weight", Format::BF16, &[10, 64]),
        TensorSpec::new("scale", Format::F16, &[]),
    ]
}

/// Bytes that tell the tensors apart.
fn values(tensor: &TensorSpec) -> Vec<u8> {
    (0..tensor.byte_len().unwrap()).map(|i| i as u8 ^ tensor.name.len() as u8).collect()
}

fn write(folder: &Path, config: &Json, shard_bytes: usize) {
    write_folder(folder, config, &tensors(), shard_bytes, |tensor, out| out.append(&values(tensor))).unwrap();
}

/// What opening `path` is refused with.
fn refusal(path: &Path) -> String {
    ModelFile::open(path).map(|_| ()).unwrap_err().to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

#[test]
fn a_folder_is_read_as_it_was_written_in_one_file_or_several() {
    for (shard_bytes, files) in [(usize::MAX, 1), (300, 3)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &config(), shard_bytes);
        fs::write(folder.path().join("generation_config.json"), r#"{"temperature": 0.6, "eos_token_id": [1, 2]}"#)
            .unwrap();
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let model = ModelFile::open(folder.path()).unwrap();
        assert_eq!((model.kind(), model.kind().key()), (Kind::HuggingFace, "hf"));

        assert_eq!(model.get("hidden_size"), Some(Value::Uint(64)));
        assert_eq!(model.get("hidden_size").and_then(Value::as_f64), Some(64.0));
        assert_eq!(model.get("rope_theta").and_then(Value::as_u64), None);
        assert_eq!(model.get("pad_token_id").and_then(Value::as_i64), Some(-1));
        assert_eq!(model.get("pad_token_id").and_then(Value::as_u64), None);
        assert_eq!(model.get("rope_scaling.factor").and_then(Value::as_f64), Some(8.0));
        assert_eq!(model.get("rope_scaling"), Some(Value::Object));
        assert_eq!(model.get("architectures.0").and_then(Value::as_str), Some("LlamaForCausalLM"));
        assert_eq!((model.get("sliding_window"), model.get("hidden_size.x"), model.get("")), (None, None, None));
        assert_eq!(model.get("generation_config.temperature"), Some(Value::Float(0.6)));
        let types = model.get("layer_types").and_then(Value::as_array).unwrap();
        assert_eq!(types.all(Value::as_str).unwrap().collect::<Vec<_>>(), ["full_attention", "sliding_attention"]);
        assert_eq!(types.byte_strings().unwrap().last(), Some(b"sliding_attention".as_slice()));
        assert_eq!(model.metadata().len(), 11);
        assert!(model.metadata().contains(&("rope_scaling.rope_type".to_owned(), Value::Str("llama3"))));

        assert_eq!(model.tensors().len(), 3);
        let mut paths: Vec<_> = model.tensors().map(|tensor| tensor.file.to_owned()).collect();
        paths.dedup();
        assert_eq!(paths.len(), files);
        for spec in tensors() {
            let tensor = model.tensor(&spec.name).unwrap();
            assert_eq!((tensor.format, tensor.shape), (spec.format, &*spec.shape));
            assert_eq!(tensor.bytes, values(&spec));
            assert_eq!(&fs::read(tensor.file).unwrap()[tensor.offset..][..tensor.bytes.len()], tensor.bytes);
        }

        assert_eq!(model.companion("tokenizer.json").unwrap().as_deref(), Some(b"{}".as_slice()));
        assert!(model.companion("chat_template.jinja").unwrap().is_none());
        assert!(model.companion("../tokenizer.json").unwrap().is_none());
    }
}

#[test]
fn quantised_folders_are_refused_by_name() {
    let cases = [
        (json!({ "quantization_config": { "quant_method": "awq", "bits": 4 } }), "awq, 4 bits"),
        (json!({ "quantization_config": { "quant_method": "gptq", "bits": 8 } }), "gptq, 8 bits"),
        (json!({ "quantization": { "group_size": 64, "bits": 4 } }), "MLX, 4 bits"),
        (json!({ "text_config": { "quantization_config": { "quant_method": "fp8" } } }), "fp8"),
    ];
    for (config, name) in cases {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &config, usize::MAX);
        assert_says(&refusal(folder.path()), &["config.json", "quantised", name, "use a GGUF file"]);
    }
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &json!({ "quantization_config": null }), usize::MAX);
    assert!(ModelFile::open(folder.path()).is_ok());
}

/// Whoever wants the parts that see has to ask for another model; the text is the same without them.
#[test]
fn of_a_model_that_also_sees_the_text_part_is_opened() {
    let layouts = [
        ("language_model.model.", "language_model.lm_head"),
        ("model.language_model.", "lm_head"),
        ("model.", "lm_head"),
    ];
    for (before, head) in layouts {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106],
            "hidden_size": null, "vision_config": { "hidden_size": 32 },
            "text_config": { "model_type": "gemma3_text", "hidden_size": 64, "eos_token_id": null },
        });
        let names = [format!("{before}norm.weight"), format!("{head}.weight"), "vision_tower.norm.weight".to_owned()];
        let tensors = names.map(|name| TensorSpec::new(name, Format::F32, &[64]));
        write_folder(folder.path(), &config, &tensors, usize::MAX, |tensor, out| out.append(&values(tensor))).unwrap();
        let model = ModelFile::open(folder.path()).unwrap();
        assert_eq!(model.get("model_type").and_then(Value::as_str), Some("gemma3_text"));
        assert_eq!(model.get("hidden_size").and_then(Value::as_u64), Some(64));
        assert_eq!(model.get("eos_token_id.1").and_then(Value::as_u64), Some(106));
        assert_eq!(model.get("vision_config.hidden_size"), None);
        let found: Vec<&str> = model.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(found, ["model.norm.weight", "lm_head.weight"]);
    }
}

/// As `transformers` does it.
#[test]
fn an_index_that_names_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(), 300);
    let path = folder.path().join("model.safetensors.index.json");
    let mut index: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tensors = ModelFile::open(folder.path()).unwrap().tensors().len();
    index["weight_map"]["mtp.fc.weight"] = index["weight_map"]["scale"].clone();
    fs::write(&path, format!("\u{feff}{index}")).unwrap();
    assert_eq!(ModelFile::open(folder.path()).unwrap().tensors().len(), tensors, "a tensor that no file has");

    let whole = tempfile::tempdir().unwrap();
    write(whole.path(), &config(), usize::MAX);
    let index = json!({ "weight_map": { "scale": "model-00001-of-00030.safetensors" } });
    fs::write(whole.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(ModelFile::open(whole.path()).unwrap().tensors().len(), tensors, "an old index beside one whole file");
}

/// Opening a pipe would wait until somebody writes to it.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_unopened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    assert_says(&refusal(&pipe("model.gguf")), &["model.gguf", "no regular file"]);
    write(folder.path(), &config(), usize::MAX);
    fs::remove_file(folder.path().join("model.gguf")).unwrap();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    pipe("config.json");
    assert_says(&refusal(folder.path()), &["config.json", "no regular file"]);
}

/// What is read of the file and not of its mapping may have been cut off.
#[test]
fn a_part_that_is_gone_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(), usize::MAX);
    let model = ModelFile::open(folder.path()).unwrap();
    let tensor = model.tensors().last().unwrap();
    let mut bytes = vec![0; tensor.bytes.len()];
    model.read(tensor.name, 0, &mut bytes).unwrap();
    assert_eq!(bytes, tensor.bytes);
    assert!(model.read(tensor.name, 1, &mut bytes).is_err(), "past its end");
    assert!(model.read("nothing", 0, &mut []).is_err());
    let name = tensor.name;
    #[cfg(unix)]
    {
        fs::File::options().write(true).open(tensor.file).unwrap().set_len(16).unwrap();
        assert!(model.read(name, 0, &mut bytes).is_err());
    }
}

#[test]
fn an_index_must_be_true() {
    let index = |change: fn(&mut Json)| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &config(), 300);
        let path = folder.path().join("model.safetensors.index.json");
        let mut index: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        refusal(folder.path())
    };
    let missing = index(|index| index["weight_map"]["x"] = "model-9.safetensors".into());
    assert_says(&missing, &["index.json", "'model-9.safetensors' is missing", "weight_map"]);
    let outside = index(|index| index["weight_map"]["scale"] = "../model.safetensors".into());
    assert_says(&outside, &["'../model.safetensors'", "a file in the folder"]);
    assert_says(&index(|index| index["weight_map"] = json!([1])), &["index.json", "invalid type"]);
}

#[test]
fn what_is_no_model_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_says(&refusal(&path.join("nowhere")), &["nowhere: No such file"]);
    assert_says(&refusal(path), &["a model is missing", "config.json"]);
    fs::write(path.join("config.json"), "{\"a\": 1}").unwrap();
    fs::write(path.join("pytorch_model.bin"), "").unwrap();
    assert_says(&refusal(path), &["pytorch_model.bin cannot be read"]);
    fs::write(path.join("model.safetensors"), "").unwrap();
    assert_says(&refusal(path), &["model.safetensors: the file ends inside the length of the header"]);
    assert_says(&refusal(&path.join("model.safetensors")), &["open the folder"]);
    assert_says(&refusal(&path.join("config.json")), &["JSON?", "GGUF"]);
    fs::write(path.join("config.json"), "[1]").unwrap();
    assert_says(&refusal(path), &["config.json: the configuration is no object"]);
    fs::write(path.join("config.json"), "{\"a\": 1,}").unwrap();
    assert_says(&refusal(path), &["config.json", "line 1 column 9"]);
    fs::remove_file(path.join("config.json")).unwrap();
    assert_says(&refusal(path), &["config.json: No such file"]);
}

fn gguf_file(tensor: &str, split: Option<(u16, u16, i32)>) -> Vec<u8> {
    let mut writer = gguf::Writer::new();
    if let Some((number, count, tensors)) = split {
        writer.set("split.no", &number).unwrap();
        writer.set("split.count", &count).unwrap();
        writer.set("split.tensors.count", &tensors).unwrap();
    }
    writer.declare(TensorSpec::new(tensor, Format::F32, &[2])).unwrap();
    let mut out = writer.begin(Vec::new()).unwrap();
    out.append(&tensor.repeat(8).as_bytes()[..8]).unwrap();
    out.finish().unwrap()
}

#[test]
fn a_folder_with_one_gguf_model_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.gguf"), gguf_file("a", None)).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let model = ModelFile::open(folder.path()).unwrap();
    assert_eq!((model.kind(), model.path()), (Kind::Gguf, &*folder.path().join("a.gguf")));
    assert!(model.companion("config.json").unwrap().is_none());
    fs::write(folder.path().join("b.gguf"), gguf_file("b", None)).unwrap();
    assert_says(&refusal(folder.path()), &["a.gguf, b.gguf", "one model"]);
}

#[test]
fn the_first_part_opens_all() {
    let folder = tempfile::tempdir().unwrap();
    let part = |number: u16| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for (i, tensor) in ["a", "b", "c"].into_iter().enumerate() {
        fs::write(part(i as u16 + 1), gguf_file(tensor, Some((i as u16, 3, 3)))).unwrap();
    }
    for path in [folder.path(), &part(1)] {
        let model = ModelFile::open(path).unwrap();
        let tensors: Vec<_> = model.tensors().map(|tensor| (tensor.name, tensor.file.to_owned())).collect();
        assert_eq!(tensors, [("a", part(1)), ("b", part(2)), ("c", part(3))]);
        assert!(model.tensors().all(|tensor| tensor.bytes == tensor.name.repeat(8).as_bytes()));
    }
    assert_says(&refusal(&part(2)), &["open its first part"]);

    fs::write(part(3), gguf_file("b", Some((2, 3, 3)))).unwrap();
    assert_says(&refusal(&part(1)), &["m-00003-of-00003.gguf", "tensor 'b' appears more than once"]);
    fs::write(part(3), gguf_file("c", Some((1, 3, 3)))).unwrap();
    assert_says(&refusal(&part(1)), &["m-00003-of-00003.gguf", "'split.no'", "expected 2 of 3"]);
    fs::remove_file(part(3)).unwrap();
    assert_says(&refusal(&part(1)), &["m-00003-of-00003.gguf: part 3 is missing"]);
    fs::write(part(1), gguf_file("a", Some((0, 4, 3)))).unwrap();
    assert_says(&refusal(&part(1)), &["the file's name", "-00001-of-00004.gguf"]);
}

/// A safetensors file with this header and as many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
    "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;

#[test]
fn safetensors_are_checked() {
    let tensors = parse_safetensors(&safetensors(TWO, 22)).unwrap();
    assert_eq!((tensors.len(), tensors["b"].range.len()), (2, 6));

    let positions = TWO.replace("BF16", "I64").replace("[16,22]", "[16,40]");
    let tensors = parse_safetensors(&safetensors(&positions, 40)).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a"], "positions are no weights");

    let whole = safetensors(TWO, 22);
    for len in 0..whole.len() {
        assert!(parse_safetensors(&whole[..len]).is_err(), "cut at {len}");
    }
    let says = |change: fn(String) -> String, data, parts: &[&str]| {
        assert_says(&parse_safetensors(&safetensors(&change(TWO.into()), data)).unwrap_err().to_string(), parts);
    };
    says(|h| h, 23, &["the length of the file", "where the tensors end"]);
    says(|h| h, 21, &["the file ends inside the values of tensor 'b'"]);
    says(|h| h.replace("BF16", "F8_E4M3"), 22, &["dtype F8_E4M3 of tensor 'b' is not supported", "F32, F16, BF16"]);
    says(|h| h.replace("BF16", "I64"), 22, &["the range of tensor 'b' is 16 to 22", "24 bytes"]);
    says(|h| h.replace("[3]", "[0]"), 22, &["the shape of tensor 'b'", "at least 1"]);
    says(|h| h.replace("[3]", "[4]"), 22, &["the range of tensor 'b' is 16 to 22", "8 bytes"]);
    says(|h| h.replace("[3]", "[9223372036854775808,2]"), 22, &["the shape of tensor 'b'", "fits in memory"]);
    says(|h| h.replace("[3]", "[-3]"), 22, &["tensor 'b'", "-3"]);
    says(|h| h.replace("[16,22]", "[22,16]"), 22, &["the range of tensor 'b' is 22 to 16"]);
    says(|h| h.replace("[16,22]", "[10,16]"), 22, &["the offset of tensor 'b' is 10; expected 16"]);
    says(|h| h.replace("[16,22]", "[18,24]"), 24, &["the offset of tensor 'b' is 18; expected 16"]);
    says(
        |h| h.replace("[16,22]", "[18446744073709551609,18446744073709551615]"),
        22,
        &["the file ends inside the values of tensor 'b'"],
    );
    says(|h| h.replace("\"b\"", "\"a\""), 22, &["tensor 'a' appears more than once"]);
    says(|h| h.replace("\"dtype\":\"BF16\",", ""), 22, &["tensor 'b'", "missing field `dtype`"]);
    says(|_| "[".repeat(10_000), 0, &["the header is not what it should be"]);
    let mut huge = safetensors(TWO, 22);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_says(&parse_safetensors(&huge).unwrap_err().to_string(), &["the length of the header", "at most 100000000"]);
    huge[..8].copy_from_slice(&99_000_000u64.to_le_bytes());
    assert_says(&parse_safetensors(&huge).unwrap_err().to_string(), &["the file ends inside the header"]);
}

#[test]
fn the_writer_refuses_what_safetensors_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |tensors: &[TensorSpec]| {
        let result = write_folder(folder.path(), &json!({}), tensors, usize::MAX, |_, _| Ok(()));
        result.unwrap_err().to_string()
    };
    assert_says(&refused(&[TensorSpec::new("q", Format::Q4_0, &[32])]), &["format Q4_0 of tensor 'q'"]);
    let a = TensorSpec::new("a", Format::F32, &[1]);
    assert_says(&refused(&[a.clone(), a.clone()]), &["tensor 'a' appears more than once"]);
    assert_says(&refused(&[a]), &["has not been written in full"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_mutation_of_safetensors_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = safetensors(TWO, 22);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for info in parse_safetensors(&bytes).unwrap_or_default().values() {
            prop_assert!(bytes.get(info.range.clone()).is_some());
        }
    }
}
