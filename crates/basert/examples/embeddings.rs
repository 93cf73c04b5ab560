//! Which of some sentences mean nearly the same.
//!
//! `cargo run --release -p basert --example embeddings -- MODEL`, with a model that was trained to embed texts.

use basert::{Model, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a model: a GGUF file or a folder")?;
    let model = Model::open(path, Options::default())?;
    let texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today."];
    let tokens = texts.iter().map(|text| model.text_tokens(text)).collect::<Result<Vec<_>, _>>()?;
    // Their length is 1, so a product is the cosine of the angle between two.
    let vectors = model.embed(tokens, model.pooling()?)?;
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        let cosine: f32 = vectors[i].iter().zip(&vectors[j]).map(|(a, b)| a * b).sum();
        println!("{cosine:.3}  {:?} and {:?}", texts[i], texts[j]);
    }
    Ok(())
}
