//! Tools as a request for a response declares them: functions, by themselves or in namespaces, and what OpenAI's service
//! runs itself.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::tools::{self, Function, Tools};
use crate::body;
use crate::error::ApiError;

/// What the service runs itself, and agents declare whether or not there is a service: a model is not told of it. With
/// `tool_search` a model would ask for functions that are deferred; here it has them all.
const OF_THE_SERVICE: [&str; 3] = ["web_search", "image_generation", "tool_search"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    #[serde(rename = "type")]
    _kind: IgnoredAny,
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
    #[serde(rename = "defer_loading")]
    _defer_loading: Option<bool>,
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

/// Functions of namespaces by the names that the model knows them by: the namespace, and their own.
#[derive(Debug, Default)]
pub struct Namespaces(BTreeMap<String, (String, String)>);

impl Namespaces {
    /// What the API calls a function: its namespace, if it is in one, and its name there.
    pub fn split<'a>(&'a self, known: &'a str) -> (Option<&'a str>, &'a str) {
        match self.0.get(known) {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, known),
        }
    }
}

/// The tools of a request, those of them that are in namespaces, and all as a response repeats them.
pub fn read(
    declared: Vec<Value>,
    choice: Option<&Value>,
    parallel: Option<bool>,
) -> Result<(Tools, Namespaces, Vec<Value>), ApiError> {
    let (mut functions, mut namespaces, mut listed) = (Vec::new(), Namespaces::default(), Vec::new());
    for (i, tool) in declared.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        match kind(&tool, &path)? {
            "function" => {
                let (function, repeated) = function(tool, &path)?;
                functions.push(function);
                listed.push(repeated);
            }
            "namespace" => {
                let Namespace { name: namespace, description, tools, .. } = body::read(tool, &path)?;
                let mut within = Vec::new();
                for (j, tool) in tools.into_iter().enumerate() {
                    let path = format!("{path}.tools[{j}]");
                    let "function" = kind(&tool, &path)? else { return Err(unsupported(&tool, &path)) };
                    let (function, repeated) = function(tool, &path)?;
                    let known = tools::known_name(Some(&namespace), &function.name);
                    namespaces.0.insert(known.clone(), (namespace.clone(), function.name.clone()));
                    functions.push(Function { name: known, ..function });
                    within.push(repeated);
                }
                listed.push(json!({
                    "type": "namespace", "name": namespace, "description": description, "tools": within,
                }));
            }
            // Some have a date behind their names.
            kind if OF_THE_SERVICE.iter().any(|name| kind.starts_with(name)) => {}
            _ => return Err(unsupported(&tool, &path)),
        }
    }
    let tools = Tools::of_functions(functions, tools::chosen(choice)?, parallel.unwrap_or(true))?;
    Ok((tools, namespaces, listed))
}

fn kind<'a>(tool: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    tool["type"].as_str().ok_or_else(|| ApiError::field(format!("{path}.type"), "a tool needs a type"))
}

fn unsupported(tool: &Value, path: &str) -> ApiError {
    let message =
        format!("tools of type {} are not supported; there are functions, and namespaces of them", tool["type"]);
    ApiError::field(format!("{path}.type"), message)
}

/// A function, and how a response repeats it.
fn function(tool: Value, path: &str) -> Result<(Function, Value), ApiError> {
    let Declared { name, description, parameters, strict, .. } = body::read(tool, path)?;
    let repeated = json!({
        "type": "function", "name": name, "description": description, "parameters": parameters,
        "strict": strict.unwrap_or(false),
    });
    Ok((Function { name, description, parameters, _strict: strict }, repeated))
}
