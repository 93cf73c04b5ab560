//! `basert complete`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use basert::{Error, Finish, Generation, Message};

use super::answer::{self, Prompt};
use super::failure::mistake;
use super::grammar::GrammarArgs;
use super::model::{ModelArgs, RunArgs, read_text};
use super::sampling::{SamplingArgs, max_tokens};
use super::stdin;
use super::terminal::remark;

/// The default limit on tokens when a text is continued, which may never end by itself.
const MOST_OF_TEXT: usize = 256;

/// Answers one prompt, or continues a text, and writes the result to stdout.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert complete -p \"Explain photosynthesis in one sentence.\"
  basert complete -p \"Name three primary colours.\" --system \"Answer in one line.\"
  basert complete ./model.gguf --raw --file story.txt --temp 0.8 --seed 7 --max-tokens 400
  basert complete -p \"A city and its country, as JSON\" --json-schema city.json
  git diff | basert complete -p \"Describe this change.\"

The prompt comes from stdin or --file, and from -p: where there are both, the text comes first, then an empty line, and then \
what -p says. The line feed that a file or stdin ends with is left out.

A model with a chat template answers the prompt as what a user says, and what it thinks before is shown on a terminal only, \
in grey. Other models, and all with --raw, continue the prompt as a text.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt, or the end of one that begins with a file or stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from this file instead of stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Limit on the answer's tokens; -1 means the rest of the context [default: -1, or 256 with --raw or no template]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = max_tokens)]
    pub max_tokens: Option<usize>,
    /// Continue the prompt as plain text, even if the model has a chat template
    #[arg(long)]
    pub raw: bool,
    /// Use the chat template, which is the default if the model has one
    #[arg(long, hide = true, conflicts_with = "raw")]
    pub chat: bool,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub grammar: GrammarArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let of_chat = args.run.of_chat();
    if let Some(option) = of_chat.filter(|_| args.raw) {
        return Err(mistake(format!("{option} is for chats, and cannot be used with --raw")));
    }
    let text = prompt(args)?;
    let grammar = args.grammar.grammar()?;
    let model = args.run.open(&args.model)?;
    let chats = !args.raw && (model.chat_template().is_some() || args.chat || of_chat.is_some());
    let most = args.max_tokens.unwrap_or(if chats { usize::MAX } else { MOST_OF_TEXT });
    let generation = Generation { grammar, ..args.sampling.generation(&model, most)? };
    let prompt = if chats {
        if text.trim().is_empty() {
            return Err(Error::EmptyPrompt.into());
        }
        let system = args.run.system.as_deref().map(Message::system);
        let messages: Vec<_> = system.into_iter().chain([Message::user(&text)]).collect();
        Prompt::Chat(args.run.chat_prompt(&model, &messages)?)
    } else {
        Prompt::Text(model.text_tokens(&text)?)
    };
    let Some(shown) = answer::show(&model, &prompt, &generation, &|| true)? else { return Ok(()) };
    let mut notes = io::stderr();
    if answer::filled_context(&shown, &generation) {
        writeln!(notes, "note: {}", answer::full_context(&model))?;
    }
    if args.run.stats || notes.is_terminal() {
        let end = match shown.finish {
            Some(Finish::End | Finish::Stop(_) | Finish::Calls) => "complete",
            Some(Finish::Length) | None => "cut off",
        };
        let seed = generation.sampling.seed.unwrap_or_default();
        let told = if args.run.stats { answer::speeds(&shown) } else { answer::speed(&shown) };
        writeln!(notes, "{}", remark(&format!("[{told}; {end}; seed {seed}]"), notes.is_terminal()))?;
    }
    Ok(())
}

/// The text from a file or stdin, followed by an empty line and the text of -p.
fn prompt(args: &Args) -> anyhow::Result<String> {
    let text = match &args.file {
        Some(path) => read_text(path)?,
        None if args.prompt.is_none() => stdin::read()?,
        None => stdin::read_if_given()?,
    };
    let content = text.strip_suffix('\n').unwrap_or(&text);
    let content = content.strip_suffix('\r').unwrap_or(content);
    match &args.prompt {
        None if content.is_empty() => {
            Err(mistake("there is no prompt; give one with -p TEXT or --file FILE, or pipe it to stdin"))
        }
        None => Ok(content.to_owned()),
        Some(prompt) if content.is_empty() => Ok(prompt.clone()),
        Some(prompt) => Ok(format!("{content}\n\n{prompt}")),
    }
}
