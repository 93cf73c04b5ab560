//! Settings of the choice of tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0, or less than 10⁻⁵, takes the most likely token always.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f32,
    /// Only tokens at least this likely relative to the most likely one.
    pub min_p: f32,
    /// Positive logits of tokens seen in prompt or answer are divided by it, negative ones multiplied (Keskar et al.
    /// 2019, arXiv 1909.05858).
    pub repeat_penalty: f32,
    /// Subtracted from logits of tokens that are in the answer.
    pub presence_penalty: f32,
    /// Subtracted from logits of tokens once for every time they are in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Chooses the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, without penalties.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {value}, and has to be {expected}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    expected: &'static str,
}

impl Sampling {
    /// Checks that every setting is within its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        let bias = self.logit_bias.values().copied().find(|bias| bias.is_nan()).unwrap_or(0.0);
        for (name, value, good, expected) in [
            ("temperature", self.temperature, (0.0..=1e4).contains(&self.temperature), "from 0 to 10000"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repeat penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite(),
                "above 0",
            ),
            ("presence penalty", self.presence_penalty, self.presence_penalty.is_finite(), "a finite number"),
            ("frequency penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "a finite number"),
            ("logit bias", bias, !bias.is_nan(), "a number"),
        ] {
            if !good {
                return Err(SamplingError { name, value, expected });
            }
        }
        Ok(())
    }
}
