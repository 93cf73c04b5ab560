//! The files of a folder, and how they refer to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::{json, parse_safetensors};
use crate::{FileError, Mapping, Problem, TensorInfo};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Keys of a configuration under which quantisers describe what they did to the weights.
const QUANTISERS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];

/// Prefixes of tensor names in the text part of a multimodal model, and in a text-only model.
const TEXT_PART: [(&str, &str); 8] = [
    ("language_model.", ""),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("model.embed_tokens.", "model.embed_tokens."),
    ("model.layers.", "model.layers."),
    ("model.norm.", "model.norm."),
    ("lm_head.", "lm_head."),
    ("mtp.", "mtp."),
];

/// A safetensors file and the tensors in it.
pub(crate) type Shard = (Mapping, IndexMap<String, TensorInfo>);

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads the configuration of the folder and maps its safetensors files.
///
/// The configuration is `config.json`, with the contents of `generation_config.json`, if there is one, under the key
/// `generation_config`. For a multimodal model it is that of the text part.
pub(crate) fn open(folder: &Path) -> Result<(Json, Vec<Shard>), FileError> {
    let path = folder.join(CONFIG);
    let mut config: Json = read_json(&path)?;
    refuse_quantised(&config).map_err(|problem| problem.of(&path))?;
    let Json::Object(fields) = &mut config else {
        return Err(Problem::invalid("the configuration", "no object", "a JSON object").of(&path));
    };
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        fields.insert("generation_config".into(), read_json(&generation)?);
    }
    let mut shards = open_shards(folder)?;
    if let Some(text) = text_part(fields) {
        config = text;
        for (_, tensors) in &mut shards {
            *tensors = std::mem::take(tensors).into_iter().filter_map(of_text_part).collect();
        }
    }
    for name in dense_modules(folder)? {
        let inside = folder.join(&name);
        if let Some(fields) = config.as_object_mut() {
            fields.insert(name.clone(), read_json(&inside.join(CONFIG))?);
        }
        let (map, tensors) = open_shard(&inside.join(WHOLE))?;
        shards.push((map, tensors.into_iter().map(|(tensor, info)| (format!("{name}.{tensor}"), info)).collect()));
    }
    Ok((config, shards))
}

/// The folders of the dense layers that sentence-transformers adds to a model, by its `modules.json`. Their configurations
/// and tensors are called after them.
fn dense_modules(folder: &Path) -> Result<Vec<String>, FileError> {
    let path = folder.join("modules.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let modules: Json = read_json(&path)?;
    let is_dense = |module: &&Json| module["type"].as_str().is_some_and(|kind| kind.ends_with(".Dense"));
    let dense = modules.as_array().into_iter().flatten().filter(is_dense);
    let name = |module: &Json| {
        let name = module["path"].as_str().unwrap_or_default();
        let mut components = Path::new(name).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(_)), None) => Ok(name.to_owned()),
            _ => Err(Problem::invalid("a 'path'", format!("'{name}'"), "the name of a folder in the folder").of(&path)),
        }
    };
    dense.map(name).collect()
}

/// The configuration of the text part of a multimodal model, with the fields that all parts share.
fn text_part(fields: &Map<String, Json>) -> Option<Json> {
    let text = fields.get("text_config")?.as_object()?;
    text.get("model_type")?;
    let of_all = fields.iter().filter(|(key, _)| !key.ends_with("_config") || *key == "generation_config");
    let own = text.iter().filter(|(_, value)| !value.is_null());
    Some(of_all.chain(own).map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// A tensor under its name in a text-only model, if it belongs to the text part.
fn of_text_part((name, info): (String, TensorInfo)) -> Option<(String, TensorInfo)> {
    let (prefix, alone) = TEXT_PART.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    Some((format!("{alone}{}", &name[prefix.len()..]), info))
}

/// Parses the JSON file at `path`.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    json::read(&Mapping::open(path)?).map_err(|e| Problem::json("the text", &e).of(path))
}

fn refuse_quantised(config: &Json) -> Result<(), Problem> {
    for part in [Some(config), config.get("text_config")].into_iter().flatten() {
        for key in QUANTISERS {
            let Some(found) = part.get(key).filter(|found| !found.is_null()) else { continue };
            let bits = found.get("bits").map_or(String::new(), |bits| format!(", {bits} bits"));
            let method = match (found.get("quant_method").and_then(Json::as_str), key) {
                (Some(method), _) => method,
                (None, "quantization") => "MLX",
                _ => "of an unnamed method",
            };
            return Err(Problem::unsupported(
                format!("a folder of quantised weights ({key}: {method}{bits})"),
                "use a GGUF file, or the original folder with F32, F16 or BF16 weights",
            ));
        }
    }
    Ok(())
}

fn open_shards(folder: &Path) -> Result<Vec<Shard>, FileError> {
    let index_path = folder.join(INDEX);
    if !index_path.exists() {
        return single_or_all(folder)?.into_iter().map(|name| open_shard(&folder.join(name))).collect();
    }
    let index: Index = read_json(&index_path)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let is_there = |name: &&String| folder.join(name).exists();
    if !names.iter().all(is_there) && folder.join(WHOLE).exists() {
        tracing::warn!("{}: of files that are not there; {WHOLE} is read instead", index_path.display());
        return Ok(vec![open_shard(&folder.join(WHOLE))?]);
    }
    let mut shards = BTreeMap::new();
    for name in names {
        let mut components = Path::new(name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let problem =
                Problem::invalid("a file in 'weight_map'", format!("'{name}'"), "the name of a file in the folder");
            return Err(problem.of(&index_path));
        }
        let path = folder.join(name);
        if !path.exists() {
            return Err(Problem::missing(format!("the file '{name}'"), "'weight_map' names it").of(&index_path));
        }
        shards.insert(name, open_shard(&path)?);
    }
    let shards: Vec<Shard> = shards.into_values().collect();
    // What the model needs and does not find is missed when it is built; others may be named in vain.
    let absent = |tensor: &&String| !shards.iter().any(|(_, tensors)| tensors.contains_key(*tensor));
    if let Some(tensor) = index.weight_map.keys().find(absent) {
        tracing::warn!("{}: tensor '{tensor}' is in no file", index_path.display());
    }
    Ok(shards)
}

fn open_shard(path: &Path) -> Result<Shard, FileError> {
    let map = Mapping::open(path)?;
    let tensors = parse_safetensors(&map).map_err(|problem| problem.of(path))?;
    Ok((map, tensors))
}

/// The safetensors files of a folder without an index: `model.safetensors`, or else all of them.
fn single_or_all(folder: &Path) -> Result<Vec<String>, FileError> {
    if folder.join(WHOLE).exists() {
        return Ok(vec![WHOLE.into()]);
    }
    let names = crate::model::files_with_extension(folder, "safetensors")?;
    if names.is_empty() {
        return Err(Problem::missing("*.safetensors", "the folder holds a config.json, but no weights").of(folder));
    }
    Ok(names)
}
