//! Lists page by page, as OpenAI's API has them.

use axum::Json;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::files::Page;

/// How long the pages of a list are.
pub struct Length {
    pub usual: usize,
    pub most: usize,
}

impl Length {
    /// The page after an id, of this length if it is given.
    pub fn page(&self, after: Option<String>, limit: Option<&str>) -> Result<Page, ApiError> {
        let Length { usual, most } = *self;
        let limit = limit.map_or(Some(usual), |limit| limit.parse().ok().filter(|limit| (1..=most).contains(limit)));
        let limit =
            limit.ok_or_else(|| ApiError::field("limit", format!("expected a whole number from 1 to {most}")))?;
        Ok(Page { after, limit, oldest_first: false })
    }
}

/// A page as it is sent.
pub fn sent(data: Vec<Value>, has_more: bool) -> Json<Value> {
    let [first, last] = [data.first(), data.last()].map(|item| item.map_or(Value::Null, |item| item["id"].clone()));
    Json(json!({ "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more }))
}
