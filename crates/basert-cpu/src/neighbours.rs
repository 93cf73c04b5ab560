//! How many workers to run with, beside other processes.
//!
//! A worker whose core another process takes is late at the next barrier, by what the system gives the other at a time,
//! which is longer than a step of a small model; or it shares the core of a worker, and each waits for the other. So where
//! a step is bound by memory, fewer workers are faster, on the cores that are left. Whether the neighbour is still there is
//! found out by trying, less often each time that it is.

use std::time::{Duration, Instant};

/// The tokens of a step that is bound by memory, at most.
pub(crate) const FEW: usize = 8;
/// How long to do with fewer workers, at first and at most.
const HOLD: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// The share of their time that workers may lose, and stay.
const LOST: f64 = 0.2;
/// After so many runs without a change, a neighbour is forgotten.
const CALM: u32 = 32;

/// The number of workers for runs of one kind.
#[derive(Debug)]
pub(crate) struct Neighbours {
    most: usize,
    workers: usize,
    /// The share of the workers' time that was lost in waiting, in the last runs.
    lost: f64,
    /// Runs since the number was changed.
    runs: u32,
    hold: Duration,
    /// When to try one more.
    again: Option<Instant>,
}

impl Neighbours {
    /// For a pool of so many workers.
    pub fn new(most: usize) -> Neighbours {
        Neighbours { most, workers: most, lost: 0.0, runs: 0, hold: HOLD[0], again: None }
    }

    /// How many workers a run that begins now shall have.
    pub fn workers(&mut self, now: Instant) -> usize {
        if self.workers < self.most && self.again.is_none_or(|again| now >= again) {
            self.change(self.workers + 1);
        }
        self.workers
    }

    /// Notes that a run ended `now` that took so long, in which its workers have waited for each other so long, all
    /// together.
    pub fn ran(&mut self, now: Instant, took: Duration, waited: Duration) {
        let lost = waited.as_secs_f64() / (took.as_secs_f64() * self.workers as f64).max(1e-9);
        self.lost += (lost - self.lost) / 2.0;
        self.runs += 1;
        // Less than the work of a worker, as those that are left have the memory to themselves.
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
    fn second(neighbours: &mut Neighbours, now: &mut Instant, disturbed: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut counts = vec![0; neighbours.most + 1];
        let end = *now + Duration::from_secs(1);
        while *now < end {
            let workers = neighbours.workers(*now);
            let late = if disturbed(workers) { Duration::from_millis(3) } else { Duration::ZERO };
            let took = Duration::from_millis(2) + late;
            *now += took;
            neighbours.ran(*now, took, late * (workers as u32 - 1));
            counts[workers] += 1;
        }
        counts
    }

    #[test]
    fn a_neighbour_is_avoided_and_its_end_is_noticed() {
        let mut now = Instant::now();
        for most in [2, 8] {
            let mut neighbours = Neighbours::new(most);
            let calm = second(&mut neighbours, &mut now, |_| false);
            assert_eq!(calm[most], calm.iter().sum::<usize>());
            second(&mut neighbours, &mut now, |workers| workers == most);
            let busy = second(&mut neighbours, &mut now, |workers| workers == most);
            assert!(busy[most - 1] > 20 * busy[most], "{busy:?}");
            second(&mut neighbours, &mut now, |_| false);
            let calm = second(&mut neighbours, &mut now, |_| false);
            assert_eq!(calm[most], calm.iter().sum::<usize>());
        }
    }

    #[test]
    fn a_single_delay_changes_nothing() {
        let mut neighbours = Neighbours::new(2);
        let now = Instant::now();
        for i in 0..100 {
            let late = Duration::from_micros(if i % 10 == 0 { 3000 } else { 0 });
            assert_eq!(neighbours.workers(now), 2);
            neighbours.ran(now, Duration::from_millis(2) + late, late);
        }
    }

    #[test]
    fn the_last_worker_stays() {
        let mut now = Instant::now();
        let mut neighbours = Neighbours::new(3);
        for _ in 0..4 {
            second(&mut neighbours, &mut now, |workers| workers > 1);
        }
        assert!(second(&mut neighbours, &mut now, |workers| workers > 1)[1] > 0);
        assert_eq!(second(&mut Neighbours::new(1), &mut now, |_| true)[0], 0);
    }
}
