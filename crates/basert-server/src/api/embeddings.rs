//! `/v1/embeddings`: vectors of texts, pooled from the model's last hidden states.

use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use basert_engine::Pooling;
use serde::Deserialize;
use serde_json::{Value, json};

use super::prompt::Prompts;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::{Event, Job};
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/embeddings", post(embed))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    model: Option<String>,
    input: Prompts,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
    pooling: Option<How>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Mean,
    Last,
    Cls,
}

/// The most inputs of a request; as OpenAI's API has it.
const MOST_INPUTS: usize = 2048;

async fn embed(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let request: Request = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    if request.input.len() > MOST_INPUTS {
        let message = format!("{} inputs; {MOST_INPUTS} are the most", request.input.len());
        return Err(ApiError::field("input", message));
    }
    let prompts = request.input.tokens(&model, "input").await?;
    let pooling = match request.pooling {
        Some(How::Mean) => Pooling::Mean,
        Some(How::Last) => Pooling::Last,
        Some(How::Cls) => Pooling::First,
        None => model.pooling.clone().map_err(|what| ApiError::field("model", what))?,
    };
    let mut usage = Usage::new(prompts.len(), 1);
    let mut vectors = Vec::with_capacity(prompts.len());
    // No more at once than are computed together: others want their turn, and the queue is not for these only.
    for prompts in prompts.chunks(shared.config.parallel.max(1)) {
        let first = vectors.len();
        vectors.resize(first + prompts.len(), Vec::new());
        let job = Job {
            client,
            salt: shared.salt(client),
            prompts: prompts.to_vec(),
            n: 1,
            pooling: Some(pooling),
            ..Job::default()
        };
        let mut events = model.begin(job).map_err(of_input)?;
        while let Some(event) = events.next().await {
            match event {
                Event::Embedding { choice, vector } => vectors[first + choice] = vector,
                Event::Prompt { choice, prompt } => usage.count(&Event::Prompt { choice: first + choice, prompt }),
                Event::Failed { error } => return Err(of_input(error)),
                Event::Piece { .. } | Event::End { .. } => {}
            }
        }
    }
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(dimensions) = request.dimensions.filter(|&dimensions| dimensions != width) {
        let message = format!("{dimensions} dimensions; the model has {width}, and was not trained to do with fewer");
        return Err(ApiError::field("dimensions", message));
    }
    let item = |(index, vector): (usize, &Vec<f32>)| {
        let embedding = encoded(vector, request.encoding_format);
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    };
    Ok(Json(json!({
        "object": "list",
        "data": vectors.iter().enumerate().map(item).collect::<Vec<_>>(),
        "model": model.name,
        "usage": { "prompt_tokens": usage.prompt(), "total_tokens": usage.prompt() },
    })))
}

/// What is wrong with a prompt is wrong with the input.
fn of_input(error: ApiError) -> ApiError {
    ApiError { param: error.param.map(|_| "input".to_owned()), ..error }
}

fn encoded(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => vector.into(),
        Encoding::Base64 => STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).into(),
    }
}
