//! Separation of text from outside from the template's own text in a prompt.

use serde_json::{Map, Value};

use crate::TemplateError;
use crate::tokenizer::{ControlTexts, MARKERS};

/// Breaks texts from outside so that they are no control tokens in the rendered prompt.
pub(super) struct Outside<'c> {
    controls: &'c ControlTexts,
    /// Stands inside what would be a control token.
    pub marker: char,
    /// Is free for other uses.
    pub end: char,
    /// Whether a marker was put anywhere.
    pub marked: bool,
}

impl<'c> Outside<'c> {
    /// With markers that none of these values holds.
    pub fn new<'v>(controls: &'c ControlTexts, values: impl Iterator<Item = &'v Value>) -> Result<Self, TemplateError> {
        let mut used = 0;
        values.for_each(|value| note(value, &mut used));
        let mut free = MARKERS.enumerate().filter(|(i, _)| used & (1 << i) == 0).map(|(_, marker)| marker);
        match (free.next(), free.next()) {
            (Some(marker), Some(end)) => Ok(Self { controls, marker, end, marked: false }),
            _ => Err(TemplateError::Request {
                field: "messages".into(),
                found: "all of the noncharacters U+FDD0 to U+FDEF".into(),
                expected: "text, which has none".into(),
            }),
        }
    }

    /// Breaks all texts in the value, keys included, but for control tokens that are `allowed`.
    pub fn mark(&mut self, value: &mut Value, allowed: &[&str]) {
        match value {
            Value::String(text) => self.mark_text(text, allowed),
            Value::Array(values) => values.iter_mut().for_each(|value| self.mark(value, allowed)),
            Value::Object(map) => self.mark_map(map, allowed),
            _ => {}
        }
    }

    pub fn mark_map(&mut self, map: &mut Map<String, Value>, allowed: &[&str]) {
        map.values_mut().for_each(|value| self.mark(value, allowed));
        let broken = |key: &String| self.controls.broken(key, self.marker, allowed);
        if map.keys().any(|key| broken(key).is_some()) {
            let marked = std::mem::take(map).into_iter().map(|(key, value)| (broken(&key).unwrap_or(key), value));
            *map = marked.collect();
            self.marked = true;
        }
    }

    fn mark_text(&mut self, text: &mut String, allowed: &[&str]) {
        if let Some(broken) = self.controls.broken(text, self.marker, allowed) {
            *text = broken;
            self.marked = true;
        }
    }
}

/// Adds the markers that a value holds.
fn note(value: &Value, used: &mut u32) {
    match value {
        Value::String(text) => *used |= held(text),
        Value::Array(values) => values.iter().for_each(|value| note(value, used)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            *used |= held(key);
            note(value, used);
        }),
        _ => {}
    }
}

/// The markers that a text holds, a bit for each, be they escaped as JSON escapes them.
fn held(text: &str) -> u32 {
    let digits = |(at, _): (usize, &str)| u32::from_str_radix(text.get(at + 2..at + 6)?, 16).ok();
    let escaped = text.match_indices("\\ufd").filter_map(digits).filter_map(char::from_u32);
    let markers = text.chars().chain(escaped).filter(|c| MARKERS.contains(c));
    markers.fold(0, |used, marker| used | 1 << (u32::from(marker) - u32::from(*MARKERS.start())))
}

/// The marker as JSON in ASCII has it.
pub(super) fn escaped(marker: char) -> String {
    format!("\\u{:04x}", u32::from(marker))
}
