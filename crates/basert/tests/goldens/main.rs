//! Tiny random models of every family and format against `transformers`, and single ops against the oracle, on every
//! device.

mod cpu;
mod draws;
mod golden;
mod gpu;
mod graphs;
mod heads;
mod hidden;
mod ops;
