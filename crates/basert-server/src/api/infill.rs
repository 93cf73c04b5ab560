//! `/infill`: llama.cpp's API for editors, which fills the gap at the cursor.

use std::collections::VecDeque;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::completions::joined;
use super::options::Options;
use super::prompt;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::model::{Event, Events, Finish, Job};
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/infill", post(fill))
}

/// Fields of other endpoints that this one does not have.
pub const OTHERS: [&str; 3] = ["n", "best_of", "return_progress"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    input_prefix: String,
    input_suffix: String,
    #[serde(default)]
    input_extra: Vec<Extra>,
    /// Goes on behind the prefix.
    #[serde(default)]
    prompt: String,
    max_tokens: Option<usize>,
    /// The order of samplers, which is fixed here.
    samplers: Option<IgnoredAny>,
    /// What would end an answer before it is complete.
    n_indent: Option<usize>,
    t_max_prompt_ms: Option<i64>,
    t_max_predict_ms: Option<i64>,
}

/// Another text that belongs to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extra {
    #[serde(default)]
    filename: String,
    text: String,
    /// When it was noted.
    #[serde(rename = "time")]
    _time: Option<IgnoredAny>,
}

async fn fill(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &OTHERS)?;
    let request: Request = fields.rest()?;
    bounds::check("input_extra", request.input_extra.len(), bounds::PARTS)?;
    for (name, is_set) in [
        ("samplers", request.samplers.is_some()),
        ("n_indent", request.n_indent.is_some_and(|spaces| spaces > 0)),
        ("t_max_prompt_ms", request.t_max_prompt_ms.is_some_and(|time| time > 0)),
        ("t_max_predict_ms", request.t_max_predict_ms.is_some_and(|time| time > 0)),
    ] {
        if is_set {
            warnings.add(name);
        }
    }
    let model = shared.registry.get(options.model.as_deref()).await?;
    let files = request.input_extra.into_iter().map(|extra| (extra.filename, extra.text)).collect();
    let prefix = request.input_prefix + &request.prompt;
    let tokens = prompt::fill_in(&model, "input_suffix", vec![prefix], request.input_suffix, files).await?;
    let events = model.begin(Job {
        client,
        salt: shared.salt(client, options.prompt_cache_key.as_deref()),
        prompts: tokens,
        n: 1,
        sampling: options.sampling(&model)?,
        max_tokens: request.max_tokens,
        stop: options.stop.clone(),
        ignore_end: options.ignore_eos,
        ends: model.tokenizer().ends_of_filling_in(),
        ..Job::default()
    })?;
    let reply = Reply { model: model.name.clone(), usage: Usage::new(1, 1), finish: None };
    if options.stream {
        return Ok(sse::stream(events, reply, shared.config.keep_alive));
    }
    reply.whole(events).await.map(IntoResponse::into_response)
}

struct Reply {
    model: String,
    usage: Usage,
    finish: Option<Finish>,
}

impl Reply {
    async fn whole(mut self, mut events: Events) -> Result<Json<Value>, ApiError> {
        let mut content = String::new();
        while let Some(event) = events.next().await? {
            self.usage.count(&event);
            match event {
                Event::Piece { parts, .. } => content.push_str(&joined(parts)),
                Event::End { finish, .. } => self.finish = Some(finish),
                _ => {}
            }
        }
        Ok(Json(self.complete(&content)))
    }

    /// What is said at the end, with the content or the last part of it.
    fn complete(&self, content: &str) -> Value {
        let (kind, word) = match &self.finish {
            Some(Finish::Stop(word)) => ("word", word.as_str()),
            Some(Finish::End) => ("eos", ""),
            Some(Finish::Length | Finish::Calls) | None => ("limit", ""),
        };
        json!({
            "content": content,
            "stop": true,
            "stop_type": kind,
            "stopping_word": word,
            "model": self.model,
            "tokens_predicted": self.usage.completion,
            "tokens_evaluated": self.usage.prompt(),
            "tokens_cached": self.usage.cached(),
            "truncated": false,
        })
    }
}

impl Narrator for Reply {
    fn begin(&mut self, _: &mut VecDeque<Sent>) {}

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
            Event::Piece { parts, .. } => {
                out.push_back(Sent::data(&json!({ "content": joined(parts), "stop": false })));
            }
            Event::End { finish, .. } => self.finish = Some(finish),
            _ => {}
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::data(&error.openai()));
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::data(&self.complete("")));
    }
}
