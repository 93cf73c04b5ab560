//! What templates expect of Python's standard library: `json.dumps` and `datetime.now().strftime`.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::Zoned;
use minijinja::Value;
use minijinja::value::ValueKind;

use super::limits::{DEEPEST, MOST_TEXT};

/// The arguments of `json.dumps`.
pub(super) struct JsonStyle {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// What one level is indented by; everything on one line without.
    pub indent: Option<Cow<'static, str>>,
    /// Between items, and between key and value.
    pub separators: Option<(String, String)>,
}

impl JsonStyle {
    /// The value as JSON, exactly as Python writes it.
    pub fn write(&self, value: &Value) -> Result<String, String> {
        let mut out = String::new();
        self.value(value, 0, &mut out)?;
        Ok(out)
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("tojson: nested deeper than {DEEPEST}"));
        }
        if out.len() > MOST_TEXT {
            return Err(format!("tojson: more than {MOST_TEXT} bytes"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter().map_err(|error| error.to_string())?;
                self.list(['[', ']'], items, depth, out, |item, out| self.value(&item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let keys = value.try_iter().map_err(|error| error.to_string())?;
                let mut entries = keys
                    .map(|key| Ok((key_text(&key)?, value.get_item(&key).map_err(|error| error.to_string())?)))
                    .collect::<Result<Vec<_>, String>>()?;
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                let separator = self.separators.as_ref().map_or(": ", |(_, key)| key.as_str());
                self.list(['{', '}'], entries.into_iter(), depth, out, |(key, item), out| {
                    self.string(&key, out);
                    out.push_str(separator);
                    self.value(&item, depth + 1, out)
                })?;
            }
            kind => return Err(format!("tojson: a value of type {kind} is not JSON serializable")),
        }
        Ok(())
    }

    fn list<T>(
        &self,
        brackets: [char; 2],
        items: impl Iterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String) -> Result<(), String>,
    ) -> Result<(), String> {
        let default = if self.indent.is_some() { "," } else { ", " };
        let separator = self.separators.as_ref().map_or(default, |(item, _)| item.as_str());
        let new_line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(brackets[0]);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                out.push_str(separator);
            }
            new_line(depth + 1, out);
            write(item, out)?;
            is_empty = false;
        }
        if !is_empty {
            new_line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => escape(u16::from(character as u8), out),
                '\u{7f}'.. if self.ensure_ascii && character != '\u{7f}' => {
                    character.encode_utf16(&mut [0; 2]).iter().for_each(|&unit| escape(unit, out));
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn escape(unit: u16, out: &mut String) {
    // Writing to a String does not fail.
    let _ = write!(out, "\\u{unit:04x}");
}

/// A key of an object, which Python always writes as a string.
fn key_text(key: &Value) -> Result<String, String> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        kind => Err(format!("tojson: keys must be strings, not {kind}")),
    }
}

/// A number as Python writes it: the shortest digits that read back as the same number, with an exponent below 1e-4 and
/// from 1e16.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else { return value.to_string() };
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent @ (-4..16) if exponent >= 0 && number == number.trunc() => format!("{number:.1}"),
        -4..16 => number.to_string(),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// The value as something that minijinja writes as Python does.
pub(super) fn written(value: &Value) -> Value {
    if has_float(value, DEEPEST) { text(value).into() } else { value.clone() }
}

/// What `repr` makes of a value.
pub(super) fn representation(value: &Value) -> String {
    let mut out = String::new();
    repr(value, DEEPEST, &mut out);
    out
}

/// What `str` makes of a value.
pub(super) fn text(value: &Value) -> String {
    let mut out = String::new();
    // minijinja writes floats differently from Python, also inside lists and dictionaries.
    if has_float(value, DEEPEST) {
        repr(value, DEEPEST, &mut out)
    } else {
        out = value.to_string()
    }
    out
}

/// Whether a value is or holds a float.
fn has_float(value: &Value, depth: usize) -> bool {
    let inside = |value: &Value| depth > 0 && has_float(value, depth - 1);
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq => value.try_iter().is_ok_and(|mut items| items.any(|item| inside(&item))),
        ValueKind::Map if value.as_object().is_none_or(is_plain) => {
            let Ok(mut keys) = value.try_iter() else { return false };
            keys.any(|key| inside(&key) || value.get_item(&key).is_ok_and(|item| inside(&item)))
        }
        _ => false,
    }
}

/// Whether it is a dictionary, and not another object that behaves like one.
fn is_plain(object: &minijinja::value::DynObject) -> bool {
    !matches!(object.type_name().rsplit("::").next(), Some("Namespace" | "Loop"))
}

fn repr(value: &Value, depth: usize, out: &mut String) {
    let Some(depth) = depth.checked_sub(1) else { return };
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match number(value).as_str() {
            "NaN" => out.push_str("nan"),
            "Infinity" => out.push_str("inf"),
            "-Infinity" => out.push_str("-inf"),
            text => out.push_str(text),
        },
        ValueKind::Seq => {
            let brackets = if value.is_tuple() { ['(', ')'] } else { ['[', ']'] };
            out.push(brackets[0]);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                out.push_str(if count > 0 { ", " } else { "" });
                repr(&item, depth, out);
                count += 1;
            }
            out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
            out.push(brackets[1]);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth, out);
            }
            out.push('}');
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        // minijinja quotes the items of a list.
        _ => {
            let list = Value::from(vec![value.clone()]).to_string();
            out.push_str(list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(&list));
        }
    }
}

/// A text in quotes, as Python writes it.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c != ' ' && (c.is_control() || c.is_whitespace()) => code(c, out),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A character by its code, as Python writes it.
pub(super) fn code(c: char, out: &mut String) {
    // Writing to a String does not fail.
    let _ = match c as u32 {
        code @ 0..0x100 => write!(out, "\\x{code:02x}"),
        code @ 0x100..0x10000 => write!(out, "\\u{code:04x}"),
        code => write!(out, "\\U{code:08x}"),
    };
}

/// The local time, written as `format` says.
pub(super) fn now(format: &str) -> Result<String, String> {
    jiff::fmt::strtime::format(format, &Zoned::now()).map_err(|error| format!("strftime_now: {error}"))
}
