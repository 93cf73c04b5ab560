//! Who is let in, and how much of what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use basert_server::{Config, ServeError, Server};
use serde_json::json;

use crate::server::{Running, config, tiny};

#[test]
fn keys_are_asked_for_and_pages_are_not() {
    let config = Config { api_keys: vec!["secret".into(), "other".into()], ..config() };
    let mut server = Running::with(config, "keys", tiny);
    let body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2 });
    server.ask("/v1/chat/completions", &body);
    for (key, status) in [(None, 401), (Some("wrong"), 401), (Some("other"), 200)] {
        server.key = key.map(str::to_owned);
        let (found, answer) = server.refused("/v1/chat/completions", &body);
        assert_eq!(found, status, "{answer}");
        assert_eq!(server.get("/metrics").send().unwrap().status(), status);
        assert_eq!(server.get("/health").send().unwrap().status(), 200);
        assert_eq!(server.get("/").send().unwrap().status(), 200);
    }
    server.key = None;
    let by_header =
        server.post("/v1/messages", &json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2 }));
    assert_eq!(by_header.header("x-api-key", "secret").send().unwrap().status(), 200);
    let (_, answer) = server.refused("/v1/messages", &body);
    assert_eq!(answer["error"]["type"], "authentication_error");
}

#[test]
fn a_client_that_asks_too_often_is_told_to_wait() {
    let server = Running::with(Config { rate_limit: Some(3), ..config() }, "often", tiny);
    let statuses: Vec<u16> = (0..5).map(|_| server.get("/v1/models").send().unwrap().status().as_u16()).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let last = server.get("/v1/models").send().unwrap();
    assert!(last.headers().contains_key("retry-after") && last.text().unwrap().contains("rate_limit_exceeded"));
    assert_eq!(server.get("/health").send().unwrap().status(), 200);
}

#[test]
fn bodies_are_json_and_no_larger_than_allowed() {
    let server = Running::with(Config { body_limit: 1000, ..config() }, "bodies", tiny);
    let (status, answer) = server.refused("/v1/completions", &json!({ "prompt": "x".repeat(2000) }));
    assert_eq!((status, answer["error"]["message"].as_str().unwrap().contains("1000 bytes")), (413, true));
    let text = server.post("/v1/completions", &json!({})).header("content-type", "text/plain");
    // The first of two headers counts.
    assert_eq!(text.send().unwrap().status(), 400);
    let mut raw = TcpStream::connect(server.address).unwrap();
    raw.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
}

#[test]
fn who_does_not_finish_a_request_is_cut_off() {
    let server = Running::with(Config { header_timeout: Duration::from_millis(300), ..config() }, "slow", tiny);
    for (head, expected) in [
        ("GET /health HTTP/1.1\r\nHost: local", ""),
        (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
            "HTTP/1.1 408",
        ),
    ] {
        let mut raw = TcpStream::connect(server.address).unwrap();
        raw.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        raw.write_all(head.as_bytes()).unwrap();
        let began = Instant::now();
        let mut answer = [0; 12];
        let read = raw.read(&mut answer).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(std::str::from_utf8(&answer[..read]).unwrap().starts_with(expected));
    }
}

#[test]
fn other_sites_do_not_get_in_by_a_name_that_leads_here() {
    let server = Running::start("names");
    let (good, bad) = (format!("localhost:{}", server.address.port()), "evil.example");
    assert_eq!(server.get("/v1/models").header("host", &good).send().unwrap().status(), 200);
    assert_eq!(server.get("/v1/models").header("host", bad).send().unwrap().status(), 403);
}

#[test]
fn origins_are_let_in_that_were_listed() {
    let server = Running::with(Config { cors: vec!["https://a.example".into()], ..config() }, "origins", tiny);
    let allowed = |origin: &str| {
        let response = server.get("/v1/models").header("origin", origin).send().unwrap();
        response.headers().get("access-control-allow-origin").cloned()
    };
    assert_eq!(allowed("https://a.example").unwrap(), "https://a.example");
    assert!(allowed("https://b.example").is_none());
}

#[test]
fn what_is_not_safe_is_not_begun() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let source = || basert_server::Source { name: "x".into(), open: Box::new(|| Ok(tiny())) };
    let open = Config { address: "0.0.0.0:0".parse().unwrap(), ..config() };
    let origin = Config { cors: vec!["a.example".into()], ..config() };
    let error = |config, sources| runtime.block_on(Server::bind(config, sources)).err().unwrap();
    assert!(matches!(error(open, vec![source()]), ServeError::Open { .. }));
    assert!(matches!(error(origin, vec![source()]), ServeError::Origin(_)));
    assert!(matches!(error(config(), vec![]), ServeError::NoModels));
    assert!(matches!(error(config(), vec![source(), source()]), ServeError::SameName(_)));
}

#[test]
fn more_requests_than_may_wait_are_refused() {
    let server = Running::with(Config { parallel: 1, queue: 1, ..config() }, "queue", tiny);
    let body = json!({ "prompt": "x", "max_tokens": 900, "ignore_eos": true, "stream": true });
    let first = server.post("/v1/completions", &body).send().unwrap();
    let second = server.post("/v1/completions", &body).send().unwrap();
    let (status, answer) = server.refused("/v1/completions", &body);
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("overloaded")), "{answer}");
    drop((first, second));
    server.wait_for("basert_kv_pages_held", 0.0);
    server.ask("/v1/completions", &json!({ "prompt": "x", "max_tokens": 2 }));
}

#[test]
fn numbers_of_answers_that_can_never_be_are_refused_at_once() {
    let server = Running::with(Config { parallel: 4, queue: 8, ..config() }, "answers", tiny);
    let messages = json!([{ "role": "user", "content": "x" }]);
    for (path, prompts, n) in [
        ("/v1/completions", json!("x"), 5u64),
        ("/v1/completions", json!("x"), 1 << 50),
        ("/v1/completions", json!("x"), u64::MAX),
        ("/v1/completions", json!(["x", "y"]), 1 << 63),
        ("/v1/completions", json!(["x", "y", "z", "w"]), 4),
        ("/v1/chat/completions", json!(null), 5),
        ("/v1/chat/completions", json!(null), u64::MAX),
    ] {
        for echo in [true, false] {
            let body = match prompts.is_null() {
                true => json!({ "messages": messages, "n": n }),
                false => json!({ "prompt": prompts, "n": n, "echo": echo }),
            };
            let (status, answer) = server.refused(path, &body);
            assert_eq!((status, &answer["error"]["param"]), (400, &json!("n")), "{n}: {answer}");
        }
    }
    let answer = server.ask("/v1/completions", &json!({ "prompt": ["x", "y", "z"], "n": 4, "max_tokens": 1 }));
    assert_eq!(answer["choices"].as_array().unwrap().len(), 12);
}
