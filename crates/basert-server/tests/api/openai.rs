//! OpenAI's API: chats and completions, whole and as streams.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use basert_engine::Speculation;
use basert_server::Config;
use serde_json::{Value, json};

use crate::server::{Running, config, events, tiny};

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";

fn chat(words: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": words }], "max_tokens": 24, "seed": 5, "ignore_eos": true })
}

pub fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let server = Running::start("pieces");
    let whole = server.ask(CHAT, &chat("Say something."));
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let events = server.stream(CHAT, &with(chat("Say something."), options));
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last.1, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let joined: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(!joined.is_empty());
    assert_eq!(joined, text(&whole));
    let (usage, finish) = (&chunks[chunks.len() - 1], &chunks[chunks.len() - 2]);
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    assert_eq!(whole["usage"]["total_tokens"], usage["usage"]["total_tokens"]);
    assert!(chunks.iter().all(|c| c["id"] == chunks[0]["id"] && c["object"] == "chat.completion.chunk"));
}

#[test]
fn a_prompt_is_not_read_twice_and_the_answer_is_the_same() {
    let server = Running::start("cached");
    let long = chat(&"The ships that passed each night. ".repeat(20));
    let first = server.ask(CHAT, &long);
    let second = server.ask(CHAT, &long);
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&first), 0);
    assert_eq!(cached(&second), second["usage"]["prompt_tokens"].as_u64().unwrap() - 1);
    assert_eq!(text(&first), text(&second));
}

/// A key that one client sends alone changes nothing, as programs send one for each conversation.
#[test]
fn clients_that_send_the_same_key_share_prefixes_and_others_do_not() {
    let keys = vec!["one".to_owned(), "two".to_owned()];
    let mut server = Running::with(Config { api_keys: keys, ..config() }, "cache keys", tiny);
    let mut is_cached = |client: &str, words: &str, key: Option<&str>| {
        server.key = Some(client.to_owned());
        let body = with(chat(&words.repeat(40)), json!({ "prompt_cache_key": key, "max_tokens": 1 }));
        server.ask(CHAT, &body)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 40
    };
    for (client, words, key, expected) in [
        ("one", "alone ", Some("conversation 1"), false),
        ("one", "alone ", Some("conversation 2"), true),
        ("one", "alone ", None, true),
        ("two", "alone ", None, false),
        ("one", "before ", Some("team"), false),
        ("two", "before ", Some("team"), false),
        // Both have sent it now.
        ("one", "before ", Some("team"), true),
        ("two", "together ", Some("team"), false),
        ("one", "together ", Some("team"), true),
        ("one", "together ", None, false),
        ("two", "secret ", None, false),
        ("two", "secrets ", Some("conversation 1"), false),
        ("one", "secret ", Some("team"), false),
    ] {
        assert_eq!(is_cached(client, words, key), expected, "{client}, {words}, {key:?}");
    }
    let (status, answer) = server.refused(CHAT, &with(chat("x"), json!({ "prompt_cache_key": 1 })));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("prompt_cache_key")));
}

/// More at once than there is room for, of different lengths, greedy and not.
#[test]
fn an_answer_is_the_same_in_company() {
    let server = Running::start("company");
    let asked: Vec<Value> = (0..12)
        .map(|i| {
            let temperature = if i % 2 == 0 { 0.0 } else { 0.9 };
            with(chat(&"word ".repeat(1 + i * 7)), json!({ "temperature": temperature, "seed": i }))
        })
        .collect();
    let alone: Vec<Value> = asked.iter().map(|body| server.ask(CHAT, body)).collect();
    // Others with the same prompts, so that some are found in the cache and some are not.
    let other = Running::start("company two");
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = asked.iter().map(|body| scope.spawn(|| other.ask(CHAT, body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(text(alone), text(together));
        assert!(!text(alone).is_empty());
    }
    other.wait_for("basert_kv_pages_held", 0.0);
}

#[test]
fn several_answers_have_seeds_of_their_own() {
    let server = Running::start("several");
    let body = with(chat("Say something."), json!({ "n": 3, "temperature": 1.0 }));
    let (first, again) = (server.ask(CHAT, &body), server.ask(CHAT, &body));
    assert_eq!(first["choices"], again["choices"]);
    let texts: Vec<_> = (0..3).map(|i| first["choices"][i]["message"]["content"].as_str().unwrap()).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(first["usage"]["completion_tokens"], 72);
    // The first one is that of the seed itself.
    assert_eq!(texts[0], text(&server.ask(CHAT, &with(chat("Say something."), json!({ "temperature": 1.0 })))));
}

#[test]
fn stop_texts_end_an_answer_and_are_not_part_of_it() {
    let server = Running::start("stops");
    let whole =
        server.ask(COMPLETE, &json!({ "prompt": "Once", "max_tokens": 40, "temperature": 0, "ignore_eos": true }));
    let whole = whole["choices"][0]["text"].as_str().unwrap();
    let stop: String = whole.chars().skip(9).take(3).collect();
    let body = json!({ "prompt": "Once", "max_tokens": 40, "temperature": 0, "ignore_eos": true, "stop": stop });
    let stopped = server.ask(COMPLETE, &body);
    assert_eq!(stopped["choices"][0]["text"], whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let events = server.stream(COMPLETE, &with(body, json!({ "stream": true })));
    let pieces = events.iter().filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok());
    let joined: String = pieces.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(joined, whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn log_probabilities_are_those_of_the_tokens() {
    let server = Running::start("logprobs");
    let body = with(chat("Hi"), json!({ "logprobs": true, "top_logprobs": 3, "temperature": 0, "max_tokens": 6 }));
    let answer = server.ask(CHAT, &body);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 6);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // The likeliest one was taken.
        assert_eq!((&top[0]["bytes"], &top[0]["logprob"]), (&token["bytes"], &token["logprob"]));
        let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] <= 0.0);
        assert!(logprobs.iter().map(|l| l.exp()).sum::<f64>() <= 1.0001);
    }
    let streamed = server.stream(CHAT, &with(body, json!({ "stream": true })));
    let streamed: Vec<Value> = streamed
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .flat_map(|c| c["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(&streamed, content);
}

#[test]
fn completions_take_texts_and_tokens_and_say_them_again() {
    let server = Running::start("prompts");
    let tokens = server.ask("/v1/tokenize", &json!({ "text": "Once upon" }));
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let common = json!({ "max_tokens": 5, "temperature": 0, "ignore_eos": true });
    let of = |prompt: Value, more: Value| {
        server.ask(COMPLETE, &with(with(common.clone(), more), json!({ "prompt": prompt })))
    };
    let text = of(json!("Once upon"), json!({}));
    let same = of(tokens["tokens"].clone(), json!({}));
    assert_eq!(text["choices"], same["choices"]);
    let many = of(json!(["Once upon", "Twice"]), json!({ "n": 2, "echo": true }));
    assert_eq!(many["choices"].as_array().unwrap().len(), 4);
    let first = text["choices"][0]["text"].as_str().unwrap();
    assert_eq!(many["choices"][0]["text"], format!("Once upon{first}"));
    assert!(many["choices"][2]["text"].as_str().unwrap().starts_with("Twice"));
    assert_eq!(many["usage"]["completion_tokens"], 20);
}

/// As evaluations ask for them: the prompt again, with what the model gave its tokens.
#[test]
fn completions_have_log_probabilities_of_their_prompts() {
    let server = Running::start("scores");
    let text = "Once upon a time there was a lighthouse, and it was old.";
    let of = |max_tokens: usize, more: Value| {
        let body =
            json!({ "prompt": text, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "logprobs": 4 });
        server.ask(COMPLETE, &with(body, more))["choices"].clone()
    };
    let answered = of(6, json!({ "echo": true, "n": 2 }));
    let none = of(0, json!({ "echo": true }));
    let whole = &answered[0];
    assert_eq!(whole, &with(answered[1].clone(), json!({ "index": 0 })));
    let said = whole["text"].as_str().unwrap();
    let list = |choice: &Value, name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let count = list(&none[0], "tokens").len();
    assert_eq!((none[0]["text"].as_str(), &none[0]["finish_reason"]), (Some(text), &json!("length")));
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(whole, name)[..count], list(&none[0], name), "{name}");
        assert_eq!(list(whole, name).len(), count + 6, "{name}");
    }
    assert_eq!((&list(whole, "token_logprobs")[0], &list(whole, "top_logprobs")[0]), (&Value::Null, &Value::Null));
    assert!(list(whole, "top_logprobs")[1..].iter().all(|top| !top.as_object().unwrap().is_empty()));
    let joined: String = list(whole, "tokens").iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, format!("<s> {said}"));
    let offsets: Vec<usize> =
        list(whole, "text_offset").iter().map(|offset| offset.as_u64().unwrap() as usize).collect();
    assert_eq!((offsets[0], offsets[1], offsets[count]), (0, 0, text.len()));
    // What a continuation of a part of the prompt gives its first token is what the prompt gives that one.
    let start = &text[..offsets[4]];
    let next = of(1, json!({ "prompt": start }));
    assert_eq!(list(&next[0], "top_logprobs")[0], list(whole, "top_logprobs")[4]);
    let body =
        json!({ "prompt": text, "max_tokens": 6, "temperature": 0, "ignore_eos": true, "logprobs": 4, "echo": true });
    let streamed: Vec<Value> = server
        .stream(COMPLETE, &with(body, json!({ "stream": true })))
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["token_logprobs"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, list(whole, "token_logprobs"));
    let unasked = json!({ "prompt": text, "max_tokens": 3, "ignore_eos": true, "echo": true, "stream": true });
    let chunks = server.stream(COMPLETE, &unasked);
    assert!(chunks.iter().all(|(_, data)| !data.contains("token_logprobs")), "{chunks:?}");
}

/// Numbers are kept, and their JSON is made when it is sent.
#[test]
fn log_probabilities_of_long_prompts_take_little_memory() {
    let server = Running::with(Config { request_memory: 16 << 20, ..config() }, "many scores", tiny);
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| (0..1000).map(|at| 3 + (at * (i + 2)) % 200).collect()).collect();
    let body = json!({ "prompt": prompts, "max_tokens": 0, "logprobs": 20, "echo": true });
    let response = server.post(COMPLETE, &body).send().unwrap();
    assert!(!response.headers().contains_key("content-length"));
    let answer: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
    for choice in answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")) {
        let lists = choice["logprobs"].as_object().unwrap();
        assert!(lists.len() == 4 && lists.values().all(|list| list.as_array().unwrap().len() == 1000));
    }
    let few = json!({ "prompt": "x", "max_tokens": 1, "logprobs": 20 });
    assert!(server.post(COMPLETE, &few).send().unwrap().headers().contains_key("content-length"));
    // It is counted all the same.
    let server = Running::with(Config { request_memory: 4 << 20, ..config() }, "too many scores", tiny);
    assert_eq!(server.refused(COMPLETE, &body).0, 413);
}

#[test]
fn mistakes_are_named() {
    let server = Running::start("mistakes");
    for (body, status, param, part) in [
        (json!({ "messages": [] }), 400, Some("messages"), "none"),
        (json!({ "max_tokens": 3 }), 400, None, "missing field `messages`"),
        (
            with(chat("x"), json!({ "grammar": "root ::= b" })),
            400,
            Some("grammar"),
            "grammar: rule root: there is no rule b",
        ),
        (with(chat("x"), json!({ "frobnicate": 1 })), 400, Some("frobnicate"), "not supported"),
        (with(chat("x"), json!({ "temperature": 9 })), 400, Some("temperature"), "from 0 to 2"),
        (with(chat("x"), json!({ "top_p": -0.1 })), 400, Some("top_p"), "-0.1 is not from 0 to 1"),
        (with(chat("x"), json!({ "n": 0 })), 400, Some("n"), "at least 1"),
        (with(chat("x"), json!({ "n": 100 })), 400, Some("n"), "100 answers"),
        (with(chat("x"), json!({ "logit_bias": { "x": 1 } })), 400, Some("logit_bias.x"), "vocabulary"),
        (with(chat("x"), json!({ "model": "other" })), 404, Some("model"), "there is no model 'other'"),
        (with(chat("x"), json!({ "max_tokens": -3 })), 400, Some("max_tokens"), "a whole number that is not negative"),
        (with(chat("x"), json!({ "top_logprobs": 2 })), 400, Some("top_logprobs"), "logprobs"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), 400, Some("messages[0].role"), "'wizard'"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            400,
            Some("messages[0].content[0]"),
            "cannot see the image",
        ),
        (chat(&"long ".repeat(2000)), 400, Some("messages"), "maximum context length is 1024 tokens"),
    ] {
        let (found, answer) = server.refused(CHAT, &body);
        let error = &answer["error"];
        assert_eq!((found, error["param"].as_str()), (status, param), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(part), "{body}: {answer}");
        assert!(error["type"].is_string());
    }
    let ignored = with(chat("x"), json!({ "user": "me", "metadata": { "a": 1 }, "store": true, "logprobs": null }));
    server.ask(CHAT, &ignored);
    assert_eq!(server.get("/v1/nowhere").send().unwrap().status(), 404);
    assert_eq!(server.get(CHAT).send().unwrap().status(), 405);
}

#[test]
fn models_are_listed_unloaded_and_loaded() {
    let server = Running::start("one");
    let listed = |server: &Running| server.get("/v1/models").send().unwrap().text().unwrap();
    let first: Value = serde_json::from_str(&listed(&server)).unwrap();
    assert_eq!((&first["data"][0]["id"], &first["data"][0]["loaded"]), (&json!("one"), &json!(true)));
    server.ask("/v1/models/unload", &json!({ "model": "one" }));
    assert!(listed(&server).contains("\"loaded\":false"));
    assert_eq!(server.get("/ready").send().unwrap().status(), 503);
    // A request opens it again.
    server.ask(CHAT, &chat("x"));
    assert!(listed(&server).contains("\"loaded\":true"));
    assert_eq!(server.get("/ready").send().unwrap().status(), 200);
    assert_eq!(server.get("/v1/models/one").send().unwrap().status(), 200);
    assert_eq!(server.get("/v1/models/two").send().unwrap().status(), 404);
    assert_eq!(server.refused("/v1/models/load", &json!({ "model": "two" })).0, 404);
}

#[test]
fn a_format_is_kept_and_one_that_cannot_be_is_refused() {
    let server = Running::start("formats");
    let format =
        |format: Value| with(chat("Say something."), json!({ "response_format": format, "ignore_eos": false }));
    let digits = server.ask(CHAT, &format(json!({ "type": "regex", "pattern": "[0-9]{3}" })));
    let said = text(&digits);
    assert!(said.len() == 3 && said.bytes().all(|c| c.is_ascii_digit()), "{said}");
    assert_eq!(digits["choices"][0]["finish_reason"], "stop");
    let schema = json!({ "type": "object", "properties": { "a": { "enum": ["x", "y"] } }, "required": ["a"],
        "additionalProperties": false });
    let schema = json!({ "type": "json_schema", "json_schema": { "name": "one", "strict": true, "schema": schema } });
    let mut whole = 0;
    for seed in 0..6 {
        let body = with(format(schema.clone()), json!({ "temperature": 1.0, "seed": seed, "n": 3, "max_tokens": 200 }));
        for choice in server.ask(CHAT, &body)["choices"].as_array().unwrap() {
            // Random weights may write space until they are cut off.
            if choice["finish_reason"] == "stop" {
                let said: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
                assert!(["x", "y"].contains(&said["a"].as_str().unwrap()), "{said}");
                whole += 1;
            }
        }
    }
    assert!(whole > 0);
    for (body, param) in [
        (format(json!({ "type": "regex", "pattern": "(" })), "response_format"),
        (format(json!({ "type": "xml" })), "response_format.type"),
        (with(chat("x"), json!({ "grammar": "root ::= missing" })), "grammar"),
    ] {
        let (status, answer) = server.refused(CHAT, &body);
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
    }
}

#[test]
fn a_tool_that_has_to_be_called_is_called() {
    let server = Running::start("tools");
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer", "maximum": 99, "minimum": 0 } },
        "required": ["n"], "additionalProperties": false });
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": schema } });
    let named = json!({ "type": "function", "function": { "name": "second" } });
    let asked = json!({ "tools": [tool("first"), tool("second")], "tool_choice": named, "max_tokens": 200,
        "ignore_eos": false });
    let body = with(chat("Call."), asked);
    let answer = server.ask(CHAT, &body);
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{answer}"
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("second")));
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["n"].is_u64(), "{arguments}");
    let events = server.stream(CHAT, &with(body.clone(), json!({ "stream": true })));
    let chunks: Vec<Value> = events.iter().filter_map(|(_, data)| serde_json::from_str(data).ok()).collect();
    let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"]);
    let streamed: String = deltas.filter_map(Value::as_str).collect();
    assert_eq!(streamed, calls[0]["function"]["arguments"].as_str().unwrap());
    let allowed = json!({ "mode": "required", "tools": [{ "type": "function", "function": { "name": "first" } }] });
    let choice = json!({ "type": "allowed_tools", "allowed_tools": allowed });
    let among = server.ask(CHAT, &with(body.clone(), json!({ "tool_choice": choice })));
    for call in among["choices"][0]["message"]["tool_calls"].as_array().unwrap() {
        assert_eq!(call["function"]["name"], "first");
    }
    // A format counts where text is allowed, and then an answer is one or the other.
    let format = json!({ "type": "json_schema", "json_schema": { "name": "one", "schema": schema } });
    let formatted = server.ask(CHAT, &with(body.clone(), json!({ "response_format": format })));
    assert_eq!(formatted["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1, "{formatted}");
    let either = json!({ "response_format": format, "tool_choice": "auto", "n": 8, "temperature": 1.0 });
    for choice in server.ask(CHAT, &with(body.clone(), either))["choices"].as_array().unwrap() {
        match (choice["finish_reason"].as_str().unwrap(), choice["message"]["content"].as_str()) {
            ("stop", Some(said)) => assert!(serde_json::from_str::<Value>(said).unwrap()["n"].is_u64(), "{said}"),
            ("tool_calls", None) | ("length", _) => {}
            _ => panic!("{choice}"),
        }
    }
    // Cut off, it is no call.
    let cut = server.ask(CHAT, &with(body, json!({ "max_tokens": 12 })));
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!(cut["choices"][0]["message"]["tool_calls"].is_null(), "{cut}");
    let other = json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "type": "function", "name": "b" }] });
    for unknown in [json!("sometimes"), json!({ "type": "function" }), json!(3), other] {
        let body = with(chat("x"), json!({ "tools": [tool("a")], "tool_choice": unknown }));
        assert_eq!(server.refused(CHAT, &body).1["error"]["param"], "tool_choice");
    }
}

/// As libraries send them, with what they made of an answer and with nulls.
#[test]
fn answers_are_taken_back() {
    let server = Running::start("back");
    let function = json!({ "name": "add", "arguments": "{}", "parsed_arguments": {} });
    let calls = json!([{ "id": "call_1", "type": "function", "function": function }]);
    let more = json!({ "refusal": null, "audio": null, "function_call": null, "annotations": [], "parsed": null });
    let answer = with(json!({ "role": "assistant", "content": null, "tool_calls": calls }), more);
    let result = json!({ "role": "tool", "tool_call_id": "call_1", "content": "5" });
    let mut body = chat("x");
    body["messages"].as_array_mut().unwrap().extend([answer, result]);
    server.ask(CHAT, &body);
    body["messages"][1]["audio"] = json!({ "id": "audio_1" });
    let (status, answer) = server.refused(CHAT, &body);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages[1].audio")));
}

/// A stream has a status of its own too, while nothing of it is sent.
#[test]
fn a_prompt_that_is_too_long_is_refused_before_a_stream_begins() {
    let server = Running::start("long");
    let long = with(chat(&"long ".repeat(5000)), json!({ "stream": true }));
    let (status, answer) = server.refused(CHAT, &long);
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}

/// The page for people says all that the document says, and needs no script and nothing from elsewhere.
#[test]
fn the_document_has_a_page() {
    let server = Running::start("page");
    let document: Value = serde_json::from_str(&server.get("/openapi.json").send().unwrap().text().unwrap()).unwrap();
    let answer = server.get("/docs").send().unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = answer.text().unwrap();
    assert!(!page.contains("<script") && !page.contains("style=") && !page.contains("//"), "{page}");
    for (path, methods) in document["paths"].as_object().unwrap() {
        assert!(page.contains(&format!("<code>{path}</code>")), "{path}");
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        for name in schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(page.contains(&format!("<th>{name}<td>")), "{path}: {name}");
        }
    }
    assert!(server.get("/docs.css").send().unwrap().text().unwrap().contains("color-scheme"));
}

/// Every endpoint of the document exists, and every field of it is known.
#[test]
fn the_document_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::with(Config { files: Some(folder.path().to_owned()), ..config() }, "document", tiny);
    let document: Value = serde_json::from_str(&server.get("/openapi.json").send().unwrap().text().unwrap()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let path = path.replace("{id}", "resp_0").replace("{name}", "document");
            match method.as_str() {
                "post" => {
                    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                    if schema.is_null() {
                        continue;
                    }
                    // Of the wrong type, every one of them is refused for that.
                    for field in schema["properties"].as_object().unwrap().keys() {
                        let (status, answer) = server.refused(&path, &json!({ (field): { "wrong": [] } }));
                        let message = answer["error"]["message"].as_str().unwrap();
                        assert!(
                            status >= 400 && !message.contains(&format!("{field}: this field")),
                            "{path}: {answer}"
                        );
                    }
                    let (status, answer) = server.refused(&path, &json!({ "frobnicate": 1 }));
                    let message = answer["error"]["message"].as_str().unwrap();
                    assert!(status == 400 && message.contains("frobnicate"), "{path}: {answer}");
                }
                "get" => {
                    let answer = server.get(&path).send().unwrap();
                    assert!(answer.status() != 405 && !answer.text().unwrap().contains("nothing at"), "{path}");
                }
                _ => {}
            }
        }
    }
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let vector =
        |item: &Value| item["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    answer["data"].as_array().unwrap().iter().map(vector).collect()
}

#[test]
fn embeddings_come_in_every_form() {
    let server = Running::start("embeds");
    let texts = ["Once upon a time", "x", "Once upon a time"];
    let answer = server.ask("/v1/embeddings", &json!({ "input": texts, "model": "embeds" }));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("embeds")));
    assert_eq!((&answer["data"][1]["object"], &answer["data"][1]["index"]), (&json!("embedding"), &json!(1)));
    let all = vectors(&answer);
    assert!(all.len() == 3 && all[0] == all[2] && all[0] != all[1]);
    let length: f32 = all[0].iter().map(|x| x * x).sum();
    assert!(all[0].len() == 64 && (length - 1.0).abs() < 1e-5, "{length}");

    let tokens = |text: &str| server.ask("/v1/tokenize", &json!({ "text": text }))["tokens"].clone();
    let many: Vec<Value> = texts.iter().map(|text| tokens(text)).collect();
    let count: usize = many.iter().map(|tokens| tokens.as_array().unwrap().len()).sum();
    assert_eq!(answer["usage"], json!({ "prompt_tokens": count, "total_tokens": count }));
    for (input, expected) in [(json!(texts[0]), &all[..1]), (many[1].clone(), &all[1..2]), (json!(many), &all[..])] {
        assert_eq!(vectors(&server.ask("/v1/embeddings", &json!({ "input": input }))), expected);
    }
    // More than are computed at once, beside an answer.
    let stream = events(
        server.post("/v1/completions", &json!({ "prompt": "x", "max_tokens": 200, "stream": true })).send().unwrap(),
    );
    let inputs: Vec<&str> = texts.into_iter().cycle().take(40).collect();
    let long = server.ask("/v1/embeddings", &json!({ "input": inputs, "dimensions": 64 }));
    assert!(vectors(&long).iter().zip(all.iter().cycle()).all(|(found, expected)| found == expected));
    assert!(stream.last().unwrap().1 == "[DONE]");

    let encoded = server.ask("/v1/embeddings", &json!({ "input": "x", "encoding_format": "base64", "user": "me" }));
    let bytes = STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(floats, all[1]);
    // Of a single token, the mean is the last; of more it is not.
    let last = |input: Value| vectors(&server.ask("/v1/embeddings", &json!({ "input": input, "pooling": "last" })));
    let one = vectors(&server.ask("/v1/embeddings", &json!({ "input": [5] })));
    assert_eq!(last(json!([5])), one);
    assert_ne!(last(json!(texts[0])), all[..1]);
    server.wait_for("basert_kv_pages_held", 0.0);
}

#[test]
fn embeddings_that_cannot_be_are_refused() {
    let server = Running::start("embeds not");
    let many: Vec<&str> = vec!["x"; 2049];
    for (body, field, part) in [
        (json!({ "input": "x", "dimensions": 32 }), json!("dimensions"), "the model has 64"),
        (json!({ "input": "x", "encoding_format": "int8" }), json!("encoding_format"), "unknown variant"),
        (json!({ "input": "x", "pooling": "first" }), json!("pooling"), "unknown variant"),
        (json!({ "input": "x", "colour": 1 }), json!("colour"), "not supported"),
        (json!({ "input": many }), json!("input"), "2048 are the most"),
        (json!({ "input": {} }), json!("input"), "a list of lists of tokens"),
        (json!({ "input": [[1], []] }), json!("input[1]"), "no tokens"),
        (json!({ "input": [999_999] }), Value::Null, "is not one of the"),
        (json!({ "input": vec![5; 2000] }), json!("input"), "maximum context length is 1024 tokens"),
    ] {
        let (status, answer) = server.refused("/v1/embeddings", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(part), "{body}: {answer}");
        assert_eq!(answer["error"]["param"], field, "{body}: {answer}");
    }
    assert_eq!(server.refused("/v1/embeddings", &json!({ "input": "x", "model": "none" })).0, 404);
    server.wait_for("basert_running_answers", 0.0);
}

#[test]
fn guesses_change_no_answer_and_are_counted() {
    let with = |speculation, name| Running::with(Config { speculation, ..config() }, name, tiny);
    let (plain, guessing) = (with(Speculation::Off, "plain"), with(Speculation::Tokens(6), "guessing"));
    let grammar = json!({ "type": "regex", "pattern": "( (ab|ba)){9}" });
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "ab ab ab ab", "max_tokens": 40, "temperature": 0, "ignore_eos": true })),
        ("/v1/completions", json!({ "prompt": ["ab ab", "x"], "n": 3, "max_tokens": 30, "seed": 4, "logprobs": 2 })),
        ("/v1/completions", json!({ "prompt": "ab ab ab", "max_tokens": 40, "temperature": 0, "stop": ["a", "e"] })),
        (
            "/v1/chat/completions",
            json!({
                "messages": [{ "role": "user", "content": "ab ba" }], "seed": 1, "max_tokens": 60, "response_format": grammar,
            }),
        ),
    ] {
        let [expected, found] = [&plain, &guessing].map(|server| {
            let mut answer = server.ask(path, &body);
            ["id", "created", "model"].iter().for_each(|field| drop(answer[*field].take()));
            answer
        });
        assert_eq!(found, expected, "{body}");
    }
    let (proposed, accepted) =
        (guessing.metric("basert_proposed_tokens_total"), guessing.metric("basert_accepted_tokens_total"));
    assert!(proposed > 0.0 && accepted > 0.0 && accepted <= proposed, "{accepted} of {proposed}");
    assert_eq!(plain.metric("basert_proposed_tokens_total"), 0.0);
}

#[test]
fn what_a_request_leaves_open_is_what_the_models_are_listed_with() {
    let server = Running::start("left-open");
    let listed = server.get("/v1/models").send().unwrap().text().unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let sampling = &listed["data"][0]["default_sampling"];
    let usual = json!({
        "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    });
    assert_eq!(*sampling, usual);
    let body = chat("Something.");
    let text = |body: &Value| server.ask(CHAT, body)["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&with(body.clone(), usual)), text(&body));
    let any = with(body, json!({ "temperature": 2, "top_k": -1, "min_p": 0, "seed": -1 }));
    assert_ne!(text(&any), text(&any));
}
