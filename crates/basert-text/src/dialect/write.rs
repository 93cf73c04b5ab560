//! Writing calls in a dialect, as text and as a grammar.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use super::parameters::Markers;
use super::schema::Kinds;
use super::{Between, Dialect, Form};
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
        let markers = self.dialect.call.first().and_then(|style| style.parameters.as_ref());
        for (i, (name, parameters)) in self.tools.iter().enumerate() {
            let (before, id, after) = self.dialect.frame(name);
            if let Some(markers) = markers {
                let arguments = lark_parameters(tokenizer, markers, i, parameters, &mut lark);
                let _ = writeln!(lark, "call{i}: {} {arguments} {}", text(&before), text(&after));
                continue;
            }
            let id = id.map_or(String::new(), |before| {
                let style = &self.dialect.id;
                format!("{} /[0-9A-Za-z]{{{}}}/", text(&(before + &style.prefix)), style.length)
            });
            let _ = writeln!(lark, "call{i}: {} args{i} {id} {}", text(&before), text(&after));
            let _ = writeln!(lark, "args{i}: %json {}", spaced(parameters.clone()));
        }
        lark
    }
}

impl Dialect {
    fn shape(&self) -> Shape {
        let Some(style) = self.call.first() else { return Shape { around: Between::default(), gap: None } };
        let Between { open, close } = style.around.clone();
        if style.forms.first() == Some(&Form::List) {
            let open = format!("{open}{}{}[", style.open, style.pad.open);
            let close = format!("]{}{}{close}", style.pad.close, style.close);
            return Shape { around: Between { open, close }, gap: Some(", ".into()) };
        }
        Shape { around: Between { open, close }, gap: Some(style.gap.clone()) }
    }

    /// What is written before a call's arguments, before its id, if it has one, and at its end.
    fn frame(&self, name: &str) -> (String, Option<String>, String) {
        let Some(style) = self.call.first() else {
            let call = self.channels.as_ref().map(|channels| channels.call.clone()).unwrap_or_default();
            return (call.open.replace("{name}", name), None, call.close);
        };
        let (open, close) =
            (format!("{}{}", style.open, style.pad.open), format!("{}{}", style.pad.close, style.close));
        let [name_key, arguments_key] =
            [&style.name, &style.arguments].map(|keys| keys.first().map_or("", String::as_str));
        let before = format!("{{\"{name_key}\": \"{name}\", \"{arguments_key}\": ");
        let id = style.id.as_ref().map(|key| format!(", \"{key}\": \""));
        let after = if id.is_some() { "\"}" } else { "}" };
        match style.forms.first() {
            Some(Form::Named) => (format!("{}{name}{}{}", style.open, style.separator, style.pad.open), None, close),
            Some(Form::List) => (before, id, after.into()),
            Some(Form::Parameters) => {
                let markers = style.parameters.as_ref();
                let begin = markers.map_or(String::new(), |markers| markers.begin(name));
                let end = markers.map_or("", |markers| markers.end.as_str());
                (open + &begin, None, format!("{end}{close}"))
            }
            _ => (open + &before, id, format!("{after}{close}")),
        }
    }

    /// Calls, each a name, arguments and an id, as they are asked for.
    pub(crate) fn write_calls(&self, calls: &[(&str, &str, &str)]) -> String {
        let shape = self.shape();
        let written: Vec<String> = calls
            .iter()
            .map(|(name, arguments, id)| {
                let (before, id_before, after) = self.frame(name);
                let markers = self.call.first().and_then(|style| style.parameters.as_ref());
                let arguments = match (markers, serde_json::from_str(arguments)) {
                    (Some(markers), Ok(Value::Object(arguments))) => markers.write(&arguments),
                    _ => (*arguments).to_owned(),
                };
                let id = id_before.map_or(String::new(), |before| format!("{before}{id}"));
                format!("{before}{arguments}{id}{after}")
            })
            .collect();
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
        let is_open = self.reasoning.iter().find(|pair| prompt.trim_end().ends_with(&pair.open));
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

/// Arguments in Lark, for the tool of this number; their rules are added. Texts may be any, if the schema lists none.
fn lark_parameters(tokenizer: &Tokenizer, markers: &Markers, tool: usize, schema: &Value, lark: &mut String) -> String {
    let text = |text: &str| lark_text(tokenizer, text);
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let mut all = Vec::new();
    for (j, (name, part)) in schema["properties"].as_object().into_iter().flatten().enumerate() {
        let close = text(&markers.value.close);
        let rule = format!("p{tool}_{j}");
        let listed = part["enum"].as_array().cloned().or_else(|| Some(vec![part.get("const")?.clone()]));
        let _ = match listed {
            _ if !Kinds::of(schema, name).may_be_text() => {
                let mut part = part.clone();
                for definitions in ["$defs", "definitions"] {
                    if let (Value::Object(part), Some(given)) = (&mut part, schema.get(definitions)) {
                        part.insert(definitions.into(), given.clone());
                    }
                }
                writeln!(
                    lark,
                    "{rule}: {} j{rule} {close}\nj{rule}: %json {}",
                    text(&markers.before(name)),
                    spaced(part)
                )
            }
            Some(values) => {
                let write = |value: &Value| text(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                let values: Vec<String> = values.iter().map(write).collect();
                writeln!(lark, "{rule}: {} ({}) {close}", text(&markers.before(name)), values.join(" | "))
            }
            None => {
                let until = lark_until(tokenizer, &format!("t{rule}"), &markers.value.close);
                writeln!(lark, "{rule}: {} t{rule}\n{until}", text(&markers.before(name)))
            }
        };
        all.push(if required(name) { rule } else { format!("{rule}?") });
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
