//! Anthropic's API.

use serde_json::{Value, json};

use crate::server::Running;

const MESSAGES: &str = "/v1/messages";

fn body() -> Value {
    json!({
        "model": "claude",
        "max_tokens": 8,
        "temperature": 0,
        "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }],
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Say something." }] }],
        "metadata": { "user_id": "me" },
        "ignore_eos": true,
    })
}

#[test]
fn events_come_in_the_order_of_the_api() {
    let server = Running::start("claude");
    let mut request = body();
    let whole = server.ask(MESSAGES, &request);
    assert_eq!((&whole["type"], &whole["stop_reason"]), (&json!("message"), &json!("max_tokens")));
    request["stream"] = true.into();
    let events = server.stream(MESSAGES, &request);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
    let (deltas, frame): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| **name == "content_block_delta");
    assert!(!deltas.is_empty());
    assert_eq!(
        frame,
        ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    );
    let data: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert!(names.iter().zip(&data).all(|(name, data)| data["type"] == *name));
    let text: String = data.iter().filter_map(|data| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, whole["content"][0]["text"]);
    let usage = &data[0]["message"]["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    // The same prompt a second time.
    assert_eq!(tokens("input_tokens"), 1);
    let first = whole["usage"]["input_tokens"].as_u64().unwrap();
    assert_eq!(tokens("cache_read_input_tokens") + 1, first);
    assert_eq!(data[data.len() - 2]["usage"]["output_tokens"], 8);
    let mut counted = body();
    counted.as_object_mut().unwrap().remove("max_tokens");
    counted.as_object_mut().unwrap().remove("ignore_eos");
    counted.as_object_mut().unwrap().remove("temperature");
    assert_eq!(server.ask("/v1/messages/count_tokens", &counted)["input_tokens"], first);
}

#[test]
fn stop_sequences_are_told() {
    let server = Running::start("claude");
    let whole = server.ask(MESSAGES, &body());
    let text = whole["content"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(2).collect();
    let mut request = body();
    request["stop_sequences"] = json!([stop]);
    let stopped = server.ask(MESSAGES, &request);
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(stopped["content"][0]["text"], text[..text.find(&stop).unwrap()]);
}

#[test]
fn mistakes_have_the_shape_of_the_api() {
    let server = Running::start("claude");
    let change = |name: &str, value: Value| {
        let mut body = body();
        body[name] = value;
        body
    };
    for (body, status, kind, part) in [
        (change("max_tokens", Value::Null), 400, "invalid_request_error", "max_tokens"),
        (change("model", json!("gpt")), 404, "not_found_error", "no model 'gpt'"),
        (change("n", json!(2)), 400, "invalid_request_error", "n: this field"),
        (change("stop", json!("x")), 400, "invalid_request_error", "stop: this field"),
        (
            change("messages", json!([{ "role": "user", "content": [{ "type": "image", "source": {} }] }])),
            400,
            "invalid_request_error",
            "messages[0].content",
        ),
    ] {
        let (found, answer) = server.refused(MESSAGES, &body);
        assert_eq!(
            (found, &answer["type"], &answer["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{answer}"
        );
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}
