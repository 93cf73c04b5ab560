//! Tokens that are guessed before they are drawn, so that a step computes several of an answer.
//!
//! Where a step's time goes into reading weights, a few tokens take hardly longer than one (Leviathan et al. 2023, arXiv
//! 2211.17192). Here each token is drawn as it would be without guesses: its noise is a function of its place (see
//! `sampler.rs`). A guess is right when it is the token drawn, and the logits after it are of use then. So texts are the
//! same to the bit, for every way to sample.
//!
//! Guesses are what followed the last tokens when the text had them before (prompt lookup), or what a smaller model draws
//! with the same noise.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How many tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// None.
    #[default]
    Off,
    /// As many as pay, by how often guesses are right and what they cost.
    Auto,
    /// Always as many, if there is anything to guess by.
    Tokens(usize),
}

impl Speculation {
    /// The most tokens that are guessed.
    pub const MOST: usize = 16;
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speculation::Off => f.write_str("off"),
            Speculation::Auto => f.write_str("auto"),
            Speculation::Tokens(tokens) => write!(f, "{tokens}"),
        }
    }
}

impl FromStr for Speculation {
    type Err = String;

    fn from_str(text: &str) -> Result<Speculation, String> {
        match (text, text.parse()) {
            ("off", _) => Ok(Speculation::Off),
            ("auto", _) => Ok(Speculation::Auto),
            (_, Ok(tokens)) if (1..=Speculation::MOST).contains(&tokens) => Ok(Speculation::Tokens(tokens)),
            _ => Err(format!("expected off, auto, or a number from 1 to {}", Speculation::MOST)),
        }
    }
}

/// What followed when the text last had the tokens that it ends with: at most `most` tokens. Of several places, the one
/// counts where most tokens before are the same, and of these the last; at least two have to be.
pub(crate) fn lookup(tokens: &[u32], most: usize) -> &[u32] {
    const LEAST: usize = 2;
    /// Beyond that it makes no difference.
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

/// What steps cost with guesses and without: measured, with a memory of some ten steps.
#[derive(Debug, Default)]
pub struct Costs {
    /// Seconds of a step without guesses.
    plain: f64,
    /// Seconds more for each guess; 0 as long as none was measured.
    guess: f64,
}

impl Costs {
    /// A step took that long, with so many guesses.
    pub fn measure(&mut self, time: Duration, guesses: usize) {
        let seconds = time.as_secs_f64();
        let (value, sample) = match guesses {
            // What seemed dear once is tried again some time.
            0 => {
                self.guess *= 0.99;
                (&mut self.plain, seconds)
            }
            _ => (&mut self.guess, (seconds - self.plain).max(0.0) / guesses as f64),
        };
        *value = if *value == 0.0 { sample } else { *value + 0.2 * (sample - *value) };
    }

    /// How many guesses give the most tokens a second, where each is right with probability `rate` if those before are,
    /// and `answers` are computed together.
    fn worth(&self, rate: f64, answers: usize) -> usize {
        if self.plain == 0.0 {
            return 0;
        }
        // What a guess costs, in steps' shares of one answer.
        let cost = answers as f64 * self.guess / self.plain;
        let (mut best, mut most) = (0, 1.0);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for guesses in 1..=Speculation::MOST {
            chance *= rate;
            tokens += chance;
            let gain = tokens / (1.0 + cost * guesses as f64);
            // A little more is noise.
            if gain > most * 1.01 {
                (best, most) = (guesses, gain);
            }
        }
        best
    }
}

/// The guesses for one answer, and how often they were right.
#[derive(Debug, Clone, Default)]
pub struct Guesser {
    speculation: Speculation,
    rate: f64,
    guesses: Vec<u32>,
    /// So many of them are computed; the first may be checked nevertheless.
    computed: usize,
}

impl Guesser {
    /// One that knows nothing yet, for an answer on a device that draws tokens itself or does not.
    pub fn new(speculation: Speculation, draws_on_device: bool) -> Guesser {
        let speculation = match speculation {
            // Steps follow each other there before anyone here knows the tokens.
            Speculation::Auto if draws_on_device => Speculation::Off,
            speculation => speculation,
        };
        Guesser { speculation, ..Guesser::default() }
    }

    /// Whether there are never any guesses.
    pub fn is_off(&self) -> bool {
        self.speculation == Speculation::Off
    }

    /// How many guesses are worth it, where `answers` are computed together.
    pub fn wanted(&self, costs: &Costs, answers: usize) -> usize {
        match self.speculation {
            Speculation::Off => 0,
            Speculation::Auto => costs.worth(self.rate, answers),
            Speculation::Tokens(tokens) => tokens,
        }
    }

    /// Guesses by the text itself, so far with `last`; of which at most `most` are to be computed.
    pub fn look_up(&mut self, text: &[u32], last: u32, most: usize) {
        self.clear();
        if !self.is_off() {
            let text = [text, &[last]].concat();
            // One is looked for in any case, to learn how often that would be right.
            self.set(lookup(&text, most.max(1)).to_vec(), most);
        }
    }

    /// Makes these the guesses, of which at most `most` are to be computed.
    fn set(&mut self, guesses: Vec<u32>, most: usize) {
        self.computed = guesses.len().min(most);
        self.guesses = guesses;
    }

    /// Makes a draft model's guesses those to be computed.
    pub fn take(&mut self, guesses: Vec<u32>) {
        let most = guesses.len();
        self.set(guesses, most);
    }

    /// Those to be computed.
    pub fn guesses(&self) -> &[u32] {
        &self.guesses[..self.computed]
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.guesses.clear();
        self.computed = 0;
    }

    /// Whether the guess at `place` was computed and is the token that was drawn there.
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
        for text in ["off", "auto", "1", "16"] {
            assert_eq!(text.parse::<Speculation>().unwrap().to_string(), text);
        }
        for text in ["", "0", "17", "on", "-1"] {
            assert!(text.parse::<Speculation>().unwrap_err().contains("from 1 to 16"));
        }
    }
}
