//! The Jinja environment that chat templates are written for: that of `transformers`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, StringInput, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::python::{self, JsonStyle};
use super::source::{CALL, TEXT};
use super::{limits, methods};

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
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter(TEXT, |value: &Value| python::written(value));
    environment.add_filter("upper", |state: &State, value: &Value| {
        Ok::<_, Error>(filters::upper(StringInput::new(state, &python::written(value))?))
    });
    environment.add_filter("lower", |state: &State, value: &Value| {
        Ok::<_, Error>(filters::lower(StringInput::new(state, &python::written(value))?))
    });
    environment.add_filter("trim", |state: &State, value: &Value, chars: Option<Cow<'_, str>>| {
        Ok::<_, Error>(filters::trim(StringInput::new(state, &python::written(value))?, chars))
    });
    environment.add_filter("xmlattr", xml_attributes);
    for (name, arguments) in POSITIONAL {
        environment.add_filter(name, move |state: &State, value: Value, given: Rest<ValueOrKwargs>| {
            let named = by_name(arguments, given.into_values())?;
            match name {
                "dictsort" => filters::dictsort(&value, named),
                _ => wordwrap(state, &value, named),
            }
        });
    }
    environment.add_function("cycler", |items: Rest<Value>| Cycler::of(items.to_vec()));
    environment.add_function(CALL, call);
    environment.add_filter("capitalize", |text: String| methods::capitalized(&text));
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| if value.is_undefined() { Ok(0) } else { filters::length(value) });
    }
    environment.add_filter(
        "first",
        |value: &Value| {
            if value.is_undefined() { Ok(Value::UNDEFINED) } else { filters::first(value) }
        },
    );
    for name in ["default", "d"] {
        environment.add_filter(name, |value: &Value, default: Option<Value>, empty: Option<bool>, named: Kwargs| {
            let default = default.or(named.get("default_value")?).unwrap_or_else(|| "".into());
            let empty = empty.or(named.get("boolean")?).unwrap_or(false);
            named.assert_all_used()?;
            Ok::<_, Error>(if value.is_undefined() || (empty && !value.is_true()) { default } else { value.clone() })
        });
    }
    environment.add_filter("center", |text: String, width: Option<i64>| methods::centred(&text, width.unwrap_or(80)));
    environment.add_filter("truncate", truncate);
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, move |value: &Value| {
            if value.is_safe() && name != "forceescape" {
                value.clone()
            } else {
                Value::from_safe_string(escaped(value))
            }
        });
    }
    // In Python, everything with a length and items is a sequence, including strings and mappings.
    environment.add_test("sequence", |value: &Value| is_iterable(value));
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: &Value| {
        let is_macro = value.as_object().is_some_and(|object| object.type_name().ends_with("Macro"));
        is_macro || value.kind() == ValueKind::Plain
    });
    environment.set_formatter(|out, state, value| {
        limits::tick()?;
        match value.kind() {
            ValueKind::Number | ValueKind::Seq | ValueKind::Map => Ok(out.write_str(&python::text(value))?),
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
    environment
}

/// Filters whose arguments minijinja only takes by name, and their names in Jinja2's order.
const POSITIONAL: [(&str, &[&str]); 2] = [
    ("dictsort", &["case_sensitive", "by", "reverse"]),
    ("wordwrap", &["width", "break_long_words", "wrapstring", "break_on_hyphens"]),
];

/// Arguments of a filter, each by its name.
fn by_name(names: &[&str], mut given: Vec<Value>) -> Result<Kwargs, Error> {
    let named = take_named(&mut given)?;
    if given.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    Ok(names.iter().map(|&name| name.to_owned()).zip(given).chain(named).collect())
}

/// Takes those with names from the arguments of a call.
fn take_named(given: &mut Vec<Value>) -> Result<Vec<(String, Value)>, Error> {
    let Some(named) = given.pop_if(|last| !last.is_undefined() && Kwargs::try_from(last.clone()).is_ok()) else {
        return Ok(Vec::new());
    };
    let named = Kwargs::try_from(named)?;
    named.args().map(|name| Ok((name.to_owned(), named.get(name)?))).collect()
}

/// Jinja's `wordwrap`, of a value as text.
fn wordwrap(state: &State, value: &Value, named: Kwargs) -> Result<Value, Error> {
    let text = python::written(value);
    minijinja_contrib::filters::wordwrap(&StringInput::new(state, &text)?.as_str().into(), named)
}

/// Calls a macro that takes any arguments: those that it does not declare are its last two.
fn call(state: &mut State, callee: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    limits::tick()?;
    let mut positional = arguments.into_values();
    let declared: Vec<String> =
        callee.get_attr("arguments")?.try_iter()?.map(|name| name.as_str().unwrap_or_default().to_owned()).collect();
    let [declared @ .., varargs, kwargs] = declared.as_slice() else { return callee.call(state, &positional) };
    let named = take_named(&mut positional)?;
    let rest = positional.split_off(declared.len().min(positional.len()));
    let is_known = |(name, _): &(String, Value)| name == "caller" || declared.contains(name);
    let (mut known, others): (Vec<_>, Vec<_>) = named.into_iter().partition(is_known);
    known.push((varargs.clone(), Tuple::from(rest).into()));
    known.push((kwargs.clone(), Value::from_pairs(others.into_iter().map(|(name, value)| (Value::from(name), value)))));
    positional.push(Kwargs::from_iter(known).into());
    callee.call(state, &positional)
}

/// Jinja's `cycler`: one item after the other, and again.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn of(items: Vec<Value>) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOperation, "cycler: no items"));
        }
        items.iter().try_for_each(limits::settled)?;
        Ok(Value::from_object(Self { items, at: AtomicUsize::new(0) }))
    }

    fn current(&self) -> Value {
        self.items[self.at.load(Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        let () = from_args(arguments)?;
        match method {
            "next" => {
                let current = self.current();
                self.at.fetch_add(1, Relaxed);
                Ok(current)
            }
            "reset" => {
                self.at.store(0, Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Jinja's `xmlattr`: a mapping as attributes of a tag, without those that are none or undefined.
fn xml_attributes(map: &Value, space: Option<bool>, named: Kwargs) -> Result<String, Error> {
    let space = space.or(named.get("autospace")?).unwrap_or(true);
    named.assert_all_used()?;
    let mut result = String::new();
    for key in map.try_iter()? {
        let value = map.get_item(&key)?;
        let name = python::text(&key);
        if value.is_none() || value.is_undefined() {
            continue;
        }
        if name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '>' | '=')) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("xmlattr: {name:?} is no name of an attribute"),
            ));
        }
        result.push_str(if space || !result.is_empty() { " " } else { "" });
        result.push_str(&format!("{}=\"{}\"", escaped(&key), escaped(&value)));
        limits::fits(result.len())?;
    }
    Ok(result)
}

/// Jinja's `truncate`: to `length` characters with `end`, unless no more than `leeway`, which has to be
/// named, are too many.
fn truncate(
    text: &str,
    length: Option<usize>,
    killwords: Option<bool>,
    end: Option<String>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.or(named.get("length")?).unwrap_or(255);
    let killwords = killwords.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".into());
    let leeway = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if killwords { kept.as_str() } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(format!("{kept}{end}"))
}

fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | Iterable | Map | String | Undefined)
}

/// As markupsafe writes text in HTML.
fn escaped(value: &Value) -> String {
    let mut result = String::new();
    for character in python::text(value).chars() {
        match character {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '"' => result.push_str("&#34;"),
            '\'' => result.push_str("&#39;"),
            character => result.push(character),
        }
    }
    result
}

/// Jinja's delimiters, with the newline after a block and the space before it taken away.
pub(super) fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the default delimiters are valid")
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
    Ok(filters::int(state, value, Some(default.clone()), base, named).unwrap_or(default))
}

/// Jinja's `float`: what is no number becomes the default, 0.0 unless given.
fn float(state: &State, value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0.0));
    Ok(filters::float(state, value, Some(default.clone()), named).unwrap_or(default))
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
