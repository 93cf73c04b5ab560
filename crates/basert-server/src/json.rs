//! Bodies that are JSON, or nearly; and long ones that are made while they are sent.

use std::convert::Infallible;
use std::iter::once;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::error::ApiError;

/// What may be in front of a text, to say which encoding it has.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Refuses what a body's headers say that would not be read as it is meant.
pub fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    let encoding = text(header::CONTENT_ENCODING);
    if !matches!(encoding.to_ascii_lowercase().as_str(), "" | "identity") {
        return unsupported(format!(
            "the body is encoded as '{encoding}'; send it as it is, without a content encoding"
        ));
    }
    let kind = text(header::CONTENT_TYPE);
    let mut parts = kind.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    // A browser asks before it sends JSON to another origin, and does not before it sends text. It always says which origin
    // a page is of; other programs do not, and may call their JSON what they like.
    let from_page = headers.contains_key(header::ORIGIN);
    let is_json = essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json");
    let may_be = ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/octet-stream"];
    if !is_json && (from_page || !may_be.contains(&essence.as_str())) {
        return unsupported(format!("the content type is '{kind}', and has to be application/json"));
    }
    let charset = parts.find_map(|part| Some(part.strip_prefix("charset=")?.trim_matches('"').to_owned()));
    match charset.as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii" | "ascii") => Ok(()),
        Some(charset) => unsupported(format!("the charset is '{charset}', and has to be utf-8")),
    }
}

/// Reads a JSON text. A byte order mark is no part of it (RFC 8259, 8.1), and an escape of half a character, which programs
/// write that cut texts anywhere, is U+FFFD.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        let message = format!("the body is not UTF-8: byte {} does not belong to a character", error.valid_up_to());
        return Err(ApiError::bad(message));
    }
    let not_json = |error| ApiError::bad(format!("the body is not JSON: {error}"));
    serde_json::from_slice(&without_halves(bytes)).map_err(not_json)
}

/// The text with `\ufffd` for each escape of a surrogate that has no other half.
fn without_halves(text: &[u8]) -> Vec<u8> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut whole = text.to_vec();
    let mut at = 0;
    while at < text.len() {
        let step = match (text[at], unit(at)) {
            (b'\\', Some(0xD800..=0xDBFF)) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => 12,
            (b'\\', Some(0xD800..=0xDFFF)) => {
                whole[at + 2..at + 6].copy_from_slice(b"fffd");
                6
            }
            (b'\\', _) => 2,
            _ => 1,
        };
        at += step;
    }
    whole
}

/// JSON that is made piece by piece, so that it need not be in memory as a whole.
pub type Pieces = Box<dyn Iterator<Item = String> + Send>;

/// A value, in one piece.
pub fn value(value: impl Into<Value>) -> Pieces {
    Box::new(once(value.into().to_string()))
}

/// A list.
pub fn list(items: impl Iterator<Item = Pieces> + Send + 'static) -> Pieces {
    let comma = |i| if i > 0 { "," } else { "" };
    let items = items.enumerate().flat_map(move |(i, item)| once(comma(i).to_owned()).chain(item));
    Box::new(once("[".to_owned()).chain(items).chain(once("]".to_owned())))
}

/// An object.
pub fn object<const N: usize>(fields: [(&'static str, Pieces); N]) -> Pieces {
    let begin = |i| if i > 0 { "," } else { "{" };
    let fields = fields.into_iter().enumerate();
    let fields = fields.flat_map(move |(i, (name, field))| once(format!("{}\"{name}\":", begin(i))).chain(field));
    Box::new(fields.chain(once("}".to_owned())))
}

/// Bytes of such JSON that are made at once.
const AT_ONCE: usize = 16 << 10;

/// A response with this body. What is longer than one part is made when it is sent.
pub fn response(mut pieces: Pieces) -> Response {
    let first = part(&mut pieces);
    let body = if first.len() < AT_ONCE {
        Body::from(first)
    } else {
        let rest = stream::unfold(pieces, async |mut pieces| {
            // Others have their turn in between.
            tokio::task::yield_now().await;
            let part = part(&mut pieces);
            (!part.is_empty()).then_some((part, pieces))
        });
        Body::from_stream(stream::iter([first]).chain(rest).map(Ok::<_, Infallible>))
    };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The next part; empty at the end.
fn part(pieces: &mut Pieces) -> String {
    let mut part = String::new();
    while part.len() < AT_ONCE {
        let Some(piece) = pieces.next() else { break };
        part.push_str(&piece);
    }
    part
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_make_what_the_values_are() {
        let items = json!([1, "a\"", null, { "b": [] }]);
        let own = items.as_array().cloned().unwrap_or_default();
        let text: String = object([
            ("list", list(own.into_iter().map(value))),
            ("none", list(std::iter::empty())),
            ("object", object([("x", value(0.5f32)), ("y", value("z"))])),
        ])
        .collect();
        let expected = json!({ "list": items, "none": [], "object": { "x": 0.5, "y": "z" } });
        assert_eq!(text, expected.to_string());
    }

    #[test]
    fn halves_of_characters_are_replaced_and_whole_ones_are_not() {
        for (text, expected) in [
            (r#""a\ud83d""#, Some("a\u{FFFD}")),
            (r#""\ude00b""#, Some("\u{FFFD}b")),
            (r#""\ud83d\ude00\ud83d""#, Some("😀\u{FFFD}")),
            (r#""\ud83d\ud83d\ude00""#, Some("\u{FFFD}😀")),
            (r#""\\ud83d \ud83d""#, Some("\\ud83d \u{FFFD}")),
            (r#""\ud83dx\\""#, Some("\u{FFFD}x\\")),
            ("\u{FEFF}\"a\"", Some("a")),
            (r#""\ud8"#, None),
            (r#""\ud83d"#, None),
        ] {
            let found = parse(text.as_bytes()).ok();
            assert_eq!(found.as_ref().and_then(Value::as_str), expected, "{text}");
        }
        assert!(parse(b"\"a\xFF\"").unwrap_err().message.contains("byte 2"));
    }

    #[test]
    fn headers_of_bodies_that_would_be_misread_are_refused() {
        for (fields, part) in [
            (&[][..], None),
            (&[("content-type", "application/json; charset=UTF-8")], None),
            (&[("content-type", "application/vnd.api+json"), ("content-encoding", "identity")], None),
            (&[("content-type", "application/x-www-form-urlencoded")], None),
            (&[("content-type", "text/plain"), ("origin", "https://a.example")], Some("application/json")),
            (&[("origin", "https://a.example")], Some("application/json")),
            (&[("content-type", "multipart/form-data; boundary=x")], Some("multipart/form-data")),
            (&[("content-type", "application/json"), ("content-encoding", "gzip")], Some("gzip")),
            (&[("content-type", "application/json; charset=utf-16")], Some("utf-16")),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, value.parse().unwrap());
            }
            match (check_headers(&headers), part) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) => assert!(error.status == 415 && error.message.contains(part), "{error}"),
                (found, _) => panic!("{fields:?}: {found:?}"),
            }
        }
    }
}
