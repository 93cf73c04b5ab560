//! How much of a prompt fits a step without those noticing who wait for their next token.

use std::time::Duration;

/// How long steps take: measured, with a memory of some ten steps.
#[derive(Debug)]
pub(super) struct Pace {
    /// How long a step may take while answers are being written.
    gap: f64,
    /// Seconds of a step without prompts.
    decode: f64,
    /// Seconds more for each token of a prompt; 0 as long as none was measured.
    token: f64,
}

/// The least of a prompt that is worth a step.
const LEAST: usize = 16;

impl Pace {
    pub fn new(gap: Duration) -> Pace {
        Pace { gap: gap.as_secs_f64(), decode: 0.0, token: 0.0 }
    }

    /// Tokens of prompts that a step takes along, of at most `most`, beside `decoding` answers.
    pub fn prompt_tokens(&self, decoding: usize, most: usize) -> usize {
        if decoding == 0 {
            return most;
        }
        if self.token <= 0.0 {
            return LEAST.min(most);
        }
        // Where decoding alone takes as long, prompts get a quarter nevertheless.
        let time = (self.gap - self.decode).max(self.gap / 4.0);
        ((time / self.token) as usize).max(LEAST).min(most)
    }

    /// A step took that long, with so many tokens of prompts.
    pub fn measure(&mut self, time: Duration, prompt: usize, decoding: usize) {
        let seconds = time.as_secs_f64();
        let (value, sample) = if prompt == 0 {
            (&mut self.decode, seconds)
        } else {
            let decode = if decoding == 0 { 0.0 } else { self.decode };
            (&mut self.token, (seconds - decode).max(seconds / 10.0) / prompt as f64)
        };
        *value = if *value == 0.0 { sample } else { *value + 0.2 * (sample - *value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_get_the_time_that_decoding_leaves() {
        let mut pace = Pace::new(Duration::from_millis(100));
        assert_eq!((pace.prompt_tokens(0, 512), pace.prompt_tokens(1, 512)), (512, LEAST));
        pace.measure(Duration::from_millis(20), 0, 1);
        pace.measure(Duration::from_millis(52), 16, 1);
        assert_eq!(pace.prompt_tokens(1, 512), 40);
        (0..50).for_each(|_| pace.measure(Duration::from_millis(200), 0, 8));
        assert_eq!(pace.prompt_tokens(8, 512), LEAST, "a quarter of the gap is 12 tokens");
        assert_eq!(pace.prompt_tokens(0, 512), 512);
    }
}
