//! HTTP requests, with retries.

use std::error::Error as StdError;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url, redirect};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::pull::PullOptions;

/// How often a request without a download to lose is tried again: a user waits for an answer.
const JSON_RETRIES: u32 = 3;
/// Longest listing of a repository that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 10;
/// The likely cause of an HTML page in place of a file.
pub(crate) const HTML_PAGE: &str =
    "an HTML page came instead; it may be the login page of this network (open a web page once), or that of a proxy";

/// A client of one hub.
pub(crate) struct Http<'a> {
    client: Client,
    pub(crate) endpoint: Url,
    token: Option<HeaderValue>,
    pub(crate) options: &'a PullOptions,
    pub(crate) progress: &'a dyn Progress,
}

/// Why a request did not succeed.
pub(crate) enum Failure {
    /// Trying again would not help.
    Fatal(Error),
    /// It may work after a while; the server may have said how long.
    Transient { error: Error, wait: Option<Duration> },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Fatal(error)
    }
}

impl<'a> Http<'a> {
    pub(crate) fn new(options: &'a PullOptions, progress: &'a dyn Progress) -> Result<Http<'a>> {
        let endpoint = Url::parse(&options.endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| Error::BadOption {
                option: "HF_ENDPOINT",
                reason: format!("must be an http or https address, not `{}`", options.endpoint),
            })?;
        let token = match options.token.as_deref().map(str::trim).filter(|t| !t.is_empty()) {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Error::BadOption {
                    option: "HF_TOKEN",
                    reason: "has characters that no token has".into(),
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        // The process's own choice of cryptography, if it made one, stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("basert/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.stall_timeout)
            // In the blocking client this bounds each wait (for the headers, for the next bytes), not the whole.
            .timeout(options.stall_timeout)
            .redirect(redirect::Policy::custom(follow));
        if matches!(endpoint.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| Error::Network { what: endpoint.to_string(), reason: words(&e) })?;
        Ok(Http { client, endpoint, token, options, progress })
    }

    /// The address of `parts` below the endpoint, each escaped.
    pub(crate) fn url<'p>(&self, parts: impl IntoIterator<Item = &'p str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// One GET. `what` names the file or repository in errors; the answer has status 200, 206 or 416.
    pub(crate) fn get(&self, url: &Url, what: &str, headers: HeaderMap) -> Result<Response, Failure> {
        let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity").headers(headers);
        if let Some(token) = &self.token {
            // reqwest drops it when a redirect leaves the host.
            request = request.header(header::AUTHORIZATION, token);
        }
        let network = |e: reqwest::Error| {
            let reason = if e.is_connect() { unreachable(url, &e) } else { words(&e) };
            let error = Error::Network { what: what.into(), reason };
            if e.is_redirect() || e.is_builder() {
                Failure::Fatal(error)
            } else {
                Failure::Transient { error, wait: None }
            }
        };
        let response = request.send().map_err(network)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(refusal(&response, what)),
        }
    }

    /// The size of a file of which the listing does not say it, and its sha256 if the server's tag is one.
    pub(crate) fn size(&self, url: &Url, what: &str) -> Result<(u64, Option<Digest>)> {
        let mut retry = Retry::new(self, self.options.retries.min(JSON_RETRIES));
        let response = loop {
            match self.get(url, what, HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static("bytes=0-0"))])) {
                Ok(response) => break response,
                Err(failure) => retry.pause(failure, &|| false)?,
            }
        };
        let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let size = match response.status() {
            StatusCode::OK => response.content_length(),
            _ => text(header::CONTENT_RANGE).and_then(|range| range.rsplit_once('/')?.1.parse().ok()),
        };
        let tag = text(header::ETAG).map(|tag| tag.trim_matches('"').to_owned());
        let digest = tag.and_then(|tag| Digest::try_from(tag).ok()).filter(|d| matches!(d, Digest::Sha256(_)));
        let unknown =
            || Error::BadResponse { what: what.into(), reason: "the hub does not say how large it is".into() };
        Ok((size.ok_or_else(unknown)?, digest))
    }

    /// The first `most` bytes of a file, with retries.
    pub(crate) fn head(&self, url: &Url, what: &str, most: u64) -> Result<Vec<u8>> {
        let range = HeaderValue::from_str(&format!("bytes=0-{}", most - 1)).expect("digits are a header value");
        self.read(url, what, HeaderMap::from_iter([(header::RANGE, range)]), most)
    }

    /// GETs a JSON document, with retries.
    pub(crate) fn get_json<T: serde::de::DeserializeOwned>(&self, url: &Url, what: &str) -> Result<T> {
        let body = self.read(url, what, HeaderMap::new(), MAX_JSON_BYTES)?;
        let bad = |reason: String| Error::BadResponse { what: what.into(), reason };
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(bad(HTML_PAGE.into()));
        }
        serde_json::from_slice(&body).map_err(|e| bad(format!("expected the hub's JSON description of it: {e}")))
    }

    /// At most `most` bytes of an answer, with retries.
    fn read(&self, url: &Url, what: &str, headers: HeaderMap, most: u64) -> Result<Vec<u8>> {
        use std::io::Read;
        let mut retry = Retry::new(self, self.options.retries.min(JSON_RETRIES));
        loop {
            let body = self.get(url, what, headers.clone()).and_then(|response| {
                let mut body = Vec::new();
                let read = response.take(most).read_to_end(&mut body);
                read.map_err(|e| interrupted(what, &e)).map(|_| body)
            });
            match body {
                Ok(body) => return Ok(body),
                Err(failure) => retry.pause(failure, &|| false)?,
            }
        }
    }
}

/// Follows redirects, but not from https to http, nor for ever.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if secure && attempt.url().scheme() != "https" {
        attempt.error("the server redirects from https to an unencrypted address")
    } else if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("the server redirects in circles")
    } else {
        attempt.follow()
    }
}

/// Counts failures in a row, and waits longer after each.
pub(crate) struct Retry<'a> {
    http: &'a Http<'a>,
    failures: u32,
    most: u32,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(http: &'a Http<'a>, most: u32) -> Retry<'a> {
        Retry { http, failures: 0, most }
    }

    /// Bytes arrived since the last failure.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next try, or gives the error back when there should be none.
    /// Returns early once `stop` says so.
    pub(crate) fn pause(&mut self, failure: Failure, stop: &dyn Fn() -> bool) -> Result<()> {
        let (error, wait) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Transient { error, wait } => (error, wait),
        };
        let options = self.http.options;
        if self.failures >= self.most {
            return Err(error);
        }
        let backoff = options.backoff.saturating_mul(1 << self.failures.min(6));
        self.failures += 1;
        let wait = wait.map_or(backoff, |asked| asked.max(backoff));
        if wait > options.max_wait.max(backoff) {
            let host = match &error {
                Error::Http { host, .. } => host.clone(),
                _ => "the hub".into(),
            };
            return Err(Error::RateLimited { host, wait });
        }
        self.http.progress.note(&format!("{error}; trying again in {:.1} s", wait.as_secs_f32()));
        let end = std::time::Instant::now() + wait;
        while !stop() {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

/// The failure of a body that ended or stalled.
pub(crate) fn interrupted(what: &str, error: &std::io::Error) -> Failure {
    let reason = match error.get_ref() {
        Some(inner) => words(inner),
        None => words(error),
    };
    Failure::Transient { error: Error::Network { what: what.into(), reason }, wait: None }
}

/// What an answer with an error status means.
fn refusal(response: &Response, what: &str) -> Failure {
    let status = response.status();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let message: String = match header("x-error-message") {
        Some(text) => text.chars().filter(|c| !c.is_control()).take(300).collect(),
        None => format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("")).trim_end().into(),
    };
    let what = what.to_owned();
    // A hub hides private repositories behind 401, and says so in this header.
    let absent = matches!(header("x-error-code"), Some("RepoNotFound" | "RevisionNotFound" | "EntryNotFound"));
    match status.as_u16() {
        404 => Failure::Fatal(Error::NotOnHub { what, message }),
        401 | 403 if absent => Failure::Fatal(Error::NotOnHub { what, message }),
        401 | 403 => Failure::Fatal(Error::Gated { repo: what, message }),
        code => {
            let host = response.url().host_str().unwrap_or_default().to_owned();
            let error = Error::Http { host, status: code, what, message };
            match code {
                408 | 425 | 429 | 500 | 502 | 503 | 504 => {
                    let wait = header("retry-after").and_then(|text| retry_after(text, Timestamp::now()));
                    Failure::Transient { error, wait }
                }
                _ => Failure::Fatal(error),
            }
        }
    }
}

/// RFC 9110, 10.2.3: seconds, or an HTTP date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Why there is no connection to a host, and what may help.
fn unreachable(url: &Url, error: &reqwest::Error) -> String {
    let mut cause: &(dyn StdError + 'static) = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let (host, cause) = (url.host_str().unwrap_or_default(), cause.to_string());
    // The library does not say why.
    let cause = match cause.as_str() {
        "SOCKS error: failed to create underlying connection" => "the SOCKS proxy cannot be reached, or refused",
        cause => cause,
    };
    format!("no connection to {host}: {cause} (HTTPS_PROXY or ALL_PROXY names a proxy, HF_ENDPOINT a mirror)")
}

/// An error with its causes, without addresses: those of a redirect's target may hold secrets.
fn words(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<reqwest::Error>() {
            Some(e) if e.is_timeout() => "no bytes for too long".to_owned(),
            Some(e) => e.to_string().split(" for url (").next().unwrap_or_default().to_owned(),
            None => error.to_string(),
        };
        // Layers often repeat what they wrap.
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_seconds_or_as_a_date() {
        let now: Timestamp = "2015-10-21T07:27:30Z".parse().unwrap();
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }
}
