//! Dialects: how models write tool calls and reasoning.
//!
//! A [`Dialect`] is a TOML file in `dialects/`: the markers around a call, the form between them, and the markers
//! around reasoning. A model's dialect is detected from its chat template. A [`Parser`] parses an answer while it is
//! generated.

mod call;
pub(crate) mod history;
mod json;
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

/// The built-in dialects, in the order in which they are detected.
const BUILT_IN: [(&str, &str); 14] = [
    ("harmony", include_str!("../../dialects/harmony.toml")),
    ("deepseek", include_str!("../../dialects/deepseek.toml")),
    ("deepseek-plain", include_str!("../../dialects/deepseek-plain.toml")),
    ("mistral-args", include_str!("../../dialects/mistral-args.toml")),
    ("mistral", include_str!("../../dialects/mistral.toml")),
    ("minimax", include_str!("../../dialects/minimax.toml")),
    ("glm", include_str!("../../dialects/glm.toml")),
    ("seed", include_str!("../../dialects/seed.toml")),
    ("qwen-coder", include_str!("../../dialects/qwen-coder.toml")),
    ("hermes", include_str!("../../dialects/hermes.toml")),
    ("tool-list", include_str!("../../dialects/tool-list.toml")),
    ("llama3", include_str!("../../dialects/llama3.toml")),
    ("gemma", include_str!("../../dialects/gemma.toml")),
    ("generic", include_str!("../../dialects/generic.toml")),
];

static PARSED: LazyLock<Vec<Arc<Dialect>>> = LazyLock::new(|| {
    let parsed = BUILT_IN.iter().map(|(name, source)| Dialect::parse(name, source).map(Arc::new));
    parsed.collect::<Result<_, _>>().expect("the built-in dialects are tested")
});

/// How a family of models writes tool calls and reasoning.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialect {
    /// What it is called.
    #[serde(skip)]
    name: String,
    /// Signs in a chat template, any of which identifies this dialect.
    #[serde(default)]
    detect: Vec<Signs>,
    /// What reasoning stands between.
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
    /// The marker in front. Where it is empty, a call is JSON at the beginning of the answer or after another call.
    #[serde(default)]
    open: String,
    /// The marker behind, which may be left out at the end of the answer.
    #[serde(default)]
    close: String,
    /// What stands between them.
    forms: Vec<Form>,
    /// Between name and arguments, for [`Form::Named`].
    #[serde(default)]
    separator: String,
    /// Between name and id, for [`Form::Named`], where calls have ids.
    #[serde(default)]
    id_separator: String,
    /// The keys under which the name may stand; the first is how it is asked for.
    #[serde(default = "name_keys")]
    name: Vec<String>,
    /// The keys under which the arguments may stand.
    #[serde(default = "argument_keys")]
    arguments: Vec<String>,
    /// The key under which the id stands, where models write one.
    id: Option<String>,
    /// The markers are also ordinary text: it is a call only if it names a tool that there is and its arguments.
    #[serde(default)]
    ambiguous: bool,
    /// The space that is written inside the markers.
    #[serde(default)]
    pad: Between,
    /// What is written between the text before and a call, and between calls.
    #[serde(default)]
    gap: String,
    /// What stands around all calls of an answer.
    #[serde(default)]
    around: Between,
    /// What a call is written with, for [`Form::Parameters`].
    parameters: Option<Markers>,
}

/// What stands between the markers of a call.
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
}

/// An answer as a sequence of messages, each with a header that says whom it is for.
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
    /// Comes before the recipient, who makes a message a call.
    recipient: String,
    /// Recipients that are no tools.
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
#[serde(deny_unknown_fields)]
struct IdStyle {
    prefix: String,
    length: usize,
}

/// What is written for templates that do not know tools.
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
        Self { prefix: "call_".into(), length: 24 }
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
        for style in &self.call {
            if style.forms.contains(&Form::Named) == style.separator.is_empty() {
                return Some("call.separator belongs to the form named".into());
            }
            if style.forms.contains(&Form::Parameters) != style.parameters.is_some() {
                return Some("call.parameters belong to the form parameters".into());
            }
            if let Some(fault) = style.parameters.as_ref().and_then(Markers::fault) {
                return Some(fault);
            }
            if style.open.is_empty() && (style.forms.contains(&Form::Named) || !style.ambiguous) {
                return Some("a call without call.open is an ambiguous object or list".into());
            }
            if style.forms.is_empty() || style.name.is_empty() || style.arguments.is_empty() {
                return Some("call.forms, call.name and call.arguments each need an entry".into());
            }
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
        let shows = |signs: &Signs| {
            signs.all.iter().all(|sign| source.contains(sign)) && !signs.none.iter().any(|sign| source.contains(sign))
        };
        let found = PARSED.iter().find(|dialect| dialect.detect.iter().any(shows));
        found.or(PARSED.last()).cloned().expect("there are built-in dialects")
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
            [&style.open, &style.close, &style.separator, &style.id_separator, open, close]
                .into_iter()
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

    /// An id of a call, in this dialect's form, by a seed and the call's index.
    fn made_up_id(&self, seed: u64, index: u64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_dialects_are_valid() {
        for (name, source) in BUILT_IN {
            Dialect::parse(name, source).unwrap();
            assert_eq!(Dialect::named(name).unwrap().name(), name);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let fault = |source: &str| Dialect::parse("mine", source).unwrap_err().to_string();
        assert!(fault("colour = 1").contains("colour"));
        assert!(fault("").contains("channels or a call"));
        assert!(fault("[[call]]\nopen = 'x'\nforms = ['named']").contains("separator"));
        assert!(fault("[[call]]\nforms = ['object']").contains("ambiguous"));
        assert_eq!(
            Dialect::named("klingon").unwrap_err().to_string(),
            "there is no dialect klingon; there are harmony, deepseek, deepseek-plain, mistral-args, mistral, minimax, glm, seed, qwen-coder, hermes, tool-list, llama3, gemma, generic"
        );
    }
}
