//! The thread that runs a model.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use basert_engine::{Draft, Engine, EngineError, Request, Scheduler, Turn};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::telemetry::ModelGauges;

/// How often to look whether a client reads again, when there is nothing else to do.
const LOOK: Duration = Duration::from_millis(5);

/// How often to give back memory that was of no use meanwhile, also while requests run: what the busiest moment took is
/// not needed ever after.
const REST: Duration = Duration::from_secs(5);

/// After how long without a request new prefixes are saved: nobody has to wait for that then.
const SAVE: Duration = Duration::from_secs(60);

/// Orders to the thread.
pub enum Order {
    /// To answer.
    Answer(Request),
    /// To end what it does, and itself; who gave the order hears of it when this is dropped.
    End(oneshot::Sender<()>),
}

/// Starts it. It ends when nobody can give orders any more and all requests are answered.
pub fn start(
    name: &str,
    engine: Engine,
    draft: Option<Draft>,
    config: &Config,
) -> io::Result<(Sender<Order>, JoinHandle<()>)> {
    let (sender, orders) = mpsc::channel();
    let scheduler = Scheduler::new(config.parallel, config.step_gap).with_speculation(config.speculation, draft);
    let (worker, gauges) = (Worker { name: name.to_owned(), engine, scheduler }, ModelGauges::new(name));
    let thread = thread::Builder::new().name(format!("model {name}")).spawn(move || worker.run(&orders, &gauges))?;
    Ok((sender, thread))
}

struct Worker {
    name: String,
    engine: Engine,
    scheduler: Scheduler,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>, gauges: &ModelGauges) {
        // No more orders can come.
        let mut alone = false;
        let mut given_back = Instant::now();
        let told = 'run: loop {
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Answer(request) => self.scheduler.submit(&mut self.engine, request),
                    Order::End(told) => break 'run Some(told),
                }
            }
            let turn = self.scheduler.step(&mut self.engine);
            gauges.set(&turn, &self.scheduler, &self.engine);
            if given_back.elapsed() >= REST {
                self.scheduler.give_back(&mut self.engine);
                given_back = Instant::now();
            }
            let order = match turn {
                Turn::Step { .. } => continue,
                Turn::Idle if alone => break None,
                Turn::Idle if self.engine.can_give_back() => orders.recv_timeout(REST),
                Turn::Idle => orders.recv_timeout(SAVE).inspect_err(|_| self.save()),
                Turn::Blocked => orders.recv_timeout(LOOK),
            };
            match order {
                Ok(Order::Answer(request)) => self.scheduler.submit(&mut self.engine, request),
                Ok(Order::End(told)) => break Some(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    alone = true;
                    if turn == Turn::Blocked {
                        thread::sleep(LOOK);
                    }
                }
            }
        };
        for order in orders.try_iter() {
            if let Order::Answer(request) = order {
                self.scheduler.submit(&mut self.engine, request);
            }
        }
        self.scheduler.fail(&mut self.engine, &EngineError::Stopped);
        self.save();
        // Its memory is free before anybody hears of the end.
        drop((self.engine, self.scheduler));
        drop(told);
    }

    /// Saves prefixes that were not saved yet, if that is wanted.
    fn save(&mut self) {
        if !self.engine.has_unsaved_prefixes() {
            return;
        }
        let began = Instant::now();
        match self.engine.save_prefixes() {
            Ok(pages) => {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(model = self.name, pages, seconds, "cached prefixes saved");
            }
            Err(error) => tracing::warn!(model = self.name, %error, "cached prefixes not saved"),
        }
    }
}
