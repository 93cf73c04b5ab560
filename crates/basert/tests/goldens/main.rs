//! Tiny random models of every family and format against `transformers`, on every device.

mod cpu;
mod golden;
mod gpu;
