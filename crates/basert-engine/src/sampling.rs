//! Sampling settings.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

/// How the next token is sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0, or less than 10⁻⁵, means greedy decoding.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities add up to this.
    pub top_p: f32,
    /// Only tokens with at least this probability relative to that of the most likely one.
    pub min_p: f32,
    /// Positive logits of tokens seen in prompt or answer are divided by it, negative ones multiplied (Keskar et al.
    /// 2019, arXiv 1909.05858).
    pub repeat_penalty: f32,
    /// Subtracted from logits of tokens that are in the answer.
    pub presence_penalty: f32,
    /// Subtracted from logits of tokens for each time they are in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the random numbers.
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

/// Settings that may be unset: those that a model recommends, or that a request has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingOptions {
    /// [`Sampling::temperature`]
    pub temperature: Option<f32>,
    /// [`Sampling::top_k`]
    pub top_k: Option<usize>,
    /// [`Sampling::top_p`]
    pub top_p: Option<f32>,
    /// [`Sampling::min_p`]
    pub min_p: Option<f32>,
    /// [`Sampling::repeat_penalty`]
    pub repeat_penalty: Option<f32>,
    /// [`Sampling::presence_penalty`]
    pub presence_penalty: Option<f32>,
    /// [`Sampling::frequency_penalty`]
    pub frequency_penalty: Option<f32>,
    /// [`Sampling::logit_bias`]
    pub logit_bias: BTreeMap<u32, f32>,
    /// [`Sampling::seed`]; if unset, one is chosen at random.
    pub seed: Option<u64>,
}

impl SamplingOptions {
    /// Greedy decoding; everything else is unset.
    pub fn greedy() -> SamplingOptions {
        SamplingOptions { temperature: Some(0.0), ..SamplingOptions::default() }
    }

    /// All settings: these, and those of `base` for the unset ones.
    pub fn over(&self, base: &Sampling) -> Sampling {
        let mut logit_bias = base.logit_bias.clone();
        logit_bias.extend(&self.logit_bias);
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(base.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias,
            seed: self.seed.unwrap_or_else(any_seed),
        }
    }
}

impl From<Sampling> for SamplingOptions {
    /// All settings are set.
    fn from(sampling: Sampling) -> SamplingOptions {
        SamplingOptions {
            temperature: Some(sampling.temperature),
            top_k: Some(sampling.top_k),
            top_p: Some(sampling.top_p),
            min_p: Some(sampling.min_p),
            repeat_penalty: Some(sampling.repeat_penalty),
            presence_penalty: Some(sampling.presence_penalty),
            frequency_penalty: Some(sampling.frequency_penalty),
            logit_bias: sampling.logit_bias,
            seed: Some(sampling.seed),
        }
    }
}

/// A random seed, short enough to be typed again.
fn any_seed() -> u64 {
    RandomState::new().hash_one(()) >> 32
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {value}, but must be {expected}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    expected: &'static str,
}

impl Sampling {
    /// The defaults of settings that neither the model nor a request has.
    pub fn usual() -> Sampling {
        Sampling { temperature: 0.7, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() }
    }

    /// Checks that every setting is within its range.
    ///
    /// # Errors
    /// Names the first setting that is not.
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
