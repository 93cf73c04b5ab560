//! `/v1/completions`: continues plain text.

use std::collections::VecDeque;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Logprobs, MOST_LOGPROBS, finite};
use super::format::Formats;
use super::options::Options;
use super::prompt::Prompts;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::identity;
use crate::model::{Event, Events, Finish, Job, Part, TokenText};
use crate::server::Shared;
use crate::sse::{self, Narrator, Sent};
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/completions", post(complete))
}

/// The fields that only completions have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    prompt: Prompts,
    max_tokens: Option<usize>,
    #[serde(default)]
    logprobs: Logprobs,
    #[serde(default)]
    echo: bool,
}

/// The default limit on an answer's tokens, as in OpenAI's API.
const UNASKED_TOKENS: usize = 16;

async fn complete(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let warnings = fields.1.clone();
    let options = Options::take(&mut fields, &[])?;
    let format = Formats::take(&mut fields)?.format()?;
    let request: Request = fields.rest()?;
    let wanted = match request.logprobs {
        Logprobs::Wanted(wanted) => wanted.then_some(1),
        Logprobs::Of(top) => Some(top),
    };
    if let Some(top) = wanted.filter(|&top| top > MOST_LOGPROBS) {
        return Err(ApiError::field("logprobs", format!("{top} is more than {MOST_LOGPROBS}")));
    }
    let model = shared.registry.get(options.model.as_deref()).await?;
    bounds::check("prompt", request.prompt.len(), bounds::PROMPTS)?;
    let n = options.n.unwrap_or(1);
    let answers = model.answers(request.prompt.len(), n)?;
    let (echoes, prompts) = request.prompt.tokens(&model, "prompt", request.echo).await?;
    work::hold(echoes.iter().map(String::len).sum::<usize>().saturating_mul(n))?;
    let constraint = match format.grammar(&warnings) {
        None => None,
        Some(grammar) => {
            let (model, field) = (model.clone(), format.field());
            let compiled = work::run_long(move |_| {
                model.plain_constraint(&grammar).map_err(|error| ApiError::field(field, error))
            });
            Some(compiled.await?)
        }
    };
    let prompt_logprobs = request.echo && wanted.is_some();
    if let Some(top) = wanted.filter(|_| prompt_logprobs) {
        work::hold(prompts.iter().map(Vec::len).sum::<usize>().saturating_mul(n).saturating_mul(TokenText::size(top)))?;
    }
    let scored = |i: usize| if prompt_logprobs { prompts[i / n].len() } else { 0 };
    let (usage, prompt_tokens) = (Usage::new(prompts.len(), n), (0..answers).map(scored).collect());
    let events = model.begin(Job {
        client,
        salt: shared.salt(client),
        prompts,
        n,
        sampling: options.sampling(&model)?,
        max_tokens: Some(request.max_tokens.unwrap_or(UNASKED_TOKENS)),
        stop: options.stop.clone(),
        constraint,
        chat: None,
        logprobs: wanted,
        ignore_end: options.ignore_eos,
        pooling: None,
        prompt_logprobs,
    })?;
    let reply = Reply {
        id: identity::unique("cmpl-"),
        created: identity::now(),
        model: model.name.clone(),
        usage,
        choices: (0..answers).map(|i| echoes.get(i / n).cloned().unwrap_or_default()).collect(),
        prompt_tokens,
        include_usage: options.include_usage(),
        logprobs: wanted.is_some(),
    };
    if options.stream {
        return Ok(sse::stream(events, reply, shared.config.keep_alive));
    }
    reply.whole(events).await
}

struct Reply {
    id: String,
    created: u64,
    model: String,
    usage: Usage,
    /// The text that each choice begins with: its prompt, if that was asked for.
    choices: Vec<String>,
    /// How many of the tokens with log probabilities are the prompt's.
    prompt_tokens: Vec<usize>,
    include_usage: bool,
    logprobs: bool,
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop(_) => "stop",
        Finish::Length | Finish::Calls => "length",
    }
}

/// Log probabilities as completions have them. The text before the token number `place` has `offset` characters.
fn logprobs(tokens: &[TokenText], place: usize, offset: usize) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let length = |token: &TokenText| text(&token.bytes).chars().count();
    // A prompt's tokens may be longer than its text, by a mark of its beginning.
    let end: usize = tokens.iter().take(place).map(length).sum();
    let mut offsets = Vec::with_capacity(tokens.len());
    let mut start = 0;
    for token in tokens {
        offsets.push((offset + start).saturating_sub(end));
        start += length(token);
    }
    // The first token of a prompt has no probability.
    let known = |token: &TokenText| (!token.logprob.is_nan()).then_some(finite(token.logprob));
    let top = |token: &TokenText| -> Option<serde_json::Map<String, Value>> {
        known(token)?;
        Some(token.top.iter().map(|(_, bytes, logprob)| (text(bytes), finite(*logprob).into())).collect())
    };
    json!({
        "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(known).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

fn joined(parts: Vec<Part>) -> String {
    let text = |part| if let Part::Content(text) = part { Some(text) } else { None };
    parts.into_iter().filter_map(text).collect()
}

impl Reply {
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        let mut texts = self.choices.clone();
        let mut tokens: Vec<Vec<TokenText>> = vec![vec![]; texts.len()];
        let mut reasons = vec![None; texts.len()];
        while let Some(event) = events.next().await {
            self.usage.count(&event);
            match event {
                Event::Prompt { .. } | Event::Embedding { .. } => {}
                Event::Piece { choice, parts, tokens: more } => {
                    texts[choice].push_str(&joined(parts));
                    // Tokens of prompts are counted already.
                    if more.len() == 1 {
                        work::hold(TokenText::size(more[0].top.len()))?;
                    }
                    tokens[choice].extend(more);
                }
                Event::End { choice, finish, .. } => reasons[choice] = Some(finish_reason(&finish)),
                Event::Failed { error } => return Err(error),
            }
        }
        let large = self.logprobs;
        let told = move || {
            let choices =
                texts.into_iter().zip(tokens).zip(reasons).enumerate().map(|(index, ((text, tokens), reason))| {
                    let logprobs = self
                        .logprobs
                        .then(|| logprobs(&tokens, self.prompt_tokens[index], self.choices[index].chars().count()));
                    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
                });
            let mut reply = self.object(choices.collect());
            reply["usage"] = self.usage.openai();
            reply
        };
        if large { work::json(told).await } else { Ok(Json(told()).into_response()) }
    }

    fn chunk(&self, choice: usize, text: &str, tokens: &[TokenText], finish: Option<&Finish>) -> Sent {
        let logprobs = (!tokens.is_empty()).then(|| logprobs(tokens, 0, 0));
        let finish = finish.map(finish_reason);
        let choice = json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.object(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        Sent::data(&chunk)
    }
}

impl Narrator for Reply {
    fn begin(&mut self, out: &mut VecDeque<Sent>) {
        for (choice, text) in self.choices.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            out.push_back(self.chunk(choice, text, &[], None));
        }
    }

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
            Event::Piece { choice, parts, tokens } => {
                out.push_back(self.chunk(choice, &joined(parts), &tokens, None));
            }
            Event::End { choice, finish, .. } => out.push_back(self.chunk(choice, "", &[], Some(&finish))),
            Event::Prompt { .. } | Event::Embedding { .. } | Event::Failed { .. } => {}
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::data(&error.openai()));
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        if self.include_usage {
            let mut chunk = self.object(vec![]);
            chunk["usage"] = self.usage.openai();
            out.push_back(Sent::data(&chunk));
        }
        out.push_back(Sent { name: None, data: "[DONE]".to_owned() });
    }
}
