//! One marker's calls, character by character.

use serde_json::Value as Json;

use super::json::{Step, Value, is_space};
use super::{CallStyle, Form};

/// The longest name of a tool, in bytes.
const LONGEST_NAME: usize = 256;

/// What a character brought about.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// A call's name is known, and that arguments are there.
    Began { id: Option<String>, name: String },
    /// More of the arguments.
    Arguments(String),
    /// All of it is there.
    Ended,
    /// It will never be whole.
    Broken,
}

/// How the calls go on after a character.
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
    /// Before the first character that is not space.
    Opening,
    /// In a list, before an object.
    Item,
    Object(Box<Object>),
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
        Self { stage: Stage::Opening, raw: open.into(), begun: false, closes, in_list: false }
    }

    /// After a header that names the tool.
    pub fn named(name: &str, header: &str, closes: Vec<String>) -> Self {
        let stage = Stage::Arguments { id: None, name: name.into(), value: Value::new() };
        Self { stage, raw: header.into(), begun: false, closes, in_list: false }
    }

    /// Nothing more comes.
    pub fn finish(&mut self, found: &mut Vec<Found>) {
        if std::mem::take(&mut self.begun) {
            found.push(Found::Broken);
        }
    }

    /// The next character. `tools` are the names that exist.
    pub fn push(&mut self, c: char, style: Option<&CallStyle>, tools: &[String], found: &mut Vec<Found>) -> Flow {
        let flow = self.step(c, style, tools, found);
        if flow == Flow::Refused {
            self.finish(found);
        } else if !self.begun {
            match found.last() {
                Some(Found::Ended) => self.raw.clear(),
                _ => self.raw.push(c),
            }
        }
        flow
    }

    fn step(&mut self, c: char, style: Option<&CallStyle>, tools: &[String], found: &mut Vec<Found>) -> Flow {
        match &mut self.stage {
            Stage::Opening if is_space(c) => Flow::Stay,
            Stage::Opening => {
                let Some(style) = style else { return Flow::Refused };
                let may_be = |form: Form| style.forms.contains(&form);
                match c {
                    '{' if may_be(Form::Object) => self.go(Stage::Object(Box::default())),
                    '[' if may_be(Form::List) => {
                        self.in_list = true;
                        self.go(Stage::Item)
                    }
                    _ if may_be(Form::Named) && is_of_name(c) => self.go(Stage::Name(c.into())),
                    _ => Flow::Refused,
                }
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
                    Step::After | Step::Wrong => Flow::Refused,
                }
            }
            Stage::Name(text) => {
                let Some(style) = style else { return Flow::Refused };
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
                    Step::After | Step::Wrong => Flow::Refused,
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
                if self.closes.iter().any(|close| close.starts_with(read.as_str())) {
                    Flow::Stay
                } else {
                    Flow::Refused
                }
            }
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
fn is_of_name(c: char) -> bool {
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
fn argument(found: &mut Vec<Found>, c: char, escaped: Option<&str>) {
    if !matches!(found.last(), Some(Found::Arguments(_))) {
        found.push(Found::Arguments(String::new()));
    }
    let Some(Found::Arguments(text)) = found.last_mut() else { return };
    match escaped {
        Some(escaped) => text.push_str(escaped),
        None => text.push(c),
    }
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
    #[default]
    Other,
}

impl Object {
    /// The next character after the opening brace.
    fn push(&mut self, c: char, style: &CallStyle, tools: &[String], found: &mut Vec<Found>) -> Step {
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
            () => Role::Other,
        };
        let is_new = self.role == Role::Other || !self.seen.contains(&self.role);
        self.seen.push(self.role);
        // `"type": "function"` and an id are written by models that have seen how APIs write calls.
        is_new && (self.role != Role::Other || !style.ambiguous || matches!(key, "type" | "id"))
    }

    fn value(&mut self, c: char, style: &CallStyle, tools: &[String], found: &mut Vec<Found>) -> Step {
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
    fn take_value(&mut self, style: &CallStyle, tools: &[String]) -> bool {
        match self.role {
            Role::Other => true,
            Role::Id => {
                self.id = serde_json::from_str(&self.text).ok().filter(|id: &String| !id.is_empty());
                true
            }
            Role::Name => {
                self.name = serde_json::from_str(&self.text).ok();
                let is_good = |name: &String| {
                    !name.is_empty() && name.len() <= LONGEST_NAME && (!style.ambiguous || tools.contains(name))
                };
                self.name.as_ref().is_some_and(is_good)
            }
            Role::Arguments => {
                self.arguments = arguments(&self.text);
                self.arguments.is_some()
            }
        }
    }

    fn begin(&mut self, found: &mut Vec<Found>) {
        let name = self.name.clone().unwrap_or_default();
        found.push(Found::Began { id: self.id.take(), name });
        self.begun = true;
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
