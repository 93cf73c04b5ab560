//! Ids and decoded texts are those of the reference libraries, on every string of the corpus.
//!
//! The expected outputs are written by tools/tokenizer-goldens.py, which describes their form.

mod common;

use basert_text::{EncodeOptions, GgufVocabulary, Tokenizer};
use common::{Converted, corpus, data, from_gguf_file, from_json};

fn fnv1a(bytes: &[u8]) -> String {
    let hash =
        bytes.iter().fold(0xcbf29ce484222325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3));
    format!("{hash:016x}")
}

fn compact(ids: &[u32]) -> String {
    let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    if ids.len() <= 6 { text } else { format!("{}:{}", ids.len(), fnv1a(text.as_bytes())) }
}

/// What the tokenizer makes of a string, in as many of the fields as `expected` has.
fn line(tokenizer: &Tokenizer, text: &str, fields: usize) -> (Vec<u32>, String) {
    let encode = |parse_special| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special }).unwrap();
    let ids = encode(true);
    let unless = |same: bool, text: String| if same { "=".to_string() } else { text };
    let plain = encode(false);
    let whole = tokenizer.decode(&ids, false);
    let visible = tokenizer.decode(&ids, true);
    let all = [
        compact(&ids),
        unless(plain == ids, compact(&plain)),
        unless(whole == text, fnv1a(whole.as_bytes())),
        unless(visible == whole, fnv1a(visible.as_bytes())),
    ];
    (ids, all[..fields].join("\t"))
}

#[track_caller]
fn check(tokenizer: &Tokenizer, expected: &str) {
    let (corpus, expected) = (corpus(), data(&format!("ids/{expected}.txt")));
    let expected: Vec<&str> = expected.trim_end_matches('\n').split('\n').collect();
    assert!(
        corpus.len() > 2000 && corpus.len() == expected.len(),
        "the corpus and the expected outputs differ in length"
    );
    let mut wrong = Vec::new();
    for (text, expected) in corpus.iter().zip(expected) {
        let (ids, found) = line(tokenizer, text, expected.split('\t').count());
        if found != expected {
            wrong.push(format!("{text:?}\n    found {found}\n expected {expected}\n    ids {ids:?}"));
        }
    }
    let some = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} strings differ:\n{some}", wrong.len(), corpus.len());
}

/// One test for each `tokenizer.json`, which is read by the library that defines it.
macro_rules! published {
    ($($family:ident)*) => {
        mod tokenizer_json {
            $(#[test] fn $family() { super::check(&super::from_json(stringify!($family)), stringify!($family)); })*
        }
    };
}
published!(deepseek_v3 gemma3 gpt4o gptoss llama3 llama3_1 qwen3);

/// The same vocabularies in the terms of GGUF, for our own engine and each of its pre-tokenizers.
macro_rules! converted {
    ($($family:ident as $pre:literal)*) => {
        mod own_engine {
            $(#[test] fn $family() {
                super::check(&super::Converted::new(stringify!($family)).tokenizer($pre), stringify!($family));
            })*
        }
    };
}
converted!(
    deepseek_v3 as "deepseek-v3"
    gpt4o as "gpt-4o"
    gptoss as "gpt-4o"
    llama3 as "llama-bpe"
    llama3_1 as "llama-bpe"
    qwen3 as "qwen2"
);

#[test]
fn smollm2_from_gguf() {
    check(&from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf"), "smollm2");
}

#[test]
fn gemma3_from_gguf() {
    check(&from_gguf_file("gemma-3-270m-q4_k_m.gguf"), "gemma3");
}

/// A small unigram model, with the ids of SentencePiece.
fn unigram(name: &str) -> Tokenizer {
    let json: serde_json::Value = serde_json::from_str(&data(&format!("{name}.json"))).unwrap();
    let list = |key: &str| json[key].as_array().unwrap().iter();
    let charsmap = json["precompiled_charsmap"].as_str().unwrap().as_bytes().chunks(2);
    let charsmap: Vec<u8> =
        charsmap.map(|hex| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap()).collect();
    Tokenizer::from_gguf(GgufVocabulary {
        token_types: Some(Box::new(list("token_type").map(|number| number.as_i64().unwrap() as i32))),
        scores: Some(Box::new(list("scores").map(|score| score.as_f64().unwrap() as f32))),
        precompiled_charsmap: Some(&charsmap),
        remove_extra_whitespaces: json["remove_extra_whitespaces"].as_bool(),
        add_space_prefix: json["add_space_prefix"].as_bool(),
        treat_whitespace_as_suffix: json["treat_whitespace_as_suffix"].as_bool(),
        unknown: json["unknown_token_id"].as_u64().map(|id| id as u32),
        ..GgufVocabulary::new("t5", list("tokens").map(|token| token.as_str().unwrap().as_bytes()))
    })
    .unwrap()
}

#[test]
fn unigram_with_unknown_token() {
    check(&unigram("unigram"), "unigram");
}

#[test]
fn unigram_with_byte_fallback() {
    check(&unigram("unigram-bytes"), "unigram-bytes");
}
