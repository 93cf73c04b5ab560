//! The Jinja environment that chat templates are written for: that of `transformers`.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use regex_automata::meta::Regex;

use super::limits;
use super::python::{self, JsonStyle};

/// How many instructions a template may execute. A conversation of a thousand messages takes a few hundred thousand.
const FUEL: u64 = 20_000_000;

/// An environment with everything that a chat template may use, and limits on what it may do.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    minijinja_contrib::add_to_environment(&mut environment);
    limits::add_to(&mut environment);

    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        python::now(&format).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    // In Python whatever has a length and items is a sequence: strings and mappings too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
    environment
}

/// Jinja's delimiters, with the newline after a block and the space before it taken away.
fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the default delimiters are valid")
}

/// The template in the form in which it is parsed.
pub(super) fn prepared(source: &str) -> String {
    limits::checked_assignments(&without_generation_tags(source), &syntax())
}

/// The template with `{% generation %}` … `{% endgeneration %}`, which marks what the assistant said for training,
/// replaced by a block that does nothing.
fn without_generation_tags(source: &str) -> String {
    let tag = Regex::new(r"\{%[-+]?\s*((?:end)?generation)\s*[-+]?%\}").expect("a constant that is tested");
    let mut captures = tag.create_captures();
    let mut result = String::with_capacity(source.len());
    let mut done = 0;
    while let Some(rest) = source.get(done..) {
        tag.captures(rest, &mut captures);
        let Some(name) = captures.get_group(1) else { break };
        result.push_str(&rest[..name.start]);
        result.push_str(if rest[name.range()].starts_with("end") { "endwith" } else { "with" });
        done += name.end;
    }
    result.push_str(&source[done..]);
    result
}

/// `json.dumps` with the arguments that `transformers` gives its filter.
fn to_json(value: &Value, ensure_ascii: Option<bool>, indent: Option<Value>, named: Kwargs) -> Result<String, Error> {
    let indent = indent.or(named.get("indent")?);
    let separators: Option<Value> = named.get("separators")?;
    let style = JsonStyle {
        ensure_ascii: ensure_ascii.or(named.get("ensure_ascii")?).unwrap_or(false),
        sort_keys: named.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent: indent.map(|indent| indent_text(&indent)).transpose()?.flatten(),
        separators: separators.map(|pair| separator_texts(&pair)).transpose()?.flatten(),
    };
    named.assert_all_used()?;
    style.write(value).map_err(|reason| Error::new(ErrorKind::BadSerialization, reason))
}

/// Jinja's `int`: what is no number becomes the default, 0 unless given.
fn int(state: &State, value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0));
    Ok(minijinja::filters::int(state, value, Some(default.clone()), base, named).unwrap_or(default))
}

/// Jinja's `float`: what is no number becomes the default, 0.0 unless given.
fn float(state: &State, value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0.0));
    Ok(minijinja::filters::float(state, value, Some(default.clone()), named).unwrap_or(default))
}

/// What one level is indented by, given as a number of spaces or as a text.
fn indent_text(indent: &Value) -> Result<Option<Cow<'static, str>>, Error> {
    match (indent.is_none(), indent.as_str(), indent.as_i64()) {
        (true, ..) => Ok(None),
        (_, Some(text), _) => Ok(Some(text.to_string().into())),
        (.., Some(width)) if width <= 64 => Ok(Some(" ".repeat(usize::try_from(width).unwrap_or(0)).into())),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: cannot indent by {indent}"))),
    }
}

fn separator_texts(pair: &Value) -> Result<Option<(String, String)>, Error> {
    if pair.is_none() {
        return Ok(None);
    }
    let texts: Vec<Value> = pair.try_iter()?.take(3).collect();
    match texts.as_slice() {
        [item, key] => Ok(Some((item.to_string(), key.to_string()))),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two texts")),
    }
}
