//! What has to be said about JSON schemas before and after they are compiled.

use serde_json::{Map, Value, json};

use super::{GrammarError, MOST_SOURCE};

/// Schemas and values inside each other.
const DEEPEST: usize = 64;

/// Values of all kinds.
const MOST_VALUES: usize = 50_000;

/// How often a schema that cannot be compiled is tried in parts to find out which one it is.
const MOST_TRIES: usize = 200;

/// Refuses what is too large to be looked at.
pub(super) fn check(schema: &Value) -> Result<(), GrammarError> {
    let failed = |path: &str, reason: String| GrammarError::Schema { path: path.into(), reason };
    if !schema.is_object() && !schema.is_boolean() {
        return Err(failed("", "expected an object or a boolean".into()));
    }
    let (mut values, mut bytes) = (0, 0);
    let mut open = vec![(schema, 0)];
    while let Some((value, depth)) = open.pop() {
        values += 1;
        if depth > DEEPEST {
            return Err(failed("", format!("nested deeper than {DEEPEST}")));
        }
        match value {
            Value::Object(map) => {
                bytes += map.keys().map(String::len).sum::<usize>();
                open.extend(map.values().map(|value| (value, depth + 1)));
            }
            Value::Array(list) => open.extend(list.iter().map(|value| (value, depth + 1))),
            Value::String(text) => bytes += text.len(),
            _ => bytes += 8,
        }
        if values > MOST_VALUES || bytes > MOST_SOURCE {
            return Err(failed("", format!("more than {MOST_VALUES} values or {MOST_SOURCE} bytes")));
        }
    }
    // The library's own settings are not for whoever writes a schema.
    if schema.get("x-guidance").is_some() {
        return Err(failed("/x-guidance", "not supported".into()));
    }
    Ok(())
}

/// The schema, with a limit on the space between JSON's tokens: models that are unsure write space without end.
pub(super) fn with_space(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("x-guidance".into(), json!({"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}));
    }
    schema
}

/// The error for a schema that does not compile, at the innermost part that does not by itself, for the same reason.
pub(super) fn blame(schema: &Value, reason: String, compiles: &dyn Fn(&Value) -> Result<(), String>) -> GrammarError {
    let (mut path, mut part, mut tries) = (String::new(), schema.clone(), 0);
    'down: while tries < MOST_TRIES {
        for (step, child) in children(&part, path.is_empty()) {
            tries += 1;
            let child = with_definitions(child, schema);
            if compiles(&child).is_err_and(|found| found == reason) {
                path.push_str(&step);
                part = child;
                continue 'down;
            }
        }
        break;
    }
    let reason = reason.lines().next().unwrap_or_default().to_owned();
    GrammarError::Schema { path, reason }
}

/// The schemas directly inside a schema, with the way to them; of the whole one, first those that others refer to.
fn children(schema: &Value, is_whole: bool) -> Vec<(String, &Value)> {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    let (mut definitions, mut parts) = (Vec::new(), Vec::new());
    for (key, value) in schema.as_object().into_iter().flatten() {
        let named = |map: &'_ Map<String, Value>| -> Vec<String> {
            map.keys().map(|name| format!("/{key}/{}", escaped(name))).collect()
        };
        match (key.as_str(), value) {
            ("$defs" | "definitions", Value::Object(map)) if is_whole => {
                definitions.extend(named(map).into_iter().zip(map.values()));
            }
            ("properties" | "patternProperties", Value::Object(map)) => {
                parts.extend(named(map).into_iter().zip(map.values()));
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(list)) => {
                parts.extend(list.iter().enumerate().map(|(i, value)| (format!("/{key}/{i}"), value)));
            }
            ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => {
                parts.push((format!("/{key}"), value));
            }
            _ => {}
        }
    }
    definitions.extend(parts);
    definitions
}

/// A part of a schema, with what it may refer to.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let Value::Object(part) = part else { return part.clone() };
    let mut part: Map<String, Value> = part.clone();
    for key in ["$schema", "$defs", "definitions"] {
        if let (false, Some(value)) = (part.contains_key(key), whole.get(key)) {
            part.insert(key.into(), value.clone());
        }
    }
    part.into()
}
