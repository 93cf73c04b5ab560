//! CORS: which web pages may use the server.

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

/// Allows pages of these origins, if any. They may send any header, as requests are authorised by their key.
pub fn layer(origins: &[String]) -> Result<CorsLayer, ServeError> {
    if origins.is_empty() {
        return Ok(CorsLayer::new());
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = origins.iter().map(|text| Origin::parse(text)).collect::<Result<Vec<_>, _>>()?;
        AllowOrigin::predicate(move |given: &HeaderValue, _| {
            given.to_str().is_ok_and(|given| origins.iter().any(|origin| origin.has(given)))
        })
    };
    Ok(CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .allow_private_network(true)
        .expose_headers(EXPOSED))
}

/// Whether a page of this origin is one of those that are listed.
pub fn allows(listed: &[String], origin: &str) -> bool {
    listed.iter().any(|one| one == "*" || Origin::parse(one).is_ok_and(|one| one.has(origin)))
}

/// An origin that was listed.
#[derive(Debug, PartialEq)]
enum Origin {
    One(String),
    /// The origin without its port, which is any.
    AnyPort(String),
}

impl Origin {
    fn parse(text: &str) -> Result<Origin, ServeError> {
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
        ] {
            assert_eq!(Origin::parse(listed).unwrap().has(given), expected, "{listed}: {given}");
        }
        for wrong in ["a.example", "http://*.example", "http://localhost:80:*", "http://a.example/page"] {
            assert!(matches!(Origin::parse(wrong), Err(ServeError::Origin(_))), "{wrong}");
        }
    }
}
