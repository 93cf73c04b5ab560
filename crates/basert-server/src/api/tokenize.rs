//! `/v1/tokenize`: the tokens of a text or of a chat.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::prompt::{self, Chat, Message};
use crate::body::Fields;
use crate::error::ApiError;
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/tokenize", post(tokenize)).route("/v1/detokenize", post(detokenize))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: Option<String>,
    #[serde(alias = "prompt", alias = "content", alias = "input")]
    text: Option<String>,
    messages: Option<Vec<Message>>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

async fn tokenize(State(shared): State<Shared>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let request: Request = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    let tokens = match (request.text, request.messages) {
        (Some(text), None) => prompt::text_tokens(model.clone(), text).await?,
        (None, Some(messages)) => {
            let chat = Chat::new(messages, request.chat_template_kwargs.unwrap_or_default())?;
            chat.render(model.clone()).await?.tokens
        }
        _ => return Err(ApiError::bad("either text or messages has to be given")),
    };
    Ok(Json(json!({ "count": tokens.len(), "tokens": tokens, "max_model_len": model.context })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn detokenize(State(shared): State<Shared>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let request: Tokens = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    Ok(Json(json!({ "text": model.tokenizer.decode(&request.tokens, false) })))
}
