//! How a command reports its failure: one line, and an exit code that tells user errors from others.

use std::io::{self, Write};
use std::process::ExitCode;

use basert::files::{FileError, Problem};
use basert::graph::GraphError;
use basert::{EngineError, Error, GrammarError};
use basert_convert::SynthError;

use super::terminal::visible;

/// A mistake in the command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(String);

/// A mistake of the user, as an error.
pub fn mistake(what: impl Into<String>) -> anyhow::Error {
    Mistake(what.into()).into()
}

/// Prints the error and returns its exit code. A closed output pipe is not a failure.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(closed)) {
        return ExitCode::SUCCESS;
    }
    say(error);
    ExitCode::from(if is_mistake(error) { 2 } else { 1 })
}

/// Prints the error as one line on stderr.
pub fn say(error: &anyhow::Error) {
    // If stderr is closed, the message is lost.
    let _ = writeln!(io::stderr(), "error: {}", visible(&one_line(error)));
}

/// The error and its causes in one line, without causes that an error's own text already includes.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

fn is_mistake(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Mistake>()
            || cause.downcast_ref().is_some_and(is_mistaken_use)
            || cause.downcast_ref().is_some_and(basert_hub::Error::is_user_mistake)
            || cause.downcast_ref().is_some_and(|error| matches!(error, SynthError::Unknown { .. }))
    })
}

fn is_mistaken_use(error: &Error) -> bool {
    match error {
        Error::File(FileError { problem: Problem::Io(io), .. }) => io.kind() == io::ErrorKind::NotFound,
        Error::Graph(error) => matches!(error, GraphError::Architecture { .. }),
        Error::Engine(error) => matches!(error, EngineError::ContextFull { .. }),
        Error::Grammar(error) => !matches!(error, GrammarError::Step { .. }),
        Error::NoTemplate { .. } | Error::Sampling(_) | Error::EmptyPrompt => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once_and_in_one_line() {
        let error = anyhow::anyhow!("the third\nline").context("second: the third line").context("first");
        assert_eq!(one_line(&error), "first: second: the third line");
    }
}
