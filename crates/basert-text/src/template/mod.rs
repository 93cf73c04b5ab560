//! Chat templates: rendering of a conversation to a text in the form that the model was trained on.
//!
//! A template is a Jinja program that comes with the model. It is rendered as `transformers.apply_chat_template`
//! renders it, byte for byte. Since it comes from an untrusted file, its length, its work, its output and
//! the depth and size of its values are limited; the module `limits` says how, and what is not.

mod environment;
mod limits;
mod methods;
mod printf;
mod python;
mod source;
mod traits;

use std::io;
use std::sync::OnceLock;

use minijinja::{Environment, Value as Jinja, value::Serde};
use serde_json::{Map, Value, json};

pub(crate) use self::traits::{CallForm, Traits};

use self::limits::{MOST_SOURCE, most_text};
use crate::TemplateError;
use crate::stack::on_own_stack;

/// The name of the one template in its environment.
const NAME: &str = "chat_template";

/// A parsed chat template.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    variables: Map<String, Value>,
    traits: OnceLock<Traits>,
}

/// What is to be written: a conversation and how to go on from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatRequest<'a> {
    /// Messages as JSON objects: `role`, `content` (a string or a list of parts), `tool_calls` and whatever else the
    /// template knows.
    pub messages: &'a [Value],
    /// Tools as JSON schemas, `{"type": "function", "function": {…}}`.
    pub tools: Option<&'a [Value]>,
    /// Documents to answer from, as objects with `title` and `text`.
    pub documents: Option<&'a [Value]>,
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`; they take precedence over those of the model.
    pub variables: Option<&'a Map<String, Value>>,
}

impl ChatTemplate {
    /// Parses a template of up to 64 KiB.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let failed = |reason| TemplateError::Parse { line: 1, reason };
        if source.len() > MOST_SOURCE {
            return Err(failed(format!("a template of {} bytes; expected up to {MOST_SOURCE}", source.len())));
        }
        on_own_stack("minijinja", || {
            let mut environment = environment::new();
            let prepared = source::prepared(source, &environment::syntax())
                .map_err(|(line, reason)| TemplateError::Parse { line, reason })?;
            environment
                .add_template_owned(NAME, prepared)
                .map_err(|error| TemplateError::Parse { line: error.line().unwrap_or(1), reason: reason(&error) })?;
            Ok(Self { source: source.into(), environment, variables: Map::new(), traits: OnceLock::new() })
        })
        .unwrap_or_else(|reason| Err(failed(reason)))
    }

    /// With the variables that the tokenizer defines: `bos_token`, `eos_token` and so on; see
    /// [`Tokenizer::template_variables`](crate::Tokenizer::template_variables).
    pub fn with_variables(mut self, variables: Map<String, Value>) -> Self {
        self.variables = variables;
        self
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the template can do.
    pub(crate) fn traits(&self) -> Traits {
        *self.traits.get_or_init(|| Traits::of(self))
    }

    /// Writes a conversation. Fails with the line of the template if it raises an exception, uses something that does
    /// not exist, or exceeds its limits.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<String, TemplateError> {
        let messages = request.messages.iter().enumerate().map(normalized).collect::<Result<Vec<_>, _>>()?;
        let mut context = self.variables.clone();
        context.extend(request.variables.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), json!(request.tools));
        context.insert("documents".into(), json!(request.documents));
        context.insert("add_generation_prompt".into(), request.add_generation_prompt.into());

        let given = size(&context.values().collect::<Vec<_>>());
        on_own_stack("minijinja", || {
            limits::begin(given);
            let failed = |error: minijinja::Error| TemplateError::Render {
                line: error.line().unwrap_or(1),
                reason: reason(&error),
            };
            let template = self.environment.get_template(NAME).map_err(failed)?;
            let mut output = Limited(Vec::new());
            template.render_captured_to(Jinja::from(Serde(context)), &mut output).map_err(failed)?;
            String::from_utf8(output.0).map_err(|error| TemplateError::Render { line: 1, reason: error.to_string() })
        })
        .unwrap_or_else(|reason| Err(TemplateError::Render { line: 1, reason }))
    }
}

/// A message as `transformers` hands it to a template: without keys that are null, and with a model's reasoning under
/// each of its names.
fn normalized((index, message): (usize, &Value)) -> Result<Value, TemplateError> {
    let Value::Object(message) = message else {
        return Err(TemplateError::Request {
            field: format!("messages[{index}]"),
            found: message.to_string(),
            expected: "an object with a role and a content".into(),
        });
    };
    let mut message = message.clone();
    message.retain(|_, value| !value.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| message.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        if !message.contains_key("thinking") {
            message.shift_insert(0, "thinking".into(), reasoning.clone());
        }
        message.insert("reasoning_content".into(), reasoning);
    }
    Ok(message.into())
}

/// What went wrong, from the inside out.
fn reason(error: &minijinja::Error) -> String {
    let mut reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        reason = format!("{error}: {reason}");
        cause = error.source();
    }
    reason
}

/// About as many bytes as values take as text.
fn size(values: &[&Value]) -> usize {
    let size_of = |value: &&Value| match value {
        Value::String(text) => text.len(),
        Value::Array(items) => size(&items.iter().collect::<Vec<_>>()),
        Value::Object(fields) => {
            fields.keys().map(String::len).sum::<usize>() + size(&fields.values().collect::<Vec<_>>())
        }
        _ => 8,
    };
    values.iter().map(size_of).sum()
}

/// Output up to [`most_text`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > most_text() {
            return Err(io::Error::other(format!("more than {} bytes of output", most_text())));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
