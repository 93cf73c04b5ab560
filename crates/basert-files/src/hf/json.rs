//! JSON as Python writes it.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Numbers that JSON does not have, and what stands for them: null where there is no number, the largest one for infinity.
const NUMBERS: [(&[u8], &[u8]); 3] =
    [(b"NaN", b"null"), (b"-Infinity", b"-1.7976931348623157e308"), (b"Infinity", b"1.7976931348623157e308")];

/// Parses JSON that may begin with a byte order mark, and hold the numbers `NaN` and `Infinity`, which Python's `json`
/// writes.
///
/// # Errors
/// When it is no JSON, or not of the shape of `T`.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    serde_json::from_slice(text).or_else(|error| match standard(text) {
        Cow::Owned(text) => serde_json::from_slice(&text),
        Cow::Borrowed(_) => Err(error),
    })
}

/// The text with other numbers in place of [`NUMBERS`].
fn standard(text: &[u8]) -> Cow<'_, [u8]> {
    let (mut result, mut done, mut at) = (Vec::new(), 0, 0);
    let mut in_string = false;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'N' | b'I' | b'-' if !in_string => {
                if let Some((name, number)) = NUMBERS.iter().find(|(name, _)| text[at..].starts_with(name)) {
                    result.extend_from_slice(&text[done..at]);
                    result.extend_from_slice(number);
                    done = at + name.len();
                    at = done - 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    result.extend_from_slice(&text[done..]);
    Cow::Owned(result)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let read = |text: &str| read::<Value>(text.as_bytes()).map_err(|_| ());
        assert_eq!(read("\u{feff}{\"a\": 1}"), Ok(json!({"a": 1})));
        let text = r#"{"NaN": NaN, "x": [0.0, Infinity, -Infinity, -1], "text": "a \"NaN\\", "y": "Infinity"}"#;
        let expected = json!({"NaN": null, "x": [0.0, f64::MAX, f64::MIN, -1], "text": "a \"NaN\\", "y": "Infinity"});
        assert_eq!(read(text), Ok(expected));
        for wrong in ["", "{", "NaN NaN", "{\"a\": N}", "\"\\", "\"NaN", "-"] {
            assert_eq!(read(wrong), Err(()), "{wrong}");
        }
    }
}
