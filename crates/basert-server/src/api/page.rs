//! The chat page and that of the endpoints, from within the program.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::docs;
use crate::server::Shared;

/// Lets in no script and no style that is not the pages' own, and no connection but to this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! built {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/", $name))
    };
}

/// Paths, kinds and contents.
fn files() -> [(&'static str, &'static str, &'static [u8]); 7] {
    [
        ("/", "text/html; charset=utf-8", built!("index.html")),
        ("/chat.js", "text/javascript; charset=utf-8", built!("chat.js")),
        ("/chat.css", "text/css; charset=utf-8", built!("chat.css")),
        ("/icon.svg", "image/svg+xml", built!("icon.svg")),
        ("/THIRD_PARTY.txt", "text/plain; charset=utf-8", built!("THIRD_PARTY.txt")),
        ("/docs", "text/html; charset=utf-8", docs::content()),
        ("/docs.css", "text/css; charset=utf-8", docs::STYLE),
    ]
}

pub fn router() -> Router<Shared> {
    files().into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // A new version of the program may bring a new page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, content).into_response() }))
    })
}

/// Whether a path is one of the pages'.
pub fn has(path: &str) -> bool {
    files().iter().any(|file| file.0 == path)
}
