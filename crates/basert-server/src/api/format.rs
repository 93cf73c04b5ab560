//! The format of an answer, in the fields of all APIs that have some for it.

use basert_text::{Grammar, GrammarError, relaxed};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::body::Fields;
use crate::error::ApiError;
use crate::fields::Warnings;

/// The format of an answer, and the field that asks for it.
#[derive(Debug, Default)]
pub struct Format {
    field: &'static str,
    grammar: Option<Grammar>,
}

/// The fields of a request, at most one of which may be set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Formats {
    response_format: Option<Asked>,
    /// A grammar as llama.cpp writes them, or as Lark has them; TGI puts an object there.
    grammar: Option<Text>,
    /// A schema, or the word `json`.
    json_schema: Option<Value>,
    regex: Option<String>,
    /// The texts from which the answer is chosen.
    choice: Option<Vec<String>>,
    /// As vLLM has all of these in one.
    structured_outputs: Option<Structured>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a grammar, or an object with its type")]
enum Text {
    Grammar(String),
    Asked(Asked),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Structured {
    #[serde(alias = "json_schema")]
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
    #[serde(rename = "_backend")]
    _backend: Option<IgnoredAny>,
}

/// A format in a request.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Asked {
    Text {},
    JsonObject {
        schema: Option<Value>,
    },
    JsonSchema(Box<Schema>),
    /// As TGI has them.
    Json {
        #[serde(alias = "schema")]
        value: Option<Value>,
    },
    /// A grammar as llama.cpp writes them, or as Lark has them.
    #[serde(alias = "gbnf", alias = "lark")]
    Grammar {
        grammar: String,
    },
    Regex {
        #[serde(alias = "value")]
        pattern: String,
    },
}

/// A schema, within itself where a chat has it, and beside its name where others have it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    json_schema: Option<Named>,
    #[serde(alias = "value")]
    schema: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// Accepted; all schemas are enforced.
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

/// A grammar in either notation: only one of them defines rules by `::=`.
fn grammar(text: String) -> Grammar {
    if text.contains("::=") { Grammar::Gbnf(text) } else { Grammar::Lark(text) }
}

/// A schema, which may be written as text, or the word for any object.
fn schema(value: Value) -> Result<Grammar, String> {
    match value {
        Value::String(word) if matches!(word.as_str(), "json" | "json_object") => Ok(Grammar::JsonObject),
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(value) => Ok(Grammar::JsonSchema(value)),
            Err(error) => Err(format!("expected a JSON schema: {error}")),
        },
        value => Ok(Grammar::JsonSchema(value)),
    }
}

/// A grammar of these texts.
fn choice(texts: &[String]) -> Result<Grammar, String> {
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        return Err("expected one text or more, and none of them empty".to_owned());
    }
    let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
    Ok(Grammar::Lark(format!("start: {}", quoted.join(" | "))))
}

impl Asked {
    fn grammar(self) -> Result<Option<Grammar>, String> {
        let missing = || "a format of type json_schema needs a schema".to_owned();
        match self {
            Asked::Text {} => Ok(None),
            Asked::JsonObject { schema: None } => Ok(Some(Grammar::JsonObject)),
            Asked::JsonObject { schema: Some(value) } => schema(value).map(Some),
            Asked::Json { value } => schema(value.ok_or_else(missing)?).map(Some),
            Asked::JsonSchema(asked) => {
                let value = asked.schema.or(asked.json_schema.and_then(|named| named.schema));
                schema(value.ok_or_else(missing)?).map(Some)
            }
            Asked::Grammar { grammar: text } => Ok(Some(grammar(text))),
            Asked::Regex { pattern } => Ok(Some(Grammar::Regex(pattern))),
        }
    }
}

impl Formats {
    /// Takes these fields out of a request.
    pub fn take(fields: &mut Fields) -> Result<Formats, ApiError> {
        fields.take(&[])
    }

    /// The one that is asked for.
    pub fn format(self) -> Result<Format, ApiError> {
        let structured = self.structured_outputs.map(|all| {
            let object = all.json_object.filter(|&object| object).map(|_| Ok(Grammar::JsonObject));
            let one = [
                all.json.map(schema),
                all.regex.map(|pattern| Ok(Grammar::Regex(pattern))),
                all.choice.map(|texts| choice(&texts)),
                all.grammar.map(|text| Ok(grammar(text))),
                object,
            ];
            one.into_iter().flatten().map(|grammar| grammar.map(Some)).collect::<Vec<_>>()
        });
        let one = |found: Option<_>| Vec::from_iter(found);
        let asked = [
            ("response_format", one(self.response_format.map(Asked::grammar))),
            (
                "grammar",
                one(self.grammar.map(|text| match text {
                    Text::Grammar(text) => Ok(Some(grammar(text))),
                    Text::Asked(asked) => asked.grammar(),
                })),
            ),
            ("json_schema", one(self.json_schema.map(|value| schema(value).map(Some)))),
            ("regex", one(self.regex.map(|pattern| Ok(Some(Grammar::Regex(pattern)))))),
            ("choice", one(self.choice.map(|texts| choice(&texts).map(Some)))),
            ("structured_outputs", structured.unwrap_or_default()),
        ];
        let mut format = Format::default();
        for (field, found) in
            asked.into_iter().flat_map(|(field, found)| found.into_iter().map(move |one| (field, one)))
        {
            let Some(grammar) = found.map_err(|error| ApiError::field(field, error))? else { continue };
            if format.grammar.is_some() {
                let message = format!("an answer has one format; {} says another", format.field);
                return Err(ApiError::field(field, message));
            }
            format = Format { field, grammar: Some(grammar) };
        }
        Ok(format)
    }
}

impl Format {
    /// What a field of this name asks for.
    pub fn new(field: &'static str, asked: Option<Asked>) -> Result<Format, ApiError> {
        let grammar = asked.map_or(Ok(None), Asked::grammar).map_err(|error| ApiError::field(field, error))?;
        Ok(Format { field, grammar })
    }

    /// The field.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Whether there is one.
    pub fn is_asked(&self) -> bool {
        self.grammar.is_some()
    }

    /// The constraint on the answer, if there is one, as far as a mask can enforce it.
    pub fn grammar(&self, warnings: &Warnings) -> Option<Grammar> {
        let Some(Grammar::JsonSchema(schema)) = &self.grammar else { return self.grammar.clone() };
        let (schema, notes) = relaxed(schema);
        notes.into_iter().for_each(|note| warnings.add(format!("{}: {note}", self.field)));
        Some(Grammar::JsonSchema(schema))
    }
}

/// The error that a grammar cannot be used which this field asks for.
pub fn refused(field: &str, error: &GrammarError) -> ApiError {
    let said = error.to_string();
    // Some are called what the field is.
    let once = said.strip_prefix(field).and_then(|rest| rest.strip_prefix(": "));
    ApiError::field(field, once.unwrap_or(&said))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_words_for_a_format_become_grammars() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
        let of_schema = Some(Grammar::JsonSchema(schema.clone()));
        let gbnf = "root ::= [0-9]+";
        let lark = "start: /[0-9]+/";
        let either = Some(Grammar::Lark(r#"start: "a" | "b\"""#.to_owned()));
        for (body, expected) in [
            (json!({}), None),
            (json!({ "response_format": { "type": "text" } }), None),
            (json!({ "response_format": { "type": "json_object" } }), Some(Grammar::JsonObject)),
            (json!({ "response_format": { "type": "json_object", "schema": schema } }), of_schema.clone()),
            (json!({ "response_format": { "type": "json_schema", "schema": schema } }), of_schema.clone()),
            (json!({ "response_format": { "type": "json", "value": schema } }), of_schema.clone()),
            (json!({ "response_format": { "type": "regex", "value": "a+" } }), Some(Grammar::Regex("a+".into()))),
            (json!({ "response_format": { "type": "gbnf", "grammar": gbnf } }), Some(Grammar::Gbnf(gbnf.into()))),
            (json!({ "response_format": { "type": "lark", "grammar": lark } }), Some(Grammar::Lark(lark.into()))),
            (json!({ "grammar": gbnf }), Some(Grammar::Gbnf(gbnf.into()))),
            (json!({ "guided_grammar": lark }), Some(Grammar::Lark(lark.into()))),
            (json!({ "grammar": { "type": "json", "value": schema } }), of_schema.clone()),
            (json!({ "json_schema": schema }), of_schema.clone()),
            (json!({ "guided_json": schema.to_string() }), of_schema.clone()),
            (json!({ "format": "json" }), Some(Grammar::JsonObject)),
            (json!({ "guided_regex": "a+" }), Some(Grammar::Regex("a+".into()))),
            (json!({ "guided_choice": ["a", "b\""] }), either.clone()),
            (json!({ "structured_outputs": { "choice": ["a", "b\""] } }), either),
            (json!({ "structured_outputs": { "json": schema } }), of_schema),
        ] {
            let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
            let format = Formats::take(&mut fields).and_then(Formats::format).unwrap();
            assert_eq!(format.grammar, expected, "{body}");
        }
        for (body, param) in [
            (json!({ "grammar": gbnf, "response_format": { "type": "json_object" } }), "grammar"),
            (json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }), "structured_outputs"),
            (json!({ "guided_json": "{" }), "json_schema"),
            (json!({ "guided_choice": [] }), "choice"),
            (json!({ "response_format": { "type": "json_schema" } }), "response_format"),
        ] {
            let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
            let error = Formats::take(&mut fields).and_then(Formats::format).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
