//! Writing calls in a dialect, as text and as a grammar.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::parameters::Markers;
use super::schema::Kinds;
use super::{Between, CallStyle, Dialect, Form, Notation};
use crate::grammar::Answer;
use crate::{GrammarError, Tokenizer};

/// Space after reasoning.
const AFTER_REASONING: &str = r"/[ \n]{1,4}/?";

/// Calls that an answer has to consist of.
#[derive(Clone, Debug)]
pub struct CallGrammar {
    dialect: Arc<Dialect>,
    /// Names, and schemas of the arguments.
    tools: Vec<(String, Value)>,
    several: bool,
}

impl PartialEq for CallGrammar {
    fn eq(&self, other: &Self) -> bool {
        (self.dialect.name(), &self.tools, self.several) == (other.dialect.name(), &other.tools, other.several)
    }
}

/// How a dialect writes calls when they are asked for: the text around all of them, and between two.
struct Shape {
    around: Between,
    /// Nothing if an answer can only have one.
    gap: Option<String>,
}

/// What is written around a call's arguments.
#[derive(Default)]
struct Frame {
    before: String,
    /// Comes after the number of the call, which follows `before`, if it is written.
    after_number: Option<String>,
    /// Comes before the call's id, if it is written after the arguments.
    before_id: Option<String>,
    after: String,
}

impl CallGrammar {
    /// One call, or with `several` at least one, of these tools, given as `{"type": "function", "function": {…}}`; of
    /// `named` only, if there is one.
    ///
    /// # Errors
    /// When a tool has no usable name or no schema of an object, or there is none of that name.
    pub fn new(
        dialect: Arc<Dialect>,
        tools: &[Value],
        named: Option<&str>,
        several: bool,
    ) -> Result<Self, GrammarError> {
        let failed = |reason| Err(GrammarError::Tools { reason });
        let mut known = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let function = &tool["function"];
            let name = function["name"].as_str().unwrap_or_default();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if name.is_empty() || name.len() > 256 || !name.chars().all(is_plain) {
                let found = &function["name"];
                return failed(format!("name {i} is {found}; expected up to 256 letters, digits, _, - and ."));
            }
            let mut parameters = match &function["parameters"] {
                Value::Null => json!({}),
                parameters => parameters.clone(),
            };
            // Arguments are an object, whether the schema says so or not.
            let kind = parameters.as_object_mut().map(|schema| &*schema.entry("type").or_insert(json!("object")));
            if kind.is_none_or(|kind| kind != "object") {
                return failed(format!("the parameters of {name} are not the JSON schema of an object"));
            }
            known.push((name.to_owned(), parameters));
        }
        if let Some(named) = named {
            known.retain(|(name, _)| name == named);
        }
        match (known.is_empty(), named) {
            (true, Some(named)) => failed(format!("there is none called {named}")),
            (true, None) => failed("there are none to be called".into()),
            _ => Ok(Self { dialect, tools: known, several }),
        }
    }

    /// The tools' names and the schemas of their arguments.
    pub(crate) fn tools(&self) -> &[(String, Value)] {
        &self.tools
    }

    /// A grammar in Lark. JSON is spaced as templates space it, so that the calls are the same text in the next prompt.
    pub(crate) fn to_lark(&self, tokenizer: &Tokenizer) -> String {
        let text = |text: &str| lark_text(tokenizer, text);
        let shape = self.dialect.shape();
        let again = match shape.gap.filter(|_| self.several) {
            Some(gap) => format!("({} call)*", text(&gap)),
            None => String::new(),
        };
        let mut lark = format!("start: {} call {again} {}\n", text(&shape.around.open), text(&shape.around.close));
        let names: Vec<String> = (0..self.tools.len()).map(|i| format!("call{i}")).collect();
        let _ = writeln!(lark, "call: {}", names.join(" | "));
        let style = self.dialect.call.first();
        for (i, (name, parameters)) in self.tools.iter().enumerate() {
            let Frame { before, after_number, before_id, after } = self.dialect.frame(name);
            let (before, after) = (text(&before), text(&after));
            if let Some(markers) = style.and_then(|style| style.parameters.as_ref()) {
                let arguments = lark_parameters(tokenizer, markers, i, parameters, &mut lark);
                let _ = writeln!(lark, "call{i}: {before} {arguments} {after}");
                continue;
            }
            if let Some(notation) = style.and_then(CallStyle::notation) {
                let arguments = lark_arguments(tokenizer, notation, i, parameters, &mut lark);
                let _ = writeln!(lark, "call{i}: {before} {arguments} {after}");
                continue;
            }
            let number = after_number.map_or(String::new(), |after| format!("/[0-9]{{1,3}}/ {}", text(&after)));
            let id = before_id.map_or(String::new(), |before| {
                let style = &self.dialect.id;
                format!("{} /[0-9A-Za-z]{{{}}}/", text(&(before + &style.prefix)), style.length)
            });
            let _ = writeln!(lark, "call{i}: {before} {number} args{i} {id} {after}");
            let _ = writeln!(lark, "args{i}: %json {}", spaced(parameters.clone()));
        }
        lark
    }
}

impl CallStyle {
    /// The syntax of calls, where they are written as functions.
    fn notation(&self) -> Option<&Notation> {
        matches!(self.forms.first(), Some(Form::Function | Form::Functions)).then_some(&self.function)
    }
}

impl Dialect {
    fn shape(&self) -> Shape {
        let Some(style) = self.call.first() else { return Shape { around: Between::default(), gap: None } };
        let Between { open, close } = style.around.clone();
        let (inner_open, inner_close) =
            (format!("{open}{}{}", style.open, style.pad.open), format!("{}{}{close}", style.pad.close, style.close));
        if matches!(style.forms.first(), Some(Form::List | Form::Keyed | Form::Functions)) {
            let around = Between { open: inner_open + "[", close: format!("]{inner_close}") };
            return Shape { around, gap: Some(", ".into()) };
        }
        if let Some(between) = &style.between {
            return Shape { around: Between { open: inner_open, close: inner_close }, gap: Some(between.clone()) };
        }
        Shape { around: Between { open, close }, gap: Some(style.gap.clone()) }
    }

    /// What is written around the arguments of a call.
    fn frame(&self, name: &str) -> Frame {
        let Some(style) = self.call.first() else {
            let call = self.channels.as_ref().map(|channels| channels.call.clone()).unwrap_or_default();
            return Frame { before: call.open.replace("{name}", name), after: call.close, ..Frame::default() };
        };
        // What stands around all calls is not written around each.
        let (open, close) = match style.between {
            Some(_) => (String::new(), String::new()),
            None => (format!("{}{}", style.open, style.pad.open), format!("{}{}", style.pad.close, style.close)),
        };
        let [name_key, arguments_key] =
            [&style.name, &style.arguments].map(|keys| keys.first().map_or("", String::as_str));
        let before = format!("{{\"{name_key}\": \"{name}\", \"{arguments_key}\": ");
        let before_id = style.id.as_ref().map(|key| format!(", \"{key}\": \""));
        let after = if before_id.is_some() { "\"}" } else { "}" };
        let Notation { before: before_name, open: bracket, close: closing, .. } = &style.function;
        match style.forms.first() {
            Some(Form::Named) => {
                let separator = style.separator.first().map_or("", String::as_str);
                let rest = format!("{separator}{}", style.pad.open);
                match style.head.as_ref().map(super::IdForm::parts) {
                    Some((first, second, third)) => Frame {
                        before: format!("{}{first}{name}{second}", style.open),
                        after_number: Some(third.to_owned() + &rest),
                        after: close,
                        ..Frame::default()
                    },
                    None => Frame { before: format!("{}{name}{rest}", style.open), after: close, ..Frame::default() },
                }
            }
            Some(Form::List) => Frame { before, before_id, after: after.into(), ..Frame::default() },
            Some(Form::Keyed) => Frame { before: format!("{{\"{name}\": "), after: "}".into(), ..Frame::default() },
            Some(Form::Functions) => Frame {
                before: format!("{before_name}{name}{bracket}"),
                after: closing.to_string(),
                ..Frame::default()
            },
            Some(Form::Function) => Frame {
                before: format!("{open}{before_name}{name}{bracket}"),
                after: format!("{closing}{close}"),
                ..Frame::default()
            },
            Some(Form::Parameters) => {
                let markers = style.parameters.as_ref();
                let begin = markers.map_or(String::new(), |markers| markers.begin(name));
                let end = markers.map_or("", |markers| markers.end.as_str());
                Frame { before: open + &begin, after: format!("{end}{close}"), ..Frame::default() }
            }
            _ => Frame { before: open + &before, before_id, after: format!("{after}{close}"), ..Frame::default() },
        }
    }

    /// Calls, each a name, arguments and an id, as they are asked for.
    pub(crate) fn write_calls(&self, calls: &[(&str, &str, &str)]) -> String {
        let shape = self.shape();
        let style = self.call.first();
        let write = |(number, (name, arguments, id)): (usize, &(&str, &str, &str))| {
            let Frame { before, after_number, before_id, after } = self.frame(name);
            let markers = style.and_then(|style| style.parameters.as_ref());
            let notation = style.and_then(CallStyle::notation);
            let arguments = match (markers, notation, serde_json::from_str(arguments)) {
                (Some(markers), _, Ok(Value::Object(arguments))) => markers.write(&arguments),
                (_, Some(notation), Ok(Value::Object(arguments))) => notation.write(&arguments),
                _ => (*arguments).to_owned(),
            };
            let number = after_number.map_or(String::new(), |after| format!("{number}{after}"));
            let id = before_id.map_or(String::new(), |before| format!("{before}{id}"));
            format!("{before}{number}{arguments}{id}{after}")
        };
        let written: Vec<String> = calls.iter().enumerate().map(write).collect();
        format!("{}{}{}", shape.around.open, written.join(shape.gap.as_deref().unwrap_or_default()), shape.around.close)
    }

    /// A grammar in Lark of the reasoning and headers that come before one of these answers, and the answer, after this
    /// prompt.
    pub(crate) fn preface(&self, tokenizer: &Tokenizer, prompt: &str, reasons: bool, answers: &[Answer]) -> String {
        let text = |text: &str| lark_text(tokenizer, text);
        let one_after = |header: &str| Answer::any(answers, header);
        if let Some(channels) = &self.channels {
            let super::Channels { start, channel, message, reasoning, .. } = channels;
            let role = prompt.rsplit_once(start.as_str()).map_or("", |(_, role)| role);
            if role.contains(message.as_str()) || role.contains(channel.as_str()) {
                return format!("start: {}", one_after(""));
            }
            let answer = one_after(&text(&format!("{channel}{}{message}", channels.answer)));
            let (Some(name), Some(end), true) = (reasoning.first(), channels.end.first(), reasons) else {
                return format!("start: {answer}");
            };
            let open = text(&format!("{channel}{name}{message}"));
            let thought = lark_thought(tokenizer, &format!("{end}{start}{role}"));
            return format!("start: ({open} thought)* ({answer})\n{thought}");
        }
        let is_open = self.reasoning.iter().find(|pair| prompt.trim_end().ends_with(pair.open.trim_end()));
        let Some(pair) = is_open.or(self.reasoning.first().filter(|_| reasons)) else {
            return format!("start: {}", one_after(""));
        };
        let start = match is_open {
            Some(_) => format!("thought {AFTER_REASONING}"),
            None => format!("({} thought {AFTER_REASONING})?", text(&pair.open)),
        };
        format!("start: {start} ({})\n{}", one_after(""), lark_thought(tokenizer, &pair.close))
    }
}

impl Notation {
    /// Arguments as a model writes them.
    fn write(&self, arguments: &Map<String, Value>) -> String {
        let one = |(key, value): (&String, &Value)| format!("{key}{}{}", self.is, self.literal(value));
        arguments.iter().map(one).collect::<Vec<_>>().join(self.comma())
    }

    fn comma(&self) -> &'static str {
        if self.is == '=' { ", " } else { "," }
    }

    /// A value: in Python, or with strings and keys as this notation has them.
    fn literal(&self, value: &Value) -> String {
        let is_python = self.quote.is_empty();
        let list = |items: Vec<String>| items.join(if is_python { ", " } else { "," });
        match value {
            Value::Null if is_python => "None".into(),
            Value::Bool(true) if is_python => "True".into(),
            Value::Bool(false) if is_python => "False".into(),
            Value::String(text) if !is_python => format!("{}{text}{}", self.quote, self.quote),
            Value::Array(items) => format!("[{}]", list(items.iter().map(|item| self.literal(item)).collect())),
            Value::Object(fields) => {
                let key = |key: &String| if is_python { Value::from(key.as_str()).to_string() } else { key.clone() };
                let colon = if is_python { ": " } else { ":" };
                let field = |(name, value): (&String, &Value)| format!("{}{colon}{}", key(name), self.literal(value));
                format!("{{{}}}", list(fields.iter().map(field).collect()))
            }
            other => other.to_string(),
        }
    }
}

/// A text in Lark: control tokens by their ids, and all else spelled.
fn lark_text(tokenizer: &Tokenizer, text: &str) -> String {
    let pieces = tokenizer.control_pieces(text).into_iter();
    let pieces: Vec<String> = pieces
        .map(|piece| match piece {
            Ok(id) => format!("<[{id}]>"),
            Err(text) => Value::from(text).to_string(),
        })
        .collect();
    pieces.join(" ")
}

/// A part of a schema, with the definitions that it may refer to.
fn with_definitions(part: &Value, schema: &Value) -> Value {
    let mut part = part.clone();
    for definitions in ["$defs", "definitions"] {
        if let (Value::Object(part), Some(given)) = (&mut part, schema.get(definitions)) {
            part.insert(definitions.into(), given.clone());
        }
    }
    part
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name))
}

/// Arguments of a function in Lark, in the order of the schema, for the tool of this number; their rules are added.
fn lark_arguments(
    tokenizer: &Tokenizer,
    notation: &Notation,
    tool: usize,
    schema: &Value,
    lark: &mut String,
) -> String {
    let text = |text: &str| lark_text(tokenizer, text);
    let Some(properties) = schema["properties"].as_object() else { return String::new() };
    // Those after one that is written, and those that may be the first.
    let (mut rest, mut all) = (String::new(), String::new());
    for (j, (name, part)) in properties.iter().enumerate().rev() {
        let key = text(&format!("{name}{}", notation.is));
        let _ = if Kinds::of(schema, name).is_text() && !notation.quote.is_empty() {
            let until = lark_until(tokenizer, &format!("t{tool}_{j}"), &notation.quote);
            writeln!(lark, "p{tool}_{j}: {key} {} t{tool}_{j}\n{until}", text(&notation.quote))
        } else {
            let part = spaced(with_definitions(part, schema));
            writeln!(lark, "p{tool}_{j}: {key} j{tool}_{j}\nj{tool}_{j}: %json {part}")
        };
        let (argument, next) = (format!("{} p{tool}_{j}", text(notation.comma())), format!("r{tool}_{j}"));
        let first = format!("p{tool}_{j} {rest}");
        let (first, argument) = match (is_required(schema, name), all.is_empty()) {
            (true, _) => (first, argument),
            (false, true) => (format!("({first})?"), format!("({argument})?")),
            (false, false) => (format!("{first} | {all}"), format!("({argument})?")),
        };
        let _ = writeln!(lark, "{next}: {argument} {rest}\na{tool}_{j}: {first}");
        (rest, all) = (next, format!("a{tool}_{j}"));
    }
    all
}

/// Arguments in Lark, for the tool of this number; their rules are added. Texts may be any, if the schema lists none.
fn lark_parameters(tokenizer: &Tokenizer, markers: &Markers, tool: usize, schema: &Value, lark: &mut String) -> String {
    let text = |text: &str| lark_text(tokenizer, text);
    let mut all = Vec::new();
    for (j, (name, part)) in schema["properties"].as_object().into_iter().flatten().enumerate() {
        let close = text(&markers.value.close);
        let rule = format!("p{tool}_{j}");
        let listed = part["enum"].as_array().cloned().or_else(|| Some(vec![part.get("const")?.clone()]));
        let _ = match listed {
            _ if !Kinds::of(schema, name).may_be_text() => {
                let (before, part) = (text(&markers.before(name, false)), spaced(with_definitions(part, schema)));
                writeln!(lark, "{rule}: {before} j{rule} {close}\nj{rule}: %json {part}")
            }
            Some(values) => {
                let write = |value: &Value| text(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                let values: Vec<String> = values.iter().map(write).collect();
                writeln!(lark, "{rule}: {} ({}) {close}", text(&markers.before(name, true)), values.join(" | "))
            }
            None => {
                let until = lark_until(tokenizer, &format!("t{rule}"), &markers.value.close);
                writeln!(lark, "{rule}: {} t{rule}\n{until}", text(&markers.before(name, true)))
            }
        };
        all.push(if is_required(schema, name) { rule } else { format!("{rule}?") });
    }
    all.join(" ")
}

/// A schema whose JSON is spaced as templates space it.
fn spaced(mut schema: Value) -> Value {
    if let Value::Object(schema) = &mut schema {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        schema.insert("x-guidance".into(), style);
    }
    schema
}

/// A rule `thought` in Lark: any text up to the first `close`.
fn lark_thought(tokenizer: &Tokenizer, close: &str) -> String {
    lark_until(tokenizer, "thought", close)
}

/// A rule in Lark: any text up to the first `close`.
fn lark_until(tokenizer: &Tokenizer, rule: &str, close: &str) -> String {
    if tokenizer.control_pieces(close).iter().any(Result::is_ok) {
        return format!("{rule}: /(?s:.+)/? {}", lark_text(tokenizer, close));
    }
    let close: String = close.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c))).collect();
    format!("{rule}[lazy]: /(?s:.*){close}/")
}
