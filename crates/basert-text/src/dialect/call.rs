//! Parsing of the calls after a marker, character by character.

use std::sync::Arc;

use serde_json::Value as Json;

use super::json::{Step, Value, is_space};
use super::parameters::Reading;
use super::{CallStyle, Form};

/// The longest name of a tool, in bytes.
pub(super) const LONGEST_NAME: usize = 256;

/// A tool that may be called.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Arc<Json>,
}

impl Tool {
    /// As APIs have it.
    pub fn new(function: &Json) -> Self {
        let name = function["name"].as_str().unwrap_or_default().to_owned();
        Self { name, parameters: Arc::new(function["parameters"].clone()) }
    }
}

/// An event caused by a character.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// A call's name is known, and that arguments are there.
    Began { id: Option<String>, name: String },
    /// More of the arguments.
    Arguments(String),
    /// The call is complete.
    Ended,
    /// The call can no longer become complete.
    Broken,
}

/// The state after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The character belongs to them.
    Stay,
    /// It is their last.
    Over,
    /// It does not belong to them, and neither does what is in [`Calls::raw`].
    Refused,
}

/// The calls that follow one marker.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    stage: Stage,
    /// What was read and is not yet part of a call that was reported.
    pub raw: String,
    /// Whether a call was reported that has not ended.
    begun: bool,
    /// Markers any of which ends the calls.
    closes: Vec<String>,
    in_list: bool,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Before a call, with what there is of a marker.
    Opening(String),
    /// In a list, before an object.
    Item,
    Object(Box<Object>),
    /// A call whose arguments are no JSON.
    Parameters(Box<Reading>),
    /// After an object of a list.
    Next,
    /// In a name that is plain text.
    Name(String),
    /// In arguments that stand by themselves.
    Arguments {
        id: Option<String>,
        name: String,
        value: Value,
    },
    /// After the last call, with what there is of the marker.
    Closing(String),
}

impl Calls {
    /// After the marker `open`.
    pub fn new(style: &CallStyle, open: &str) -> Self {
        // Where nothing closes a call, what stands between two of them may follow.
        let close = if style.close.is_empty() { style.gap.trim() } else { &style.close };
        let closes = if close.is_empty() { vec![] } else { vec![close.into()] };
        let stage = match &style.parameters {
            // The marker is that before the name.
            Some(markers) if markers.name.open.is_empty() && style.close.is_empty() => {
                Stage::Parameters(Box::new(Reading::new()))
            }
            _ => Stage::Opening(String::new()),
        };
        Self { stage, raw: open.into(), begun: false, closes, in_list: false }
    }

    /// After a header that names the tool, and is no text in any case.
    pub fn named(name: &str, closes: Vec<String>) -> Self {
        let stage = Stage::Arguments { id: None, name: name.into(), value: Value::new() };
        Self { stage, raw: String::new(), begun: false, closes, in_list: false }
    }

    /// Nothing more comes. Where the model said so itself, brackets that are missing are added.
    pub fn finish(&mut self, style: Option<&CallStyle>, tools: &[Tool], ended: bool, found: &mut Vec<Found>) {
        let is_whole = ended
            && match (&mut self.stage, style) {
                (Stage::Object(object), Some(style)) => object.complete(style, tools, found),
                (Stage::Parameters(reading), _) => reading.finish(found),
                (Stage::Arguments { value, .. }, _) if self.begun => match value.missing() {
                    Some(rest) => {
                        say(found, &rest);
                        true
                    }
                    None => false,
                },
                _ => false,
            };
        match (is_whole, &self.stage) {
            (true, Stage::Parameters(_)) => {}
            (true, _) => found.push(Found::Ended),
            (false, _) if self.begun => found.push(Found::Broken),
            (false, _) => return,
        }
        self.begun = false;
        self.raw.clear();
    }

    /// The next character. `tools` are the names that exist.
    pub fn push(&mut self, c: char, style: Option<&CallStyle>, tools: &[Tool], found: &mut Vec<Found>) -> Flow {
        let flow = self.step(c, style, tools, found);
        if flow == Flow::Refused {
            if std::mem::take(&mut self.begun) {
                found.push(Found::Broken);
            }
        } else if !self.begun {
            match found.last() {
                Some(Found::Ended) => self.raw.clear(),
                _ => self.raw.push(c),
            }
        }
        flow
    }

    fn step(&mut self, c: char, style: Option<&CallStyle>, tools: &[Tool], found: &mut Vec<Found>) -> Flow {
        match &mut self.stage {
            Stage::Opening(read) if read.is_empty() && is_space(c) => Flow::Stay,
            Stage::Opening(read) => {
                let Some(style) = style else { return Flow::Refused };
                read.push(c);
                // A marker may come twice.
                if *read == style.open {
                    return self.go(Stage::Opening(String::new()));
                }
                let name = style.parameters.as_ref().map_or("", |markers| markers.name.open.trim());
                if *read == name {
                    return self.go(Stage::Parameters(Box::new(Reading::new())));
                }
                if style.open.starts_with(read.as_str()) || name.starts_with(read.as_str()) {
                    return Flow::Stay;
                }
                // What is no marker begins a call, or is none.
                let text = std::mem::take(read);
                let mut chars = text.chars();
                let mut flow = chars.next().map_or(Flow::Refused, |first| self.open(first, style, tools, found));
                for c in chars {
                    if flow == Flow::Stay {
                        flow = self.step(c, Some(style), tools, found);
                    }
                }
                flow
            }
            Stage::Item | Stage::Next if is_space(c) => Flow::Stay,
            Stage::Item if c == '{' => self.go(Stage::Object(Box::default())),
            Stage::Item => Flow::Refused,
            Stage::Next => match c {
                ',' => self.go(Stage::Item),
                ']' => self.close(),
                _ => Flow::Refused,
            },
            Stage::Object(object) => {
                let Some(style) = style else { return Flow::Refused };
                let step = object.push(c, style, tools, found);
                if object.begun && !self.begun {
                    self.begun = true;
                    self.raw.clear();
                }
                match step {
                    Step::More => Flow::Stay,
                    Step::Last => {
                        found.push(Found::Ended);
                        self.begun = false;
                        if self.in_list { self.go(Stage::Next) } else { self.close() }
                    }
                    // A bracket is missing before what closes the call.
                    Step::After | Step::Wrong if style.close.starts_with(c) && object.complete(style, tools, found) => {
                        found.push(Found::Ended);
                        self.begun = false;
                        self.raw.clear();
                        self.stage = Stage::Closing(String::new());
                        self.step(c, Some(style), tools, found)
                    }
                    Step::After | Step::Wrong => Flow::Refused,
                }
            }
            Stage::Parameters(reading) => {
                let Some((style, markers)) = style.and_then(|style| Some((style, style.parameters.as_ref()?))) else {
                    return Flow::Refused;
                };
                let before = found.len();
                let flow = reading.push(c, markers, style.close.trim(), tools, found);
                if found.iter().skip(before).any(|found| matches!(found, Found::Began { .. })) {
                    self.begun = true;
                    self.raw.clear();
                }
                if flow != Flow::Over {
                    return flow;
                }
                self.begun = false;
                // Without a marker of its own, what closed the call closes all.
                if markers.end.trim().is_empty() || reading.closed_all(style.close.trim()) {
                    Flow::Over
                } else {
                    self.close()
                }
            }
            Stage::Name(text) => {
                let Some(style) = style else { return Flow::Refused };
                // Some models leave out what separates the name from the arguments.
                if c == '{' && text.chars().all(is_of_name) {
                    let (id, name) = (None, std::mem::take(text));
                    self.stage = Stage::Arguments { id, name, value: Value::new() };
                    return self.step(c, Some(style), tools, found);
                }
                text.push(c);
                if let Some(head) = text.strip_suffix(style.separator.as_str()) {
                    let parts =
                        (!style.id_separator.is_empty()).then(|| head.split_once(&style.id_separator)).flatten();
                    let (name, id) = parts.map_or((head, None), |(name, id)| (name, Some(id.to_owned())));
                    let name = name.to_owned();
                    return self.go(Stage::Arguments { id, name, value: Value::new() });
                }
                if begins_name(text, style) { Flow::Stay } else { Flow::Refused }
            }
            Stage::Arguments { .. } if !self.begun && is_space(c) => Flow::Stay,
            Stage::Arguments { id, name, value } => {
                if !self.begun {
                    if c != '{' {
                        return Flow::Refused;
                    }
                    found.push(Found::Began { id: id.take(), name: std::mem::take(name) });
                    self.begun = true;
                    self.raw.clear();
                }
                let escaped = value.escaped(c);
                match value.push(c) {
                    Step::After | Step::Wrong => {
                        let closes = style.is_some_and(|style| style.close.starts_with(c));
                        let Some(rest) = value.missing().filter(|_| closes) else { return Flow::Refused };
                        say(found, &rest);
                        found.push(Found::Ended);
                        self.begun = false;
                        self.stage = Stage::Closing(String::new());
                        self.step(c, style, tools, found)
                    }
                    step => {
                        argument(found, c, escaped);
                        if step == Step::More {
                            return Flow::Stay;
                        }
                        found.push(Found::Ended);
                        self.begun = false;
                        self.close()
                    }
                }
            }
            Stage::Closing(read) => {
                if read.is_empty() && is_space(c) {
                    return Flow::Stay;
                }
                read.push(c);
                if self.closes.contains(read) {
                    return Flow::Over;
                }
                // Several calls may stand in one pair of markers.
                let again = style.filter(|style| !style.close.is_empty());
                let has_objects = again.is_some_and(|style| style.forms.contains(&Form::Object));
                match read.as_str() {
                    "{" if has_objects => return self.go(Stage::Object(Box::default())),
                    "," if has_objects => return self.go(Stage::Closing(String::new())),
                    _ => {}
                }
                let name = again.and_then(|style| style.parameters.as_ref());
                let name = name.map_or("", |markers| markers.name.open.trim());
                if *read == name {
                    return self.go(Stage::Parameters(Box::new(Reading::new())));
                }
                let closes = self.closes.iter().map(String::as_str);
                if closes.chain([name]).any(|marker| marker.starts_with(read.as_str())) {
                    Flow::Stay
                } else {
                    Flow::Refused
                }
            }
        }
    }

    /// The first character of a call.
    fn open(&mut self, c: char, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> Flow {
        let may_be = |form: Form| style.forms.contains(&form);
        match c {
            '{' if may_be(Form::Object) => self.go(Stage::Object(Box::default())),
            '[' if may_be(Form::List) => {
                self.in_list = true;
                self.go(Stage::Item)
            }
            _ if style.parameters.as_ref().is_some_and(|markers| markers.name.open.is_empty()) => {
                self.stage = Stage::Parameters(Box::new(Reading::new()));
                self.step(c, Some(style), tools, found)
            }
            _ if may_be(Form::Named) && is_of_name(c) => self.go(Stage::Name(c.into())),
            _ => Flow::Refused,
        }
    }

    fn go(&mut self, stage: Stage) -> Flow {
        self.stage = stage;
        Flow::Stay
    }

    fn close(&mut self) -> Flow {
        if self.closes.is_empty() { Flow::Over } else { self.go(Stage::Closing(String::new())) }
    }
}

/// Whether tools may have this character in their names.
pub(super) fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Whether the text is the beginning of a name, perhaps an id, and the separator.
fn begins_name(text: &str, style: &CallStyle) -> bool {
    let rest = text.trim_start_matches(is_of_name);
    let begins = |rest: &str, separator: &str| !separator.is_empty() && separator.starts_with(rest);
    let after_id = rest.strip_prefix(style.id_separator.as_str()).filter(|_| !style.id_separator.is_empty());
    text.len() <= 2 * LONGEST_NAME
        && (begins(rest, &style.separator)
            || begins(rest, &style.id_separator)
            || after_id.is_some_and(|id| begins(id.trim_start_matches(is_of_name), &style.separator)))
}

/// Adds to the arguments.
pub(super) fn say(found: &mut Vec<Found>, more: &str) {
    match found.last_mut() {
        _ if more.is_empty() => {}
        Some(Found::Arguments(text)) => text.push_str(more),
        _ => found.push(Found::Arguments(more.into())),
    }
}

fn argument(found: &mut Vec<Found>, c: char, escaped: Option<&str>) {
    say(found, escaped.unwrap_or(c.encode_utf8(&mut [0; 4])));
}

/// A JSON object with a name and arguments.
#[derive(Clone, Debug, Default)]
struct Object {
    place: Place,
    /// The key or value at hand.
    text: String,
    role: Role,
    seen: Vec<Role>,
    name: Option<String>,
    id: Option<String>,
    /// The arguments as long as the call is not reported.
    arguments: Option<String>,
    begun: bool,
}

#[derive(Clone, Debug, Default)]
enum Place {
    /// Before a key; before the first one the object may also end.
    #[default]
    FirstKey,
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
    #[default]
    Other,
}

impl Object {
    /// The next character after the opening brace.
    fn push(&mut self, c: char, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> Step {
        match &mut self.place {
            Place::FirstKey | Place::Key | Place::Colon | Place::Before | Place::Next if is_space(c) => Step::More,
            Place::FirstKey | Place::Key if c == '"' => {
                self.text = c.into();
                let mut value = Value::new();
                value.push(c);
                self.go(Place::InKey(value))
            }
            Place::InKey(value) => {
                push_escaped(&mut self.text, value, c);
                match value.push(c) {
                    Step::Last => {
                        let Ok(key) = serde_json::from_str::<String>(&self.text) else { return Step::Wrong };
                        if !self.take_key(&key, style) {
                            return Step::Wrong;
                        }
                        self.go(Place::Colon)
                    }
                    step => step,
                }
            }
            Place::Colon if c == ':' => self.go(Place::Before),
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
    fn take_key(&mut self, key: &str, style: &CallStyle) -> bool {
        let is = |keys: &[String]| keys.iter().any(|k| k == key);
        self.role = match () {
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
        let escaped = value.escaped(c);
        let step = value.push(c);
        if matches!(step, Step::More | Step::Last) {
            match escaped {
                _ if streams => argument(found, c, escaped),
                Some(escaped) => self.text.push_str(escaped),
                None => self.text.push(c),
            }
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
            Role::Other => true,
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
            !name.is_empty()
                && name.len() <= LONGEST_NAME
                && (!style.ambiguous || tools.iter().any(|tool| tool.name == *name))
        })
    }

    fn begin(&mut self, found: &mut Vec<Found>) {
        let name = self.name.clone().unwrap_or_default();
        found.push(Found::Began { id: self.id.take(), name });
        self.begun = true;
    }

    /// Adds the brackets that are missing, if nothing else is. Whether that is a call.
    fn complete(&mut self, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> bool {
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
            Place::Next if self.begun || self.arguments.is_some() => {}
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

fn push_escaped(text: &mut String, value: &Value, c: char) {
    match value.escaped(c) {
        Some(escaped) => text.push_str(escaped),
        None => text.push(c),
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
