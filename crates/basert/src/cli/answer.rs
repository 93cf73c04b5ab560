//! An answer, shown while it is generated.

use std::io::{self, Write};
use std::time::Instant;

use basert::{Answer, Error, Finish, Generation, Session};

use super::progress::LateBar;
use super::units;

/// Tokens of a prompt that are computed between two looks at whether to go on.
const CHUNK: usize = 256;

/// Continues `prompt` and writes the answer to stdout as it comes, until it ends or `go_on` says no. None when that was
/// before the first token.
pub fn show(
    session: &mut Session<'_>,
    prompt: &[u32],
    generation: &Generation,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<Option<Answer>> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt.into());
    }
    let known = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let (mut bar, began, mut computed) = (LateBar::tokens("reading the prompt"), Instant::now(), 0);
    session.sync_in_chunks(prompt, CHUNK, &mut |done| {
        computed = done;
        bar.set(done, prompt.len().saturating_sub(known));
        go_on()
    })?;
    drop(bar);
    let prompt_time = began.elapsed();
    if session.logits().is_empty() || !go_on() {
        return Ok(None);
    }

    let mut pieces = session.generate(prompt, generation)?;
    let mut out = io::stdout().lock();
    for piece in pieces.by_ref() {
        // The error gets a line of its own.
        let piece = piece.inspect_err(|_| drop(writeln!(out)))?;
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        if !go_on() {
            break;
        }
    }
    let answer = Answer { prompt_time, computed_tokens: computed, ..pieces.into_answer() };
    if !answer.text.ends_with('\n') {
        writeln!(out)?;
    }
    Ok(Some(answer))
}

/// How fast it went, in one line.
pub fn speeds(answer: &Answer) -> String {
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    // The first token of an answer comes with the prompt.
    let steps = answer.tokens.len().saturating_sub(1);
    let guessed = match answer.proposed {
        0 => String::new(),
        proposed => format!("; {} of {proposed} guesses right", answer.accepted),
    };
    format!(
        "prompt {} tokens, {} computed in {} ({:.0} tok/s); answer {} tokens in {} ({:.1} tok/s){guessed}",
        answer.prompt_tokens,
        answer.computed_tokens,
        units::seconds(answer.prompt_time),
        rate(answer.computed_tokens, answer.prompt_time.as_secs_f64()),
        answer.tokens.len(),
        units::seconds(answer.answer_time),
        rate(steps, answer.answer_time.as_secs_f64()),
    )
}

/// Whether the answer ended because the context has no room for more.
pub fn filled_context(answer: &Answer, generation: &Generation) -> bool {
    answer.finish == Finish::Length && answer.tokens.len() < generation.max_tokens
}

/// What to do about a full context.
pub fn full_context(session: &Session<'_>) -> String {
    let context = session.model().context();
    format!("the context of {context} tokens is full, so the answer ends here; --max-context makes it longer")
}
