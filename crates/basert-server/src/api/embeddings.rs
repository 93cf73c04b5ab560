//! `/v1/embeddings`: refused, with the reason, as long as no plan gives the hidden states that would be pooled.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::body::Fields;
use crate::error::ApiError;
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/embeddings", post(refuse))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: Option<String>,
    #[serde(rename = "input")]
    _input: IgnoredAny,
    #[serde(rename = "encoding_format")]
    _encoding_format: Option<String>,
    #[serde(rename = "dimensions")]
    _dimensions: Option<usize>,
}

async fn refuse(State(shared): State<Shared>, fields: Fields) -> ApiError {
    let checked = fields.rest::<Request>().and_then(|request| shared.registry.check(request.model.as_deref()));
    if let Err(error) = checked {
        return error;
    }
    let message = "this model generates text; it gives no hidden states that embeddings could be made of";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, message).with_code("unsupported")
}
