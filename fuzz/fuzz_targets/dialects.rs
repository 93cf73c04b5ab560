//! What a model writes, taken apart by each dialect. The input is the text; a zero byte is where it is cut.
#![no_main]

use basert_text::{Dialect, Event, ParserOptions};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// The events of a text that comes in these pieces, with what grew piece by piece joined.
fn events(dialect: &str, prompt: &str, pieces: &[&str]) -> Vec<Event> {
    let dialect = Dialect::named(dialect).expect("it is built in");
    let stop = ["END".to_owned()];
    let tool = |name: &str| {
        let parameters = json!({"type": "object", "properties": {"n": {"type": "integer"}, "zone": {"type": "string"}}});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let tools = ["add", "get_weather"].map(tool);
    let mut parser = dialect.parser(ParserOptions { prompt, tools: &tools, stop: &stop, seed: 1 });
    let mut all: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    all.extend(parser.finish());
    all.into_iter().fold(Vec::new(), |mut joined: Vec<Event>, event| {
        match (joined.last_mut(), event) {
            (Some(Event::Content(text)), Event::Content(more))
            | (Some(Event::Reasoning(text)), Event::Reasoning(more)) => {
                text.push_str(&more);
            }
            (Some(Event::Arguments { delta, .. }), Event::Arguments { delta: more, .. }) => delta.push_str(&more),
            (_, event) => joined.push(event),
        }
        joined
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let pieces: Vec<&str> = text.split('\0').collect();
    let whole = pieces.concat();
    for dialect in Dialect::names() {
        for prompt in ["", "<|start|>assistant\n<think>\n"] {
            let expected = events(dialect, prompt, &[&whole]);
            assert_eq!(events(dialect, prompt, &pieces), expected, "{dialect}: cut elsewhere");
            let mut arguments = String::new();
            for event in expected {
                match event {
                    Event::CallBegan { .. } => arguments.clear(),
                    Event::Arguments { delta, .. } => arguments.push_str(&delta),
                    Event::CallEnded { .. } => {
                        let read = serde_json::from_str::<serde_json::Value>(&arguments);
                        assert!(read.is_ok_and(|value| value.is_object()), "{dialect}: {arguments}");
                    }
                    _ => {}
                }
            }
        }
    }
});
