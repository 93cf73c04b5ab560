//! From messages to the tokens of a prompt.

use std::sync::Arc;

use basert_engine::EngineError;
use basert_text::{
    CallGrammar, Constraint, EncodeOptions, Ending, FillIn, Grammar, GrammarError, TemplateError, relaxed,
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::content::{Content, Unread, without_attribution};
use super::format::{self, Format};
use super::tools::{Choice, Tools};
use crate::bounds;
use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};
use crate::model::{ChatAnswer, Model};
use crate::work::{self, Wanted};

/// A message of a chat, as OpenAI's API has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Option<Content>,
    /// Who says it; the models' templates know no names.
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    /// What the model thought before it answered, by the names that servers have for it.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    thinking: Option<String>,
    /// Why the model did not answer.
    refusal: Option<String>,
    /// Tools that the model called.
    #[serde(default)]
    tool_calls: Vec<Value>,
    /// The one that it called, as it was before there were several.
    function_call: Option<Value>,
    /// The call that a tool's message answers.
    tool_call_id: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    id: Option<String>,
    #[serde(rename = "type")]
    _kind: Option<IgnoredAny>,
    function: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// A JSON object, as text or as it is.
    #[serde(default)]
    arguments: Value,
}

/// The messages as templates want them, but for ids that are left out.
pub fn messages(messages: Vec<Value>, warnings: &Warnings) -> Result<Vec<Value>, ApiError> {
    // What cannot be read of the message that is to be answered is refused.
    let last_of_user = messages.iter().rposition(|message| message["role"] == "user");
    let read = messages.into_iter().enumerate().map(|(index, message)| {
        let unread = if last_of_user == Some(index) { Unread::Refused } else { Unread::Noted(warnings) };
        read(message, &format!("messages[{index}]"), unread, warnings)
    });
    read.collect()
}

fn read(message: Value, at: &str, unread: Unread<'_>, warnings: &Warnings) -> Result<Value, ApiError> {
    let mut message: Message = fields::part(message, at, Place::Message, warnings)?;
    message.tool_calls.extend(message.function_call.take().map(|function| json!({ "function": function })));
    let path = |field: &str| format!("{at}.{field}");
    let role = match message.role.as_str() {
        role @ ("system" | "user" | "assistant" | "tool") => role,
        "developer" => "system",
        // As it was before there were tools.
        "function" => "tool",
        role => {
            let message = format!("'{role}' is not one of system, developer, user, assistant and tool");
            return Err(ApiError::field(path("role"), message));
        }
    };
    if !message.tool_calls.is_empty() && role != "assistant" {
        return Err(ApiError::field(path("tool_calls"), "only the assistant calls tools"));
    }
    let answered = message.tool_call_id.filter(|id| !id.is_empty());
    if answered.is_some() && role != "tool" {
        return Err(ApiError::field(path("tool_call_id"), "only a message of role tool answers a call"));
    }
    let mut content = match (message.content, message.refusal) {
        (Some(content), _) => content.text(&path("content"), unread)?,
        (None, Some(refusal)) if role == "assistant" => refusal,
        (None, _) if matches!(role, "assistant" | "tool") => String::new(),
        _ => return Err(ApiError::field(path("content"), "a message needs a content")),
    };
    if role == "system" {
        content = without_attribution(&content).to_owned();
    }
    let mut said = json!({ "role": role, "content": content });
    if let Some(id) = answered {
        said["tool_call_id"] = id.into();
    }
    let calls = message.tool_calls.into_iter().enumerate();
    let calls = calls.map(|(i, call)| self::call(call, &format!("{at}.tool_calls[{i}]"), warnings));
    let calls = calls.collect::<Result<Vec<Value>, _>>()?;
    if !calls.is_empty() {
        said["tool_calls"] = calls.into();
    }
    let thoughts = [message.reasoning_content, message.reasoning, message.thinking];
    let thought = thoughts.into_iter().flatten().find(|thought| !thought.is_empty());
    if let Some(thought) = thought.filter(|_| role == "assistant") {
        said["reasoning_content"] = thought.into();
    }
    Ok(said)
}

fn call(call: Value, at: &str, warnings: &Warnings) -> Result<Value, ApiError> {
    let Call { id, function, .. } = fields::part(call, at, Place::Call, warnings)?;
    let CalledFunction { name, arguments } = fields::part(function, &format!("{at}.function"), Place::Call, warnings)?;
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
}

/// A conversation to be continued.
#[derive(Debug, Default)]
pub struct Chat {
    pub messages: Vec<Value>,
    pub tools: Tools,
    pub format: Format,
    pub variables: Map<String, Value>,
    pub warnings: Warnings,
    pub ending: Ending,
}

/// How a prompt ends, by the fields of that name.
pub fn ending(continue_final_message: Option<bool>, add_generation_prompt: Option<bool>) -> Result<Ending, ApiError> {
    match (continue_final_message, add_generation_prompt) {
        (Some(true), Some(true)) => {
            let message = "the last message is continued, or followed by an answer; add_generation_prompt says both";
            Err(ApiError::field("continue_final_message", message))
        }
        (Some(true), _) => Ok(Ending::Continue),
        (_, Some(false)) => Ok(Ending::Nothing),
        (Some(false), _) => Ok(Ending::Answer),
        (None, _) => Ok(Ending::Auto),
    }
}

/// A prompt as the model gets it.
#[derive(Debug, Default)]
pub struct Rendered {
    pub tokens: Vec<u32>,
    /// How what follows is read.
    pub answer: ChatAnswer,
    /// What it has to be.
    pub constraint: Option<Constraint>,
}

impl Chat {
    /// With messages as templates want them, which this field of a request says.
    pub fn new(field: &str, messages: Vec<Value>, warnings: &Warnings) -> Result<Chat, ApiError> {
        bounds::messages(field, &messages)?;
        Ok(Chat { messages, warnings: warnings.clone(), ..Chat::default() })
    }

    /// The prompt, up to where the answer begins or goes on. That may take a while, and does so elsewhere.
    pub async fn render(self, model: Arc<Model>) -> Result<Rendered, ApiError> {
        let is_free = !self.format.is_asked() && matches!(self.tools.choice, Choice::Auto | Choice::None);
        let render = move |wanted: &Wanted| {
            let Some(template) = model.chat_template() else {
                let message = format!("'{}' has no chat template; it completes text at /v1/completions", model.name);
                return Err(ApiError::bad(message));
            };
            let tools = self.tools.for_template();
            let chat = basert_text::Chat {
                messages: &self.messages,
                tools: &tools,
                variables: Some(&self.variables),
                ending: self.ending,
                ..basert_text::Chat::default()
            };
            let prompt = model.dialect().prompt(template, model.tokenizer(), &chat);
            let prompt = prompt.map_err(|error| match error {
                TemplateError::Request { field, found, expected } => {
                    ApiError::field(field, format!("{found}; expected {expected}"))
                }
                error => ApiError::field("messages", error),
            })?;
            refuse_long(wanted, &model, &prompt.text)?;
            let tokens = prompt.tokens(model.tokenizer()).map_err(|error| ApiError::bad(error.to_string()))?;
            let text = prompt.text;
            let constraint = self.constraint(&model, &tools, &text)?;
            let one_call = !self.tools.parallel;
            Ok(Rendered { tokens, answer: ChatAnswer { prompt: text, tools, one_call }, constraint })
        };
        if is_free { work::run(render).await } else { work::run_long(render).await }
    }
}

impl Chat {
    /// What the answer has to be, by its format or by the tools that it has to call.
    fn constraint(&self, model: &Model, tools: &[Value], prompt: &str) -> Result<Option<Constraint>, ApiError> {
        let named = match &self.tools.choice {
            Choice::Named(name) => Some(Some(name.as_str())),
            Choice::Required => Some(None),
            Choice::Auto | Choice::None => None,
        };
        let calls = |named| {
            let tools: Vec<Value> = tools.iter().map(|tool| self.relaxed_tool(tool.clone())).collect();
            CallGrammar::new(model.dialect().clone(), &tools, named, self.tools.parallel)
        };
        let grammar = match (named, self.format.grammar(&self.warnings)) {
            (None, None) => return Ok(None),
            (None, Some(format)) if tools.is_empty() => Ok(format),
            (None, Some(format)) => calls(None).map(|calls| Grammar::CallsOr(calls, Box::new(format))),
            // Of an answer that only calls, nothing is text that could have a format.
            (Some(named), _) => calls(named).map(Grammar::Calls),
        };
        let asked = self.variables.get("enable_thinking").and_then(Value::as_bool);
        let reasons = model.reasons() && asked.unwrap_or(true);
        let constraint = grammar.and_then(|grammar| model.chat_constraint(&grammar, prompt, reasons));
        constraint.map(Some).map_err(|error| {
            let of_tools = matches!(error, GrammarError::Tools { .. }) || !self.format.is_asked();
            format::refused(if of_tools { "tools" } else { self.format.field() }, &error)
        })
    }
}

impl Chat {
    /// A tool whose arguments are held to what a mask can hold them to.
    fn relaxed_tool(&self, mut tool: Value) -> Value {
        let function = &mut tool["function"];
        let (parameters, notes) = relaxed(&function["parameters"]);
        let name = function["name"].as_str().unwrap_or_default();
        notes.into_iter().for_each(|note| self.warnings.add(format!("{name}: {note}")));
        function["parameters"] = parameters;
        tool
    }
}

/// Texts or tokens, one or more.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, a list of texts, a list of tokens, or a list of lists of tokens")]
pub enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Prompts::Text(_) | Prompts::Tokens(_) => 1,
            Prompts::Texts(texts) => texts.len(),
            Prompts::ManyTokens(tokens) => tokens.len(),
        }
    }

    /// The texts, if they are texts.
    pub fn texts(self) -> Option<Vec<String>> {
        match self {
            Prompts::Text(text) => Some(vec![text]),
            Prompts::Texts(texts) => Some(texts),
            Prompts::Tokens(_) | Prompts::ManyTokens(_) => None,
        }
    }

    /// The text of each, if they are wanted, and their tokens, of which there has to be one; a field of this name has them.
    pub async fn tokens(
        self,
        model: &Arc<Model>,
        field: &str,
        texts: bool,
    ) -> Result<(Vec<String>, Vec<Vec<u32>>), ApiError> {
        let many = matches!(self, Prompts::Texts(_) | Prompts::ManyTokens(_));
        let (known, model) = (self, model.clone());
        let read = work::run(move |wanted| {
            let decode = |tokens: Vec<Vec<u32>>| {
                let fits = |tokens: &&Vec<u32>| tokens.len() <= model.context();
                let text = |tokens: &Vec<u32>| model.tokenizer().decode(tokens, false);
                // What is too long is refused by the model.
                let texts = if texts { tokens.iter().filter(fits).map(text).collect() } else { vec![] };
                Ok((texts, tokens))
            };
            let all = match known {
                Prompts::Tokens(tokens) => return decode(vec![tokens]),
                Prompts::ManyTokens(tokens) => return decode(tokens),
                Prompts::Text(text) => vec![text],
                Prompts::Texts(texts) => texts,
            };
            let tokens = all.iter().map(|text| encode(wanted, &model, text)).collect::<Result<_, _>>()?;
            Ok((if texts { all } else { vec![] }, tokens))
        });
        let (texts, all) = read.await?;
        match all.iter().position(Vec::is_empty) {
            None => Ok((texts, all)),
            Some(place) => {
                let path = if many { format!("{field}[{place}]") } else { field.to_owned() };
                Err(ApiError::field(path, "this has no tokens; there is nothing to read"))
            }
        }
    }
}

/// Tokens of a plain text.
pub async fn text_tokens(model: Arc<Model>, text: String) -> Result<Vec<u32>, ApiError> {
    work::run(move |wanted| encode(wanted, &model, &text)).await
}

/// Tokens of prompts whose answers are what is between each of these texts and the suffix, which a field of this name
/// has. There may be other files, by name and text, that belong to it.
pub async fn fill_in(
    model: &Arc<Model>,
    field: &'static str,
    prefixes: Vec<String>,
    suffix: String,
    files: Vec<(String, String)>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    if !model.tokenizer().fills_in() {
        let message = format!(
            "'{}' cannot fill in the middle of a text: its vocabulary has no tokens for that, such as <|fim_prefix|>, \
             <|fim_suffix|> and <|fim_middle|>",
            model.name
        );
        return Err(ApiError::field(field, message));
    }
    let model = model.clone();
    work::run(move |wanted| {
        let others = files.iter().flat_map(|(name, text)| [name, text]).chain([&suffix]);
        others.chain(&prefixes).try_for_each(|text| refuse_long(wanted, &model, text))?;
        let encode = |prefix: &String| {
            let text = FillIn { prefix, suffix: &suffix, files: &files };
            model.tokenizer().encode_fill_in(&text).map_err(|error| ApiError::bad(error.to_string()))
        };
        prefixes.iter().map(encode).collect()
    })
    .await
}

/// How a plain text becomes tokens.
const PLAIN: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

fn encode(wanted: &Wanted, model: &Model, text: &str) -> Result<Vec<u32>, ApiError> {
    refuse_long(wanted, model, text)?;
    model.tokenizer().encode(text, PLAIN).map_err(|error| ApiError::bad(error.to_string()))
}

/// Bytes of a text that becomes tokens whatever the context is.
const SHORT: usize = 256 << 10;
/// More bytes than a token of a common text has.
const COMMON: usize = 8;

/// Refuses a text that is much too long for the context before all of it has become tokens.
pub fn refuse_long(wanted: &Wanted, model: &Model, text: &str) -> Result<(), ApiError> {
    let too_long = |tokens| Err(EngineError::ContextFull { tokens, context: model.context() }.into());
    if text.len() > SHORT.max(model.context().saturating_mul(model.longest_token())) {
        return too_long(text.len() / model.longest_token().max(1));
    }
    // Of what would fit if all its tokens were as long as the longest one, beginnings are looked at first.
    let mut part = SHORT.max(model.context().saturating_mul(COMMON));
    while part < text.len() {
        wanted.check()?;
        let found = model.tokenizer().encode(&text[..text.floor_char_boundary(part)], PLAIN);
        let found = found.map_err(|error| ApiError::bad(error.to_string()))?.len();
        if found > model.context().saturating_mul(2) {
            return too_long(found);
        }
        part = part.saturating_mul(COMMON);
    }
    wanted.check()
}
