//! Output to a terminal: text without control characters, and remarks in grey.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, StdoutLock, Write};

const GREY: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// A text from outside with its control characters replaced by Unicode's pictures of them: they could move the cursor,
/// change the terminal's title, or insert input. Line feeds and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(harmful) {
        return text.into();
    }
    let picture = |c: char| match u32::from(c) {
        _ if !harmful(c) => c,
        code @ ..0x20 => char::from_u32(0x2400 + code).unwrap_or('\u{fffd}'),
        0x7f => '\u{2421}',
        _ => '\u{fffd}',
    };
    text.chars().map(picture).collect()
}

/// A remark, in grey on a terminal with colours.
pub fn remark(text: &str, is_terminal: bool) -> String {
    if is_terminal && has_colours() { format!("{GREY}{text}{PLAIN}") } else { text.to_owned() }
}

/// As <https://no-color.org> has it.
fn has_colours() -> bool {
    env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()) && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Stdout while an answer is streamed to it. A pipe gets the answer alone, unchanged.
pub struct Screen {
    out: StdoutLock<'static>,
    is_terminal: bool,
    colours: bool,
    thinking: bool,
    /// Whether the last line needs a line feed; an empty answer gets one, too.
    in_line: bool,
}

impl Screen {
    pub fn new() -> Screen {
        let out = io::stdout().lock();
        let is_terminal = out.is_terminal();
        Screen { out, is_terminal, colours: is_terminal && has_colours(), thinking: false, in_line: true }
    }

    /// Writes more of the answer.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.end_thought()?;
        self.write(text)
    }

    /// Writes more of the reasoning.
    pub fn think(&mut self, text: &str) -> io::Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        if !self.thinking {
            self.thinking = true;
            self.out.write_all(if self.colours { GREY } else { "[thinking]\n" }.as_bytes())?;
        }
        self.write(text)
    }

    /// Ends the last line.
    pub fn finish(&mut self) -> io::Result<()> {
        self.end_thought()?;
        if std::mem::take(&mut self.in_line) { writeln!(self.out) } else { Ok(()) }
    }

    fn end_thought(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.thinking) {
            return Ok(());
        }
        self.out.write_all(if self.colours { PLAIN } else { "\n[answer]" }.as_bytes())?;
        self.in_line = false;
        self.out.write_all(if self.colours { b"\n\n" } else { b"\n" })
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let shown = if self.is_terminal { visible(text) } else { text.into() };
        self.out.write_all(shown.as_bytes())?;
        if !shown.is_empty() {
            self.in_line = !shown.ends_with('\n');
        }
        self.out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.thinking && self.colours {
            let _ = self.out.write_all(PLAIN.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_command_to_the_terminal() {
        assert_eq!(visible("plain\ttext\nä 😀"), "plain\ttext\nä 😀");
        assert_eq!(visible("\x1b]0;title\x07\r\x7f"), "␛]0;title␇␍␡");
        // The one character that begins a command in ISO 6429's C1 set.
        assert_eq!(visible("\u{9b}31m"), "\u{fffd}31m");
        let all: String = (0..=0x9f).filter_map(char::from_u32).collect();
        assert!(visible(&all).chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
    }
}
