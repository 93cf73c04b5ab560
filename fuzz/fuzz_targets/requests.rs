//! A request to a server with a tiny model. The input is a byte that chooses the endpoint, and the body.
#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{LazyLock, Mutex, mpsc};

use basert::{Model, Options};
use basert_server::{Config, Loaded, Server, Source};
use libfuzzer_sys::fuzz_target;

const ENDPOINTS: [&str; 8] = [
    "chat/completions",
    "completions",
    "messages",
    "messages/count_tokens",
    "responses",
    "tokenize",
    "detokenize",
    "models/load",
];
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

fn tiny() -> Loaded {
    let options = Options {
        threads: Some(1),
        max_context: Some(1024),
        sessions: 8,
        prefix_cache: true,
        chat_template: Some(TEMPLATE.to_owned()),
        ..Options::default()
    };
    let model = Model::open(basert_testkit::tiny().join("llama.gguf"), options).expect("it is tested");
    let sampling = model.sampling().clone();
    let pooling = model.pooling().map_err(|error| error.to_string());
    let (engine, tokenizer, template) = model.into_parts();
    Loaded { engine, tokenizer, template, draft: None, sampling, pooling }
}

/// A connection to a server that has begun.
static CONNECTION: LazyLock<Mutex<BufReader<TcpStream>>> = LazyLock::new(|| {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { address, parallel: 8, max_tokens: Some(2), ..Config::default() };
    let source = Source { name: "tiny".to_owned(), open: Box::new(|| Ok(tiny())) };
    let (told, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("there are threads").block_on(async {
            let server = Server::bind(config, vec![source]).await.expect("a port is free");
            told.send(server.address().expect("it listens")).expect("somebody waits");
            server.run().await;
        });
    });
    let address = hear.recv().expect("it begins");
    Mutex::new(BufReader::new(TcpStream::connect(address).expect("it listens")))
});

fn line(connection: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    Ok(line.trim().to_ascii_lowercase())
}

/// The status of the answer, all of which is read.
fn ask(connection: &mut BufReader<TcpStream>, endpoint: &str, body: &[u8]) -> std::io::Result<u16> {
    let head = format!("POST /v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let request = [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    connection.get_mut().write_all(&request)?;
    let first = line(connection)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let mut length = None;
    loop {
        let header = line(connection)?;
        if header.is_empty() {
            break;
        } else if let Some(bytes) = header.strip_prefix("content-length: ") {
            length = bytes.parse().ok();
        }
    }
    match length {
        Some(length) => connection.read_exact(&mut vec![0; length])?,
        // Chunks, each with its length before it.
        None => loop {
            let length = usize::from_str_radix(&line(connection)?, 16).unwrap_or_default();
            connection.read_exact(&mut vec![0; length + 2])?;
            if length == 0 {
                break;
            }
        },
    }
    Ok(status)
}

fuzz_target!(
    init: {
        // Panics inside libraries that are caught become errors. One in the server is an answer that fails or never comes.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let Some((endpoint, body)) = bytes.split_first() else { return };
        let endpoint = ENDPOINTS[usize::from(*endpoint) % ENDPOINTS.len()];
        let mut connection = CONNECTION.lock().expect("there is one thread");
        let answered = ask(&mut connection, endpoint, body);
        if !answered.as_ref().is_ok_and(|status| (200..500).contains(status)) {
            eprintln!("{endpoint}: {answered:?}");
            std::process::abort();
        }
    }
);
