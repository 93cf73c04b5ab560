//! The thread that runs a model: the scheduler's steps, and what is ordered between them.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use basert_engine::{Draft, Engine, EngineError, PageUse, Request, Scheduler, Turn};

use crate::options::Scheduling;

/// How often to look whether a client reads again, when there is nothing else to do.
const LOOK: Duration = Duration::from_millis(5);

/// How often to give back memory that was of no use meanwhile, also while requests run: what the busiest moment took is
/// not needed ever after.
const REST: Duration = Duration::from_secs(5);

/// After how long without a request new prefixes are saved: nobody has to wait for that then.
const SAVE: Duration = Duration::from_secs(60);

/// Orders to the thread.
pub(crate) enum Order {
    /// To answer.
    Answer(Request),
    /// To do something else between two steps.
    Work(Box<dyn FnOnce(&mut Engine) + Send>),
    /// To end what it does, and itself.
    End,
}

/// What a model does and has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Running answers, in prefill or decoding.
    pub running: usize,
    /// Waiting answers.
    pub waiting: usize,
    /// Number of preemptions.
    pub preempted: u64,
    /// Number of draft tokens proposed.
    pub proposed: u64,
    /// Number of draft tokens accepted.
    pub accepted: u64,
    /// The use of the KV cache.
    pub pages: PageUse,
}

/// Is told of each turn of the scheduler, on the model's thread: it must return quickly.
pub trait Observer: Send {
    /// A turn, and the counts after it.
    fn turn(&mut self, turn: &Turn, counts: &Counts);
}

/// Starts it. It ends when nobody can give orders any more and all requests are answered.
pub(crate) fn start(
    name: &str,
    engine: Engine,
    draft: Option<Draft>,
    scheduling: &Scheduling,
    observer: Option<Box<dyn Observer>>,
    counts: Arc<Mutex<Counts>>,
) -> io::Result<(Sender<Order>, JoinHandle<()>)> {
    let (sender, orders) = mpsc::channel();
    let scheduler =
        Scheduler::new(scheduling.parallel, scheduling.step_gap).with_speculation(scheduling.speculation, draft);
    let runner = Runner { name: name.to_owned(), engine, scheduler, observer, counts };
    let thread = thread::Builder::new().name(format!("model {name}")).spawn(move || runner.run(&orders))?;
    Ok((sender, thread))
}

struct Runner {
    name: String,
    engine: Engine,
    scheduler: Scheduler,
    observer: Option<Box<dyn Observer>>,
    counts: Arc<Mutex<Counts>>,
}

impl Runner {
    fn run(mut self, orders: &Receiver<Order>) {
        // No more orders can come.
        let mut alone = false;
        let mut given_back = Instant::now();
        loop {
            if orders.try_iter().any(|order| self.ends_with(order)) {
                break;
            }
            let turn = self.scheduler.step(&mut self.engine);
            self.count(&turn);
            if given_back.elapsed() >= REST {
                self.scheduler.give_back(&mut self.engine);
                given_back = Instant::now();
            }
            let order = match turn {
                Turn::Step { .. } => continue,
                Turn::Idle if alone => break,
                Turn::Idle if self.engine.can_give_back() => orders.recv_timeout(REST),
                Turn::Idle => orders.recv_timeout(SAVE).inspect_err(|_| self.save()),
                Turn::Blocked => orders.recv_timeout(LOOK),
            };
            match order {
                Ok(order) => {
                    if self.ends_with(order) {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    alone = true;
                    if turn == Turn::Blocked {
                        thread::sleep(LOOK);
                    }
                }
            }
        }
        for order in orders.try_iter() {
            if let Order::Answer(request) = order {
                self.scheduler.submit(&mut self.engine, request);
            }
        }
        self.scheduler.fail(&mut self.engine, &EngineError::Stopped);
        self.save();
    }

    /// Carries out an order; whether it is the last one.
    fn ends_with(&mut self, order: Order) -> bool {
        match order {
            Order::Answer(request) => self.scheduler.submit(&mut self.engine, request),
            Order::Work(work) => work(&mut self.engine),
            Order::End => return true,
        }
        false
    }

    fn count(&mut self, turn: &Turn) {
        let scheduler = &self.scheduler;
        let counts = Counts {
            running: scheduler.running(),
            waiting: scheduler.waiting(),
            preempted: scheduler.preempted(),
            proposed: scheduler.proposed(),
            accepted: scheduler.accepted(),
            pages: self.engine.page_use(),
        };
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        if let Some(observer) = &mut self.observer {
            observer.turn(turn, &counts);
        }
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
