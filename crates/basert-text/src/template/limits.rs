//! Limits that keep a template from crashing the process.
//!
//! minijinja limits the number of instructions that a template executes, and the depth of brackets and calls. What it
//! does not limit, a malicious template can use against the process:
//!
//! - Its parser and compiler recurse along chains (`1 + 1 + …`, `{% elif %}`). A source has at most [`MOST_SOURCE`]
//!   bytes, and everything runs on a thread whose stack is large enough for the worst of that length
//!   ([`on_own_stack`](crate::stack::on_own_stack)), which also makes an error of a panic.
//! - Printing, comparing and dropping a value recurse along its depth, forever where it contains itself, and a value
//!   can double its size in every iteration of a loop. All values assigned by `{% set %}` pass through a filter that
//!   rejects those that are too deep or too large ([`CHECKS`], [`kept`]). Attributes of a namespace, which alone outlive
//!   an iteration, may not hold mutable values, so nothing can come to contain itself.
//! - A few filters make a long text from a small number; they are limited ([`add_to`]).
//! - One instruction may take long on a large value. Loop iterations, calls of macros and methods, assignments and
//!   output check the clock ([`tick`]), and a tag has at most [`MOST_OPERATORS`] operators that make a new value: between
//!   two checks there is only a limited number of tags, since the length of the source is limited.
//!
//! Text in one variable and in the output is limited by how much the template was given ([`begin`]), so that one
//! expression (`x ~ x ~ …`) takes at most [`MOST_OPERATORS`] times as much before its value is assigned or printed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use minijinja::value::{Kwargs, Rest, StringInput, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::{methods, printf, python};

/// The longest source of a template, in bytes. Published ones have up to 30 KB.
pub(super) const MOST_SOURCE: usize = 64 << 10;

/// The most text that a template may produce or keep in one variable, in bytes, regardless of its input.
pub(super) const MOST_TEXT: usize = 64 << 20;

/// The least that this limit can be, and its ratio to the size of the template's input.
const LEAST_TEXT: usize = 4 << 20;
const GROWTH: usize = 8;

/// How long a template may take.
const MOST_TIME: Duration = Duration::from_secs(10);

/// The most operators in one tag that make a new value of two. Published templates have up to 30.
pub(super) const MOST_OPERATORS: usize = 64;

/// The deepest nesting of a value that is kept or written.
pub(super) const DEEPEST: usize = 200;

/// The most values that one variable may hold, those inside others included.
const MOST_VALUES: usize = 1_000_000;

/// The filters that assignments pass through: to a variable, and to an attribute of a namespace.
pub(super) const CHECKS: [&str; 2] = ["__assigned", "__assigned_to_attribute"];

/// The function that each loop iteration and macro call begins with, and the filter that replaces `%`.
pub(super) const TICK: &str = "__tick";
pub(super) const PERCENT: &str = "__percent";

/// What a rendering may still use.
#[derive(Clone, Copy)]
struct Budget {
    until: Option<Instant>,
    text: usize,
}

thread_local! {
    /// The budget of the rendering on this thread.
    static BUDGET: Cell<Budget> = const { Cell::new(Budget { until: None, text: LEAST_TEXT }) };
}

/// Begins a rendering on this thread, of a template whose input has this many bytes.
pub(super) fn begin(given: usize) {
    let text = given.saturating_mul(GROWTH).saturating_add(LEAST_TEXT).min(MOST_TEXT);
    BUDGET.set(Budget { until: Instant::now().checked_add(MOST_TIME), text });
}

/// The most text that the template may produce or keep in one variable.
pub(super) fn most_text() -> usize {
    BUDGET.get().text
}

/// Fails if the template has taken too long.
pub(super) fn tick() -> Result<(), Error> {
    match BUDGET.get().until {
        Some(until) if Instant::now() > until => Err(refused(format!("more than {} s", MOST_TIME.as_secs()))),
        _ => Ok(()),
    }
}

/// Adds the filters and the function that [`prepared`](super::source::prepared) writes, and limits those that minijinja
/// has.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    for (name, is_attribute) in CHECKS.into_iter().zip([false, true]) {
        environment.add_filter(name, move |value: Value| {
            tick()?;
            let mut left = Left { values: MOST_VALUES, text: most_text(), is_attribute };
            Ok::<_, Error>(kept(&value, DEEPEST, &mut left)?.unwrap_or(value))
        });
    }
    environment.add_function(TICK, || tick().map(|()| false));
    environment.add_filter(PERCENT, percent);
    // A view of mutable values; Jinja2 has no such filter.
    environment.remove_filter("chain");
    environment.add_filter("items", |value: &Value| {
        fixed(value)?;
        filters::items(value)
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        tick()?;
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
        methods::call(state, value, method, arguments)
    });
    environment.add_filter("format", |text: &str, arguments: Rest<ValueOrKwargs>| {
        let arguments = arguments.into_values();
        fits(format_len(text, &arguments))?;
        printf::format(text, &arguments).map_err(refused)
    });
    environment.add_filter(
        "replace",
        |text: &Value, from: StringInput<'_>, to: StringInput<'_>, count: Option<i64>, named: Kwargs| {
            let count = count.or(named.get("count")?).and_then(|count| usize::try_from(count).ok());
            named.assert_all_used()?;
            let text = python::text(text);
            let (text, from, to) = (text.as_str(), from.as_str(), to.as_str());
            fits(replace_len(text, from, to))?;
            Ok::<_, Error>(count.map_or_else(|| text.replace(from, to), |count| text.replacen(from, to, count)))
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
            let written = match (items.kind(), attribute) {
                (ValueKind::Seq | ValueKind::Iterable, None) => {
                    Some(Value::from(items.try_iter()?.map(|item| python::written(&item)).collect::<Vec<_>>()))
                }
                _ => None,
            };
            filters::join(state, written.as_ref().unwrap_or(items), separator, attribute, named.clone())
        },
    );
    environment.add_filter("indent", indent);
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

/// The value to keep in its place, if it needs one: lists instead of views of lists, which would recurse through the
/// views that they are made of. Fails if it is nested deeper than `depth`, holds more than `left` allows, or is mutable
/// and would be kept in a namespace.
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
        // A mutable value is more than its contents.
        return Ok((is_new && fixed(value).is_ok()).then(|| Value::from_pairs(entries)));
    }
    let items: Vec<Value> = value.try_iter()?.map(|item| keep(item, left)).collect::<Result<_, Error>>()?;
    Ok(is_new.then(|| Value::from(items)))
}

/// Fails for values that are or hold something mutable, and for those that are too deep or too large to be kept.
pub(super) fn settled(value: &Value) -> Result<(), Error> {
    kept(value, DEEPEST, &mut Left { values: MOST_VALUES, text: most_text(), is_attribute: true }).map(drop)
}

/// Fails for mutable values: a namespace, and `loop`, which gives access to the neighbouring items.
fn fixed(value: &Value) -> Result<(), Error> {
    match value.as_object().map(|object| object.type_name().rsplit("::").next().unwrap_or_default()) {
        Some(kind @ ("Namespace" | "Loop")) => {
            Err(refused(format!("a {} can be neither kept in a namespace nor taken apart", kind.to_lowercase())))
        }
        _ => Ok(()),
    }
}

/// Fails if a text of `len` bytes is too long.
pub(super) fn fits(len: usize) -> Result<(), Error> {
    if len > most_text() { Err(too_long()) } else { Ok(()) }
}

fn few(count: usize) -> Result<(), Error> {
    if count > MOST_VALUES { Err(refused(format!("a count of {count}; expected up to {MOST_VALUES}"))) } else { Ok(()) }
}

fn too_long() -> Error {
    refused(format!("more than {} bytes of text", most_text()))
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Python's `%`: formatting of a string, or the remainder of numbers, which has the sign of the divisor.
fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let arguments: Vec<Value> = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
        fits(format_len(text, &arguments))?;
        return printf::format(text, &arguments).map(Value::from).map_err(refused);
    }
    let none = || refused(format!("{left} % {right}: neither a text on the left nor two numbers"));
    if let (Some(a), Some(b)) = (left.as_i64(), right.as_i64()) {
        let remainder = a.checked_rem(b).ok_or_else(none)?;
        let is_between = remainder == 0 || (remainder < 0) == (b < 0);
        return Ok(Value::from(if is_between { remainder } else { remainder + b }));
    }
    let (a, b) = (f64::try_from(left.clone()).map_err(|_| none())?, f64::try_from(right.clone()).map_err(|_| none())?);
    if b == 0.0 { Err(none()) } else { Ok(Value::from(a - b * (a / b).floor())) }
}

/// Jinja's `indent`: lines but the first are indented by a text, or by a number of spaces.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.or(named.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let len = width.as_str().map(str::len).or(width.as_usize());
    let len = len.ok_or_else(|| refused(format!("indent: by {width}; expected a number of spaces, or a text")))?;
    fits(methods::line_count(text).saturating_mul(len).saturating_add(text.len()))?;
    let by = width.as_str().map_or_else(|| " ".repeat(len), str::to_owned);
    let mut result = String::from(if first { by.as_str() } else { "" });
    for (number, line) in methods::line_texts(&format!("{text}\n")).into_iter().enumerate() {
        if number > 0 {
            result.push('\n');
            result.push_str(if blank || !line.is_empty() { &by } else { "" });
        }
        result.push_str(line);
    }
    Ok(result)
}

/// The most that padding the fields of a format takes: each as wide as the largest number in the format or, if it has a
/// `*`, among the arguments.
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
