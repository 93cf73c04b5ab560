//! Tools as a request for a response declares them: functions, by themselves or in namespaces, tools of free text, the
//! shell of the client, and what OpenAI's service runs itself.
//!
//! Models only support functions. Other kinds of tools are declared to the model as functions, and its calls are
//! translated back to the declared kind.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::tools::{self, Function, Tools};
use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};

/// Tools that OpenAI's service runs itself, and that agents declare for every server: they are not passed to the model.
/// `tool_search` is for loading deferred functions; here the model has all of them.
const OF_THE_SERVICE: [&str; 8] = [
    "web_search",
    "image_generation",
    "tool_search",
    "file_search",
    "code_interpreter",
    "mcp",
    "computer",
    "programmatic_tool_calling",
];
/// Tools of OpenAI that clients run themselves, which agents declare beside functions that do the same.
const OF_THE_CLIENT: [&str; 2] = ["shell", "apply_patch"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    #[serde(rename = "type")]
    _kind: IgnoredAny,
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Custom {
    #[serde(rename = "type")]
    _kind: IgnoredAny,
    name: String,
    description: Option<String>,
    format: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    #[serde(rename = "type")]
    _kind: IgnoredAny,
    name: String,
    description: Option<String>,
    tools: Vec<Value>,
}

/// The kind of tool in the API, for a function that the model calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called<'a> {
    Function {
        namespace: Option<&'a str>,
        name: &'a str,
    },
    /// Its argument is a text.
    Custom {
        name: &'a str,
    },
    Shell,
}

#[derive(Debug)]
enum Kind {
    InNamespace { namespace: String, name: String },
    Custom,
    Shell,
}

/// The declared tools by their function names for the model, if the two differ.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, Kind>);

impl Known {
    /// What the API calls it.
    pub fn called<'a>(&'a self, known: &'a str) -> Called<'a> {
        match self.0.get(known) {
            Some(Kind::InNamespace { namespace, name }) => Called::Function { namespace: Some(namespace), name },
            Some(Kind::Custom) => Called::Custom { name: known },
            Some(Kind::Shell) => Called::Shell,
            None => Called::Function { namespace: None, name: known },
        }
    }
}

/// What the model knows the client's shell by.
pub const SHELL: &str = "local_shell";
/// The argument of a tool that takes free text.
pub const INPUT: &str = "input";

/// The schema of one text.
fn of_text(description: String) -> Map<String, Value> {
    let input = json!({ "type": "string", "description": description });
    let schema = json!({ "type": "object", "properties": { INPUT: input }, "required": [INPUT] });
    schema.as_object().cloned().unwrap_or_default()
}

fn shell() -> Function {
    let schema = json!({
        "type": "object",
        "properties": {
            "command": { "type": "array", "items": { "type": "string" }, "description": "the program and its arguments" },
            "working_directory": { "type": "string" },
            "timeout_ms": { "type": "integer" },
        },
        "required": ["command"],
    });
    Function {
        name: SHELL.to_owned(),
        description: Some("Runs a command on the user's machine, and gives its output.".to_owned()),
        parameters: schema.as_object().cloned(),
    }
}

/// The tools of a request, what the API calls them, and all as a response repeats them.
pub fn read(
    declared: Vec<Value>,
    choice: Option<&Value>,
    parallel: Option<bool>,
    warnings: &Warnings,
) -> Result<(Tools, Known, Vec<Value>), ApiError> {
    let (mut functions, mut names, mut listed) = (Vec::new(), Known::default(), Vec::new());
    for (i, tool) in declared.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        match kind(&tool, &path)? {
            "function" => {
                let (function, repeated) = function(tool, &path, warnings)?;
                functions.push(function);
                listed.push(repeated);
            }
            "custom" => {
                let Custom { name, description, format, .. } = fields::part(tool, &path, Place::Tool, warnings)?;
                // The grammar is part of the description for the model, but is not enforced.
                let definition = format.as_ref().and_then(|format| format["definition"].as_str());
                let meaning = definition.map_or("the whole input, as text".to_owned(), |definition| {
                    warnings.add(format!("{path}.format"));
                    format!("the whole input, as text of this grammar:\n{definition}")
                });
                names.0.insert(name.clone(), Kind::Custom);
                listed.push(json!({
                    "type": "custom", "name": name, "description": description,
                    "format": format.unwrap_or_else(|| json!({ "type": "text" })),
                }));
                functions.push(Function { name, description, parameters: Some(of_text(meaning)) });
            }
            "local_shell" => {
                names.0.insert(SHELL.to_owned(), Kind::Shell);
                functions.push(shell());
                listed.push(json!({ "type": "local_shell" }));
            }
            "namespace" => {
                let Namespace { name: namespace, description, tools, .. } =
                    fields::part(tool, &path, Place::Tool, warnings)?;
                let mut within = Vec::new();
                for (j, tool) in tools.into_iter().enumerate() {
                    let path = format!("{path}.tools[{j}]");
                    let "function" = kind(&tool, &path)? else { return Err(unsupported(&tool, &path)) };
                    let (function, repeated) = function(tool, &path, warnings)?;
                    let known = tools::known_name(Some(&namespace), &function.name);
                    let name = function.name.clone();
                    names.0.insert(known.clone(), Kind::InNamespace { namespace: namespace.clone(), name });
                    functions.push(Function { name: known, ..function });
                    within.push(repeated);
                }
                listed.push(json!({
                    "type": "namespace", "name": namespace, "description": description, "tools": within,
                }));
            }
            // Some have a date behind their names.
            kind if OF_THE_SERVICE.iter().any(|name| kind.starts_with(name)) || OF_THE_CLIENT.contains(&kind) => {
                warnings.add(format!("{path} ({kind})"));
            }
            _ => return Err(unsupported(&tool, &path)),
        }
    }
    let tools = Tools::of_functions(functions, tools::chosen(choice)?, parallel.unwrap_or(true))?;
    Ok((tools, names, listed))
}

fn kind<'a>(tool: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    tool["type"].as_str().ok_or_else(|| ApiError::field(format!("{path}.type"), "a tool needs a type"))
}

fn unsupported(tool: &Value, path: &str) -> ApiError {
    let message = format!(
        "tools of type {} are not supported; there are functions, custom tools, local_shell, and namespaces of functions",
        tool["type"]
    );
    ApiError::field(format!("{path}.type"), message)
}

/// A function, and how a response repeats it.
fn function(mut tool: Value, path: &str, warnings: &Warnings) -> Result<(Function, Value), ApiError> {
    // As chats have it: what is said of a function stands within it.
    if let Some(tool) = tool.as_object_mut()
        && let Some(Value::Object(within)) = tool.shift_remove("function")
    {
        tool.extend(within);
    }
    let Declared { name, description, parameters, strict, .. } = fields::part(tool, path, Place::Tool, warnings)?;
    let repeated = json!({
        "type": "function", "name": name, "description": description, "parameters": parameters,
        "strict": strict.unwrap_or(false),
    });
    Ok((Function { name, description, parameters }, repeated))
}
