//! Arguments of sampling.

use basert::{Generation, Model, SamplingOptions};

use super::failure::mistake;

/// Sampling settings, and where answers end.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature: 0 always takes the most likely token, higher values vary more [default: the model's, else 0.7]
    #[arg(long, visible_alias = "temperature", value_name = "X", allow_negative_numbers = true)]
    temp: Option<f32>,
    /// Sample from the N most likely tokens only; 0 or -1 means all [default: the model's, else 40]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = top_k)]
    top_k: Option<usize>,
    /// Sample from the most likely tokens whose probabilities add up to P [default: the model's, else 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from tokens at least P times as likely as the most likely one [default: the model's, else 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens that are already in the text less likely; 1 is off [default: the model's, else 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repeat_penalty: Option<f32>,
    /// Subtract X from the logits of tokens that are already in the answer [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract X from a token's logit for each time it is already in the answer [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Add VALUE to the logit of the token with this id; may be repeated
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers: the same seed gives the same text; -1 chooses one at random [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<Seed>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Continue after the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The settings, checked for `model`, with a seed chosen at random if none was given.
    pub fn generation(&self, model: &Model, max_tokens: usize) -> anyhow::Result<Generation> {
        let vocabulary = model.plan().graph.vocabulary;
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            return Err(mistake(format!("--logit-bias: token {id} is not one of the {vocabulary} of the vocabulary")));
        }
        let asked = SamplingOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed.and_then(|Seed(seed)| seed),
        };
        let sampling = asked.over(model.sampling());
        sampling.check().map_err(basert::Error::from)?;
        let (stop, ignore_end) = (self.stop.clone(), self.ignore_eos);
        let max_tokens = Some(max_tokens).filter(|&most| most < usize::MAX);
        Ok(Generation { max_tokens, sampling: sampling.into(), stop, ignore_end, ..Generation::default() })
    }
}

/// Parses a seed; none means that one is chosen at random.
#[derive(Clone, Copy)]
struct Seed(Option<u64>);

fn seed(text: &str) -> Result<Seed, String> {
    match text.parse() {
        Ok(-1_i128) => Ok(Seed(None)),
        Ok(seed) => u64::try_from(seed)
            .map(|seed| Seed(Some(seed)))
            .map_err(|_| "expected a number from 0 to 2^64-1, or -1".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses a limit on an answer's tokens; -1 means the rest of the context.
pub fn max_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(-1_i64) => Ok(usize::MAX),
        Ok(most @ 1..) => usize::try_from(most).map_err(|error| error.to_string()),
        Ok(_) => Err("expected a number of tokens from 1, or -1 for the rest of the context".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn top_k(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(-1_i64) => Ok(0),
        Ok(k) => usize::try_from(k).map_err(|_| "expected a number of tokens, or -1 for all".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, value)| Some((id.parse().ok()?, value.parse().ok()?)));
    parsed.ok_or_else(|| "expected the id of a token, '=', and a number".to_owned())
}
