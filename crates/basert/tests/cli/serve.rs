//! `basert serve`, as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use super::{basert, command, model};

#[test]
fn what_is_not_safe_or_not_there_is_a_mistake() {
    let error = basert(&["serve", &model(), "--host", "0.0.0.0", "--log", "off"]).fails(2);
    assert!(error.contains("0.0.0.0:8080") && error.contains("API key"), "{error}");
    let error = basert(&["serve", &model(), "--cors", "example", "--log", "off"]).fails(2);
    assert!(error.contains("'example' is not an origin"), "{error}");
    let error = basert(&["serve", "./nothing.gguf", "--log", "off"]).fails(2);
    assert!(error.contains("nothing.gguf"), "{error}");
    let error =
        basert(&["serve", &model(), "--kv-memory", "1", "--port", "0", "--device", "cpu", "--log", "off"]).fails(1);
    assert!(error.contains("8192 tokens") && error.contains("--max-context"), "{error}");
}

/// It answers, writes a line about that which does not say what was said, and ends when it is told to.
#[cfg(unix)]
#[test]
fn a_server_answers_logs_and_ends() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let path = log.path().display().to_string();
    let arguments = ["serve", &model(), "--port", "0", "--device", "cpu", "--max-context", "256", "--log", "json"];
    let mut server = command(&arguments).args(["--log-file", &path]).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let address =
        lines.find_map(|line| line.unwrap().split_once("http://").map(|(_, address)| address.to_owned())).unwrap();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let body = r#"{"prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}"#;
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
    let answer = ask(&format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(" Paris."), "{answer}");
    let told = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(told.success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(log.path()).unwrap();
    let line = log.lines().find(|line| line.contains("/v1/completions")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["status"], &line["method"], &line["whole"]), (&200.into(), &"POST".into(), &true.into()));
    assert!(!log.contains("Paris") && !log.contains("capital"), "{log}");
}
