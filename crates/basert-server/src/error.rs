//! Error responses.
//!
//! The code that finds a mistake returns an [`ApiError`]. Its form in the request's API is decided in one place, by the
//! path of the request: [`in_its_own_shape`].

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use basert_engine::EngineError;
use serde_json::{Value, json};

/// `Retry-After` in seconds, if nothing better is known.
const SOON: u64 = 5;

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// A code that distinguishes errors of the same status.
    pub code: Option<&'static str>,
    /// Tokens of a prompt that is longer than the context, and those of the context. Programs that shorten
    /// conversations know that by the words that an API has for it.
    pub overflow: Option<(usize, usize)>,
    /// Seconds after which a retry may succeed.
    pub again_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, overflow: None, again_after: None }
    }

    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// This field of the request is wrong.
    pub fn field(param: impl Into<String>, message: impl std::fmt::Display) -> ApiError {
        let param = param.into();
        ApiError { param: Some(param.clone()), ..ApiError::bad(format!("{param}: {message}")) }
    }

    /// An internal error.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn with_code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// Sets the seconds after which a retry may succeed.
    pub fn again_after(self, seconds: u64) -> ApiError {
        ApiError { again_after: Some(seconds.max(1)), ..self }
    }

    /// The error that another one was caused by.
    pub fn within<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e ApiError> {
        std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
    }

    /// The body in the form of OpenAI's API.
    pub fn openai(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let message = match self.overflow {
            None => self.message.clone(),
            Some((tokens, context)) => format!(
                "This model's maximum context length is {context} tokens. However, the prompt has {tokens} tokens. \
                 Please shorten it, or serve the model with a larger --max-context."
            ),
        };
        json!({ "error": { "message": message, "type": kind, "param": self.param, "code": self.code } })
    }

    /// The body in the form of Anthropic's API.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let message = match self.overflow {
            None => self.message.clone(),
            Some((tokens, context)) => format!(
                "prompt is too long: {tokens} tokens > {context} maximum; shorten it, or serve the model with a larger \
                 --max-context"
            ),
        };
        json!({ "type": "error", "error": { "type": kind, "message": message } })
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        match &error {
            &EngineError::ContextFull { tokens, context } => {
                let bad = ApiError::bad(error.to_string()).with_code("context_length_exceeded");
                ApiError { param: Some("messages".to_owned()), overflow: Some((tokens, context)), ..bad }
            }
            // What takes more than the limits of a step, or leaves no token, is the request's grammar.
            EngineError::UnknownToken { .. }
            | EngineError::TooManyAnswers { .. }
            | EngineError::NoLogits
            | EngineError::Constraint(_) => ApiError::bad(error.to_string()),
            EngineError::OutOfPages { .. } | EngineError::OutOfSlots { .. } | EngineError::Stopped => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            EngineError::NotNumbers | EngineError::Device(_) => ApiError::internal(error.to_string()),
        }
    }
}

impl From<basert::Error> for ApiError {
    fn from(error: basert::Error) -> ApiError {
        match error {
            basert::Error::Engine(error) => error.into(),
            basert::Error::EmptyPrompt | basert::Error::Sampling(_) => ApiError::bad(error.to_string()),
            error => ApiError::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives errors the form of the API to which the request's path belongs.
pub async fn in_its_own_shape(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if status == StatusCode::NOT_FOUND && response.headers().get(header::CONTENT_TYPE).is_none() => {
            ApiError::new(status, format!("there is nothing at {path}; /openapi.json lists what there is"))
        }
        None if status == StatusCode::METHOD_NOT_ALLOWED => {
            ApiError::new(status, format!("{path} does not take {method}"))
        }
        None => return response,
    };
    let mut error = error;
    if error.overflow.is_some() {
        let field = match path.as_str() {
            "/v1/responses" | "/v1/embeddings" => "input",
            "/v1/completions" => "prompt",
            "/v1/rerank" | "/v2/rerank" | "/rerank" => "documents",
            "/v1/infill" => "input_prefix",
            _ => "messages",
        };
        error.param = Some(field.to_owned());
    }
    let body = if path.starts_with("/v1/messages") { error.anthropic() } else { error.openai() };
    let mut worded = (error.status, axum::Json(body)).into_response();
    for (name, value) in response.headers().iter().filter(|(name, _)| *name == header::ALLOW) {
        worded.headers_mut().insert(name, value.clone());
    }
    if let Some(seconds) = error.again_after.or((error.status == StatusCode::SERVICE_UNAVAILABLE).then_some(SOON)) {
        worded.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if error.status == StatusCode::UNAUTHORIZED {
        worded.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    worded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_that_cannot_go_on_is_the_fault_of_its_request() {
        let error = ApiError::from(EngineError::Constraint("a row has 20007 items".to_owned()));
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert_eq!(error.openai()["error"]["type"], "invalid_request_error");
    }
}
