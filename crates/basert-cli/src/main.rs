//! The command line: subcommands, and how failures are reported.

mod answer;
mod bench;
mod chat;
mod complete;
mod doctor;
mod failure;
mod families;
mod grammar;
mod inspect;
mod log;
mod logits;
mod model;
mod plan;
mod profile;
mod progress;
mod run;
mod sampling;
mod serve;
mod signals;
mod stdin;
mod store;
mod synth;
mod system;
mod terminal;
mod tune;
mod units;

use std::io;
use std::process::ExitCode;

use basert_system::folders;
use clap::builder::RangedU64ValueParser;
use clap::{CommandFactory, Parser, Subcommand};

/// Runs large language models on the machine in front of you.
#[derive(Parser)]
#[command(
    name = "basert",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  basert complete -p \"Explain photosynthesis in one sentence.\"
  basert chat
  basert serve smollm2-135m
  basert pull bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  basert bench smollm2-135m -p 128,512 -n 64

A MODEL is a .gguf file, a folder in the Hugging Face layout, a hub id org/name[:variant], or a name that \
`basert list` shows. Models are kept in $BASERT_MODELS_DIR, by default ~/.local/share/basert/models.

The exit code is 0 for success, 1 for a failure, and 2 for a mistake in what was asked."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer one prompt, or continue a text
    Complete(complete::Args),
    /// Chat with a model
    Chat(chat::Args),
    /// Answer a prompt, or chat with a model if there is no prompt
    Run(run::Args),
    /// Serve models over HTTP, with the APIs of OpenAI and Anthropic
    Serve(serve::Args),
    /// Measure how fast a model runs on this machine
    Bench(bench::Args),
    /// Show the contents of a model file
    Inspect(inspect::Args),
    /// Show a model's execution plan, and what bounds its speed
    Plan(plan::Args),
    /// Show how long each op of a step takes, and what bounds its speed
    Profile(profile::Args),
    /// Compute logits of given tokens, to compare with another implementation
    Logits(logits::Args),
    /// List the model families that are known
    Families(families::Args),
    /// Check this machine: devices that can run models, and what is missing
    Doctor(doctor::Args),
    /// Check a device's kernels, and choose the fastest
    Tune(tune::Args),
    /// Write a model with random weights, for measurements
    Synth(synth::Args),
    /// Download a model, or update it
    Pull(store::PullArgs),
    /// List installed models, and those known by name
    List(store::ListArgs),
    /// Delete a downloaded model
    Rm(store::RmArgs),
    /// Check a downloaded model's files against their checksums
    Verify(store::VerifyArgs),
    /// Print a shell completion script
    #[command(after_help = "Example:\n  basert completions bash > ~/.local/share/bash-completion/completions/basert")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments and runs the command.
fn main() -> ExitCode {
    system::prefer_errors();
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_)) {
        show_warnings();
    }
    if let Some(moved) = folders::leave_old() {
        // If stderr is closed, the message is lost.
        let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("note: {moved}\n"));
    }
    let result = match command {
        Command::Complete(args) => complete::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Run(args) => run::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Families(args) => families::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Pull(args) => store::pull(&args),
        Command::List(args) => store::list(&args),
        Command::Rm(args) => store::remove(&args),
        Command::Verify(args) => store::verify(&args),
        Command::Completions { shell } => completions(shell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

/// Sends the libraries' warnings to stderr; the server has its own log.
fn show_warnings() {
    let lines = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN);
    lines.without_time().with_target(false).with_ansi(false).log_internal_errors(false).init();
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "basert", &mut script);
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}

/// Parses a number that is at least `least` and below a bound that no model or machine exceeds.
fn count(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
