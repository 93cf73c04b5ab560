//! Checks of JSON schemas before they are compiled, and errors after that.

use serde_json::{Map, Value, json};

use super::{GrammarError, MOST_SOURCE};

/// Schemas and values inside each other.
const DEEPEST: usize = 64;

/// Values of all kinds.
const MOST_VALUES: usize = 50_000;

/// References and schemas that are followed from one to the next.
const MOST_STEPS: usize = 512;

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
    // Schemas must not change the library's settings.
    if schema.get("x-guidance").is_some() {
        return Err(failed("/x-guidance", "not supported".into()));
    }
    let mut finite = Finite { whole: schema, open: Vec::new(), left: MOST_VALUES, circle: None };
    match (finite.is(schema, 0), finite.circle) {
        (false, Some(circle)) => {
            let reason = format!("the reference {circle} goes round in a circle: no value that ends satisfies it");
            Err(failed("", reason))
        }
        _ => Ok(()),
    }
}

/// Whether a schema has values that end, as far as references decide that.
struct Finite<'a> {
    whole: &'a Value,
    /// References that are being followed.
    open: Vec<&'a str>,
    /// How many more schemas are looked at; a schema that is too intricate is taken to be fine.
    left: usize,
    /// The first reference that came back to itself.
    circle: Option<&'a str>,
}

impl<'a> Finite<'a> {
    fn is(&mut self, schema: &'a Value, depth: usize) -> bool {
        let Some(object) = schema.as_object().filter(|_| self.left > 0 && depth < MOST_STEPS) else { return true };
        let depth = depth + 1;
        self.left -= 1;
        if let Some(target) = object.get("$ref").and_then(Value::as_str) {
            if self.open.contains(&target) {
                self.circle.get_or_insert(target);
                return false;
            }
            let found = target.strip_prefix('#').and_then(|pointer| self.whole.pointer(pointer));
            self.open.push(target);
            let is = found.is_none_or(|found| self.is(found, depth));
            self.open.pop();
            if !is {
                return false;
            }
        }
        let list = |key: &str| object.get(key).and_then(Value::as_array);
        let needed = list("required").into_iter().flatten().filter_map(Value::as_str);
        let needed: Vec<&Value> = needed.filter_map(|name| object.get("properties")?.get(name)).collect();
        // A value need not be an object or a list, where the schema does not say so.
        let is = |kind: &str| object.get("type").is_some_and(|other| other == kind);
        if is("object") && !needed.into_iter().all(|property| self.is(property, depth)) {
            return false;
        }
        let has_items = object.get("minItems").and_then(Value::as_u64).is_some_and(|least| least > 0);
        if is("array") && has_items && !object.get("items").is_none_or(|items| self.is(items, depth)) {
            return false;
        }
        for key in ["anyOf", "oneOf"] {
            if list(key).is_some_and(|parts| !parts.is_empty() && !parts.iter().any(|part| self.is(part, depth))) {
                return false;
            }
        }
        list("allOf").is_none_or(|parts| parts.iter().all(|part| self.is(part, depth)))
    }
}

/// What the library says, in the words of schemas.
pub(super) fn in_plain_words(reason: &str) -> String {
    let keys = |rest: &str| rest.trim_matches(|c| matches!(c, '[' | ']')).replace('"', "'");
    if let Some(rest) = reason.strip_prefix("Unimplemented keys: ") {
        format!("not supported: {}", keys(rest))
    } else if let Some(rest) = reason.strip_prefix("Unknown format: ") {
        format!("the format '{rest}' is not one of {}", super::relaxed::FORMATS.join(", "))
    } else if let Some(rest) = reason.strip_prefix("Unsatisfiable schema: ") {
        format!("nothing satisfies it: {rest}")
    } else if reason.starts_with("oneOf constraints") {
        "the parts of oneOf do not exclude each other; anyOf would be possible".into()
    } else if reason.starts_with("min/maxProperties") {
        "minProperties and maxProperties are possible only where all of properties are required".into()
    } else if reason.contains("NoExtensionBias") {
        "no text satisfies it".into()
    } else {
        reason.to_owned()
    }
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
    let reason = in_plain_words(reason.lines().next().unwrap_or_default());
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
