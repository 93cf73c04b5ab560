//! `/v1/batches`: a file of requests, answered when there is time, to a file of answers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{Request as HttpRequest, StatusCode, header};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::files::folder;
use super::prompt::elsewhere;
use crate::auth::Client;
use crate::body::Fields;
use crate::error::{self, ApiError};
use crate::files::Files;
use crate::identity;
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/batches", get(list).post(create))
        .route("/v1/batches/{id}", get(describe))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

/// Endpoints that a batch may ask.
const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"];
/// The most requests of a batch.
const MOST_REQUESTS: usize = 50_000;
/// The largest answer to one of them, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;
/// A batch's requests take turns with those of its client as if they were another's.
pub const BATCH: u64 = 1 << 63;
/// How long to wait when the queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    input_file_id: String,
    endpoint: String,
    /// The APIs know only one.
    completion_window: String,
}

/// A batch, as it is told and kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Batch {
    owner: u64,
    /// What is told.
    told: Value,
}

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    custom_id: String,
    method: String,
    url: String,
    body: Map<String, Value>,
}

/// Batches that are being computed. They change here, and are written down when they do.
#[derive(Debug, Default)]
pub struct Batches {
    running: Mutex<Vec<Batch>>,
}

impl Batches {
    fn lock(&self) -> MutexGuard<'_, Vec<Batch>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told of a batch that runs.
    fn get(&self, id: &str) -> Option<Batch> {
        self.lock().iter().find(|batch| batch.told["id"] == id).cloned()
    }

    /// Changes what is told of a batch that runs.
    fn change(&self, id: &str, change: impl FnOnce(&mut Value)) -> Option<Batch> {
        let mut running = self.lock();
        let batch = running.iter_mut().find(|batch| batch.told["id"] == id)?;
        change(&mut batch.told);
        Some(batch.clone())
    }

    fn end(&self, id: &str) -> Option<Batch> {
        let mut running = self.lock();
        let at = running.iter().position(|batch| batch.told["id"] == id)?;
        Some(running.swap_remove(at))
    }
}

/// Batches that a server before left unfinished have failed.
pub fn recover(files: &Files) {
    for mut batch in files.all::<Batch>("batch_") {
        if matches!(batch.told["status"].as_str(), Some("in_progress" | "cancelling")) {
            batch.told["status"] = "failed".into();
            batch.told["failed_at"] = identity::now().into();
            batch.told["errors"] = errors("interrupted", "the server ended before the batch did", None);
            keep(files, &batch);
        }
    }
}

/// Whether the batch could be written down.
fn keep(files: &Files, batch: &Batch) -> bool {
    let id = batch.told["id"].as_str().unwrap_or_default();
    let written = files.write(id, batch);
    if let Err(error) = &written {
        tracing::warn!(%error, id, "a batch cannot be written down");
    }
    written.is_ok()
}

fn errors(code: &str, message: &str, line: Option<usize>) -> Value {
    json!({ "object": "list", "data": [{ "code": code, "message": message, "line": line, "param": null }] })
}

async fn create(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let metadata = fields.0.shift_remove("metadata");
    let request: Request = fields.rest()?;
    if !ENDPOINTS.contains(&request.endpoint.as_str()) {
        let message = format!("'{}' is not one of {}", request.endpoint, ENDPOINTS.join(", "));
        return Err(ApiError::field("endpoint", message));
    }
    if request.completion_window != "24h" {
        return Err(ApiError::field("completion_window", "only '24h' is known"));
    }
    let (reader, input) = (files.clone(), request.input_file_id.clone());
    let content = elsewhere(move || reader.content(client, &input)).await?;
    let lines = parse(&content, &request.endpoint);
    let now = identity::now();
    let mut told = json!({
        "id": identity::unique("batch_"),
        "object": "batch",
        "endpoint": request.endpoint,
        "errors": null,
        "input_file_id": request.input_file_id,
        "completion_window": request.completion_window,
        "status": "in_progress",
        "output_file_id": null,
        "error_file_id": null,
        "created_at": now,
        "in_progress_at": now,
        "expires_at": now + 24 * 3600,
        "request_counts": { "total": lines.as_ref().map_or(0, Vec::len), "completed": 0, "failed": 0 },
        "metadata": metadata,
    });
    let lines = match lines {
        Ok(lines) => lines,
        Err((line, message)) => {
            told["status"] = "failed".into();
            told["failed_at"] = now.into();
            told["errors"] = errors("invalid_line", &message, Some(line));
            vec![]
        }
    };
    let batch = Batch { owner: client.0, told: told.clone() };
    let (writer, id) = (files.clone(), told["id"].as_str().unwrap_or_default().to_owned());
    let written = batch.clone();
    elsewhere(move || writer.write(&id, &written)).await?;
    if told["status"] == "in_progress" {
        shared.batches.lock().push(batch);
        tokio::spawn(run(shared, files, client, told["id"].as_str().unwrap_or_default().to_owned(), lines));
    }
    Ok(Json(told))
}

/// The requests of a file, or the first line that is wrong, from 1, and why.
fn parse(content: &[u8], endpoint: &str) -> Result<Vec<Line>, (usize, String)> {
    let (mut lines, mut ids) = (Vec::new(), HashSet::new());
    for (i, text) in content.split(|&byte| byte == b'\n').enumerate() {
        let wrong = |message: String| Err((i + 1, message));
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line: Line = match serde_json::from_slice(text) {
            Ok(line) => line,
            Err(error) => return wrong(error.to_string()),
        };
        if line.method != "POST" || line.url != endpoint {
            return wrong(format!("{} {}; all requests have to be POST {endpoint}", line.method, line.url));
        }
        if line.body.get("stream").is_some_and(|stream| stream != false) {
            return wrong("answers of a batch are no streams; leave stream out".to_owned());
        }
        if !ids.insert(line.custom_id.clone()) {
            return wrong(format!("custom_id '{}' is there twice", line.custom_id));
        }
        lines.push(line);
        if lines.len() > MOST_REQUESTS {
            return wrong(format!("more than {MOST_REQUESTS} requests"));
        }
    }
    if lines.is_empty() { Err((1, "there are no requests".to_owned())) } else { Ok(lines) }
}

async fn run(shared: Shared, files: Arc<Files>, client: Client, id: String, lines: Vec<Line>) {
    let at_once = shared.config.parallel;
    let answers = stream::iter(lines).map(|line| answer(&shared, client, &id, line)).buffered(at_once);
    let mut answers = std::pin::pin!(answers);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.next().await {
        let Some((is_good, line)) = answer else { continue };
        let (file, count) = if is_good { (&mut good, "completed") } else { (&mut bad, "failed") };
        file.extend_from_slice(line.to_string().as_bytes());
        file.push(b'\n');
        shared.batches.change(&id, |told| {
            let counts = &mut told["request_counts"];
            counts[count] = (counts[count].as_u64().unwrap_or(0) + 1).into();
        });
    }
    let Some(mut batch) = shared.batches.get(&id) else { return };
    // A batch is told to have ended when its files are there: clients ask for them at once.
    let ended = elsewhere(move || {
        let status = if batch.told["status"] == "cancelling" { "cancelled" } else { "completed" };
        batch.told["status"] = status.into();
        batch.told[format!("{status}_at")] = identity::now().into();
        for (name, content) in [("output_file_id", good), ("error_file_id", bad)] {
            if content.is_empty() {
                continue;
            }
            match files.create(client, &format!("{name}.jsonl"), "batch_output", &content) {
                Ok(file) => batch.told[name] = file.id.into(),
                Err(error) => {
                    batch.told["status"] = "failed".into();
                    batch.told["errors"] = errors("not_kept", &error.message, None);
                }
            }
        }
        Ok((keep(&files, &batch), batch))
    });
    match ended.await {
        // What cannot be written down can still be told.
        Ok((false, batch)) => drop(shared.batches.change(&id, |told| *told = batch.told)),
        _ => drop(shared.batches.end(&id)),
    }
}

/// The answer to a line, and whether it is a good one; none if the batch was cancelled before.
async fn answer(shared: &Shared, Client(owner): Client, id: &str, line: Line) -> Option<(bool, Value)> {
    let endpoints = super::router()
        .layer(axum::middleware::from_fn(error::in_its_own_shape))
        .layer(Extension(Client(owner ^ BATCH)))
        .with_state(shared.clone());
    let body = Value::Object(line.body).to_string();
    let (status, answer) = loop {
        if shared.batches.get(id).is_none_or(|batch| batch.told["status"] == "cancelling") {
            return None;
        }
        let request = HttpRequest::post(&line.url).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.clone())).ok()?;
        let Ok(response) = endpoints.clone().oneshot(request).await;
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            tokio::time::sleep(PATIENCE).await;
            continue;
        }
        let bytes = to_bytes(response.into_body(), LARGEST_ANSWER).await.unwrap_or_default();
        break (status, serde_json::from_slice::<Value>(&bytes).unwrap_or_default());
    };
    let response = json!({ "status_code": status.as_u16(), "request_id": identity::unique("req_"), "body": answer });
    let line = json!({ "id": identity::unique("batch_req_"), "custom_id": line.custom_id, "response": response, "error": null });
    Some((status.is_success(), line))
}

/// A client's batch, running or not.
async fn find(shared: &Shared, client: Client, id: String) -> Result<Batch, ApiError> {
    let files = folder(shared)?;
    let running = shared.batches.get(&id);
    let name = id.clone();
    let found = match running {
        Some(batch) => Some(batch),
        None => elsewhere(move || Ok(files.read::<Batch>(&id))).await?,
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
    let cancelled = shared.batches.change(&id, |told| {
        told["status"] = "cancelling".into();
        told["cancelling_at"] = identity::now().into();
    });
    Ok(Json(cancelled.unwrap_or(batch).told))
}

async fn list(State(shared): State<Shared>, Extension(client): Extension<Client>) -> Result<Json<Value>, ApiError> {
    let files = folder(&shared)?;
    let mut all = elsewhere(move || Ok(files.all::<Batch>("batch_"))).await?;
    for batch in &mut all {
        if let Some(running) = batch.told["id"].as_str().and_then(|id| shared.batches.get(id)) {
            *batch = running;
        }
    }
    all.retain(|batch| batch.owner == client.0);
    all.sort_by_key(|batch| std::cmp::Reverse(batch.told["created_at"].as_u64()));
    let data: Vec<_> = all.into_iter().map(|batch| batch.told).collect();
    Ok(Json(json!({ "object": "list", "data": data, "has_more": false })))
}
