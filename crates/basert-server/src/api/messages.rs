//! `/v1/messages`: Anthropic's API.

use std::collections::VecDeque;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::blocks;
use super::content::Content;
use super::format::{Asked, Format};
use super::items::{Change, Item, Items};
use super::options::Options;
use super::prompt::{Chat, Rendered};
use super::thinking::Thinking;
use super::tools::{Choice, Function, Tools};
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::fields::{self, Place, Warnings};
use crate::model::{Event, Events, Finish, Job};
use crate::random;
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/messages", post(create)).route("/v1/messages/count_tokens", post(count))
}

/// Fields of OpenAI's endpoints that this one has under other names, or not at all.
pub const OTHERS: [&str; 4] = ["n", "best_of", "stop", "return_progress"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    messages: Vec<Value>,
    max_tokens: Option<usize>,
    system: Option<Content>,
    #[serde(default)]
    stop_sequences: Vec<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    output_config: Option<OutputConfig>,
    /// What is in the output's configuration by now.
    output_format: Option<Asked>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    description: Option<String>,
    input_schema: Option<Map<String, Value>>,
    #[serde(rename = "type")]
    _kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ToolChoice {
    Auto { disable_parallel_tool_use: Option<bool> },
    Any { disable_parallel_tool_use: Option<bool> },
    Tool { name: String, disable_parallel_tool_use: Option<bool> },
    None { disable_parallel_tool_use: Option<bool> },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Asked>,
}

/// Tools that Anthropic's service runs itself, by the beginnings of their types: a model is not told of them.
const OF_THE_SERVICE: [&str; 6] =
    ["tool_search", "web_search", "web_fetch", "code_execution", "advisor", "mcp_toolset"];

impl Request {
    fn tools(&mut self, warnings: &Warnings) -> Result<Tools, ApiError> {
        let mut functions = Vec::new();
        for (i, tool) in self.tools.take().unwrap_or_default().into_iter().enumerate() {
            let path = format!("tools[{i}]");
            match tool["type"].as_str() {
                None | Some("custom") => {}
                // Without tool search the model has all tools, including deferred ones.
                Some(kind) if OF_THE_SERVICE.iter().any(|name| kind.starts_with(name)) => {
                    warnings.add(format!("{path} ({kind})"));
                    continue;
                }
                Some(kind) => {
                    let message = format!("tools of type '{kind}' are not supported; there are those of the client");
                    return Err(ApiError::field(format!("{path}.type"), message));
                }
            }
            let Tool { name, description, input_schema: parameters, .. } =
                fields::part(tool, &path, Place::Tool, warnings)?;
            functions.push(Function { name, description, parameters });
        }
        let (choice, alone) = match self.tool_choice.take() {
            None => (Choice::Auto, None),
            Some(ToolChoice::Auto { disable_parallel_tool_use }) => (Choice::Auto, disable_parallel_tool_use),
            Some(ToolChoice::Any { disable_parallel_tool_use }) => (Choice::Required, disable_parallel_tool_use),
            Some(ToolChoice::Tool { name, disable_parallel_tool_use }) => {
                (Choice::Named(name), disable_parallel_tool_use)
            }
            Some(ToolChoice::None { disable_parallel_tool_use }) => (Choice::None, disable_parallel_tool_use),
        };
        Tools::of_functions(functions, (choice, None), !alone.unwrap_or(false))
    }

    /// The conversation as templates want it.
    fn chat(self, tools: Tools, thinking: Thinking, warnings: &Warnings) -> Result<Chat, ApiError> {
        let messages = blocks::conversation(self.system, self.messages, warnings)?;
        let config = self.output_config.unwrap_or_default();
        let variables = thinking.with_effort(config.effort).variables(warnings);
        let format = match config.format {
            None => Format::new("output_format", self.output_format)?,
            format => Format::new("output_config.format", format)?,
        };
        Ok(Chat { tools, format, variables, ..Chat::new("messages", messages, warnings)? })
    }
}

async fn create(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &OTHERS)?;
    let thinking = Thinking::take(&mut fields)?;
    let mut request: Request = fields.rest()?;
    let Some(max_tokens) = request.max_tokens.filter(|&tokens| tokens > 0) else {
        return Err(ApiError::field("max_tokens", "a number of 1 or more is required"));
    };
    bounds::stops("stop_sequences", &request.stop_sequences)?;
    let tools = request.tools(&warnings)?;
    let model = shared.registry.get(options.model.as_deref()).await?;
    let stop = request.stop_sequences.clone();
    let Rendered { tokens, answer, constraint } =
        request.chat(tools, thinking, &warnings)?.render(model.clone()).await?;
    let events = model.begin(Job {
        client,
        salt: shared.salt(client, options.prompt_cache_key.as_deref()),
        prompts: vec![tokens],
        n: 1,
        sampling: options.sampling(&model)?,
        max_tokens: Some(max_tokens),
        stop,
        constraint,
        chat: Some(answer),
        ..Job::default()
    })?;
    let reply = Reply {
        id: random::id("msg_"),
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
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &OTHERS)?;
    let thinking = Thinking::take(&mut fields)?;
    let mut request: Request = fields.rest()?;
    let tools = request.tools(&warnings)?;
    let model = shared.registry.get(options.model.as_deref()).await?;
    let rendered = request.chat(tools, thinking, &warnings)?.render(model).await?;
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

/// Why the answer ended, and the stop text that ended it, if any.
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
        while let Some(event) = events.next().await? {
            self.usage.count(&event);
            match event {
                Event::Piece { parts, .. } => parts.into_iter().for_each(|part| drop(self.items.push(part))),
                Event::End { finish, .. } => self.finish = Some(finish),
                _ => {}
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
    /// Waits with the first event, because it has the number of cached tokens, which is not known yet.
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
            _ => {}
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
