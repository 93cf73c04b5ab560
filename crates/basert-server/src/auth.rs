//! Access: API keys, origins and host names.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api;
use crate::cors::Origins;
use crate::error::ApiError;
use crate::server::Shared;

/// The client of a request: an API key, or an address if there are no keys. A client's requests share its fair part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(pub u64);

/// A client's batches are scheduled beside its other requests as those of another client.
const BATCH: u64 = 1 << 63;

impl Client {
    /// The client as which its batches are scheduled.
    pub fn batch(self) -> Client {
        Client(self.0 ^ BATCH)
    }

    /// The client to whom memory and work are charged, also for its batches.
    pub fn account(self) -> u64 {
        self.0 & !BATCH
    }
}

/// Paths that need no key.
const OPEN: [&str; 3] = ["/health", "/ready", "/openapi.json"];

/// Checks the API key, and attaches the client to the request.
pub async fn check(State(shared): State<Shared>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<SocketAddr>().map(SocketAddr::ip);
    check_number_of_hosts(&request)?;
    let open = OPEN.contains(&request.uri().path()) || api::page::has(request.uri().path());
    let client = if shared.config.api_keys.is_empty() {
        if shared.config.address.ip().is_loopback() {
            check_host(&request, &shared.config.hosts)?;
        }
        check_site(&request, &shared.origins)?;
        peer.map_or(0, number)
    } else {
        match key(request.headers()).map(|key| find(&shared.config.api_keys, key)) {
            Some(Some(number)) => number,
            _ if open => u64::MAX,
            given => {
                if given.is_some() {
                    shared.limits.wrong_key(peer.map_or(0, number))?;
                }
                let message = match given {
                    None => "an API key is needed, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                    _ => "the API key is not one of this server's",
                };
                return Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"));
            }
        }
    };
    if !open {
        shared.limits.check(client)?;
    }
    request.extensions_mut().insert(Client(client));
    Ok(next.run(request).await)
}

/// The key of a request, in either API's header.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let bearer = bearer.and_then(|value| value.split_at_checked(7));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, key)| key.trim_ascii());
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
}

/// The index of the key, if it is valid, in a time that depends only on lengths.
fn find(keys: &[String], given: &[u8]) -> Option<u64> {
    let mut found = None;
    for key in keys {
        if bool::from(key.as_bytes().ct_eq(given)) {
            found = Some(number_of_key(given));
        }
    }
    found
}

/// Whether it is the client of the first key; where there are no keys, everybody is.
pub fn is_first(keys: &[String], client: Client) -> bool {
    keys.first().is_none_or(|key| client.0 == number_of_key(key.as_bytes()))
}

/// It is the key's own, so that what is kept for it is found again by a server with other keys beside it.
fn number_of_key(key: &[u8]) -> u64 {
    Sha256::digest(key).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Refuses requests without exactly one `Host`, so that all proxies on the way agree on it.
fn check_number_of_hosts(request: &Request) -> Result<(), ApiError> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11) {
        return Ok(());
    }
    Err(ApiError::bad(format!("{hosts} Host headers; a request has one")))
}

/// Where no key is asked for, a page of another site must not change anything: browsers send forms and empty requests
/// for it without asking first. They say where a request comes from; other programs say nothing.
fn check_site(request: &Request, allowed: &Origins) -> Result<(), ApiError> {
    let text = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let (site, origin) = (text(HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN));
    let own = |origin: &str| {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.zip(text(header::HOST)).is_some_and(|(from, here)| from.eq_ignore_ascii_case(here))
    };
    let is_own = match (site, origin) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, origin) => origin.is_none_or(own),
    };
    if request.method().is_safe() || is_own || origin.is_some_and(|origin| allowed.allow(origin)) {
        return Ok(());
    }
    let message = format!("pages of {} may not use this server; --cors lets them", origin.unwrap_or("other sites"));
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// Endings of names that no name server of the internet gives out: those of the loopback (RFC 6761), and of private
/// networks (RFC 6762, RFC 8375, and ICANN for `internal`, where containers find their host).
const LOOPBACK: &str = "localhost";
const PRIVATE: [&str; 3] = ["local", "home.arpa", "internal"];

/// Where no key is asked for, a page of another site must not get in by a name that leads here (DNS rebinding). So the name
/// has to be one of this machine. In a private network others can give a name to it. Programs are let in by such a name,
/// and pages are not: their requests that change something state their origin. A page's GET to its own origin does not, so
/// by such a name nothing can be read that belongs to a client.
fn check_host(request: &Request, allowed: &[String]) -> Result<(), ApiError> {
    let (headers, uri) = (request.headers(), request.uri());
    let header = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("no text"));
    let mut hosts = header.into_iter().chain(uri.authority().map(|a| a.as_str()));
    let states_origin = headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    let is_public = OPEN.contains(&uri.path()) || uri.path() == "/v1/models";
    let by_program = !states_origin && (!request.method().is_safe() || is_public);
    hosts.try_for_each(|host| check_name(host, by_program, allowed))
}

fn check_name(host: &str, by_program: bool, allowed: &[String]) -> Result<(), ApiError> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    let ends = |ending: &str| name.strip_suffix(ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let is_own = || {
        let own = own_name().to_ascii_lowercase();
        let label = own.split('.').next().unwrap_or_default();
        !label.is_empty() && (name == own || name == label || name.strip_suffix(".local") == Some(label))
    };
    let is_allowed = |given: &String| given == "*" || given.trim_end_matches('.').eq_ignore_ascii_case(&name);
    if name.parse::<IpAddr>().is_ok()
        || ends(LOOPBACK)
        || by_program && PRIVATE.into_iter().any(ends)
        || allowed.iter().any(is_allowed)
        || is_own()
    {
        return Ok(());
    }
    let message = format!(
        "'{host}' is not a name of this machine; ask by localhost or an address, serve with --allow-host {name}, or use an \
         API key"
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// This machine's host name.
#[cfg(unix)]
fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn own_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

fn number(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        // What one customer gets.
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn keys_come_in_either_header() {
        let keys = ["first".to_owned(), "second".to_owned()];
        let (first, second) = (find(&keys, b"first"), find(&keys, b"second"));
        assert!(first.is_some() && second.is_some() && first != second);
        for (name, value, expected) in [
            ("authorization", "Bearer second", second),
            ("authorization", "bearer first", first),
            ("x-api-key", "second", second),
            ("authorization", "Basic first", None),
            ("authorization", "Bearer", None),
            ("authorization", "Bearer firs", None),
            ("x-api-key", "", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(key(&headers).and_then(|key| find(&keys, key)), expected, "{name}: {value}");
        }
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let allowed = Origins::parse(&["https://a.example/".to_owned()]).unwrap();
        let good = |method: &str, headers: &[(&'static str, &'static str)]| {
            let mut request = Request::builder().method(method).header("host", "localhost:8080");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            check_site(&request.body(axum::body::Body::empty()).unwrap(), &allowed).is_ok()
        };
        let (evil, cross) = (("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"));
        for (expected, method, headers) in [
            (true, "POST", &[][..]),
            (true, "POST", &[("origin", "http://localhost:8080")]),
            (true, "POST", &[("origin", "https://proxy.example"), ("sec-fetch-site", "same-origin")]),
            (true, "POST", &[("sec-fetch-site", "none")]),
            (true, "POST", &[("origin", "https://a.example"), cross]),
            (true, "GET", &[evil, cross]),
            (false, "POST", &[evil]),
            (false, "POST", &[cross]),
            (false, "POST", &[evil, cross]),
            (false, "DELETE", &[evil]),
            (false, "POST", &[("origin", "null")]),
            (false, "POST", &[("origin", "http://localhost:3000")]),
            (false, "POST", &[("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")]),
        ] {
            assert_eq!(good(method, headers), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn only_names_of_this_machine_are_asked_without_a_key() {
        let own = own_name();
        for (host, program, page) in [
            ("localhost:8080", true, true),
            ("localhost.:8080", true, true),
            ("127.0.0.1:8080", true, true),
            ("[::1]:8080", true, true),
            ("LOCALHOST", true, true),
            ("chat.localhost", true, true),
            (own.as_str(), true, true),
            ("llm.example", true, true),
            ("host.docker.internal:8080", true, false),
            ("somebody.local", true, false),
            ("evil.example:8080", false, false),
            ("localhost.evil.example", false, false),
            ("evillocalhost", false, false),
            ("local.evil.example", false, false),
            ("llm.example.evil.example", false, false),
        ] {
            let is_let_in = |method: &str, path: &str, origin: Option<&str>| {
                let request = Request::builder().method(method).uri(path).header(header::HOST, host);
                let request = origin.into_iter().fold(request, |request, one| request.header(header::ORIGIN, one));
                check_host(&request.body(Body::empty()).unwrap(), &["llm.example".into()]).is_ok()
            };
            assert_eq!(is_let_in("POST", "/v1/chat/completions", None), program, "{host}");
            assert_eq!(is_let_in("GET", "/v1/models", None), program, "{host}");
            // A page's GET to its own origin states none.
            assert_eq!(is_let_in("GET", "/v1/files", None), page, "{host}");
            assert_eq!(is_let_in("POST", "/v1/chat/completions", Some("http://evil.local")), page, "{host}");
        }
    }
}
