//! Persistent threads that run one function together.
//!
//! [`Pool::run`] has every worker, the caller included, execute the same closure (SPMD). Inside it, workers divide work
//! by [`Worker::chunks`] and wait for each other at [`Worker::barrier`]. A step of a model is one run: dozens of phases
//! with a barrier after each, without a system call between them. A waiting thread spins for a bounded time and then
//! sleeps, so that a noisy neighbour that takes a core costs time but not a core's worth of spinning.

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a waiting thread spins before it sleeps: longer than most waits of a step, and about as long as it takes to
/// wake a core of a virtual machine. A longer spin would keep the system from running the late thread on this core,
/// when a neighbour has taken the other one.
const SPIN: Duration = Duration::from_micros(25);
/// Polls between two looks at the clock.
const LOOKS: u32 = 16;

/// A worker panicked; the others were released from their barriers and the run was abandoned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} of the thread pool panicked: {message}")]
pub struct WorkerPanicked {
    /// Its index.
    pub worker: usize,
    /// Its panic message.
    pub message: String,
}

/// A number whose change threads can wait for.
struct Event {
    value: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Event {
    fn new() -> Event {
        Event { value: AtomicU32::new(0), sleepers: AtomicU32::new(0), lock: Mutex::new(()), changed: Condvar::new() }
    }

    fn value(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Increments the value and wakes the waiting threads.
    fn advance(&self) {
        // SeqCst, like the sleeper's pair: either it sees the new value, or `wake` sees the sleeper.
        self.value.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// Sets the value and wakes the waiting threads.
    fn set(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.changed.notify_all();
        }
    }

    /// Waits until the value is not `old`; returns the time spent beyond spinning.
    fn wait(&self, old: u32) -> Duration {
        let mut spinning = None;
        let start = loop {
            for _ in 0..LOOKS {
                if self.value() != old {
                    return Duration::ZERO;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now - *spinning.get_or_insert(now) > SPIN {
                break now;
            }
        };
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == old {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        start.elapsed()
    }
}

/// No lock here guards data that a panic could leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A meeting point of a fixed number of threads.
struct Barrier {
    arrived: AtomicUsize,
    generation: Event,
}

impl Barrier {
    fn new() -> Barrier {
        Barrier { arrived: AtomicUsize::new(0), generation: Event::new() }
    }

    /// Waits until `count` threads have called it, or `cancelled` was set and the generation advanced; returns the time
    /// spent beyond spinning.
    fn wait(&self, count: usize, cancelled: &AtomicBool) -> Duration {
        let generation = self.generation.value();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.advance();
        } else if !cancelled.load(Ordering::SeqCst) {
            return self.generation.wait(generation);
        }
        Duration::ZERO
    }
}

type Job = *const (dyn Fn(&Worker) + Sync);

/// Which run it is, and how many workers it has: what [`Shared::start`] holds.
#[derive(Clone, Copy)]
struct Start(u32);

impl Start {
    const BITS: u32 = 12;

    fn workers(self) -> usize {
        (self.0 % (1 << Self::BITS)) as usize
    }

    fn next(self, workers: usize) -> Start {
        Start(((self.0 >> Self::BITS).wrapping_add(1) << Self::BITS) | workers as u32)
    }
}

struct Shared {
    count: usize,
    /// Set when there is a job, or when the threads are to end.
    start: Event,
    /// Advanced when a run may have more workers than the one before: threads that had no part in that one wait for it.
    more: Event,
    job: UnsafeCell<Option<Job>>,
    /// The barrier of the job, and the one at its end, which panics do not reach.
    phase: Barrier,
    finish: Barrier,
    /// How long workers of the run have slept while others were late, in ns.
    waited: AtomicU64,
    panicked: AtomicBool,
    panic: Mutex<Option<WorkerPanicked>>,
}

// SAFETY: `job` is written only by the thread inside `Pool::run`, while all others wait for `start` or `more`, and read
// after it by the threads that take part in the run.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer's closure is `Sync` and outlives the run.
unsafe impl Send for Shared {}

/// The payload that unwinds a worker that waits for one that panicked.
struct Abandoned;

impl Shared {
    /// Runs the job as worker `index` of `count` and meets the others at its end.
    fn work(&self, index: usize, count: usize, job: &(dyn Fn(&Worker) + Sync)) {
        let worker = Worker { shared: self, index, count };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !payload.is::<Abandoned>() {
                let message = message(payload.as_ref());
                lock(&self.panic).get_or_insert(WorkerPanicked { worker: index, message });
            }
            self.panicked.store(true, Ordering::SeqCst);
            self.phase.generation.advance();
        }
        self.late(self.finish.wait(count, &AtomicBool::new(false)));
    }

    /// Starts a run of `workers` workers.
    fn begin(&self, workers: usize) {
        let last = Start(self.start.value());
        self.start.set(last.next(workers).0);
        if workers > last.workers() {
            self.more.advance();
        }
    }

    /// Records that a worker waited.
    fn late(&self, waited: Duration) {
        if !waited.is_zero() {
            self.waited.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// A pool of persistent threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` workers, of which the caller of [`run`](Pool::run) is one; by default as many as there are
    /// physical cores that this process may use.
    ///
    /// # Errors
    /// When the system cannot start the threads.
    pub fn new(threads: Option<usize>) -> io::Result<Pool> {
        let count = threads.unwrap_or_else(physical_cores).clamp(1, (1 << Start::BITS) - 1);
        let shared = Arc::new(Shared {
            count,
            start: Event::new(),
            more: Event::new(),
            job: UnsafeCell::new(None),
            phase: Barrier::new(),
            finish: Barrier::new(),
            waited: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, threads: Vec::new(), running: Mutex::new(()) };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            pool.threads.push(thread::Builder::new().name(format!("basert-{index}")).spawn(move || {
                let mut seen = 0;
                loop {
                    shared.start.wait(seen);
                    let more = shared.more.value();
                    seen = shared.start.value();
                    let workers = Start(seen).workers();
                    if index >= workers {
                        shared.more.wait(more);
                        continue;
                    }
                    // SAFETY: written before `start` was set, and not again before this worker reaches `finish`.
                    let Some(job) = (unsafe { *shared.job.get() }) else { return };
                    // SAFETY: `run` keeps the closure alive until all workers have passed `finish`.
                    shared.work(index, workers, unsafe { &*job });
                }
            })?);
        }
        Ok(pool)
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `job` on every worker and returns when all are done. Must not be called from inside a job of this pool.
    ///
    /// # Errors
    /// When a worker panicked. The pool can be used again.
    pub fn run<F: Fn(&Worker) + Sync>(&self, job: F) -> Result<(), WorkerPanicked> {
        self.run_with(self.threads(), job).map(|_| ())
    }

    /// As [`run`](Self::run), on the first `workers` workers only. Returns how long they slept while others were late,
    /// summed over them.
    ///
    /// # Errors
    /// When a worker panicked. The pool can be used again.
    pub fn run_with<F: Fn(&Worker) + Sync>(&self, workers: usize, job: F) -> Result<Duration, WorkerPanicked> {
        let workers = workers.clamp(1, self.threads());
        let _running = lock(&self.running);
        let shared = &*self.shared;
        let job: &(dyn Fn(&Worker) + Sync) = &job;
        // SAFETY: only the lifetime changes; all workers are done with it at `finish`, before this function returns.
        let erased =
            unsafe { std::mem::transmute::<&(dyn Fn(&Worker) + Sync), &'static (dyn Fn(&Worker) + Sync)>(job) };
        // SAFETY: all other workers wait for `start` or `more`.
        unsafe { *shared.job.get() = Some(erased as Job) };
        shared.begin(workers);
        shared.work(0, workers, job);
        let waited = Duration::from_nanos(shared.waited.swap(0, Ordering::Relaxed));
        if shared.panicked.swap(false, Ordering::SeqCst) {
            shared.phase.arrived.store(0, Ordering::SeqCst);
            let unknown = || WorkerPanicked { worker: 0, message: String::from("no message") };
            return Err(lock(&shared.panic).take().unwrap_or_else(unknown));
        }
        Ok(waited)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: no run is in progress, since that would borrow the pool.
        unsafe { *self.shared.job.get() = None };
        self.shared.begin(self.threads());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One of the threads that execute a job.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    count: usize,
}

impl Worker<'_> {
    /// Its index: 0 is the caller of [`Pool::run`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of workers that execute the job.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits until every worker has called it. Everything written before is visible after.
    ///
    /// # Panics
    /// When another worker has panicked, to end this one's part of the job as well.
    pub fn barrier(&self) {
        if self.count > 1 {
            self.shared.late(self.shared.phase.wait(self.count, &self.shared.panicked));
            if self.shared.panicked.load(Ordering::SeqCst) {
                // Not reported by the panic hook: the first panic was.
                std::panic::resume_unwind(Box::new(Abandoned));
            }
        }
    }

    /// Takes pieces of `0..total` until `counter` says that all are taken: from the front of this worker's
    /// [`share`](Self::share), and then, by work stealing, from the back of the others'. So an undisturbed worker
    /// passes over its share from the beginning to the end, which is best for memory, and a worker that is done helps
    /// the others. A piece is half of what is left of a share, and at least `grain`, so that all finish together.
    pub fn chunks<'c>(
        &'c self,
        counter: &'c Counter,
        total: usize,
        grain: usize,
    ) -> impl Iterator<Item = Range<usize>> + 'c {
        let count = self.count;
        assert!(counter.0.len() >= count && u32::try_from(total).is_ok());
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < count {
                let owner = (self.index + next) % count;
                if let Some(piece) = counter.0[owner].take(self.share_of(owner, total), grain, next == 0) {
                    return Some(piece);
                }
                next += 1;
            }
            None
        })
    }

    /// This worker's pieces of `count` products of `units` units each, in multiples of `step` units: the index of a
    /// product, and some of its units.
    pub(crate) fn products<'c>(
        &'c self,
        counter: &'c Counter,
        count: usize,
        units: usize,
        step: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'c {
        let steps = units.div_ceil(step);
        let grain = (count * steps / (16 * self.count)).clamp(1, 16);
        self.chunks(counter, count * steps, grain).flat_map(move |range| {
            let mut at = range.start;
            std::iter::from_fn(move || {
                (at < range.end).then(|| {
                    let (product, start) = (at / steps, at % steps);
                    let end = steps.min(start + range.end - at);
                    at += end - start;
                    (product, start * step..units.min(end * step))
                })
            })
        })
    }

    /// This worker's part of `0..total` when it is divided evenly beforehand.
    pub fn share(&self, total: usize) -> Range<usize> {
        self.share_of(self.index, total)
    }

    fn share_of(&self, index: usize, total: usize) -> Range<usize> {
        let at = |i: usize| (i as u128 * total as u128 / self.count as u128) as usize;
        at(index)..at(index + 1)
    }
}

/// How much of each worker's share has been taken.
#[derive(Debug)]
pub struct Counter(Box<[Taken]>);

impl Counter {
    /// For the shares of `workers` workers, nothing taken yet.
    pub fn new(workers: usize) -> Counter {
        Counter((0..workers).map(|_| Taken::default()).collect())
    }

    /// Starts over. No worker may be taking, and a barrier must follow before one does.
    pub fn reset(&self) {
        self.0.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
    }
}

/// How much of a share has been taken from its front (the low half) and from its back. On its own pair of cache lines,
/// which processors prefetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Taken(AtomicU64);

impl Taken {
    /// A piece of what is left of `share`.
    fn take(&self, share: Range<usize>, grain: usize, front: bool) -> Option<Range<usize>> {
        let left = |taken: u64| {
            let (start, end) = (share.start + (taken as u32) as usize, share.end.checked_sub((taken >> 32) as usize)?);
            (start < end).then_some(start..end)
        };
        let piece = |left: &Range<usize>| (left.len() / 2).max(grain).clamp(1, left.len());
        let take = |taken: u64| Some(taken + ((piece(&left(taken)?) as u64) << if front { 0 } else { 32 }));
        let left = left(self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?)?;
        let piece = piece(&left);
        Some(if front { left.start..left.start + piece } else { left.end - piece..left.end })
    }
}

/// Physical cores that this process may run on: hyper-threads share the resources that bound kernels.
fn physical_cores() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    core_count().map_or(allowed, |cores| cores.min(allowed))
}

/// Physical cores of the machine, if the system reports them.
fn core_count() -> Option<usize> {
    let mut siblings: Vec<String> = std::fs::read_dir("/sys/devices/system/cpu")
        .ok()?
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("topology/thread_siblings_list")).ok())
        .collect();
    siblings.sort();
    siblings.dedup();
    (!siblings.is_empty()).then_some(siblings.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once_in_every_phase() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(Some(threads)).unwrap();
            let hits: Vec<AtomicU32> = (0..1000).map(|_| AtomicU32::new(0)).collect();
            let counters: Vec<Counter> = (0..50).map(|_| Counter::new(threads)).collect();
            for run in 1..=20 {
                counters.iter().for_each(Counter::reset);
                pool.run(|worker| {
                    for (phase, counter) in counters.iter().enumerate() {
                        for range in worker.chunks(counter, hits.len(), 7) {
                            for hit in &hits[range] {
                                // All are equal before each phase, or the barrier does not hold.
                                assert_eq!(hit.fetch_add(1, Ordering::Relaxed), (run - 1) * 50 + phase as u32);
                            }
                        }
                        worker.barrier();
                    }
                })
                .unwrap();
            }
            assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1000));
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        let pool = Pool::new(Some(3)).unwrap();
        let hits: Vec<AtomicU32> = (0..100).map(|_| AtomicU32::new(0)).collect();
        pool.run(|worker| {
            hits[worker.share(100)].iter().for_each(|hit| {
                hit.fetch_add(1, Ordering::Relaxed);
            })
        })
        .unwrap();
        assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_survives() {
        let pool = Pool::new(Some(3)).unwrap();
        for culprit in 0..3 {
            let error = pool.run(|worker| {
                worker.barrier();
                if worker.index() == culprit {
                    std::panic::panic_any(format!("planned, by {culprit}"));
                }
                worker.barrier();
                worker.barrier();
            });
            let expected = WorkerPanicked { worker: culprit, message: format!("planned, by {culprit}") };
            assert_eq!(error, Err(expected));
            let count = AtomicU32::new(0);
            pool.run(|worker| {
                worker.barrier();
                count.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                assert_eq!(count.load(Ordering::Relaxed), 3);
            })
            .unwrap();
        }
    }

    #[test]
    fn a_run_has_the_workers_that_it_is_given() {
        let pool = Pool::new(Some(4)).unwrap();
        let counter = Counter::new(4);
        for round in 0..2000 {
            let workers = [1, 4, 2, 2, 3, 1, 1, 4][round % 8];
            let (runs, sum) = (AtomicU32::new(0), AtomicUsize::new(0));
            counter.reset();
            pool.run_with(workers, |worker| {
                assert!(worker.count() == workers && worker.index() < workers);
                runs.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                worker.chunks(&counter, 100, 3).flatten().for_each(|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            })
            .unwrap();
            assert_eq!((runs.into_inner() as usize, sum.into_inner()), (workers, 4950));
        }
    }

    #[test]
    fn late_workers_are_noticed() {
        let pool = Pool::new(Some(3)).unwrap();
        let late = Duration::from_millis(30);
        let waited = pool.run_with(3, |worker| {
            if worker.index() == 1 {
                thread::sleep(late);
            }
            worker.barrier();
        });
        assert!(waited.unwrap() > late);
    }

    #[test]
    fn sleepers_wake() {
        let pool = Pool::new(Some(2)).unwrap();
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            pool.run(|worker| {
                if worker.index() == 0 {
                    thread::sleep(std::time::Duration::from_millis(20));
                }
                worker.barrier();
            })
            .unwrap();
        }
    }
}
