//! A connection: normalisation of request paths, and detection of clients that are gone.
//!
//! A client may close its half of a connection after its request and still read the answer (RFC 9112, 9.6). A client
//! that is gone looks the same until something is sent to it, which its machine then rejects. So a client that has
//! closed its half is probed while its answer is computed: by an interim response before the answer begins, by comments
//! in a stream.

use std::convert::Infallible;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::config::Config;
use crate::connections::Connection;
use crate::stall::Stalling;
use crate::transfer::With;

/// The time before the first probe, and between two probes.
const PROBE: Duration = Duration::from_millis(500);

/// Serves a connection.
pub fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    config: &Config,
    place: Arc<Connection>,
) -> hyper::server::conn::http1::Connection<
    TokioIo<Stalling<Socket>>,
    impl hyper::service::HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send> + use<>,
> {
    // Events are small, and each is waited for.
    let _ = stream.set_nodelay(true);
    let socket = Socket(Arc::new(stream));
    let watched = socket.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(uri) = usual(request.uri()) {
            *request.uri_mut() = uri;
        }
        request.extensions_mut().insert(peer);
        place.works();
        let (socket, router, waits) = (watched.clone(), router.clone(), Waits(place.clone()));
        async move {
            let takes_interim = request.version() >= Version::HTTP_11;
            tokio::select! {
                Ok(response) = router.oneshot(request) => {
                    Ok(socket.watch(response).map(|body| Body::new(With::new(body, waits))))
                }
                () = socket.gone(takes_interim) => Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
            }
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .half_close(true)
        .serve_connection(TokioIo::new(Stalling::new(socket, config.write_timeout)), service)
}

/// A connection that waits for a request again when this is dropped.
struct Waits(Arc<Connection>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waits();
    }
}

/// The families of endpoints.
const FAMILIES: [&str; 11] = [
    "chat",
    "completions",
    "messages",
    "responses",
    "embeddings",
    "models",
    "files",
    "batches",
    "infill",
    "tokenize",
    "detokenize",
];

/// The address of an endpoint that programs put together from parts which do not quite fit: a slash too many, `/v1`
/// twice or not at all.
fn usual(uri: &Uri) -> Option<Uri> {
    let mut parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    while parts.starts_with(&["v1", "v1"]) {
        parts.remove(0);
    }
    if parts.first().is_some_and(|first| FAMILIES.contains(first)) {
        parts.insert(0, "v1");
    }
    let path = format!("/{}", parts.join("/"));
    if path == uri.path() {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut all = uri.clone().into_parts();
    all.path_and_query = Some(PathAndQuery::try_from(format!("{path}{query}")).ok()?);
    Uri::from_parts(all).ok()
}

/// A socket that is read, written and watched.
#[derive(Debug, Clone)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// Returns when the client says nothing more. It need not have gone.
    async fn silent(&self) {
        loop {
            match self.0.peek(&mut [0]).await {
                // What there is to read is of a later request, or the body of this one.
                Ok(1..) => tokio::time::sleep(PROBE).await,
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Returns when the client has gone before its answer has begun.
    async fn gone(&self, takes_interim: bool) {
        self.silent().await;
        loop {
            tokio::time::sleep(PROBE).await;
            if !takes_interim {
                return std::future::pending().await;
            }
            match self.0.try_write(b"HTTP/1.1 102 Processing\r\n\r\n") {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    /// A response whose stream is probed when the client says nothing more.
    fn watch(self, response: Response) -> Response {
        let is_stream = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/event-stream");
        if !response.headers().get(header::CONTENT_TYPE).is_some_and(is_stream) {
            return response;
        }
        let silent = async move {
            self.silent().await;
            tokio::time::sleep(PROBE).await;
        };
        response.map(|body| Body::new(Probed { body, due: Box::pin(silent) }))
    }
}

/// A stream of events with comments in it, once the client is silent.
struct Probed {
    body: Body,
    /// When the next comment is due.
    due: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Probed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(self.due.as_mut().poll(context));
        self.due = Box::pin(tokio::time::sleep(PROBE));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_nearly_fit_are_those_of_endpoints() {
        for (given, expected) in [
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("//v1//chat/completions", "/v1/chat/completions"),
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/messages/count_tokens", "/v1/messages/count_tokens"),
            ("/models/a%2Fb", "/v1/models/a%2Fb"),
            ("/", "/"),
            ("/docs/", "/docs"),
            ("/health", "/health"),
            ("/other/chat/completions", "/other/chat/completions"),
        ] {
            let uri: Uri = given.parse().unwrap();
            assert_eq!(usual(&uri).unwrap_or(uri).to_string(), expected);
        }
    }
}
