//! Speculative decoding: draft tokens, so that a step computes several tokens of an answer.
//!
//! If reading weights takes most of a step's time, a few tokens take hardly longer than one (Leviathan et al. 2023,
//! arXiv 2211.17192). Each token is sampled as it would be without speculation: its noise is a function of its position
//! (see `sampler.rs`). A draft token is accepted if it equals the sampled token, and then the logits after it are
//! valid. So texts are the same to the bit, for all sampling settings.
//!
//! Draft tokens are those that followed the last tokens earlier in the text (prompt lookup), or those that a smaller
//! model, or the model's own head for multi-token prediction, samples with the same noise.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How many draft tokens are proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// None.
    #[default]
    Off,
    /// As many as pay off, by how often they are accepted and what they cost.
    Auto,
    /// A fixed number, if any can be proposed.
    Tokens(usize),
    /// By the model's head for multi-token prediction, which it must have: a fixed number, or as many as pay off.
    Mtp(Option<usize>),
}

impl Speculation {
    /// The largest number of draft tokens.
    pub const MOST: usize = 16;
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speculation::Off => f.write_str("off"),
            Speculation::Auto => f.write_str("auto"),
            Speculation::Tokens(tokens) => write!(f, "{tokens}"),
            Speculation::Mtp(None) => f.write_str("mtp"),
            Speculation::Mtp(Some(tokens)) => write!(f, "mtp={tokens}"),
        }
    }
}

impl FromStr for Speculation {
    type Err = String;

    fn from_str(text: &str) -> Result<Speculation, String> {
        let tokens = |text: &str| text.parse().ok().filter(|tokens| (1..=Speculation::MOST).contains(tokens));
        match (text, text.strip_prefix("mtp=").and_then(tokens), tokens(text)) {
            ("off", ..) => Ok(Speculation::Off),
            ("auto", ..) => Ok(Speculation::Auto),
            ("mtp", ..) => Ok(Speculation::Mtp(None)),
            (_, Some(tokens), _) => Ok(Speculation::Mtp(Some(tokens))),
            (_, _, Some(tokens)) => Ok(Speculation::Tokens(tokens)),
            _ => Err(format!("expected off, auto, mtp, mtp=N or N, a number from 1 to {}", Speculation::MOST)),
        }
    }
}

/// Prompt lookup: at most `most` tokens that followed the last earlier occurrence of the text's last tokens. The
/// longest match counts, of several the last one; at least two tokens have to match.
pub(crate) fn lookup(tokens: &[u32], most: usize) -> &[u32] {
    const LEAST: usize = 2;
    /// Longer matches are not compared.
    const LONGEST: usize = 32;
    let alike = |end: usize| {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        pairs.take(LONGEST).take_while(|(a, b)| a == b).count()
    };
    let ends = (LEAST..tokens.len()).map(|end| (alike(end), end)).filter(|&(alike, _)| alike >= LEAST);
    match ends.max() {
        Some((_, end)) => &tokens[end..(end + most).min(tokens.len())],
        None => &[],
    }
}

/// The durations of steps with and without draft tokens: measured, as a moving average over about ten steps.
#[derive(Debug, Default)]
pub struct Costs {
    /// Seconds of a step without draft tokens.
    plain: f64,
    /// Seconds that each draft token adds; 0 if not measured yet.
    guess: f64,
}

impl Costs {
    /// Records the duration of a step with `guesses` draft tokens.
    pub fn measure(&mut self, time: Duration, guesses: usize) {
        let seconds = time.as_secs_f64();
        let (value, sample) = match guesses {
            // A cost that was once measured too high decays, so that it is measured again.
            0 => {
                self.guess *= 0.99;
                (&mut self.plain, seconds)
            }
            _ => (&mut self.guess, (seconds - self.plain).max(0.0) / guesses as f64),
        };
        *value = if *value == 0.0 { sample } else { *value + 0.2 * (sample - *value) };
    }

    /// How many draft tokens give the most tokens a second, if each is accepted with probability `rate` given those
    /// before it, and `answers` are computed together.
    fn worth(&self, rate: f64, answers: usize) -> usize {
        if self.plain == 0.0 {
            return 0;
        }
        // The cost of a draft token, relative to one answer's share of a step.
        let cost = answers as f64 * self.guess / self.plain;
        let (mut best, mut most) = (0, 1.0);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for guesses in 1..=Speculation::MOST {
            chance *= rate;
            tokens += chance;
            let gain = tokens / (1.0 + cost * guesses as f64);
            // Smaller gains are noise.
            if gain > most * 1.01 {
                (best, most) = (guesses, gain);
            }
        }
        best
    }
}

/// The draft tokens of one answer, and how often they were accepted.
#[derive(Debug, Clone, Default)]
pub struct Guesser {
    speculation: Speculation,
    rate: f64,
    guesses: Vec<u32>,
    /// How many of them are computed; the first may be compared without being computed.
    computed: usize,
    /// Steps for which none was worth it.
    idle: usize,
}

impl Guesser {
    /// Steps at the beginning of an answer that have a draft token, whether or not it is worth it.
    const FIRST: usize = 8;
    /// How many of the steps after them there are for each with one.
    const NOW_AND_THEN: usize = 16;

    /// The initial state for an answer, on a device that samples or does not.
    pub fn new(speculation: Speculation, draws_on_device: bool) -> Guesser {
        let speculation = match speculation {
            // There, steps are submitted before the host knows the tokens.
            Speculation::Auto if draws_on_device => Speculation::Off,
            speculation => speculation,
        };
        Guesser { speculation, ..Guesser::default() }
    }

    /// Whether speculation is off.
    pub fn is_off(&self) -> bool {
        self.speculation == Speculation::Off
    }

    /// How many draft tokens are worth it, if `answers` are computed together.
    pub fn wanted(&self, costs: &Costs, answers: usize) -> usize {
        match self.speculation {
            Speculation::Off => 0,
            Speculation::Auto | Speculation::Mtp(None) => costs.worth(self.rate, answers),
            Speculation::Tokens(tokens) | Speculation::Mtp(Some(tokens)) => tokens,
        }
    }

    /// How many draft tokens to ask for where proposing them takes time: as many as are worth it, and if that is none, one
    /// now and then, to measure how often it would be accepted.
    pub fn asked(&mut self, costs: &Costs, answers: usize) -> usize {
        let wanted = self.wanted(costs, answers);
        // First the duration of a step without any is measured.
        if wanted > 0 || self.is_off() || costs.plain == 0.0 {
            return wanted;
        }
        self.idle += 1;
        usize::from(self.idle <= Guesser::FIRST || self.idle.is_multiple_of(Guesser::NOW_AND_THEN))
    }

    /// Proposes draft tokens by prompt lookup in `text` followed by `last`, of which at most `most` are computed.
    pub fn look_up(&mut self, text: &[u32], last: u32, most: usize) {
        self.clear();
        if !self.is_off() {
            let text = [text, &[last]].concat();
            // At least one is looked up, to measure how often it would be accepted.
            self.set(lookup(&text, most.max(1)).to_vec(), most);
        }
    }

    /// Sets the draft tokens, of which at most `most` are computed.
    fn set(&mut self, guesses: Vec<u32>, most: usize) {
        self.computed = guesses.len().min(most);
        self.guesses = guesses;
    }

    /// Sets the draft tokens to those of a draft model, all of which are computed.
    pub fn take(&mut self, guesses: Vec<u32>) {
        let most = guesses.len();
        self.set(guesses, most);
    }

    /// The draft tokens to compute.
    pub fn guesses(&self) -> &[u32] {
        &self.guesses[..self.computed]
    }

    /// Drops the draft tokens.
    pub fn clear(&mut self) {
        self.guesses.clear();
        self.computed = 0;
    }

    /// Whether the draft token at `place` was computed and equals the token sampled there.
    pub fn is_right(&mut self, place: usize, drawn: u32) -> bool {
        let Some(&guess) = self.guesses.get(place) else { return false };
        let right = guess == drawn;
        self.rate += (f64::from(u8::from(right)) - self.rate) / 8.0;
        right && place < self.computed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_and_last_match_is_found() {
        assert_eq!(lookup(&[1, 2, 3, 4, 9, 1, 2, 3], 2), [4, 9]);
        assert_eq!(lookup(&[5, 1, 2, 7, 1, 2, 8, 5, 1, 2], 1), [7], "three alike and not two");
        assert_eq!(lookup(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8], "the last of two");
        assert_eq!(lookup(&[3, 3, 3, 3], 8), [3], "it may overlap with the end");
        for text in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[9, 1, 8, 1]] {
            assert!(lookup(text, 4).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn guesses_are_made_as_long_as_they_pay() {
        let (plain, mut costs) = (Duration::from_millis(10), Costs::default());
        assert_eq!(costs.worth(1.0, 1), 0, "nothing is measured");
        costs.measure(plain, 0);
        assert_eq!(costs.worth(0.9, 1), Speculation::MOST, "the first guesses are free");
        costs.measure(Duration::from_millis(22), 4);
        assert!(costs.worth(0.2, 1) == 0 && costs.worth(1.0, 1) > 8);
        assert!((1..5).contains(&costs.worth(0.6, 1)) && costs.worth(0.6, 4) == 0);
        (0..500).for_each(|_| costs.measure(plain, 0));
        assert!(costs.worth(0.2, 1) > 0, "what was dear is tried again");
    }

    #[test]
    fn a_guesser_learns_before_it_spends() {
        let mut costs = Costs::default();
        costs.measure(Duration::from_millis(10), 0);
        costs.measure(Duration::from_millis(13), 1);
        let mut guesser = Guesser::new(Speculation::Auto, false);
        for _ in 0..8 {
            assert!(guesser.guesses().is_empty() || guesser.rate > 0.25);
            let wanted = guesser.wanted(&costs, 1);
            guesser.look_up(&[1, 2, 3, 1], 2, wanted);
            guesser.is_right(0, 3);
        }
        assert_eq!(guesser.guesses()[0], 3);
        assert!(guesser.is_right(0, 3) && !guesser.is_right(0, 4) && !guesser.is_right(7, 1));
        for (speculation, draws_on_device) in [(Speculation::Off, false), (Speculation::Auto, true)] {
            let mut off = Guesser::new(speculation, draws_on_device);
            off.look_up(&[1, 2, 3, 1], 2, 4);
            assert!(off.is_off() && off.guesses().is_empty());
        }
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        for text in ["off", "auto", "1", "16", "mtp", "mtp=3"] {
            assert_eq!(text.parse::<Speculation>().unwrap().to_string(), text);
        }
        for text in ["", "0", "17", "on", "-1", "mtp=", "mtp=0", "mtp=17"] {
            assert!(text.parse::<Speculation>().unwrap_err().contains("from 1 to 16"));
        }
    }
}
