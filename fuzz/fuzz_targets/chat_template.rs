//! A chat template. The input is the template and, after a zero byte, the messages as JSON.
#![no_main]

use basert_text::{ChatRequest, ChatTemplate};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn conversation() -> Vec<Value> {
    let call = json!({"type": "function", "function": {"name": "weather", "arguments": {"city": "Reykjavík"}}});
    vec![
        json!({"role": "system", "content": "Be <brief>."}),
        json!({"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]}),
        json!({"role": "assistant", "content": null, "reasoning_content": "A tool knows.", "tool_calls": [call]}),
        json!({"role": "tool", "name": "weather", "content": "4 °C"}),
        json!({"role": "assistant", "content": "<think>\nCold.\n</think>\n\nFour degrees."}),
        json!({"role": "user", "content": "Thanks."}),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let Ok(source) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let messages = parts.next().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_else(conversation);
    let template = match ChatTemplate::new(source) {
        Ok(template) => template,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    let variables = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let template = template.with_variables(variables.as_object().cloned().unwrap_or_default());
    let tools = [json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})];
    for (tools, add_generation_prompt) in [(None, true), (Some(tools.as_slice()), false)] {
        let request = ChatRequest { messages: &messages, tools, add_generation_prompt, ..Default::default() };
        if let Err(error) = template.render(&request) {
            let _ = error.to_string();
        }
    }
});
