//! Conversations with tools, for templates that know tools and those that do not.

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::template::Traits;
use crate::{ChatTemplate, TemplateError};

/// Messages ready for a template.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Value>,
    /// Whether the tools are to be given to the template. If not, the messages tell of them.
    pub tools_in_template: bool,
}

impl Dialect {
    /// The messages of an API, in the form that the template takes them in.
    ///
    /// Arguments of past calls, which APIs pass as text, become objects where the template wants to write them itself. Where
    /// the template has no place for tools, they are described in the system message, past calls are written into the
    /// content as this dialect writes them, and results are what the user says.
    ///
    /// # Errors
    /// When a past call is not of the form `{"function": {"name": …, "arguments": …}}`.
    pub fn conversation(
        &self,
        template: &ChatTemplate,
        messages: &[Value],
        tools: &[Value],
    ) -> Result<Conversation, TemplateError> {
        let traits = template.traits();
        let mut prepared: Vec<Value> = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let Value::Object(message) = message else {
                prepared.push(message.clone());
                continue;
            };
            let has_calls = message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
            if has_calls {
                prepared.push(self.calls(&traits, message.clone(), index)?);
            } else if traits.calls.is_none() && message.get("role").is_some_and(|role| role == "tool") {
                let text = self.prompt.result.replace("{content}", &text_of(message.get("content")));
                let was_result = index > 0 && messages[index - 1]["role"] == "tool";
                match prepared.last_mut().and_then(|last| last.get_mut("content")) {
                    Some(Value::String(before)) if was_result => {
                        before.push('\n');
                        before.push_str(&text);
                    }
                    _ => prepared.push(json!({"role": "user", "content": text})),
                }
            } else {
                prepared.push(message.clone().into());
            }
        }
        let tools_in_template = traits.tools;
        if !tools_in_template && !tools.is_empty() {
            self.describe(&traits, &mut prepared, tools);
        }
        Ok(Conversation { messages: prepared, tools_in_template })
    }

    /// A message with calls.
    fn calls(&self, traits: &Traits, mut message: Map<String, Value>, index: usize) -> Result<Value, TemplateError> {
        let mut calls = message.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut written = Vec::new();
        for (i, call) in calls.iter_mut().enumerate() {
            let wrong = |what: &str, found: &Value, expected: &str| TemplateError::Request {
                field: format!("messages[{index}].tool_calls[{i}].{what}"),
                found: found.to_string(),
                expected: expected.into(),
            };
            let id = call["id"].as_str().unwrap_or_default().to_owned();
            let function = &mut call["function"];
            let Some(name) = function["name"].as_str().map(str::to_owned) else {
                return Err(wrong("function.name", &function["name"], "the name of a tool"));
            };
            let given = &function["arguments"];
            let object = match given {
                Value::String(text) if text.trim().is_empty() => Some(json!({})),
                Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
                Value::Null => Some(json!({})),
                other => Some(other.clone()).filter(Value::is_object),
            };
            let object = object.ok_or_else(|| wrong("function.arguments", given, "the text of a JSON object"))?;
            let text =
                given.as_str().filter(|text| !text.trim().is_empty()).map_or_else(|| object.to_string(), str::to_owned);
            written.push((name, text.clone(), id));
            function["arguments"] = match &traits.calls {
                Some(form) if form.takes_text => text.into(),
                _ => object,
            };
        }
        let content = message.get("content").filter(|content| !content.is_null() && **content != "").cloned();
        match &traits.calls {
            Some(form) => {
                let empty = if form.null_content { Value::Null } else { "".into() };
                message.insert("content".into(), content.unwrap_or(empty));
                message.insert("tool_calls".into(), calls.into());
            }
            None => {
                let calls: Vec<_> = written.iter().map(|(n, a, i)| (n.as_str(), a.as_str(), i.as_str())).collect();
                let mut text = text_of(content.as_ref());
                if !text.is_empty() {
                    text.push_str(self.call.first().map_or("", |style| style.gap.as_str()));
                }
                message.remove("tool_calls");
                message.insert("content".into(), (text + &self.write_calls(&calls)).into());
            }
        }
        Ok(message.into())
    }

    /// Tells of the tools in the first message.
    fn describe(&self, traits: &Traits, messages: &mut Vec<Value>, tools: &[Value]) {
        let listed: Vec<String> = tools.iter().map(Value::to_string).collect();
        let example = self.write_calls(&[("NAME", "{\"ARGUMENT\": \"VALUE\"}", "ID")]);
        let text = self.prompt.tools.replace("{call}", &example).replace("{tools}", &listed.join("\n"));
        let role = if traits.system { "system" } else { "user" };
        match messages.first_mut().filter(|first| first["role"] == role) {
            // What is specific comes first, as templates that know tools have it.
            Some(first) => match first.get_mut("content") {
                Some(Value::Array(parts)) => parts.push(json!({"type": "text", "text": format!("\n\n{text}")})),
                content => {
                    let before = text_of(content.as_deref());
                    first["content"] = if before.is_empty() { text } else { format!("{before}\n\n{text}") }.into();
                }
            },
            None => messages.insert(0, json!({"role": role, "content": text})),
        }
    }
}

/// The text of a content: itself, or its parts that are text.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}
