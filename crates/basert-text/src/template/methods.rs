//! Methods of Python's strings, lists and dictionaries that minijinja lacks, or has without all arguments.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::limits::fits;

/// Calls a method that the value's own type does not have.
pub(super) fn call(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), method, arguments)?,
        ValueKind::Seq => of_list(value, method, arguments)?,
        ValueKind::Map if method == "copy" => {
            let () = from_args(arguments)?;
            Some(value.clone())
        }
        _ => None,
    };
    own.map_or_else(|| unknown_method_callback(state, value, method, arguments), Ok)
}

fn of_list(list: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (item,): (&Value,) = from_args(arguments)?;
            let place = list.try_iter()?.position(|other| other == *item);
            place.map(Value::from).ok_or_else(|| wrong(format!("{item} is not in the list")))?
        }
        "copy" => {
            let () = from_args(arguments)?;
            list.clone()
        }
        _ => return Ok(None),
    }))
}

fn of_text(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let characters = || text.chars();
    Ok(Some(match method {
        "split" | "rsplit" => {
            let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
            let separator = separator.or(named.get("sep")?).filter(|separator| !separator.is_none());
            let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
            named.assert_all_used()?;
            let separator = match &separator {
                None => None,
                Some(separator) => match separator.as_str() {
                    Some("") => return Err(wrong("an empty separator".into())),
                    Some(separator) => Some(separator),
                    None => return Err(wrong("a separator that is no text".into())),
                },
            };
            split(text, separator, most.unwrap_or(usize::MAX), method == "rsplit").into()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            if separator.is_empty() {
                return Err(wrong("an empty separator".into()));
            }
            let (found, absent) = match method {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = found.map_or(absent, |(before, after)| [before, separator, after]);
            Tuple::from(parts.map(Value::from).to_vec()).into()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swapped =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            characters().map(swapped).collect::<String>().into()
        }
        // Full case folding is that of lower case but for a few letters.
        "casefold" => {
            let () = from_args(arguments)?;
            text.to_lowercase().replace('ß', "ss").replace('ς', "σ").into()
        }
        "title" => {
            let () = from_args(arguments)?;
            let mut after_letter = false;
            let mut result = String::with_capacity(text.len());
            for c in characters() {
                if after_letter {
                    result.extend(c.to_lowercase())
                } else {
                    result.push_str(&first_upper(c))
                }
                after_letter = c.is_alphabetic();
            }
            result.into()
        }
        "capitalize" => {
            let () = from_args(arguments)?;
            capitalized(text).into()
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<char>) = from_args(arguments)?;
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(characters().count());
            fits(missing.saturating_mul(4).saturating_add(text.len()))?;
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                // If the two sides cannot be equal, Python decides by the width.
                _ => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
            };
            let fill = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
            format!("{}{text}{}", fill(left), fill(missing - left)).into()
        }
        "zfill" => {
            let (width,): (i64,) = from_args(arguments)?;
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(characters().count());
            fits(missing.saturating_add(text.len()))?;
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            format!("{sign}{}{digits}", "0".repeat(missing)).into()
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(arguments)?;
            let size = size.unwrap_or(8);
            fits(text.matches('\t').count().saturating_mul(size).saturating_add(text.len()))?;
            let (mut result, mut column) = (String::with_capacity(text.len()), 0);
            for c in characters() {
                match c {
                    '\t' => {
                        let count = if size == 0 { 0 } else { size - column % size };
                        result.push_str(&" ".repeat(count));
                        column += count;
                    }
                    c => {
                        result.push(c);
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            result.into()
        }
        "splitlines" => {
            let (ends, named): (Option<bool>, Kwargs) = from_args(arguments)?;
            let ends = ends.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            Value::from(lines(text, ends).into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            let (from, range) = slice(text, start, end);
            if method == "count" {
                return Ok(Some(
                    match part {
                        "" => range.chars().count() + 1,
                        part => range.matches(part).count(),
                    }
                    .into(),
                ));
            }
            let found = if method.starts_with('r') { range.rfind(part) } else { range.find(part) };
            let found = found.map(|at| from + range[..at].chars().count());
            match found {
                Some(at) => at.into(),
                None if method.ends_with("find") => (-1).into(),
                None => return Err(wrong(format!("{part:?} is not in the text"))),
            }
        }
        "startswith" | "endswith" => {
            let (parts, start, end): (&Value, Option<i64>, Option<i64>) = from_args(arguments)?;
            let (_, range) = slice(text, start, end);
            let is = |part: &str| if method == "startswith" { range.starts_with(part) } else { range.ends_with(part) };
            match parts.as_str() {
                Some(part) => is(part),
                None => parts.try_iter()?.any(|part| part.as_str().is_some_and(is)),
            }
            .into()
        }
        "isidentifier" => {
            let () = from_args(arguments)?;
            let begins = characters().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            (begins && characters().all(|c| c.is_alphanumeric() || c == '_')).into()
        }
        "istitle" => {
            let () = from_args(arguments)?;
            let (mut after_letter, mut any) = (false, false);
            for c in characters() {
                if (c.is_uppercase() && after_letter) || (c.is_lowercase() && !after_letter) {
                    return Ok(Some(false.into()));
                }
                after_letter = c.is_uppercase() || c.is_lowercase();
                any |= after_letter;
            }
            any.into()
        }
        "isdecimal" => {
            let () = from_args(arguments)?;
            is_all(text, |c| c.is_ascii_digit() || (c.is_numeric() && DECIMALS.iter().any(|zero| in_decade(c, *zero))))
                .into()
        }
        "isdigit" => {
            let () = from_args(arguments)?;
            let superscript = |c: char| matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉');
            let decimal = |c: char| c.is_numeric() && DECIMALS.iter().any(|zero| in_decade(c, *zero));
            is_all(text, |c| c.is_ascii_digit() || superscript(c) || decimal(c)).into()
        }
        "isprintable" => {
            let () = from_args(arguments)?;
            characters().all(|c| c == ' ' || !(c.is_control() || c.is_whitespace())).into()
        }
        _ => return Ok(None),
    }))
}

/// The zeros of some scripts with consecutive digits.
const DECIMALS: [char; 8] = ['٠', '۰', '०', '০', '๐', '０', '௦', '೦'];

fn in_decade(c: char, zero: char) -> bool {
    (c as u32).wrapping_sub(zero as u32) < 10
}

fn is_all(text: &str, is: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(is)
}

fn wrong(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A letter as the first of a word.
fn first_upper(c: char) -> String {
    // The one letter of the usual ones whose title case is not its upper case.
    if c == 'ß' { "Ss".into() } else { c.to_uppercase().collect() }
}

/// With spaces on both sides, as many as make it `width` characters long.
pub(super) fn centred(text: &str, width: i64) -> Result<Value, Error> {
    Ok(of_text(text, "center", &[Value::from(width)])?.unwrap_or_default())
}

/// With the first letter large, and all others small.
pub(super) fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(first_upper).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

/// Splits at a separator, or at white space, at most `most` times.
fn split(text: &str, separator: Option<&str>, most: usize, from_end: bool) -> Vec<Value> {
    // White space is trimmed at the end from which splits are counted.
    fn near(text: &str, is_space: bool, from_end: bool) -> &str {
        match (is_space, from_end) {
            (false, _) => text,
            (true, false) => text.trim_start(),
            (true, true) => text.trim_end(),
        }
    }
    let (mut parts, mut rest) = (Vec::new(), near(text, separator.is_none(), from_end));
    let mut is_done = separator.is_none() && rest.is_empty();
    while !is_done && parts.len() < most {
        let cut = match (separator, from_end) {
            (Some(separator), false) => rest.split_once(separator),
            (Some(separator), true) => rest.rsplit_once(separator),
            (None, false) => rest.split_once(char::is_whitespace),
            (None, true) => rest.rsplit_once(char::is_whitespace),
        };
        let Some((before, after)) = cut else { break };
        let (part, left) = if from_end { (after, before) } else { (before, after) };
        parts.push(Value::from(part));
        rest = near(left, separator.is_none(), from_end);
        is_done = separator.is_none() && rest.is_empty();
    }
    if !is_done {
        parts.push(Value::from(rest));
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// The part of a text between two places, counted in characters and from the end where they are negative; and the place
/// where it begins.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, &str) {
    let count = text.chars().count() as i64;
    let place = |at: i64| (if at < 0 { at + count } else { at }).clamp(0, count) as usize;
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(count)));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start, if start < end { &text[byte(start)..byte(end)] } else { "" })
}

/// What ends a line in Python.
fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of a text, with what ends them or without.
fn lines(text: &str, ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(is_line_end).unwrap_or(rest.len());
        let end = match rest[at..].chars().next() {
            Some('\r') if rest[at..].starts_with("\r\n") => at + 2,
            Some(c) => at + c.len_utf8(),
            None => at,
        };
        lines.push(&rest[..if ends { end } else { at }]);
        rest = &rest[end..];
    }
    lines
}

/// The lines of a text, without what ends them.
pub(super) fn line_texts(text: &str) -> Vec<&str> {
    lines(text, false)
}

/// At least as many as a text has lines.
pub(super) fn line_count(text: &str) -> usize {
    text.chars().filter(|&c| is_line_end(c)).count() + 1
}
