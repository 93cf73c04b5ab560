//! Rewriting of conversations that a template refuses or renders only in part.

use serde_json::{Map, Value, json};

use crate::dialect::history::{calls_of, text_of};

/// Changes a conversation, if there is anything to be changed.
pub(super) type Repair = fn(&mut Vec<Value>) -> bool;

/// What is tried, one after the other and each beside those before.
pub(super) fn repairs(knows_system: bool) -> impl Iterator<Item = Repair> {
    let all: [(Repair, bool); 5] = [
        (one_system_text, true),
        (no_system_text, !knows_system),
        (no_neighbours, true),
        (no_user_after_tool, true),
        (user_first, true),
    ];
    all.into_iter().filter(|(_, applies)| *applies).map(|(repair, _)| repair)
}

/// How often the whole text is searched for what is not where it is expected.
const SEARCHES: usize = 64;

/// Whether the text holds all that system and user say.
pub(super) fn holds(text: &str, messages: &[Value]) -> bool {
    // Templates keep the order of each role, even if they put one before the other.
    let (mut at, mut searches) = ([0, 0], SEARCHES);
    messages.iter().filter(|message| is(message, "system") || is(message, "user")).all(|message| {
        let said = text_of(message.get("content"));
        let said = said.trim();
        let at = &mut at[usize::from(is(message, "user"))];
        match text[*at..].find(said) {
            Some(place) => {
                *at += place + said.len();
                true
            }
            None if searches == 0 => true,
            None => {
                searches -= 1;
                text.contains(said)
            }
        }
    })
}

fn is(message: &Value, role: &str) -> bool {
    message["role"] == role
}

/// System texts at the beginning become one; those amid the conversation are the user's.
fn one_system_text(messages: &mut Vec<Value>) -> bool {
    let before = messages.len();
    let mut changed = false;
    let mut result: Vec<Value> = Vec::with_capacity(before);
    // The last message was a system text, and may take up what the user says next.
    let mut open = false;
    for mut message in messages.drain(..) {
        let is_system = is(&message, "system");
        match result.last_mut() {
            Some(last) if is_system && is(last, "system") => join(last, message),
            Some(last) if is_system && is(last, "user") => {
                join(last, message);
                open = true;
            }
            Some(_) if is_system => {
                message["role"] = "user".into();
                result.push(message);
                open = true;
                changed = true;
            }
            Some(last) if open && is(&message, "user") => join(last, message),
            _ => {
                open = false;
                result.push(message);
            }
        }
    }
    *messages = result;
    changed || messages.len() != before
}

/// A system text is what the user says first.
fn no_system_text(messages: &mut Vec<Value>) -> bool {
    if !messages.first().is_some_and(|first| is(first, "system")) {
        return false;
    }
    let mut system = messages.remove(0);
    system["role"] = "user".into();
    match messages.iter_mut().find(|message| is(message, "user")) {
        Some(user) => {
            let said = std::mem::replace(user, system);
            join(user, said);
        }
        None => messages.insert(0, system),
    }
    true
}

/// What one says in several messages becomes one.
fn no_neighbours(messages: &mut Vec<Value>) -> bool {
    join_where(messages, |last, message| {
        (is(last, "user") && is(message, "user"))
            || (is(last, "assistant") && is(message, "assistant") && calls_of(last).is_empty())
    })
}

/// What the user says together with a tool's result belongs to that.
fn no_user_after_tool(messages: &mut Vec<Value>) -> bool {
    join_where(messages, |last, message| is(last, "tool") && is(message, "user"))
}

/// The conversation begins with the user.
fn user_first(messages: &mut Vec<Value>) -> bool {
    let begin = usize::from(messages.first().is_some_and(|first| is(first, "system")));
    let needed = messages.get(begin).is_some_and(|first| !is(first, "user"));
    if needed {
        messages.insert(begin, json!({"role": "user", "content": ""}));
    }
    needed
}

fn join_where(messages: &mut Vec<Value>, joins: impl Fn(&Value, &Value) -> bool) -> bool {
    let before = messages.len();
    let mut result: Vec<Value> = Vec::with_capacity(before);
    for message in messages.drain(..) {
        match result.last_mut() {
            Some(last) if joins(last, &message) => join(last, message),
            _ => result.push(message),
        }
    }
    *messages = result;
    messages.len() != before
}

/// Adds a message to the one before, after an empty line.
fn join(last: &mut Value, message: Value) {
    let Value::Object(mut message) = message else { return };
    let more = message.remove("content").unwrap_or_default();
    let content = match (last["content"].take(), more) {
        (content, more) if text_of(Some(&more)).is_empty() => content,
        (content, more) if text_of(Some(&content)).is_empty() => more,
        (Value::Array(mut parts), more) => {
            parts.push(part("\n\n".into()));
            match more {
                Value::Array(more) => parts.extend(more),
                more => parts.push(part(text_of(Some(&more)))),
            }
            parts.into()
        }
        (content, Value::Array(more)) => {
            let mut parts = vec![part(text_of(Some(&content)) + "\n\n")];
            parts.extend(more);
            parts.into()
        }
        (content, more) => format!("{}\n\n{}", text_of(Some(&content)), text_of(Some(&more))).into(),
    };
    last["content"] = content;
    if let Value::Object(last) = last {
        let others: Map<String, Value> = message.into_iter().filter(|(key, _)| !last.contains_key(key)).collect();
        last.extend(others);
    }
}

fn part(text: String) -> Value {
    json!({"type": "text", "text": text})
}
