//! JSON schemas from elsewhere: what a grammar lets through is what a validator calls valid.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use basert_text::{Grammar, GrammarCompiler, Tokenizer};
use serde_json::{Map, Value};

use crate::common::{self, Random, admits, wander};

/// The ways to write a value that count as the same: keys in any order, whole numbers with and without a fraction. No more
/// than `MOST`.
fn spellings(value: &Value) -> Vec<String> {
    const MOST: usize = 800;
    let mut texts = match value {
        Value::Object(map) => orders(map),
        Value::Array(items) => {
            let mut lists = vec![String::new()];
            for item in items {
                let parts = spellings(item);
                let joined = |list: &String, part: &String| {
                    if list.is_empty() { part.clone() } else { format!("{list},{part}") }
                };
                lists =
                    lists.iter().flat_map(|list| parts.iter().map(move |part| joined(list, part))).take(MOST).collect();
            }
            lists.into_iter().map(|list| format!("[{list}]")).collect()
        }
        Value::Number(number) => match number.as_f64() {
            Some(whole) if whole.fract() == 0.0 && whole.abs() < 1e16 => {
                vec![format!("{whole:.0}"), format!("{whole:.1}")]
            }
            _ => vec![number.to_string()],
        },
        other => vec![other.to_string()],
    };
    texts.truncate(MOST);
    texts
}

/// An object with its keys in every order.
fn orders(map: &Map<String, Value>) -> Vec<String> {
    let Some(_) = map.iter().next() else { return vec!["{}".into()] };
    let mut texts = Vec::new();
    for (key, value) in map {
        let rest: Map<String, Value> =
            map.iter().filter(|(k, _)| *k != key).map(|(k, v)| (k.clone(), v.clone())).collect();
        for part in spellings(value) {
            for rest in orders(&rest) {
                let rest = rest.trim_start_matches('{');
                let comma = if rest == "}" { "" } else { "," };
                texts.push(format!("{{{}:{part}{comma}{rest}", Value::from(key.as_str())));
            }
        }
    }
    texts
}

fn json_files(folder: &Path) -> Vec<(String, Value)> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let read = |path: &std::path::PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).ok();
    files.iter().filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), read(path)?))).collect()
}

fn bytes() -> (Arc<Tokenizer>, GrammarCompiler) {
    let tokenizer = Arc::new(common::byte_tokenizer(&["<|im_end|>"]));
    let compiler = GrammarCompiler::new(Arc::clone(&tokenizer)).unwrap();
    (tokenizer, compiler)
}

/// Instances of the suite that a grammar gets wrong, by file and a part of the description, and why.
const WRONG: [(&str, &str, &str); 9] = [
    ("ref", "ref valid, maxItems ignored", "what stands beside $ref counts in all drafts"),
    ("date", "29 days in February (normal)", "29 February is in every year"),
    ("date", "not a leap year", "29 February is in every year"),
    ("date-time", "leap second", "leap seconds are in every minute"),
    ("time", "leap second", "leap seconds are in every minute"),
    ("ipv6", "ipv", "IPv4 at the end of IPv6 is not written"),
    ("ipv6", "mixed format with double colons", "IPv4 at the end of IPv6 is not written"),
    ("email", "quoted string", "quoted names are not written"),
    ("email", "IPv6-address-literal", "addresses in place of domains are not written"),
];

/// The JSON Schema Test Suite. For every schema that is not refused, its valid instances are let through, and its invalid
/// ones are not.
#[test]
fn test_suite() {
    let (_, compiler) = bytes();
    let suite = common::fetched("schemas/suite/tests");
    let (mut compiled, mut valid, mut invalid) = (0, 0, 0);
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut known_wrong = [0; WRONG.len()];
    for folder in ["draft7", "draft7/optional/format", "draft2020-12", "draft2020-12/optional/format"] {
        for (file, groups) in json_files(&suite.join(folder)) {
            // Formats are no mere annotations here.
            if file == "format" {
                continue;
            }
            for group in groups.as_array().unwrap() {
                let mut schema = group["schema"].clone();
                if let (Some(schema), true) = (schema.as_object_mut(), folder.starts_with("draft7")) {
                    schema.entry("$schema").or_insert_with(|| "http://json-schema.org/draft-07/schema#".into());
                }
                let constraint = match compiler.compile(&Grammar::JsonSchema(schema)) {
                    Ok(constraint) => constraint,
                    Err(error) => {
                        let reason = error.to_string();
                        let reason = reason.split_once(": ").map_or("", |(_, reason)| reason).to_owned();
                        *refused.entry(reason).or_default() += 1;
                        continue;
                    }
                };
                compiled += 1;
                for test in group["tests"].as_array().unwrap() {
                    let is_valid = test["valid"] == true;
                    let is_admitted = spellings(&test["data"]).iter().any(|text| admits(&constraint, text));
                    *if is_valid { &mut valid } else { &mut invalid } += 1;
                    let description = test["description"].as_str().unwrap();
                    let expected = WRONG.iter().position(|(of, part, _)| *of == file && description.contains(part));
                    if is_valid == is_admitted {
                        continue;
                    }
                    if let Some(known) = expected {
                        known_wrong[known] += 1;
                    } else {
                        let what = if is_valid { "valid and masked" } else { "invalid and admitted" };
                        wrong.push(format!(
                            "{what}: {folder}/{file}: {}: {}: {} by {}",
                            group["description"], test["description"], test["data"], group["schema"]
                        ));
                    }
                }
            }
        }
    }
    let total: usize = refused.values().sum();
    let mut refused: Vec<_> = refused.into_iter().collect();
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    println!("{compiled} schemas compiled, {total} refused; {valid} valid and {invalid} invalid instances");
    refused.iter().for_each(|(reason, count)| println!("{count:4} {reason}"));
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), valid + invalid, wrong.join("\n"));
    assert!(known_wrong.iter().all(|&count| count > 0), "no longer wrong: {known_wrong:?} of {WRONG:?}");
    assert!(compiled >= 320 && valid >= 830 && invalid >= 720, "fewer than there were");
}

/// The schemas of SchemaStore. Whatever is drawn at random by the grammar of one is valid by it, as another implementation
/// judges.
#[test]
fn schemas_in_use() {
    let (tokenizer, compiler) = bytes();
    let (mut compiled, mut refused, mut checked, mut ended) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for (name, schema) in json_files(&common::fetched("schemas/schemastore/jsondata")) {
        let Ok(constraint) = compiler.compile(&Grammar::JsonSchema(schema.clone())) else {
            refused += 1;
            continue;
        };
        compiled += 1;
        // Some refer to schemas elsewhere.
        let Ok(validator) = jsonschema::validator_for(&schema) else { continue };
        checked += 1;
        for seed in 0..4 {
            let (ids, has_ended) = wander(&tokenizer, &constraint, &mut Random(seed), 600);
            if !has_ended {
                continue;
            }
            let text = tokenizer.decode(&ids, true);
            let value: Value = match serde_json::from_str(&text) {
                Ok(value) => value,
                // A number like 1e999 is JSON, though few can read it.
                Err(error) if error.to_string().contains("number out of range") => continue,
                Err(error) => panic!("{name}: {text:?}: {error}"),
            };
            ended += 1;
            // Leap seconds are in every minute.
            let is_known = |error: &jsonschema::ValidationError<'_>| {
                error.to_string().contains(":60") && error.to_string().contains("date-time")
            };
            if let Some(error) = validator.validate(&value).err().filter(|error| !is_known(error)) {
                wrong.push(format!("{name}: {error} at {}: {text:?}", error.instance_path));
            }
        }
    }
    println!("{compiled} schemas compiled, {refused} refused; {ended} answers to {checked} of them ended");
    assert!(wrong.is_empty(), "{} of {ended} invalid:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compiled >= 230 && ended >= 850, "fewer than there were");
}
