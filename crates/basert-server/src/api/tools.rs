//! Tools that a model may call.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::bounds;
use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};

/// A tool, as OpenAI's chats have it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    #[serde(rename = "type")]
    _kind: Option<String>,
    function: Value,
}

/// A function: what it is called, and the JSON schema of its arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    #[serde(alias = "input_schema")]
    pub parameters: Option<Map<String, Value>>,
}

/// Which tools may or have to be called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// Whichever the model likes.
    #[default]
    Auto,
    /// None at all.
    None,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Debug)]
pub struct Tools {
    pub functions: Vec<Function>,
    pub choice: Choice,
    /// Whether several may be called in one answer.
    pub parallel: bool,
}

impl Default for Tools {
    /// None.
    fn default() -> Tools {
        Tools { functions: Vec::new(), choice: Choice::Auto, parallel: true }
    }
}

/// The longest name of a tool.
const LONGEST_NAME: usize = 128;

impl Tools {
    /// Checks what a request says.
    pub fn new(
        tools: Option<Vec<Value>>,
        choice: Option<&Value>,
        parallel: Option<bool>,
        warnings: &Warnings,
    ) -> Result<Tools, ApiError> {
        let mut functions = Vec::new();
        for (i, tool) in tools.unwrap_or_default().into_iter().enumerate() {
            let at = format!("tools[{i}]");
            // Some programs leave out what is around the function.
            let bare = tool.get("function").is_none() && tool.get("name").is_some_and(Value::is_string);
            let tool = if bare { json!({ "type": tool["type"], "function": tool }) } else { tool };
            let kind = tool["type"].as_str().unwrap_or("function");
            if !matches!(kind, "function" | "custom") || kind == "custom" && !bare {
                let message = format!("tools of type '{kind}' are not supported; there are functions");
                return Err(ApiError::field(format!("{at}.type"), message));
            }
            let Tool { mut function, .. } = fields::part(tool, &at, Place::Tool, warnings)?;
            if bare && let Some(function) = function.as_object_mut() {
                function.shift_remove("type");
            }
            let at = if bare { at } else { format!("{at}.function") };
            functions.push(fields::part(function, &at, Place::Tool, warnings)?);
        }
        Tools::of_functions(functions, chosen(choice)?, parallel.unwrap_or(true))
    }

    /// The same, for what is read by whatever API: functions, which of them are to be called, if not any, and how many.
    pub fn of_functions(
        mut functions: Vec<Function>,
        (choice, among): (Choice, Option<Vec<String>>),
        parallel: bool,
    ) -> Result<Tools, ApiError> {
        bounds::check("tools", functions.len(), bounds::TOOLS)?;
        let mut names = HashSet::new();
        for (i, function) in functions.iter().enumerate() {
            let name = &function.name;
            let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
            if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(good) {
                let message = format!("'{name}' is not a name of letters, digits, '_', '-' and '.'");
                return Err(ApiError::field(format!("tools[{i}].function.name"), message));
            }
            if !names.insert(name.as_str()) {
                let message = format!("two tools are called '{name}'");
                return Err(ApiError::field(format!("tools[{i}].function.name"), message));
            }
        }
        let named = if let Choice::Named(name) = &choice { Some(name) } else { None };
        for name in among.iter().flatten().chain(named) {
            if !names.contains(name.as_str()) {
                return Err(ApiError::field("tool_choice", format!("there is no tool '{name}' in tools")));
            }
        }
        if let Some(among) = &among {
            let among: HashSet<&str> = among.iter().map(String::as_str).collect();
            functions.retain(|function| among.contains(function.name.as_str()));
        }
        if choice == Choice::Required && functions.is_empty() {
            return Err(ApiError::field("tool_choice", "there are no tools to be called"));
        }
        // The APIs say that a tool by its name is called once.
        let parallel = parallel && named.is_none();
        Ok(Tools { functions, choice, parallel })
    }

    /// As templates want them; none where none may be called.
    pub fn for_template(&self) -> Vec<Value> {
        let tool = |function: &Function| {
            json!({ "type": "function", "function": {
                "name": function.name,
                "description": function.description.as_deref().unwrap_or_default(),
                "parameters": function.parameters.clone().unwrap_or_else(no_arguments),
            } })
        };
        self.callable().iter().map(tool).collect()
    }

    fn callable(&self) -> &[Function] {
        if self.choice == Choice::None { &[] } else { &self.functions }
    }
}

/// The schema of no arguments.
fn no_arguments() -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), json!({}))])
}

/// The name that a model knows a function by, which may be in a namespace.
pub fn known_name(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or(name.to_owned(), |namespace| format!("{namespace}__{name}"))
}

/// What OpenAI's APIs say of the choice: which it is, and among which tools if not among all.
pub fn chosen(choice: Option<&Value>) -> Result<(Choice, Option<Vec<String>>), ApiError> {
    let wrong = |message: &str| ApiError::field("tool_choice", message);
    let word = |word: &Value| match word.as_str() {
        Some("auto") => Ok(Choice::Auto),
        Some("none") => Ok(Choice::None),
        // Anthropic's and Mistral's word for the same.
        Some("required" | "any") => Ok(Choice::Required),
        _ => Err(wrong(&format!("{word} is not one of auto, none and required"))),
    };
    // Chats have a function's name within the function, responses beside its type.
    let name = |of: &Value| {
        let within = [&of["function"], &of["custom"], of];
        let name = within.into_iter().find_map(|of| of["name"].as_str())?;
        Some(known_name(of["namespace"].as_str(), name))
    };
    let Some(choice) = choice else { return Ok((Choice::Auto, None)) };
    let unsaid = choice["function"].is_object().then_some("function");
    match choice["type"].as_str().or(unsaid) {
        None if choice.is_string() => Ok((word(choice)?, None)),
        Some("function" | "tool" | "custom") => match name(choice) {
            Some(name) => Ok((Choice::Named(name), None)),
            None => Err(wrong("a function needs a name")),
        },
        Some("allowed_tools") => {
            let allowed = choice.get("allowed_tools").unwrap_or(choice);
            let names = allowed["tools"].as_array().and_then(|tools| tools.iter().map(name).collect::<Option<_>>());
            match names {
                Some(names) => Ok((word(&allowed["mode"])?, Some(names))),
                None => Err(wrong("allowed tools are a list of functions with names")),
            }
        }
        Some("auto" | "none" | "required" | "any") => Ok((word(&choice["type"])?, None)),
        _ => Err(wrong("expected a word, or an object of type function or allowed_tools")),
    }
}
