//! `/v1/batches`: requests from a file, answered in the background into another file.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::Value;

use super::files::folder;
use super::pages::{self, Length};
use crate::auth::Client;
use crate::batches::{self, Batch};
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::files::Kind;
use crate::query::Query;
use crate::server::Shared;
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/batches", get(list).post(create))
        .route("/v1/batches/{id}", get(describe))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

/// Endpoints that a batch may use.
const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    input_file_id: String,
    endpoint: String,
    /// The APIs know only one.
    completion_window: String,
}

async fn create(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let metadata = fields.0.shift_remove("metadata");
    metadata.iter().try_for_each(bounds::metadata)?;
    let request: Request = fields.rest()?;
    if !ENDPOINTS.contains(&request.endpoint.as_str()) {
        let message = format!("'{}' is not one of {}", request.endpoint, ENDPOINTS.join(", "));
        return Err(ApiError::field("endpoint", message));
    }
    if request.completion_window != "24h" {
        return Err(ApiError::field("completion_window", "only '24h' is known"));
    }
    let batch = Batch::new(client, request.input_file_id, request.endpoint, metadata);
    Ok(Json(batches::begin(&shared, folder(&shared)?, batch).await?.told))
}

/// A client's batch, running or not.
async fn find(shared: &Shared, client: Client, id: String) -> Result<Batch, ApiError> {
    let files = folder(shared)?;
    let running = shared.batches.get(&id);
    let name = id.clone();
    let found = match running {
        Some(batch) => Some(batch),
        None => work::run(move |_| Ok(files.read::<Batch>(&id))).await?,
    };
    let none = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no batch '{name}'"));
    found.filter(|batch| batch.owner == client.0).ok_or_else(none)
}

async fn describe(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(find(&shared, client, id).await?.told))
}

async fn cancel(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let batch = find(&shared, client, id.clone()).await?;
    Ok(Json(shared.batches.cancel(&id).unwrap_or(batch).told))
}

/// How a list of batches is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    after: Option<String>,
    limit: Option<String>,
}

/// As in OpenAI's API.
const LENGTH: Length = Length { usual: 20, most: 100 };

async fn list(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Query(Listing { after, limit }): Query<Listing>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let page = LENGTH.page(after, limit.as_deref())?;
    let found = work::run_long(move |_| files.page(client, Kind::Batch, &page, |_: &Batch| true));
    let (found, has_more) = found.await?;
    let now = |batch: Batch| shared.batches.get(batch.id()).unwrap_or(batch).told;
    Ok(pages::sent(found.into_iter().map(now).collect(), has_more))
}
