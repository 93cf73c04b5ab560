//! Dotted keys into the JSON of a configuration.

use serde_json::Value as Json;

use crate::Value;

/// The value at a dotted path, whose parts are field names or array indices. Null counts as absent.
pub(crate) fn lookup<'a>(config: &'a Json, key: &str) -> Option<Value<'a>> {
    let node = key.split('.').try_fold(config, |node, part| match node {
        Json::Object(fields) => fields.get(part),
        Json::Array(elements) => elements.get(part.parse::<usize>().ok()?),
        _ => None,
    })?;
    (!node.is_null()).then(|| Value::of_json(node))
}

/// Every value that is not an object or null, with its dotted key.
pub(crate) fn all(config: &Json) -> Vec<(String, Value<'_>)> {
    let mut values = Vec::new();
    collect(config, String::new(), &mut values);
    values
}

fn collect<'a>(node: &'a Json, key: String, values: &mut Vec<(String, Value<'a>)>) {
    match node {
        Json::Object(fields) => {
            for (name, field) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(field, key, values);
            }
        }
        Json::Null => {}
        _ => values.push((key, Value::of_json(node))),
    }
}
