//! What a server is told when it begins.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use basert_engine::Speculation;

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 takes one that is free.
    pub address: SocketAddr,
    /// Any of these lets a client in; without any, everybody who can connect is let in.
    pub api_keys: Vec<String>,
    /// Web pages from these origins may use the server; `*` is all, and in the place of a port any port.
    pub cors: Vec<String>,
    /// Names of this machine by which it may be asked without a key, beside those that it has in any case; `*` is all.
    pub hosts: Vec<String>,
    /// More names for the first model; `*` is every name that no model has.
    pub aliases: Vec<String>,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// Bytes that all requests may take together, beside what models take; one client may take half of it.
    pub request_memory: usize,
    /// Connections at once; one address may have half of them.
    pub connections: usize,
    /// How long a client may take to send the head of a request, and as long again for its body.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How long requests may go on after the server was told to stop.
    pub drain_timeout: Duration,
    /// A stream that has nothing to say for that long says so.
    pub keep_alive: Duration,
    /// Requests a minute for each key, or for each address where there are no keys.
    pub rate_limit: Option<u32>,
    /// Answers at once, for each model.
    pub parallel: usize,
    /// Requests that may wait for their turn, for each model.
    pub queue: usize,
    /// The most tokens of an answer, unless the request says less.
    pub max_tokens: Option<usize>,
    /// How long a step may take while answers are written.
    pub step_gap: Duration,
    /// How many tokens of answers are guessed before they are drawn.
    pub speculation: Speculation,
    /// Whether clients with different keys share cached prefixes, and may so learn what others have asked.
    pub share_prefixes: bool,
    /// A model that was not used for that long is unloaded.
    pub idle_timeout: Option<Duration>,
    /// Where uploaded files and results of batches are kept; there are none without.
    pub files: Option<PathBuf>,
    /// Bytes of all of them; those of one client may be half of it.
    pub files_limit: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_keys: Vec::new(),
            cors: Vec::new(),
            hosts: Vec::new(),
            aliases: Vec::new(),
            body_limit: 32 << 20,
            request_memory: 1 << 30,
            connections: 8192,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(10),
            rate_limit: None,
            parallel: 16,
            queue: 256,
            max_tokens: None,
            step_gap: Duration::from_millis(150),
            speculation: Speculation::Auto,
            share_prefixes: false,
            idle_timeout: None,
            files: None,
            files_limit: 10 << 30,
        }
    }
}
