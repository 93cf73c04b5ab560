//! The machine's peaks: the numbers of a roofline (Williams et al. 2009), as measured. A shared machine changes from
//! minute to minute, so measure these together with what is compared with them.

// Chain numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use crate::{AllocError, Buffer, Isa, Pool, WorkerPanicked};

/// The peaks of this machine, with all its cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Memory read bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Operations per second of the integer dot product, the fastest arithmetic of the kernels; a multiplication and an
    /// addition count as two.
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
    /// Measures for about a second.
    ///
    /// # Errors
    /// When threads cannot be started, or [`BEYOND_CACHES`] bytes not allocated.
    pub fn measure() -> Result<Machine, MeasureError> {
        let pool = Pool::new(None)?;
        Ok(Machine { bandwidth: bandwidth(&pool)?, rate: rate(&pool, Isa::detect())? })
    }
}

/// The seconds of the fastest of several runs: the peak without disturbance.
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

/// More bytes than any last-level cache holds.
pub const BEYOND_CACHES: usize = 512 << 20;

/// Bytes per second that the pool's threads together read from memory.
///
/// # Errors
/// When there is too little memory.
pub fn bandwidth(pool: &Pool) -> Result<f64, MeasureError> {
    Ok(read_rates(pool, Isa::detect(), &[BEYOND_CACHES])?[0])
}

/// Bytes per second that the pool's threads together read from working sets of these sizes, repeatedly: small ones stay
/// in caches.
///
/// # Errors
/// When there is too little memory for the largest, or a thread fails.
pub fn read_rates(pool: &Pool, isa: Isa, sizes: &[usize]) -> Result<Vec<f64>, MeasureError> {
    /// The least bytes read in a run: enough to make waking the threads negligible.
    const RUN: usize = 64 << 20;
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let mut buffer = Buffer::zeroed(largest)?;
    buffer.fill(0x3f);
    let lines = buffer.as_chunks::<64>().0;
    let rate = |&size: &usize| {
        let lines = &lines[..size / 64];
        let passes = RUN.div_ceil(size.max(1));
        let seconds = fastest(|| {
            pool.run(|worker| {
                let part = lines[worker.share(lines.len())].as_flattened();
                for _ in 0..passes {
                    // SAFETY: it reads inside of `part`.
                    black_box(unsafe { read(isa, black_box(part)) });
                }
            })
        })?;
        Ok((passes * lines.len() * 64) as f64 / seconds)
    };
    sizes.iter().map(rate).collect()
}

dispatch! {
    /// Reads all of the bytes except a rest of less than 1 KiB, as four streams.
    unsafe fn read(bytes: &[u8]) -> f32 = read_kernel;
}

#[inline(always)]
unsafe fn read_kernel<S: Simd>(bytes: &[u8]) -> f32 {
    const STREAMS: usize = 4;
    const VECTOR: usize = LANES * size_of::<f32>();
    let stream = bytes.len() / STREAMS / VECTOR * VECTOR;
    // SAFETY: the caller has the instructions; every vector lies within its stream, and the streams within the bytes.
    unsafe {
        let mut sums = [S::splat(0.0); STREAMS];
        for at in (0..stream).step_by(VECTOR) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(bytes.as_ptr().add(i * stream + at).cast()));
            }
        }
        sums.into_iter().map(|sum| S::sum(sum)).sum()
    }
}

const REPEAT: usize = 100_000;

/// Independent chains of operations: enough to hide their latency, and no more than fit the registers.
fn chains(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MOST_CHAINS,
        Isa::Avx2 | Isa::AvxVnni => 6,
        _ => 4,
    }
}

/// Operations per second of the integer dot product on registers, by all threads of the pool together.
///
/// # Errors
/// When a thread fails.
pub fn rate(pool: &Pool, isa: Isa) -> Result<f64, MeasureError> {
    let seconds = fastest(|| {
        pool.run(|_| {
            let x = black_box(Operands([[3; 64]; MOST_CHAINS]));
            // SAFETY: it has no requirements but the instructions, which the machine has.
            black_box(unsafe {
                match chains(isa) {
                    MOST_CHAINS => dots::<MOST_CHAINS>(isa, &x),
                    6 => dots::<6>(isa, &x),
                    _ => dots::<4>(isa, &x),
                }
            });
        })
    })?;
    Ok((2 * 4 * LANES * chains(isa) * REPEAT * pool.threads()) as f64 / seconds)
}

/// As [`rate`], of fused multiply-adds of f32.
///
/// # Errors
/// When a thread fails.
pub fn float_rate(pool: &Pool, isa: Isa) -> Result<f64, MeasureError> {
    let seconds = fastest(|| {
        pool.run(|_| {
            let x = black_box(0.5);
            // SAFETY: it has no requirements but the instructions, which the machine has.
            black_box(unsafe {
                match chains(isa) {
                    MOST_CHAINS => fmas::<MOST_CHAINS>(isa, x),
                    6 => fmas::<6>(isa, x),
                    _ => fmas::<4>(isa, x),
                }
            });
        })
    })?;
    Ok((2 * LANES * chains(isa) * REPEAT * pool.threads()) as f64 / seconds)
}

dispatch! {
    /// Many dot products of the same bytes.
    unsafe fn dots[const CHAINS: usize](operands: &Operands) -> f32 = dots_kernel::<CHAINS>;

    /// Many products of `x` with sums.
    unsafe fn fmas[const CHAINS: usize](x: f32) -> f32 = fmas_kernel::<CHAINS>;
}

/// The most chains of operations.
const MOST_CHAINS: usize = 12;

/// Operands of the chains, which differ so that the compiler cannot merge them.
#[repr(align(64))]
struct Operands([[i8; 64]; MOST_CHAINS]);

#[inline(always)]
unsafe fn dots_kernel<S: Simd, const CHAINS: usize>(operands: &Operands) -> f32 {
    // SAFETY: the caller has the instructions; there are operands for all chains, each aligned.
    unsafe {
        let mut sums = [S::splat_i32(0); CHAINS];
        let mut weights = [S::splat_u8(0); CHAINS];
        for chain in 0..CHAINS {
            weights[chain] = S::load_bytes(operands.0[chain].as_ptr().cast());
        }
        let x = operands.0[0].as_ptr();
        if S::PAIRS {
            // Two sums take two products each.
            for _ in 0..REPEAT / 2 {
                for pair in sums.as_chunks_mut().0 {
                    *pair = S::dot_pair(*pair, [weights[0]; 2], [x; 2]);
                }
            }
        } else {
            let mut products = [S::begin(sums[0]); CHAINS];
            for i in 0..REPEAT {
                let x = S::broadcast4(x.add(i % 16 * 4));
                for chain in 0..CHAINS {
                    products[chain] = S::dot(products[chain], weights[chain], x);
                }
            }
            for (sum, products) in sums.iter_mut().zip(products) {
                *sum = S::end(*sum, products);
            }
        }
        sums.into_iter().map(|sum| S::sum(S::float(sum))).sum()
    }
}

#[inline(always)]
unsafe fn fmas_kernel<S: Simd, const CHAINS: usize>(x: f32) -> f32 {
    // SAFETY: the caller has the instructions.
    unsafe {
        let x = S::splat(x);
        let mut sums = [S::splat(1.0); CHAINS];
        for _ in 0..REPEAT {
            for sum in &mut sums {
                *sum = S::fma(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| S::sum(sum)).sum()
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

    #[test]
    fn every_instruction_set_is_measured() {
        let pool = Pool::new(Some(1)).unwrap();
        for isa in Isa::available() {
            let reads = read_rates(&pool, isa, &[1 << 20, 4 << 20]).unwrap();
            let rates = [rate(&pool, isa).unwrap(), float_rate(&pool, isa).unwrap()];
            assert!(
                reads.len() == 2 && reads.iter().chain(&rates).all(|&x| x > 1e7 && x < 1e16),
                "{reads:?} {rates:?}"
            );
        }
    }
}
