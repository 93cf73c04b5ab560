//! An answer that is JSON of a given schema, whatever the model would rather say.
//!
//! `cargo run --release -p basert --example structured_output -- MODEL`

use basert::{Generation, Grammar, Message, Model, Options};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a model: a GGUF file or a folder")?;
    let model = Model::open(path, Options::default())?;
    let schema = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 30 },
            "country": { "type": "string", "maxLength": 30 },
            "is_capital": { "type": "boolean" },
        },
        "required": ["city", "country", "is_capital"],
        "additionalProperties": false,
    });
    let options = Generation { grammar: Some(Grammar::JsonSchema(schema)), ..Generation::greedy() };
    let answer = model.chat(&[Message::user("Tell me of a city, as JSON.")], &[], None, &options, |_| true)?;
    let city: Value = serde_json::from_str(&answer.text)?;
    println!("{}, {}; a capital: {}", city["city"], city["country"], city["is_capital"]);
    Ok(())
}
