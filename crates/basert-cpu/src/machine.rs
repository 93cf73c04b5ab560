//! What the machine can do at most: the two numbers of a roofline (Williams et al. 2009).

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::isa::dispatch;
use crate::simd::Simd;
use crate::{AllocError, Buffer, Isa, Pool, WorkerPanicked};

/// The peaks of this machine, with all its cores, as measured. A shared machine differs from minute to minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Bytes that can be read from memory in a second.
    pub bandwidth: f64,
    /// Operations a second of the integer dot product, the fastest arithmetic that kernels use; a multiplication and
    /// an addition are two.
    pub rate: f64,
}

/// Why the machine could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] AllocError),
    /// A thread failed.
    #[error(transparent)]
    Worker(#[from] WorkerPanicked),
}

impl Machine {
    /// Measures for about half a second.
    ///
    /// # Errors
    /// When threads or 192 MB of memory cannot be had.
    pub fn measure() -> Result<Machine, MeasureError> {
        let pool = Pool::new(None)?;
        Ok(Machine { bandwidth: bandwidth(&pool)?, rate: rate(&pool, Isa::detect())? })
    }
}

/// The seconds of the fastest of several runs: what the machine can do when nobody disturbs.
fn fastest(mut run: impl FnMut() -> Result<(), WorkerPanicked>) -> Result<f64, WorkerPanicked> {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < Duration::from_millis(250) {
        let one = Instant::now();
        run()?;
        best = best.min(one.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}

/// Bytes a second that the pool's threads read together, from a buffer larger than the last-level cache.
///
/// # Errors
/// When there is too little memory.
pub fn bandwidth(pool: &Pool) -> Result<f64, MeasureError> {
    const LARGE: usize = 192 << 20;
    let mut buffer = Buffer::zeroed(LARGE)?;
    buffer.fill(1);
    let lines = buffer.as_chunks::<64>().0;
    let seconds = fastest(|| {
        pool.run(|worker| {
            let mut sum = [0u64; 8];
            for line in &lines[worker.share(lines.len())] {
                for (sum, word) in sum.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            black_box(sum);
        })
    })?;
    Ok(LARGE as f64 / seconds)
}

const REPEAT: usize = 100_000;
/// Dot products that do not wait for each other: enough to hide their latency.
const CHAINS: usize = 12;

/// Operations a second of the integer dot product, by all threads of the pool together, on registers.
///
/// # Errors
/// When a thread fails.
pub fn rate(pool: &Pool, isa: Isa) -> Result<f64, MeasureError> {
    let seconds = fastest(|| {
        pool.run(|_| {
            // SAFETY: it has no requirements but the instructions, which the machine has.
            black_box(unsafe { dots(isa, black_box([3; 64])) });
        })
    })?;
    Ok((2 * 64 * CHAINS * REPEAT * pool.threads()) as f64 / seconds)
}

dispatch! {
    /// Many dot products of the same 64 bytes.
    unsafe fn dots(bytes: [i8; 64]) -> f32 = dots_kernel;
}

#[inline(always)]
unsafe fn dots_kernel<S: Simd>(bytes: [i8; 64]) -> f32 {
    // SAFETY: the caller has the instructions, and four bytes are there to be read.
    unsafe {
        let x = S::broadcast4(bytes.as_ptr());
        let mut sums = [S::splat_i32(0); CHAINS];
        for _ in 0..REPEAT {
            for sum in &mut sums {
                *sum = S::dot(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| S::sum(S::float(sum))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_computes_faster_than_it_reads() {
        let machine = Machine::measure().unwrap();
        assert!(machine.bandwidth > 1e8 && machine.bandwidth < 1e14, "{machine:?}");
        assert!(machine.rate > machine.bandwidth && machine.rate < 1e17, "{machine:?}");
    }
}
