//! Detection of a template's features by test renderings.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ChatRequest, ChatTemplate};

/// After how long no further test rendering begins: each may take as long as a template may.
const MOST_TIME: Duration = Duration::from_secs(5);

/// What a template knows of tools, calls and system messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// The template passes tools to the model.
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
    /// A message may have several calls.
    pub several: bool,
    /// Arguments that are no object may be a text, even where others are an object.
    pub broken: bool,
}

impl Traits {
    pub fn of(template: &ChatTemplate) -> Self {
        Traits::within(MOST_TIME, template)
    }

    fn within(time: Duration, template: &ChatTemplate) -> Self {
        let began = Instant::now();
        let user = json!({"role": "user", "content": "Hello."});
        let renders = |messages: &[Value], tools: Option<&[Value]>, needle: &str| {
            let request = ChatRequest { messages, tools, ..ChatRequest::default() };
            began.elapsed() < time && template.render(&request).is_ok_and(|text| text.contains(needle))
        };
        let name = "probed_tool";
        let tool = json!({"type": "function", "function": {
            "name": name, "description": "None.", "parameters": {"type": "object", "properties": {}},
        }});
        // Not as any library would space it.
        let (text, object) = (r#"{"probed_key":  1}"#, json!({"probed_key": 1}));
        let call = |arguments: &Value| json!({"id": "call12345", "type": "function", "function": {"name": name, "arguments": arguments}});
        let writes = |null_content: bool, calls: &[Value], needle: &str| {
            let content = if null_content { Value::Null } else { "".into() };
            let messages = [user.clone(), json!({"role": "assistant", "content": content, "tool_calls": calls})];
            renders(&messages, None, name) && renders(&messages, None, needle)
        };
        let form = |takes_text: bool, null_content: bool| {
            let (arguments, needle) = if takes_text { (json!(text), text) } else { (object.clone(), "probed_key") };
            writes(null_content, &[call(&arguments)], needle).then(|| {
                let second = if takes_text { json!(r#"{"second_key":  1}"#) } else { json!({"second_key": 1}) };
                let both = [call(&arguments), call(&second)];
                CallForm {
                    takes_text,
                    null_content,
                    several: writes(null_content, &both, needle) && writes(null_content, &both, "second_key"),
                    broken: writes(null_content, &[call(&json!("probed text"))], "probed text"),
                }
            })
        };
        let forms = [(true, false), (true, true), (false, false), (false, true)];
        Self {
            tools: renders(std::slice::from_ref(&user), Some(&[tool]), name),
            calls: forms.into_iter().find_map(|(takes_text, null_content)| form(takes_text, null_content)),
            system: renders(&[json!({"role": "system", "content": "probed_text"}), user.clone()], None, "probed_text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_renderings_end_when_their_time_is_over() {
        let source = "{% for message in messages %}{{ message.content }}{% endfor %}";
        let template = ChatTemplate::new(source).unwrap();
        let none = Traits { tools: false, calls: None, system: false };
        assert_eq!(Traits::of(&template), Traits { system: true, ..none });
        assert_eq!(Traits::within(Duration::ZERO, &template), none);
    }
}
