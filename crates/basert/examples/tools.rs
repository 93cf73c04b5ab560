//! A model that calls a tool, gets its result and answers. The first answer has to be a call, which a grammar sees to.
//!
//! `cargo run --release -p basert --example tools -- MODEL`

use basert::{CallGrammar, Generation, Grammar, Message, Model, Options};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a model: a GGUF file or a folder")?;
    let model = Model::open(path, Options::default())?;
    let tools = [json!({
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers",
            "parameters": {
                "type": "object",
                "properties": { "a": { "type": "integer" }, "b": { "type": "integer" } },
                "required": ["a", "b"],
                "additionalProperties": false,
            },
        },
    })];
    let mut messages = vec![Message::user("What is 17 + 25? Use the tool.")];
    let calls = CallGrammar::new(model.dialect().clone(), &tools, None, false)?;
    let must_call = Generation { max_tokens: Some(200), grammar: Some(Grammar::Calls(calls)), ..Generation::greedy() };
    let answer = model.chat(&messages, &tools, None, &must_call, |_| true)?;

    let mut calls = Vec::new();
    let mut results = Vec::new();
    for call in answer.calls.iter().filter(|call| call.is_complete) {
        let arguments: Value = serde_json::from_str(&call.arguments)?;
        let sum = arguments["a"].as_i64().zip(arguments["b"].as_i64()).and_then(|(a, b)| a.checked_add(b));
        let sum = sum.map_or("too large".to_owned(), |sum| sum.to_string());
        println!("{}({}) = {sum}", call.name, call.arguments);
        let function = json!({ "name": call.name, "arguments": call.arguments });
        calls.push(json!({ "id": call.id, "type": "function", "function": function }));
        results.push(Message(json!({ "role": "tool", "tool_call_id": call.id, "content": sum })));
    }
    messages.push(Message(json!({ "role": "assistant", "content": answer.text, "tool_calls": calls })));
    messages.extend(results);
    let options = Generation { max_tokens: Some(48), ..Generation::greedy() };
    let answer = model.chat(&messages, &tools, None, &options, |_| true)?;
    println!("{}", answer.text);
    Ok(())
}
