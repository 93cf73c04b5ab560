//! `basert run`: `complete` if there is a prompt, else `chat`.

use std::io::{self, IsTerminal};

use super::grammar::GrammarArgs;
use super::model::{ModelArgs, RunArgs};
use super::sampling::{SamplingArgs, max_tokens};
use super::{chat, complete};

/// Answers a prompt, or chats with a model if there is no prompt.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert run smollm2-135m
  basert run smollm2-135m \"Explain photosynthesis in one sentence.\"
  git diff | basert run smollm2-135m \"Describe this change.\"

It is `basert complete` where there is a prompt or a pipe, and `basert chat` otherwise.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt; without one, a chat begins
    prompt: Vec<String>,
    /// Limit on an answer's tokens; -1 means the rest of the context [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = max_tokens)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { model, prompt, max_tokens, run, grammar, sampling } = args;
    let prompt = (!prompt.is_empty()).then(|| prompt.join(" "));
    if prompt.is_none() && io::stdin().is_terminal() {
        grammar.refuse_in_chat()?;
        return chat::run(&chat::Args { model, max_tokens, run, sampling });
    }
    complete::run(&complete::Args {
        model,
        prompt,
        file: None,
        max_tokens,
        raw: false,
        chat: false,
        run,
        grammar,
        sampling,
    })
}
