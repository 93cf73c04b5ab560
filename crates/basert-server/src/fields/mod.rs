//! Fields of requests: those that an endpoint reads, and the treatment of others.
//!
//! What an endpoint reads is what the type of its request has ([`names`]). Programs also send fields of other servers,
//! and values that ask for what happens anyway. The tables say which of them are accepted, and how; any field that is
//! in none is refused by name.

mod table;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};
use serde_json::{Map, Value};

use crate::body;
use crate::error::ApiError;

/// What is done with a field, or with some of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The APIs say that it changes no answer.
    Void,
    /// It changes no answer here, which a header of the response says.
    Ignored,
    /// Another name for the first of these that the endpoint reads.
    Means(&'static [&'static str]),
    /// These values, a JSON list, are as good as none; others are read, where the field is.
    Unset(&'static str),
    /// Where the field is not read, these values, a JSON list, ask for what happens anyway; others are refused.
    Only(&'static str),
}

/// What a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Request,
    Message,
    Call,
    Tool,
}

impl Place {
    fn rules(self, name: &str) -> impl Iterator<Item = Rule> {
        let table = match self {
            Place::Request => table::REQUEST,
            Place::Message => table::MESSAGE,
            Place::Call => table::CALL,
            Place::Tool => table::TOOL,
        };
        let named = table.iter().filter(move |(other, _)| *other == name);
        named.map(|(_, rule)| *rule)
    }
}

/// What a response says of its request beside the answer.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<BTreeSet<String>>>);

/// The longest header with warnings, in bytes.
const LONGEST_WARNING: usize = 2000;

impl Warnings {
    /// Says that this has no effect: a field, or what about it is not honoured.
    pub fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(what.into());
    }

    /// The value of the header (RFC 7234, 5.5: 299 is for whatever has no number of its own).
    fn header(&self) -> Option<HeaderValue> {
        let warnings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = warnings.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let plain = |c: char| if c == ' ' || c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' };
        let all: String = all.chars().take(LONGEST_WARNING).map(plain).collect();
        if all.is_empty() { None } else { HeaderValue::from_str(&format!("299 basert \"without effect: {all}\"")).ok() }
    }
}

/// Adds the header to responses.
pub async fn warn(mut request: Request, next: Next) -> Response {
    let warnings = Warnings::default();
    request.extensions_mut().insert(warnings.clone());
    let mut response = next.run(request).await;
    if let Some(header) = warnings.header() {
        response.headers_mut().insert(header::WARNING, header);
    }
    response
}

/// The names of the fields that a type reads, with those that are other names for them.
pub fn names<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            *self.0 = fields;
            Err(Error::custom("only its names are wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut found: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut found));
    found
}

/// Whether a value is in a JSON list; numbers are compared by what they are, 1 with 1.0.
fn is_among(value: &Value, list: &str) -> bool {
    let same = |other: &Value| match (value.as_f64(), other.as_f64()) {
        (Some(value), Some(other)) => value == other,
        _ => value == other,
    };
    serde_json::from_str::<Vec<Value>>(list).is_ok_and(|list| list.iter().any(same))
}

/// Drops what says nothing, and gives fields the names by which they are read.
pub fn rename(object: &mut Map<String, Value>, read: &[&str], place: Place) -> Result<(), ApiError> {
    let unset = |name: &str, value: &Value| {
        place.rules(name).any(|rule| matches!(rule, Rule::Unset(list) if is_among(value, list)))
    };
    object.retain(|name, value| !value.is_null() && !unset(name, value));
    let others: Vec<String> = object.keys().filter(|name| !read.contains(&name.as_str())).cloned().collect();
    for name in others {
        let mut targets =
            place.rules(&name).filter_map(|rule| if let Rule::Means(names) = rule { Some(names) } else { None });
        let Some(&target) = targets.next().and_then(|names| names.iter().find(|name| read.contains(name))) else {
            continue;
        };
        let Some(value) = object.shift_remove(&name).filter(|value| !unset(target, value)) else { continue };
        match object.get(target) {
            Some(other) if *other != value => {
                return Err(ApiError::field(
                    name.as_str(),
                    format!("this is {target} by another name, which says something else"),
                ));
            }
            _ => object.insert(target.to_owned(), value),
        };
    }
    Ok(())
}

/// Drops fields that are not read and change no answer, with a warning where the APIs do not say so themselves. What is
/// left and is not read, is not supported.
pub fn drop_void(object: &mut Map<String, Value>, read: &[&str], place: Place, warnings: &Warnings) {
    object.retain(|name, value| {
        let stays = read.contains(&name.as_str());
        stays
            || !place.rules(name).any(|rule| match rule {
                Rule::Void => true,
                Rule::Ignored => {
                    warnings.add(name.as_str());
                    true
                }
                Rule::Only(list) => is_among(value, list),
                Rule::Means(_) | Rule::Unset(_) => false,
            })
    });
}

/// What a field may say that is not read: nothing, or some values only.
pub fn refusal(name: &str, place: Place) -> String {
    let only = place.rules(name).find_map(|rule| if let Rule::Only(list) = rule { Some(list) } else { None });
    match only {
        Some(list) => format!("this field is not supported, but as {}", &list[1..list.len() - 1]),
        None => "this field is not supported".to_owned(),
    }
}

/// Reads a part of a body, whose place there is `at`.
pub fn part<T: for<'de> Deserialize<'de>>(
    mut value: Value,
    at: &str,
    place: Place,
    warnings: &Warnings,
) -> Result<T, ApiError> {
    if let Some(object) = value.as_object_mut() {
        rename(object, names::<T>(), place)?;
        drop_void(object, names::<T>(), place, warnings);
    }
    body::read(value, at, place)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Read {
        max_tokens: Option<u32>,
        #[serde(rename = "stop", alias = "halt")]
        ends: Option<Value>,
    }

    fn part(value: Value) -> Result<(Read, Warnings), String> {
        let warnings = Warnings::default();
        let read = super::part(value, "", Place::Request, &warnings).map_err(|error| error.message)?;
        Ok((read, warnings))
    }

    #[test]
    fn a_type_says_which_fields_it_reads() {
        assert_eq!(BTreeSet::from_iter(names::<Read>()), BTreeSet::from(["max_tokens", "stop", "halt"].each_ref()));
    }

    #[test]
    fn the_tables_are_lists_of_json_and_say_one_thing_of_a_name() {
        for table in [table::REQUEST, table::MESSAGE, table::CALL, table::TOOL] {
            let mut seen = BTreeSet::new();
            for (name, rule) in table {
                if let Rule::Unset(list) | Rule::Only(list) = rule {
                    assert!(serde_json::from_str::<Vec<Value>>(list).is_ok_and(|list| !list.is_empty()), "{name}");
                }
                let kind = format!("{rule:?}").split('(').next().map(str::to_owned);
                assert!(seen.insert((name, kind)), "{name}");
            }
        }
    }

    #[test]
    fn other_names_and_values_that_say_nothing_are_taken() {
        let body = json!({
            "n_predict": 7, "stop": [], "user": "me", "keep_alive": -1, "typical_p": 1.0, "mirostat": 0, "grammar": null,
        });
        let (read, warnings) = part(body).unwrap();
        assert_eq!((read.max_tokens, read.ends), (Some(7), None));
        assert_eq!(warnings.header().unwrap(), "299 basert \"without effect: keep_alive\"");
        assert!(part(json!({ "user": "me", "max_tokens": 3, "n_predict": 3 })).unwrap().1.header().is_none());
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for (body, part_of_message) in [
            (json!({ "mirostat": 2 }), "mirostat: this field is not supported, but as 0"),
            (json!({ "max_tokens": 3, "n_predict": 4 }), "n_predict: this is max_tokens by another name"),
            (json!({ "colour": 1 }), "colour: this field is not supported"),
            (json!({ "samplers": ["top_k"] }), "samplers: this field is not supported"),
        ] {
            let message = part(body).unwrap_err();
            assert!(message.contains(part_of_message), "{message}");
        }
    }

    /// The documentation's lists are those of the tables, section by section.
    #[test]
    fn the_documentation_lists_them_all() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/clients.md");
        let page = std::fs::read_to_string(page).unwrap();
        let listed = |heading: &str| -> BTreeSet<String> {
            let section = page.split_once(&format!("### {heading}\n")).unwrap().1.split("\n#").next().unwrap();
            section.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        for (heading, table, kinds) in [
            ("Values that say nothing", table::REQUEST, "Unset"),
            ("Accepted with these values", table::REQUEST, "Only"),
            ("Without effect by the APIs' own word", table::REQUEST, "Void"),
            ("In messages", table::MESSAGE, "Void Only"),
            ("In calls", table::CALL, "Void"),
            ("In tools", table::TOOL, "Void"),
        ] {
            let is_of = |rule: &Rule| kinds.split(' ').any(|kind| format!("{rule:?}").starts_with(kind));
            let expected = table.iter().filter(|(_, rule)| is_of(rule)).map(|(name, _)| (*name).to_owned());
            assert_eq!(listed(heading), expected.collect(), "{heading}");
        }
        let (ignored, renamed) = (listed("Without effect"), listed("Other names"));
        for (name, rule) in table::REQUEST {
            match rule {
                Rule::Ignored => assert!(ignored.contains(*name), "{name}"),
                Rule::Means(_) => assert!(renamed.contains(*name), "{name}"),
                _ => {}
            }
        }
    }
}
