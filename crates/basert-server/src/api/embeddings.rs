//! `/v1/embeddings`: vectors of texts, pooled from the model's last hidden states.

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use basert_engine::Pooling;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::prompt::Prompts;
use super::usage::Usage;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::model::{Event, Job, Model};
use crate::server::Shared;
use crate::work;

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

/// What a number of a vector takes, by itself and as text, in bytes.
const NUMBER: usize = 20;

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Item>,
    model: String,
    usage: Value,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding {
    Numbers(Vec<f32>),
    Text(String),
}

async fn embed(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    fields: Fields,
) -> Result<Response, ApiError> {
    let request: Request = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    bounds::check("input", request.input.len(), bounds::INPUTS)?;
    let (_, prompts) = request.input.tokens(&model, "input", false).await?;
    let pooling = match request.pooling {
        Some(How::Mean) => Pooling::Mean,
        Some(How::Last) => Pooling::Last,
        Some(How::Cls) => Pooling::First,
        None => model.pooling.clone().map_err(|what| ApiError::field("model", what))?,
    };
    let mut vectors = vec![Vec::new(); prompts.len()];
    let salt = shared.salt(client, None);
    let job = Job { client, salt, prompts, pooling: Some(pooling), ..Job::default() };
    let usage = compute(&shared, &model, job, |place, vector| vectors[place] = vector).await.map_err(of_input)?;
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(dimensions) = request.dimensions.filter(|&dimensions| dimensions != width) {
        let message = format!("{dimensions} dimensions; the model has {width}, and was not trained to do with fewer");
        return Err(ApiError::field("dimensions", message));
    }
    let encoding = request.encoding_format;
    work::hold(vectors.len().saturating_mul(width).saturating_mul(NUMBER))?;
    work::json(move || {
        let item = |(index, vector)| Item { object: "embedding", index, embedding: encoded(vector, encoding) };
        let usage = json!({ "prompt_tokens": usage.prompt(), "total_tokens": usage.prompt() });
        let data = vectors.into_iter().enumerate().map(item).collect();
        List { object: "list", data, model: model.name.clone(), usage }
    })
    .await
}

/// Computes a vector for each prompt of a job, and gives it to `each` with the prompt's place.
pub async fn compute(
    shared: &Shared,
    model: &Model,
    mut job: Job,
    mut each: impl FnMut(usize, Vec<f32>),
) -> Result<Usage, ApiError> {
    let prompts = std::mem::take(&mut job.prompts);
    let mut usage = Usage::new(prompts.len(), 1);
    // No more at once than are computed together, to leave room in the queue for other requests.
    let at_once = shared.config.parallel.max(1);
    for (number, prompts) in prompts.chunks(at_once).enumerate() {
        let first = number * at_once;
        let mut events = model.begin(Job { prompts: prompts.to_vec(), ..job.clone() })?;
        while let Some(event) = events.next().await? {
            match event {
                Event::Embedding { choice, vector } => each(first + choice, vector),
                Event::Prompt { choice, prompt } => usage.count(&Event::Prompt { choice: first + choice, prompt }),
                _ => {}
            }
        }
    }
    Ok(usage)
}

/// Renames the field in an error from the prompt to the input.
fn of_input(error: ApiError) -> ApiError {
    ApiError { param: error.param.map(|_| "input".to_owned()), ..error }
}

fn encoded(vector: Vec<f32>, encoding: Encoding) -> Embedding {
    match encoding {
        Encoding::Float => Embedding::Numbers(vector),
        Encoding::Base64 => {
            Embedding::Text(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
        }
    }
}
