//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use basert_engine::Token;
use futures_util::stream;
use serde_json::Value;

use crate::error::ApiError;
use crate::json::Pieces;
use crate::model::{Event, Events, Part};

/// Tokens with log probabilities in one piece, so that other requests are served in between.
const AT_ONCE: usize = 16;

/// Splits a long piece.
fn divided(choice: usize, parts: Vec<Part>, tokens: Vec<Token>) -> VecDeque<Event> {
    let (mut pieces, mut tokens) = (VecDeque::new(), tokens.into_iter());
    while tokens.len() > AT_ONCE {
        let tokens = tokens.by_ref().take(AT_ONCE).collect();
        pieces.push_back(Event::Piece { choice, parts: vec![], tokens });
    }
    pieces.push_back(Event::Piece { choice, parts, tokens: tokens.collect() });
    pieces
}

/// An event of a stream: its name, where the API has names, and its data.
pub struct Sent {
    pub name: Option<&'static str>,
    pub data: String,
}

impl Sent {
    pub fn data(data: &Value) -> Sent {
        Sent { name: None, data: data.to_string() }
    }

    /// The same, of JSON in pieces.
    pub fn of(data: Pieces) -> Sent {
        Sent { name: None, data: data.collect() }
    }

    /// With the name that stands in the data as its type, too.
    pub fn named(name: &'static str, data: &Value) -> Sent {
        Sent { name: Some(name), data: data.to_string() }
    }
}

/// How an API renders the events of an answer.
pub trait Narrator: Send + 'static {
    /// The beginning of the stream.
    fn begin(&mut self, out: &mut VecDeque<Sent>);
    /// One event.
    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>);
    /// An error, which ends the stream.
    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>);
    /// The end of the stream.
    fn end(&mut self, out: &mut VecDeque<Sent>);
}

/// The stream of a narrator's renderings of the events.
pub fn stream<N: Narrator>(events: Events, mut narrator: N, keep_alive: Duration) -> Response {
    let mut out = VecDeque::new();
    narrator.begin(&mut out);
    let state = (events, narrator, out, VecDeque::new(), false);
    let sent = stream::unfold(state, async |(mut events, mut narrator, mut out, mut parts, mut over)| {
        while out.is_empty() && !over {
            if let Some(part) = parts.pop_front() {
                narrator.event(part, &mut out);
                continue;
            }
            match events.next().await {
                Ok(Some(Event::Piece { choice, parts: text, tokens })) if tokens.len() > AT_ONCE => {
                    parts = divided(choice, text, tokens);
                }
                Ok(Some(event)) => narrator.event(event, &mut out),
                Ok(None) => {
                    narrator.end(&mut out);
                    over = true;
                }
                Err(error) => {
                    narrator.failed(&error, &mut out);
                    over = true;
                }
            }
        }
        let Sent { name, data } = out.pop_front()?;
        let event = name.map_or_else(sse::Event::default, |name| sse::Event::default().event(name)).data(data);
        Some((Ok::<_, Infallible>(event), (events, narrator, out, parts, over)))
    });
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(sent).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks proxies not to buffer the stream.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    response
}
