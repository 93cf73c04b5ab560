//! The body of a request: JSON within limits, of which every field is known.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};
use crate::json;
use crate::server::Shared;
use crate::work;

/// What a value of JSON takes when it is read, in bytes: its place in a list that grows, and in what is made of it.
pub const VALUE: usize = 128;
/// Limit on the memory of a parsed body: this many times the limit of its size, but at least this many bytes.
const GROWTH: usize = 4;
const ALWAYS: usize = 16 << 20;

/// What is wrong with a body that could not be read.
fn unread(error: &axum::Error) -> ApiError {
    let known = ApiError::within(error).cloned();
    known.unwrap_or_else(|| ApiError::bad(format!("the body could not be read: {error}")))
}

/// The most values that a text has if it is JSON: one more than there are commas, colons and opening brackets.
pub fn values(text: &[u8]) -> usize {
    let (mut values, mut at) = (1, 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b',' | b':' | b'[' | b'{' => values += 1,
            b'"' => {
                while let Some(&byte) = text.get(at) {
                    at += if byte == b'\\' { 2 } else { 1 };
                    if byte == b'"' {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    values
}

/// A JSON object from a request's body.
#[derive(Debug, Default)]
pub struct Fields(pub Map<String, Value>, pub Warnings);

impl FromRequest<Shared> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Shared) -> Result<Fields, ApiError> {
        json::check_headers(request.headers())?;
        let warnings = request.extensions().get::<Warnings>().cloned().unwrap_or_default();
        let bytes = to_bytes(request.into_body(), usize::MAX).await.map_err(|error| unread(&error))?;
        let (values, most) = (values(&bytes), shared.config.body_limit.saturating_mul(GROWTH).max(ALWAYS));
        // The texts are there twice, in the body and in what is made of it.
        let taken = bytes.len().saturating_add(values.saturating_mul(VALUE));
        if taken > most {
            let message = format!("the body has {values} values, which take more than {most} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        work::hold(taken)?;
        Ok(Fields(Fields::parse(&bytes)?.0, warnings))
    }
}

impl Fields {
    /// Reads a JSON object. Fields that are null count as absent, and a number without a fraction is a whole one.
    pub fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
        let Value::Object(mut map) = json::parse(bytes)? else {
            return Err(ApiError::bad("the body has to be a JSON object"));
        };
        // As Ollama's own API has it: settings of an answer in an object of their own.
        if let Some(Value::Object(options)) = map.shift_remove("options") {
            for (name, value) in options {
                map.entry(name).or_insert(value);
            }
        }
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(whole);
        Ok(Fields(map, Warnings::default()))
    }

    /// Takes the fields that a type reads out and reads them, but for those that its endpoint does not have.
    pub fn take<T: DeserializeOwned>(&mut self, but: &[&str]) -> Result<T, ApiError> {
        let names: Vec<&str> = fields::names::<T>().iter().copied().filter(|name| !but.contains(name)).collect();
        fields::rename(&mut self.0, &names, Place::Request)?;
        let taken = names.iter().filter_map(|&name| Some((name.to_owned(), self.0.shift_remove(name)?))).collect();
        read(Value::Object(taken), "", Place::Request)
    }

    /// Reads all that are left; any that would change the answer and is not read is refused by name.
    pub fn rest<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        fields::part(Value::Object(self.0), "", Place::Request, &self.1)
    }
}

/// Makes 16.0 the whole number that it is.
fn whole(value: &mut Value) {
    // Up to there, floats are whole numbers without gaps.
    let exact = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
    if let Some(x) = value.as_f64().filter(exact).filter(|_| value.is_f64()) {
        *value = Value::from(x as i64);
    }
}

/// What serde says of a value of the wrong type, without Rust's names of types.
fn in_plain_words(message: String) -> String {
    let words = [
        (["usize", "u64", "u32"].as_slice(), "a whole number that is not negative"),
        (&["i64", "i32"], "a whole number"),
        (&["f32", "f64"], "a number"),
        (&["a boolean"], "true or false"),
    ];
    let found = words.iter().find_map(|(types, words)| {
        let expected = message.split_once(", expected ")?;
        types.contains(&expected.1).then(|| format!("{}, expected {words}", expected.0))
    });
    found.unwrap_or(message)
}

/// Reads a part of a body, whose place there is `at`.
pub fn read<T: DeserializeOwned>(value: Value, at: &str, place: Place) -> Result<T, ApiError> {
    let mut track = serde_path_to_error::Track::new();
    T::deserialize(serde_path_to_error::Deserializer::new(value, &mut track)).map_err(|error| {
        let path = match track.path().to_string() {
            path if at.is_empty() => path,
            path if path == "." => at.to_owned(),
            path => format!("{at}.{path}"),
        };
        let message = in_plain_words(error.to_string());
        match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((name, _)) => {
                let path = if path.ends_with(name) { path } else { format!("{path}.{name}") };
                let path = path.trim_start_matches(['.', '?']).to_owned();
                ApiError::field(path, fields::refusal(name, place)).with_code("unknown_parameter")
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

    #[test]
    fn there_are_never_more_values_than_were_counted() {
        fn all(value: &Value) -> usize {
            match value {
                Value::Array(list) => 1 + list.iter().map(all).sum::<usize>(),
                Value::Object(map) => 1 + map.values().map(|value| 1 + all(value)).sum::<usize>(),
                _ => 1,
            }
        }
        for text in [
            "1",
            "[]",
            "[1,2,[3,[]],{}]",
            r#"{"a":1,"b":[true,null],"c":{"d":"e"}}"#,
            r#"["a,b:c[d{","\\",",\",","\u005c",","]"#,
            "\n[ 1 , 2 ]\t",
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!((all(&value)..=all(&value) + 3).contains(&values(text.as_bytes())), "{text}");
        }
        for broken in ["", "\"", "\"\\", "[\"a,", "\\\""] {
            values(broken.as_bytes());
        }
    }

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
            (r#"{"inner": [], "number": -1}"#, Some("number"), "not negative"),
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
