//! Threads for work whose amount depends on a request: never those that serve connections, a few at once, and shared
//! fairly between clients.
//!
//! A request with a large body is served there as a whole ([`Work::serve`]): each piece of it that does not wait for
//! anything is a turn. What takes long in small requests, such as grammars, has a turn by itself ([`run_long`]). Turns
//! end by themselves, since what they work on is limited; those that may take longer look now and then whether they are
//! still wanted ([`Wanted`]).

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::auth::Client;
use crate::budget::Hold;
use crate::error::ApiError;

/// How long a piece of work may take that looks at the clock.
const LONGEST: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// The request that this task serves.
    static SERVED: Served;
}

/// A request that is being served.
#[derive(Clone)]
pub struct Served {
    pub work: Arc<Work>,
    pub client: Client,
    /// What it takes of memory, until its answer is over.
    pub hold: Arc<Hold>,
    /// What depends on its size alone does not take long. If not, all of it is served turn by turn.
    pub small: bool,
    /// Its client has left, or has its answer.
    pub left: Arc<AtomicBool>,
}

impl Served {
    /// The one that this task serves.
    pub fn current() -> Result<Served, ApiError> {
        SERVED.try_with(Served::clone).map_err(|_| ApiError::internal("work that is no request's"))
    }

    fn wanted(&self) -> Wanted {
        self.work.wanted(self.left.clone(), Some(self.hold.clone()))
    }

    /// Lets a task serve it.
    pub fn scope<F: Future>(self, task: F) -> impl Future<Output = F::Output> {
        SERVED.scope(self, task)
    }
}

/// Takes memory for the request that is served, until its answer is over.
pub fn hold(bytes: usize) -> Result<(), ApiError> {
    Served::current()?.hold.grow(bytes)
}

/// Runs what takes as long as the request that is served is large.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce(&Wanted) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let served = Served::current()?;
    // A large request has a turn already.
    if served.small { blocking(None, served.wanted(), work).await } else { work(&served.wanted()) }
}

/// Runs what may take long even for a small request.
pub async fn run_long<T: Send + 'static>(
    work: impl FnOnce(&Wanted) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let served = Served::current()?;
    if !served.small {
        return work(&served.wanted());
    }
    let turn = served.work.turn(served.client).await?;
    blocking(Some(turn), served.wanted(), work).await
}

/// The answer of this JSON, which may be large.
pub async fn json<T: Serialize>(make: impl FnOnce() -> T + Send + 'static) -> Result<Response, ApiError> {
    let text = |value: T| serde_json::to_string(&value).map_err(|error| ApiError::internal(error.to_string()));
    let text = run_long(move |_| text(make())).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn blocking<T: Send + 'static>(
    turn: Option<Turn>,
    wanted: Wanted,
    work: impl FnOnce(&Wanted) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let result = spawn_blocking(move || {
        let _turn = turn;
        work(&wanted)
    });
    result.await.unwrap_or_else(|error| Err(unexpected(&error)))
}

/// The turns that there are.
pub struct Work {
    all: Arc<Semaphore>,
    /// For each client that has turns or waits for one. A client's further work waits here, not ahead of other clients.
    clients: Mutex<HashMap<u64, Arc<Semaphore>>>,
    /// Turns of one client at once.
    each: usize,
    stopped: Arc<AtomicBool>,
}

struct Turn {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Work {
    /// As many turns at once as there are cores, half of them for one client.
    pub fn new() -> Arc<Work> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        Arc::new(Work {
            all: Arc::new(Semaphore::new(cores)),
            clients: Mutex::default(),
            each: cores / 2,
            stopped: Arc::default(),
        })
    }

    /// Nothing is wanted any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Forgets clients that have no turns.
    pub fn tidy(&self) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, turns| Arc::strong_count(turns) > 1);
    }

    async fn turn(&self, client: Client) -> Result<Turn, ApiError> {
        let own = {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.entry(client.account()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
        };
        let closed = |_| ApiError::internal("there is no place for work");
        let own = own.acquire_owned().await.map_err(closed)?;
        Ok(Turn { _own: own, _of_all: self.all.clone().acquire_owned().await.map_err(closed)? })
    }

    pub fn wanted(&self, left: Arc<AtomicBool>, hold: Option<Arc<Hold>>) -> Wanted {
        Wanted { left, stopped: self.stopped.clone(), until: Instant::now() + LONGEST, hold }
    }

    /// Runs long work for a client that does not belong to a request. `Wanted` says when it is no longer needed.
    pub async fn run<T: Send + 'static>(
        &self,
        client: Client,
        work: impl FnOnce(&Wanted) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.turn(client).await?;
        let left = Left::default();
        blocking(Some(turn), self.wanted(left.0.clone(), None), work).await
    }

    /// Serves a request of a client turn by turn.
    pub async fn serve<F>(&self, client: Client, task: F) -> Result<F::Output, ApiError>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let mut task = Box::pin(task);
        let woken = Arc::new(Woken(Notify::new()));
        loop {
            let turn = self.turn(client).await?;
            let waker = Waker::from(woken.clone());
            let polled = spawn_blocking(move || {
                let _turn = turn;
                let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
                (task, polled)
            });
            match polled.await.map_err(|error| unexpected(&error))? {
                (_, Poll::Ready(output)) => return Ok(output),
                (same, Poll::Pending) => task = same,
            }
            woken.0.notified().await;
        }
    }
}

fn unexpected(error: &tokio::task::JoinError) -> ApiError {
    ApiError::internal(format!("a request failed unexpectedly: {error}"))
}

struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Says so when it is dropped.
#[derive(Default)]
pub struct Left(pub Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether work is still wanted.
pub struct Wanted {
    /// The client has left.
    left: Arc<AtomicBool>,
    /// The server ends.
    stopped: Arc<AtomicBool>,
    until: Instant,
    hold: Option<Arc<Hold>>,
}

impl Wanted {
    /// Takes memory for the request that is served.
    pub fn hold(&self, bytes: usize) -> Result<(), ApiError> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.grow(bytes))
    }

    /// An error if it is not.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.left.load(Ordering::Relaxed) || self.stopped.load(Ordering::Relaxed) {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "nobody waits for this any more"));
        }
        if Instant::now() >= self.until {
            let message = format!("this takes longer than the {} s that a request's work may take", LONGEST.as_secs());
            return Err(ApiError::bad(message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::budget::Budget;

    fn block_on<F: Future>(task: F) -> F::Output {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(task)
    }

    #[test]
    fn work_hears_when_its_client_has_left_or_the_server_ends() {
        for stops in [false, true] {
            let ended = Arc::new(Notify::new());
            let hear = ended.clone();
            block_on(async move {
                let work = Work::new();
                let waits = work.run(Client(1), move |wanted| {
                    while wanted.check().is_ok() {
                        std::thread::yield_now();
                    }
                    ended.notify_one();
                    Ok(())
                });
                let waits = tokio::time::timeout(Duration::from_millis(20), waits);
                if stops {
                    work.stop();
                }
                let _ = waits.await;
                tokio::time::timeout(Duration::from_secs(5), hear.notified()).await.unwrap();
            });
        }
    }

    #[test]
    fn a_client_with_much_to_do_leaves_turns_to_others() {
        block_on(async {
            let work = Work::new();
            let (running, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let busy = (0..50).map(|_| {
                let (work, running, stop) = (work.clone(), running.clone(), stop.clone());
                tokio::spawn(async move {
                    let long = move |_: &Wanted| {
                        running.fetch_add(1, Ordering::Relaxed);
                        while !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Ok(())
                    };
                    work.run(Client(1), long).await
                })
            });
            let busy: Vec<_> = busy.collect();
            while running.load(Ordering::Relaxed) < work.each {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let other = work.run(Client(2), |_| Ok(()));
            tokio::time::timeout(Duration::from_secs(5), other).await.unwrap().unwrap();
            assert_eq!(running.load(Ordering::Relaxed), work.each);
            stop.store(true, Ordering::Relaxed);
            for task in busy {
                task.await.unwrap().unwrap();
            }
            work.tidy();
            assert!(work.clients.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn a_request_is_served_turn_by_turn_and_not_while_it_waits() {
        block_on(async {
            let work = Work::new();
            // More wait than there are turns: none of them has one while it does.
            let (open, gate) = tokio::sync::watch::channel(false);
            let served = (0..20).map(|_| {
                let (work, mut gate) = (work.clone(), gate.clone());
                tokio::spawn(async move {
                    let (client, hold) = (Client(1), Arc::new(Budget::new(1).hold(Client(1))));
                    let served = Served { work: work.clone(), client, hold, small: false, left: Arc::default() };
                    let task = served.scope(async move {
                        gate.wait_for(|&open| open).await.unwrap();
                        run_long(|_| run_here()).await.and(run(|_| run_here()).await)
                    });
                    work.serve(client, task).await
                })
            });
            let served: Vec<_> = served.collect();
            tokio::time::sleep(Duration::from_millis(20)).await;
            work.run(Client(1), |_| Ok(())).await.unwrap();
            open.send_replace(true);
            for task in served {
                task.await.unwrap().unwrap().unwrap();
            }
        });
    }

    fn run_here() -> Result<(), ApiError> {
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }
}
