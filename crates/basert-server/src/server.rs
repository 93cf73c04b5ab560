//! The server: connections, the layers that every request passes, and shutdown.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::Client;
use crate::batches::{self, Batches};
use crate::budget::Budget;
use crate::cache_keys::CacheKeys;
use crate::config::Config;
use crate::connections::Connections;
use crate::cors::Origins;
use crate::error::ApiError;
use crate::files::Files;
use crate::kept::Kept;
use crate::limits::Limits;
use crate::model::Source;
use crate::registry::Registry;
use crate::work::Work;
use crate::{api, auth, connection, error, fields, log, telemetry};

/// How often idle models and limits are checked.
const TIDY: Duration = Duration::from_secs(5);
/// How long to wait after a connection could not be accepted.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened to.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The server would be open to the network without a key.
    #[error("{address} can be reached from other machines; give an API key, or listen on 127.0.0.1")]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// Not an origin.
    #[error("'{0}' is not an origin; one looks like https://example.org or http://localhost:*, and * is all")]
    Origin(String),
    /// The folder for files cannot be used.
    #[error("files cannot be kept in '{}': {source}", folder.display())]
    Files {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// There is nothing to serve.
    #[error("there is no model to serve")]
    NoModels,
    /// Two models of the same name.
    #[error("two models are called '{0}'")]
    SameName(String),
}

/// The state that handlers share.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

pub struct Inner {
    pub config: Arc<Config>,
    /// Whose pages may use it.
    pub origins: Origins,
    pub registry: Arc<Registry>,
    pub limits: Limits,
    pub cache_keys: CacheKeys,
    /// What requests take of memory.
    pub budget: Arc<Budget>,
    /// Where they are worked on.
    pub work: Arc<Work>,
    pub responses: Kept,
    pub batches: Batches,
    /// Where files are kept, if anywhere.
    pub files: Option<Arc<Files>>,
    /// No new work is taken.
    draining: AtomicBool,
}

impl std::ops::Deref for Shared {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Shared {
    /// The salt of a client's prompts: what is cached of them is for prompts of the same salt. Its batches have it too,
    /// and so have other clients that send the same `prompt_cache_key`.
    pub fn salt(&self, client: u64, cache_key: Option<&str>) -> u64 {
        if self.config.api_keys.is_empty() || self.config.share_prefixes {
            return 0;
        }
        let own = Client(client).account();
        cache_key.and_then(|key| self.cache_keys.shared(own, key)).unwrap_or(own)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// A handle that stops a server.
#[derive(Debug, Clone)]
pub struct Stop(watch::Sender<Ending>);

/// How a server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// Not at all.
    No,
    /// When its requests have ended.
    Patiently,
    /// When they have, or the drain timeout is over.
    Soon,
    Now,
}

impl Stop {
    /// Takes no new requests; running ones may finish within the drain timeout.
    pub fn drain(&self) {
        self.0.send_replace(Ending::Soon);
    }

    /// Takes no new requests; running ones may finish, however long that takes.
    pub fn drain_patiently(&self) {
        self.0.send_replace(Ending::Patiently);
    }

    /// Ends running requests at once.
    pub fn now(&self) {
        self.0.send_replace(Ending::Now);
    }

    /// Waits until a server is to end that soon.
    async fn told(&self, ending: Ending) {
        let mut told = self.0.subscribe();
        // This is a sender itself: there is one as long as somebody waits.
        let _ = told.wait_for(|&now| now >= ending).await;
    }
}

/// A server that is listening.
pub struct Server {
    listener: TcpListener,
    shared: Shared,
    router: Router,
    stop: Stop,
}

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the address is taken, or the configuration is not safe.
    pub async fn bind(config: Config, sources: Vec<Source>) -> Result<Server, ServeError> {
        let address = config.address;
        if sources.is_empty() {
            return Err(ServeError::NoModels);
        }
        for (i, source) in sources.iter().enumerate() {
            if sources[..i].iter().any(|other| other.name == source.name) || config.aliases.contains(&source.name) {
                return Err(ServeError::SameName(source.name.clone()));
            }
        }
        if !address.ip().is_loopback() && config.api_keys.iter().all(String::is_empty) {
            return Err(ServeError::Open { address });
        }
        let origins = Origins::parse(&config.cors)?;
        let files = config.files.clone().map(|folder| {
            Files::open(folder.clone(), config.files_limit)
                .map(Arc::new)
                .map_err(|source| ServeError::Files { folder, source })
        });
        let files = files.transpose()?;
        telemetry::recorder();
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        let config = Arc::new(config);
        let registry = Arc::new(Registry::new(sources, config.clone()));
        let limits = Limits::new(config.rate_limit);
        let budget = Budget::new(config.request_memory / 4 * 3);
        let shared = Shared(Arc::new(Inner {
            responses: Kept::new(config.request_memory / 4),
            config,
            origins,
            cache_keys: CacheKeys::default(),
            budget,
            work: Work::new(),
            registry,
            limits,
            batches: files.as_deref().map(batches::recover).unwrap_or_default(),
            files,
            draining: AtomicBool::new(false),
        }));
        let router = api::router(&shared)
            // Bodies are limited for all.
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn_with_state(shared.clone(), refuse_when_draining))
            .layer(middleware::from_fn_with_state(shared.clone(), auth::check))
            .layer(middleware::from_fn(error::in_its_own_shape))
            .layer(middleware::from_fn(fields::warn))
            .layer(shared.origins.layer())
            .layer(middleware::from_fn(log::request))
            .with_state(shared.clone());
        Ok(Server { listener, shared, router, stop: Stop(watch::Sender::new(Ending::No)) })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The handle that stops it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Loads the default model, so that the first request need not wait.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub async fn open_first(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.shared.registry.obtain(None).await.map(drop)?)
    }

    /// Serves until stopped, and then until all requests have ended or the drain timeout is over.
    pub async fn run(self) {
        let Server { listener, shared, router, stop } = self;
        let connections = GracefulShutdown::new();
        let tidy = tokio::spawn(tidy(shared.clone()));
        batches::resume(&shared);
        let places = Connections::new(shared.config.connections);
        let mut pause = SHORTEST_PAUSE;
        loop {
            let accepted = async {
                places.room().await;
                listener.accept().await
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, peer)) => {
                        pause = SHORTEST_PAUSE;
                        let Some(place) = places.open(peer) else { continue };
                        let http = connection::serve(stream, peer, router.clone(), &shared.config, place.clone());
                        let http = connections.watch(http);
                        tokio::spawn(async move {
                            tokio::select! {
                                ended = http => if let Err(error) = ended {
                                    tracing::debug!(%error, "connection");
                                },
                                () = place.closed() => {}
                            }
                        });
                    }
                    // Out of file descriptors, or the client is gone already.
                    Err(error) => {
                        if pause == SHORTEST_PAUSE {
                            tracing::warn!(%error, "cannot accept a connection");
                        }
                        places.close_idle(None);
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                },
                () = stop.told(Ending::Patiently) => break,
            }
        }
        drop(listener);
        shared.draining.store(true, Ordering::Relaxed);
        batches::stopping(&shared);
        tracing::info!(in_flight = shared.registry.in_flight(), "draining");
        let over = async {
            stop.told(Ending::Soon).await;
            tokio::select! {
                () = stop.told(Ending::Now) => {}
                () = tokio::time::sleep(shared.config.drain_timeout) => {}
            }
        };
        tokio::select! {
            _ = futures_util::future::join(connections.shutdown(), shared.batches.drained()) => {}
            () = over => tracing::warn!(in_flight = shared.registry.in_flight(), "requests are cut off"),
        }
        tidy.abort();
        shared.work.stop();
        // Cached prefixes are saved, if configured; a second stop does not wait for that.
        tokio::select! {
            () = shared.registry.end() => {}
            () = stop.told(Ending::Now) => {}
        }
    }
}

async fn refuse_when_draining(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if shared.is_draining() && request.method() == Method::POST {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop");
        return Err(error.again_after(shared.config.drain_timeout.as_secs()));
    }
    Ok(next.run(request).await)
}

async fn tidy(shared: Shared) {
    loop {
        tokio::time::sleep(TIDY).await;
        shared.limits.tidy();
        shared.work.tidy();
        if let Some(idle) = shared.config.idle_timeout {
            shared.registry.unload_idle(idle);
        }
        if let Some(recorder) = telemetry::recorder() {
            recorder.run_upkeep();
        }
    }
}
