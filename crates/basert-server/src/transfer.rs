//! Bodies in transfer: time limits for those of requests, and a notice when those of responses are sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::budget::Hold;
use crate::error::ApiError;

/// Bytes a second that a body has to come with, beyond what comes before the timeout.
const SLOWEST: u64 = 32 << 10;

/// A body that has to come in time, and not to be too large. Its bytes are counted as they come. What there is no room
/// for is read all the same, and dropped: a client that is cut off while it sends would not read why.
pub struct Timely {
    body: Body,
    bytes: usize,
    limit: usize,
    hold: Arc<Hold>,
    refused: Option<ApiError>,
    began: Instant,
    patience: Duration,
    late: Pin<Box<Sleep>>,
}

impl Timely {
    pub fn new(body: Body, limit: usize, patience: Duration, hold: Arc<Hold>) -> Timely {
        let (began, late) = (Instant::now(), Box::pin(sleep(patience)));
        Timely { body, bytes: 0, limit, hold, refused: None, began, patience, late }
    }

    /// Looks at a frame that came; an error if it is too much.
    fn came(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        if self.bytes > self.limit {
            let message = format!("the body is larger than {} bytes", self.limit);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let more = Duration::from_millis(self.bytes as u64 * 1000 / SLOWEST);
        self.late.as_mut().reset(self.began + self.patience + more);
        if self.refused.is_none() {
            self.refused = self.hold.grow(bytes).err();
        }
        Ok(())
    }
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
                ready!(this.late.as_mut().poll(context));
                let late = ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body of the request did not come in time");
                return Poll::Ready(Some(Err(axum::Error::new(late))));
            };
            if let Some(Ok(frame)) = &frame
                && let Err(error) = this.came(frame.data_ref().map_or(0, Bytes::len))
            {
                return Poll::Ready(Some(Err(axum::Error::new(error))));
            }
            match (&frame, this.refused.take()) {
                (Some(Ok(_)), refused @ Some(_)) => this.refused = refused,
                (None, Some(error)) => return Poll::Ready(Some(Err(axum::Error::new(error)))),
                _ => return Poll::Ready(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, with something that is dropped when it is sent.
pub struct With<T> {
    body: Body,
    _kept: T,
}

impl<T> With<T> {
    pub fn new(body: Body, kept: T) -> With<T> {
        With { body, _kept: kept }
    }
}

impl<T: Unpin> HttpBody for With<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
