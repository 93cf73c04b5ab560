//! The messages of Anthropic's API: blocks of text, of calls and their results, and of what this server's models cannot
//! read.

use serde::Deserialize;
use serde_json::{Value, json};

use super::content::{Content, Unread, without_attribution};
use crate::body;
use crate::bounds;
use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
struct ToolUse {
    id: String,
    name: String,
    /// An object; what a client made of a call that broke off is kept as it is.
    #[serde(default)]
    input: Value,
}

#[derive(Debug, Deserialize)]
struct ToolResult {
    tool_use_id: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    thinking: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Text {
    text: Option<String>,
}

/// Text with a title and a place, as results of searches and documents have it.
#[derive(Debug, Deserialize)]
struct Document {
    source: Value,
    title: Option<String>,
    context: Option<String>,
    content: Option<Content>,
}

/// The conversation as templates want it.
pub fn conversation(
    system: Option<Content>,
    messages: Vec<Value>,
    warnings: &Warnings,
) -> Result<Vec<Value>, ApiError> {
    bounds::messages("messages", &messages)?;
    let mut all = Vec::new();
    if let Some(system) = system {
        all.extend(self::system(system, "system", warnings)?);
    }
    let last_of_user = messages.iter().rposition(|message| message["role"] == "user");
    for (index, message) in messages.into_iter().enumerate() {
        let path = format!("messages[{index}]");
        let Message { role, content } = fields::part(message, &path, Place::Message, warnings)?;
        let path = format!("{path}.content");
        let unread = if last_of_user == Some(index) { Unread::Refused } else { Unread::Noted(warnings) };
        match role.as_str() {
            "user" => user(content, &path, unread, warnings, &mut all)?,
            "assistant" => all.push(assistant(content, &path, unread)?),
            "system" | "developer" => all.extend(self::system(content, &path, warnings)?),
            role => {
                let message = format!("'{role}' is not one of user and assistant");
                return Err(ApiError::field(format!("messages[{index}].role"), message));
            }
        }
    }
    Ok(all)
}

/// The system's text, if there is any beside who pays.
fn system(content: Content, path: &str, warnings: &Warnings) -> Result<Option<Value>, ApiError> {
    let texts = texts(content, path, Unread::Noted(warnings))?;
    let said = texts.iter().map(|text| (without_attribution(text), text));
    let said: Vec<&str> =
        said.filter(|(said, text)| !said.is_empty() || text.is_empty()).map(|(said, _)| said).collect();
    Ok((!said.is_empty()).then(|| json!({ "role": "system", "content": said.join("\n") })))
}

/// What kind of block it is.
fn kind<'a>(block: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    block["type"].as_str().ok_or_else(|| ApiError::field(format!("{path}.type"), "a block needs a type"))
}

/// The texts of all blocks.
fn texts(content: Content, path: &str, unread: Unread<'_>) -> Result<Vec<String>, ApiError> {
    let blocks = content.parts(path)?.into_iter().enumerate();
    blocks.map(|(i, block)| text(block, &format!("{path}[{i}]"), unread)).collect()
}

/// A block that says something, as text.
fn text(block: Value, path: &str, unread: Unread<'_>) -> Result<String, ApiError> {
    let kind = kind(&block, path)?.to_owned();
    match kind.as_str() {
        "text" => Ok(body::read::<Text>(block, path, Place::Request)?.text.unwrap_or_default()),
        "document" | "search_result" => {
            let Document { source, title, context, content } = body::read(block, path, Place::Request)?;
            let within = match (content, &source) {
                (Some(content), _) => texts(content, &format!("{path}.content"), unread)?.join("\n"),
                (None, Value::Object(of)) if of.get("type").is_some_and(|kind| kind == "text") => {
                    of.get("data").and_then(Value::as_str).unwrap_or_default().to_owned()
                }
                (None, Value::Object(of)) if of.get("type").is_some_and(|kind| kind == "content") => {
                    let content = of.get("content").cloned().unwrap_or_default();
                    let path = format!("{path}.source.content");
                    texts(body::read(content, &path, Place::Request)?, &path, unread)?.join("\n")
                }
                _ => unread.stand_in(&kind, path)?,
            };
            let place = source.as_str().map(str::to_owned);
            let all = [title, place, context, Some(within)].into_iter().flatten();
            Ok(all.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n"))
        }
        // A tool that was found by searching for tools; all are declared to the model in any case.
        "tool_reference" => Ok(format!("tool: {}", block["tool_name"].as_str().unwrap_or_default())),
        kind => unread.stand_in(kind, path),
    }
}

/// What a user says; what tools said comes as messages of their own, before it.
fn user(
    content: Content,
    path: &str,
    unread: Unread<'_>,
    warnings: &Warnings,
    messages: &mut Vec<Value>,
) -> Result<(), ApiError> {
    let mut said: Vec<String> = Vec::new();
    for (i, block) in content.parts(path)?.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        match kind(&block, &path)? {
            "tool_result" => {
                let ToolResult { tool_use_id, content } = body::read(block, &path, Place::Request)?;
                let content =
                    content.map(|content| texts(content, &format!("{path}.content"), Unread::Noted(warnings)));
                let content = content.transpose()?.unwrap_or_default().join("\n");
                messages.push(json!({ "role": "tool", "tool_call_id": tool_use_id, "content": content }));
            }
            kind if is_of_the_service(kind) => {}
            _ => said.push(text(block, &path, unread)?),
        }
    }
    if !said.is_empty() {
        messages.push(json!({ "role": "user", "content": said.join("\n") }));
    }
    Ok(())
}

/// What a service did by itself in a turn before, and files there: the text that followed has what came of it.
fn is_of_the_service(kind: &str) -> bool {
    matches!(
        kind,
        "server_tool_use" | "mcp_tool_use" | "mcp_tool_result" | "container_upload" | "compaction" | "fallback"
    ) || kind.ends_with("_tool_result")
}

fn assistant(content: Content, path: &str, unread: Unread<'_>) -> Result<Value, ApiError> {
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in content.parts(path)?.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        match kind(&block, &path)? {
            "thinking" => thought.extend(body::read::<Thinking>(block, &path, Place::Request)?.thinking),
            "redacted_thinking" => {}
            "tool_use" => {
                let ToolUse { id, name, input } = body::read(block, &path, Place::Request)?;
                calls.push(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": input } }));
            }
            "tool_result" => return Err(ApiError::field(format!("{path}.type"), "results of tools are a user's")),
            kind if is_of_the_service(kind) => {}
            _ => said.push(text(block, &path, unread)?),
        }
    }
    thought.retain(|thought| !thought.is_empty());
    let mut message = json!({ "role": "assistant", "content": said.join("\n") });
    if !thought.is_empty() {
        message["reasoning_content"] = thought.join("\n").into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}
