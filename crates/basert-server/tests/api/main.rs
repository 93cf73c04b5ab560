//! A server on a free port, with a tiny model of random weights, asked over HTTP as its clients do.

mod abuse;
mod anthropic;
mod batches;
mod clients;
mod infill;
mod life;
mod limits;
mod openai;
mod rerank;
mod responses;
mod server;
