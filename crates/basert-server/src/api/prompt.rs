//! From messages to the tokens of a prompt.

use std::sync::Arc;

use basert_text::{CallGrammar, Constraint, EncodeOptions, Ending, Grammar, GrammarError};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::format::Format;
use super::tools::{Choice, Tools};
use crate::body::Unsupported;
use crate::error::ApiError;
use crate::model::{ChatAnswer, Model};

/// A message of a chat, as OpenAI's API has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    role: String,
    content: Option<Content>,
    /// Who says it; the models' templates know no names.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// What the model thought before it answered.
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    /// Why the model did not answer.
    refusal: Option<String>,
    /// Tools that the model called.
    tool_calls: Option<Vec<Call>>,
    /// The call that a tool's message answers.
    tool_call_id: Option<String>,
    /// What a client's library made of the content, or of links in it: answers are sent back with that.
    #[serde(rename = "parsed")]
    _parsed: Option<IgnoredAny>,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    #[serde(rename = "audio")]
    _audio: Option<Unsupported>,
    #[serde(rename = "function_call")]
    _function_call: Option<Unsupported>,
}

/// A call of a tool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    id: String,
    #[serde(rename = "type")]
    _kind: Option<String>,
    function: CalledFunction,
    /// Its place; clients that join a stream's deltas leave it there.
    #[serde(rename = "index")]
    _index: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalledFunction {
    name: String,
    /// A JSON object, as text.
    arguments: String,
    /// The same, as a client's library read it.
    #[serde(rename = "parsed_arguments")]
    _parsed_arguments: Option<IgnoredAny>,
}

/// What a message says.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of parts")]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Content {
    /// As one text.
    pub fn text(self, path: &str) -> Result<String, ApiError> {
        let parts = match self {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        let texts = parts.into_iter().enumerate().map(|(i, part)| match (part.kind.as_str(), part.text) {
            ("text" | "input_text" | "output_text" | "reasoning_text", Some(text)) => Ok(text),
            ("text" | "input_text" | "output_text" | "reasoning_text", None) => {
                Err(ApiError::field(format!("{path}[{i}].text"), "a part of type text needs a text"))
            }
            (kind, _) => {
                let message = format!("parts of type '{kind}' are not supported; this model reads text");
                Err(ApiError::field(format!("{path}[{i}].type"), message))
            }
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }
}

impl Message {
    /// As templates want it.
    fn into_value(self, index: usize) -> Result<Value, ApiError> {
        let path = |field: &str| format!("messages[{index}].{field}");
        let role = match self.role.as_str() {
            "system" | "user" | "assistant" | "tool" => self.role.as_str(),
            "developer" => "system",
            role => {
                let message = format!("'{role}' is not one of system, developer, user, assistant and tool");
                return Err(ApiError::field(path("role"), message));
            }
        };
        if self.tool_calls.is_some() && role != "assistant" {
            return Err(ApiError::field(path("tool_calls"), "only the assistant calls tools"));
        }
        if self.tool_call_id.is_some() != (role == "tool") {
            let message = "a message of role tool, and no other, says which call it answers";
            return Err(ApiError::field(path("tool_call_id"), message));
        }
        let calls = self.tool_calls.unwrap_or_default();
        let content = match (self.content, self.refusal) {
            (Some(content), _) => content.text(&path("content"))?,
            (None, Some(refusal)) if role == "assistant" => refusal,
            (None, None) if !calls.is_empty() => String::new(),
            _ => return Err(ApiError::field(path("content"), "a message needs a content")),
        };
        let mut message = json!({ "role": role, "content": content });
        if let Some(id) = self.tool_call_id {
            message["tool_call_id"] = id.into();
        }
        let calls: Vec<Value> = calls
            .into_iter()
            .map(|call| {
                let function = json!({ "name": call.function.name, "arguments": call.function.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            })
            .collect();
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if let Some(reasoning) = self.reasoning_content.filter(|_| role == "assistant") {
            message["reasoning_content"] = reasoning.into();
        }
        Ok(message)
    }
}

/// A conversation to be continued.
#[derive(Debug, Default)]
pub struct Chat {
    pub messages: Vec<Value>,
    pub tools: Tools,
    pub format: Format,
    pub variables: Map<String, Value>,
    pub ending: Ending,
}

/// A prompt as the model gets it.
#[derive(Debug, Default)]
pub struct Rendered {
    pub tokens: Vec<u32>,
    /// How what follows is read.
    pub answer: ChatAnswer,
}

impl Chat {
    pub fn new(messages: Vec<Message>, variables: Map<String, Value>) -> Result<Chat, ApiError> {
        if messages.is_empty() {
            return Err(ApiError::field("messages", "there are none; a chat needs one at least"));
        }
        let messages = messages.into_iter().enumerate().map(|(index, message)| message.into_value(index));
        Ok(Chat { messages: messages.collect::<Result<_, _>>()?, variables, ..Chat::default() })
    }

    /// The prompt, up to where the answer begins or goes on. That may take a while, and does so elsewhere.
    pub async fn render(self, model: Arc<Model>) -> Result<Rendered, ApiError> {
        elsewhere(move || {
            let Some(template) = &model.template else {
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
            let prompt = model.dialect.prompt(template, &model.tokenizer, &chat);
            let prompt = prompt.map_err(|error| ApiError::field("messages", error))?;
            let tokens = prompt.tokens(&model.tokenizer).map_err(|error| ApiError::bad(error.to_string()))?;
            let text = prompt.text;
            let constraint = self.constraint(&model, &tools, &text)?;
            let one_call = !self.tools.parallel;
            Ok(Rendered { tokens, answer: ChatAnswer { prompt: text, tools, one_call, constraint } })
        })
        .await
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
        let calls = |named| CallGrammar::new(model.dialect.clone(), tools, named, self.tools.parallel);
        let grammar = match (named, self.format.grammar()) {
            (None, None) => return Ok(None),
            (None, Some(format)) if tools.is_empty() => Ok(format.clone()),
            (None, Some(format)) => calls(None).map(|calls| Grammar::CallsOr(calls, Box::new(format.clone()))),
            // Of an answer that only calls, nothing is text that could have a format.
            (Some(named), _) => calls(named).map(Grammar::Calls),
        };
        let asked = self.variables.get("enable_thinking").and_then(Value::as_bool);
        let reasons = model.reasons && asked.unwrap_or(true);
        let constraint = grammar.and_then(|grammar| model.constraint(&grammar, prompt, reasons));
        constraint.map(Some).map_err(|error| {
            let of_tools = matches!(error, GrammarError::Tools { .. }) || self.format.grammar().is_none();
            ApiError::field(if of_tools { "tools" } else { self.format.field() }, error)
        })
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

    /// The text of each.
    pub fn texts(&self, model: &Model) -> Vec<String> {
        let decode = |tokens: &Vec<u32>| model.tokenizer.decode(tokens, false);
        match self {
            Prompts::Text(text) => vec![text.clone()],
            Prompts::Texts(texts) => texts.clone(),
            Prompts::Tokens(tokens) => vec![decode(tokens)],
            Prompts::ManyTokens(tokens) => tokens.iter().map(decode).collect(),
        }
    }

    /// The tokens of each.
    pub async fn tokens(self, model: &Arc<Model>) -> Result<Vec<Vec<u32>>, ApiError> {
        let texts = match self {
            Prompts::Tokens(tokens) => return Ok(vec![tokens]),
            Prompts::ManyTokens(tokens) => return Ok(tokens),
            Prompts::Text(text) => vec![text],
            Prompts::Texts(texts) => texts,
        };
        let model = model.clone();
        elsewhere(move || texts.iter().map(|text| encode(&model, text)).collect()).await
    }
}

/// Tokens of a plain text.
pub async fn text_tokens(model: Arc<Model>, text: String) -> Result<Vec<u32>, ApiError> {
    elsewhere(move || encode(&model, &text)).await
}

fn encode(model: &Model, text: &str) -> Result<Vec<u32>, ApiError> {
    let options = EncodeOptions { add_special: true, parse_special: true };
    model.tokenizer.encode(text, options).map_err(|error| ApiError::bad(error.to_string()))
}

/// Runs what takes long where it delays nobody.
pub async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| Err(ApiError::internal(format!("a request failed unexpectedly: {error}"))))
}
