//! Several prompts with two answers each, computed together; and then the same model asked by several threads.
//!
//! `cargo run --release -p basert --example batch -- MODEL`

use basert::{Generation, Model, Options, Request, SamplingOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a model: a GGUF file or a folder")?;
    let model = Model::open(path, Options::default())?;
    let sampling = SamplingOptions { temperature: Some(0.8), seed: Some(1), ..SamplingOptions::default() };
    let options = Generation { max_tokens: Some(16), sampling, logprobs: Some(0), ..Generation::default() };

    let texts = ["The capital of France is", "Once upon a time", "The sky is"];
    let prompts = texts.iter().map(|text| model.text_tokens(text)).collect::<Result<Vec<_>, _>>()?;
    let request = Request { prompts, n: 2, ..model.request(&options) };
    for (i, answer) in model.answers(&request)?.wait()?.iter().enumerate() {
        let mean = answer.logprobs.iter().map(|token| token.logprob).sum::<f32>() / answer.logprobs.len().max(1) as f32;
        println!("{} …{:?} (mean log probability {mean:.2})", texts[i / 2], answer.text);
    }

    std::thread::scope(|scope| {
        for text in texts {
            let (model, options) = (&model, &options);
            scope.spawn(move || match model.generate(text, options, |_| true) {
                Ok(answer) => println!("{text}: {} tokens in {:?}", answer.tokens.len(), answer.answer_time),
                Err(error) => println!("{text}: {error}"),
            });
        }
    });
    Ok(())
}
