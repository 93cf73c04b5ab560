//! Progress bars on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use basert_hub::Progress;
use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str =
    "{msg:30!} {wide_bar} {decimal_bytes:>10} / {decimal_total_bytes:10} {decimal_bytes_per_sec:>12} {eta:>4}";
const KERNELS: &str = "{msg:30!} {wide_bar} {pos:>6} / {len:6} kernels";
const TOKENS: &str = "{msg:30!} {wide_bar} {pos:>6} / {len:6} tokens";

fn bar(template: &str, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style).with_message(what.to_owned())
}

/// A progress bar for work that is usually short: shown only on a terminal, and only if the work takes long.
pub struct LateBar {
    what: &'static str,
    template: &'static str,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl LateBar {
    const PATIENCE: Duration = Duration::from_millis(500);

    /// For work that is counted in bytes.
    pub fn bytes(what: &'static str) -> LateBar {
        LateBar { what, template: BYTES, began: Instant::now(), bar: None }
    }

    /// For work that is counted in kernels.
    pub fn kernels(what: &'static str) -> LateBar {
        LateBar { what, template: KERNELS, began: Instant::now(), bar: None }
    }

    /// For work that is counted in tokens.
    pub fn tokens(what: &'static str) -> LateBar {
        LateBar { what, template: TOKENS, began: Instant::now(), bar: None }
    }

    /// Sets the progress. The bar disappears when the work is done.
    pub fn set(&mut self, done: usize, total: usize) {
        if done < total && self.bar.is_none() && self.began.elapsed() > Self::PATIENCE && io::stderr().is_terminal() {
            self.bar = Some(bar(self.template, self.what));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        if done >= total
            && let Some(bar) = self.bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Drop for LateBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The bars of a pull, one after the other; none if stderr is not a terminal.
#[derive(Default)]
pub struct PullBars(Mutex<Option<ProgressBar>>);

impl PullBars {
    fn current(&self) -> Option<ProgressBar> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Progress for PullBars {
    fn begin(&self, name: &str, total: u64) {
        let next = bar(BYTES, name);
        next.set_length(total);
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(next);
        if let Some(before) = before {
            before.finish_and_clear();
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.current() {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.current() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, message: &str) {
        match self.current() {
            Some(bar) if io::stderr().is_terminal() => bar.println(message),
            // If stderr is closed, the message is lost.
            _ => drop(writeln!(io::stderr(), "{message}")),
        }
    }
}
