//! `/v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use basert_engine::{Token, TokenLogprobs};
use basert_text::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::format::Formats;
use super::items::{Call, Items};
use super::options::Options;
use super::prompt::{self, Chat, Rendered};
use super::thinking::Thinking;
use super::tools::Tools;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::clock;
use crate::error::ApiError;
use crate::json;
use crate::model::{self, Event, Events, Finish, Job, Part};
use crate::random;
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/chat/completions", post(complete))
}

/// The fields that only chats have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    messages: Vec<Value>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    logprobs: Logprobs,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    modalities: Option<Vec<String>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
}

/// Whether log probabilities are wanted; completions say of how many tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a whole number")]
pub enum Logprobs {
    Wanted(bool),
    Of(usize),
}

impl Default for Logprobs {
    fn default() -> Logprobs {
        Logprobs::Wanted(false)
    }
}

/// Limit on the likeliest tokens in a response.
pub const MOST_LOGPROBS: usize = 20;

impl Request {
    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let (wanted, top) = match self.logprobs {
            Logprobs::Wanted(wanted) => (wanted, self.top_logprobs),
            Logprobs::Of(top) => (top > 0, self.top_logprobs.or(Some(top))),
        };
        match top {
            Some(top) if top > MOST_LOGPROBS => {
                Err(ApiError::field("top_logprobs", format!("{top} is more than {MOST_LOGPROBS}")))
            }
            Some(top) if top > 0 && !wanted => Err(ApiError::field("top_logprobs", "logprobs has to be true for that")),
            top => Ok(wanted.then_some(top.unwrap_or(0))),
        }
    }
}

async fn complete(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &[])?;
    let thinking = Thinking::take(&mut fields)?;
    let format = Formats::take(&mut fields)?.format()?;
    let request: Request = fields.rest()?;
    let logprobs = request.logprobs()?;
    if request.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|kind| kind != "text")) {
        return Err(ApiError::field("modalities", "only text is answered"));
    }
    let model = shared.registry.get(options.model.as_deref()).await?;
    let n = options.n.unwrap_or(1);
    model.number_of_answers(1, n)?;
    let ending = prompt::ending(request.continue_final_message, request.add_generation_prompt)?;
    let tools = Tools::new(request.tools, request.tool_choice.as_ref(), request.parallel_tool_calls, &warnings)?;
    let variables = thinking.variables(&warnings);
    let chat = Chat {
        tools,
        format,
        variables,
        ending,
        ..Chat::new("messages", prompt::messages(request.messages, &warnings)?, &warnings)?
    };
    let sampling = options.sampling(&model)?;
    let Rendered { tokens, answer, constraint } = chat.render(model.clone()).await?;
    let job = Job {
        client,
        salt: shared.salt(client, options.prompt_cache_key.as_deref()),
        prompts: vec![tokens],
        n,
        sampling,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        stop: options.stop.clone(),
        constraint,
        chat: Some(answer),
        logprobs,
        ignore_end: options.ignore_eos,
        ..Job::default()
    };
    let events = model.begin(job)?;
    let reply = Reply {
        id: random::id("chatcmpl-"),
        created: clock::now(),
        model: model.name.clone(),
        tokenizer: model.tokenizer().clone(),
        usage: Usage::new(1, n),
        n,
        include_usage: options.include_usage(),
        progress: options.return_progress,
        logprobs: logprobs.is_some(),
    };
    if options.stream {
        return Ok(sse::stream(events, reply, shared.config.keep_alive));
    }
    reply.whole(events).await
}

/// What whole and streamed answers have in common.
struct Reply {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    usage: Usage,
    n: usize,
    include_usage: bool,
    progress: bool,
    logprobs: bool,
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
    }
}

/// A log probability for JSON, which has no infinity: minus infinity becomes the least number.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// A token's log probabilities as chats have them.
fn logprobs(tokenizer: &Tokenizer, token: &Token) -> Option<Value> {
    let one = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({ "token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes })
    };
    let TokenLogprobs { logprob, top } = token.logprobs.as_ref()?;
    let mut value = one(token.id, *logprob);
    value["top_logprobs"] = top.iter().map(|&(id, logprob)| one(id, logprob)).collect();
    Some(value)
}

/// A message under way.
#[derive(Default)]
struct Choice {
    items: Items,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

/// A message that is complete.
fn message(items: &Items) -> Value {
    let call = |call: &Call| {
        let function = json!({ "name": call.name, "arguments": call.arguments });
        json!({ "id": call.id, "type": "function", "function": function })
    };
    let (text, reasoning, calls) = (items.text(), items.reasoning(), items.calls().map(call).collect::<Vec<_>>());
    // With tool calls, there may be no content.
    let content = (!text.is_empty() || calls.is_empty()).then_some(text);
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// What a part adds to the message of a stream.
fn delta(part: Part) -> Option<Value> {
    let call = |index: usize, mut call: Value| {
        call["index"] = index.into();
        Some(json!({ "tool_calls": [call] }))
    };
    match part {
        Part::Content(text) => Some(json!({ "content": text })),
        Part::Reasoning(text) => Some(json!({ "reasoning_content": text })),
        Part::CallBegan { index, id, name } => call(
            index,
            json!({ "index": 0, "id": id, "type": "function", "function": { "name": name, "arguments": "" } }),
        ),
        Part::Arguments { index, delta } => call(index, json!({ "index": 0, "function": { "arguments": delta } })),
        Part::CallEnded { .. } | Part::CallBroken { .. } => None,
    }
}

impl Reply {
    async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        let mut choices: Vec<Choice> = (0..self.n).map(|_| Choice::default()).collect();
        while let Some(event) = events.next().await? {
            self.usage.count(&event);
            match event {
                Event::Piece { choice, parts, tokens } => {
                    let choice = &mut choices[choice];
                    model::keep(&mut choice.tokens, tokens)?;
                    parts.into_iter().for_each(|part| drop(choice.items.push(part)));
                }
                Event::End { choice, finish, .. } => choices[choice].finish = Some(finish),
                _ => {}
            }
        }
        let (wanted, tokenizer) = (self.logprobs, self.tokenizer);
        let choices = choices.into_iter().enumerate().map(move |(index, Choice { items, tokens, finish })| {
            let tokenizer = tokenizer.clone();
            let content = move || {
                let content = tokens.into_iter().filter_map(move |token| logprobs(&tokenizer, &token));
                json::object([("content", json::list(content.map(json::value))), ("refusal", json::value(Value::Null))])
            };
            json::object([
                ("index", json::value(index)),
                ("message", json::value(message(&items))),
                ("logprobs", if wanted { content() } else { json::value(Value::Null) }),
                ("finish_reason", json::value(finish.as_ref().map(finish_reason))),
            ])
        });
        Ok(json::response(json::object([
            ("id", json::value(self.id)),
            ("object", json::value("chat.completion")),
            ("created", json::value(self.created)),
            ("model", json::value(self.model)),
            ("choices", json::list(choices)),
            ("usage", json::value(self.usage.openai())),
        ])))
    }

    /// A chunk of a stream.
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, choice: usize, delta: Value, tokens: &[Token], finish: Option<&Finish>) -> Sent {
        let content = || tokens.iter().filter_map(|token| logprobs(&self.tokenizer, token)).collect::<Vec<_>>();
        let logprobs = (!tokens.is_empty()).then(|| json!({ "content": content(), "refusal": null }));
        let finish = finish.map(finish_reason);
        let choice = json!({ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        Sent::data(&self.chunk(json!([choice])))
    }
}

impl Narrator for Reply {
    fn begin(&mut self, out: &mut VecDeque<Sent>) {
        for choice in 0..self.n {
            out.push_back(self.delta(choice, json!({ "role": "assistant", "content": "" }), &[], None));
        }
    }

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
            Event::Prompt { choice: 0, prompt } if self.progress => {
                let mut chunk = self.chunk(json!([]));
                chunk["prompt_progress"] =
                    json!({ "total": prompt.tokens, "cache": prompt.cached, "processed": prompt.done });
                out.push_back(Sent::data(&chunk));
            }
            Event::Piece { choice, parts, mut tokens } => {
                for delta in parts.into_iter().filter_map(delta) {
                    out.push_back(self.delta(choice, delta, &std::mem::take(&mut tokens), None));
                }
                if !tokens.is_empty() {
                    out.push_back(self.delta(choice, json!({ "content": "" }), &tokens, None));
                }
            }
            Event::End { choice, finish, .. } => out.push_back(self.delta(choice, json!({}), &[], Some(&finish))),
            _ => {}
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::data(&error.openai()));
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        if self.include_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = self.usage.openai();
            out.push_back(Sent::data(&chunk));
        }
        out.push_back(Sent { name: None, data: "[DONE]".to_owned() });
    }
}
