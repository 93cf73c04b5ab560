//! Chats: their messages, their prompts, and their answers.

use std::collections::VecDeque;
use std::sync::Arc;

use basert_text::{Dialect, Event, Parser, ParserOptions, Preface};
use serde_json::{Value, json};

use crate::generate::{Answer, Generation, Pieces};
use crate::{Error, Session};

/// A message: a JSON object with a role, a content, and other fields that the model's template supports.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub Value);

impl Message {
    /// A message of any role.
    pub fn new(role: &str, content: &str) -> Message {
        Message(json!({ "role": role, "content": content }))
    }

    /// Instructions for the whole chat.
    pub fn system(content: &str) -> Message {
        Message::new("system", content)
    }

    /// A message of the user.
    pub fn user(content: &str) -> Message {
        Message::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: &str) -> Message {
        Message::new("assistant", content)
    }
}

/// The prompt that a chat becomes, up to where the answer begins.
#[derive(Debug, Clone)]
pub struct ChatPrompt {
    /// The text that the chat template renders.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How the model writes reasoning and tool calls.
    pub(crate) dialect: Arc<Dialect>,
    /// Whether the model may reason before it answers.
    pub(crate) reasons: bool,
}

/// The parts of a chat's answer: an iterator of [`Event`]s. There are no tools, hence no tool calls.
pub struct Parts<'s, 'm> {
    pieces: Pieces<'s, 'm>,
    /// None at the end.
    parser: Option<Parser>,
    ready: VecDeque<Event>,
    text: String,
    reasoning: String,
}

impl<'s, 'm> Parts<'s, 'm> {
    pub(crate) fn new(session: &'s mut Session<'m>, prompt: &ChatPrompt, options: &Generation) -> Result<Self, Error> {
        let dialect = &prompt.dialect;
        let parser = dialect.parser(ParserOptions { prompt: &prompt.text, stop: &options.stop, ..Default::default() });
        let shown = dialect.tokens(session.model().tokenizer());
        let preface =
            Preface::OfDialect { dialect: dialect.clone(), prompt: prompt.text.clone(), reasons: prompt.reasons };
        // Stop texts are looked for in the content, not in the reasoning.
        let options = Generation { stop: Vec::new(), ..options.clone() };
        let pieces = Pieces::new(session, &prompt.tokens, &options, &preface, shown)?;
        let (text, reasoning) = (String::new(), String::new());
        Ok(Parts { pieces, parser: Some(parser), ready: VecDeque::new(), text, reasoning })
    }

    /// The answer so far.
    pub fn into_answer(self) -> Answer {
        Answer { text: self.text, reasoning: self.reasoning, ..self.pieces.into_answer() }
    }
}

impl Iterator for Parts<'_, '_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                match &event {
                    Event::Content(text) => self.text.push_str(text),
                    Event::Reasoning(text) => self.reasoning.push_str(text),
                    _ => {}
                }
                return Some(Ok(event));
            }
            let parser = self.parser.as_mut()?;
            match self.pieces.next() {
                Some(Ok(piece)) => self.ready.extend(parser.push(&piece)),
                Some(Err(error)) => return Some(Err(error)),
                None => self.ready.extend(self.parser.take()?.finish()),
            }
            if self.parser.as_ref().is_some_and(|parser| parser.stopped().is_some()) {
                self.pieces.stop();
            }
        }
    }
}
