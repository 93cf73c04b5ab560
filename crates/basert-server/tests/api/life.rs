//! Clients that leave, devices that fail, servers that end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use basert_engine::Engine;
use basert_plan::{Baked, DeviceError, Facts, Limits, Reach, StepState};
use basert_server::{Config, Loaded};
use serde_json::{Value, json};

use crate::server::{Running, config, events, tiny};

fn long() -> Value {
    json!({ "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": true, "temperature": 0, "stream": true })
}

#[test]
fn who_leaves_gives_the_pages_back() {
    let server = Running::start("leaves");
    let mut streams: Vec<_> = (0..4).map(|_| events(server.post("/v1/completions", &long()).send().unwrap())).collect();
    for stream in &mut streams {
        assert!(stream.next().is_some());
    }
    assert!(server.metric("basert_kv_pages_held") >= 4.0);
    drop(streams);
    server.wait_for("basert_kv_pages_held", 0.0);
    // Also one who never got anything: the answer comes as a whole.
    let mut whole = long();
    whole["stream"] = false.into();
    whole["n"] = 8.into();
    let left = server.post("/v1/completions", &whole).timeout(Duration::from_millis(10)).send();
    assert!(left.is_err());
    server.wait_for("basert_kv_pages_held", 0.0);
    server.wait_for("basert_running_answers", 0.0);
}

#[test]
fn who_reads_slowly_gets_everything() {
    let server = Running::start("reads slowly");
    let mut body = long();
    body["max_tokens"] = 300.into();
    let whole = server.stream("/v1/completions", &body);
    let slow = events(server.post("/v1/completions", &body).send().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    // Others are not kept waiting.
    server.ask("/v1/completions", &json!({ "prompt": "x", "max_tokens": 5 }));
    let text = |data: &str| -> String {
        let value: Value = serde_json::from_str(data).unwrap_or_default();
        value["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
    };
    let slow: String = slow.map(|(_, data)| text(&data)).collect();
    assert_eq!(slow, whole.iter().map(|(_, data)| text(data)).collect::<String>());
}

#[test]
fn a_server_that_drains_finishes_what_it_began() {
    let mut server = Running::start("drains");
    let mut stream = events(server.post("/v1/completions", &long()).send().unwrap());
    assert!(stream.next().is_some());
    server.stop.drain();
    let rest: Vec<_> = stream.collect();
    assert_eq!(rest.last().unwrap().1, "[DONE]");
    server.join();
    assert!(server.get("/health").send().is_err());
}

#[test]
fn draining_does_not_take_longer_than_allowed() {
    let mut server = Running::with(Config { drain_timeout: Duration::from_millis(50), ..config() }, "impatient", tiny);
    let mut body = long();
    body["max_tokens"] = 1000.into();
    let mut stream = events(server.post("/v1/completions", &body).send().unwrap());
    assert!(stream.next().is_some());
    server.stop.drain();
    server.join();
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    let server = Running::with(Config { request_timeout: Duration::from_millis(10), ..config() }, "late", tiny);
    let mut whole = long();
    whole["n"] = 8.into();
    let events = server.stream("/v1/completions", &whole);
    assert!(events.last().unwrap().1.contains("longer than the server allows"));
    whole["stream"] = false.into();
    assert_eq!(server.refused("/v1/completions", &whole).0, 504);
    server.wait_for("basert_kv_pages_held", 0.0);
}

/// A device that fails on the token of a word.
struct Broken {
    vocabulary: usize,
    logits: Vec<f32>,
}

const LONG: usize = 40;

impl Baked for Broken {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        self.logits = vec![0.0; self.vocabulary];
        self.logits[100] = 1.0;
        if step.positions.iter().any(|&position| position as usize > LONG) {
            return Err(DeviceError::Failed("as it was told to".to_owned()));
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn logits(&self, _: usize) -> &[f32] {
        &self.logits
    }

    fn hidden(&self, _: usize) -> &[f32] {
        &self.logits
    }

    fn copy_page(&mut self, _: usize, _: u32, _: u32) {}

    fn page_bytes(&self, _: usize) -> usize {
        0
    }

    fn read_page(&mut self, _: usize, _: u32, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_page(&mut self, _: usize, _: u32, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read_slot(&mut self, _: u32, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_slot(&mut self, _: u32, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn broken() -> Loaded {
    let loaded = tiny();
    let vocabulary = loaded.tokenizer.vocab_size();
    let (name, layout) = ("broken".to_owned(), String::new());
    let facts = Facts {
        name,
        description: String::new(),
        page_tokens: 16,
        layout,
        step_tokens: 64,
        chain: 0,
        bounds: None,
        free_memory: None,
    };
    let device = Box::new(Broken { vocabulary, logits: vec![] });
    let engine = Engine::new(device, &facts, Limits { tokens: 64, wanted: 8 }, &[(Reach::All, 64)], 256, vocabulary)
        .with_prefix_cache();
    Loaded { engine, ..loaded }
}

#[test]
fn a_device_that_fails_ends_a_request_and_nothing_else() {
    let server = Running::with(config(), "broken", broken);
    let ask = |tokens: usize| json!({ "prompt": "x", "max_tokens": tokens, "temperature": 0, "ignore_eos": true });
    for _ in 0..3 {
        server.ask("/v1/completions", &ask(5));
        let (status, answer) = server.refused("/v1/completions", &ask(60));
        assert_eq!((status, &answer["error"]["type"]), (500, &json!("server_error")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("as it was told to"));
        let mut stream = ask(60);
        stream["stream"] = true.into();
        let events = server.stream("/v1/completions", &stream);
        assert!(events.last().unwrap().1.contains("server_error"));
    }
    server.wait_for("basert_kv_pages_held", 0.0);
}

/// Asks for answers and reads nothing of them, with little room for what is sent.
fn stalled(server: &Running, n: usize) -> TcpStream {
    let body = json!({
        "prompt": "x", "n": n, "max_tokens": 1000, "ignore_eos": true, "stream": true, "temperature": 2, "logprobs": 20,
    })
    .to_string();
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream
}

/// Whether so much was sent that nothing more is taken shows by the answers that run and do not go on.
fn wait_until_stalled(server: &Running) {
    let mut before = -1.0;
    loop {
        let made = server.metric("basert_generated_tokens_total");
        if made == before && made > 0.0 {
            return;
        }
        before = made;
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn answers_that_nobody_reads_keep_nobody_waiting_and_end_in_time() {
    let config = Config { request_timeout: Duration::from_secs(6), queue: 8, ..config() };
    let server = Running::with(config, "stalled", tiny);
    let _sockets: Vec<TcpStream> = [8, 4, 4].map(|n| stalled(&server, n)).into();
    wait_until_stalled(&server);
    for _ in 0..3 {
        server.ask("/v1/completions", &json!({ "prompt": "y", "max_tokens": 5 }));
    }
    // Though their sockets are open.
    server.wait_for("basert_running_answers", 0.0);
    server.wait_for("basert_waiting_answers", 0.0);
    server.wait_for("basert_kv_pages_held", 0.0);
    let many = json!({ "prompt": ["x", "y"], "n": 8, "max_tokens": 1 });
    server.ask("/v1/completions", &many);
}

#[test]
fn who_takes_nothing_is_cut_off() {
    let config = Config { write_timeout: Duration::from_millis(500), ..config() };
    let server = Running::with(config, "cut off", tiny);
    let mut socket = stalled(&server, 8);
    wait_until_stalled(&server);
    server.wait_for("basert_running_answers", 0.0);
    // What was sent before comes, and no end.
    let mut all = Vec::new();
    let _ = socket.read_to_end(&mut all);
    assert!(all.starts_with(b"HTTP/1.1 200") && !String::from_utf8_lossy(&all).contains("[DONE]"));
}

#[test]
fn a_model_that_is_let_go_of_ends_before_it_is_opened_again() {
    let config = Config { drain_timeout: Duration::from_millis(300), ..config() };
    let server = Running::with(config, "reloaded", tiny);
    let model = json!({ "model": "reloaded" });
    let _sockets: Vec<TcpStream> = (0..4)
        .map(|_| {
            let socket = stalled(&server, 1);
            server.wait_for("basert_running_answers", 1.0);
            assert_eq!(server.ask("/v1/models/unload", &model)["was_loaded"], true);
            assert_eq!(server.ask("/v1/models/load", &model)["loaded"], true);
            // It was not opened beside the old one, whose answer is over.
            assert_eq!(server.metric("basert_running_answers"), 0.0);
            socket
        })
        .collect();
    server.ask("/v1/completions", &json!({ "prompt": "y", "max_tokens": 5 }));
}

#[test]
fn who_found_a_model_is_answered_though_it_is_let_go_of_meanwhile() {
    let server = Running::start("found");
    let grammar = json!({ "type": "regex", "pattern": "[a-z]{1,20}" });
    let body = json!({ "prompt": "y", "max_tokens": 2, "response_format": grammar });
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..40 {
                        server.ask("/v1/completions", &body);
                    }
                })
            })
            .collect();
        while asking.iter().any(|asking| !asking.is_finished()) {
            server.ask("/v1/models/unload", &json!({ "model": "found" }));
        }
    });
}
