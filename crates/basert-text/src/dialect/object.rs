//! Calls that are JSON objects with a name and arguments, character by character.

use serde_json::Value as Json;

use super::call::{Found, LONGEST_NAME, Tool, say};
use super::json::{Step, Value, is_space};
use super::{CallStyle, Form};

/// A JSON object with a name and arguments.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    place: Place,
    /// The key or value at hand.
    text: String,
    role: Role,
    seen: Vec<Role>,
    name: Option<String>,
    id: Option<String>,
    /// The arguments as long as the call is not reported.
    arguments: Option<String>,
    pub begun: bool,
    /// It is no call, and what comes is a list of calls.
    pub is_wrapper: bool,
}

#[derive(Clone, Debug, Default)]
enum Place {
    /// Before a key or the end.
    #[default]
    Key,
    InKey(Value),
    Colon,
    Before,
    In(Value),
    Next,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Id,
    /// A function within the call, as APIs write it: its name, or an object with its name and arguments.
    Function,
    /// All calls.
    Calls,
    #[default]
    Other,
}

impl Object {
    /// The next character after the opening brace.
    pub fn push(&mut self, c: char, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> Step {
        match &mut self.place {
            Place::Key | Place::Colon | Place::Before | Place::Next if is_space(c) => Step::More,
            Place::Key if matches!(c, '"' | '\'') => {
                self.text.clear();
                let mut value = Value::new();
                value.push(c, &mut self.text);
                self.go(Place::InKey(value))
            }
            // A comma may stand before it.
            Place::Key if c == '}' && !self.seen.is_empty() => self.end(style, found),
            Place::InKey(value) => match value.push(c, &mut self.text) {
                Step::Last => {
                    let Ok(key) = serde_json::from_str::<String>(&self.text) else { return Step::Wrong };
                    if !self.take_key(&key, style, tools) {
                        return Step::Wrong;
                    }
                    self.go(Place::Colon)
                }
                step => step,
            },
            Place::Colon if c == ':' => self.go(Place::Before),
            Place::Before if self.role == Role::Calls => {
                self.is_wrapper = c == '[';
                if self.is_wrapper { Step::More } else { Step::Wrong }
            }
            Place::Before => {
                self.text.clear();
                if self.role == Role::Arguments && c == '{' && style.id.is_none() && self.name.is_some() {
                    self.begin(found);
                }
                self.place = Place::In(Value::new());
                self.value(c, style, tools, found)
            }
            Place::In(_) => self.value(c, style, tools, found),
            Place::Next if c == ',' => self.go(Place::Key),
            Place::Next if c == '}' => self.end(style, found),
            _ => Step::Wrong,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::More
    }

    /// Whether a call may have this key here.
    fn take_key(&mut self, key: &str, style: &CallStyle, tools: &[Tool]) -> bool {
        let is = |keys: &[String]| keys.iter().any(|k| k == key);
        self.role = match () {
            () if style.forms.contains(&Form::Keyed) && self.name.is_none() && style.is_name(key, tools) => {
                self.name = Some(key.to_owned());
                Role::Arguments
            }
            () if key == "tool_calls" && self.seen.is_empty() => Role::Calls,
            () if is(&style.name) => Role::Name,
            () if is(&style.arguments) => Role::Arguments,
            () if style.id.as_deref() == Some(key) => Role::Id,
            () if key == "function" && self.name.is_none() => Role::Function,
            () => Role::Other,
        };
        let is_new = self.role == Role::Other || !self.seen.contains(&self.role);
        self.seen.push(self.role);
        // `"type": "function"` and an id are written by models that have seen how APIs write calls.
        is_new && (self.role != Role::Other || !style.ambiguous || matches!(key, "type" | "id"))
    }

    fn value(&mut self, c: char, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> Step {
        let Place::In(value) = &mut self.place else { return Step::Wrong };
        let streams = self.begun && self.role == Role::Arguments;
        let mut more = String::new();
        let step = value.push(c, &mut more);
        if streams {
            say(found, &more);
        } else {
            self.text.push_str(&more);
        }
        match step {
            Step::More | Step::Wrong => step,
            Step::Last | Step::After => {
                if !streams && !self.take_value(style, tools) {
                    return Step::Wrong;
                }
                self.place = Place::Next;
                if step == Step::Last { Step::More } else { self.push(c, style, tools, found) }
            }
        }
    }

    /// Keeps the value that is whole. Whether it is what its key is for.
    fn take_value(&mut self, style: &CallStyle, tools: &[Tool]) -> bool {
        match self.role {
            Role::Other | Role::Calls => true,
            Role::Id => {
                self.id = serde_json::from_str(&self.text).ok().filter(|id: &String| !id.is_empty());
                true
            }
            Role::Name => {
                self.name = serde_json::from_str(&self.text).ok();
                self.has_good_name(style, tools)
            }
            Role::Function => {
                let Ok(function) = serde_json::from_str::<Json>(&self.text) else { return false };
                let within = |keys: &[String]| keys.iter().find_map(|key| function.get(key));
                let name = within(&style.name).unwrap_or(&function);
                self.name = name.as_str().map(str::to_owned);
                if let Some(given) = within(&style.arguments) {
                    self.seen.push(Role::Arguments);
                    self.arguments = arguments(&given.to_string());
                }
                self.seen.push(Role::Name);
                self.has_good_name(style, tools)
            }
            Role::Arguments => {
                self.arguments = arguments(&self.text);
                self.arguments.is_some()
            }
        }
    }

    fn has_good_name(&self, style: &CallStyle, tools: &[Tool]) -> bool {
        self.name.as_ref().is_some_and(|name| {
            let is_known = || tools.iter().any(|tool| tool.name == *name);
            !name.is_empty() && name.len() <= LONGEST_NAME && (!style.ambiguous || is_known())
        })
    }

    fn begin(&mut self, found: &mut Vec<Found>) {
        let name = self.name.clone().unwrap_or_default();
        found.push(Found::Began { id: self.id.take(), name });
        self.begun = true;
    }

    /// Adds the brackets that are missing, if nothing else is. Whether that is a call.
    pub fn complete(&mut self, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> bool {
        match &mut self.place {
            Place::In(value) if self.role == Role::Arguments => {
                let Some(rest) = value.missing() else { return false };
                if self.begun {
                    say(found, &rest);
                } else {
                    self.text.push_str(&rest);
                    if !self.take_value(style, tools) {
                        return false;
                    }
                }
            }
            Place::Next | Place::Key if self.begun || self.arguments.is_some() => {}
            _ => return false,
        }
        self.end(style, found) == Step::Last
    }

    fn end(&mut self, style: &CallStyle, found: &mut Vec<Found>) -> Step {
        if !self.begun {
            if self.name.is_none() || (self.arguments.is_none() && style.ambiguous) {
                return Step::Wrong;
            }
            self.begin(found);
            found.push(Found::Arguments(self.arguments.take().unwrap_or_else(|| "{}".into())));
        }
        Step::Last
    }
}

/// Arguments that came as a whole: an object, the text of one, or nothing.
fn arguments(text: &str) -> Option<String> {
    match serde_json::from_str(text).ok()? {
        Json::Object(_) => Some(text.into()),
        Json::String(inner) => matches!(serde_json::from_str(&inner), Ok(Json::Object(_))).then_some(inner),
        Json::Null => Some("{}".into()),
        _ => None,
    }
}
