//! The endpoints, a file for each family.

pub mod batches;
mod blocks;
mod chat;
mod codex;
mod completions;
mod content;
mod declared;
mod docs;
mod embeddings;
mod files;
mod format;
mod health;
mod items;
mod messages;
mod models;
mod openapi;
mod options;
pub mod page;
mod prompt;
pub mod responses;
mod said;
mod thinking;
mod tokenize;
mod tools;
mod usage;

use axum::Router;

use crate::server::Shared;

/// All of them.
pub fn router() -> Router<Shared> {
    Router::new()
        .merge(chat::router())
        .merge(completions::router())
        .merge(messages::router())
        .merge(responses::router())
        .merge(embeddings::router())
        .merge(models::router())
        .merge(files::router())
        .merge(batches::router())
        .merge(tokenize::router())
        .merge(health::router())
        .merge(openapi::router())
        .merge(page::router())
}
