//! The input of a request for a response: what was said, called and answered, as messages.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::content::{Content, Unread, without_attribution};
use super::response_tools::{INPUT, SHELL};
use super::tools;
use crate::body;
use crate::error::ApiError;
use crate::fields::{Place, Warnings};

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
struct FunctionCall {
    call_id: Option<String>,
    id: Option<String>,
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Debug, Deserialize)]
struct CustomCall {
    call_id: String,
    name: String,
    input: String,
}

/// A call of what a client does itself, whose arguments are an object of this or that name.
#[derive(Debug, Deserialize)]
struct ClientCall {
    call_id: Option<String>,
    id: Option<String>,
    #[serde(alias = "operation")]
    action: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Output {
    call_id: Option<String>,
    id: Option<String>,
    output: Value,
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    content: Option<Content>,
}

/// What a service did by itself in a turn before: the answer that followed has what came of it. So do snapshots and
/// summaries that only the service can read.
const OF_THE_SERVICE: [&str; 15] = [
    "web_search_call",
    "file_search_call",
    "image_generation_call",
    "code_interpreter_call",
    "mcp_call",
    "mcp_list_tools",
    "computer_call",
    "computer_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
    "tool_search_output",
    "compaction",
    "compaction_summary",
    "ghost_snapshot",
];

/// Adds the items of an input to the messages.
pub fn add(items: Vec<Value>, messages: &mut Vec<Value>, warnings: &Warnings) -> Result<(), ApiError> {
    let last_of_user = items.iter().rposition(|item| item["role"] == "user");
    for (index, item) in items.into_iter().enumerate() {
        let unread = if last_of_user == Some(index) { Unread::Refused } else { Unread::Noted(warnings) };
        add_one(item, &format!("input[{index}]"), messages, unread, warnings)?;
    }
    Ok(())
}

fn add_one(
    item: Value,
    path: &str,
    messages: &mut Vec<Value>,
    unread: Unread<'_>,
    warnings: &Warnings,
) -> Result<(), ApiError> {
    let kind = match item["type"].as_str() {
        Some(kind) => kind.to_owned(),
        None if item.get("role").is_some() => "message".to_owned(),
        None => return Err(ApiError::field(format!("{path}.type"), "an item needs a type")),
    };
    match kind.as_str() {
        "message" => {
            let Message { role, content } = body::read(item, path, Place::Request)?;
            let role = match role.as_str() {
                "developer" => "system",
                "user" | "assistant" | "system" => &role,
                role => {
                    let message = format!("'{role}' is not one of system, developer, user and assistant");
                    return Err(ApiError::field(format!("{path}.role"), message));
                }
            };
            let mut content = content.text(&format!("{path}.content"), unread)?;
            if role == "system" {
                content = without_attribution(&content).to_owned();
            }
            // What the model said after it thought or called belongs to the same message.
            match messages.last_mut().filter(|last| role == "assistant" && is_open(last)) {
                Some(last) => last["content"] = content.into(),
                None => messages.push(json!({ "role": role, "content": content })),
            }
        }
        "function_call" => {
            let FunctionCall { call_id, id, namespace, name, arguments } = body::read(item, path, Place::Request)?;
            let name = tools::known_name(namespace.as_deref(), &name);
            call(messages, call_id.or(id), name, arguments);
        }
        "custom_tool_call" => {
            let CustomCall { call_id, name, input } = body::read(item, path, Place::Request)?;
            call(messages, Some(call_id), name, json!({ INPUT: input }));
        }
        "local_shell_call" | "shell_call" | "apply_patch_call" => {
            let ClientCall { call_id, id, mut action } = body::read(item, path, Place::Request)?;
            let name = if kind == "local_shell_call" {
                action.shift_remove("type");
                SHELL
            } else {
                kind.trim_end_matches("_call")
            };
            action.retain(|_, value| !value.is_null());
            call(messages, call_id.or(id), name.to_owned(), action.into());
        }
        "function_call_output"
        | "custom_tool_call_output"
        | "local_shell_call_output"
        | "shell_call_output"
        | "apply_patch_call_output" => {
            let Output { call_id, id, output } = body::read(item, path, Place::Request)?;
            let is_content = |part: &Value| part.is_string() || part["type"].is_string();
            let content = match output {
                Value::String(text) => text,
                Value::Null => String::new(),
                Value::Array(parts) if parts.iter().all(is_content) => {
                    Content::Parts(parts).text(&format!("{path}.output"), Unread::Noted(warnings))?
                }
                other => other.to_string(),
            };
            messages.push(json!({ "role": "tool", "tool_call_id": call_id.or(id), "content": content }));
        }
        "reasoning" => {
            let Reasoning { content } = body::read(item, path, Place::Request)?;
            if let Some(content) = content {
                let text = match content {
                    Content::Text(text) => text,
                    content => content.text(&format!("{path}.content"), unread)?,
                };
                messages.push(json!({ "role": "assistant", "content": "", "reasoning_content": text }));
            }
        }
        kind if OF_THE_SERVICE.contains(&kind) => warnings.add(format!("{path} ({kind})")),
        kind => {
            let message = format!("items of type '{kind}' are not supported");
            return Err(ApiError::field(format!("{path}.type"), message));
        }
    }
    Ok(())
}

/// Adds a call to the assistant's message that is the last one, or to a new one.
fn call(messages: &mut Vec<Value>, id: Option<String>, name: String, arguments: Value) {
    let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({ "role": "assistant", "content": "" }));
    }
    let last = messages.len() - 1;
    match messages[last]["tool_calls"].as_array_mut() {
        Some(calls) => calls.push(call),
        None => messages[last]["tool_calls"] = json!([call]),
    }
}

/// Whether a message is the assistant's and has no text yet.
fn is_open(message: &Value) -> bool {
    message["role"] == "assistant" && message["content"] == "" && message["tool_calls"].is_null()
}
