//! `basert serve`, as a user runs it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};

use serde_json::{Value, json};

use super::{basert, command, model};

#[test]
fn what_is_not_safe_or_not_there_is_a_mistake() {
    let error = basert(&["serve", &model(), "--host", "0.0.0.0", "--log", "off"]).fails(2);
    assert!(error.contains("0.0.0.0:8080") && error.contains("API key"), "{error}");
    let error = basert(&["serve", &model(), "--host", "no such host", "--log", "off"]);
    assert!(error.code == Some(2) && error.err.contains("neither an address nor a host name"), "{}", error.err);
    let error = basert(&["serve", &model(), "--cors", "example", "--log", "off"]).fails(2);
    assert!(error.contains("'example' is not an origin"), "{error}");
    let error = basert(&["serve", "./nothing.gguf", "--log", "off"]).fails(2);
    assert!(error.contains("nothing.gguf"), "{error}");
    let error =
        basert(&["serve", &model(), "--kv-memory", "1", "--port", "0", "--device", "cpu", "--log", "off"]).fails(1);
    assert!(error.contains("8192 tokens") && error.contains("--max-context"), "{error}");
}

/// A server that runs, on a port of its own.
#[cfg(unix)]
struct Served {
    process: Child,
    address: String,
}

#[cfg(unix)]
impl Served {
    fn start(arguments: &[&str]) -> Served {
        let begin =
            ["serve", &model(), "--host", "localhost", "--port", "0", "--device", "cpu", "--max-context", "256"];
        let mut process = command(&begin).args(arguments).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = |line: String| line.split_once("serving ")?.1.split_once("http://").map(|(_, a)| a.to_owned());
        let address = lines.find_map(|line| address(line.unwrap())).unwrap();
        // What else it says must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Served { process, address }
    }

    fn get(&self, path: &str) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
        write!(stream, "POST {path} {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// Text and cached tokens of a completion.
    fn complete(&self, prompt: &str) -> (String, u64) {
        let body = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 });
        let answer = self.post("/v1/completions", &body.to_string());
        let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
        (text, answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    }

    fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    fn ends(mut self) {
        self.signal("-TERM");
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

#[cfg(unix)]
impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// It answers, writes a line about that which does not say what was said, and ends when it is told to.
#[cfg(unix)]
#[test]
fn a_server_answers_logs_and_ends() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let server = Served::start(&["--log", "json", "--log-file", &log.path().display().to_string()]);
    assert!(server.complete("The capital of France is").0.starts_with(" Paris."));
    server.ends();
    let log = std::fs::read_to_string(log.path()).unwrap();
    let line = log.lines().find(|line| line.contains("/v1/completions")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["status"], &line["method"], &line["whole"]), (&200.into(), &"POST".into(), &true.into()));
    assert!(!log.contains("Paris") && !log.contains("capital"), "{log}");
}

/// A second server knows what the first one read, and says the same, whatever one that was killed has left beside the file.
#[cfg(unix)]
#[test]
fn cached_prefixes_outlive_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prefixes");
    let arguments = ["--log", "off", "--prefix-cache-file", file.to_str().unwrap()];
    let prompt = "One, two, three, four, five, six, seven, eight, nine, ten, eleven,";

    let first = Served::start(&arguments);
    let (text, cached) = first.complete(prompt);
    assert_eq!(cached, 0);
    first.ends();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions()) & 0o777, 0o600);

    let partial = folder.path().join("prefixes.partial");
    fs::write(&partial, "what somebody began to write").unwrap();
    let second = Served::start(&arguments);
    let (again, cached) = second.complete(prompt);
    assert!(again == text && cached > 10, "{again}, {cached} cached");
    second.complete("Something that is new to it.");
    second.ends();
    assert!(!partial.exists());
}

/// Whether the process ends in time, and with which exit status.
#[cfg(unix)]
fn end(server: &mut Served) -> Option<i32> {
    for _ in 0..400 {
        if let Some(status) = server.process.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("it does not end")
}

/// Begins an answer that takes long.
#[cfg(unix)]
fn begin_long_answer(server: &Served) -> TcpStream {
    let body = r#"{"prompt": "x", "max_tokens": 250, "ignore_eos": true, "stream": true, "n": 16}"#;
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    write!(stream, "POST /v1/completions {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.read_exact(&mut [0; 200]).unwrap();
    stream
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_a_server_at_once() {
    for (first, second, status) in [("-TERM", "-TERM", 143), ("-INT", "-INT", 130), ("-USR1", "-TERM", 143)] {
        let mut server = Served::start(&["--log", "off"]);
        let _stream = begin_long_answer(&server);
        server.signal(first);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(server.process.try_wait().unwrap().is_none());
        server.signal(second);
        assert_eq!(end(&mut server), Some(status));
    }
}

/// Nobody reads what it says from the beginning, later on, or at all; or there is nowhere to say it.
#[cfg(unix)]
#[test]
fn a_server_whose_log_nobody_takes_answers_all_the_same() {
    use std::process::Stdio;
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let arguments = ["serve", &model(), "--device", "cpu", "--max-context", "256"];
    for case in ["closed", "full", "not read"] {
        let mut server = match case {
            "full" if !cfg!(target_os = "linux") => continue,
            "full" => {
                let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
                let mut command = command(&[&arguments[..], &["--port", &port]].concat());
                let process = command.stderr(full()).spawn().unwrap();
                Served { process, address: format!("127.0.0.1:{port}") }
            }
            _ => {
                let mut process = command(&[&arguments[..], &["--port", "0"]].concat()).spawn().unwrap();
                let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
                let address = lines.find_map(|line| {
                    line.unwrap().split_once("serving ")?.1.split_once("http://").map(|(_, a)| a.to_owned())
                });
                // A pipe that is full, or has no other end.
                if case == "not read" {
                    std::mem::forget(lines);
                }
                Served { process, address: address.unwrap() }
            }
        };
        for _ in 0..100 {
            if TcpStream::connect(&server.address).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // Lines of more than a pipe holds.
        let count = if case == "not read" { 700 } else { 3 };
        for _ in 0..count {
            server.get("/health");
        }
        assert!(server.complete("The capital of France is").0.starts_with(" Paris."), "{case}");
        server.signal("-TERM");
        assert_eq!(end(&mut server), Some(0), "{case}");
    }
}

#[cfg(unix)]
#[test]
fn files_of_prefixes_that_cannot_be_used_are_told_from_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prefixes");
    let arguments = ["--log", "text", "--prefix-cache-file", file.to_str().unwrap()];
    fs::write(&file, "notes that are dear to somebody").unwrap();
    let begin = ["serve", &model(), "--port", "0", "--device", "cpu"];
    let error = basert(&[&begin[..], &["--log", "off"], &arguments[2..]].concat()).fails(1);
    assert!(error.contains("is not a file of cached prefixes"), "{error}");

    let log = folder.path().join("log");
    fs::write(&file, "basertPX, and damaged").unwrap();
    let server = Served::start(&[&arguments[..], &["--log-file", log.to_str().unwrap()]].concat());
    assert_eq!(server.complete("A, B, C, D,").1, 0);
    server.ends();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("WARN") && log.contains("are not used") && log.contains("cached prefixes saved"), "{log}");
    assert!(fs::metadata(&file).unwrap().len() > 1000);
}

/// Each model has a file of its own, whatever is in its name.
#[cfg(unix)]
#[test]
fn several_models_have_a_file_each() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prefixes");
    let tiny = basert_testkit::tiny().join("llama.gguf").display().to_string();
    let server = Served::start(&[&tiny, "--log", "off", "--prefix-cache-file", file.to_str().unwrap()]);
    server.complete("A, B, C, D,");
    server.post("/v1/completions", r#"{"model": "llama", "prompt": "x y z", "max_tokens": 2}"#);
    server.ends();
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["prefixes.SmolLM2-135M-Instruct.Q4_1", "prefixes.llama"]);
}
