//! The command line: what can be asked for, and how its end is told.

mod answer;
mod bench;
mod chat;
mod complete;
mod doctor;
mod failure;
mod grammar;
mod inspect;
mod log;
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
    /// Talk with a model
    Chat(chat::Args),
    /// Answer a prompt, or talk with a model where there is none
    Run(run::Args),
    /// Answer requests over HTTP, on the APIs of OpenAI and Anthropic
    Serve(serve::Args),
    /// Measure how fast a model runs here
    Bench(bench::Args),
    /// Show what is in a model file
    Inspect(inspect::Args),
    /// Show how a model is computed, and what bounds its speed
    Plan(plan::Args),
    /// Show how long each op of a step takes, and what bounds it
    Profile(profile::Args),
    /// Look at this machine: what models could run on, and what is missing
    Doctor(doctor::Args),
    /// Check the kernels of a device, and keep the fastest
    Tune(tune::Args),
    /// Write a model of random weights, to measure with
    Synth(synth::Args),
    /// Fetch a model, or bring it up to date
    Pull(store::PullArgs),
    /// List the models that are here, and those known by name
    List(store::ListArgs),
    /// Delete a model that was pulled
    Rm(store::RmArgs),
    /// Check that a model is what was pulled
    Verify(store::VerifyArgs),
    /// Print a script that makes a shell complete this command's arguments
    #[command(after_help = "Example:\n  basert completions bash > ~/.local/share/bash-completion/completions/basert")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    system::prefer_errors();
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_)) {
        show_warnings();
    }
    if let Some(moved) = folders::leave_old() {
        // Where stderr is closed, there is nobody to be told.
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

/// Warnings of the libraries go to stderr; the server has a log of its own.
fn show_warnings() {
    let lines = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN);
    lines.without_time().with_target(false).with_ansi(false).log_internal_errors(false).init();
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "basert", &mut script);
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}

/// Parses a number from `least` up to what no model and no machine exceeds.
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
