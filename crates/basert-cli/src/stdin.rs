//! Prompts from stdin.

use std::io::{self, IsTerminal, Read};

use super::failure::mistake;

/// The most bytes of a prompt: more than any context holds.
const MOST: u64 = 256 << 20;

/// All of stdin, or nothing if it is a terminal.
pub fn read() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        return Ok(String::new());
    }
    text_of(io::stdin().lock(), "the prompt from stdin")
}

/// The text of a file or a pipe, which is called `name` in messages; one that does not end is refused.
pub fn text_of(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(mistake(format!("{name} is longer than {} MiB", MOST >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| mistake(format!("{name} is not UTF-8 text")))
}

/// The same if there is a prompt already, to which the text of a pipe or file is added.
#[cfg(unix)]
pub fn read_if_given() -> anyhow::Result<String> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() else { return Ok(String::new()) };
    let kind = std::fs::File::from(stdin).metadata()?.file_type();
    if !(kind.is_fifo() || kind.is_socket() || kind.is_file()) {
        return Ok(String::new());
    }
    if !comes_soon() {
        use io::Write;
        let _ =
            writeln!(io::stderr(), "note: waiting for the rest of the prompt from stdin; < /dev/null if there is none");
    }
    read()
}

#[cfg(not(unix))]
pub fn read_if_given() -> anyhow::Result<String> {
    read()
}

/// Whether there is something to read, or the end of it, within two seconds.
#[cfg(unix)]
fn comes_soon() -> bool {
    let mut stdin = libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
    // SAFETY: polls one descriptor; the kernel writes nothing but its `revents`.
    unsafe { libc::poll(&mut stdin, 1, 2000) != 0 }
}
