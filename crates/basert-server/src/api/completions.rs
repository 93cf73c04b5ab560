//! `/v1/completions`: continues plain text.

use std::collections::VecDeque;
use std::iter::{empty, once};
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use basert_engine::Token;
use basert_text::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat::{Logprobs, MOST_LOGPROBS, finite};
use super::format::{self, Formats};
use super::options::Options;
use super::prompt::{self, Prompts};
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::clock;
use crate::error::ApiError;
use crate::json::{self, Pieces};
use crate::model::{self, Event, Events, Finish, Job, Part, token_bytes};
use crate::random;
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
    /// What comes behind the answer.
    suffix: Option<String>,
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
    let answers = model.number_of_answers(request.prompt.len(), n)?;
    let fills_in = request.suffix.is_some();
    let (echoes, prompts) = match request.suffix {
        None => request.prompt.tokens(&model, "prompt", request.echo).await?,
        Some(_) if request.echo => return Err(ApiError::field("echo", "the prompt is not repeated with a suffix")),
        Some(suffix) => {
            let texts = request.prompt.texts().ok_or_else(|| ApiError::field("suffix", "the prompt has to be text"))?;
            (vec![], prompt::fill_in(&model, "suffix", texts, suffix, vec![]).await?)
        }
    };
    work::hold(echoes.iter().map(String::len).sum::<usize>().saturating_mul(n))?;
    let constraint = match format.grammar(&warnings) {
        None => None,
        Some(grammar) => {
            let (model, field) = (model.clone(), format.field());
            let compiled =
                work::run_long(move |_| model.constraint(&grammar).map_err(|error| format::refused(field, &error)));
            Some(compiled.await?)
        }
    };
    let prompt_logprobs = request.echo && wanted.is_some();
    if let Some(top) = wanted.filter(|_| prompt_logprobs) {
        work::hold(prompts.iter().map(Vec::len).sum::<usize>().saturating_mul(n).saturating_mul(token_bytes(top)))?;
    }
    let scored = |i: usize| if prompt_logprobs { prompts[i / n].len() } else { 0 };
    let (usage, prompt_tokens) = (Usage::new(prompts.len(), n), (0..answers).map(scored).collect());
    let events = model.begin(Job {
        client,
        salt: shared.salt(client, options.prompt_cache_key.as_deref()),
        prompts,
        n,
        sampling: options.sampling(&model)?,
        max_tokens: Some(request.max_tokens.unwrap_or(UNASKED_TOKENS)),
        stop: options.stop.clone(),
        constraint,
        chat: None,
        tokens: false,
        logprobs: wanted,
        ignore_end: options.ignore_eos,
        ends: if fills_in { model.tokenizer().ends_of_filling_in() } else { vec![] },
        pooling: None,
        is_raw: false,
        prompt_logprobs,
    })?;
    let reply = Reply {
        id: random::id("cmpl-"),
        created: clock::now(),
        model: model.name.clone(),
        tokenizer: model.tokenizer().clone(),
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
    tokenizer: Arc<Tokenizer>,
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
fn logprobs(tokenizer: &Arc<Tokenizer>, tokens: Vec<Token>, place: usize, offset: usize) -> Pieces {
    let length = |tokenizer: &Tokenizer, token: &Token| text(tokenizer, token.id).chars().count();
    // A prompt's tokens may be longer than its text, by a mark of its beginning.
    let end: usize = tokens.iter().take(place).map(|token| length(tokenizer, token)).sum();
    let tokens = Arc::new(tokens);
    let list = |make: fn(&Tokenizer, &Token) -> Value| {
        let (tokenizer, tokens) = (tokenizer.clone(), tokens.clone());
        json::list((0..tokens.len()).map(move |i| json::value(make(&tokenizer, &tokens[i]))))
    };
    // The first token of a prompt has no probability.
    let known =
        |_: &Tokenizer, token: &Token| -> Value { token.logprobs.as_ref().map(|known| finite(known.logprob)).into() };
    let top = |tokenizer: &Tokenizer, token: &Token| -> Value {
        let likely = |&(id, logprob): &(u32, f32)| (text(tokenizer, id), finite(logprob).into());
        token.logprobs.as_ref().map(|known| known.top.iter().map(likely).collect::<Map<_, _>>()).into()
    };
    let [texts, known, top] = [list(|tokenizer, token| text(tokenizer, token.id).into()), list(known), list(top)];
    let (tokenizer, mut start) = (tokenizer.clone(), 0);
    let offsets = (0..tokens.len()).map(move |i| {
        let begin = start;
        start += length(&tokenizer, &tokens[i]);
        json::value((offset + begin).saturating_sub(end))
    });
    json::object([
        ("tokens", texts),
        ("token_logprobs", known),
        ("top_logprobs", top),
        ("text_offset", json::list(offsets)),
    ])
}

/// What a token is as text; a part of a character is U+FFFD.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

fn choice(index: usize, text: String, logprobs: Option<Pieces>, finish: Option<&'static str>) -> Pieces {
    json::object([
        ("index", json::value(index)),
        ("text", json::value(text)),
        ("logprobs", logprobs.unwrap_or_else(|| json::value(Value::Null))),
        ("finish_reason", json::value(finish)),
    ])
}

/// The text of these parts.
pub fn joined(parts: Vec<Part>) -> String {
    let text = |part| if let Part::Content(text) = part { Some(text) } else { None };
    parts.into_iter().filter_map(text).collect()
}

impl Reply {
    /// An object of the API: with what was used, or without that, where it is not asked for.
    fn object(&self, choices: impl Iterator<Item = Pieces> + Send + 'static, usage: Option<Value>) -> Pieces {
        let head = [
            ("id", json::value(self.id.as_str())),
            ("object", json::value("text_completion")),
            ("created", json::value(self.created)),
            ("model", json::value(self.model.as_str())),
        ];
        let [id, object, created, model] = head;
        let choices = ("choices", json::list(choices));
        match usage {
            None => json::object([id, object, created, model, choices]),
            Some(usage) => json::object([id, object, created, model, choices, ("usage", json::value(usage))]),
        }
    }

    async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        let mut texts = self.choices.clone();
        let mut tokens: Vec<Vec<Token>> = vec![vec![]; texts.len()];
        let mut reasons = vec![None; texts.len()];
        while let Some(event) = events.next().await? {
            self.usage.count(&event);
            match event {
                Event::Piece { choice, parts, tokens: more } => {
                    texts[choice].push_str(&joined(parts));
                    // Those of the prompt are counted already.
                    if tokens[choice].len() < self.prompt_tokens[choice] {
                        tokens[choice] = more;
                    } else {
                        model::keep(&mut tokens[choice], more)?;
                    }
                }
                Event::End { choice, finish, .. } => reasons[choice] = Some(finish_reason(&finish)),
                _ => {}
            }
        }
        let (wanted, tokenizer, usage) = (self.logprobs, self.tokenizer.clone(), self.usage.openai());
        let before: Vec<_> =
            self.choices.iter().map(|text| text.chars().count()).zip(self.prompt_tokens.clone()).collect();
        let choices = texts.into_iter().zip(tokens).zip(reasons).zip(before).enumerate();
        let choices = choices.map(move |(index, (((text, tokens), reason), (offset, place)))| {
            choice(index, text, wanted.then(|| logprobs(&tokenizer, tokens, place, offset)), reason)
        });
        Ok(json::response(self.object(choices, Some(usage))))
    }

    fn chunk(&self, index: usize, text: String, tokens: Vec<Token>, finish: Option<&Finish>) -> Sent {
        let logprobs = (!tokens.is_empty()).then(|| logprobs(&self.tokenizer, tokens, 0, 0));
        let choice = choice(index, text, logprobs, finish.map(finish_reason));
        Sent::of(self.object(once(choice), self.include_usage.then_some(Value::Null)))
    }
}

impl Narrator for Reply {
    fn begin(&mut self, out: &mut VecDeque<Sent>) {
        for (choice, text) in self.choices.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            out.push_back(self.chunk(choice, text.clone(), vec![], None));
        }
    }

    fn event(&mut self, event: Event, out: &mut VecDeque<Sent>) {
        self.usage.count(&event);
        match event {
            Event::Piece { choice, parts, tokens } => {
                out.push_back(self.chunk(choice, joined(parts), tokens, None));
            }
            Event::End { choice, finish, .. } => {
                out.push_back(self.chunk(choice, String::new(), vec![], Some(&finish)))
            }
            _ => {}
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut VecDeque<Sent>) {
        out.push_back(Sent::data(&error.openai()));
    }

    fn end(&mut self, out: &mut VecDeque<Sent>) {
        if self.include_usage {
            out.push_back(Sent::of(self.object(empty(), Some(self.usage.openai()))));
        }
        out.push_back(Sent { name: None, data: "[DONE]".to_owned() });
    }
}
