//! Chats: their messages and their prompts.

use serde_json::{Value, json};

use crate::request::ChatAnswer;

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
#[non_exhaustive]
pub struct ChatPrompt {
    /// The text that the chat template renders.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The tools that may be called.
    pub tools: Vec<Value>,
    /// Whether the model may reason before it answers.
    pub reasons: bool,
}

impl ChatPrompt {
    /// How its answers are parsed.
    pub(crate) fn answer(&self) -> ChatAnswer {
        ChatAnswer { prompt: self.text.clone(), tools: self.tools.clone(), one_call: false }
    }
}
