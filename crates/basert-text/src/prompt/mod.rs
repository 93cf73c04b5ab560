//! Rendering of a conversation to a prompt.
//!
//! An API's messages are converted to the form that the model's template expects, and rendered. Only the template
//! itself writes control tokens. Text from outside (messages, tools, variables) stays text: where it spells a control
//! token, a noncharacter breaks that before the template sees it, and is taken out again when the prompt has been cut
//! at the control tokens that there are. Text without such spellings goes through unchanged.

mod guards;
mod outside;

use serde_json::{Map, Value};

use self::outside::Outside;
use crate::dialect::history::{calls_of, text_of};
use crate::template::Traits;
use crate::{ChatRequest, ChatTemplate, Dialect, EncodeOptions, TemplateError, Tokenizer, TokenizerError};

/// A conversation as APIs have it, to be continued.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chat<'a> {
    /// Messages as JSON objects: `role`, `content` (a string or a list of parts), `tool_calls` with arguments as text
    /// or as an object, and whatever else the template knows.
    pub messages: &'a [Value],
    /// Tools that may be called, `{"type": "function", "function": {…}}`.
    pub tools: &'a [Value],
    /// Documents to answer from, as objects with `title` and `text`.
    pub documents: Option<&'a [Value]>,
    /// Further variables for the template, such as `enable_thinking`.
    pub variables: Option<&'a Map<String, Value>>,
    /// How the prompt ends.
    pub ending: Ending,
}

/// How a prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the assistant's last message, if the conversation ends with one that calls no tools: the answer continues
    /// it. Otherwise with the beginning of an answer.
    #[default]
    Auto,
    /// With the beginning of an answer.
    Answer,
    /// With the assistant's last message, which the answer continues.
    Continue,
    /// With the last message, whole.
    Nothing,
}

/// A prompt as a model gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// The text with a marker in what must not become a control token, where there is such a thing.
    marked: Option<(String, char)>,
}

impl Prompt {
    /// Its tokens.
    ///
    /// # Errors
    /// When the vocabulary cannot spell the text.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        match &self.marked {
            Some((text, marker)) => tokenizer.encode_without(text, options, Some(*marker)),
            None => tokenizer.encode(&self.text, options),
        }
    }
}

impl Dialect {
    /// The prompt of a conversation.
    ///
    /// Where the template has no place for tools, they are described in the system message, past calls are written into
    /// the content as this dialect writes them, and results are what the user says. A conversation that the template
    /// refuses, or from which it drops what the system or the user says, is rewritten: system messages are merged or given
    /// to the user, consecutive messages of one role are merged, and several calls are split into messages of one.
    ///
    /// # Errors
    /// When the template refuses the conversation all the same, a call has no name, or the last message is to be
    /// continued and cannot be.
    pub fn prompt(
        &self,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
        chat: &Chat<'_>,
    ) -> Result<Prompt, TemplateError> {
        let traits = template.traits();
        let mut messages = self.with_calls(&traits, chat.messages)?;
        let mut tools = chat.tools.to_vec();
        let mut documents = chat.documents.map(<[Value]>::to_vec);
        let mut variables = chat.variables.cloned().unwrap_or_default();

        let values = messages.iter().chain(&tools).chain(documents.iter().flatten()).chain(variables.values());
        let mut outside = Outside::new(tokenizer.control_texts(), values)?;
        // What the assistant thought, templates find by its markers.
        let allowed: Vec<&str> = self.reasoning_markers().collect();
        for message in &mut messages {
            let allowed = if message["role"] == "assistant" { &*allowed } else { &[] };
            outside.mark(message, allowed);
        }
        tools.iter_mut().chain(documents.iter_mut().flatten()).for_each(|value| outside.mark(value, &[]));
        outside.mark_map(&mut variables, &[]);

        let rendering = Rendering { dialect: self, template, traits, tools: &tools, documents, variables };
        let (marker, end) = (outside.marker, outside.end);
        let mut text = match rendering.continuing(&messages, chat.ending, end)? {
            Some(text) => text,
            None => rendering.of(messages, chat.ending != Ending::Nothing)?,
        };
        if !outside.marked {
            return Ok(Prompt { text, marked: None });
        }
        let escaped = outside::escaped(marker);
        if text.contains(&escaped) {
            text = text.replace(&escaped, marker.encode_utf8(&mut [0; 4]));
        }
        Ok(Prompt { text: text.replace(marker, ""), marked: Some((text, marker)) })
    }
}

/// What prompts of one conversation have in common.
struct Rendering<'a> {
    dialect: &'a Dialect,
    template: &'a ChatTemplate,
    traits: Traits,
    tools: &'a [Value],
    documents: Option<Vec<Value>>,
    variables: Map<String, Value>,
}

impl Rendering<'_> {
    /// The prompt up to the end of the last message, which `end` marks, if that is to be continued and can be.
    fn continuing(&self, messages: &[Value], ending: Ending, end: char) -> Result<Option<String>, TemplateError> {
        let last = messages.last();
        let may = last.is_some_and(|last| last["role"] == "assistant" && calls_of(last).is_empty());
        let refused = |found: String, expected: &str| {
            let field = "messages".into();
            Err(TemplateError::Request { field, found, expected: expected.into() })
        };
        match ending {
            Ending::Answer | Ending::Nothing => return Ok(None),
            Ending::Auto if !may => return Ok(None),
            Ending::Continue if !may => {
                let found = last.map_or("none".into(), |last| format!("a last message of role {}", last["role"]));
                return refused(found, "one of the assistant, without calls, to be continued");
            }
            Ending::Auto | Ending::Continue => {}
        }
        let mut messages = messages.to_vec();
        let space = messages.last_mut().and_then(|last| mark_end(&mut last["content"], end));
        let Some(space) = space else {
            return if ending == Ending::Auto { Ok(None) } else { refused("no text".into(), "a text to be continued") };
        };
        match self.of(messages, false) {
            Ok(text) => match text.rsplit_once(end) {
                // As `transformers` has it: space at the end stays if the template leaves it.
                Some((before, after)) if after.starts_with(&space) => Ok(Some(format!("{before}{space}"))),
                Some((before, _)) => Ok(Some(before.to_owned())),
                None if ending == Ending::Auto => Ok(None),
                None => refused("a template that leaves the last message out".into(), "one that writes it"),
            },
            Err(_) if ending == Ending::Auto => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The prompt, with the conversation rewritten if need be.
    fn of(&self, messages: Vec<Value>, answer: bool) -> Result<String, TemplateError> {
        let mut messages = match self.traits.calls {
            Some(_) => messages,
            None => self.dialect.without_calls(messages),
        };
        if !self.traits.tools && !self.tools.is_empty() {
            self.dialect.describe(&self.traits, &mut messages, self.tools);
        }
        let mut rendered = self.render(&messages, answer);
        if rendered.as_ref().is_ok_and(|text| guards::holds(text, &messages)) {
            return rendered;
        }
        let said = messages.clone();
        for repair in guards::repairs(self.traits.system) {
            if !repair(&mut messages) {
                continue;
            }
            match self.render(&messages, answer) {
                Ok(text) if guards::holds(&text, &said) => return Ok(text),
                Ok(text) if rendered.is_err() => rendered = Ok(text),
                _ => {}
            }
        }
        rendered
    }

    fn render(&self, messages: &[Value], answer: bool) -> Result<String, TemplateError> {
        self.template.render(&ChatRequest {
            messages,
            tools: (self.traits.tools && !self.tools.is_empty()).then_some(self.tools),
            documents: self.documents.as_deref(),
            add_generation_prompt: answer,
            variables: Some(&self.variables),
        })
    }
}

/// Puts a mark at the end of a content, before the space there, which is returned.
fn mark_end(content: &mut Value, end: char) -> Option<String> {
    let text = match content {
        Value::Null => {
            *content = end.to_string().into();
            return Some(String::new());
        }
        Value::Array(parts) => &mut parts.iter_mut().rev().find(|part| part["text"].is_string())?["text"],
        text => text,
    };
    let said = text_of(Some(text));
    let trimmed = said.trim_end();
    let space = said[trimmed.len()..].to_owned();
    *text = format!("{trimmed}{end}{space}").into();
    Some(space)
}
