//! Whole models through the library.

mod constrained;
mod examples;
mod greedy;
mod heads;
mod odd_files;
mod plans;
mod prefixes;
mod ranking;
mod refusals;
mod same_answer;
mod states;
mod synth;
