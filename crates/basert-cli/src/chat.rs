//! `basert chat`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use basert::{Error, Generation, Message, Model};
use basert_system::folders;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::answer::{self, Prompt};
use super::failure::{self, mistake};
use super::model::{ModelArgs, RunArgs};
use super::sampling::{SamplingArgs, max_tokens};
use super::terminal::{remark, visible};

const HELP: &str = "\
/clear         begin a new chat
/system TEXT   give instructions for the whole chat, and begin a new one; without TEXT there are none
/help, /?      show this
/exit, /bye    leave; Ctrl-D does too
A line that ends in \\ goes on in the next. A message of several lines may stand between two lines of \"\"\".
Ctrl-C stops an answer; once more, the program.";

/// Chats with a model. Each line of input is a message.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert chat
  basert chat ./model.gguf --system \"Answer like a pirate.\" --temp 1
  printf 'Hello!\\nWhat did I say?\\n' | basert chat --temp 0

In the chat, /help shows the commands: /clear, /system TEXT, /exit. What a model thinks before it answers is shown in grey. A line that ends in \\ goes on in the next, and a \
message may stand between two lines of \"\"\". Ctrl-C stops an answer, Ctrl-D leaves the chat.

When stdin is not a terminal, each line is answered in turn, and only the answers are printed.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Limit on an answer's tokens; -1 means the rest of the context [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = max_tokens)]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.run.open(&args.model)?;
    let most = args.max_tokens.unwrap_or(usize::MAX);
    let generation = args.sampling.generation(&model, most)?;
    let mut chat = Chat::new(&model, args, generation);
    // A model without a template cannot chat: report it before the user types a message.
    args.run.chat_prompt(&model, &[Message::user("Hello")])?;
    if io::stdin().is_terminal() { chat.on_terminal() } else { chat.through_pipe() }
}

/// A line of input, parsed.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Message(&'a str),
    Clear,
    System(&'a str),
    Help,
    Exit,
    Unknown(&'a str),
}

fn parse(text: &str) -> Input<'_> {
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match first {
        "/clear" => Input::Clear,
        "/system" => Input::System(rest.trim()),
        "/help" | "/?" => Input::Help,
        "/exit" | "/quit" | "/bye" => Input::Exit,
        // A path such as /etc/hosts is not a command.
        _ if first.strip_prefix('/').is_some_and(|name| name.chars().all(char::is_alphabetic)) => Input::Unknown(first),
        _ => Input::Message(text),
    }
}

/// Reads one message, which may have several lines; none at the end of input.
fn read_message<E>(mut line: impl FnMut(bool) -> Result<Option<String>, E>) -> Result<Option<String>, E> {
    const FENCE: &str = "\"\"\"";
    let Some(mut text) = line(true)? else { return Ok(None) };
    if text.trim() == FENCE {
        text.clear();
        while let Some(next) = line(false)?.filter(|next| next.trim() != FENCE) {
            text.push_str(&next);
            text.push('\n');
        }
        text.pop();
        return Ok(Some(text));
    }
    while let Some(start) = text.strip_suffix('\\') {
        text.truncate(start.len());
        let Some(next) = line(false)? else { break };
        text.push('\n');
        text.push_str(&next);
    }
    Ok(Some(text))
}

struct Chat<'m> {
    args: &'m Args,
    model: &'m Model,
    generation: Generation,
    messages: Vec<Message>,
    stop: Arc<AtomicBool>,
}

impl<'m> Chat<'m> {
    fn new(model: &'m Model, args: &'m Args, generation: Generation) -> Chat<'m> {
        let messages = args.run.system.as_deref().map(Message::system).into_iter().collect();
        Chat { args, model, generation, messages, stop: Arc::default() }
    }

    fn begin_again(&mut self, system: Option<Message>) {
        self.messages = system.into_iter().collect();
    }

    fn system(&self) -> Option<Message> {
        self.messages.first().filter(|message| message.0["role"] == "system").cloned()
    }

    /// Answers a message; if that fails, the message is removed from the chat.
    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(Message::user(text));
        let result = self.answer_last();
        if !matches!(result, Ok(true)) {
            self.messages.pop();
        }
        result.map(|_| ())
    }

    /// Answers the last message, and returns whether there is an answer.
    fn answer_last(&mut self) -> anyhow::Result<bool> {
        let prompt = Prompt::Chat(self.args.run.chat_prompt(self.model, &self.messages)?);
        let go_on = || !self.stop.load(Ordering::Relaxed);
        let Some(answer) = answer::show(self.model, &prompt, &self.generation, &go_on)? else {
            return Ok(false);
        };
        let mut notes = io::stderr();
        if answer.finish.is_none() {
            writeln!(notes, "[stopped]")?;
        }
        if answer::filled_context(&answer, &self.generation) {
            writeln!(notes, "note: {}; /clear begins a new chat", answer::full_context(self.model))?;
        }
        if self.args.run.stats || (notes.is_terminal() && io::stdin().is_terminal()) {
            let used = answer.prompt_tokens + answer.tokens.len();
            let context = self.model.context();
            let told = if self.args.run.stats { answer::speeds(&answer) } else { answer::speed(&answer) };
            writeln!(notes, "{}", remark(&format!("[{told}; context {used} of {context}]"), notes.is_terminal()))?;
        }
        // Reasoning is not sent back to the model.
        self.messages.push(Message::assistant(&answer.text));
        // The next answer uses other random numbers.
        let seed = &mut self.generation.sampling.seed;
        *seed = seed.map(|seed| seed.wrapping_add(1));
        Ok(true)
    }

    fn through_pipe(&mut self) -> anyhow::Result<()> {
        let mut lines = io::stdin().lock().lines();
        while let Some(text) = read_message(|_| lines.next().transpose())? {
            match parse(&text) {
                Input::Message(text) if text.trim().is_empty() => {}
                Input::Message(text) => self.answer(text)?,
                Input::Clear => self.begin_again(self.system()),
                Input::System(text) => self.begin_again((!text.is_empty()).then(|| Message::system(text))),
                Input::Help => writeln!(io::stdout(), "{HELP}")?,
                Input::Exit => break,
                Input::Unknown(command) => return Err(mistake(unknown(command))),
            }
        }
        Ok(())
    }

    fn on_terminal(&mut self) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        ctrlc::set_handler(move || {
            // A second Ctrl-C while the answer is still running: leave.
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })?;
        let mut editor = DefaultEditor::new()?;
        let history = history_path();
        if let Some(path) = &history {
            // There is no history before the first chat.
            let _ = editor.load_history(path);
        }
        let name = self.model.file().path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        writeln!(io::stderr(), "{}: write a message, or /help", visible(&name))?;
        loop {
            let read = read_message(|first| match editor.readline(if first { "> " } else { ". " }) {
                Ok(line) => Ok(Some(line)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error),
            });
            let text = match read {
                Ok(Some(text)) => text,
                Ok(None) => break,
                Err(ReadlineError::Interrupted) => {
                    writeln!(io::stderr(), "(Ctrl-D or /exit leaves)")?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if text.trim().is_empty() {
                continue;
            }
            if editor.add_history_entry(&text)?
                && let Some(path) = &history
            {
                // If the history cannot be saved, the chat goes on.
                let _ = path.parent().map(std::fs::create_dir_all);
                let _ = editor.append_history(path);
            }
            match parse(&text) {
                Input::Message(text) => {
                    self.stop.store(false, Ordering::Relaxed);
                    match self.answer(text) {
                        Err(error) if is_refusal(&error) => {
                            failure::say(&error);
                            writeln!(io::stderr(), "/clear begins a new chat")?;
                        }
                        other => other?,
                    }
                }
                Input::Clear => {
                    self.begin_again(self.system());
                    writeln!(io::stderr(), "a new chat begins")?;
                }
                Input::System(text) => {
                    self.begin_again((!text.is_empty()).then(|| Message::system(text)));
                    let what = if text.is_empty() { "no instructions" } else { "these instructions" };
                    writeln!(io::stderr(), "a new chat begins, with {what}")?;
                }
                Input::Help => writeln!(io::stdout(), "{HELP}")?,
                Input::Exit => break,
                Input::Unknown(command) => writeln!(io::stderr(), "{}", unknown(command))?,
            }
        }
        Ok(())
    }
}

/// Whether only this answer failed, so that the chat can go on.
fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Engine(_) | Error::Template { .. } | Error::Tokenizer { .. }))
}

fn unknown(command: &str) -> String {
    format!("{command} is not a command of the chat; the commands are /clear, /system TEXT, /help and /exit")
}

fn history_path() -> Option<PathBuf> {
    Some(folders::state()?.join("chat-history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(input: &str) -> Vec<String> {
        let mut lines = input.lines().map(str::to_owned);
        std::iter::from_fn(|| read_message::<()>(|_| Ok(lines.next())).unwrap()).collect()
    }

    #[test]
    fn messages_of_several_lines() {
        assert_eq!(messages("one\ntwo"), ["one", "two"]);
        assert_eq!(messages("one\\\ntwo\nthree"), ["one\ntwo", "three"]);
        assert_eq!(messages("\"\"\"\na\n\nb\n\"\"\"\nc"), ["a\n\nb", "c"]);
        assert_eq!(messages("\"\"\"\na"), ["a"]);
        assert_eq!(messages("\"\"\"\n\"\"\""), [""]);
        assert_eq!(messages("end\\"), ["end"]);
    }

    #[test]
    fn commands() {
        assert_eq!(parse("/system be brief"), Input::System("be brief"));
        assert_eq!(parse("/system"), Input::System(""));
        assert_eq!(parse("/clear"), Input::Clear);
        assert_eq!((parse("/quit"), parse("/bye"), parse("/?")), (Input::Exit, Input::Exit, Input::Help));
        assert_eq!(parse("/nope"), Input::Unknown("/nope"));
        assert_eq!(parse("/etc/hosts is what?"), Input::Message("/etc/hosts is what?"));
        assert_eq!(parse("hello /clear"), Input::Message("hello /clear"));
    }
}
