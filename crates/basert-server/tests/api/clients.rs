//! Clients as they are: what programs send that know other servers, and what they send back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use basert_server::Config;
use serde_json::{Value, json};

use crate::openai::with;
use crate::server::{Running, config, tiny};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// Requests of a few tokens to each of the APIs.
fn simple(path: &str) -> Value {
    let messages = json!([{ "role": "user", "content": "x" }]);
    match path {
        "/v1/completions" => json!({ "prompt": "x", "max_tokens": 2 }),
        RESPONSES => json!({ "input": "x", "max_output_tokens": 2 }),
        _ => json!({ "messages": messages, "max_tokens": 2 }),
    }
}

/// The response's header that says what had no effect.
fn warning(server: &Running, path: &str, body: &Value) -> Option<String> {
    let response = server.post(path, body).send().unwrap();
    let warning = response.headers().get("warning").map(|warning| warning.to_str().unwrap().to_owned());
    assert_eq!(response.status(), 200, "{body}: {}", response.text().unwrap());
    warning
}

#[test]
fn fields_of_other_servers_are_taken_where_they_change_nothing() {
    let server = Running::start("others");
    for path in ["/v1/completions", CHAT, MESSAGES, RESPONSES] {
        for more in [
            json!({ "typical_p": 1.0, "mirostat": 0, "min_tokens": 0, "use_beam_search": false, "n": 1, "best_of": 1 }),
            json!({ "skip_special_tokens": true, "repeat_last_n": 64, "repetition_penalty": 1.0, "top_k": -1 }),
            json!({ "user": "me", "service_tier": "auto", "stop": [], "suffix": "", "echo": false, "logprobs": 0 }),
            json!({ "options": {}, "seed": -1, "temperature": 0.0, "stream_options": { "include_usage": true } }),
        ] {
            assert_eq!(warning(&server, path, &with(simple(path), more)), None);
        }
        let ignored = json!({ "cache_prompt": true, "keep_alive": "5m", "ttl": 300, "verbosity": "low" });
        let warning = warning(&server, path, &with(simple(path), ignored)).unwrap();
        assert_eq!(warning, "299 basert \"without effect: cache_prompt, keep_alive, ttl, verbosity\"");
        for refused in [json!({ "mirostat": 2 }), json!({ "frobnicate": 1 }), json!({ "min_tokens": 5 })] {
            assert_eq!(server.refused(path, &with(simple(path), refused.clone())).0, 400, "{refused}");
        }
    }
    for path in ["/v1/completions", CHAT, RESPONSES] {
        let mut body = simple(path);
        ["max_tokens", "max_output_tokens"].iter().for_each(|name| drop(body.as_object_mut().unwrap().remove(*name)));
        let answer = server.ask(path, &with(body, json!({ "n_predict": 3.0, "ignore_eos": true })));
        let usage = &answer["usage"];
        assert_eq!(usage.get("completion_tokens").or(usage.get("output_tokens")), Some(&json!(3)), "{path}");
    }
    for more in [
        json!({ "reasoning": { "effort": "low" } }),
        json!({ "think": false }),
        json!({ "thinking": { "type": "disabled", "budget_tokens": 0 } }),
        json!({ "add_generation_prompt": true, "continue_final_message": false }),
        json!({ "tools": [{ "name": "a", "input_schema": { "type": "object" } }], "tool_choice": { "type": "any" } }),
    ] {
        warning(&server, CHAT, &with(simple(CHAT), more));
    }
}

#[test]
fn messages_are_taken_back_with_what_servers_and_clients_add() {
    let server = Running::start("added");
    let function = |arguments: Value| json!({ "name": "f", "arguments": arguments });
    let user = json!({ "role": "user", "content": "x", "cache_control": { "type": "ephemeral" } });
    for message in [
        json!({ "content": "a", "reasoning": "r", "reasoning_content": "r", "reasoning_details": [{}] }),
        json!({ "content": "a", "provider_specific_fields": null, "id": "1", "finish_reason": "stop", "name": null }),
        json!({ "content": [{ "type": "refusal", "refusal": "no" }] }),
        json!({ "content": [{ "type": "text", "text": "a", "cache_control": {} }, { "type": "thinking", "thinking": "" }] }),
        json!({ "content": null }),
        json!({ "reasoning_content": "r", "tool_calls": [] }),
        json!({ "tool_calls": [{ "id": "1", "function": function(json!("{}")), "extra_content": {}, "index": 0 }] }),
        json!({ "tool_calls": [{ "function": function(json!({ "a": 1 })) }, { "function": function(Value::Null) }] }),
    ] {
        let mut messages = vec![user.clone(), with(message.clone(), json!({ "role": "assistant" }))];
        // Results without an id answer the calls in their order.
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            messages.push(json!({ "role": "tool", "content": null, "tool_call_id": call["id"] }));
        }
        messages.push(user.clone());
        server.ask(CHAT, &json!({ "messages": messages, "max_tokens": 1 }));
    }
    let orphan = json!([user, { "role": "tool", "content": "1" }]);
    let (status, answer) = server.refused(CHAT, &json!({ "messages": orphan }));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages[1].tool_call_id")), "{answer}");
    let call = json!({ "type": "function_call", "name": "f", "arguments": "{}" });
    let output = json!({ "type": "function_call_output", "output": "1" });
    server.ask("/v1/responses", &json!({ "input": [user, call, output], "max_output_tokens": 1 }));
    assert_eq!(server.refused("/v1/responses", &json!({ "input": [user, output] })).0, 400);
    let called = json!({ "role": "assistant", "content": null, "function_call": function(json!("{}")) });
    let result = json!({ "role": "function", "name": "f", "content": "1" });
    server.ask(CHAT, &json!({ "messages": [user, called, result], "max_tokens": 1 }));
    for input in [json!("{\"a\": "), json!({}), Value::Null] {
        let call = json!({ "type": "tool_use", "id": "1", "name": "f", "input": input });
        let content = json!([{ "type": "thinking", "thinking": null }, { "type": "hologram" }, call]);
        let result = json!([{ "type": "tool_result", "tool_use_id": "1" }]);
        let said = json!([user, { "role": "assistant", "content": content }, { "role": "user", "content": result }]);
        server.ask(MESSAGES, &json!({ "messages": said, "max_tokens": 1 }));
    }
    let (status, answer) = server.refused(CHAT, &json!({ "messages": [with(user, json!({ "colour": 1 }))] }));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages[0].colour")));
}

/// What cannot be read is refused where it is asked about, and noted where the conversation only has it.
#[test]
fn images_end_no_conversation() {
    let server = Running::start("images");
    let image = json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "" } });
    let text = json!({ "type": "text", "text": "Read it." });
    let call =
        json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": "1", "name": "see", "input": {} }] });
    let result = |content: Value| json!({ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "1", "content": content }] });
    let ask = |messages: Value| json!({ "messages": messages, "max_tokens": 1 });
    let user = json!({ "role": "user", "content": "x" });
    let shown = ask(json!([user, call, result(json!([text, image]))]));
    let warning = warning(&server, MESSAGES, &shown).unwrap();
    assert!(warning.contains("messages[2].content[0].content[1] (image)"), "{warning}");
    let asked = json!({ "role": "user", "content": [text, image] });
    warning_of_earlier(&server, &ask(json!([asked, { "role": "assistant", "content": "y" }, user])));
    let (status, answer) = server.refused(MESSAGES, &ask(json!([asked])));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(status == 400 && message.starts_with("messages[0].content[1]: ") && message.contains("image"), "{message}");

    for content in [
        json!([{ "type": "tool_reference", "tool_name": "clock" }]),
        json!([{ "type": "search_result", "source": "a", "title": "b", "content": [text] }]),
        json!([{ "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "words" } }]),
    ] {
        server.ask(MESSAGES, &ask(json!([user, call, result(content)])));
    }
    let of_the_service = json!({ "role": "assistant", "content": [
        { "type": "server_tool_use", "id": "s", "name": "web_search", "input": {} },
        { "type": "web_search_tool_result", "tool_use_id": "s", "content": [] },
        { "type": "redacted_thinking", "data": "" },
        text,
    ] });
    server.ask(MESSAGES, &ask(json!([user, of_the_service, user])));
    let unknown = json!({ "role": "user", "content": [{ "type": "hologram" }] });
    assert!(server.refused(MESSAGES, &ask(json!([unknown]))).1.to_string().contains("messages[0].content[0].type"));

    let shot = json!({ "type": "function_call_output", "call_id": "1", "output": [{ "type": "input_image", "image_url": "" }] });
    let call = json!({ "type": "function_call", "call_id": "1", "name": "see", "arguments": "{}" });
    server.ask(RESPONSES, &json!({ "input": [user, call, shot], "max_output_tokens": 1 }));
    let part = json!({ "role": "tool", "tool_call_id": "1", "content": [{ "type": "image_url", "image_url": {} }] });
    let called = json!({ "role": "assistant", "tool_calls": [{ "id": "1", "function": { "name": "see" } }] });
    server.ask(CHAT, &json!({ "messages": [user, called, part], "max_tokens": 1 }));
}

/// What a service would run is not declared to the model, and ends no session.
#[test]
fn tools_of_a_service_are_left_out() {
    let server = Running::start("service");
    for (path, tool) in [
        (RESPONSES, json!({ "type": "mcp", "server_label": "a" })),
        (RESPONSES, json!({ "type": "code_interpreter", "container": {} })),
        (RESPONSES, json!({ "type": "shell" })),
        (MESSAGES, json!({ "type": "web_search_20250305", "name": "web_search", "max_uses": 5 })),
    ] {
        let tools = json!({ "tools": [tool] });
        let found = warning(&server, path, &with(simple(path), tools)).unwrap();
        assert!(found.contains("tools[0] ("), "{found}");
    }
    for tool in [json!({ "type": "hologram" }), json!({ "type": "bash_20250124", "name": "bash" })] {
        for path in [RESPONSES, MESSAGES] {
            assert_eq!(server.refused(path, &with(simple(path), json!({ "tools": [tool] }))).0, 400, "{tool}");
        }
    }
    let cut = with(simple(RESPONSES), json!({ "truncation": "auto" }));
    assert!(warning(&server, RESPONSES, &cut).unwrap().contains("truncation"));
}

fn warning_of_earlier(server: &Running, body: &Value) {
    assert!(warning(server, MESSAGES, body).unwrap().contains("(image)"));
}

/// Claude Code says in its first system block who pays, in other words each time.
#[test]
fn who_pays_costs_no_prefix() {
    let server = Running::start("pays");
    let body = |first: &str, system: Value| {
        let mut blocks = vec![json!({ "type": "text", "text": first })];
        blocks.extend(system.as_array().unwrap().iter().cloned());
        json!({ "system": blocks, "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 })
    };
    let system = json!([{ "type": "text", "text": "You are an agent. ".repeat(20) }]);
    let count = |body: &Value| server.ask("/v1/messages/count_tokens", body)["input_tokens"].as_u64().unwrap();
    let bare = json!({ "system": system, "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
    let with_header =
        |cch: &str| body(&format!("x-anthropic-billing-header: cc_version=2.1; cch={cch};"), system.clone());
    assert_eq!(count(&with_header("1")), count(&bare));
    server.ask(MESSAGES, &with_header("97bd6"));
    let second = server.ask(MESSAGES, &with_header("4fe1a"));
    assert_eq!(second["usage"]["input_tokens"], 1);
}

#[test]
fn tools_of_free_text_and_the_shell_are_functions_to_the_model() {
    let server = Running::start("codex");
    let patch = json!({ "type": "custom", "name": "patch", "description": "Edit.",
        "format": { "type": "grammar", "syntax": "lark", "definition": "start: \"x\"" } });
    let body = |tools: Value, choice: Value| {
        json!({ "input": "Edit.", "tools": tools, "tool_choice": choice, "max_output_tokens": 300, "temperature": 0,
            "text": { "verbosity": "low" }, "stream_options": { "include_obfuscation": false }, "include": [] })
    };
    let custom = body(json!([patch, { "type": "web_search" }]), json!({ "type": "custom", "name": "patch" }));
    let events = server.stream(RESPONSES, &with(custom.clone(), json!({ "stream": true })));
    let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["tools"], json!([patch]));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    // Random weights may never end the text; then the call is not told.
    if let Some(done) = events.iter().find(|event| event["type"] == "response.custom_tool_call_input.done") {
        assert_eq!(last["output"][0]["input"], done["input"]);
        assert_eq!(
            (&last["output"][0]["type"], &last["output"][0]["name"]),
            (&json!("custom_tool_call"), &json!("patch"))
        );
    }
    assert!(!kinds.contains(&"response.function_call_arguments.delta"), "{kinds:?}");
    let shell = body(json!([{ "type": "local_shell" }]), json!("none"));
    let input = json!([
        { "role": "user", "content": "x" },
        { "type": "custom_tool_call", "call_id": "1", "name": "patch", "input": "x" },
        { "type": "custom_tool_call_output", "call_id": "1", "output": "done" },
        { "type": "local_shell_call", "call_id": "2", "status": "completed",
            "action": { "type": "exec", "command": ["ls"], "env": {}, "user": null } },
        { "type": "local_shell_call_output", "id": "2", "output": "a\nb" },
        { "type": "web_search_call", "id": "w", "status": "completed" },
        { "type": "ghost_snapshot", "ghost_commit": {} },
        { "type": "reasoning", "summary": [], "encrypted_content": "x" },
        { "role": "user", "content": "y" },
    ]);
    server.ask(RESPONSES, &with(shell, json!({ "input": input, "max_output_tokens": 1 })));
    let (status, answer) = server.refused(RESPONSES, &json!({ "input": [{ "type": "hologram_call" }] }));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("input[0].type")));
    // What is cut off says so as an item, too.
    let cut = server.stream(RESPONSES, &with(simple(RESPONSES), json!({ "stream": true, "ignore_eos": true })));
    let done = cut.iter().find(|(name, _)| name.as_deref() == Some("response.output_item.done")).unwrap();
    assert!(done.1.contains("\"status\":\"incomplete\""), "{}", done.1);
}

#[test]
fn schemas_are_held_to_as_far_as_they_can_be() {
    let server = Running::start("schemas");
    let format = |schema: Value| {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        with(simple(CHAT), json!({ "response_format": format }))
    };
    let tags = json!({ "type": "array", "items": { "type": "string", "format": "byte" }, "uniqueItems": true });
    let warning = warning(&server, CHAT, &format(json!({ "type": "object", "properties": { "tags": tags } }))).unwrap();
    let note = "response_format: uniqueItems at /properties/tags";
    assert!(warning.contains(note) && warning.contains("format 'byte' at /properties/tags/items"), "{warning}");
    // Of completions, too.
    let choice = with(simple("/v1/completions"), json!({ "guided_choice": ["left", "right"], "max_tokens": 20 }));
    let text = server.ask("/v1/completions", &choice)["choices"][0]["text"].clone();
    assert!(text == "left" || text == "right", "{text}");
    let circle = json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/a" } } });
    let (status, answer) = server.refused(CHAT, &format(circle));
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("round in a circle"), "{answer}");
}

#[test]
fn a_prompt_that_is_too_long_is_told_as_agents_know_it() {
    let server = Running::start("overflow");
    let long = "long ".repeat(2000);
    let message = json!([{ "role": "user", "content": long }]);
    for (path, body, param, part) in [
        (CHAT, json!({ "messages": message }), "messages", "maximum context length is 1024 tokens"),
        (RESPONSES, json!({ "input": long }), "input", "maximum context length is 1024 tokens"),
        ("/v1/completions", json!({ "prompt": long }), "prompt", "maximum context length is 1024 tokens"),
        (MESSAGES, json!({ "messages": message, "max_tokens": 1 }), "", "tokens > 1024 maximum"),
    ] {
        let (status, answer) = server.refused(path, &body);
        let error = &answer["error"];
        assert!(status == 400 && error["message"].as_str().unwrap().contains(part), "{answer}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param);
    }
}

#[test]
fn a_model_has_other_names_if_they_were_given() {
    let aliases = |names: &[&str]| Config { aliases: names.iter().map(|&name| name.to_owned()).collect(), ..config() };
    let server = Running::with(aliases(&["gpt-4o"]), "named", tiny);
    assert_eq!(server.ask(CHAT, &with(simple(CHAT), json!({ "model": "gpt-4o" })))["model"], "named");
    let (status, answer) = server.refused(CHAT, &with(simple(CHAT), json!({ "model": "other" })));
    assert!(status == 404 && answer["error"]["message"].as_str().unwrap().contains("'named', 'gpt-4o'"), "{answer}");
    let all = server.get("/v1/models").send().unwrap().text().unwrap();
    assert!(all.contains("\"id\":\"gpt-4o\"") && all.contains("\"slug\":\"named\""), "{all}");
    let any = Running::with(aliases(&["*"]), "any", tiny);
    any.ask(CHAT, &with(simple(CHAT), json!({ "model": "whatever" })));
}

#[test]
fn a_page_may_send_any_header_from_any_port_that_was_allowed() {
    let server = Running::with(Config { cors: vec!["http://localhost:*".into()], ..config() }, "ports", tiny);
    let url = format!("http://{}{CHAT}", server.address);
    let request = reqwest::blocking::Client::new().request(reqwest::Method::OPTIONS, url);
    let wanted = "authorization,content-type,x-stainless-os";
    let request = request.header("origin", "http://localhost:5173").header("access-control-request-method", "POST");
    let response = request.header("access-control-request-headers", wanted).send().unwrap();
    assert_eq!(response.headers()["access-control-allow-origin"], "http://localhost:5173");
    assert_eq!(response.headers()["access-control-allow-headers"], wanted);
}

/// A client may close its half when it has asked, and is answered all the same.
#[test]
fn who_says_nothing_more_is_answered() {
    let server = Running::start("half");
    for stream in [false, true] {
        let body = with(simple(CHAT), json!({ "stream": stream, "max_tokens": 40, "ignore_eos": true })).to_string();
        let mut socket = TcpStream::connect(server.address).unwrap();
        let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all((head + &body).as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("HTTP/1.1 200") && answer.contains("\"length\""), "{answer}");
        assert!(!stream || answer.contains("[DONE]"), "{answer}");
    }
}
