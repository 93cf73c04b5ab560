//! CORS: which web pages may use the server.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::server::ServeError;

/// Response headers that pages may read.
const EXPOSED: [HeaderName; 4] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("request-id"),
    header::RETRY_AFTER,
    header::WARNING,
];

/// The origins whose pages may use the server.
#[derive(Debug, Clone)]
pub struct Origins(Arc<[Origin]>);

impl Origins {
    pub fn parse(listed: &[String]) -> Result<Origins, ServeError> {
        listed.iter().map(|text| Origin::parse(text)).collect::<Result<_, _>>().map(Origins)
    }

    pub fn allow(&self, given: &str) -> bool {
        self.0.iter().any(|origin| origin.has(given))
    }

    /// The layer that tells browsers so. Pages may send any header, as requests are authorised by their key.
    pub fn layer(&self) -> CorsLayer {
        let allowed = if self.0.is_empty() {
            return CorsLayer::new();
        } else if self.0.contains(&Origin::Any) {
            AllowOrigin::any()
        } else {
            let origins = self.clone();
            AllowOrigin::predicate(move |given: &HeaderValue, _| given.to_str().is_ok_and(|given| origins.allow(given)))
        };
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .allow_private_network(true)
            .expose_headers(EXPOSED)
    }
}

/// An origin that was listed.
#[derive(Debug, PartialEq)]
enum Origin {
    Any,
    One(String),
    /// The origin without its port, which is any.
    AnyPort(String),
}

impl Origin {
    fn parse(text: &str) -> Result<Origin, ServeError> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        let (origin, any_port) = match text.strip_suffix(":*") {
            Some(rest) => (rest, true),
            None => (text.as_str(), false),
        };
        let is_origin = origin.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme().is_some() && matches!(uri.path(), "" | "/") && !(any_port && uri.port().is_some())
        });
        match (is_origin && !origin.contains('*'), any_port) {
            (false, _) => Err(ServeError::Origin(text)),
            (true, false) => Ok(Origin::One(text)),
            (true, true) => Ok(Origin::AnyPort(origin.to_owned())),
        }
    }

    fn has(&self, given: &str) -> bool {
        match self {
            Origin::Any => true,
            Origin::One(origin) => given.eq_ignore_ascii_case(origin),
            Origin::AnyPort(origin) => {
                let given = given.to_ascii_lowercase();
                let port = given.strip_prefix(origin.as_str());
                port.is_some_and(|port| {
                    port.is_empty()
                        || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit()))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_may_have_any_port() {
        for (listed, given, expected) in [
            ("https://a.example", "https://a.example", true),
            ("https://A.example/", "https://a.example", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("http://localhost:*", "http://localhost:5173", true),
            ("http://localhost:*", "http://localhost", true),
            ("http://localhost:*", "https://localhost:5173", false),
            ("http://localhost:*", "http://localhost.evil.example:80", false),
            ("http://[::1]:*", "http://[::1]:3000", true),
            ("app://obsidian.md", "app://obsidian.md", true),
            ("*", "null", true),
        ] {
            let listed = ["https://other.example".to_owned(), listed.to_owned()];
            assert_eq!(Origins::parse(&listed).unwrap().allow(given), expected, "{listed:?}: {given}");
        }
        for wrong in ["a.example", "http://*.example", "http://localhost:80:*", "http://a.example/page"] {
            assert!(matches!(Origin::parse(wrong), Err(ServeError::Origin(_))), "{wrong}");
        }
    }
}
