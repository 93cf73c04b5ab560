//! How many workers to run with, when other processes compete for the cores.
//!
//! A worker whose core another process takes is late at the next barrier by a time slice, which is longer than a step
//! of a small model; or it shares the core of another worker, and each waits for the other. So in memory-bound steps,
//! fewer workers on the remaining cores are faster. Whether the noisy neighbour is still there is found out by trying,
//! less often each time that it is.

use std::time::{Duration, Instant};

/// The most tokens of a memory-bound step.
pub(crate) const MEMORY_BOUND_TOKENS: usize = 8;
/// How long to go on with fewer workers, at first and at most.
const HOLD: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// The share of lost time above which a worker is dropped.
const LOST: f64 = 0.2;
/// After this number of runs without a change, the hold time is reset.
const CALM: u32 = 32;

/// The number of workers for runs of one kind.
#[derive(Debug)]
pub(crate) struct Contention {
    most: usize,
    workers: usize,
    /// The share of the workers' time that was lost waiting, averaged over the last runs.
    lost: f64,
    /// Runs since the number was changed.
    runs: u32,
    hold: Duration,
    /// When to try one more.
    again: Option<Instant>,
}

impl Contention {
    /// For a pool of `most` workers.
    pub fn new(most: usize) -> Contention {
        Contention { most, workers: most, lost: 0.0, runs: 0, hold: HOLD[0], again: None }
    }

    /// The number of workers for a run that begins now.
    pub fn workers(&mut self, now: Instant) -> usize {
        if self.workers < self.most && self.again.is_none_or(|again| now >= again) {
            self.change(self.workers + 1);
        }
        self.workers
    }

    /// Records that a run ended `now`, its duration, and the time that its workers waited for each other, summed over
    /// them.
    pub fn ran(&mut self, now: Instant, took: Duration, waited: Duration) {
        let lost = waited.as_secs_f64() / (took.as_secs_f64() * self.workers as f64).max(1e-9);
        self.lost += (lost - self.lost) / 2.0;
        self.runs += 1;
        // Less than a worker's share, since the remaining ones have the whole bandwidth.
        if self.workers > 1 && self.lost > LOST {
            self.again = Some(now + self.hold);
            self.hold = (2 * self.hold).min(HOLD[1]);
            self.change(self.workers - 1);
        } else if self.workers == self.most && self.runs >= CALM {
            self.hold = HOLD[0];
        }
    }

    fn change(&mut self, workers: usize) {
        (self.workers, self.lost, self.runs) = (workers, 0.0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for a second beside a neighbour that makes a worker late, or none; returns how many runs had how many workers.
    fn second(contention: &mut Contention, now: &mut Instant, disturbed: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut counts = vec![0; contention.most + 1];
        let end = *now + Duration::from_secs(1);
        while *now < end {
            let workers = contention.workers(*now);
            let late = if disturbed(workers) { Duration::from_millis(3) } else { Duration::ZERO };
            let took = Duration::from_millis(2) + late;
            *now += took;
            contention.ran(*now, took, late * (workers as u32 - 1));
            counts[workers] += 1;
        }
        counts
    }

    #[test]
    fn a_neighbour_is_avoided_and_its_end_is_noticed() {
        let mut now = Instant::now();
        for most in [2, 8] {
            let mut contention = Contention::new(most);
            let calm = second(&mut contention, &mut now, |_| false);
            assert_eq!(calm[most], calm.iter().sum::<usize>());
            second(&mut contention, &mut now, |workers| workers == most);
            let busy = second(&mut contention, &mut now, |workers| workers == most);
            assert!(busy[most - 1] > 20 * busy[most], "{busy:?}");
            second(&mut contention, &mut now, |_| false);
            let calm = second(&mut contention, &mut now, |_| false);
            assert_eq!(calm[most], calm.iter().sum::<usize>());
        }
    }

    #[test]
    fn a_single_delay_changes_nothing() {
        let mut contention = Contention::new(2);
        let now = Instant::now();
        for i in 0..100 {
            let late = Duration::from_micros(if i % 10 == 0 { 3000 } else { 0 });
            assert_eq!(contention.workers(now), 2);
            contention.ran(now, Duration::from_millis(2) + late, late);
        }
    }

    #[test]
    fn the_last_worker_stays() {
        let mut now = Instant::now();
        let mut contention = Contention::new(3);
        for _ in 0..4 {
            second(&mut contention, &mut now, |workers| workers > 1);
        }
        assert!(second(&mut contention, &mut now, |workers| workers > 1)[1] > 0);
        assert_eq!(second(&mut Contention::new(1), &mut now, |_| true)[0], 0);
    }
}
