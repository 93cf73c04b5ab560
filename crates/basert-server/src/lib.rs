//! HTTP in front of models: the APIs that programs already speak.
//!
//! A [`Server`] is given models that it can open ([`Source`]) and a [`Config`]. Each open model has a thread of its own, on
//! which a scheduler shares it between requests; everything else is asynchronous and talks to that thread by channels of
//! limited length. A client that goes away drops its channel, and the thread drops its answer before the next step.
//!
//! What APIs have in common is in one place each: what a model is asked (`model`), how a request becomes that (`options`,
//! `prompt`), what is counted (`usage`); a file of `api` is one family of endpoints.

#![forbid(unsafe_code)]

mod api;
mod auth;
mod batches;
mod body;
mod bounds;
mod budget;
mod cache_keys;
mod clock;
mod config;
mod connection;
mod connections;
mod cors;
mod error;
mod fields;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod json;
mod kept;
mod limits;
mod lines;
mod log;
mod model;
mod query;
mod random;
mod registry;
mod server;
mod sse;
mod stall;
mod telemetry;
mod transfer;
mod work;

pub use config::Config;
pub use model::Source;
pub use server::{ServeError, Server, Stop};
