//! `/v1/messages`: Anthropic's API.

use std::collections::VecDeque;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::format::{Asked, Format};
use super::items::{Change, Item, Items};
use super::options::Options;
use super::prompt::{Chat, Rendered};
use super::tools::{Choice, Function, Tools};
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::error::ApiError;
use crate::identity;
use crate::model::{Event, Events, Finish, Job};
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/messages", post(create)).route("/v1/messages/count_tokens", post(count))
}

/// Fields of OpenAI's endpoints that this one has under other names, or not at all.
const OTHERS: [&str; 4] = ["n", "stop", "stream_options", "return_progress"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    messages: Vec<Message>,
    max_tokens: Option<usize>,
    system: Option<Content>,
    #[serde(default)]
    stop_sequences: Vec<String>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    /// What of a long conversation may be left out; all of it is read here.
    #[serde(rename = "context_management")]
    _context_management: Option<IgnoredAny>,
    /// Where a cache may begin; here it finds that out itself.
    #[serde(rename = "cache_control")]
    _cache_control: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, or a list of blocks that are text, tool_use, tool_result or thinking")]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text { text: String },
    ToolUse { id: String, name: String, input: Map<String, Value> },
    ToolResult { tool_use_id: String, content: Option<Content> },
    Thinking { thinking: String },
    RedactedThinking {},
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    description: Option<String>,
    input_schema: Option<Map<String, Value>>,
    strict: Option<bool>,
    /// Tools that the server would bring have other types, and are refused.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<IgnoredAny>,
    #[serde(rename = "eager_input_streaming")]
    _eager_input_streaming: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ToolChoice {
    Auto { disable_parallel_tool_use: Option<bool> },
    Any { disable_parallel_tool_use: Option<bool> },
    Tool { name: String, disable_parallel_tool_use: Option<bool> },
    None {},
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Thinking {
    Enabled {
        #[serde(rename = "budget_tokens")]
        _budget: Option<usize>,
        #[serde(rename = "display")]
        _display: Option<IgnoredAny>,
    },
    Adaptive {
        #[serde(rename = "display")]
        _display: Option<IgnoredAny>,
    },
    Disabled {},
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Asked>,
}

impl Request {
    fn tools(&mut self) -> Result<Tools, ApiError> {
        let mut functions = Vec::new();
        for (i, tool) in self.tools.take().unwrap_or_default().into_iter().enumerate() {
            if let Some(kind) = tool.kind.filter(|kind| kind != "custom") {
                let message = format!("tools of type '{kind}' are not supported; there are those of the client");
                return Err(ApiError::field(format!("tools[{i}].type"), message));
            }
            let Tool { name, description, input_schema: parameters, strict: _strict, .. } = tool;
            functions.push(Function { name, description, parameters, _strict });
        }
        let (choice, alone) = match self.tool_choice.take() {
            None => (Choice::Auto, None),
            Some(ToolChoice::Auto { disable_parallel_tool_use }) => (Choice::Auto, disable_parallel_tool_use),
            Some(ToolChoice::Any { disable_parallel_tool_use }) => (Choice::Required, disable_parallel_tool_use),
            Some(ToolChoice::Tool { name, disable_parallel_tool_use }) => {
                (Choice::Named(name), disable_parallel_tool_use)
            }
            Some(ToolChoice::None {}) => (Choice::None, None),
        };
        Tools::of_functions(functions, (choice, None), !alone.unwrap_or(false))
    }

    /// The conversation as templates want it.
    fn chat(self, tools: Tools) -> Result<Chat, ApiError> {
        let mut messages = Vec::new();
        if let Some(system) = self.system {
            messages.push(json!({ "role": "system", "content": text(system, "system")? }));
        }
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "there are none; a conversation needs one at least"));
        }
        for (index, message) in self.messages.into_iter().enumerate() {
            let path = format!("messages[{index}]");
            match message.role.as_str() {
                "user" => user(message.content, &path, &mut messages)?,
                "assistant" => messages.push(assistant(message.content, &path)?),
                "system" => messages.push(json!({ "role": "system", "content": text(message.content, &path)? })),
                role => {
                    let message = format!("'{role}' is not one of user and assistant");
                    return Err(ApiError::field(format!("{path}.role"), message));
                }
            }
        }
        let mut variables = Map::new();
        if let Some(thinking) = &self.thinking {
            variables.insert("enable_thinking".into(), (!matches!(thinking, Thinking::Disabled {})).into());
        }
        let config = self.output_config.unwrap_or_default();
        if let Some(effort) = config.effort {
            variables.insert("reasoning_effort".into(), effort.into());
        }
        let format = Format::new("output_config.format", config.format)?;
        Ok(Chat { messages, tools, format, variables, ..Chat::default() })
    }
}

/// Blocks that are all text, as one text.
fn text(content: Content, path: &str) -> Result<String, ApiError> {
    let blocks = match content {
        Content::Text(text) => return Ok(text),
        Content::Blocks(blocks) => blocks,
    };
    let texts = blocks.into_iter().enumerate().map(|(i, block)| match block {
        Block::Text { text } => Ok(text),
        _ => Err(ApiError::field(format!("{path}[{i}].type"), "only text can be here")),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// What a user says; what tools said comes as messages of their own, before it.
fn user(content: Content, path: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let blocks = match content {
        Content::Text(text) => {
            messages.push(json!({ "role": "user", "content": text }));
            return Ok(());
        }
        Content::Blocks(blocks) => blocks,
    };
    let mut said: Vec<String> = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}.content[{i}]");
        match block {
            Block::Text { text } => said.push(text),
            Block::ToolResult { tool_use_id, content } => {
                let content = content.map(|content| text(content, &path)).transpose()?.unwrap_or_default();
                messages.push(json!({ "role": "tool", "tool_call_id": tool_use_id, "content": content }));
            }
            _ => return Err(ApiError::field(format!("{path}.type"), "a user's blocks are text and tool_result")),
        }
    }
    if !said.is_empty() {
        messages.push(json!({ "role": "user", "content": said.join("\n") }));
    }
    Ok(())
}

fn assistant(content: Content, path: &str) -> Result<Value, ApiError> {
    let blocks = match content {
        Content::Text(text) => return Ok(json!({ "role": "assistant", "content": text })),
        Content::Blocks(blocks) => blocks,
    };
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in blocks.into_iter().enumerate() {
        match block {
            Block::Text { text } => said.push(text),
            Block::Thinking { thinking } => thought.push(thinking),
            Block::RedactedThinking {} => {}
            Block::ToolUse { id, name, input } => {
                calls.push(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": input } }));
            }
            Block::ToolResult { .. } => {
                let message = "results of tools are a user's";
                return Err(ApiError::field(format!("{path}.content[{i}].type"), message));
            }
        }
    }
    let mut message = json!({ "role": "assistant", "content": said.join("\n") });
    if !thought.is_empty() {
        message["reasoning_content"] = thought.join("\n").into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}

async fn create(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let options = Options::take(&mut fields, &OTHERS)?;
    let mut request: Request = fields.rest()?;
    let Some(max_tokens) = request.max_tokens.filter(|&tokens| tokens > 0) else {
        return Err(ApiError::field("max_tokens", "a number of 1 or more is required"));
    };
    let tools = request.tools()?;
    let model = shared.registry.get(options.model.as_deref()).await?;
    let stop = request.stop_sequences.clone();
    let Rendered { tokens, answer } = request.chat(tools)?.render(model.clone()).await?;
    let events = model.begin(Job {
        client,
        salt: shared.salt(client),
        prompts: vec![tokens],
        n: 1,
        sampling: options.sampling(&model)?,
        max_tokens: Some(max_tokens),
        stop,
        chat: Some(answer),
        logprobs: None,
        ignore_end: false,
        pooling: None,
        prompt_logprobs: false,
    })?;
    let reply = Reply {
        id: identity::unique("msg_"),
        model: model.name.clone(),
        usage: Usage::new(1, 1),
        items: Items::default(),
        begun: false,
        finish: None,
    };
    if options.stream {
        return Ok(sse::stream(events, reply, shared.config.keep_alive));
    }
    reply.whole(events).await.map(IntoResponse::into_response)
}

async fn count(State(shared): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let options = Options::take(&mut fields, &OTHERS)?;
    let mut request: Request = fields.rest()?;
    let tools = request.tools()?;
    let model = shared.registry.get(options.model.as_deref()).await?;
    let rendered = request.chat(tools)?.render(model).await?;
    Ok(Json(json!({ "input_tokens": rendered.tokens.len() })))
}

struct Reply {
    id: String,
    model: String,
    usage: Usage,
    items: Items,
    begun: bool,
    finish: Option<Finish>,
}

/// Why it ended, and by which of the stop texts.
fn stop_reason(finish: Option<&Finish>) -> (Option<&'static str>, Option<&str>) {
    match finish {
        None => (None, None),
        Some(Finish::End) => (Some("end_turn"), None),
        Some(Finish::Stop(stop)) => (Some("stop_sequence"), Some(stop)),
        Some(Finish::Length) => (Some("max_tokens"), None),
        Some(Finish::Calls) => (Some("tool_use"), None),
    }
}

impl Reply {
    fn usage(&self) -> Value {
        json!({
            "input_tokens": self.usage.prompt() - self.usage.cached(),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.usage.cached(),
            "output_tokens": self.usage.completion,
        })
    }

    fn message(&self, content: Vec<Value>) -> Value {
        let (reason, stop) = stop_reason(self.finish.as_ref());
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": self.usage(),
        })
    }

    async fn whole(mut self, mut events: Events) -> Result<Json<Value>, ApiError> {
        while let Some(event) = events.next().await {
            self.usage.count(&event);
            match event {
                Event::Piece { parts, .. } => parts.into_iter().for_each(|part| drop(self.items.push(part))),
                Event::End { finish, .. } => self.finish = Some(finish),
                Event::Failed { error } => return Err(error),
                Event::Prompt { .. } | Event::Embedding { .. } => {}
            }
        }
        let block = |item: &Item| match item {
            Item::Text(text) => Some(json!({ "type": "text", "text": text })),
            Item::Reasoning(text) => Some(json!({ "type": "thinking", "thinking": text, "signature": "" })),
            Item::Call(call) if call.whole => {
                let input: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
                Some(json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input }))
            }
            Item::Call(_) => None,
        };
        let content = self.items.all().iter().filter_map(block).collect();
        Ok(Json(self.message(content)))
    }

    fn start(&mut self, out: &mut VecDeque<Sent>) {
        if !std::mem::replace(&mut self.begun, true) {
            let message = self.message(vec![]);
            out.push_back(Sent::named("message_start", &json!({ "type": "message_start", "message": message })));
            out.push_back(Sent::named("ping", &json!({ "type": "ping" })));
        }
    }

    fn tell(&self, change: Change, out: &mut VecDeque<Sent>) {
        out.push_back(match change {
            Change::Opened(index) => {
                let block = match &self.items.all()[index] {
                    Item::Text(_) => json!({ "type": "text", "text": "" }),
                    Item::Reasoning(_) => json!({ "type": "thinking", "thinking": "", "signature": "" }),
                    Item::Call(call) => json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} }),
                };
                let data = json!({ "type": "content_block_start", "index": index, "content_block": block });
                Sent::named("content_block_start", &data)
            }
            Change::Grew(index, more) => {
                let delta = match &self.items.all()[index] {
                    Item::Text(_) => json!({ "type": "text_delta", "text": more }),
                    Item::Reasoning(_) => json!({ "type": "thinking_delta", "thinking": more }),
                    Item::Call(_) => json!({ "type": "input_json_delta", "partial_json": more }),
                };
                let data = json!({ "type": "content_block_delta", "index": index, "delta": delta });
                Sent::named("content_block_delta", &data)
            }
            Change::Closed(index) => {
                Sent::named("content_block_stop", &json!({ "type": "content_block_stop", "index": index }))
            }
        });
    }
}

impl Narrator for Reply {
    /// The first event has what was cached, which is not known yet.
    fn begin(&mut self, _: &mut VecDeque<Sent>) {}

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
            Event::Prompt { .. } => self.start(out),
            Event::Piece { parts, .. } => {
                for part in parts {
                    let changes = self.items.push(part);
                    changes.into_iter().for_each(|change| self.tell(change, out));
                }
            }
            Event::End { finish, .. } => self.finish = Some(finish),
            Event::Embedding { .. } | Event::Failed { .. } => {}
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::named("error", &error.anthropic()));
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        if let Some(change) = self.items.close() {
            self.tell(change, out);
        }
        let (reason, stop) = stop_reason(self.finish.as_ref());
        let delta = json!({ "stop_reason": reason, "stop_sequence": stop });
        let data = json!({ "type": "message_delta", "delta": delta, "usage": self.usage() });
        out.push_back(Sent::named("message_delta", &data));
        out.push_back(Sent::named("message_stop", &json!({ "type": "message_stop" })));
    }
}
