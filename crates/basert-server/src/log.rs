//! The access log: a line for each request, with its id, but never with prompts or answers.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use metrics::{counter, histogram};

use crate::random;

/// What the APIs call the header with the id of a request.
const NAMES: [HeaderName; 2] = [HeaderName::from_static("x-request-id"), HeaderName::from_static("request-id")];

/// Gives the request an id, and writes a line when its answer is over.
pub async fn request(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = request.headers().get(&NAMES[0]).and_then(|id| id.to_str().ok());
    let sound = |id: &&str| !id.is_empty() && id.len() <= 128 && id.bytes().all(|c| c.is_ascii_graphic());
    let id = given.filter(sound).map_or_else(|| random::id("req_"), str::to_owned);
    let method = request.method().to_string();
    // Paths that do not exist are of any number.
    let path = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        NAMES.into_iter().for_each(|name| drop(response.headers_mut().insert(name, value.clone())));
    }
    let status = response.status().as_u16();
    let line = Line { id, method, path, status, began, whole: false };
    response.map(|body| Body::new(Logged { body, line }))
}

struct Line {
    id: String,
    method: String,
    path: String,
    status: u16,
    began: Instant,
    /// The answer was sent to its end.
    whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line { id, method, path, status, began, whole } = self;
        let seconds = began.elapsed().as_secs_f64();
        counter!("basert_requests_total", "path" => path.clone(), "status" => status.to_string()).increment(1);
        histogram!("basert_request_seconds", "path" => path.clone()).record(seconds);
        tracing::info!(id, method, path, status, seconds, whole, "request");
    }
}

/// A body that records its end.
struct Logged {
    body: Body,
    line: Line,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        this.line.whole |= matches!(polled, Poll::Ready(None)) || this.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
