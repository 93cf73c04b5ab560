//! Whole models through the library.

mod constrained;
mod greedy;
mod heads;
mod odd_files;
mod plans;
mod prefixes;
mod refusals;
mod same_answer;
mod states;
mod synth;
#[cfg(unix)]
mod tune;
