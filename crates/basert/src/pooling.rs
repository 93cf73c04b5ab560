//! How a model that was trained to embed texts pools its hidden states.

use basert_engine::Pooling;
use basert_files::{Kind, ModelFile, Value, hf};
use basert_graph::Graph;
use serde_json::Value as Json;

/// The pooling that the model's files name; the mean if they name none.
///
/// # Errors
/// When the pooling is unknown or not supported.
pub(crate) fn of(file: &ModelFile, graph: &Graph) -> Result<Pooling, String> {
    if graph.pooled.as_ref().is_some_and(|pooled| pooled.is_scores) {
        return Err("the model ranks or classifies texts, and makes no embeddings".to_owned());
    }
    match file.kind() {
        Kind::Gguf => of_gguf(file),
        Kind::HuggingFace => of_folder(file),
    }
}

/// The numbers of GGUF's `pooling_type`.
fn of_gguf(file: &ModelFile) -> Result<Pooling, String> {
    let architecture = file.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let key = format!("{architecture}.pooling_type");
    match file.get(&key).map(Value::as_u64) {
        None | Some(Some(0 | 1)) => Ok(Pooling::Mean),
        Some(Some(2)) => Ok(Pooling::First),
        Some(Some(3)) => Ok(Pooling::Last),
        Some(Some(4)) => Err(format!("{key} is 4: the model ranks texts, and makes no embeddings")),
        _ => Err(format!("{key} is not one of the known numbers, 0 to 4")),
    }
}

/// The modules of sentence-transformers: a model, its pooling, and perhaps a normalisation to length 1.
fn of_folder(file: &ModelFile) -> Result<Pooling, String> {
    let read = |name: &str| -> Result<Option<Json>, String> {
        let Some(bytes) = file.companion(name).map_err(|error| error.to_string())? else { return Ok(None) };
        hf::read_json(&bytes).map(Some).map_err(|error| format!("{name}: {error}"))
    };
    let modules = read("modules.json")?.unwrap_or_default();
    let mut path = "1_Pooling".to_owned();
    for module in modules.as_array().into_iter().flatten() {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Pooling" => path = module["path"].as_str().unwrap_or(&path).to_owned(),
            "Transformer" | "Normalize" | "Dense" => {}
            other => {
                return Err(format!("modules.json: the module {other:?} after pooling is not supported"));
            }
        }
    }
    let name = format!("{path}/config.json");
    let Some(config) = read(&name)? else { return Ok(Pooling::Mean) };
    let modes = match &config["pooling_mode"] {
        Json::String(mode) => vec![mode.as_str()],
        Json::Array(modes) => modes.iter().filter_map(Json::as_str).collect(),
        _ => {
            let modes = config.as_object().into_iter().flatten().filter(|(_, value)| **value == true);
            modes.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect()
        }
    };
    match modes.as_slice() {
        [] | ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::First),
        ["lasttoken"] => Ok(Pooling::Last),
        other => Err(format!("{name}: pooling by {}; known are mean, cls and lasttoken", other.join(" and "))),
    }
}
