//! `/v1/files`.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::{Multipart, MultipartError};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::pages::{self, Length};
use crate::auth::Client;
use crate::error::ApiError;
use crate::files::{Description, Files, Kind, Page};
use crate::query::Query;
use crate::server::Shared;
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/files", get(list).post(create))
        .route("/v1/files/{id}", get(describe).delete(remove))
        .route("/v1/files/{id}/content", get(content))
}

/// Bytes of a file that are read at once.
const PIECE: usize = 64 << 10;

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
    let wrong = |error: MultipartError| {
        let known = ApiError::within(&error).cloned();
        known.unwrap_or_else(|| ApiError::new(error.status(), format!("the form: {}", error.body_text())))
    };
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
    let kept = work::run(move |_| files.create(client, &name, &purpose, &content)).await?;
    Ok(Json(shown(&kept)))
}

/// How a list of files is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    after: Option<String>,
    limit: Option<String>,
    order: Option<Order>,
    purpose: Option<String>,
}

/// By age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

/// As in OpenAI's API.
const LENGTH: Length = Length { usual: 10_000, most: 10_000 };

async fn list(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Query(Listing { after, limit, order, purpose }): Query<Listing>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let page = Page { oldest_first: order == Some(Order::Asc), ..LENGTH.page(after, limit.as_deref())? };
    let found = work::run_long(move |_| {
        let wanted = |file: &Description| purpose.as_ref().is_none_or(|purpose| file.purpose == *purpose);
        files.page(client, Kind::File, &page, wanted)
    });
    let (found, has_more) = found.await?;
    Ok(pages::sent(found.iter().map(shown).collect(), has_more))
}

async fn describe(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    work::run(move |_| files.get(client, &id)).await.map(|file| Json(shown(&file)))
}

async fn remove(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let name = id.clone();
    work::run(move |_| files.remove(client, &id)).await?;
    Ok(Json(json!({ "id": name, "object": "file", "deleted": true })))
}

async fn content(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let files = folder(&shared)?;
    let (description, file) = work::run(move |_| Ok((files.get(client, &id)?, files.content(client, &id)?))).await?;
    // A browser must not show the content as a page of this server.
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let length = [(header::CONTENT_LENGTH, description.bytes)];
    Ok((headers, length, Body::from_stream(stream::unfold(file, piece))).into_response())
}

/// The next piece of a file, and the file; none at its end.
async fn piece(mut file: File) -> Option<(io::Result<Vec<u8>>, File)> {
    let read = spawn_blocking(move || {
        let mut bytes = vec![0; PIECE];
        let read = file.read(&mut bytes).map(|read| bytes.truncate(read));
        (read.map(|()| bytes), file)
    });
    let (bytes, file) = read.await.ok()?;
    (!bytes.as_ref().is_ok_and(Vec::is_empty)).then_some((bytes, file))
}
