//! How many tokens of prefill fit a step without a noticeable delay of decoding answers.

use std::time::Duration;

/// The duration of steps: measured, as a moving average over about ten steps.
///
/// A step with half as many tokens may take half the time, as on a CPU, or nearly the same, as on a GPU; so what
/// prompts add to it is measured for each size, in powers of two.
#[derive(Debug)]
pub(super) struct Pace {
    /// How long a step may take while answers are decoded.
    gap: f64,
    /// Seconds of a step without prefill.
    decode: f64,
    /// Seconds that 2ⁿ tokens of prefill add, for each n; 0 if not measured yet.
    prompts: [f64; SIZES],
}

const SIZES: usize = 17;
/// Seconds that a device should run ahead.
const AHEAD: f64 = 0.005;
/// The least number of prefill tokens that is worth adding.
const LEAST: usize = 16;
/// The factor by which prefill may exceed the duration of the least piece if even that takes too long: the further
/// delay is hardly noticeable.
const HARDLY_MORE: f64 = 1.25;
/// The part of a measurement that is forgotten with each one of a smaller size, lest a large one be believed too long
/// for good.
const FORGOTTEN: f64 = 0.02;

impl Pace {
    pub fn new(gap: Duration) -> Pace {
        Pace { gap: gap.as_secs_f64(), decode: 0.0, prompts: [0.0; SIZES] }
    }

    /// Tokens of prefill for a step with `decoding` answers, at most `most`.
    pub fn prompt_tokens(&self, decoding: usize, most: usize) -> usize {
        if decoding == 0 {
            return most;
        }
        let least = size(LEAST);
        let Some(of_least) = self.seconds(least) else { return LEAST.min(most) };
        // If decoding alone takes that long, prefill still gets a quarter.
        let time = (self.gap - self.decode).max(self.gap / 4.0);
        let (mut tokens, mut fits) = (LEAST, of_least);
        let exceeded = of_least > time;
        let time = if exceeded { of_least * HARDLY_MORE } else { time };
        for n in least + 1..SIZES {
            let untried = exceeded && self.prompts[n] == 0.0;
            let seconds = if untried { fits } else { self.seconds(n).unwrap_or(fits).max(fits) };
            if seconds > time {
                // Times between two sizes are interpolated linearly.
                let share = if exceeded { 0.0 } else { (time - fits) / (seconds - fits) };
                return (tokens + (tokens as f64 * share) as usize).min(most);
            }
            (tokens, fits) = (1 << n, seconds);
            if untried {
                break;
            }
        }
        tokens.min(most)
    }

    /// Steps of decoding that a device should run ahead, at least one: as many as keep it busy while readers get their
    /// tokens, and not more, since a request that comes has to wait for them.
    pub fn steps_ahead(&self) -> usize {
        if self.decode > 0.0 { ((AHEAD / self.decode) as usize).max(1) } else { 1 }
    }

    /// Seconds that 2ⁿ tokens of prefill add: measured, or in proportion to the nearest measured size, smaller ones
    /// first.
    fn seconds(&self, n: usize) -> Option<f64> {
        let measured = |&m: &usize| self.prompts[m] > 0.0;
        let nearest = (0..=n).rev().find(measured).or_else(|| (n..SIZES).find(measured))?;
        Some(self.prompts[nearest] * 2f64.powi(n as i32 - nearest as i32))
    }

    /// Records the duration of a step with `prompt` tokens of prefill.
    pub fn measure(&mut self, time: Duration, prompt: usize, decoding: usize) {
        let seconds = time.as_secs_f64();
        let (value, sample) = if prompt == 0 {
            (&mut self.decode, seconds)
        } else {
            let decode = if decoding == 0 { 0.0 } else { self.decode };
            let (n, added) = (size(prompt), (seconds - decode).max(seconds / 10.0));
            let whole = added * (1 << n) as f64 / prompt as f64;
            for larger in self.prompts[n + 1..].iter_mut().filter(|seconds| **seconds > 0.0) {
                *larger -= FORGOTTEN * (*larger - whole).max(0.0);
            }
            (&mut self.prompts[n], whole)
        };
        *value = if *value == 0.0 { sample } else { *value + 0.2 * (sample - *value) };
    }
}

/// The least n with 2ⁿ at least `tokens`.
fn size(tokens: usize) -> usize {
    (tokens.max(1).next_power_of_two().ilog2() as usize).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn prompts_get_the_time_that_decoding_leaves() {
        let mut pace = Pace::new(MS(100));
        assert_eq!((pace.prompt_tokens(0, 512), pace.prompt_tokens(1, 512)), (512, LEAST));
        pace.measure(MS(20), 0, 1);
        pace.measure(MS(52), 16, 1);
        assert_eq!(pace.prompt_tokens(1, 512), 40);
        (0..50).for_each(|_| pace.measure(MS(200), 0, 8));
        assert_eq!(
            pace.prompt_tokens(8, 512),
            2 * LEAST,
            "a quarter of the gap is 12 tokens; perhaps more take as long"
        );
        pace.measure(MS(264), 32, 8);
        assert_eq!(pace.prompt_tokens(8, 512), LEAST, "twice as many take twice as long");
        assert_eq!(pace.prompt_tokens(0, 512), 512);
    }

    /// As on a GPU: 10 ms for any step, and 20 µs for each token.
    #[test]
    fn prompts_are_not_cut_to_crumbs_that_take_as_long_as_the_whole() {
        for gap in [20, 5] {
            let mut pace = Pace::new(MS(gap));
            let step = |prompt: usize| Duration::from_micros(10_000 + 20 * prompt as u64);
            pace.measure(MS(4), 0, 8);
            let mut taken = Vec::new();
            for _ in 0..20 {
                let tokens = pace.prompt_tokens(8, 512);
                pace.measure(step(tokens), tokens, 8);
                taken.push(tokens);
            }
            let settled = taken[19];
            assert!(settled >= 64, "{gap} ms: {taken:?}");
            assert!(gap < 20 || step(settled) <= MS(22), "{taken:?}");
        }
    }

    #[test]
    fn one_slow_step_is_forgotten() {
        let mut pace = Pace::new(MS(100));
        pace.measure(MS(10), 0, 1);
        (0..5).for_each(|_| pace.measure(MS(30), 16, 1));
        pace.measure(MS(900), 32, 1);
        assert!(pace.prompt_tokens(1, 512) < 32);
        (0..200).for_each(|_| pace.measure(MS(30), 16, 1));
        assert!(pace.prompt_tokens(1, 512) >= 32);
    }
}
