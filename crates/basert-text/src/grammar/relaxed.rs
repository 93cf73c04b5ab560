//! Relaxation of JSON schemas: keywords that a mask cannot enforce are removed.

use serde_json::{Map, Value, json};

/// The supported formats.
pub const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Schemas inside each other; what is deeper is left as it is, and refused when it is compiled.
const DEEPEST: usize = 64;

/// Keywords that no mask can enforce.
const UNENFORCED: [&str; 12] = [
    "contains",
    "minContains",
    "maxContains",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];

/// Relaxes a schema that would be refused for a keyword that programs often add needlessly. Returns the schema, and
/// what is not enforced, each with its place: unknown formats, `uniqueItems`, `not`, what `UNENFORCED`
/// lists, and `propertyNames` other than a list or a pattern. `oneOf` becomes `anyOf`, which is equivalent if its parts exclude each other; if that cannot be
/// shown, it is reported, too. Keywords without effect (`uniqueItems: false`, `propertyNames` of any text) are removed
/// silently.
pub fn relaxed(schema: &Value) -> (Value, Vec<String>) {
    let (mut relaxed, mut notes) = (schema.clone(), Vec::new());
    Relaxing { whole: schema, notes: &mut notes }.schema(&mut relaxed, "", 0);
    (relaxed, notes)
}

struct Relaxing<'a> {
    whole: &'a Value,
    notes: &'a mut Vec<String>,
}

impl Relaxing<'_> {
    fn note(&mut self, what: &str, path: &str) {
        self.notes.push(format!("{what}{}{path}", if path.is_empty() { "" } else { " at " }));
    }

    fn schema(&mut self, schema: &mut Value, path: &str, depth: usize) {
        let Some(object) = schema.as_object_mut().filter(|_| depth < DEEPEST) else { return };
        if object.get("not").is_some_and(is_anything) {
            *schema = Value::Bool(false);
            return;
        }
        self.keywords(object, path);
        for (key, value) in object {
            match (key.as_str(), value) {
                ("$defs" | "definitions" | "properties" | "patternProperties", Value::Object(map)) => {
                    for (name, value) in map {
                        let name = name.replace('~', "~0").replace('/', "~1");
                        self.schema(value, &format!("{path}/{key}/{name}"), depth + 1);
                    }
                }
                ("items" | "prefixItems" | "anyOf" | "allOf", Value::Array(list)) => {
                    for (i, value) in list.iter_mut().enumerate() {
                        self.schema(value, &format!("{path}/{key}/{i}"), depth + 1);
                    }
                }
                ("items" | "additionalItems" | "additionalProperties", value) => {
                    self.schema(value, &format!("{path}/{key}"), depth + 1);
                }
                _ => {}
            }
        }
    }

    fn keywords(&mut self, object: &mut Map<String, Value>, path: &str) {
        let unknown = |format: &Value| format.as_str().is_some_and(|format| !FORMATS.contains(&format));
        if object.get("format").is_some_and(unknown)
            && let Some(Value::String(format)) = object.shift_remove("format")
        {
            self.note(&format!("format '{format}'"), path);
        }
        if object.shift_remove("uniqueItems") == Some(Value::Bool(true)) {
            self.note("uniqueItems", path);
        }
        for keyword in UNENFORCED {
            if object.shift_remove(keyword).is_some_and(|value| !is_anything(&value)) {
                self.note(keyword, path);
            }
        }
        match object.shift_remove("not") {
            None | Some(Value::Bool(false)) => {}
            Some(_) => self.note("not", path),
        }
        if let Some(names) = object.shift_remove("propertyNames") {
            self.property_names(names, object, path);
        }
        if let Some(Value::Array(parts)) = object.get("oneOf") {
            if !self.exclude_each_other(parts) {
                self.note("that only one part of oneOf holds", path);
            }
            let parts = object.shift_remove("oneOf").unwrap_or_default();
            if !object.contains_key("anyOf") {
                object.insert("anyOf".into(), parts);
            } else if let Some(Value::Array(all)) = object.get_mut("allOf") {
                all.push(json!({ "anyOf": parts }));
            } else {
                object.insert("allOf".into(), json!([{ "anyOf": parts }]));
            }
        }
    }

    /// Names from a list or of a pattern become properties.
    fn property_names(&mut self, names: Value, object: &mut Map<String, Value>, path: &str) {
        let names = self.resolved(&names).clone();
        let listed = match (&names["enum"], &names["const"]) {
            (Value::Array(list), _) => list.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            (_, Value::String(name)) => Some(vec![name.clone()]),
            _ => None,
        };
        let others = object.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        match (listed, &names["pattern"]) {
            _ if is_anything(&names) || names == json!({ "type": "string" }) => {}
            (Some(listed), _) if !object.contains_key("patternProperties") => {
                let mut properties = Map::new();
                for name in listed {
                    let own = object.get("properties").and_then(|properties| properties.get(&name));
                    properties.insert(name.clone(), own.unwrap_or(&others).clone());
                }
                object.insert("properties".into(), properties.into());
                object.insert("additionalProperties".into(), false.into());
            }
            (None, Value::String(pattern))
                if !object.contains_key("patternProperties") && !object.contains_key("properties") =>
            {
                object.insert("patternProperties".into(), json!({ (pattern): others }));
                object.insert("additionalProperties".into(), false.into());
            }
            _ => self.note("propertyNames", path),
        }
    }

    /// What a reference within the schema refers to; anything else is itself.
    fn resolved<'b>(&'b self, schema: &'b Value) -> &'b Value {
        let pointer = schema["$ref"].as_str().and_then(|target| target.strip_prefix('#'));
        pointer.and_then(|pointer| self.whole.pointer(pointer)).unwrap_or(schema)
    }

    /// Whether no value satisfies two of them, as far as that shows: by their types, or by a property that tells them
    /// apart.
    fn exclude_each_other(&self, parts: &[Value]) -> bool {
        let parts: Vec<&Value> = parts.iter().map(|part| self.resolved(part)).collect();
        let kinds: Option<Vec<&str>> = parts.iter().map(|part| part["type"].as_str()).collect();
        let kind = |kind: &&str| if *kind == "integer" { "number" } else { *kind }.to_owned();
        if kinds.is_some_and(|kinds| all_differ(&kinds.iter().map(kind).collect::<Vec<_>>())) {
            return true;
        }
        let Some(first) = parts.first().and_then(|part| part["properties"].as_object()) else { return parts.len() < 2 };
        first.keys().any(|name| {
            let values: Option<Vec<Value>> = parts.iter().map(|part| self.tag(part, name)).collect();
            values.is_some_and(|lists| {
                all_differ(&lists.iter().flat_map(|list| list.as_array().into_iter().flatten()).collect::<Vec<_>>())
            })
        })
    }

    /// The values of a property that has to be there, if they are listed.
    fn tag(&self, part: &Value, name: &str) -> Option<Value> {
        part["required"].as_array()?.iter().find(|required| *required == name)?;
        let property = self.resolved(&part["properties"][name]);
        match (property.get("const"), property.get("enum")) {
            (Some(value), _) => Some(json!([value])),
            (None, Some(list)) => Some(list.clone()),
            (None, None) => None,
        }
    }
}

/// Whether every value satisfies the schema.
fn is_anything(schema: &Value) -> bool {
    *schema == Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}

fn all_differ<T: PartialEq>(values: &[T]) -> bool {
    values.iter().enumerate().all(|(i, value)| !values[..i].contains(value))
}
