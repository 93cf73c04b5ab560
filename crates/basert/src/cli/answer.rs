//! An answer, shown while it is generated.

use std::time::Instant;

use basert::{Answer, ChatPrompt, Error, Event, Finish, Generation, Session};

use super::progress::LateBar;
use super::terminal::Screen;
use super::units;

/// Tokens of a prompt that are computed between two checks for an interrupt.
const CHUNK: usize = 256;

/// The prompt to answer.
pub enum Prompt {
    /// A text to continue, as tokens.
    Text(Vec<u32>),
    /// A chat.
    Chat(ChatPrompt),
}

impl Prompt {
    fn tokens(&self) -> &[u32] {
        match self {
            Prompt::Text(tokens) => tokens,
            Prompt::Chat(chat) => &chat.tokens,
        }
    }
}

/// Answers `prompt` and streams the answer to stdout until it ends or `go_on` returns false. None if `go_on` returned
/// false before the first token.
pub fn show(
    session: &mut Session<'_>,
    prompt: &Prompt,
    generation: &Generation,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<Option<Answer>> {
    let tokens = prompt.tokens();
    if tokens.is_empty() {
        return Err(Error::EmptyPrompt.into());
    }
    let known = session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
    let (mut bar, began, mut computed) = (LateBar::tokens("prefilling the prompt"), Instant::now(), 0);
    session.sync_in_chunks(tokens, CHUNK, &mut |done| {
        computed = done;
        bar.set(done, tokens.len().saturating_sub(known));
        go_on()
    })?;
    drop(bar);
    let prompt_time = began.elapsed();
    if session.logits().is_empty() || !go_on() {
        return Ok(None);
    }

    let mut screen = Screen::new();
    let written = match prompt {
        Prompt::Text(tokens) => {
            let mut pieces = session.generate(tokens, generation)?;
            write(&mut screen, pieces.by_ref().map(|piece| piece.map(Event::Content)), go_on)
                .map(|()| pieces.into_answer())
        }
        Prompt::Chat(chat) => {
            let mut parts = session.answer(chat, generation)?;
            write(&mut screen, parts.by_ref(), go_on).map(|()| parts.into_answer())
        }
    };
    // An error begins on a line of its own.
    screen.finish()?;
    Ok(Some(Answer { prompt_time, computed_tokens: computed, ..written? }))
}

fn write(
    screen: &mut Screen,
    events: impl Iterator<Item = Result<Event, Error>>,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    for event in events {
        match event? {
            Event::Content(text) => screen.say(&text)?,
            Event::Reasoning(text) => screen.think(&text)?,
            // Without tools there are no calls.
            _ => {}
        }
        if !go_on() {
            break;
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
    let guessed = match answer.proposed {
        0 => String::new(),
        proposed => format!("; {} of {proposed} draft tokens accepted", answer.accepted),
    };
    format!(
        "prompt {} tokens, {} computed in {} ({:.0} tok/s); answer {} tokens in {} ({}){guessed}",
        answer.prompt_tokens,
        answer.computed_tokens,
        units::seconds(answer.prompt_time),
        rate(answer.computed_tokens, answer.prompt_time.as_secs_f64()),
        answer.tokens.len(),
        units::seconds(answer.answer_time),
        speed(answer),
    )
}

/// Whether the answer ended because the context is full.
pub fn filled_context(answer: &Answer, generation: &Generation) -> bool {
    answer.finish == Finish::Length && answer.tokens.len() < generation.max_tokens
}

/// What to do about a full context.
pub fn full_context(session: &Session<'_>) -> String {
    let context = session.model().context();
    format!("the context of {context} tokens is full, so the answer ends here; --max-context sets a longer one")
}
