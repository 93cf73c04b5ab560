//! `/openapi.json`: what there is, in a form that programs read.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new().route("/openapi.json", get(async || Json(document())))
}

/// Fields of a request, in a form that is short to write: `name type meaning`, with `*` behind the name of what is
/// required. Where the APIs say what a field means, nothing is said here.
type Fields = &'static [&'static str];

/// How an answer is generated, wherever one is.
const SAMPLING: Fields = &[
    "model string the first one, if left out",
    "temperature number from 0, which takes the likeliest token, to 2; this and the next ones are the model's default_sampling if left out",
    "top_p number tokens that have this share of the probability",
    "top_k integer so many of the likeliest tokens; 0 and -1 are all",
    "min_p number tokens that are at least this share as likely as the likeliest",
    "repeat_penalty number divides the logits of tokens that came before; 1 changes nothing",
    "presence_penalty number",
    "frequency_penalty number",
    "seed integer the same one gives the same text; -1 is any",
    "stream boolean",
    "ignore_eos boolean goes on where the model would end",
];
/// What OpenAI's chats and completions have beside that.
const OPENAI: Fields = &[
    "n integer",
    "stop any up to 16 texts",
    "stream_options object",
    "logit_bias object",
    "return_progress boolean adds chunks to a stream that tell how far the prompt is",
];
const CHAT: Fields = &[
    "messages* array",
    "max_completion_tokens integer",
    "max_tokens integer",
    "logprobs boolean",
    "top_logprobs integer up to 20",
    "tools array functions",
    "tool_choice any",
    "parallel_tool_calls boolean",
    "response_format object type text, json_object, json_schema, gbnf, lark or regex",
    "grammar string GBNF, as llama.cpp has it",
    "reasoning_effort string for the template",
    "enable_thinking boolean for the template",
    "chat_template_kwargs object for the template",
    "modalities array text alone",
];
const COMPLETION: Fields = &[
    "prompt* any a text, texts, tokens, or lists of tokens",
    "max_tokens integer",
    "logprobs integer up to 20",
    "echo boolean",
];
const EMBEDDING: Fields = &[
    "model string",
    "input* any a text, texts, tokens, or lists of tokens",
    "encoding_format string float or base64",
    "dimensions integer those of the model",
    "pooling string mean, last or cls; what the model was trained for where it is absent",
];
const MESSAGES: Fields = &[
    "messages* array",
    "max_tokens* integer",
    "system any",
    "stop_sequences array",
    "tools array those of the client",
    "tool_choice object",
    "thinking object",
    "output_config object",
];
const RESPONSES: Fields = &[
    "input* any",
    "instructions string",
    "max_output_tokens integer",
    "previous_response_id string an answer that was kept in memory",
    "tools array functions",
    "tool_choice any",
    "parallel_tool_calls boolean",
    "reasoning object",
    "text object",
    "truncation string disabled alone",
    "background boolean false alone",
];
const TOKENIZE: Fields = &[
    "model string the first one, if left out",
    "text string",
    "messages array as they are rendered for the model",
    "chat_template_kwargs object for the template",
];
const BATCH: Fields = &["input_file_id* string", "endpoint* string", "completion_window* string", "metadata object"];
const MODEL: Fields = &["model* string"];

/// Method, path, what it does, and the fields of its body.
const ENDPOINTS: &[(&str, &str, &str, &[Fields])] = &[
    ("post", "/v1/chat/completions", "Answer a chat", &[CHAT, SAMPLING, OPENAI]),
    ("post", "/v1/completions", "Continue texts", &[COMPLETION, SAMPLING, OPENAI]),
    ("post", "/v1/messages", "Answer a conversation, on Anthropic's API", &[MESSAGES, SAMPLING]),
    ("post", "/v1/messages/count_tokens", "Count the tokens of a conversation", &[MESSAGES]),
    ("post", "/v1/responses", "Answer, and keep the conversation", &[RESPONSES, SAMPLING]),
    ("get", "/v1/responses/{id}", "An answer that was kept", &[]),
    ("delete", "/v1/responses/{id}", "Forget an answer", &[]),
    ("post", "/v1/embeddings", "Vectors of texts", &[EMBEDDING]),
    ("get", "/v1/files", "The files", &[]),
    ("get", "/v1/files/{id}", "A file", &[]),
    ("delete", "/v1/files/{id}", "Remove a file", &[]),
    ("get", "/v1/files/{id}/content", "What is in a file", &[]),
    ("get", "/v1/batches", "The batches", &[]),
    ("post", "/v1/batches", "Answer a file of requests", &[BATCH]),
    ("get", "/v1/batches/{id}", "A batch", &[]),
    ("get", "/v1/models", "The models", &[]),
    ("get", "/v1/models/{name}", "A model", &[]),
    ("post", "/v1/models/load", "Open a model", &[MODEL]),
    ("post", "/v1/models/unload", "Let go of a model", &[MODEL]),
    ("post", "/v1/tokenize", "The tokens of a text or of a chat", &[TOKENIZE]),
    ("post", "/v1/detokenize", "The text of tokens", &[&["model string", "tokens* array"]]),
    ("get", "/health", "Whether the server runs", &[]),
    ("get", "/ready", "Whether it takes requests", &[]),
    ("get", "/metrics", "Measurements for Prometheus", &[]),
];

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for (method, path, summary, fields) in ENDPOINTS {
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "200": { "description": "Success" },
                "default": { "description": "What is wrong, in the shape of the API" },
            },
        });
        if *method == "post" {
            let schema = schema(fields);
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Vec<_> = names
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        let entry = paths.entry((*path).to_owned()).or_insert_with(|| json!({}));
        entry[*method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "basert",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Fields that are not listed are refused by name, but for those that the APIs call ignorable.",
        },
        "paths": paths,
        "components": { "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } } },
        "security": [{}, { "key": [] }],
    })
}

fn schema(fields: &[Fields]) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in fields.iter().copied().flatten() {
        let mut words = field.splitn(3, ' ');
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let bare = name.trim_end_matches('*');
        if bare != name {
            required.push(bare);
        }
        let mut property = if kind == "any" { json!({}) } else { json!({ "type": kind }) };
        if let Some(meaning) = words.next() {
            property["description"] = meaning.into();
        }
        properties.insert(bare.to_owned(), property);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
