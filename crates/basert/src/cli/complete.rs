//! `basert complete`.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;

use basert::{Finish, Generation, Message};

use super::failure::mistake;
use super::grammar::GrammarArgs;
use super::model::{ModelArgs, RunArgs, read_text};
use super::sampling::SamplingArgs;
use super::{answer, count};

/// Continues a text and writes the continuation to stdout.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert complete -p \"The capital of France is\"
  basert complete -p \"Name three primary colours.\" --chat --system \"Answer in one line.\"
  basert complete ./model.gguf --file story.txt --temp 0.8 --seed 7 --max-tokens 400
  basert complete -p \"A city and its country: \" --json-schema city.json
  git diff | basert complete qwen2.5-0.5b --chat --system \"Describe this change.\"

The prompt comes from -p, from --file, or from stdin; the line feed that a file or stdin ends with is left out. \
Without --temp the most likely text is written, which is the same every time.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to be continued
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Continue the text of this file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count(1))]
    max_tokens: usize,
    /// Take the prompt as what a user says, and answer it by the model's chat template
    #[arg(long, help_heading = "Chat")]
    chat: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(option) = args.run.of_chat().filter(|_| !args.chat) {
        return Err(mistake(format!("{option} is for chats: give --chat too")));
    }
    let text = prompt(args)?;
    let grammar = args.grammar.grammar()?;
    let model = args.run.open(&args.model)?;
    let speculation = args.run.speculation.speculate;
    let generation = Generation { grammar, speculation, ..args.sampling.generation(&model, 0.0, args.max_tokens)? };
    let tokens = if args.chat {
        let system = args.run.system.as_deref().map(Message::system);
        let messages: Vec<_> = system.into_iter().chain([Message::user(&text)]).collect();
        args.run.chat_tokens(&model, &messages)?
    } else {
        model.text_tokens(&text)?
    };
    let mut session = model.session();
    let Some(shown) = answer::show(&mut session, &tokens, &generation, &|| true)? else { return Ok(()) };
    let mut notes = io::stderr();
    if answer::filled_context(&shown, &generation) {
        writeln!(notes, "note: {}", answer::full_context(&session))?;
    }
    if args.run.stats || notes.is_terminal() {
        let end = match shown.finish {
            Finish::Stop => "complete",
            Finish::Length | Finish::Cancelled => "cut off",
        };
        writeln!(notes, "[{}; {end}; seed {}]", answer::speeds(&shown), generation.sampling.seed)?;
    }
    Ok(())
}

fn prompt(args: &Args) -> anyhow::Result<String> {
    if let Some(text) = &args.prompt {
        return Ok(text.clone());
    }
    let mut text = match &args.file {
        Some(path) => read_text(path)?,
        None => {
            let mut bytes = Vec::new();
            if !io::stdin().is_terminal() {
                io::stdin().read_to_end(&mut bytes)?;
            }
            if bytes.is_empty() {
                return Err(mistake("there is no prompt; give one with -p TEXT or --file FILE, or through a pipe"));
            }
            String::from_utf8(bytes).map_err(|_| mistake("the prompt from stdin is not UTF-8 text"))?
        }
    };
    let content = text.strip_suffix('\n').unwrap_or(&text);
    text.truncate(content.strip_suffix('\r').unwrap_or(content).len());
    Ok(text)
}
