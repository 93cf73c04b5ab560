//! A chat of a few turns, streamed. What earlier turns have in common with a new one is not computed again.
//!
//! `cargo run --release -p basert --example chat -- MODEL [QUESTION…]`

use std::io::Write;

use basert::{Generation, Message, Model, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("give a model: a GGUF file or a folder")?;
    let mut questions: Vec<String> = arguments.collect();
    if questions.is_empty() {
        questions = ["Name a primary colour.", "Name another one."].map(str::to_owned).to_vec();
    }
    let model = Model::open(path, Options::default())?;
    let options = Generation { max_tokens: Some(64), ..Generation::default() };
    let mut messages = vec![Message::system("Answer in one sentence.")];
    for question in questions {
        println!("> {question}");
        messages.push(Message::user(&question));
        let answer = model.chat(&messages, &[], None, &options, |piece| {
            print!("{piece}");
            std::io::stdout().flush().is_ok()
        })?;
        println!("\n[{} of {} prompt tokens were cached]", answer.cached_tokens, answer.prompt_tokens);
        messages.push(Message::assistant(&answer.text));
    }
    Ok(())
}
