//! `/health`, `/ready` and `/metrics`, for monitoring.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::error::ApiError;
use crate::server::Shared;
use crate::telemetry;

pub fn router() -> Router<Shared> {
    Router::new().route("/health", get(health)).route("/ready", get(ready)).route("/metrics", get(metrics))
}

/// Says that the server runs.
async fn health() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Whether requests can be answered at once, without loading a model first.
async fn ready(State(shared): State<Shared>) -> Response {
    let (status, word) = if shared.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if shared.registry.is_ready() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no model is loaded")
    };
    (status, Json(json!({ "status": word, "in_flight": shared.registry.in_flight() }))).into_response()
}

async fn metrics() -> Result<Response, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_IMPLEMENTED, "this process reports its metrics elsewhere");
    let recorder = telemetry::recorder().ok_or_else(none)?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, recorder.render()).into_response())
}
