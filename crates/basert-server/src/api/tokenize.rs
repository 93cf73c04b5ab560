//! `/v1/tokenize`: the tokens of a text or of a chat.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::prompt::{self, Chat};
use super::thinking::Thinking;
use super::tools::Tools;
use crate::body::Fields;
use crate::error::ApiError;
use crate::server::Shared;
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/tokenize", post(tokenize)).route("/v1/detokenize", post(detokenize))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    model: Option<String>,
    #[serde(alias = "prompt", alias = "content", alias = "input")]
    text: Option<String>,
    messages: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
}

async fn tokenize(State(shared): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let warnings = fields.1.clone();
    let thinking = Thinking::take(&mut fields)?;
    let request: Request = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    let tokens = match (request.text, request.messages) {
        (Some(text), None) => prompt::text_tokens(model.clone(), text).await?,
        (None, Some(messages)) => {
            let tools = Tools::new(request.tools, None, None, &warnings)?;
            let variables = thinking.variables(&warnings);
            let ending = prompt::ending(request.continue_final_message, request.add_generation_prompt)?;
            let chat = Chat {
                tools,
                variables,
                ending,
                ..Chat::new("messages", prompt::messages(messages, &warnings)?, &warnings)?
            };
            chat.render(model.clone()).await?.tokens
        }
        _ => return Err(ApiError::bad("either text or messages has to be given")),
    };
    Ok(Json(json!({ "count": tokens.len(), "tokens": tokens, "max_model_len": model.context() })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn detokenize(State(shared): State<Shared>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let request: Tokens = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    let limit = shared.config.body_limit;
    let text = work::run(move |wanted| {
        let bytes = |&id: &u32| model.tokenizer().token_bytes(id).map_or(0, <[u8]>::len);
        let bytes = request.tokens.iter().map(bytes).sum::<usize>();
        if bytes > limit {
            let message = format!("{bytes} bytes of text; {limit} are the most");
            return Err(ApiError { status: StatusCode::PAYLOAD_TOO_LARGE, ..ApiError::field("tokens", message) });
        }
        wanted.hold(2 * bytes)?;
        Ok(model.tokenizer().decode(&request.tokens, false))
    });
    Ok(Json(json!({ "text": text.await? })))
}
