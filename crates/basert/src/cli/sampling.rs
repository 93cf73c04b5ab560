//! How the next token is chosen, as arguments.

use std::hash::{BuildHasher, RandomState};

use basert::{Generation, Model, Sampling};

use super::failure::mistake;

/// How answers are generated.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature: 0 takes the most likely token always, and higher values dare more [default: 0 to complete, 0.7 to chat]
    #[arg(long, value_name = "X")]
    temp: Option<f32>,
    /// Choose among the N most likely tokens only; 0 means all
    #[arg(long, value_name = "N", default_value_t = 40)]
    top_k: usize,
    /// Choose among the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Choose among tokens that are at least P times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Make tokens that are already in the text less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Subtract X from the logits of tokens that are already in the answer
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract X from a token's logit for every time it is already in the answer
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add VALUE to the logit of the token with this id; may be given several times
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text [default: another one every time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the model says that the answer is complete
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The settings, checked for `model`, with this temperature unless another was given.
    pub fn generation(&self, model: &Model, temperature: f32, max_tokens: usize) -> anyhow::Result<Generation> {
        let vocabulary = model.plan().graph.vocabulary;
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            return Err(mistake(format!("--logit-bias: token {id} is not one of the {vocabulary} of the vocabulary")));
        }
        let sampling = Sampling {
            temperature: self.temp.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed.unwrap_or_else(any_seed),
        };
        sampling.check().map_err(basert::Error::from)?;
        let (stop, ignore_end) = (self.stop.clone(), self.ignore_eos);
        Ok(Generation { max_tokens, sampling, stop, ignore_end, ..Generation::default() })
    }
}

/// A seed that nobody chose, short enough to be typed again.
fn any_seed() -> u64 {
    RandomState::new().hash_one(()) >> 32
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, value)| Some((id.parse().ok()?, value.parse().ok()?)));
    parsed.ok_or_else(|| "expected the id of a token, '=', and a number".to_owned())
}
