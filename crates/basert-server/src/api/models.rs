//! `/v1/models`: the models, and whether they are loaded.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use basert_engine::Sampling;
use serde::Deserialize;
use serde_json::{Value, json};

use super::codex;
use crate::auth::{self, Client};
use crate::body::Fields;
use crate::clock;
use crate::error::ApiError;
use crate::registry::Listed;
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/models", get(list))
        .route("/v1/models/load", post(load))
        .route("/v1/models/unload", post(unload))
        .route("/v1/models/{*name}", get(one))
}

fn describe(listed: &Listed<'_>) -> Value {
    json!({
        "id": listed.name,
        "object": "model",
        "created": clock::seconds(listed.created),
        "owned_by": "basert",
        // Anthropic's names for the same.
        "type": "model",
        "display_name": listed.name,
        "loaded": listed.loaded.is_some(),
        "context_length": listed.loaded.as_ref().map(|model| model.context()),
        "default_sampling": listed.loaded.as_ref().map(|model| sampling(model.sampling())),
    })
}

/// The model's default sampling settings, by the names of request fields.
fn sampling(sampling: &Sampling) -> Value {
    // In the shortest form: 0.95, not the nearest f32's 0.949999988.
    let short = |number: f32| number.to_string().parse::<f64>().ok();
    json!({
        "temperature": short(sampling.temperature),
        "top_k": sampling.top_k,
        "top_p": short(sampling.top_p),
        "min_p": short(sampling.min_p),
        "repeat_penalty": short(sampling.repeat_penalty),
        "presence_penalty": short(sampling.presence_penalty),
        "frequency_penalty": short(sampling.frequency_penalty),
    })
}

/// All models, the first one also under its aliases.
fn all(shared: &Shared) -> Vec<Value> {
    let mut all: Vec<Value> = shared.registry.list().map(|listed| describe(&listed)).collect();
    for alias in shared.registry.aliases() {
        let mut other = all[0].clone();
        (other["id"], other["display_name"]) = (alias.into(), alias.into());
        all.push(other);
    }
    all
}

async fn list(State(shared): State<Shared>) -> Json<Value> {
    let data = all(&shared);
    let context = |model: &Value| model["context_length"].as_u64().and_then(|context| usize::try_from(context).ok());
    let of_codex = |model: &Value| codex::describe(model["id"].as_str().unwrap_or_default(), context(model));
    let models: Vec<Value> = data.iter().map(of_codex).collect();
    Json(json!({ "object": "list", "data": data, "models": models, "has_more": false }))
}

async fn one(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let found = all(&shared).into_iter().find(|model| model["id"] == name);
    found.map(Json).ok_or_else(|| shared.registry.unknown(&name))
}

/// Refuses clients that may not load and unload models, which affects all clients.
fn check_first(shared: &Shared, client: Client) -> Result<(), ApiError> {
    if auth::is_first(&shared.config.api_keys, client) {
        return Ok(());
    }
    let message = "models are loaded and unloaded with the first of the server's API keys";
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    model: String,
}

async fn load(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    check_first(&shared, client)?;
    let Named { model } = fields.rest()?;
    shared.registry.get(Some(&model)).await?;
    Ok(Json(json!({ "id": model, "object": "model", "loaded": true })))
}

async fn unload(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    check_first(&shared, client)?;
    let Named { model } = fields.rest()?;
    let was_loaded = shared.registry.unload(&model).await?;
    Ok(Json(json!({ "id": model, "object": "model", "loaded": false, "was_loaded": was_loaded })))
}
