//! What a template can do, found out by rendering.

use serde_json::{Value, json};

use super::{ChatRequest, ChatTemplate};

/// What a template knows of tools, calls and system messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// It tells the model of tools.
    pub tools: bool,
    /// The form in which it takes past calls, if it writes them.
    pub calls: Option<CallForm>,
    /// It takes a system message.
    pub system: bool,
}

/// How past calls are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallForm {
    /// Arguments as text, which comes out as it is; otherwise as an object, which the template writes.
    pub takes_text: bool,
    /// A message without content has null; otherwise an empty text.
    pub null_content: bool,
}

impl Traits {
    pub fn of(template: &ChatTemplate) -> Self {
        let user = json!({"role": "user", "content": "Hello."});
        let renders = |messages: &[Value], tools: Option<&[Value]>, needle: &str| {
            let rendered = template.render(&ChatRequest { messages, tools, ..ChatRequest::default() });
            rendered.is_ok_and(|text| text.contains(needle))
        };
        let name = "probed_tool";
        let tool = json!({"type": "function", "function": {
            "name": name, "description": "None.", "parameters": {"type": "object", "properties": {}},
        }});
        // Not as any library would space it.
        let (text, object) = (r#"{"probed_key":  1}"#, json!({"probed_key": 1}));
        let forms = [true, false]
            .into_iter()
            .flat_map(|takes_text| [false, true].map(|null_content| CallForm { takes_text, null_content }));
        let writes = |form: &CallForm| {
            let arguments = if form.takes_text { json!(text) } else { object.clone() };
            let call =
                json!({"id": "call12345", "type": "function", "function": {"name": name, "arguments": arguments}});
            let content = if form.null_content { Value::Null } else { "".into() };
            let calling = json!({"role": "assistant", "content": content, "tool_calls": [call]});
            let messages = [user.clone(), calling];
            let arguments = if form.takes_text { text } else { "probed_key" };
            renders(&messages, None, name) && renders(&messages, None, arguments)
        };
        Self {
            tools: renders(std::slice::from_ref(&user), Some(&[tool]), name),
            calls: { forms }.find(writes),
            system: renders(&[json!({"role": "system", "content": "probed_text"}), user.clone()], None, "probed_text"),
        }
    }
}
