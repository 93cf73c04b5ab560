//! An answer, shown while it is generated.

use std::task::Poll;
use std::time::Duration;

use basert::{Answer, Answers, ChatPrompt, Event, Finish, Generation, Model, Part};

use super::progress::LateBar;
use super::terminal::Screen;
use super::units;

/// How long to wait for an event before looking whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// The prompt to answer.
pub enum Prompt {
    /// A text to continue, as tokens.
    Text(Vec<u32>),
    /// A chat.
    Chat(ChatPrompt),
}

/// Answers `prompt` and streams the answer to stdout until it ends or `go_on` returns false. None if `go_on` returned
/// false before the first token.
pub fn show(
    model: &Model,
    prompt: &Prompt,
    generation: &Generation,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<Option<Answer>> {
    let request = match prompt {
        Prompt::Text(tokens) => model.text_request(tokens.clone(), generation)?,
        Prompt::Chat(chat) => model.chat_request(chat, generation)?,
    };
    let mut answers = model.answers(&request)?;
    let mut screen = Screen::new();
    let written = write(&mut screen, &mut answers, go_on);
    // An error begins on a line of its own.
    screen.finish()?;
    written?;
    let answer = answers.into_answers().swap_remove(0);
    Ok(Some(answer).filter(|answer| !answer.tokens.is_empty()))
}

fn write(screen: &mut Screen, answers: &mut Answers, go_on: &dyn Fn() -> bool) -> anyhow::Result<()> {
    let mut bar = Some(LateBar::tokens("prefilling the prompt"));
    while go_on() {
        let event = match answers.poll(LOOK) {
            Poll::Pending => continue,
            Poll::Ready(None) => break,
            Poll::Ready(Some(event)) => event?,
        };
        match event {
            Event::Prompt { prompt, .. } => {
                bar.iter_mut().for_each(|bar| bar.set(prompt.done - prompt.cached, prompt.tokens - prompt.cached));
            }
            Event::Piece { parts, .. } => {
                bar = None;
                for part in parts {
                    match part {
                        Part::Content(text) => screen.say(&text)?,
                        Part::Reasoning(text) => screen.think(&text)?,
                        // Without tools there are no calls.
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// The decoding speed.
pub fn speed(answer: &Answer) -> String {
    // The first token is sampled from the logits of the prompt.
    format!("{:.1} tok/s", rate(answer.tokens.len().saturating_sub(1), answer.answer_time.as_secs_f64()))
}

/// All speeds, in one line.
pub fn speeds(answer: &Answer) -> String {
    let guessed = match answer.drafts.proposed {
        0 => String::new(),
        proposed => format!("; {} of {proposed} draft tokens accepted", answer.drafts.accepted),
    };
    let computed = answer.prompt_tokens - answer.cached_tokens;
    format!(
        "prompt {} tokens, {computed} computed in {} ({:.0} tok/s); answer {} tokens in {} ({}){guessed}",
        answer.prompt_tokens,
        units::seconds(answer.prompt_time),
        rate(computed, answer.prompt_time.as_secs_f64()),
        answer.tokens.len(),
        units::seconds(answer.answer_time),
        speed(answer),
    )
}

/// Whether the answer ended because the context is full.
pub fn filled_context(answer: &Answer, generation: &Generation) -> bool {
    answer.finish == Some(Finish::Length) && generation.max_tokens.is_none_or(|most| answer.tokens.len() < most)
}

/// What to do about a full context.
pub fn full_context(model: &Model) -> String {
    let context = model.context();
    format!("the context of {context} tokens is full, so the answer ends here; --max-context sets a longer one")
}
