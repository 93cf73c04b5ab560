//! The endpoints, a file for each family.

mod chat;
mod completions;
mod format;
mod health;
mod items;
mod messages;
mod models;
mod options;
pub mod page;
mod prompt;
pub mod responses;
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
        .merge(models::router())
        .merge(tokenize::router())
        .merge(health::router())
        .merge(page::router())
}
