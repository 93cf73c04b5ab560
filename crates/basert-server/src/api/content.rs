//! The content of a message: text, and parts of kinds that this server's models cannot read.

use serde::Deserialize;
use serde_json::Value;

use crate::bounds;
use crate::error::ApiError;
use crate::fields::Warnings;

/// The content of a message. Anthropic's API calls the parts blocks.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of parts")]
pub enum Content {
    Text(String),
    Parts(Vec<Value>),
}

/// How to treat a part that is an image, audio or a file.
#[derive(Clone, Copy)]
pub enum Unread<'a> {
    /// Refuse it: the answer would be made up.
    Refused,
    /// Replace it by a note: it is from an earlier turn or a tool, and the conversation can continue without it.
    Noted(&'a Warnings),
}

impl Unread<'_> {
    /// The note that replaces a part of this kind.
    pub fn stand_in(self, kind: &str, path: &str) -> Result<String, ApiError> {
        let what = ["image", "audio", "video", "document", "file"].into_iter().find(|what| kind.contains(what));
        match (self, what) {
            (Unread::Noted(warnings), Some(what)) => {
                warnings.add(format!("{path} ({what})"));
                Ok(format!("[{what} left out: this model reads text alone]"))
            }
            (Unread::Refused, Some(what)) => {
                let message =
                    format!("this model reads text alone, and cannot see the {what} (a part of type '{kind}')");
                Err(ApiError::field(path, message))
            }
            (Unread::Noted(warnings), None) => {
                warnings.add(format!("{path} ({kind})"));
                Ok(format!("[{kind} left out]"))
            }
            (Unread::Refused, None) => {
                Err(ApiError::field(format!("{path}.type"), format!("parts of type '{kind}' are not supported")))
            }
        }
    }
}

impl Content {
    /// As parts, of which a text is one.
    pub fn parts(self, path: &str) -> Result<Vec<Value>, ApiError> {
        match self {
            Content::Text(text) => {
                let part = [("type".to_owned(), "text".into()), ("text".to_owned(), text.into())];
                Ok(vec![Value::Object(part.into_iter().collect())])
            }
            Content::Parts(parts) => bounds::check(path, parts.len(), bounds::PARTS).map(|()| parts),
        }
    }

    /// As one text.
    pub fn text(self, path: &str, unread: Unread<'_>) -> Result<String, ApiError> {
        if let Content::Text(text) = self {
            return Ok(text);
        }
        let parts = self.parts(path)?;
        let mut texts = Vec::with_capacity(parts.len());
        for (i, part) in parts.into_iter().enumerate() {
            let path = format!("{path}[{i}]");
            let kind = part["type"].as_str().unwrap_or("text");
            match kind {
                // Reasoning of earlier turns is not content.
                "thinking" | "redacted_thinking" | "reasoning" => {}
                "text" | "input_text" | "output_text" | "reasoning_text" | "summary_text" | "refusal" => {
                    let text = part["text"].as_str().or(part["refusal"].as_str()).or(part.as_str());
                    let missing = || ApiError::field(format!("{path}.text"), "a part of type text needs a text");
                    // Null is what programs write for an empty one.
                    let text = text.or_else(|| part.get("text").is_some_and(Value::is_null).then_some(""));
                    texts.push(text.ok_or_else(missing)?.to_owned());
                }
                kind => texts.push(unread.stand_in(kind, &path)?),
            }
        }
        Ok(texts.join("\n"))
    }
}

/// A system text without the billing line with which Claude Code begins it. The line is not meant for the model, and
/// differs in every request, so that no prompt with it would ever share a cached prefix.
pub fn without_attribution(text: &str) -> &str {
    let is_attribution = |line: &str| line.trim_start().starts_with("x-anthropic-billing-header:");
    match text.split_once('\n') {
        Some((line, rest)) if is_attribution(line) => rest.trim_start_matches('\n'),
        None if is_attribution(text) => "",
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pays_is_not_said_to_the_model() {
        for (text, expected) in [
            ("x-anthropic-billing-header: cc_version=2.1; cch=97bd6;", ""),
            ("x-anthropic-billing-header: cch=1;\n\nYou are an agent.\nx", "You are an agent.\nx"),
            ("You are an agent.", "You are an agent."),
            ("Never write x-anthropic-billing-header:\nor so", "Never write x-anthropic-billing-header:\nor so"),
        ] {
            assert_eq!(without_attribution(text), expected);
        }
    }
}
