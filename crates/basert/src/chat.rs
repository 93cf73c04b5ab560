//! Messages of a chat.

use serde_json::{Value, json};

/// One message: a JSON object with a role and a content, and whatever else the model's template knows.
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

    /// What the user says.
    pub fn user(content: &str) -> Message {
        Message::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: &str) -> Message {
        Message::new("assistant", content)
    }
}
