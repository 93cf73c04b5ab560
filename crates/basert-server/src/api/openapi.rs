//! `/openapi.json`: the endpoints and their fields in machine-readable form.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::format::Formats;
use super::options::Options;
use super::thinking::Thinking;
use super::{batches, chat, completions, embeddings, files, infill, messages, models, rerank, responses, tokenize};
use crate::fields::names;
use crate::server::Shared;

pub fn router() -> Router<Shared> {
    Router::new().route("/openapi.json", get(async || Json(document())))
}

/// Fields in short form: name, type, description. Which of them an endpoint has is defined by the type of its request.
/// Fields that the APIs document have no description here.
const MEANINGS: &[&str] = &[
    "add_generation_prompt boolean false: the prompt ends with the last message",
    "after string the id that a page begins after",
    "background boolean only false",
    "best_of integer at most n",
    "chat_template_kwargs object variables for the chat template",
    "choice array texts; the answer is one of them",
    "completion_window string",
    "content string another name of text",
    "continue_final_message boolean whether a last message of the assistant is continued; default true",
    "dimensions integer only the model's own",
    "documents array texts to rank, or objects with a text",
    "echo boolean",
    "enable_thinking boolean for the chat template",
    "encoding_format string float or base64",
    "endpoint string",
    "frequency_penalty number",
    "grammar any GBNF, or Lark",
    "ignore_eos boolean continue after the end-of-text token",
    "input any one or more texts or lists of tokens; for a response, a text or items",
    "input_extra array other files that belong to it: filename and text",
    "input_file_id string",
    "input_prefix string the text before the gap",
    "input_suffix string the text behind the gap",
    "instruction string what to look for, for models that are told",
    "instructions string",
    "json_schema any a schema",
    "limit integer the length of a page",
    "logit_bias object",
    "logprobs any",
    "max_completion_tokens integer",
    "max_output_tokens integer",
    "max_tokens integer",
    "max_tokens_per_doc integer as truncate_prompt_tokens",
    "messages array",
    "metadata object",
    "min_p number only tokens with at least this probability relative to the likeliest one",
    "modalities array only text",
    "model string default: the first model",
    "n integer",
    "n_indent integer without effect",
    "order string asc or desc, the default: by age",
    "output_config object",
    "output_format object",
    "parallel_tool_calls boolean",
    "pooling string mean, last or cls; default: what the model was trained for",
    "presence_penalty number",
    "previous_response_id string a stored response",
    "prompt any a text, a list of texts, a list of tokens, or a list of lists of tokens",
    "prompt_cache_key string clients that send the same one share cached prefixes",
    "purpose string only files of this purpose",
    "query string the text that documents are ranked by",
    "reasoning object effort and switch, for the chat template",
    "reasoning_budget integer 0 switches reasoning off",
    "reasoning_effort string for the chat template",
    "regex string a regular expression that the whole answer matches",
    "repeat_last_n integer only -1: penalties apply to all tokens",
    "repeat_penalty number divides the logits of tokens already in the text; 1 is off",
    "response_format object type text, json_object, json_schema, grammar or regex",
    "return_documents boolean whether results have the texts of their documents",
    "return_progress boolean adds chunks with the progress of prefill to a stream",
    "samplers any without effect",
    "seed integer the same seed gives the same text; -1 is a random one",
    "stop any up to 16 texts",
    "stop_sequences array",
    "store boolean",
    "stream boolean",
    "stream_options object",
    "structured_outputs object json, regex, choice, grammar or json_object",
    "suffix string the text behind the answer, for models that fill in the middle",
    "system any",
    "t_max_predict_ms integer without effect",
    "t_max_prompt_ms integer without effect",
    "temperature number 0 (greedy) to 2; default, as for all sampling settings: the model's default_sampling",
    "text any for a response: its format",
    "think any true, false or an effort, for the chat template",
    "thinking object for the chat template",
    "tokens array",
    "tool_choice any",
    "tools array functions",
    "top_k integer only this many of the likeliest tokens; 0 and -1 mean all",
    "top_logprobs integer up to 20",
    "top_n integer how many results there are at most",
    "top_p number only the likeliest tokens whose probabilities add up to this",
    "truncate boolean whether documents that are too long for the model are cut",
    "truncate_prompt_tokens integer how many tokens of query and document there are at most; longer documents are cut",
    "truncation string only disabled",
];

/// The body of a request.
enum Body {
    None,
    /// None, but a query of these fields.
    Query(fn() -> Vec<&'static str>),
    /// JSON with these fields, of which some are required.
    Json(fn() -> Vec<&'static str>, &'static [&'static str]),
    /// A form with a file.
    Form,
}

/// The names of all fields of some types, but for those that an endpoint does not have.
macro_rules! fields {
    ($($part:ty),+ $(; but $but:expr)? $(; and $and:expr)?) => {
        || {
            #[allow(unused_mut)]
            let mut all: Vec<&'static str> = [$(names::<$part>()),+].concat();
            $(all.retain(|name| !$but.contains(name));)?
            $(all.extend($and);)?
            all
        }
    };
}

const RERANK: Body = Body::Json(fields!(rerank::Request), &["query", "documents"]);

/// Method, path, what it does, and its body.
const ENDPOINTS: &[(&str, &str, &str, Body)] = &[
    (
        "post",
        "/v1/chat/completions",
        "Answer a chat",
        Body::Json(fields!(chat::Request, Options, Thinking, Formats), &["messages"]),
    ),
    (
        "post",
        "/v1/completions",
        "Continue texts",
        Body::Json(fields!(completions::Request, Options, Formats), &["prompt"]),
    ),
    (
        "post",
        "/v1/infill",
        "Fill a gap in a text, on llama.cpp's API",
        Body::Json(fields!(infill::Request, Options; but infill::OTHERS), &["input_prefix", "input_suffix"]),
    ),
    (
        "post",
        "/v1/messages",
        "Answer a conversation, on Anthropic's API",
        Body::Json(fields!(messages::Request, Thinking, Options; but messages::OTHERS), &["messages", "max_tokens"]),
    ),
    (
        "post",
        "/v1/messages/count_tokens",
        "Count the tokens of a conversation",
        Body::Json(fields!(messages::Request, Thinking, Options; but messages::OTHERS), &["messages"]),
    ),
    (
        "post",
        "/v1/responses",
        "Answer, and store the conversation",
        Body::Json(
            fields!(responses::Request, Thinking, Options; but responses::OTHERS; and ["store", "metadata"]),
            &["input"],
        ),
    ),
    ("get", "/v1/responses/{id}", "A stored response", Body::None),
    ("delete", "/v1/responses/{id}", "Delete a stored response", Body::None),
    ("post", "/v1/embeddings", "Embed texts", Body::Json(fields!(embeddings::Request), &["input"])),
    ("post", "/v1/rerank", "Rank documents by a query, on Jina's API", RERANK),
    ("post", "/v2/rerank", "Rank documents by a query, on Cohere's API", RERANK),
    ("post", "/rerank", "Rank documents by a query", RERANK),
    ("get", "/v1/files", "The files", Body::Query(fields!(files::Listing))),
    ("post", "/v1/files", "Upload a file", Body::Form),
    ("get", "/v1/files/{id}", "A file", Body::None),
    ("delete", "/v1/files/{id}", "Delete a file", Body::None),
    ("get", "/v1/files/{id}/content", "The contents of a file", Body::None),
    ("get", "/v1/batches", "The batches", Body::Query(fields!(batches::Listing))),
    (
        "post",
        "/v1/batches",
        "Answer a file of requests",
        Body::Json(fields!(batches::Request; and ["metadata"]), &["input_file_id", "endpoint", "completion_window"]),
    ),
    ("get", "/v1/batches/{id}", "A batch", Body::None),
    ("post", "/v1/batches/{id}/cancel", "Cancel a batch", Body::None),
    ("get", "/v1/models", "The models", Body::None),
    ("get", "/v1/models/{name}", "A model", Body::None),
    ("post", "/v1/models/load", "Load a model", Body::Json(fields!(models::Named), &["model"])),
    ("post", "/v1/models/unload", "Unload a model", Body::Json(fields!(models::Named), &["model"])),
    (
        "post",
        "/v1/tokenize",
        "The tokens of a text or of a chat",
        Body::Json(fields!(tokenize::Request, Thinking), &[]),
    ),
    ("post", "/v1/detokenize", "The text of tokens", Body::Json(fields!(tokenize::Tokens), &["tokens"])),
    ("get", "/health", "Whether the server runs", Body::None),
    ("get", "/ready", "Whether it takes requests", Body::None),
    ("get", "/metrics", "Metrics for Prometheus", Body::None),
];

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for (method, path, summary, body) in ENDPOINTS {
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "200": { "description": "Success" },
                "default": { "description": "What is wrong, in the shape of the API" },
            },
        });
        let content = match body {
            Body::None | Body::Query(_) => None,
            Body::Json(names, required) => Some(("application/json", schema(&names(), required))),
            Body::Form => {
                let file = json!({ "type": "string", "format": "binary" });
                let properties = json!({ "file": file, "purpose": { "type": "string" } });
                let schema = json!({ "type": "object", "properties": properties, "required": ["file", "purpose"] });
                Some(("multipart/form-data", schema))
            }
        };
        if let Some((kind, schema)) = content {
            operation["requestBody"] = json!({ "required": true, "content": { kind: { "schema": schema } } });
        }
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let in_path =
            names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
        let query = if let Body::Query(names) = body { names() } else { vec![] };
        let in_query = query.into_iter().map(|name| json!({ "name": name, "in": "query", "schema": property(name) }));
        let parameters: Vec<_> = in_path.chain(in_query).collect();
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
            "description": "Fields that are not listed are refused by name, but for those that change no answer.",
        },
        "paths": paths,
        "components": { "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } } },
        "security": [{}, { "key": [] }],
    })
}

/// What a field of this name may be.
fn property(name: &str) -> Value {
    let mut rest = MEANINGS.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let (kind, meaning) = rest.next().map_or(("any", ""), |rest| rest.split_once(' ').unwrap_or((rest, "")));
    let mut property = if kind == "any" { json!({}) } else { json!({ "type": kind }) };
    if !meaning.is_empty() {
        property["description"] = meaning.into();
    }
    property
}

fn schema(names: &[&str], required: &[&str]) -> Value {
    let properties: Map<_, _> = names.iter().map(|&name| (name.to_owned(), property(name))).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_field_has_a_meaning_and_every_meaning_a_field() {
        let read: BTreeSet<&str> = ENDPOINTS
            .iter()
            .filter_map(|(_, _, _, body)| match body {
                Body::Json(names, _) | Body::Query(names) => Some(names()),
                Body::None | Body::Form => None,
            })
            .flatten()
            .collect();
        let meant: Vec<&str> = MEANINGS.iter().filter_map(|line| line.split(' ').next()).collect();
        assert!(meant.is_sorted());
        assert_eq!(read, BTreeSet::from_iter(meant));
    }

    /// But for pages and what they are made of.
    #[test]
    fn every_route_is_in_the_document() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
        let documented: BTreeSet<String> =
            ENDPOINTS.iter().map(|(method, path, ..)| format!("{method} {path}")).collect();
        let mut routes = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for route in text.split(".route(\"").skip(1) {
                let (path, handlers) = route.split_once('"').unwrap();
                let handlers = handlers.split(".route(").next().unwrap().lines().next().unwrap();
                for method in ["get", "post", "delete"] {
                    if handlers.contains(&format!("{method}(")) {
                        routes.insert(format!("{method} {}", path.replace("{*", "{")));
                    }
                }
            }
        }
        routes.remove("get /openapi.json");
        assert!(routes.len() > 20);
        assert_eq!(routes, documented);
    }
}
