//! `basert tune`.

use std::io::{self, IsTerminal, Write};

use basert::DeviceKind;
use basert_cpu::Isa;
use basert_gpu::Limits;
use basert_tune::{Checked, Choice, Effort, Tuned, cpu};

use super::failure::mistake;
use super::units;

/// Checks every kernel of a device against the oracle, times those with several variants, and saves the fastest choice
/// for this machine.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert tune
  basert tune --short
  basert tune --submit > m4-pro.toml

On a GPU, every variant of a kernel computes small models of single ops; one whose results differ from the oracle's by more \
than rounding explains, or that does not compile, is dropped and named. The others are timed on weights that no cache holds. \
The table of the best is kept in $BASERT_CACHE_DIR/tuning, by default ~/.cache/basert/tuning, for this chip, driver or system, \
and version of the kernels; all commands use it from then on. A short form runs by itself the first time that a GPU is used. \
On the CPU, every instruction set that it has is checked and timed; the best is used in any case. On simt, checks are real, and \
times say nothing, so nothing is chosen by them.")]
pub struct Args {
    /// The device to tune: cpu, metal, cuda, cuda:N or simt [default: a GPU if there is one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Test the usual variants and the essential ops only, which is much faster
    #[arg(long)]
    short: bool,
    /// Print the tuning table as a file for a pull request, to be included in basert
    #[arg(long)]
    submit: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let device = args.device.unwrap_or_else(DeviceKind::best);
    let effort = if args.short { Effort::Short } else { Effort::Full };
    let mut tell = |line: &str| {
        if io::stderr().is_terminal() {
            // If stderr is closed, the message is lost.
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    };
    if device == DeviceKind::Cpu {
        if args.submit {
            return Err(mistake("the CPU has no tuning table to submit"));
        }
        let checked = cpu(None, effort, &mut tell)?;
        tell("");
        return report_cpu(&checked);
    }
    if device == DeviceKind::Reference {
        return Err(mistake("the reference device is the oracle itself, and has nothing to tune"));
    }
    let tuned = device.tune(effort, &mut tell)?;
    tell("");
    let kept = tuned.tuning.keep(&tuned.facts);
    let mut out = io::stdout().lock();
    write!(out, "{}", if args.submit { submission(&tuned) } else { report(&tuned) })?;
    match kept {
        Ok(path) if args.submit => writeln!(io::stderr(), "saved to {}", path.display())?,
        Ok(path) => writeln!(out, "\nsaved to {}", path.display())?,
        Err(error) => return Err(anyhow::Error::from(error).context("the tuning table cannot be saved")),
    }
    Ok(())
}

/// The condition of a rule, in words.
fn when(limits: Limits) -> String {
    let Limits { tokens, rows, columns } = limits;
    let named = [(tokens, "tokens"), (rows, "rows"), (columns, "columns")];
    let parts: Vec<_> = named.into_iter().filter_map(|(limit, name)| Some(format!("{name} ≤ {}", limit?))).collect();
    if parts.is_empty() { "otherwise".to_owned() } else { parts.join(", ") }
}

fn about(tuned: &Tuned) -> Vec<String> {
    let mut lines = vec![format!("{}; {}", tuned.facts.description, tuned.facts.software)];
    if tuned.facts.tuning == "simt" {
        lines.push("times on simt say nothing about a GPU, so no variant was chosen by them".to_owned());
    }
    lines.extend(tuned.dropped.iter().map(|(variant, why)| format!("dropped {variant}: {why}")));
    lines
}

/// The choices, beside the previous ones.
fn rows(tuned: &Tuned) -> Vec<Vec<String>> {
    let seconds = |choice: &Choice, wanted| {
        let time = choice.times.iter().find(|(variant, _)| *variant == wanted);
        time.map_or("wrong".to_owned(), |(_, seconds)| format!("{:.1} µs", seconds * 1e6))
    };
    let mut rows = vec![["when", "before", "now", "", "kernel"].map(str::to_owned).to_vec()];
    rows.extend(tuned.choices.iter().map(|choice| {
        let (before, now) = (seconds(choice, choice.before), seconds(choice, choice.chosen));
        let mark = if choice.before == choice.chosen { "" } else { "new" };
        vec![when(choice.limits), before, now, mark.to_owned(), choice.chosen.to_string()]
    }));
    rows
}

fn report(tuned: &Tuned) -> String {
    format!("{}\n\n{}", about(tuned).join("\n"), units::table(&rows(tuned), 1))
}

/// A file for `crates/basert-gpu/tuning`: its origin in comments, and the table.
fn submission(tuned: &Tuned) -> String {
    let measured = format!("Measured by basert {} tune:", env!("CARGO_PKG_VERSION"));
    let table = units::table(&rows(tuned), 1);
    let lines = about(tuned).into_iter().chain([measured]).chain(table.lines().map(str::to_owned));
    let comments: String = lines.map(|line| format!("# {}\n", line.replace('\n', " "))).collect();
    format!("{comments}\n{}", tuned.tuning.to_toml())
}

fn report_cpu(checked: &[Checked]) -> anyhow::Result<()> {
    let mut rows = vec![["instructions", "checks", "format", "1 token", "64 tokens", ""].map(str::to_owned).to_vec()];
    for Checked { isa, wrong, products } in checked {
        let formats: Vec<_> = products.chunks(2).collect();
        for (i, pair) in formats.into_iter().enumerate() {
            let [one, many] = pair else { continue };
            let (name, checks) = match (i, wrong.len()) {
                (0, 0) => (isa.name(), "right".to_owned()),
                (0, n) => (isa.name(), format!("{n} wrong")),
                _ => ("", String::new()),
            };
            let used = if i == 0 && *isa == Isa::detect() { "used" } else { "" };
            let read = units::with_prefix(one.bytes / one.seconds, "B/s");
            let computed = units::with_prefix(many.operations / many.seconds, "OP/s");
            rows.push(vec![name.to_owned(), checks, one.format.to_string(), read, computed, used.to_owned()]);
        }
    }
    let mut out = io::stdout().lock();
    write!(out, "{}", units::table(&rows, 3))?;
    let wrong: Vec<_> =
        checked.iter().flat_map(|checked| checked.wrong.iter().map(|what| (checked.isa, what))).collect();
    for (isa, what) in &wrong {
        writeln!(out, "{isa}: {what}")?;
    }
    match wrong.iter().find(|(isa, _)| *isa == Isa::detect()) {
        Some((isa, _)) => anyhow::bail!("{isa}, which is used, computes wrong results on this machine"),
        None => Ok(()),
    }
}
