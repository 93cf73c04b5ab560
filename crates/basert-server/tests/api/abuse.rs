//! Requests that want too much: they are refused, soon, and nobody else notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use basert_server::Config;
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::server::{Running, config, tiny};

fn raw(server: &Running, text: &str) -> TcpStream {
    let mut raw = TcpStream::connect(server.address).unwrap();
    raw.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    raw.write_all(text.as_bytes()).unwrap();
    raw
}

/// The status of what comes back.
fn status(mut raw: TcpStream) -> u16 {
    let mut answer = [0; 12];
    raw.read_exact(&mut answer).unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}

fn chat(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn lists_of_any_length_are_refused_by_name() {
    let server = Running::start("lists");
    let tool = |i: usize| json!({ "type": "function", "function": { "name": format!("f{i}") } });
    let tools = |count| (0..count).map(tool).collect::<Vec<_>>();
    let biases: serde_json::Map<_, _> = (0..20_000).map(|i| (i.to_string(), json!(1))).collect();
    let message = json!({ "role": "user", "content": "x" });
    let part = json!({ "type": "text", "text": "x" });
    for (more, param) in [
        (json!({ "tools": tools(5000) }), "tools"),
        (json!({ "messages": vec![message; 30_000] }), "messages"),
        (json!({ "messages": [{ "role": "user", "content": vec![part; 30_000] }] }), "messages[0].content"),
        (json!({ "stop": vec!["x"; 17] }), "stop"),
        (json!({ "stop": ["y", "x".repeat(5000)] }), "stop[1]"),
        (json!({ "logit_bias": biases }), "logit_bias"),
    ] {
        let (status, answer) = server.refused("/v1/chat/completions", &chat(more));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let text = json!({ "type": "text", "text": "x" });
    let call = |i: usize| json!({ "type": "tool_use", "id": i.to_string(), "name": "f", "input": {} });
    let said = |role: &str, content: Value| json!([{ "role": role, "content": content }]);
    let result = json!({ "type": "tool_result", "tool_use_id": "1", "content": vec![text.clone(); 30_000] });
    for (messages, param) in [
        (json!(vec![json!({ "role": "user", "content": "x" }); 30_000]), "messages"),
        (said("user", json!(vec![text.clone(); 30_000])), "messages[0].content"),
        (said("assistant", json!(vec![text.clone(); 30_000])), "messages[0].content"),
        (said("user", json!([result])), "messages[0].content[0].content"),
        (said("assistant", json!((0..2000).map(call).collect::<Vec<_>>())), "messages"),
    ] {
        let (status, answer) = server.refused("/v1/messages", &json!({ "messages": messages, "max_tokens": 1 }));
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(
            status == 400 && message.starts_with(&format!("{param}: ")) && message.contains("the most"),
            "{answer}"
        );
    }
    let call = |i: usize| json!({ "type": "function_call", "call_id": i.to_string(), "name": "f", "arguments": "" });
    let calls = json!({ "input": (0..2000).map(call).collect::<Vec<_>>() });
    let items = json!({ "input": vec![json!({ "role": "user", "content": "x" }); 30_000] });
    for body in [calls, items] {
        let (status, answer) = server.refused("/v1/responses", &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("input")), "{answer}");
    }
    let (status, answer) = server.refused(
        "/v1/chat/completions",
        &chat(json!({ "messages": [{ "role": "assistant", "content": "",
            "tool_calls": vec![json!({ "function": { "name": "f" } }); 2000] }] })),
    );
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages")), "{answer}");
    let mut twice = tools(1000);
    twice.push(tool(7));
    let (status, answer) = server.refused("/v1/chat/completions", &chat(json!({ "tools": twice })));
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("f7"), "{answer}");
    let body = json!({ "input": "x", "metadata": { "a": vec![json!([]); 1000] } });
    let (status, answer) = server.refused("/v1/responses", &body);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("metadata")), "{answer}");
}

#[test]
fn json_of_many_small_values_is_refused_before_it_is_read() {
    let server = Running::with(Config { body_limit: 1 << 20, ..config() }, "values", tiny);
    let most = vec![1; 200_000];
    for body in [json!({ "prompt": most }), json!({ "prompt": "x", "metadata": vec![json!([]); 200_000] })] {
        let (status, answer) = server.refused("/v1/completions", &body);
        assert_eq!(status, 413, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("values"), "{answer}");
    }
    assert_eq!(server.refused("/v1/detokenize", &json!({ "tokens": vec![1; 50_000] })).0, 200);
}

#[test]
fn what_is_held_counts_and_is_given_back() {
    let server = Running::with(Config { request_memory: 8 << 20, ..config() }, "held", tiny);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n";
    let held = raw(&server, &format!("{head}{}", "x".repeat(2_500_000)));
    let body = json!({ "prompt": "x".repeat(400_000), "max_tokens": 1 });
    let began = Instant::now();
    let refused = loop {
        let response = server.post("/v1/completions", &body).send().unwrap();
        if response.status() == 429 {
            break response;
        }
        // It is too long in any case; what was sent first need not have been read yet.
        assert_eq!(response.status(), 400);
        assert!(began.elapsed() < Duration::from_secs(20), "what is held is not counted");
    };
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(server.get("/health").send().unwrap().status(), 200);
    drop(held);
    while server.post("/v1/completions", &body).send().unwrap().status() != 400 {
        assert!(began.elapsed() < Duration::from_secs(40), "what was held is not given back");
        std::thread::sleep(Duration::from_millis(10));
    }
    // More than there can ever be.
    let (status, answer) = server.refused("/v1/completions", &json!({ "prompt": "x".repeat(3_500_000) }));
    assert_eq!(status, 413, "{answer}");
}

#[test]
fn a_text_far_beyond_the_context_is_refused_at_once() {
    let server = Running::start("far beyond");
    for text in ["a", " ", "a b "] {
        let began = Instant::now();
        let text = text.repeat((8 << 20) / text.len());
        for (path, body) in [
            ("/v1/completions", json!({ "prompt": text })),
            ("/v1/tokenize", json!({ "text": text })),
            ("/v1/embeddings", json!({ "input": text })),
        ] {
            let (status, answer) = server.refused(path, &body);
            assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{path}");
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let longest = server.ask("/v1/tokenize", &json!({ "text": "x".repeat(100_000) }));
    assert!(longest["count"].as_u64().unwrap() > 1024);
}

#[test]
fn a_request_has_one_host() {
    let server = Running::start("hosts");
    let get = |hosts: &str| status(raw(&server, &format!("GET /v1/models {hosts}Connection: close\r\n\r\n")));
    assert_eq!(get("HTTP/1.1\r\nHost: localhost\r\n"), 200);
    assert_eq!(get("HTTP/1.0\r\n"), 200);
    assert_eq!(get("HTTP/1.1\r\n"), 400);
    assert_eq!(get("HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"), 400);
    assert_eq!(get("HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"), 400);
}

#[test]
fn pages_of_other_sites_leave_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = Config { files: Some(folder.path().to_owned()), cors: vec!["https://a.example".into()], ..config() };
    let server = Running::with(files, "sites", tiny);
    let upload = |origin: &str| {
        let form = Form::new().text("purpose", "batch").part("file", Part::text("x").file_name("x"));
        let request = server.form("/v1/files", form).header("origin", origin).header("sec-fetch-site", "cross-site");
        request.send().unwrap().status().as_u16()
    };
    assert_eq!((upload("https://evil.example"), upload("https://a.example")), (403, 200));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let cancel = format!("/v1/batches/batch_{}/cancel", "0".repeat(32));
    let empty = server.post(&cancel, &json!({})).header("origin", "https://evil.example");
    assert_eq!(empty.send().unwrap().status(), 403);
}

#[test]
fn an_upload_that_does_not_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let files = Some(folder.path().to_owned());
    let config = Config { files, header_timeout: Duration::from_millis(300), ..config() };
    let server = Running::with(config, "uploads", tiny);
    let head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=X\r\nContent-Length: 100000\r\n\r\n--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    assert_eq!(status(raw(&server, head)), 408);
    let mut drips = raw(&server, head);
    let began = Instant::now();
    while drips.write_all(b"x").is_ok() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn wrong_keys_are_counted_and_right_ones_let_in() {
    let config = Config { api_keys: vec!["right".into()], rate_limit: Some(20), ..config() };
    let mut server = Running::with(config, "wrong keys", tiny);
    server.key = None;
    let ask = |key: &str| server.get("/v1/models").header("x-api-key", key).send().unwrap();
    let statuses: Vec<u16> = (0..30).map(|i| ask(&format!("wrong {i}")).status().as_u16()).collect();
    assert_eq!((statuses[0], statuses[29]), (401, 429), "{statuses:?}");
    assert!(ask("wrong").headers().contains_key("retry-after"));
    assert_eq!(ask("right").status(), 200);
}

#[test]
fn connections_that_wait_make_room_for_others() {
    let server = Running::with(Config { connections: 8, ..config() }, "connections", tiny);
    let idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let began = Instant::now();
    for _ in 0..5 {
        let get = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(status(raw(&server, get)), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(idle);
}

#[test]
fn large_bodies_do_not_delay_others() {
    let server = Running::start("large bodies");
    let large = json!({ "prompt": "x", "max_tokens": 1, "metadata": vec![json!({}); 400_000] }).to_string();
    std::thread::scope(|scope| {
        let posts: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let request = server.post("/v1/completions", &json!({})).body(large.clone());
                    request.send().unwrap().status().as_u16()
                })
            })
            .collect();
        let mut times = Vec::new();
        while posts.iter().any(|post| !post.is_finished()) {
            let began = Instant::now();
            assert_eq!(server.get("/health").send().unwrap().status(), 200);
            times.push(began.elapsed());
        }
        times.sort();
        assert!(times[times.len() / 2] < Duration::from_millis(250), "{times:?}");
        for post in posts {
            assert_eq!(post.join().unwrap(), 200);
        }
    });
}
