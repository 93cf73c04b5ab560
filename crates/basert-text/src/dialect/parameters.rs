//! Calls whose arguments are not JSON: a marker around each one's name and value.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Between;
use super::call::{Flow, Found, LONGEST_NAME, Tool, is_of_name, say};
use super::json::is_space;
use super::schema::Kinds;

/// What such a call is written with. Space at the ends of markers is written, and need not be there when a call is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Markers {
    /// Around the tool's name.
    pub name: Between,
    /// Around an argument's name.
    pub key: Between,
    /// Around an argument's value.
    pub value: Between,
    /// After the last argument.
    #[serde(default)]
    pub end: String,
}

impl Markers {
    /// What makes no sense in them.
    pub fn fault(&self) -> Option<String> {
        let needed = [&self.key.open, &self.key.close, &self.value.close];
        let missing = needed.into_iter().any(|marker| marker.trim().is_empty());
        missing.then(|| "call.parameters need key.open, key.close and value.close".into())
    }

    /// The texts to look for.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let Self { name, key, value, end } = self;
        [&name.open, &name.close, &key.open, &key.close, &value.open, &value.close, end].into_iter()
    }

    /// What comes before the arguments.
    pub fn begin(&self, name: &str) -> String {
        format!("{}{name}{}", self.name.open, self.name.close)
    }

    /// What comes before an argument's value.
    pub fn before(&self, key: &str) -> String {
        format!("{}{key}{}{}", self.key.open, self.key.close, self.value.open)
    }

    /// Arguments as a model writes them.
    pub fn write(&self, arguments: &Map<String, Value>) -> String {
        let one = |(key, value): (&String, &Value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{}{text}{}", self.before(key), self.value.close)
        };
        arguments.iter().map(one).collect()
    }
}

/// One call, character by character, from its name on.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    place: Place,
    name: String,
    /// The marker or name at hand.
    read: String,
    schema: Arc<Value>,
    /// What the value at hand may be.
    kinds: Kinds,
    /// The value at hand, or of a text what is not handed on yet.
    value: String,
    /// No character of the value has come.
    fresh: bool,
    /// What looks like the end of the value.
    closed: String,
    arguments: usize,
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
            arguments: 0,
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
                    self.place = Place::Gap;
                    self.read.clear();
                    return self.gap(markers);
                }
                if self.read.len() > 2 * LONGEST_NAME { Flow::Refused } else { Flow::Stay }
            }
            Place::Gap => {
                self.read.push(c);
                if self.read.len() > LONGEST_NAME { Flow::Refused } else { self.gap(markers) }
            }
            Place::Value => {
                self.value(c, markers, found);
                Flow::Stay
            }
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
                // The value goes on, and what ends it may begin within what looked like that.
                self.place = Place::Value;
                let text = std::mem::take(&mut self.closed) + &std::mem::take(&mut self.read);
                let mut chars = text.chars();
                chars.next().into_iter().for_each(|first| self.grow(first, found));
                let mut flows = chars.map(|c| self.push(c, markers, close, tools, found));
                flows.find(|flow| *flow != Flow::Stay).unwrap_or(Flow::Stay)
            }
        }
    }

    /// Nothing more comes, and the model means it: whether the call is whole by now.
    pub fn finish(&mut self, found: &mut Vec<Found>) -> bool {
        match self.place {
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
            // What ended the name belongs to what follows; only where that is a marker is this a call.
            self.read.push(c);
            let next = [markers.key.open.trim(), self.end(markers, close)];
            if !next.iter().any(|marker| marker.starts_with(c)) {
                return Flow::Refused;
            }
        }
        Flow::Stay
    }

    /// Looks what follows the name or an argument.
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

    fn gap(&mut self, markers: &Markers) -> Flow {
        if self.read.ends_with(markers.value.open.trim()) {
            self.read.clear();
            self.place = Place::Value;
        }
        Flow::Stay
    }

    /// The call is one by now.
    fn begin_call(&mut self, found: &mut Vec<Found>) {
        if self.arguments == 0 {
            found.push(Found::Began { id: None, name: self.name.clone() });
        }
    }

    fn end_call(&mut self, found: &mut Vec<Found>) {
        self.begin_call(found);
        say(found, if self.arguments == 0 { "{}" } else { "}" });
        found.push(Found::Ended);
    }

    fn begin_value(&mut self, key: &str, found: &mut Vec<Found>) {
        self.begin_call(found);
        self.kinds = Kinds::of(&self.schema, key);
        let before = if self.arguments == 0 { '{' } else { ',' };
        let space = if self.arguments == 0 { "" } else { " " };
        let quote = if self.kinds.is_text() { "\"" } else { "" };
        say(found, &format!("{before}{space}{}: {quote}", Value::from(key)));
        self.arguments += 1;
        self.value.clear();
        self.fresh = true;
    }

    /// A character of a value, or of what ends it.
    fn value(&mut self, c: char, markers: &Markers, found: &mut Vec<Found>) {
        let before = if markers.value.open.is_empty() { &markers.key.close } else { &markers.value.open };
        let is_padded = before.ends_with('\n');
        if std::mem::take(&mut self.fresh) && is_padded && c == '\n' {
            return;
        }
        self.read.push(c);
        let close = markers.value.close.trim();
        let padded = if markers.value.close.starts_with('\n') { format!("\n{close}") } else { close.to_owned() };
        while !self.read.is_empty() {
            if self.read == padded || self.read == close {
                self.closed = std::mem::take(&mut self.read);
                self.place = Place::After;
                return;
            }
            if padded.starts_with(&self.read) || close.starts_with(&self.read) {
                return;
            }
            let first = self.read.remove(0);
            self.grow(first, found);
        }
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
