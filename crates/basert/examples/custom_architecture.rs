//! A model whose architecture is changed by a file: `capped_llama.toml` beside this program lets no logit exceed 20.
//!
//! `cargo run --release -p basert --example custom_architecture -- MODEL`, with a model of the Llama family.

use std::path::Path;

use basert::{Model, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a model of the Llama family: a GGUF file or a folder")?;
    let architecture = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/capped_llama.toml");
    for arch_files in [vec![], vec![architecture]] {
        let name = arch_files.first().map_or("built in", |_| "capped");
        let model = Model::open(&path, Options { arch_files, ..Options::default() })?;
        let logits = model.logits(vec![1, 2, 3])?;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        println!("{name}: the largest logit is {largest:.2}");
    }
    Ok(())
}
