//! The endpoints, a file for each family.

mod batches;
mod blocks;
mod chat;
mod codex;
mod completions;
mod content;
mod docs;
mod embeddings;
mod files;
mod format;
mod health;
mod infill;
mod items;
mod messages;
mod models;
mod openapi;
mod options;
pub mod page;
mod pages;
mod prompt;
mod rerank;
mod response_input;
mod response_tools;
mod responses;
mod thinking;
mod tokenize;
mod tools;
mod usage;

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};

use crate::auth::Client;
use crate::error::ApiError;
use crate::server::Shared;
use crate::transfer::{Timely, With};
use crate::work::{Left, Served};

/// Bodies up to this many bytes are parsed directly.
const SMALL: u64 = 32 << 10;

/// The router of all endpoints.
pub fn router(shared: &Shared) -> Router<Shared> {
    Router::new()
        .merge(chat::router())
        .merge(completions::router())
        .merge(infill::router())
        .merge(messages::router())
        .merge(responses::router())
        .merge(embeddings::router())
        .merge(rerank::router())
        .merge(models::router())
        .merge(files::router())
        .merge(batches::router())
        .merge(tokenize::router())
        .merge(health::router())
        .merge(openapi::router())
        .merge(page::router())
        .layer(from_fn_with_state(shared.clone(), within_limits))
}

/// Serves a request with a time limit for its body, with its memory accounted until the answer ends, and on threads
/// where it delays no other request.
async fn within_limits(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let small = request.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL);
    let hold = Arc::new(shared.budget.hold(client));
    let (limit, patience) = (shared.config.body_limit, shared.config.header_timeout);
    let request = request.map(|body| Body::new(Timely::new(body, limit, patience, hold.clone())));
    let left = Left::default();
    let served = Served { work: shared.work.clone(), client, hold: hold.clone(), small, left: left.0.clone() };
    let answer = served.scope(next.run(request));
    let response = if small { answer.await } else { shared.work.serve(client, answer).await? };
    Ok(response.map(|body| Body::new(With::new(body, hold))))
}
