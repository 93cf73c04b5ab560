//! What keeps a template from ending the process.
//!
//! minijinja counts the instructions that a template executes and the brackets and calls inside each other. What it
//! does not count, a template from an unknown hand can use against the process:
//!
//! - Its parser and compiler recurse along chains (`1 + 1 + …`, `{% elif %}`). A source has at most [`MOST_SOURCE`]
//!   bytes, and everything runs on a thread whose stack is large enough for the worst of that length
//!   ([`on_own_stack`](crate::stack::on_own_stack)), which also makes an error of a panic.
//! - Printing, comparing and dropping a value recurse along its depth, forever where it contains itself, and a value
//!   can double its size in every round of a loop. Whatever is assigned by `{% set %}` passes through a filter that
//!   refuses what is too deep or too large ([`checked_assignments`], [`kept`]). In an attribute of a namespace, which
//!   alone outlives a round, nothing may stand that can change later, and so nothing can come to contain itself.
//! - A few filters make a long text of a short number; they are limited ([`add_to`]).
//!
//! What is left: the memory that one expression takes before its value is assigned or printed (`x ~ x ~ x ~ …` of a
//! long text, a long text taken apart into characters, arguments of a macro that calls itself) and the text that is
//! captured by one block are not limited, and neither is the time that one instruction takes on a large value. A
//! template that wants to can still exhaust memory or keep a thread busy for minutes; only a limit of the system (a
//! container, `ulimit -v`) stops it.

use minijinja::formatting::{FormatStyle, format};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, StringInput, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The longest source of a template, in bytes. Published ones have up to 30 KB.
pub(super) const MOST_SOURCE: usize = 64 << 10;

/// The most text that a template may produce or keep in one variable, in bytes.
pub(super) const MOST_TEXT: usize = 64 << 20;

/// The deepest nesting of a value that is kept or written.
pub(super) const DEEPEST: usize = 200;

/// The most values that one variable may hold, those inside others included.
const MOST_VALUES: usize = 1_000_000;

/// The filters that assignments pass through: to a variable, and to an attribute of a namespace.
const CHECKS: [&str; 2] = ["__assigned", "__assigned_to_attribute"];

/// The template with each value that `{% set %}` assigns passed through one of [`CHECKS`]. Where it does not parse, the
/// parser will say so.
pub(super) fn checked_assignments(source: &str, syntax: &SyntaxConfig) -> String {
    let mut result = String::with_capacity(source.len());
    let mut done = 0;
    let mut insert = |text: &str, at: u32| {
        result.push_str(&source[done..at as usize]);
        result.push_str(text);
        done = at as usize;
    };
    let mut tokens = tokenize(source, false, syntax.clone()).map_while(Result::ok);
    while let Some((token, _)) = tokens.next() {
        if !matches!(token, Token::BlockStart) || !matches!(tokens.next(), Some((Token::Ident("set"), _))) {
            continue;
        }
        // `target = value`, or `target | filter` before a block of text.
        let (mut is_target, mut is_attribute, mut suffix) = (true, false, "|");
        for (token, span) in tokens.by_ref() {
            match token {
                Token::BlockEnd => {
                    insert(&format!("{suffix}{}", CHECKS[usize::from(is_attribute)]), span.start_offset);
                    break;
                }
                Token::Dot if is_target => is_attribute = true,
                Token::Assign if is_target => {
                    insert("(", span.end_offset);
                    (is_target, suffix) = (false, ")|");
                }
                Token::Pipe => is_target = false,
                _ => {}
            }
        }
    }
    result.push_str(&source[done..]);
    result
}

/// Adds the filters of [`checked_assignments`], and limits those that minijinja has.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    for (name, is_attribute) in CHECKS.into_iter().zip([false, true]) {
        environment.add_filter(name, move |value: Value| {
            let mut left = Left { values: MOST_VALUES, text: MOST_TEXT, is_attribute };
            Ok::<_, Error>(kept(&value, DEEPEST, &mut left)?.unwrap_or(value))
        });
    }
    // A view of what can change; Jinja has no such filter.
    environment.remove_filter("chain");
    environment.add_filter("items", |value: &Value| {
        fixed(value)?;
        filters::items(value)
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        fixed(value)?;
        if let Some(text) = value.as_str() {
            match (method, arguments) {
                ("format", _) => fits(format_len(text, arguments))?,
                ("join", [items, ..]) => fits(join_len(items, text, None)?)?,
                ("replace", [from, to, ..]) => {
                    fits(replace_len(text, from.as_str().unwrap_or("-"), to.as_str().unwrap_or_default()))?;
                }
                _ => {}
            }
        }
        unknown_method_callback(state, value, method, arguments)
    });
    environment.add_filter("format", |text: &str, arguments: Rest<ValueOrKwargs>| {
        let arguments = arguments.into_values();
        fits(format_len(text, &arguments))?;
        format(FormatStyle::Printf, text, &arguments)
    });
    environment.add_filter(
        "replace",
        |state: &mut State, text: StringInput<'_>, from: StringInput<'_>, to: StringInput<'_>| {
            fits(replace_len(text.as_str(), from.as_str(), to.as_str()))?;
            filters::replace(state, text, from, to)
        },
    );
    environment.add_filter(
        "join",
        |state: &mut State,
         items: &Value,
         separator: Option<StringInput<'_>>,
         attribute: Option<&str>,
         named: Kwargs| {
            let separator = separator.or(named.get("d")?);
            let attribute = attribute.or(named.get("attribute")?);
            fits(join_len(items, separator.as_ref().map_or("", StringInput::as_str), attribute)?)?;
            filters::join(state, items, separator, attribute, named.clone())
        },
    );
    environment.add_filter(
        "indent",
        |text: StringInput<'_>, width: Option<usize>, first: Option<bool>, blank: Option<bool>, named: Kwargs| {
            let width = width.or(named.get("width")?);
            let lines = text.as_str().split('\n').count();
            fits(lines.saturating_mul(width.unwrap_or(4)).saturating_add(text.as_str().len()))?;
            filters::indent(text, width, first, blank, named)
        },
    );
    environment.add_filter("batch", |state: &State, items: Value, count: usize, fill: Option<Value>| {
        few(count)?;
        filters::batch(state, items, count, fill)
    });
    environment.add_filter("slice", |state: &State, items: Value, count: usize, fill: Option<Value>| {
        few(count)?;
        filters::slice(state, items, count, fill)
    });
}

/// What a value may still hold.
struct Left {
    values: usize,
    text: usize,
    is_attribute: bool,
}

/// The value as it is to be kept, if that is not as it is: with lists instead of views of lists, which would recurse
/// through the views that they are made of. Fails if it is nested deeper than `depth`, holds more than what is left, or
/// can change and is to be kept in a namespace.
fn kept(value: &Value, depth: usize, left: &mut Left) -> Result<Option<Value>, Error> {
    if left.is_attribute {
        fixed(value)?;
    }
    let text = value.as_str().map_or(0, str::len);
    left.text = left.text.checked_sub(text).ok_or_else(too_long)?;
    left.values =
        left.values.checked_sub(1).ok_or_else(|| refused(format!("more than {MOST_VALUES} values in one")))?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(None);
    }
    let depth = depth.checked_sub(1).ok_or_else(|| refused(format!("a value nested deeper than {DEEPEST}")))?;
    let mut is_new = kind == ValueKind::Iterable;
    let mut keep = |item: Value, left: &mut Left| {
        let new = kept(&item, depth, left)?;
        is_new |= new.is_some();
        Ok::<_, Error>(new.unwrap_or(item))
    };
    if kind == ValueKind::Map {
        let entry = |key: Value| {
            let item = value.get_item(&key)?;
            Ok((keep(key, left)?, keep(item, left)?))
        };
        let entries: Vec<(Value, Value)> = value.try_iter()?.map(entry).collect::<Result<_, Error>>()?;
        // What can change is itself and not only what it holds.
        return Ok((is_new && fixed(value).is_ok()).then(|| Value::from_pairs(entries)));
    }
    let items: Vec<Value> = value.try_iter()?.map(|item| keep(item, left)).collect::<Result<_, Error>>()?;
    Ok(is_new.then(|| Value::from(items)))
}

/// Fails for the values that can change: the namespace itself and `loop`, which shows the items beside the current one.
fn fixed(value: &Value) -> Result<(), Error> {
    match value.as_object().map(|object| object.type_name().rsplit("::").next().unwrap_or_default()) {
        Some(kind @ ("Namespace" | "Loop")) => {
            Err(refused(format!("a {} can be neither kept in a namespace nor taken apart", kind.to_lowercase())))
        }
        _ => Ok(()),
    }
}

fn fits(len: usize) -> Result<(), Error> {
    if len > MOST_TEXT { Err(too_long()) } else { Ok(()) }
}

fn few(count: usize) -> Result<(), Error> {
    if count > MOST_VALUES { Err(refused(format!("a count of {count}; expected up to {MOST_VALUES}"))) } else { Ok(()) }
}

fn too_long() -> Error {
    refused(format!("more than {MOST_TEXT} bytes of text"))
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// The most that padding the fields of a format takes: each as wide as the largest number in it, or among the arguments
/// where a `*` may stand for one.
fn format_len(format: &str, arguments: &[Value]) -> usize {
    let widths = format.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = widths.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let others = arguments.iter().filter(|_| format.contains('*')).filter_map(Value::as_usize);
    let widest = widths.chain(others).max().unwrap_or(0);
    format.matches(['%', '{']).count().saturating_mul(widest).saturating_add(format.len())
}

/// The most that replacing takes.
fn replace_len(text: &str, from: &str, to: &str) -> usize {
    text.matches(from).count().saturating_mul(to.len()).saturating_add(text.len())
}

/// The most that joining takes, not counting what is no text yet.
fn join_len(items: &Value, separator: &str, attribute: Option<&str>) -> Result<usize, Error> {
    let Ok(items) = items.try_iter() else { return Ok(0) };
    let mut len = 0usize;
    for item in items {
        let item = match attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        len = len.saturating_add(separator.len()).saturating_add(item.as_str().map_or(0, str::len));
        fits(len)?;
    }
    Ok(len)
}
