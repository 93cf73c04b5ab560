//! `/v1/files`.

use std::sync::Arc;

use axum::extract::multipart::{Multipart, MultipartError};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::prompt::elsewhere;
use crate::auth::Client;
use crate::error::ApiError;
use crate::files::{Description, Files};
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/files", get(list).post(create))
        .route("/v1/files/{id}", get(describe).delete(remove))
        .route("/v1/files/{id}/content", get(content))
}

/// The folder, if there is one.
pub fn folder(shared: &Shared) -> Result<Arc<Files>, ApiError> {
    let none =
        || ApiError::new(StatusCode::NOT_IMPLEMENTED, "this server keeps no files; --files-dir says where it may");
    shared.files.clone().ok_or_else(none)
}

fn shown(file: &Description) -> Value {
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    })
}

async fn create(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    mut form: Multipart,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let wrong = |error: MultipartError| ApiError::new(error.status(), format!("the form: {}", error.body_text()));
    let (mut purpose, mut file) = (None, None);
    while let Some(field) = form.next_field().await.map_err(wrong)? {
        match field.name().unwrap_or_default() {
            "purpose" => purpose = Some(field.text().await.map_err(wrong)?),
            "file" => {
                let name = field.file_name().unwrap_or("file").to_owned();
                file = Some((name, field.bytes().await.map_err(wrong)?));
            }
            name => return Err(ApiError::field(name, "this field is not supported").with_code("unknown_parameter")),
        }
    }
    let Some((name, content)) = file else { return Err(ApiError::field("file", "there is none in the form")) };
    let Some(purpose) = purpose else { return Err(ApiError::field("purpose", "it is missing in the form")) };
    let kept = elsewhere(move || files.create(client, &name, &purpose, &content)).await?;
    Ok(Json(shown(&kept)))
}

async fn list(State(shared): State<Shared>, Extension(client): Extension<Client>) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let found = elsewhere(move || Ok(files.list(client))).await?;
    let data: Vec<_> = found.iter().map(shown).collect();
    Ok(Json(json!({ "object": "list", "data": data, "has_more": false })))
}

async fn describe(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    elsewhere(move || files.get(client, &id)).await.map(|file| Json(shown(&file)))
}

async fn remove(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let name = id.clone();
    elsewhere(move || files.remove(client, &id)).await?;
    Ok(Json(json!({ "id": name, "object": "file", "deleted": true })))
}

async fn content(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let files = folder(&shared)?;
    let bytes = elsewhere(move || files.content(client, &id)).await?;
    // Whatever it is, a browser must not show it as a page of this server.
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, bytes).into_response())
}
