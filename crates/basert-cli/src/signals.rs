//! Signals that end a server.
//!
//! A separate thread waits for them, so that busy server threads cannot delay them.

use std::time::Duration;
use std::{io, process, thread};

use basert_server::Stop;
use tokio::runtime::Builder;

/// How long cached prefixes may take to be saved after the drain timeout.
const SAVING: Duration = Duration::from_secs(30);
/// How long writing the rest of the log may take after that.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A received signal that stops the server.
struct Heard {
    /// Stop when all requests have ended, however long that takes.
    patiently: bool,
    /// The exit status of a process that a signal ends at once, by the convention of shells.
    status: i32,
}

/// Stops the server when a signal arrives. The process ends at the second signal, or some time after the drain timeout,
/// whatever the server is doing.
///
/// # Errors
/// When signal handlers cannot be installed.
pub fn hear(stop: Stop, drain_timeout: Duration) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::receive()?
    };
    let follow = async move {
        let first = signals.next().await;
        match first.patiently {
            true => stop.drain_patiently(),
            false => stop.drain(),
        }
        let overdue = async {
            tokio::time::sleep(drain_timeout.saturating_add(SAVING)).await;
            tracing::error!("the server did not stop in time; the process is ended");
            tokio::time::sleep(LAST_WORDS).await;
        };
        let status = tokio::select! {
            second = signals.next() => second.status,
            () = overdue, if !first.patiently => 1,
        };
        process::exit(status);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(follow)).map(drop)
}

#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 3]);

#[cfg(unix)]
impl Signals {
    fn receive() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let [terminate, interrupt, patient] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::user_defined1()];
        Ok(Signals([signal(terminate)?, signal(interrupt)?, signal(patient)?]))
    }

    async fn next(&mut self) -> Heard {
        let Signals([terminate, interrupt, patient]) = self;
        let (patiently, signal) = tokio::select! {
            _ = terminate.recv() => (false, libc::SIGTERM),
            _ = interrupt.recv() => (false, libc::SIGINT),
            _ = patient.recv() => (true, libc::SIGUSR1),
        };
        Heard { patiently, status: 128 + signal }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn receive() -> io::Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) -> Heard {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Heard { patiently: false, status: 130 },
            // Without it, the process can only be killed.
            Err(_) => std::future::pending().await,
        }
    }
}
