//! The format that an answer has to have.

use basert_text::Grammar;
use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// The format of an answer, and the field that asks for it.
#[derive(Debug, Default)]
pub struct Format {
    field: &'static str,
    grammar: Option<Grammar>,
}

/// A format, as a request says it.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Asked {
    Text {},
    JsonObject {},
    JsonSchema(Box<Schema>),
    /// A grammar as llama.cpp writes them.
    Gbnf {
        grammar: String,
    },
    /// A grammar as Lark has them.
    Lark {
        grammar: String,
    },
    Regex {
        pattern: String,
    },
}

/// A schema, within itself where a chat has it, and beside its name where others have it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    json_schema: Option<Named>,
    schema: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// It is honoured always.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    schema: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl Format {
    /// What a field of this name asks for.
    pub fn new(field: &'static str, asked: Option<Asked>) -> Result<Format, ApiError> {
        let missing = || ApiError::field(field, "a format of type json_schema needs a schema");
        let grammar = match asked {
            None | Some(Asked::Text {}) => None,
            Some(Asked::JsonObject {}) => Some(Grammar::JsonObject),
            Some(Asked::JsonSchema(asked)) => {
                let schema = asked.schema.or(asked.json_schema.and_then(|named| named.schema));
                Some(Grammar::JsonSchema(schema.ok_or_else(missing)?))
            }
            Some(Asked::Gbnf { grammar }) => Some(Grammar::Gbnf(grammar)),
            Some(Asked::Lark { grammar }) => Some(Grammar::Lark(grammar)),
            Some(Asked::Regex { pattern }) => Some(Grammar::Regex(pattern)),
        };
        Ok(Format { field, grammar })
    }

    /// The field.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// What the answer has to be, if it has to be anything.
    pub fn grammar(&self) -> Option<&Grammar> {
        self.grammar.as_ref()
    }
}
