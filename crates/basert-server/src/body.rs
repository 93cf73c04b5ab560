//! The body of a request: JSON within limits, of which every field is known.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::server::Shared;

/// Fields that do not change an answer: the APIs say that they may be ignored.
const IGNORED: [&str; 9] = [
    "user",
    "metadata",
    "client_metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
];

/// A JSON object from a request's body.
#[derive(Debug, Default)]
pub struct Fields(pub Map<String, Value>);

impl FromRequest<Shared> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Shared) -> Result<Fields, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A browser asks before it sends JSON to another origin, and does not before it sends text.
        if !kind.trim().to_ascii_lowercase().starts_with("application/json") {
            let message = format!("the content type is '{kind}', and has to be application/json");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let (limit, patience) = (shared.config.body_limit, shared.config.header_timeout);
        let bytes = tokio::time::timeout(patience, to_bytes(request.into_body(), limit)).await;
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body of the request did not come in time");
        let bytes = bytes.map_err(late)?.map_err(|error| {
            let large =
                std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("length limit"));
            if large {
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"))
            } else {
                ApiError::bad(format!("the body could not be read: {error}"))
            }
        })?;
        Fields::parse(&bytes)
    }
}

impl Fields {
    /// Reads a JSON object. Fields that are null count as absent.
    pub fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| ApiError::bad(format!("the body is not JSON: {error}")))?;
        let Value::Object(mut map) = value else {
            return Err(ApiError::bad("the body has to be a JSON object"));
        };
        map.retain(|_, value| !value.is_null());
        Ok(Fields(map))
    }

    /// Takes the fields of these names out and reads them.
    pub fn take<T: DeserializeOwned>(&mut self, names: &[&str]) -> Result<T, ApiError> {
        let taken = names.iter().filter_map(|&name| Some((name.to_owned(), self.0.shift_remove(name)?))).collect();
        read(Value::Object(taken), "")
    }

    /// Reads all that are left; any that is unknown is refused by name.
    pub fn rest<T: DeserializeOwned>(mut self) -> Result<T, ApiError> {
        self.0.retain(|name, _| !IGNORED.contains(&name.as_str()));
        read(Value::Object(self.0), "")
    }
}

/// A field that is not supported, and that programs send as null all the same.
#[derive(Debug)]
pub enum Unsupported {}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Unsupported, D::Error> {
        Err(D::Error::custom("this field is not supported"))
    }
}

/// Reads a part of a body, whose place there is `at`.
pub fn read<T: DeserializeOwned>(value: Value, at: &str) -> Result<T, ApiError> {
    let mut track = serde_path_to_error::Track::new();
    T::deserialize(serde_path_to_error::Deserializer::new(value, &mut track)).map_err(|error| {
        let path = match track.path().to_string() {
            path if at.is_empty() => path,
            path if path == "." => at.to_owned(),
            path => format!("{at}.{path}"),
        };
        let message = error.to_string();
        match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((name, _)) => {
                let path = if path.ends_with(name) { path } else { format!("{path}.{name}") };
                let path = path.trim_start_matches(['.', '?']).to_owned();
                ApiError::field(path, "this field is not supported").with_code("unknown_parameter")
            }
            None if path == "." => ApiError::bad(message),
            None => ApiError::field(path, message),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        inner: Vec<Inner>,
        number: Option<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        name: String,
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        for (body, param, part) in [
            (r#"{"inner": [{"name": "a"}, {"name": "b", "colour": 1}]}"#, Some("inner[1].colour"), "not supported"),
            (r#"{"inner": [], "colour": 1}"#, Some("colour"), "not supported"),
            (r#"{"inner": [{"name": 3}]}"#, Some("inner[0].name"), "expected a string"),
            (r#"{"inner": [], "number": -1}"#, Some("number"), "u32"),
            (r#"{"number": 1}"#, None, "missing field `inner`"),
            ("[]", None, "JSON object"),
            ("{", None, "not JSON"),
        ] {
            let error = Fields::parse(body.as_bytes()).and_then(Fields::rest::<Outer>).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status.as_u16()), (param, 400), "{body}");
            assert!(error.message.contains(part), "{body}: {error}");
        }
        let body = br#"{"inner": [], "number": null, "user": "me", "metadata": {}}"#;
        assert!(Fields::parse(body).and_then(Fields::rest::<Outer>).is_ok());
    }
}
