//! The query of a request: texts by name, read as the fields of a body are.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::body;
use crate::error::ApiError;
use crate::fields::Place;
use crate::server::Shared;

/// What a query says. An empty text is the same as none.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Query<T>, ApiError> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let pairs = pairs.filter(|(_, text)| !text.is_empty());
        let fields = pairs.map(|(name, text)| (name.into_owned(), text.into())).collect();
        body::read(Value::Object(fields), "", Place::Request).map(Query)
    }
}
