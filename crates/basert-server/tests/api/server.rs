//! A server to ask, and what it says.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use basert::{Loaded, Options};
use basert_server::{Config, Server, Source, Stop};
use reqwest::blocking::multipart::Form;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;

/// Each message on a line, and then the assistant's turn.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

pub struct Running {
    pub address: SocketAddr,
    pub stop: Stop,
    pub model: String,
    pub key: Option<String>,
    client: Client,
    thread: Option<JoinHandle<()>>,
}

/// What opens the tiny model.
pub fn tiny() -> Loaded {
    let options = Options {
        threads: Some(1),
        max_context: Some(1024),
        sessions: 8,
        chat_template: Some(TEMPLATE.to_owned()),
        ..Options::default()
    };
    Loaded::open(basert_testkit::tiny().join("llama.gguf"), options).unwrap()
}

/// On a free port, with nothing that others have set.
pub fn config() -> Config {
    Config { address: SocketAddr::from(([127, 0, 0, 1], 0)), parallel: 8, ..Config::default() }
}

impl Running {
    /// With the tiny model under this name, which has to be another one for every test: metrics are the process's.
    pub fn start(name: &str) -> Running {
        Running::with(config(), name, tiny)
    }

    pub fn with(config: Config, name: &str, open: fn() -> Loaded) -> Running {
        let key = config.api_keys.first().cloned();
        let source = Source { name: name.to_owned(), open: Box::new(move || Ok(open())) };
        let (told, hear) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(config, vec![source]).await.unwrap();
                server.open_first().await.unwrap();
                told.send((server.address().unwrap(), server.stop())).unwrap();
                server.run().await;
            });
        });
        let (address, stop) = hear.recv().unwrap();
        // The client wants to know how it would encrypt, if it did. Another test may have said so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
        Running { address, stop, model: name.to_owned(), key, client, thread: Some(thread) }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.with_key(self.client.get(format!("http://{}{path}", self.address)))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.client.post(format!("http://{}{path}", self.address));
        self.with_key(request.header("content-type", "application/json").body(body.to_string()))
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.with_key(self.client.delete(format!("http://{}{path}", self.address)))
    }

    pub fn form(&self, path: &str, form: Form) -> RequestBuilder {
        self.with_key(self.client.post(format!("http://{}{path}", self.address)).multipart(form))
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// The answer to a request that succeeds.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, value) = json(self.post(path, body).send().unwrap());
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Status and body of the answer to a request that fails.
    pub fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        json(self.post(path, body).send().unwrap())
    }

    /// The events of a stream: names, where there are any, and data.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<(Option<String>, String)> {
        let response = self.post(path, body).send().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events(response).collect()
    }

    /// A number that is reported for the model.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").send().unwrap().text().unwrap();
        let line = format!("{name}{{model=\"{}\"}} ", self.model);
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0.0, |number| number.parse().unwrap())
    }

    /// Waits until a number is as it should be.
    pub fn wait_for(&self, name: &str, expected: f64) {
        let began = Instant::now();
        while self.metric(name) != expected {
            assert!(began.elapsed() < Duration::from_secs(20), "{name} is {}, not {expected}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the server has ended.
    pub fn join(&mut self) {
        self.thread.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.now();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

fn json(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}, not JSON: {text}")))
}

/// The events of a stream as they come.
pub fn events(response: Response) -> impl Iterator<Item = (Option<String>, String)> {
    let mut lines = BufReader::new(response).lines();
    std::iter::from_fn(move || {
        let (mut name, mut data) = (None, None);
        loop {
            let line = lines.next()?.ok()?;
            if let Some(text) = line.strip_prefix("event: ") {
                name = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(text.to_owned());
            } else if line.is_empty()
                && let Some(data) = data.take()
            {
                return Some((name, data));
            }
        }
    })
}
