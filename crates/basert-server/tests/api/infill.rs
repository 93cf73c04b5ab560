//! Filling in the middle of a text.

use basert::Loaded;
use basert_text::{GgufVocabulary, Tokenizer};
use serde_json::{Value, json};

use crate::openai::with;
use crate::server::{Running, config, tiny};

const COMPLETE: &str = "/v1/completions";

/// The tiny model with a vocabulary of bytes and of tokens for filling in, from 256 on.
fn filler() -> Loaded {
    let prints = |byte: &u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    let bytes = (0..=u8::MAX).map(|byte| match prints(&byte) {
        true => char::from(byte).to_string(),
        false => char::from_u32(others.next().unwrap()).unwrap().to_string(),
    });
    let control = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"].map(str::to_owned);
    let tokens: Vec<String> = bytes.chain(control).collect();
    // They count as text, as in many published vocabularies.
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 4 }).collect();
    let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
        pre: Some("gpt-2"),
        token_types: Some(Box::new(types.into_iter())),
        merges: Some(Box::new(std::iter::empty())),
        eos: Some(256),
        ..GgufVocabulary::new("gpt2", tokens.iter().map(String::as_bytes))
    });
    tiny().with_tokenizer(tokenizer.unwrap())
}

/// The tokens of a prompt in which this is before and behind the gap.
fn tokens(prefix: &str, suffix: &str) -> Vec<u32> {
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    [vec![257], bytes(prefix), vec![258], bytes(suffix), vec![259]].concat()
}

#[test]
fn a_gap_is_filled_between_texts_that_stay_text() {
    let server = Running::with(config(), "filler", filler);
    // Tokens that end this answer would not end that to the same tokens as a plain prompt.
    let never = json!({ "256": -100, "257": -100, "258": -100, "259": -100 });
    let common = json!({ "max_tokens": 12, "temperature": 0, "logit_bias": never });
    for (prefix, suffix) in [("fn a() {", "}\n"), ("<|fim_middle|>", "<|fim_prefix|>x<|endoftext|"), ("x", "<")] {
        let prompt = tokens(prefix, suffix);
        let expected = server.ask(COMPLETE, &with(common.clone(), json!({ "prompt": prompt })));
        assert_eq!(expected["usage"]["prompt_tokens"], prompt.len());
        let asked = with(common.clone(), json!({ "prompt": prefix, "suffix": suffix }));
        let found = server.ask(COMPLETE, &asked);
        assert_eq!((&found["choices"], &found["usage"]["prompt_tokens"]), (&expected["choices"], &json!(prompt.len())));
        let many = with(common.clone(), json!({ "prompt": ["y", prefix], "suffix": suffix }));
        assert_eq!(server.ask(COMPLETE, &many)["choices"][1]["text"], expected["choices"][0]["text"]);
        // As llama.cpp's editors ask for it.
        let (start, end) = prefix.split_at(1);
        let asked = json!({
            "input_prefix": start, "prompt": end, "input_suffix": suffix, "input_extra": [], "n_predict": 12,
            "samplers": ["top_k", "infill"], "n_indent": 4, "t_max_predict_ms": 500, "cache_prompt": true,
        });
        let asked = with(common.clone(), asked);
        let response = server.post("/infill", &asked).send().unwrap();
        assert!(response.headers()["warning"].to_str().unwrap().contains("n_indent, samplers, t_max_predict_ms"));
        let whole: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
        assert_eq!((&whole["content"], &whole["stop"]), (&expected["choices"][0]["text"], &json!(true)));
        assert_eq!(whole["tokens_evaluated"], prompt.len());
        let events = server.stream("/v1/infill", &with(asked, json!({ "stream": true })));
        let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        let text: String = events.iter().map(|event| event["content"].as_str().unwrap()).collect();
        assert_eq!((json!(text), &events.last().unwrap()["stop"]), (whole["content"].clone(), &json!(true)));
    }
    let bias = json!({ "prompt": "x", "suffix": "y", "logit_bias": { "257": 100 }, "max_tokens": 5 });
    let ended = &server.ask(COMPLETE, &bias)["choices"][0];
    assert_eq!((&ended["finish_reason"], &ended["text"]), (&json!("stop"), &json!("")), "another gap ends the answer");
    for (more, param) in [
        (json!({ "prompt": [1, 2] }), "suffix"),
        (json!({ "prompt": "x", "echo": true }), "echo"),
        (json!({ "prompt": "x".repeat(2000) }), "prompt"),
    ] {
        let (status, answer) = server.refused(COMPLETE, &with(json!({ "suffix": "y" }), more));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}

#[test]
fn a_model_without_tokens_for_it_says_so() {
    let server = Running::start("no filler");
    for (path, body, param) in [
        (COMPLETE, json!({ "prompt": "x", "suffix": "y" }), "suffix"),
        ("/infill", json!({ "input_prefix": "x", "input_suffix": "y" }), "input_suffix"),
    ] {
        let (status, answer) = server.refused(path, &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("<|fim_prefix|>"), "{answer}");
    }
    // An empty one is none.
    server.ask(COMPLETE, &json!({ "prompt": "x", "suffix": "", "max_tokens": 1 }));
}
