//! Dialects: how models write tool calls and reasoning.
//!
//! A [`Dialect`] is a TOML file in `dialects/`: the markers around a call, the form between them, and the markers
//! around reasoning. A model's dialect is detected from its chat template. A [`Parser`] parses an answer while it is
//! generated.

mod call;
pub(crate) mod history;
mod json;
mod object;
mod parameters;
mod parser;
mod schema;
mod write;

use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use self::parameters::Markers;
pub use self::parser::{Event, Parser, ParserOptions};
pub use self::write::CallGrammar;
use crate::{ChatTemplate, Tokenizer};

/// The files in `dialects/`, by name.
const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/dialects.rs"));

/// The dialect of templates that no other one is detected in.
const GENERIC: &str = "generic";

/// The built-in dialects, in the order in which they are detected.
static PARSED: LazyLock<Vec<Arc<Dialect>>> = LazyLock::new(|| {
    let parsed = BUILT_IN.iter().map(|(name, source)| Dialect::parse(name, source).map(Arc::new));
    let mut parsed = parsed.collect::<Result<Vec<_>, _>>().expect("the built-in dialects are tested");
    parsed.sort_by_key(|dialect| dialect.rank);
    parsed
});

/// How a family of models writes tool calls and reasoning.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialect {
    /// Its name.
    #[serde(skip)]
    name: String,
    /// Signs in a chat template, any of which identifies this dialect.
    #[serde(default)]
    detect: Vec<Signs>,
    /// Dialects of a lower rank are detected first: signs of a high one are also found in templates of others.
    #[serde(default)]
    rank: u8,
    /// The markers around reasoning.
    #[serde(default)]
    reasoning: Vec<Between>,
    /// The ways in which calls are written. The first one is used for required calls.
    #[serde(default)]
    call: Vec<CallStyle>,
    /// The format of an answer that consists of messages; none if it is one text.
    channels: Option<Channels>,
    /// The form of call ids.
    #[serde(default)]
    id: IdStyle,
    /// How tools are described if the template does not support them.
    #[serde(default)]
    prompt: PromptStyle,
}

/// Texts that a template contains, and texts that it does not.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signs {
    all: Vec<String>,
    #[serde(default)]
    none: Vec<String>,
}

/// A pair of markers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Between {
    open: String,
    close: String,
}

/// How one or several calls are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallStyle {
    /// The marker in front. If it is empty, a call stands at the beginning of the answer, of a line, or after another call.
    #[serde(default)]
    open: String,
    /// The marker behind, which may be left out at the end of the answer.
    #[serde(default)]
    close: String,
    /// Other markers that models write instead.
    #[serde(default)]
    closes: Vec<String>,
    /// What is between the markers.
    forms: Vec<Form>,
    /// Between name and arguments, for [`Form::Named`]; the first is the one that is written.
    #[serde(default)]
    separator: Vec<String>,
    /// The form in which the name is written, which is also the id, for [`Form::Named`].
    head: Option<IdForm>,
    /// The syntax of function calls.
    #[serde(default)]
    function: Notation,
    /// Between name and id, for [`Form::Named`], where calls have ids.
    #[serde(default)]
    id_separator: String,
    /// The keys that the name may have; the first is the one that is written.
    #[serde(default = "name_keys")]
    name: Vec<String>,
    /// The keys that the arguments may have; the first is the one that is written.
    #[serde(default = "argument_keys")]
    arguments: Vec<String>,
    /// The key of the id, if models write one.
    id: Option<String>,
    /// The markers are also ordinary text: a call has to name an existing tool and arguments.
    #[serde(default)]
    ambiguous: bool,
    /// The space that is written inside the markers.
    #[serde(default)]
    pad: Between,
    /// What is written between the text before and a call, and between calls.
    #[serde(default)]
    gap: String,
    /// What is written between several calls in one pair of markers. Without it, each call has its own markers.
    between: Option<String>,
    /// The markers around all calls of an answer.
    #[serde(default)]
    around: Between,
    /// The markers of [`Form::Parameters`].
    parameters: Option<Markers>,
}

/// What is between the markers of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    /// A JSON object with name and arguments.
    Object,
    /// A JSON array of such objects.
    List,
    /// The name as plain text, a separator, and the arguments as a JSON object.
    Named,
    /// A marker around the name of each argument, and around its value.
    Parameters,
    /// A JSON array of objects, each with one key, the name, and the arguments as its value.
    Keyed,
    /// A function call as in Python: `f(a="x", b=1)`. Several may follow each other.
    Function,
    /// A list of function calls: `[f(a="x", b=1), g()]`.
    Functions,
}

/// How function calls are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Notation {
    /// Comes before the name.
    before: String,
    /// Opens the arguments.
    open: char,
    /// Between an argument's name and value.
    is: char,
    /// Closes the arguments.
    close: char,
    /// Around strings, besides the quotes of Python.
    quote: String,
}

impl Default for Notation {
    fn default() -> Self {
        Self { before: String::new(), open: '(', is: '=', close: ')', quote: String::new() }
    }
}

/// Ids that say which tool is called, and a number: a text with `{name}` and, after it, `{index}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
struct IdForm(String);

impl IdForm {
    /// The form itself.
    fn text(&self) -> &str {
        &self.0
    }

    /// What comes before the name, between name and number, and after that.
    fn parts(&self) -> (&str, &str, &str) {
        let (before, rest) = self.0.split_once("{name}").unwrap_or_default();
        let (between, after) = rest.split_once("{index}").unwrap_or_default();
        (before, between, after)
    }

    fn is_valid(&self) -> bool {
        !self.parts().1.is_empty()
    }

    fn id(&self, name: &str, index: u64) -> String {
        self.0.replace("{index}", &index.to_string()).replace("{name}", name)
    }
}

/// An answer as a sequence of messages, each with a header that names its channel and recipient.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channels {
    /// Begins a header.
    start: String,
    /// Comes before the channel's name; begins the header too where the prompt ended with `start` and a role.
    channel: String,
    /// Comes before what the arguments are written in.
    constrain: String,
    /// Ends a header.
    message: String,
    /// End a message.
    end: Vec<String>,
    /// The channels of reasoning; all others are the answer.
    reasoning: Vec<String>,
    /// Comes before the recipient; a message with a recipient is a call.
    recipient: String,
    /// Recipients that are not tools.
    people: Vec<String>,
    /// The namespace of tools, left out of their names.
    namespace: String,
    /// The channel of the answer.
    answer: String,
    /// What is written before and after the arguments of a call of `{name}`, where a role's header has begun.
    call: Between,
}

/// The form of a call's id.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct IdStyle {
    /// What made-up ids begin with. If it is empty, templates refuse ids that are not `length` letters and digits.
    prefix: String,
    length: usize,
    /// Ids that name the tool, instead; templates take no others.
    form: Option<IdForm>,
}

impl IdStyle {
    /// Whether templates take this id of a call of this tool.
    fn accepts(&self, id: &str, name: &str) -> bool {
        match &self.form {
            Some(form) => {
                let (before, between, after) = form.parts();
                let number = id.strip_prefix(&format!("{before}{name}{between}")).and_then(|id| id.strip_suffix(after));
                number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
            }
            None if self.prefix.is_empty() => {
                id.len() == self.length && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
            }
            None => true,
        }
    }
}

/// What is written for templates without support for tools.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptStyle {
    /// Comes after the system message, with the tools for `{tools}` and an example for `{call}`.
    tools: String,
    /// What the user says in place of a tool, with its result for `{content}`.
    result: String,
}

impl Default for PromptStyle {
    fn default() -> Self {
        let tools = "You may call these functions:\n{tools}\n\nTo call one, write its name and arguments in this form, and \
            nothing after it:\n{call}";
        Self { tools: tools.into(), result: "<tool_response>\n{content}\n</tool_response>".into() }
    }
}

impl Default for IdStyle {
    fn default() -> Self {
        Self { prefix: "call_".into(), length: 24, form: None }
    }
}

fn name_keys() -> Vec<String> {
    vec!["name".into()]
}

fn argument_keys() -> Vec<String> {
    vec!["arguments".into(), "parameters".into()]
}

/// Why a dialect cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum DialectError {
    /// The file does not describe a dialect.
    #[error("dialect {name}: {reason}")]
    Parse {
        /// What it is called.
        name: String,
        /// Where and what is wrong.
        reason: String,
    },
    /// There is no such dialect.
    #[error("there is no dialect {name}; there are {}", Dialect::names().collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

impl Dialect {
    /// Reads a dialect from TOML.
    ///
    /// # Errors
    /// When a field is unknown, missing or inconsistent.
    pub fn parse(name: &str, source: &str) -> Result<Dialect, DialectError> {
        let failed = |reason: String| DialectError::Parse { name: name.into(), reason };
        let mut dialect: Dialect = toml::from_str(source).map_err(|error| failed(error.to_string()))?;
        name.clone_into(&mut dialect.name);
        match dialect.fault() {
            Some(fault) => Err(failed(fault)),
            None => Ok(dialect),
        }
    }

    /// What in the file makes no sense.
    fn fault(&self) -> Option<String> {
        if let Some(fault) = self.call.iter().find_map(CallStyle::fault) {
            return Some(fault);
        }
        let empty = |pair: &Between| pair.open.is_empty() || pair.close.is_empty();
        if self.reasoning.iter().any(empty) {
            return Some("reasoning needs open and close".into());
        }
        if let Some(channels) = &self.channels {
            let Channels { start, channel, constrain, message, end, recipient, .. } = channels;
            let texts = [start, channel, constrain, message, recipient].into_iter().chain(end);
            if end.is_empty() || { texts }.any(String::is_empty) || !self.call.is_empty() || !self.reasoning.is_empty()
            {
                return Some("channels need all their markers, and no call or reasoning beside them".into());
            }
        } else if self.call.is_empty() {
            return Some("it needs channels or a call".into());
        }
        if self.id.length == 0 || self.id.length > 64 {
            return Some("id.length is from 1 to 64".into());
        }
        if self.id.form.as_ref().is_some_and(|form| !form.is_valid()) {
            return Some("id.form needs {name}, a text and {index}".into());
        }
        None
    }

    /// The built-in dialect of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Arc<Dialect>, DialectError> {
        let found = PARSED.iter().find(|dialect| dialect.name == name).cloned();
        found.ok_or_else(|| DialectError::Unknown { name: name.into() })
    }

    /// The names of the built-in dialects.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The built-in dialect of a model with this chat template: the first whose signs are in it, or the generic one.
    pub fn of_template(source: &str) -> Arc<Dialect> {
        let found = PARSED.iter().find(|dialect| dialect.is_shown_by(source)).cloned();
        found.unwrap_or_else(|| Self::named(GENERIC).expect("it is built in"))
    }

    /// Whether a template has the signs of this dialect.
    fn is_shown_by(&self, source: &str) -> bool {
        self.detect.iter().any(|signs| {
            signs.all.iter().all(|sign| source.contains(sign)) && !signs.none.iter().any(|sign| source.contains(sign))
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control tokens of `tokenizer` that are markers of this dialect: their text has to reach the [`Parser`], so a
    /// [`Detokenizer`](crate::Detokenizer) that skips the others has to show them.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let pairs = self.reasoning.iter().flat_map(|pair| [&pair.open, &pair.close]);
        let calls = self.call.iter().flat_map(|style| {
            let Between { open, close } = &style.around;
            let parameters = style.parameters.iter().flat_map(Markers::texts);
            let notation = [&style.function.before, &style.function.quote];
            [&style.open, &style.close, &style.id_separator, open, close]
                .into_iter()
                .chain(&style.closes)
                .chain(&style.separator)
                .chain(notation)
                .chain(parameters)
        });
        let channels = self
            .channels
            .iter()
            .flat_map(|c| [&c.start, &c.channel, &c.constrain, &c.message].into_iter().chain(&c.end));
        let texts: String = pairs.chain(calls).chain(channels).flat_map(|text| [text.as_str(), "\n"]).collect();
        let mut ids = tokenizer.control_tokens(&texts);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What reasoning stands between.
    pub(crate) fn reasoning_markers(&self) -> impl Iterator<Item = &str> {
        self.reasoning.iter().flat_map(|pair| [pair.open.as_str(), pair.close.as_str()])
    }

    /// Whether models with this template reason before they answer.
    pub fn reasons(&self, template: &ChatTemplate) -> bool {
        let in_channels = self.channels.as_ref().is_some_and(|channels| !channels.reasoning.is_empty());
        in_channels || self.reasoning_markers().any(|marker| template.source().contains(marker))
    }

    /// An id of a call of a tool, in this dialect's form, by a seed and the call's index.
    fn made_up_id(&self, seed: u64, index: u64, name: &str) -> String {
        if let Some(form) = &self.id.form {
            return form.id(name, index);
        }
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut id = self.id.prefix.clone();
        for place in 0..self.id.length as u64 {
            // SplitMix64 (Steele et al. 2014).
            let mut x = seed.wrapping_add((index << 8 | place).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            id.push(char::from(DIGITS[((x ^ (x >> 31)) % 62) as usize]));
        }
        id
    }

    /// A parser for an answer.
    pub fn parser(self: &Arc<Self>, options: ParserOptions<'_>) -> Parser {
        Parser::new(Arc::clone(self), options)
    }
}

impl CallStyle {
    /// What in the file makes no sense.
    fn fault(&self) -> Option<String> {
        let has = |form: Form| self.forms.contains(&form);
        if has(Form::Named) == self.separator.iter().all(String::is_empty) {
            return Some("call.separator belongs to the form named".into());
        }
        if has(Form::Parameters) != self.parameters.is_some() {
            return Some("call.parameters belong to the form parameters".into());
        }
        if let Some(fault) = self.parameters.as_ref().and_then(Markers::fault) {
            return Some(fault);
        }
        let is_bare = |form: &Form| matches!(form, Form::Object | Form::List | Form::Named | Form::Functions);
        if self.open.is_empty() && !(self.ambiguous && self.forms.iter().all(is_bare)) {
            return Some("a call without call.open is ambiguous, and an object, a list, named or functions".into());
        }
        if has(Form::Named) && self.has_functions() {
            return Some("a call is either named or a function".into());
        }
        if self.head.as_ref().is_some_and(|head| !head.is_valid() || !has(Form::Named)) {
            return Some("call.head belongs to the form named, and needs {name}, a text and {index}".into());
        }
        let Notation { quote, open, is, close, .. } = &self.function;
        let quote_begins = quote.chars().next();
        if quote.chars().skip(1).any(|c| Some(c) == quote_begins) {
            return Some("the first character of call.function.quote comes only once in it".into());
        }
        let is_sign = |c: &char| c.is_ascii_punctuation() && !call::is_of_name(*c) && !matches!(c, ',' | '"' | '\'');
        if ![open, is, close].into_iter().all(is_sign) {
            return Some("call.function.open, is and close are punctuation that no name has".into());
        }
        if self.forms.is_empty() || self.name.is_empty() || self.arguments.is_empty() {
            return Some("call.forms, call.name and call.arguments each need an entry".into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_dialects_are_valid() {
        for (name, source) in BUILT_IN {
            Dialect::parse(name, source).unwrap();
            assert_eq!(Dialect::named(name).unwrap().name(), *name);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let fault = |source: &str| Dialect::parse("mine", source).unwrap_err().to_string();
        assert!(fault("colour = 1").contains("colour"));
        assert!(fault("").contains("channels or a call"));
        assert!(fault("[[call]]\nopen = 'x'\nforms = ['named']").contains("separator"));
        assert!(fault("[[call]]\nforms = ['object']").contains("ambiguous"));
        let named = "[[call]]\nopen = 'x'\nseparator = ['y']\nforms = ['named']\n";
        assert!(fault(&format!("{named}head = '{{name}}'")).contains("call.head"));
        assert!(fault(&format!("id.form = '{{index}}'\n{named}")).contains("id.form"));
        let function = "[[call]]\nopen = 'x'\nforms = ['function']\n";
        assert!(fault(&format!("{function}function.quote = '||'")).contains("only once"));
        assert!(fault(&format!("{function}function.open = 'a'")).contains("punctuation"));
        let unknown = Dialect::named("klingon").unwrap_err().to_string();
        assert!(
            unknown.starts_with("there is no dialect klingon; there are ") && unknown.contains("hermes, "),
            "{unknown}"
        );
    }

    /// What is detected does not depend on the order of dialects of one rank.
    #[test]
    fn signs_of_one_rank_exclude_each_other() {
        let examples = [
            "<tool_call> \"arguments <arg_key> <arg_value>",
            "<tool_call> \"arguments <function= <parameter=",
            "<seed:tool_call> <function= <parameter=",
            "<｜tool▁call▁begin｜> ```json",
            "<｜tool▁call▁begin｜>",
            "[TOOL_CALLS] [ARGS]",
            "[TOOL_CALLS]",
        ];
        for source in examples {
            let mut ranks: Vec<u8> =
                PARSED.iter().filter(|dialect| dialect.is_shown_by(source)).map(|d| d.rank).collect();
            let count = ranks.len();
            ranks.dedup();
            assert!(count > 0 && ranks.len() == count, "{source}");
        }
    }
}
