//! Conversations with tools, for templates with and without support for tools.

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};

use super::Dialect;
use crate::TemplateError;
use crate::template::{CallForm, Traits};

/// What a call's arguments stand under where they are no object and the template takes nothing else.
const BROKEN: &str = "arguments";

impl Dialect {
    /// An API's messages, with calls in the form that the template expects.
    ///
    /// Arguments, which APIs pass as text, become objects where the template wants to write them itself. Those that a
    /// model left unfinished stay the text that they are. Calls without an id get one, and results that do not say which
    /// call they answer are those of the last calls, in their order. Where the template takes one call in a message,
    /// each gets its own.
    ///
    /// # Errors
    /// When a call has no name, or a result does not say which call it answers and there is none.
    pub(crate) fn with_calls(&self, traits: &Traits, messages: &[Value]) -> Result<Vec<Value>, TemplateError> {
        let mut prepared = Vec::with_capacity(messages.len());
        let mut unanswered: VecDeque<String> = VecDeque::new();
        let mut renamed: HashMap<String, String> = HashMap::new();
        let mut calls = 0;
        for (index, message) in messages.iter().enumerate() {
            let mut message = message.clone();
            if !calls_of(&message).is_empty() {
                self.check_calls(traits, &mut message, index)?;
                self.rename_calls(&mut message, &mut calls, &mut renamed);
                unanswered = calls_of(&message).iter().map(|call| text_of(call.get("id"))).collect();
            } else if message["role"] == "tool" {
                let id = match message["tool_call_id"].as_str().filter(|id| !id.is_empty()) {
                    Some(id) => {
                        let id = renamed.get(id).map_or(id, String::as_str).to_owned();
                        unanswered.retain(|other| *other != id);
                        id
                    }
                    None => unanswered.pop_front().ok_or_else(|| TemplateError::Request {
                        field: format!("messages[{index}].tool_call_id"),
                        found: "none".into(),
                        expected: "the id of a call, as no call before it is without a result".into(),
                    })?,
                };
                message["tool_call_id"] = id.into();
            }
            prepared.push(message);
        }
        let splits = traits.calls.is_some_and(|form| !form.several);
        Ok(if splits { one_call_each(prepared) } else { prepared })
    }

    fn check_calls(&self, traits: &Traits, message: &mut Value, index: usize) -> Result<(), TemplateError> {
        let null_content = traits.calls.is_some_and(|form| form.null_content);
        if message["content"].is_null() || message["content"] == "" {
            message["content"] = if null_content { Value::Null } else { "".into() };
        }
        let Some(calls) = message["tool_calls"].as_array_mut() else { return Ok(()) };
        for (i, call) in calls.iter_mut().enumerate() {
            if !call["function"]["name"].is_string() {
                return Err(TemplateError::Request {
                    field: format!("messages[{index}].tool_calls[{i}].function.name"),
                    found: call["function"]["name"].to_string(),
                    expected: "the name of a tool".into(),
                });
            }
            if call["id"].as_str().is_none_or(str::is_empty) {
                let name = call["function"]["name"].as_str().unwrap_or_default();
                call["id"] = self.made_up_id(index as u64, i as u64, name).into();
            }
            let arguments = &mut call["function"]["arguments"];
            *arguments = given(arguments, traits.calls.as_ref());
        }
        Ok(())
    }

    /// Replaces ids that templates of this dialect do not take, because another model or client made them.
    /// `calls` counts those of the conversation.
    fn rename_calls(&self, message: &mut Value, calls: &mut u64, renamed: &mut HashMap<String, String>) {
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            let [id, name] = [&call["id"], &call["function"]["name"]].map(|text| text.as_str().unwrap_or_default());
            if self.id.accepts(id, name) {
                renamed.remove(id);
            } else {
                let other = self.made_up_id(0, *calls, name);
                renamed.insert(id.to_owned(), other.clone());
                call["id"] = other.into();
            }
            *calls += 1;
        }
    }

    /// Messages for a template that takes no calls: they are written into the content as this dialect writes them, and
    /// results are what the user says.
    pub(crate) fn without_calls(&self, messages: Vec<Value>) -> Vec<Value> {
        let mut prepared: Vec<Value> = Vec::with_capacity(messages.len());
        let mut was_result = false;
        for mut message in messages {
            let is_result = message["role"] == "tool";
            if is_result {
                let text = self.prompt.result.replace("{content}", &text_of(message.get("content")));
                match prepared.last_mut().filter(|_| was_result).map(|last| &mut last["content"]) {
                    Some(Value::String(before)) => {
                        before.push('\n');
                        before.push_str(&text);
                    }
                    _ => prepared.push(json!({"role": "user", "content": text})),
                }
            } else {
                let calls = calls_of(&message).iter().map(|call| {
                    let [name, id] = [&call["function"]["name"], &call["id"]].map(|text| text.as_str().unwrap_or(""));
                    (name, text_of(Some(&call["function"]["arguments"])), id)
                });
                let calls: Vec<_> = calls.collect();
                if !calls.is_empty() {
                    let mut text = text_of(message.get("content"));
                    if !text.is_empty() {
                        text.push_str(self.call.first().map_or("", |style| style.gap.as_str()));
                    }
                    let calls: Vec<_> = calls.iter().map(|(name, text, id)| (*name, text.as_str(), *id)).collect();
                    text.push_str(&self.write_calls(&calls));
                    message["content"] = text.into();
                    message.as_object_mut().map(|message| message.remove("tool_calls"));
                }
                prepared.push(message);
            }
            was_result = is_result;
        }
        prepared
    }

    /// Describes the tools in the first message.
    pub(crate) fn describe(&self, traits: &Traits, messages: &mut Vec<Value>, tools: &[Value]) {
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

/// The calls in a message.
pub(crate) fn calls_of(message: &Value) -> &[Value] {
    message["tool_calls"].as_array().map_or(&[], Vec::as_slice)
}

/// A call's arguments as a template wants them.
fn given(arguments: &Value, form: Option<&CallForm>) -> Value {
    let (object, text) = match arguments {
        Value::Null => (Some(json!({})), "{}".into()),
        Value::String(text) if matches!(text.trim(), "" | "null") => (Some(json!({})), "{}".into()),
        Value::String(text) => (serde_json::from_str(text).ok().filter(Value::is_object), text.clone()),
        other => (Some(other.clone()).filter(Value::is_object), other.to_string()),
    };
    match (object, form) {
        (_, None) => text.into(),
        (_, Some(form)) if form.takes_text => text.into(),
        (Some(object), _) => object,
        (None, Some(form)) if form.broken => text.into(),
        (None, _) => json!({ BROKEN: text }),
    }
}

/// Messages of several calls cut into some of one, each with its results.
fn one_call_each(messages: Vec<Value>) -> Vec<Value> {
    let mut cut = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(mut message) = messages.next() {
        let calls = match message.get_mut("tool_calls") {
            Some(Value::Array(calls)) if calls.len() > 1 => std::mem::take(calls),
            _ => {
                cut.push(message);
                continue;
            }
        };
        let mut results: Vec<Option<Value>> = Vec::new();
        let mut of_call: HashMap<String, Vec<usize>> = HashMap::new();
        while let Some(result) = messages.next_if(|next| next["role"] == "tool") {
            of_call.entry(text_of(result.get("tool_call_id"))).or_default().push(results.len());
            results.push(Some(result));
        }
        let other =
            json!({"role": "assistant", "content": if message["content"].is_null() { Value::Null } else { "".into() }});
        for call in calls {
            let own = of_call.remove(call["id"].as_str().unwrap_or_default()).unwrap_or_default();
            message["tool_calls"] = json!([call]);
            cut.push(std::mem::replace(&mut message, other.clone()));
            cut.extend(own.into_iter().filter_map(|i| results[i].take()));
        }
        cut.extend(results.into_iter().flatten());
    }
    cut
}

/// The text of a content: itself, or its parts that are text.
pub(crate) fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}
