//! The models by name: loaded when first used, unloaded when idle. Each has at most one engine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use tokio::sync::OwnedMutexGuard;

use crate::config::Config;
use crate::error::ApiError;
use crate::model::{Model, Source};

/// How often to look whether a model that is let go of has answered its last request.
const LOOK: Duration = Duration::from_millis(20);

/// All models that can be asked for.
pub struct Registry {
    entries: Vec<Entry>,
    config: Arc<Config>,
}

struct Entry {
    source: Source,
    created: SystemTime,
    /// Held while the model is opened, and until one that is let go of has ended, so that there is one at most.
    changing: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    model: Option<Arc<Model>>,
    /// Was let go of, and answers its last requests.
    leaving: Option<Arc<Model>>,
    /// When it was last asked for.
    used: Option<Instant>,
}

/// What there is to say about a model.
pub struct Listed<'a> {
    pub name: &'a str,
    pub created: SystemTime,
    pub loaded: Option<Arc<Model>>,
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Arc<Model>> {
        let mut state = self.state();
        // The thread of a model ends before its time when the device fails badly.
        state.model.take_if(|model| model.has_ended());
        state.used = Some(Instant::now());
        state.model.clone()
    }
}

impl Registry {
    pub fn new(sources: Vec<Source>, config: Arc<Config>) -> Registry {
        let entry =
            |source| Entry { source, created: SystemTime::now(), changing: Arc::default(), state: Mutex::default() };
        Registry { entries: sources.into_iter().map(entry).collect(), config }
    }

    /// The models in order; the first is that of requests that name none.
    pub fn list(&self) -> impl Iterator<Item = Listed<'_>> {
        self.entries.iter().map(|entry| Listed {
            name: &entry.source.name,
            created: entry.created,
            loaded: entry.state().model.clone(),
        })
    }

    /// What the first model is called beside its name.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        self.config.aliases.iter().map(String::as_str).filter(|alias| *alias != "*")
    }

    fn entry(&self, name: Option<&str>) -> Result<&Entry, ApiError> {
        let found = match name {
            None => self.entries.first(),
            Some(name) => {
                let alias = |alias: &String| alias == name || alias == "*";
                let named = self.entries.iter().find(|entry| entry.source.name == name);
                named.or_else(|| self.entries.first().filter(|_| self.config.aliases.iter().any(alias)))
            }
        };
        found.ok_or_else(|| self.unknown(name.unwrap_or_default()))
    }

    /// That there is no model of that name.
    pub fn unknown(&self, name: &str) -> ApiError {
        let names = self.entries.iter().map(|entry| entry.source.name.as_str()).chain(self.aliases());
        let names: Vec<_> = names.map(|name| format!("'{name}'")).collect();
        let message = format!("there is no model '{name}'; there is {}", names.join(", "));
        let error = ApiError { param: Some("model".to_owned()), ..ApiError::new(StatusCode::NOT_FOUND, message) };
        error.with_code("model_not_found")
    }

    /// The model of that name, opened if need be. Why that failed is in the log: it names files of this machine, which
    /// are not for clients.
    pub async fn get(self: &Arc<Self>, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        self.obtain(name).await.map_err(|error| {
            if error.status != StatusCode::INTERNAL_SERVER_ERROR {
                return error;
            }
            tracing::error!(%error, "no model");
            let name = self.entry(name).map_or("", |entry| &entry.source.name);
            ApiError::internal(format!("the model '{name}' could not be opened; the server's log says why"))
        })
    }

    /// As [`Registry::get`], with the reason.
    pub async fn obtain(self: &Arc<Self>, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let entry = self.entry(name)?;
        if let Some(model) = entry.usable() {
            return Ok(model);
        }
        let changing = entry.changing.clone().lock_owned().await;
        if let Some(model) = entry.usable() {
            return Ok(model);
        }
        let (registry, name) = (self.clone(), entry.source.name.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // Held until the model is open, even if the client that asked for it has left.
            let _changing = changing;
            let model = registry.open(&name)?;
            let mut state = registry.entry(Some(&name))?.state();
            (state.model, state.used) = (Some(model.clone()), Some(Instant::now()));
            Ok(model)
        });
        opened.await.map_err(|error| ApiError::internal(format!("opening the model failed: {error}")))?
    }

    fn open(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let source = &self.entry(Some(name))?.source;
        let began = Instant::now();
        let failed = |error: String| ApiError::internal(format!("the model '{name}' could not be opened: {error}"));
        let loaded = (source.open)().map_err(|error| failed(error.to_string()))?;
        let model = Model::start(name, loaded, self.config.clone()).map_err(|error| failed(error.to_string()))?;
        tracing::info!(model = name, seconds = began.elapsed().as_secs_f64(), "loaded");
        Ok(Arc::new(model))
    }

    /// Lets go of a model. Its requests may end within the drain timeout, and then its memory is free; until then it is
    /// not opened again. Whether it was open.
    pub async fn unload(self: &Arc<Self>, name: &str) -> Result<bool, ApiError> {
        let entry = self.entry(Some(name))?;
        let changing = entry.changing.clone().lock_owned().await;
        let taken = entry.state().model.take();
        if let Some(model) = &taken {
            self.retire(entry, model.clone(), changing);
            tracing::info!(model = name, "unloaded");
        }
        Ok(taken.is_some())
    }

    /// Lets go of models that nobody used for that long and that answer nobody.
    pub fn unload_idle(self: &Arc<Self>, idle: Duration) {
        for entry in &self.entries {
            let Ok(changing) = entry.changing.clone().try_lock_owned() else { continue };
            let mut state = entry.state();
            let long_ago = state.used.is_none_or(|used| used.elapsed() >= idle);
            let taken = state.model.take_if(|model| long_ago && model.is_idle());
            drop(state);
            if let Some(model) = taken {
                self.retire(entry, model, changing);
                tracing::info!(model = entry.source.name, "unloaded after {} s without use", idle.as_secs());
            }
        }
    }

    /// Ends a model that nobody can ask any more when its requests have ended, or the drain timeout is over.
    fn retire(self: &Arc<Self>, entry: &Entry, model: Arc<Model>, changing: OwnedMutexGuard<()>) {
        entry.state().leaving = Some(model.clone());
        let (registry, name) = (self.clone(), entry.source.name.clone());
        tokio::spawn(async move {
            // Requests that have found it but not begun to be answered count too: they hold it, beside this task and
            // `leaving`.
            let is_used = || Arc::strong_count(&model) > 2 || !model.is_idle();
            let idle = async {
                while is_used() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(registry.config.drain_timeout, idle).await.is_err() {
                tracing::warn!(model = name, in_flight = model.in_flight(), "requests are cut off");
            }
            model.end().await;
            if let Ok(entry) = registry.entry(Some(&name)) {
                entry.state().leaving = None;
            }
            drop(changing);
        });
    }

    /// Those in memory.
    fn models(&self) -> impl Iterator<Item = Arc<Model>> {
        self.entries.iter().flat_map(|entry| {
            let State { model, leaving, .. } = &*entry.state();
            [model.clone(), leaving.clone()].into_iter().flatten()
        })
    }

    /// Ends all models, one after the other.
    pub async fn end(&self) {
        for model in self.models() {
            model.end().await;
        }
    }

    /// Answers that are running or waiting, of all models.
    pub fn in_flight(&self) -> usize {
        self.models().map(|model| model.in_flight()).sum()
    }

    /// Whether a request could be answered now without a model being opened first.
    pub fn is_ready(&self) -> bool {
        self.list().any(|listed| listed.loaded.is_some_and(|model| !model.has_ended()))
    }
}
