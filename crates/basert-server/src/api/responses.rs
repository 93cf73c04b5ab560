//! `/v1/responses`: OpenAI's API in which a conversation may be kept here, in memory.

use std::collections::VecDeque;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::format::{Asked, Format};
use super::items::{Call, Change, Item, Items};
use super::options::Options;
use super::prompt::{Chat, Rendered};
use super::response_input;
use super::response_tools::{self, Called, Known};
use super::thinking::Thinking;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::clock;
use crate::error::ApiError;
use crate::model::{Event, Events, Finish, Job};
use crate::random;
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/responses", post(create)).route("/v1/responses/{id}", get(read).delete(remove))
}

/// Fields of chats and completions that this endpoint does not have.
pub const OTHERS: [&str; 4] = ["n", "stop", "return_progress", "best_of"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    previous_response_id: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Text>,
    truncation: Option<String>,
    #[serde(default)]
    background: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of items")]
enum Input {
    Text(String),
    Items(Vec<Value>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Asked>,
    /// A hint to models that were trained for it.
    verbosity: Option<IgnoredAny>,
}

async fn read(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let answer = shared.responses.get(&id, client)?;
    work::hold(answer.bytes)?;
    work::json(move || answer.response.clone()).await
}

async fn remove(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    shared.responses.get(&id, client)?;
    shared.responses.remove(&id);
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })))
}

async fn create(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let metadata = fields.0.shift_remove("metadata").unwrap_or_else(|| json!({}));
    bounds::metadata(&metadata)?;
    let store = fields.0.shift_remove("store").is_none_or(|store| store != false);
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &OTHERS)?;
    let thinking = Thinking::take(&mut fields)?;
    let request: Request = fields.rest()?;
    match request.truncation.as_deref() {
        None | Some("disabled") => {}
        // It allows that a conversation be cut; what is too long is refused here all the same.
        Some("auto") => warnings.add("truncation"),
        Some(how) => return Err(ApiError::field("truncation", format!("'{how}' is not one of auto and disabled"))),
    }
    if request.background {
        return Err(ApiError::field("background", "answers are not computed in the background"));
    }
    let declared = request.tools.unwrap_or_default();
    let (tools, known, listed) =
        response_tools::read(declared, request.tool_choice.as_ref(), request.parallel_tool_calls, &warnings)?;
    let mut messages = match &request.previous_response_id {
        Some(id) => {
            let before = shared.responses.get(id, client)?;
            work::hold(before.bytes)?;
            work::run(move |_| Ok(before.messages.clone())).await?
        }
        None => vec![],
    };
    match request.input {
        Input::Text(text) => messages.push(json!({ "role": "user", "content": text })),
        Input::Items(items) => response_input::add(items, &mut messages, &warnings)?,
    }
    // Instructions are those of this request alone.
    let instructions = request.instructions.as_ref().map(|text| json!({ "role": "system", "content": text }));
    let all: Vec<Value> = instructions.into_iter().chain(messages.iter().cloned()).collect();
    let model = shared.registry.get(options.model.as_deref()).await?;
    let parallel = tools.parallel;
    if request.text.as_ref().is_some_and(|text| text.verbosity.is_some()) {
        warnings.add("text.verbosity");
    }
    let format = Format::new("text.format", request.text.and_then(|text| text.format))?;
    let variables = thinking.variables(&warnings);
    let chat = Chat { tools, format, variables, ..Chat::new("input", all, &warnings)? };
    let Rendered { tokens, answer, constraint } = chat.render(model.clone()).await?;
    let events = model.begin(Job {
        client: client.0,
        salt: shared.salt(client.0, options.prompt_cache_key.as_deref()),
        prompts: vec![tokens],
        n: 1,
        sampling: options.sampling(&model)?,
        max_tokens: request.max_output_tokens,
        constraint,
        chat: Some(answer),
        ignore_end: options.ignore_eos,
        ..Job::default()
    })?;
    let id = random::id("resp_");
    let about = json!({
        "id": id,
        "object": "response",
        "created_at": clock::now(),
        "model": model.name,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "previous_response_id": request.previous_response_id,
        "parallel_tool_calls": parallel,
        "tool_choice": request.tool_choice.unwrap_or_else(|| json!("auto")),
        "tools": listed,
        "metadata": metadata,
        "store": store,
        "truncation": "disabled",
        "error": null,
    });
    let reply = Reply {
        id,
        about,
        messages: store.then_some(messages),
        client,
        shared: shared.clone(),
        usage: Usage::new(1, 1),
        items: Items::default(),
        known,
        names: vec![],
        finish: None,
        sequence: 0,
    };
    if options.stream {
        return Ok(sse::stream(events, reply, shared.config.keep_alive));
    }
    reply.whole(events).await.map(IntoResponse::into_response)
}

struct Reply {
    id: String,
    /// What the request said.
    about: Value,
    /// The conversation, if it is to be kept.
    messages: Option<Vec<Value>>,
    client: Client,
    shared: Shared,
    usage: Usage,
    items: Items,
    known: Known,
    /// The items' ids.
    names: Vec<String>,
    finish: Option<Finish>,
    /// The number of the next event.
    sequence: u64,
}

impl Reply {
    async fn whole(mut self, mut events: Events) -> Result<Json<Value>, ApiError> {
        while let Some(event) = events.next().await? {
            self.usage.count(&event);
            match event {
                Event::Piece { parts, .. } => {
                    for part in parts {
                        self.items.push(part).iter().for_each(|change| self.name(change));
                    }
                }
                Event::End { finish, .. } => self.finish = Some(finish),
                _ => {}
            }
        }
        Ok(Json(self.complete()))
    }

    fn name(&mut self, change: &Change) {
        if let Change::Opened(index) = change {
            let prefix = match &self.items.all()[*index] {
                Item::Text(_) => "msg_",
                Item::Reasoning(_) => "rs_",
                Item::Call(call) => match self.known.called(&call.name) {
                    Called::Function { .. } => "fc_",
                    Called::Custom { .. } => "ctc_",
                    Called::Shell => "lsh_",
                },
            };
            self.names.push(random::id(prefix));
        }
    }

    fn response(&self, status: &str, output: Vec<Value>) -> Value {
        let mut response = self.about.clone();
        response["status"] = status.into();
        response["output"] = output.into();
        response["incomplete_details"] =
            if status == "incomplete" { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        response["usage"] = match status {
            "in_progress" => Value::Null,
            _ => json!({
                "input_tokens": self.usage.prompt(),
                "input_tokens_details": { "cached_tokens": self.usage.cached() },
                "output_tokens": self.usage.completion,
                "output_tokens_details": { "reasoning_tokens": self.usage.reasoning },
                "total_tokens": self.usage.prompt() + self.usage.completion,
            }),
        };
        response
    }

    fn item(&self, index: usize, status: &str) -> Value {
        let id = &self.names[index];
        match &self.items.all()[index] {
            Item::Text(text) => {
                let content = if status == "in_progress" { json!([]) } else { json!([text_part(text)]) };
                json!({ "id": id, "type": "message", "role": "assistant", "status": status, "content": content })
            }
            Item::Reasoning(text) => {
                let content = if status == "in_progress" {
                    json!([])
                } else {
                    json!([{ "type": "reasoning_text", "text": text }])
                };
                json!({ "id": id, "type": "reasoning", "summary": [], "content": content, "status": status })
            }
            Item::Call(call) => {
                let mut item = match self.known.called(&call.name) {
                    Called::Function { namespace, name } => {
                        let mut item = json!({ "type": "function_call", "name": name, "arguments": call.arguments });
                        if let Some(namespace) = namespace {
                            item["namespace"] = namespace.into();
                        }
                        item
                    }
                    Called::Custom { name } => {
                        let input = if status == "in_progress" { String::new() } else { free_text(call) };
                        json!({ "type": "custom_tool_call", "name": name, "input": input })
                    }
                    Called::Shell => json!({ "type": "local_shell_call", "action": action(call) }),
                };
                item["id"] = id.as_str().into();
                item["status"] = status.into();
                item["call_id"] = call.id.as_str().into();
                item
            }
        }
    }

    /// Whether an item is complete, or was cut off.
    fn status(&self, index: usize) -> &'static str {
        let items = self.items.all();
        let cut = match &items[index] {
            Item::Call(call) => !call.whole,
            _ => self.finish == Some(Finish::Length) && index + 1 == items.len(),
        };
        if cut { "incomplete" } else { "completed" }
    }

    /// The whole response, which is kept if that was asked for.
    fn complete(&mut self) -> Value {
        let status = if self.finish == Some(Finish::Length) { "incomplete" } else { "completed" };
        let is_whole = |item: &Item| !matches!(item, Item::Call(call) if !call.whole);
        let all = self.items.all().iter().enumerate();
        let output = all.filter(|(_, item)| is_whole(item)).map(|(i, _)| self.item(i, self.status(i))).collect();
        let response = self.response(status, output);
        if let Some(mut messages) = self.messages.take() {
            let mut message = json!({ "role": "assistant", "content": self.items.text() });
            let reasoning = self.items.reasoning();
            if !reasoning.is_empty() {
                message["reasoning_content"] = reasoning.into();
            }
            let calls: Vec<_> = self
                .items
                .calls()
                .map(|Call { id, name, arguments, .. }| {
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
                })
                .collect();
            if !calls.is_empty() {
                message["tool_calls"] = calls.into();
            }
            messages.push(message);
            self.shared.responses.keep(&self.id, self.client, response.clone(), messages);
        }
        response
    }

    fn send(&mut self, name: &'static str, mut data: Value, out: &mut VecDeque<Sent>) {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push_back(Sent::named(name, &data));
    }

    fn tell(&mut self, change: Change, out: &mut VecDeque<Sent>) {
        self.name(&change);
        let (Change::Opened(index) | Change::Grew(index, _) | Change::Closed(index)) = change;
        let item = self.items.all()[index].clone();
        let at = json!({ "item_id": self.names[index], "output_index": index });
        let of = |more: Value| {
            let mut data = at.clone();
            if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
                data.extend(more);
            }
            data
        };
        match (change, item) {
            (Change::Opened(_), item) => {
                let added = json!({ "output_index": index, "item": self.item(index, "in_progress") });
                self.send("response.output_item.added", added, out);
                if let Item::Text(_) = item {
                    let part = of(json!({ "content_index": 0, "part": text_part("") }));
                    self.send("response.content_part.added", part, out);
                }
            }
            (Change::Grew(_, delta), Item::Text(_)) => {
                let data = of(json!({ "content_index": 0, "delta": delta, "logprobs": [] }));
                self.send("response.output_text.delta", data, out);
            }
            (Change::Grew(_, delta), Item::Reasoning(_)) => {
                let data = of(json!({ "content_index": 0, "delta": delta }));
                self.send("response.reasoning_text.delta", data, out);
            }
            (Change::Grew(_, delta), Item::Call(call)) => {
                // Other calls are sent when they are complete: their arguments are not text of JSON.
                if let Called::Function { .. } = self.known.called(&call.name) {
                    self.send("response.function_call_arguments.delta", of(json!({ "delta": delta })), out);
                }
            }
            (Change::Closed(_), item) => {
                match &item {
                    Item::Text(text) => {
                        let done = of(json!({ "content_index": 0, "text": text, "logprobs": [] }));
                        self.send("response.output_text.done", done, out);
                        let part = of(json!({ "content_index": 0, "part": text_part(text) }));
                        self.send("response.content_part.done", part, out);
                    }
                    Item::Reasoning(text) => {
                        let done = of(json!({ "content_index": 0, "text": text }));
                        self.send("response.reasoning_text.done", done, out);
                    }
                    Item::Call(call) if call.whole => match self.known.called(&call.name) {
                        Called::Function { name, .. } => {
                            let done = of(json!({ "name": name, "arguments": call.arguments }));
                            self.send("response.function_call_arguments.done", done, out);
                        }
                        Called::Custom { .. } => {
                            let input = free_text(call);
                            self.send("response.custom_tool_call_input.delta", of(json!({ "delta": input })), out);
                            self.send("response.custom_tool_call_input.done", of(json!({ "input": input })), out);
                        }
                        Called::Shell => {}
                    },
                    Item::Call(_) => {}
                }
                let status = self.status(index);
                let done = json!({ "output_index": index, "item": self.item(index, status) });
                self.send("response.output_item.done", done, out);
            }
        }
    }
}

/// The text that a tool is called with which takes nothing else.
fn free_text(call: &Call) -> String {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    arguments[response_tools::INPUT].as_str().map_or_else(|| call.arguments.clone(), str::to_owned)
}

/// What the client's shell is to do.
fn action(call: &Call) -> Value {
    let mut action = json!({ "type": "exec", "command": [], "env": {} });
    if let (Some(action), Ok(Value::Object(arguments))) =
        (action.as_object_mut(), serde_json::from_str(&call.arguments))
    {
        action.extend(arguments);
    }
    action
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

impl Narrator for Reply {
    fn begin(&mut self, out: &mut VecDeque<Sent>) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", vec![]);
            self.send(name, json!({ "response": response }), out);
        }
    }

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
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
        let mut response = self.response("failed", vec![]);
        response["error"] = json!({ "code": "server_error", "message": error.message });
        self.send("response.failed", json!({ "response": response }), out);
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        if let Some(change) = self.items.close() {
            self.tell(change, out);
        }
        let response = self.complete();
        let name = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.send(name, json!({ "response": response }), out);
    }
}
