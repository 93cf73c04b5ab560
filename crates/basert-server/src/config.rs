//! The configuration of a server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use basert_engine::Speculation;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address to listen on; port 0 takes a free port.
    pub address: SocketAddr,
    /// The accepted API keys; without any, no key is needed.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may use the server; `*` is all, and as the port any port.
    pub cors: Vec<String>,
    /// Host names that requests without a key may use, beside those that are always allowed; `*` is all.
    pub hosts: Vec<String>,
    /// Further names of the first model; `*` is every name that no model has.
    pub aliases: Vec<String>,
    /// Limit on a request's body, in bytes.
    pub body_limit: usize,
    /// Memory of all requests together, in bytes, beside that of models; one client may take half of it.
    pub request_memory: usize,
    /// Limit on open connections; one address may have half of them.
    pub connections: usize,
    /// Time limit for receiving a request's head, and again for its body.
    pub header_timeout: Duration,
    /// How long a client may read nothing before it is disconnected.
    pub write_timeout: Duration,
    /// Time limit for an answer.
    pub request_timeout: Duration,
    /// How long running requests may continue after the server is stopped.
    pub drain_timeout: Duration,
    /// The silence after which a stream sends a keep-alive.
    pub keep_alive: Duration,
    /// Limit on requests a minute for each key, or for each address if there are no keys.
    pub rate_limit: Option<u32>,
    /// Limit on running answers, for each model.
    pub parallel: usize,
    /// Limit on waiting requests of a client, for each model.
    pub queue: usize,
    /// Limit on an answer's tokens, whatever a request asks for.
    pub max_tokens: Option<usize>,
    /// How long a step may take while answers are decoded.
    pub step_gap: Duration,
    /// Speculative decoding.
    pub speculation: Speculation,
    /// Whether clients with different keys share cached prefixes, and can thereby find out what others have asked.
    pub share_prefixes: bool,
    /// The time without use after which a model is unloaded.
    pub idle_timeout: Option<Duration>,
    /// The folder of uploaded files and results of batches; without it, both are disabled.
    pub files: Option<PathBuf>,
    /// Limit on the bytes of all files; those of one client may be half of it.
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
