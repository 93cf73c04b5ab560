//! Calls with a marker around each argument's name and value, instead of JSON.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Between;
use super::call::{Flow, Found, LONGEST_NAME, Tool, is_of_name, say};
use super::json::is_space;
use super::schema::Kinds;

/// The markers of such a call. White space at their ends is written, but not required when a call is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Markers {
    /// Around the tool's name.
    pub name: Between,
    /// Around an argument's name.
    pub key: Between,
    /// Around an argument's value.
    pub value: Between,
    /// What opens a value that is JSON, where that is not what opens a text.
    pub json: Option<String>,
    /// After the last argument.
    #[serde(default)]
    pub end: String,
}

impl Markers {
    /// What is inconsistent in them.
    pub fn fault(&self) -> Option<String> {
        let needed = [&self.key.open, &self.key.close, &self.value.close];
        let missing = needed.into_iter().any(|marker| marker.trim().is_empty());
        missing.then(|| "call.parameters need key.open, key.close and value.close".into())
    }

    /// All markers.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let Self { name, key, value, json, end } = self;
        [&name.open, &name.close, &key.open, &key.close, &value.open, &value.close, end].into_iter().chain(json)
    }

    /// What comes before the arguments.
    pub fn begin(&self, name: &str) -> String {
        format!("{}{name}{}", self.name.open, self.name.close)
    }

    /// What comes before an argument's value.
    pub fn before(&self, key: &str, is_text: bool) -> String {
        let open = self.json.as_ref().filter(|_| !is_text).unwrap_or(&self.value.open);
        format!("{}{key}{}{open}", self.key.open, self.key.close)
    }

    /// Arguments as a model writes them.
    pub fn write(&self, arguments: &Map<String, Value>) -> String {
        let one = |(key, value): (&String, &Value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{}{text}{}", self.before(key, value.is_string()), self.value.close)
        };
        arguments.iter().map(one).collect()
    }
}

/// One call, character by character, from its name on.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    place: Place,
    name: String,
    /// What has been read of a marker or a name.
    read: String,
    schema: Arc<Value>,
    /// What the current value may be.
    kinds: Kinds,
    /// The current value, if it is not a text.
    value: String,
    /// No character of the value has come.
    fresh: bool,
    /// What looks like the end of the value.
    closed: String,
    /// The names of the arguments that have come.
    given: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Name,
    /// Before an argument, or the end.
    Between,
    Key,
    /// Between an argument's name and its value.
    Gap,
    Value,
    /// After what looks like the end of a value, if an argument or the end of the call follows.
    After,
}

/// What the text that was read means inside a value.
enum Ending {
    /// The value goes on.
    None,
    /// More has to come.
    Maybe,
    /// The marker that ends a value.
    Value,
    /// Another argument begins, and the marker is missing.
    Argument(String),
    /// The call ends, and the marker is missing.
    Call,
}

/// The most space within what may be the end of a call.
const MOST_SPACE: usize = 64;

impl Reading {
    /// After what comes before the name.
    pub fn new() -> Self {
        Self {
            place: Place::Name,
            name: String::new(),
            read: String::new(),
            schema: Arc::default(),
            kinds: Kinds::ANY,
            value: String::new(),
            fresh: true,
            closed: String::new(),
            given: Vec::new(),
        }
    }

    /// The next character; `close` ends the call too. [`Flow::Over`] is after its last marker.
    pub fn push(&mut self, c: char, markers: &Markers, close: &str, tools: &[Tool], found: &mut Vec<Found>) -> Flow {
        match self.place {
            Place::Name => self.name(c, markers, close, tools),
            Place::Between if self.read.is_empty() && is_space(c) => Flow::Stay,
            Place::Between => {
                self.read.push(c);
                self.between(markers, close, found)
            }
            Place::Key => {
                self.read.push(c);
                if let Some(key) = self.read.strip_suffix(markers.key.close.trim()) {
                    let key = key.trim().to_owned();
                    self.begin_value(&key, found);
                    return self.gap(markers, found);
                }
                if self.read.len() > 2 * LONGEST_NAME { Flow::Refused } else { Flow::Stay }
            }
            Place::Gap => {
                self.read.push(c);
                if self.read.len() > LONGEST_NAME { Flow::Refused } else { self.gap(markers, found) }
            }
            Place::Value => self.value(c, markers, close, found),
            Place::After => {
                self.read.push(c);
                let rest = self.read.trim_start_matches(is_space).to_owned();
                let next = [markers.key.open.trim(), markers.end.trim(), close];
                let mut next = next.into_iter().filter(|marker| !marker.is_empty());
                if next.clone().any(|marker| marker == rest) {
                    self.end_value(found);
                    self.read = rest;
                    return self.between(markers, close, found);
                }
                if next.any(|marker| marker.starts_with(&rest)) {
                    return Flow::Stay;
                }
                // The value goes on, and its end may begin inside the text that looked like it.
                self.place = Place::Value;
                let text = std::mem::take(&mut self.closed) + &std::mem::take(&mut self.read);
                let mut chars = text.chars();
                chars.next().into_iter().for_each(|first| self.grow(first, found));
                let mut flows = chars.map(|c| self.push(c, markers, close, tools, found));
                flows.find(|flow| *flow != Flow::Stay).unwrap_or(Flow::Stay)
            }
        }
    }

    /// Whether the call is whole if nothing more comes.
    pub fn finish(&mut self, markers: &Markers, close: &str, found: &mut Vec<Found>) -> bool {
        match self.place {
            Place::Value if self.is_end_of_call(markers, close) => self.end_value(found),
            Place::Between if self.read.is_empty() => {}
            Place::After if self.read.trim_start_matches(is_space).is_empty() => self.end_value(found),
            _ => return false,
        }
        self.end_call(found);
        true
    }

    /// Whether `close` ended the call, and not a marker of its own.
    pub fn closed_all(&self, close: &str) -> bool {
        self.read == close
    }

    /// The marker that ends the call.
    fn end<'a>(&self, markers: &'a Markers, close: &'a str) -> &'a str {
        if markers.end.trim().is_empty() { close } else { markers.end.trim() }
    }

    fn name(&mut self, c: char, markers: &Markers, close: &str, tools: &[Tool]) -> Flow {
        let after = markers.name.close.trim();
        if self.read.is_empty() && self.name.is_empty() && is_space(c) {
            return Flow::Stay;
        }
        let named = if after.is_empty() {
            if is_of_name(c) {
                self.name.push(c);
                return if self.name.len() > LONGEST_NAME { Flow::Refused } else { Flow::Stay };
            }
            true
        } else if self.read.is_empty() && is_of_name(c) {
            self.name.push(c);
            return if self.name.len() > LONGEST_NAME { Flow::Refused } else { Flow::Stay };
        } else {
            self.read.push(c);
            if !after.starts_with(self.read.as_str()) {
                return Flow::Refused;
            }
            self.read == after
        };
        if self.name.is_empty() {
            return Flow::Refused;
        }
        if !named {
            return Flow::Stay;
        }
        self.schema =
            tools.iter().find(|tool| tool.name == self.name).map(|tool| tool.parameters.clone()).unwrap_or_default();
        self.read.clear();
        self.place = Place::Between;
        if after.is_empty() && !is_space(c) {
            // The character that ended the name belongs to what follows; unless that is a marker, this is not a call.
            self.read.push(c);
            let next = [markers.key.open.trim(), self.end(markers, close)];
            if !next.iter().any(|marker| marker.starts_with(c)) {
                return Flow::Refused;
            }
        }
        Flow::Stay
    }

    /// Checks what follows the name or an argument.
    fn between(&mut self, markers: &Markers, close: &str, found: &mut Vec<Found>) -> Flow {
        let (key, end) = (markers.key.open.trim(), self.end(markers, close));
        if self.read == key {
            self.read.clear();
            self.place = Place::Key;
            return Flow::Stay;
        }
        if self.read == end || self.read == close {
            self.end_call(found);
            return Flow::Over;
        }
        let may_be = [key, end, close].iter().any(|marker| marker.starts_with(self.read.as_str()));
        if may_be { Flow::Stay } else { Flow::Refused }
    }

    /// Looks whether what comes before the value is whole.
    fn gap(&mut self, markers: &Markers, found: &mut Vec<Found>) -> Flow {
        let ends_with = |marker: &str| self.read.ends_with(marker.trim());
        match &markers.json {
            Some(json) if ends_with(json) => self.kinds = Kinds::ANY,
            _ if !ends_with(&markers.value.open) => return Flow::Stay,
            Some(_) => self.kinds = Kinds::TEXT,
            None => {}
        }
        say(found, if self.kinds.is_text() { "\"" } else { "" });
        self.read.clear();
        self.place = Place::Value;
        Flow::Stay
    }

    /// The call is one by now.
    fn begin_call(&mut self, found: &mut Vec<Found>) {
        if self.given.is_empty() {
            found.push(Found::Began { id: None, name: self.name.clone() });
        }
    }

    fn end_call(&mut self, found: &mut Vec<Found>) {
        self.begin_call(found);
        say(found, if self.given.is_empty() { "{}" } else { "}" });
        found.push(Found::Ended);
    }

    fn begin_value(&mut self, key: &str, found: &mut Vec<Found>) {
        self.begin_call(found);
        self.kinds = Kinds::of(&self.schema, key);
        let before = if self.given.is_empty() { "{" } else { ", " };
        say(found, &format!("{before}{}: ", Value::from(key)));
        self.given.push(key.into());
        self.value.clear();
        self.read.clear();
        self.fresh = true;
        self.place = Place::Gap;
    }

    /// A character of a value, or of what ends it.
    fn value(&mut self, c: char, markers: &Markers, close: &str, found: &mut Vec<Found>) -> Flow {
        let before = if markers.value.open.is_empty() { &markers.key.close } else { &markers.value.open };
        let is_padded = before.ends_with('\n');
        if std::mem::take(&mut self.fresh) && is_padded && c == '\n' {
            return Flow::Stay;
        }
        self.read.push(c);
        while !self.read.is_empty() {
            match self.ending(markers, close) {
                Ending::None => {
                    let first = self.read.remove(0);
                    self.grow(first, found);
                }
                Ending::Maybe => break,
                Ending::Value => {
                    self.closed = std::mem::take(&mut self.read);
                    self.place = Place::After;
                }
                Ending::Argument(key) => {
                    self.end_value(found);
                    self.begin_value(&key, found);
                    return self.gap(markers, found);
                }
                Ending::Call => {
                    self.end_value(found);
                    self.end_call(found);
                    self.read = close.into();
                    return Flow::Over;
                }
            }
        }
        Flow::Stay
    }

    /// What the text that was read is, or may become. Some models leave out the marker that ends a value: then another
    /// argument of this tool follows, or the markers that end the call.
    fn ending(&self, markers: &Markers, close: &str) -> Ending {
        let is_padded = markers.value.close.starts_with('\n');
        let text: &str = if is_padded { self.read.strip_prefix('\n').unwrap_or(&self.read) } else { &self.read };
        let value_close = markers.value.close.trim();
        if text == value_close {
            return Ending::Value;
        }
        let (key_open, key_close) = (markers.key.open.trim(), markers.key.close.trim());
        let mut may_be = value_close.starts_with(text) || key_open.starts_with(text);
        if let Some(rest) = text.strip_prefix(key_open) {
            let properties = self.schema["properties"].as_object().into_iter().flat_map(|all| all.keys());
            for name in properties.filter(|name| !self.given.contains(*name)) {
                match rest.strip_prefix(name.as_str()) {
                    Some(after) if after == key_close => return Ending::Argument(name.clone()),
                    Some(after) => may_be |= key_close.starts_with(after),
                    None => may_be |= name.starts_with(rest),
                }
            }
        }
        let (end, is_last) = match markers.end.trim() {
            "" => (close, true),
            end => (end, close.is_empty()),
        };
        if let Some(rest) = text.strip_prefix(end).filter(|_| !end.is_empty()) {
            let after = rest.trim_start_matches(is_space);
            if !is_last && after == close {
                return Ending::Call;
            }
            may_be |=
                rest.len() <= MOST_SPACE + after.len() && (after.is_empty() || (!is_last && close.starts_with(after)));
        }
        if may_be || end.starts_with(text) { Ending::Maybe } else { Ending::None }
    }

    /// Whether the text that was read is the end of the call.
    fn is_end_of_call(&self, markers: &Markers, close: &str) -> bool {
        let text = self.read.trim_matches(is_space);
        let own = markers.end.trim();
        let text = text.strip_suffix(close).unwrap_or(text).trim_end_matches(is_space);
        // Without an end of its own, a call ends at the closing tag.
        let closed = !own.is_empty() || self.read.contains(close);
        !self.read.is_empty() && text == own && closed
    }

    /// Adds to the value.
    fn grow(&mut self, c: char, found: &mut Vec<Found>) {
        if !self.kinds.is_text() {
            self.value.push(c);
            return;
        }
        let quoted = Value::from(c.to_string()).to_string();
        say(found, &quoted[1..quoted.len() - 1]);
    }

    fn end_value(&mut self, found: &mut Vec<Found>) {
        let rest = if self.kinds.is_text() { "\"".into() } else { self.kinds.json(&self.value) };
        say(found, &rest);
        self.read.clear();
        self.place = Place::Between;
    }
}
