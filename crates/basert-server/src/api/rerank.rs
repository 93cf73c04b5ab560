//! `/v1/rerank`: how relevant documents are to a query, as the APIs of Jina and Cohere have it.

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::embeddings::compute;
use super::prompt::refuse_long;
use crate::auth::Client;
use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::model::Job;
use crate::random;
use crate::server::Shared;
use crate::work;

pub fn router() -> Router<Shared> {
    Router::new().route("/v1/rerank", post(rerank)).route("/v2/rerank", post(rerank)).route("/rerank", post(rerank))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    /// The number of results; all if it is missing.
    top_n: Option<usize>,
    #[serde(default)]
    return_documents: bool,
    /// What to look for, for models that are told.
    instruction: Option<String>,
    /// The most tokens of a query with a document; longer documents are cut.
    #[serde(alias = "max_tokens_per_doc")]
    truncate_prompt_tokens: Option<usize>,
    /// Whether documents that are too long for the model are cut, and not refused.
    #[serde(default)]
    truncate: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(&self) -> &str {
        let (Document::Text(text) | Document::Object { text }) = self;
        text
    }
}

#[derive(Serialize)]
struct List {
    id: String,
    object: &'static str,
    model: String,
    results: Vec<Item>,
    usage: Value,
}

#[derive(Serialize)]
struct Item {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Value>,
}

async fn rerank(
    State(shared): State<Shared>,
    Extension(Client(client)): Extension<Client>,
    fields: Fields,
) -> Result<Response, ApiError> {
    let request: Request = fields.rest()?;
    let model = shared.registry.get(request.model.as_deref()).await?;
    bounds::check("documents", request.documents.len(), bounds::INPUTS)?;
    if request.documents.is_empty() {
        return Err(ApiError::field("documents", "there are none; give the texts to rank"));
    }
    let Request { query, documents, top_n, return_documents, instruction, truncate_prompt_tokens, truncate, .. } =
        request;
    let limit = match (truncate_prompt_tokens, truncate) {
        (Some(limit), _) => limit.min(model.context()),
        (None, true) => model.context(),
        (None, false) => usize::MAX,
    };
    let (ranker, texts) = (model.clone(), documents.clone());
    let asked = work::run(move |wanted| {
        for text in texts.iter().map(Document::text).chain([query.as_str()]) {
            refuse_long(wanted, &ranker, text)?;
        }
        let texts: Vec<&str> = texts.iter().map(Document::text).collect();
        ranker.rank_request(&query, &texts, instruction.as_deref(), limit).map_err(|error| match error {
            basert::Error::Model { what, .. } => ApiError::field("model", what),
            error => ApiError::bad(error.to_string()),
        })
    });
    let asked: Job = asked.await?;
    let mut scores = vec![0.0; documents.len()];
    let job = Job { client, salt: shared.salt(client, None), ..asked };
    let usage = compute(&shared, &model, job, |place, vector| scores[place] = model.relevance(&vector)).await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(top_n.unwrap_or(usize::MAX));
    let item = |index: usize| {
        let document = return_documents.then(|| json!({ "text": documents[index].text() }));
        Item { index, relevance_score: scores[index], document }
    };
    let results = order.into_iter().map(item).collect();
    let usage = json!({ "prompt_tokens": usage.prompt(), "total_tokens": usage.prompt() });
    work::json(move || List { id: random::id("rerank-"), object: "list", model: model.name.clone(), results, usage })
        .await
}
