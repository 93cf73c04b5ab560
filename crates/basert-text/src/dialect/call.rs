//! Parsing of the calls after a marker, character by character.

use std::sync::Arc;

use serde_json::Value as Json;

use super::json::{Step, Value, is_space};
use super::object::Object;
use super::parameters::Reading;
use super::{CallStyle, Form, IdForm};

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
    /// It does not belong to them, and neither does [`Calls::raw`].
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
    /// The list is in an object, as APIs write it.
    is_wrapped: bool,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Before a call, with what there is of a marker.
    Opening(String),
    /// In a list, before a call, or the end of the list where a comma may stand before it.
    Item {
        or_end: bool,
    },
    Object(Box<Object>),
    /// A call whose arguments are no JSON.
    Parameters(Box<Reading>),
    /// After an object of a list.
    Next,
    /// After a list in an object.
    Unwrap,
    /// In a name that is plain text.
    Name(String),
    /// In arguments that stand by themselves.
    Arguments {
        id: Option<String>,
        name: String,
        value: Value,
    },
    /// In the name of a function.
    FunctionName(String),
    /// In the arguments of a function, with those that are not reported yet.
    Function {
        name: String,
        value: Value,
        arguments: String,
    },
    /// After a function.
    NextFunction,
    /// After the last call, with what there is of the marker.
    Closing(String),
    /// After a broken call, up to the marker that ends it or begins the next one.
    Skipping,
}

impl Calls {
    /// After the marker `open`.
    pub fn new(style: &CallStyle, open: &str) -> Self {
        // If nothing closes a call, the gap between two calls may follow.
        let close = if style.close.is_empty() { style.gap.trim() } else { &style.close };
        let closes = [close].into_iter().chain(style.closes.iter().map(String::as_str));
        let closes = closes.filter(|close| !close.is_empty()).map(str::to_owned).collect();
        Self { stage: Self::opening(style), raw: open.into(), begun: false, closes, in_list: false, is_wrapped: false }
    }

    fn opening(style: &CallStyle) -> Stage {
        match &style.parameters {
            // The marker is that before the name.
            Some(markers) if markers.name.open.is_empty() && style.close.is_empty() => {
                Stage::Parameters(Box::new(Reading::new()))
            }
            _ => Stage::Opening(String::new()),
        }
    }

    /// After a header that names the tool, which is not text in any case.
    pub fn named(name: &str, closes: Vec<String>) -> Self {
        let stage = Stage::Arguments { id: None, name: name.into(), value: Value::new() };
        Self { stage, raw: String::new(), begun: false, closes, in_list: false, is_wrapped: false }
    }

    /// The answer has ended. If the model ended it itself, missing brackets are added.
    pub fn finish(&mut self, style: Option<&CallStyle>, tools: &[Tool], ended: bool, found: &mut Vec<Found>) {
        let is_whole = ended
            && match (&mut self.stage, style) {
                (Stage::Object(object), Some(style)) => object.complete(style, tools, found),
                (Stage::Parameters(reading), Some(style)) => match &style.parameters {
                    Some(markers) => reading.finish(markers, style.close.trim(), found),
                    None => false,
                },
                (Stage::Arguments { value, .. } | Stage::Function { value, .. }, _) if self.begun => {
                    complete(value, found)
                }
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
        let mut flow = self.step(c, style, tools, found);
        if flow == Flow::Refused && std::mem::take(&mut self.begun) {
            found.push(Found::Broken);
            // If a marker closes it, what is left of the call is not content.
            if style.is_none_or(|style| !style.close.is_empty() && !style.ambiguous) {
                self.stage = Stage::Skipping;
                flow = self.step(c, style, tools, found);
            }
        }
        if flow != Flow::Refused && !self.begun && !matches!(self.stage, Stage::Skipping) {
            // What closes a list or an object of calls is no text either.
            let is_closed = match &self.stage {
                Stage::Closing(read) => read.is_empty() && !is_space(c),
                Stage::Unwrap => c == ']',
                _ => false,
            };
            if is_closed || found.last() == Some(&Found::Ended) {
                self.raw.clear();
            } else {
                self.raw.push(c);
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
                // Otherwise it begins a call, or is not one.
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
            Stage::Item { .. } | Stage::Next | Stage::Unwrap if is_space(c) => Flow::Stay,
            Stage::Item { or_end: true } if c == ']' => self.close_list(),
            Stage::Item { .. } => match style {
                Some(style) if c == '{' && style.has_objects() => self.go(Stage::Object(Box::default())),
                Some(style) if style.has_functions() => self.function_name(c, style, tools),
                _ => Flow::Refused,
            },
            Stage::Next => match c {
                ',' => self.go(Stage::Item { or_end: true }),
                ']' => self.close_list(),
                _ => Flow::Refused,
            },
            Stage::Unwrap => match c {
                ',' => Flow::Stay,
                '}' => self.close(),
                _ => Flow::Refused,
            },
            Stage::Object(object) => {
                let Some(style) = style else { return Flow::Refused };
                let step = object.push(c, style, tools, found);
                if object.is_wrapper {
                    (self.in_list, self.is_wrapped) = (true, true);
                    return self.go(Stage::Item { or_end: false });
                }
                if object.begun && !self.begun {
                    self.begun = true;
                    self.raw.clear();
                }
                match step {
                    Step::More => Flow::Stay,
                    Step::Last => {
                        self.end(found);
                        if self.in_list { self.go(Stage::Next) } else { self.close() }
                    }
                    // A bracket is missing before what closes the call.
                    Step::After | Step::Wrong if style.close.starts_with(c) && object.complete(style, tools, found) => {
                        self.end(found);
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
                // Without an end marker of its own, the closing marker closes all calls.
                if markers.end.trim().is_empty() || reading.closed_all(style.close.trim()) {
                    Flow::Over
                } else {
                    self.close()
                }
            }
            Stage::Name(text) => {
                let Some(style) = style else { return Flow::Refused };
                if c == '{' {
                    let Some((name, id)) = style.name_in(text) else { return Flow::Refused };
                    self.stage = Stage::Arguments { id, name, value: Value::new() };
                    return self.step(c, Some(style), tools, found);
                }
                text.push(c);
                if begins_name(text, style, tools) { Flow::Stay } else { Flow::Refused }
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
                let mut more = String::new();
                let step = value.push(c, &mut more);
                self.argument(step, c, more, style, tools, found)
            }
            Stage::FunctionName(text) => {
                let Some(style) = style else { return Flow::Refused };
                let before = style.function.before.as_str();
                let name = text.strip_prefix(before).unwrap_or(text).trim_end();
                if c == style.function.open && style.is_name(name, tools) {
                    let (name, value) = (name.to_owned(), Value::arguments(&style.function));
                    return self.go(Stage::Function { name, value, arguments: "{".into() });
                }
                text.push(c);
                let name = text.strip_prefix(before).unwrap_or(text);
                let rest = name.trim_start_matches(is_of_name);
                let begins = rest.chars().all(is_space) && style.begins_name(&name[..name.len() - rest.len()], tools);
                let may_be = begins || before.starts_with(text.as_str());
                if may_be && text.len() <= 2 * LONGEST_NAME { Flow::Stay } else { Flow::Refused }
            }
            Stage::Function { name, value, arguments } => {
                let step = value.push(c, arguments);
                // Until an argument has begun, it may be text that looks like a call.
                if !self.begun && (step == Step::Last || value.has_argument()) {
                    found.push(Found::Began { id: None, name: std::mem::take(name) });
                    self.begun = true;
                    self.raw.clear();
                }
                if !self.begun {
                    return if step == Step::More { Flow::Stay } else { Flow::Refused };
                }
                let more = std::mem::take(arguments);
                self.argument(step, c, more, style, tools, found)
            }
            Stage::NextFunction if is_space(c) || matches!(c, ',' | ';') => Flow::Stay,
            Stage::NextFunction => match style {
                _ if c == ']' && self.in_list => self.close_list(),
                Some(style) if is_of_name(c) => self.function_name(c, style, tools),
                _ if self.in_list || self.closes.is_empty() => Flow::Refused,
                _ => {
                    self.stage = Stage::Closing(String::new());
                    self.step(c, style, tools, found)
                }
            },
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
            Stage::Skipping => {
                self.raw.push(c);
                let ends_with = |marker: &&str| !marker.is_empty() && self.raw.ends_with(*marker);
                if self.closes.iter().map(String::as_str).any(|close| ends_with(&close)) {
                    self.raw.clear();
                    return Flow::Over;
                }
                if let Some(style) = style.filter(|style| ends_with(&style.open.as_str())) {
                    self.raw.clone_from(&style.open);
                    self.in_list = false;
                    self.stage = Self::opening(style);
                    // The wrapper of this adds the marker's last character.
                    self.raw.pop();
                }
                Flow::Stay
            }
        }
    }

    /// The first character of a call.
    fn open(&mut self, c: char, style: &CallStyle, tools: &[Tool], found: &mut Vec<Found>) -> Flow {
        let may_be = |form: Form| style.forms.contains(&form);
        match c {
            '{' if may_be(Form::Object) => self.go(Stage::Object(Box::default())),
            '[' if may_be(Form::List) || may_be(Form::Keyed) || may_be(Form::Functions) => {
                self.in_list = true;
                self.go(Stage::Item { or_end: false })
            }
            _ if style.parameters.as_ref().is_some_and(|markers| markers.name.open.is_empty()) => {
                self.stage = Stage::Parameters(Box::new(Reading::new()));
                self.step(c, Some(style), tools, found)
            }
            _ if may_be(Form::Named) && is_of_name(c) => self.go(Stage::Name(c.into())),
            _ if style.has_functions() && !style.open.is_empty() => self.function_name(c, style, tools),
            _ => Flow::Refused,
        }
    }

    /// The first character of a function's name, or of what stands before it.
    fn function_name(&mut self, c: char, style: &CallStyle, tools: &[Tool]) -> Flow {
        let before = style.function.before.starts_with(c);
        let is_name = is_of_name(c) && style.begins_name(c.encode_utf8(&mut [0; 4]), tools);
        if before || is_name { self.go(Stage::FunctionName(c.into())) } else { Flow::Refused }
    }

    /// More of the arguments that stand by themselves.
    fn argument(
        &mut self,
        step: Step,
        c: char,
        more: String,
        style: Option<&CallStyle>,
        tools: &[Tool],
        found: &mut Vec<Found>,
    ) -> Flow {
        match (step, &mut self.stage) {
            (Step::After | Step::Wrong, Stage::Arguments { value, .. } | Stage::Function { value, .. }) => {
                // A bracket is missing before what closes the call.
                if !style.is_some_and(|style| style.close.starts_with(c)) || !complete(value, found) {
                    return Flow::Refused;
                }
                self.end(found);
                self.stage = Stage::Closing(String::new());
                self.step(c, style, tools, found)
            }
            (step, stage) => {
                let is_function = matches!(stage, Stage::Function { .. });
                say(found, &more);
                if step != Step::Last {
                    return Flow::Stay;
                }
                self.end(found);
                if is_function { self.go(Stage::NextFunction) } else { self.close() }
            }
        }
    }

    /// The call at hand is complete.
    fn end(&mut self, found: &mut Vec<Found>) {
        found.push(Found::Ended);
        self.begun = false;
        self.raw.clear();
    }

    fn go(&mut self, stage: Stage) -> Flow {
        self.stage = stage;
        Flow::Stay
    }

    fn close_list(&mut self) -> Flow {
        self.in_list = false;
        if std::mem::take(&mut self.is_wrapped) { self.go(Stage::Unwrap) } else { self.close() }
    }

    fn close(&mut self) -> Flow {
        if self.closes.is_empty() { Flow::Over } else { self.go(Stage::Closing(String::new())) }
    }
}

impl CallStyle {
    /// Whether calls may be objects.
    fn has_objects(&self) -> bool {
        [Form::Object, Form::List, Form::Keyed].iter().any(|form| self.forms.contains(form))
    }

    /// Whether calls may be functions.
    pub(super) fn has_functions(&self) -> bool {
        self.forms.contains(&Form::Function) || self.forms.contains(&Form::Functions)
    }

    /// Whether a tool may have this name.
    pub(super) fn is_name(&self, name: &str, tools: &[Tool]) -> bool {
        let is_one = !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(is_of_name);
        is_one && (!self.ambiguous || tools.iter().any(|tool| tool.name == name))
    }

    /// Whether a tool may have a name that begins so.
    fn begins_name(&self, begin: &str, tools: &[Tool]) -> bool {
        !self.ambiguous || tools.iter().any(|tool| tool.name.starts_with(begin))
    }

    /// The name and the id in what stands before arguments. Some models leave out what separates them.
    fn name_in(&self, text: &str) -> Option<(String, Option<String>)> {
        let trimmed = text.trim_end();
        let before = |separator: &String| {
            let head = trimmed.strip_suffix(separator.trim_end())?.trim_end();
            text[head.len()..].starts_with(separator.as_str()).then_some(head)
        };
        let heads = self.separator.iter().filter_map(before);
        let head = heads.min_by_key(|head| head.len()).or((!self.ambiguous).then_some(trimmed))?;
        let (head, id) = match head.split_once(&self.id_separator).filter(|_| !self.id_separator.is_empty()) {
            Some((head, id)) => (head, Some(id.to_owned())),
            None => (head, None),
        };
        let (name, id) = match self.head.as_ref().and_then(|form| form.name_in(head)) {
            Some(name) => (name, Some(head.to_owned())),
            None => (head, id),
        };
        (!name.is_empty() && name.chars().all(is_of_name)).then(|| (name.to_owned(), id))
    }
}

impl IdForm {
    /// The name in an id of this form, or of one without what stands before the name.
    pub fn name_in<'t>(&self, id: &'t str) -> Option<&'t str> {
        let (before, between, after) = self.parts();
        let id = id.strip_prefix(before).unwrap_or(id);
        let (name, number) = id.strip_suffix(after)?.rsplit_once(between)?;
        let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        (is_number && !name.is_empty()).then_some(name)
    }
}

/// Adds the brackets that are missing, if nothing else is. Whether that makes the value whole.
fn complete(value: &Value, found: &mut Vec<Found>) -> bool {
    let missing = value.missing();
    say(found, missing.as_deref().unwrap_or_default());
    missing.is_some()
}

/// Whether tools may have this character in their names.
pub(super) fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Whether the text is the beginning of a name, perhaps an id, and the separator.
fn begins_name(text: &str, style: &CallStyle, tools: &[Tool]) -> bool {
    let is_head = |c: char| is_of_name(c) || style.head.as_ref().is_some_and(|form| form.text().contains(c));
    let rest = text.trim_start_matches(is_head);
    let begins = |rest: &str| {
        let follows = |separator: &String| {
            separator.starts_with(rest)
                || rest.strip_prefix(separator.as_str()).is_some_and(|rest| rest.chars().all(is_space))
        };
        rest.chars().all(is_space) || style.separator.iter().any(follows)
    };
    let id = Some(style.id_separator.as_str()).filter(|separator| !separator.is_empty());
    let is_id = id.is_some_and(|separator| match rest.strip_prefix(separator) {
        Some(id) => begins(id.trim_start_matches(is_of_name)),
        None => separator.starts_with(rest),
    });
    let name = &text[..text.len() - rest.len()];
    let may_be =
        if rest.is_empty() { style.begins_name(name, tools) } else { !style.ambiguous || style.is_name(name, tools) };
    text.len() <= 2 * LONGEST_NAME && may_be && (begins(rest) || is_id)
}

/// Adds to the arguments.
pub(super) fn say(found: &mut Vec<Found>, more: &str) {
    match found.last_mut() {
        _ if more.is_empty() => {}
        Some(Found::Arguments(text)) => text.push_str(more),
        _ => found.push(Found::Arguments(more.into())),
    }
}
