//! Tokenizers, templates, dialects and grammars, beside other implementations and by their own rules.

mod common;
mod conformance;
mod dialects;
mod encoders;
mod fill_in;
mod grammar;
mod llama_cpp;
mod prompts;
mod properties;
mod robustness;
mod schemas;
mod templates;
mod turns;
