//! A small HTTP server on the loopback address, which can misbehave in every way a test needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// How many requests of the same path came before.
    pub earlier: usize,
}

impl Request {
    pub fn is_file(&self) -> bool {
        self.path.contains("/resolve/")
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// A Content-Length that differs from the body's.
    pub declared: Option<usize>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Send nothing for a long time after so many bytes.
    pub stall: Option<usize>,
    /// Bytes at a time, and the pause after them.
    pub pace: Option<(usize, Duration)>,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value.into()));
        self
    }

    /// The whole of `content`, or the range that was asked for.
    pub fn ranged(request: &Request, content: &[u8], etag: &str) -> Reply {
        let fresh = request.headers.get("if-range").is_none_or(|given| given == etag);
        let reply = Reply::status(200).header("ETag", etag);
        match request.range().filter(|_| fresh) {
            None => Reply { body: content.to_vec(), ..reply },
            Some((first, _)) if first >= content.len() => Reply::status(416),
            Some((first, last)) => {
                let last = last.min(content.len() - 1);
                let range = format!("bytes {first}-{last}/{}", content.len());
                let body = content[first..=last].to_vec();
                Reply { status: 206, body, ..reply.header("Content-Range", range) }
            }
        }
    }
}

pub struct Server {
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped, handler) = (requests.clone(), stop.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (log, stopped, handler) = (log.clone(), stopped.clone(), handler.clone());
                std::thread::spawn(move || {
                    // A client that goes away is none of the server's business.
                    let _ = serve(stream, &log, &stopped, &*handler);
                });
            }
        });
        Server { address, requests, stop }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn file_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_file).collect()
    }

    /// Sum of the ranges that were asked for.
    pub fn bytes_asked(&self) -> usize {
        self.file_requests().iter().filter_map(Request::range).map(|(first, last)| last + 1 - first).sum()
    }

    pub fn forget(&self) {
        self.requests.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    stopped: &AtomicBool,
    handler: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?).take(64 << 10);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let earlier = log.iter().filter(|r| r.path == path).count();
        log.push(Request { path, headers, earlier });
        log.last().unwrap().clone()
    };
    let reply = handler(&request);
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    head += &format!("Content-Length: {}\r\n", reply.declared.unwrap_or(reply.body.len()));
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    let (chunk, pause) = reply.pace.unwrap_or((body.len().max(1), Duration::ZERO));
    let mut sent = 0;
    for part in body.chunks(chunk) {
        if let Some(at) = reply.stall.filter(|at| *at < sent + part.len()) {
            stream.write_all(&part[..at - sent])?;
            while !stopped.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        }
        stream.write_all(part)?;
        sent += part.len();
        std::thread::sleep(pause);
    }
    Ok(())
}

/// A repository of a hub: its listing and its files.
#[derive(Clone)]
pub struct Repo {
    pub commit: &'static str,
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Repo {
    pub fn new(files: &[(&'static str, Vec<u8>)]) -> Repo {
        Repo { commit: "c0ffee0000000000000000000000000000000001", files: files.to_vec() }
    }

    /// Weights as LFS files, the others as git blobs, as on the real hub.
    pub fn listing(&self) -> serde_json::Value {
        let siblings = self.files.iter().map(|(path, content)| {
            let size = content.len();
            if path.ends_with(".gguf") || path.ends_with(".safetensors") {
                let sha256 = sha256(content);
                json!({"rfilename": path, "size": size, "blobId": "0".repeat(40),
                    "lfs": {"sha256": sha256, "size": size, "pointerSize": 135}})
            } else {
                let mut git = sha1::Sha1::new_with_prefix(format!("blob {size}\0"));
                git.update(content);
                json!({"rfilename": path, "size": size, "blobId": hex(&git.finalize())})
            }
        });
        json!({"id": "org/model", "sha": self.commit, "gated": false, "siblings": siblings.collect::<Vec<_>>()})
    }

    pub fn reply(&self, request: &Request) -> Reply {
        if request.path == "/api/models/org/model/revision/main?blobs=true" {
            return Reply { body: self.listing().to_string().into(), ..Reply::status(200) };
        }
        let prefix = format!("/org/model/resolve/{}/", self.commit);
        let wanted = request.path.strip_prefix(&prefix);
        match self.files.iter().find(|(path, _)| Some(*path) == wanted) {
            Some((path, content)) => Reply::ranged(request, content, &format!("\"{}-{path}\"", self.commit)),
            None => Reply::status(404).header("X-Error-Code", "RepoNotFound"),
        }
    }
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
