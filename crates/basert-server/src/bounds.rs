//! How long the lists of a request may be, whatever API it is for. Bytes, values and tokens are limited elsewhere.

use serde_json::Value;

use crate::error::ApiError;

/// Messages of a conversation, and items of which it is made.
pub const MESSAGES: usize = 20_000;
/// Parts of a message.
pub const PARTS: usize = 20_000;
/// Calls of tools in a message.
pub const CALLS: usize = 1024;
/// Tools that may be called.
pub const TOOLS: usize = 1024;
/// Texts that end an answer, and bytes of each.
pub const STOPS: usize = 16;
pub const STOP_BYTES: usize = 4096;
/// Tokens with a bias.
pub const BIASES: usize = 16_384;
/// Prompts to be continued.
pub const PROMPTS: usize = 64;
/// Inputs to be embedded; as OpenAI's API has it.
pub const INPUTS: usize = 2048;
/// Entries of metadata that is kept, and bytes of a name and of a text; as OpenAI's API has it, but for the names.
pub const METADATA: usize = 16;
pub const METADATA_BYTES: usize = 512;

/// Checks that there are not more than `most`.
pub fn check(field: &str, found: usize, most: usize) -> Result<(), ApiError> {
    if found > most { Err(ApiError::field(field, format!("{found} are given; {most} are the most"))) } else { Ok(()) }
}

/// Checks the messages of a conversation as all APIs make them, and the calls in each.
pub fn messages(field: &str, messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field(field, "there are none; a conversation needs one message at least"));
    }
    check(field, messages.len(), MESSAGES)?;
    let calls = messages.iter().map(|message| message["tool_calls"].as_array().map_or(0, Vec::len));
    match calls.max() {
        Some(calls) if calls > CALLS => {
            Err(ApiError::field(field, format!("a message calls {calls} tools; {CALLS} are the most")))
        }
        _ => Ok(()),
    }
}

/// Checks stop texts against these bounds.
pub fn stops(field: &str, texts: &[String]) -> Result<(), ApiError> {
    check(field, texts.len(), STOPS)?;
    match texts.iter().position(|text| text.len() > STOP_BYTES) {
        Some(i) => {
            let message = format!("{} bytes; {STOP_BYTES} are the most", texts[i].len());
            Err(ApiError::field(format!("{field}[{i}]"), message))
        }
        None => Ok(()),
    }
}

/// Metadata that is kept: a few short texts by name.
pub fn metadata(metadata: &Value) -> Result<(), ApiError> {
    let Some(entries) = metadata.as_object() else {
        return Err(ApiError::field("metadata", "expected an object of texts"));
    };
    check("metadata", entries.len(), METADATA)?;
    let short = |text: &str| text.len() <= METADATA_BYTES;
    match entries.iter().find(|(name, value)| !short(name) || !value.as_str().is_some_and(short)) {
        Some(_) => {
            let message = format!("names and texts of up to {METADATA_BYTES} bytes are kept, and nothing else");
            Err(ApiError::field("metadata", message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_a_few_short_texts() {
        assert_eq!(metadata(&json!({ "a": "b" })), Ok(()));
        let many: serde_json::Map<_, _> = (0..17).map(|i| (i.to_string(), "x".into())).collect();
        for bad in [json!([]), json!({ "a": 1 }), json!({ "a": [[]] }), json!({ "a": "x".repeat(513) }), json!(many)] {
            assert_eq!(metadata(&bad).unwrap_err().param.as_deref(), Some("metadata"), "{bad}");
        }
    }
}
