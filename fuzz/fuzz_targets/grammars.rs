//! A grammar, and a walk through what it admits. The input is a byte that says which kind it is, and its text.
#![no_main]

use std::sync::{Arc, LazyLock};

use basert_text::{Constraint, Grammar, GrammarCompiler};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/basert-text/tests/common/mod.rs"]
mod common;

/// For a vocabulary of all bytes.
static COMPILER: LazyLock<GrammarCompiler> =
    LazyLock::new(|| GrammarCompiler::new(Arc::new(common::byte_tokenizer(&["</s>"]))).expect("it has an end"));

/// The first bytes that are admitted, chosen by the source; none when there are too many ways to look at.
fn walk(constraint: &mut Constraint, source: &[u8]) {
    for choice in source.iter().cycle().take(64) {
        let Ok(mask) = constraint.mask() else { return };
        let allowed: Vec<u32> =
            (0..32 * mask.len() as u32).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        let Some(&token) = allowed.get(usize::from(*choice) % allowed.len().max(1)) else { return };
        if constraint.accept(token).is_err() || constraint.is_finished() {
            return;
        }
    }
}

fuzz_target!(
    init: {
        // Panics inside the library are caught and become errors: only those that come out count.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let Some((kind, source)) = bytes.split_first() else { return };
        let Ok(text) = std::str::from_utf8(source) else { return };
        let grammar = match kind % 4 {
            0 => match serde_json::from_str(text) {
                Ok(schema) => Grammar::JsonSchema(schema),
                Err(_) => return,
            },
            1 => Grammar::Gbnf(text.to_owned()),
            2 => Grammar::Lark(text.to_owned()),
            _ => Grammar::Regex(text.to_owned()),
        };
        match COMPILER.compile(&grammar) {
            Ok(mut constraint) => walk(&mut constraint, source),
            Err(error) => drop(error.to_string()),
        }
    }
);
