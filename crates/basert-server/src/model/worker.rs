//! The thread that a model computes on.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use basert_engine::{Engine, Request, Scheduler, Turn};

use crate::config::Config;
use crate::telemetry::ModelGauges;

/// How often to look whether a client reads again, when there is nothing else to do.
const LOOK: Duration = Duration::from_millis(5);

/// Starts it. It ends when nobody can send requests any more and all are answered.
pub fn start(name: &str, engine: Engine, config: &Config) -> io::Result<(Sender<Request>, JoinHandle<()>)> {
    let (sender, requests) = mpsc::channel();
    let scheduler = Scheduler::new(config.parallel, config.step_gap);
    let gauges = ModelGauges::new(name);
    let run = move || run(engine, scheduler, &requests, &gauges);
    let thread = thread::Builder::new().name(format!("model {name}")).spawn(run)?;
    Ok((sender, thread))
}

fn run(mut engine: Engine, mut scheduler: Scheduler, requests: &Receiver<Request>, gauges: &ModelGauges) {
    let mut open = true;
    loop {
        while open {
            match requests.try_recv() {
                Ok(request) => scheduler.submit(&mut engine, request),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => open = false,
            }
        }
        let turn = scheduler.step(&mut engine);
        gauges.set(&turn, &scheduler, &engine);
        let next = match turn {
            Turn::Step { .. } => continue,
            Turn::Idle if !open => return,
            Turn::Idle => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Turn::Blocked => requests.recv_timeout(LOOK),
        };
        match next {
            Ok(request) => scheduler.submit(&mut engine, request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                open = false;
                thread::sleep(LOOK);
            }
        }
    }
}
