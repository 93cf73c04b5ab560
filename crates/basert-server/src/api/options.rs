//! Generation settings that all kinds of requests have.

use std::collections::BTreeMap;

use basert_engine::{Sampling, SamplingOptions};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::body::Fields;
use crate::bounds;
use crate::error::ApiError;
use crate::model::Model;

/// Fields of OpenAI's endpoints, and extensions of other servers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    /// The number of last tokens that penalties apply to; only all.
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<Seed>,
    pub n: Option<usize>,
    /// Of how many answers the best are given: of those that are asked for.
    best_of: Option<usize>,
    #[serde(default, deserialize_with = "one_or_more")]
    pub stop: Vec<String>,
    #[serde(default)]
    pub stream: bool,
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    pub ignore_eos: bool,
    /// Clients that send the same one share cached prefixes.
    pub prompt_cache_key: Option<String>,
    /// Whether a stream reports the progress of prefill.
    #[serde(default)]
    pub return_progress: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Usage is reported only at the end.
    #[serde(rename = "continuous_usage_stats")]
    _continuous_usage_stats: Option<Unwanted>,
    /// Padding that hides lengths: without it there is nothing to hide behind it.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// Any whole number of 64 bits.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a whole number")]
enum Seed {
    Positive(u64),
    Any(i64),
}

/// False, for what there is not.
#[derive(Debug)]
pub struct Unwanted;

impl<'de> Deserialize<'de> for Unwanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unwanted, D::Error> {
        if bool::deserialize(deserializer)? { Err(D::Error::custom("this is not supported")) } else { Ok(Unwanted) }
    }
}

impl Options {
    /// Takes them out of the fields of a request, but for those that its endpoint does not have.
    pub fn take(fields: &mut Fields, but: &[&str]) -> Result<Options, ApiError> {
        let mut options: Options = fields.take(but)?;
        options.stop.retain(|stop| !stop.is_empty());
        bounds::stops("stop", &options.stop)?;
        bounds::check("logit_bias", options.logit_bias.as_ref().map_or(0, BTreeMap::len), bounds::BIASES)?;
        if options.n == Some(0) {
            return Err(ApiError::field("n", "0 answers; at least 1 has to be asked for"));
        }
        if let Some(of) = options.best_of.filter(|&of| of > options.n.unwrap_or(1)) {
            return Err(ApiError::field(
                "best_of",
                format!("{of} is more than n; every answer that is written is given"),
            ));
        }
        // At 0 penalties are off, with the other settings they are of all tokens.
        if let Some(last) = options.repeat_last_n.filter(|&last| last >= 0) {
            let penalties = [options.presence_penalty, options.frequency_penalty];
            let off = penalties.iter().all(|penalty| penalty.is_none_or(|penalty| penalty == 0.0));
            if !off || options.repeat_penalty.is_some_and(|penalty| penalty != 1.0) {
                let message = format!("{last} tokens; penalties are of all tokens, which is -1");
                return Err(ApiError::field("repeat_last_n", message));
            }
        }
        Ok(options)
    }

    /// Whether the stream is to end with what was used.
    pub fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// The sampling settings, checked for this model, with its defaults for unset ones.
    pub fn sampling(&self, model: &Model) -> Result<Sampling, ApiError> {
        let within = |name: &str, value: Option<f32>, least: f32, most: f32| match value {
            Some(value) if !(least..=most).contains(&value) => {
                Err(ApiError::field(name, format!("{value} is not from {least} to {most}")))
            }
            _ => Ok(()),
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)?;
        let top_k = match self.top_k {
            None => None,
            // Some clients say -1 for all.
            Some(-1) => Some(0),
            Some(k) => Some(usize::try_from(k).map_err(|_| ApiError::field("top_k", format!("{k} is less than 0")))?),
        };
        let mut logit_bias = BTreeMap::new();
        for (token, &bias) in self.logit_bias.iter().flatten() {
            let name = format!("logit_bias.{token}");
            within(&name, Some(bias), -100.0, 100.0)?;
            let id = token.parse().ok().filter(|&id| (id as usize) < model.tokenizer().vocab_size());
            let id: u32 = id.ok_or_else(|| {
                ApiError::field(
                    name,
                    format!("not one of the {} tokens of the vocabulary", model.tokenizer().vocab_size()),
                )
            })?;
            logit_bias.insert(id, bias);
        }
        let asked = SamplingOptions {
            temperature: self.temperature,
            top_k,
            // The likeliest token is always among those that may be taken.
            top_p: self.top_p.map(|share| share.max(f32::MIN_POSITIVE)),
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias,
            seed: self.seed.map(|seed| match seed {
                Seed::Positive(seed) => seed,
                Seed::Any(seed) => seed as u64,
            }),
        };
        Ok(asked.over(model.sampling()))
    }
}

/// A text, or a list of texts.
pub fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    })
}
