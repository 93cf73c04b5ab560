//! Ids and decoded texts are those of the reference libraries, on every string of the corpus.
//!
//! The expected outputs are written by tools/tokenizer-goldens.py, which describes their form.

use basert_text::{EncodeOptions, GgufVocabulary, Tokenizer};

use crate::common::{Converted, corpus, data, from_gguf_file, from_json};

pub fn fnv1a(bytes: &[u8]) -> String {
    let hash =
        bytes.iter().fold(0xcbf29ce484222325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3));
    format!("{hash:016x}")
}

fn compact(ids: &[u32]) -> String {
    let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    if ids.len() <= 6 { text } else { format!("{}:{}", ids.len(), fnv1a(text.as_bytes())) }
}

/// Which of the fields of the expected output are to be compared for a string.
type Fields = fn(&str) -> std::ops::Range<usize>;

const ALL: Fields = |_| 0..4;

#[track_caller]
fn check(tokenizer: &Tokenizer, expected: &str, fields: Fields) {
    let (corpus, expected) = (corpus(), data(&format!("ids/{expected}.txt")));
    let expected: Vec<&str> = expected.trim_end_matches('\n').split('\n').collect();
    assert!(corpus.len() > 2000 && corpus.len() == expected.len(), "{} and {}", corpus.len(), expected.len());
    let mut wrong = Vec::new();
    for (text, expected) in corpus.iter().zip(expected) {
        let encode =
            |parse_special| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special }).unwrap();
        let (ids, plain) = (encode(true), encode(false));
        let (whole, visible) = (tokenizer.decode(&ids, false), tokenizer.decode(&ids, true));
        let unless = |same: bool, text: String| if same { "=".to_string() } else { text };
        let found = [
            compact(&ids),
            unless(plain == ids, compact(&plain)),
            unless(whole == *text, fnv1a(whole.as_bytes())),
            unless(visible == whole, fnv1a(visible.as_bytes())),
        ];
        let expected: Vec<&str> = expected.split('\t').collect();
        let fields = fields(text);
        if found[fields.clone()] != expected[fields] {
            wrong.push(format!("{text:?}\n    found {found:?}\n expected {expected:?}\n    ids {ids:?}"));
        }
    }
    let some = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} strings differ:\n{some}", wrong.len(), corpus.len());
}

/// One test for each `tokenizer.json`, which is read by the library that defines it.
macro_rules! published {
    ($($family:ident)*) => {
        mod tokenizer_json {
            $(#[test] fn $family() { super::check(&super::from_json(stringify!($family)), stringify!($family), super::ALL); })*
        }
    };
}
published!(deepseek_v3 gemma3 gpt4o gptoss llama3 llama3_1 qwen3);

/// The same vocabularies in the terms of GGUF, for our own engine and each of its pre-tokenizers.
macro_rules! converted {
    ($($family:ident as $pre:literal)*) => {
        mod own_engine {
            $(#[test] fn $family() {
                super::check(&super::Converted::new(stringify!($family)).tokenizer($pre), stringify!($family), super::ALL);
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
    check(&from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf"), "smollm2", ALL);
}

#[test]
fn gemma3_from_gguf() {
    // The file calls some tokens text that tokenizer.json calls special, and the other way round; their ids are the
    // same. And it spells its tokens of several spaces with spaces, where tokenizer.json has `▁`.
    const FIELDS: Fields = |text| match text {
        text if ["<start_of_image>", "<unused", "<mask>"].iter().any(|name| text.contains(name)) => 0..1,
        text if text.contains('▁') && text.matches([' ', '▁']).count() > 1 => 0..0,
        _ => 0..4,
    };
    check(&from_gguf_file("gemma-3-270m-q4_k_m.gguf"), "gemma3", FIELDS);
}

/// The expected ids of unigram models take special tokens for text, the names of bytes for those bytes, and `▁` for
/// nothing at the ends.
const WITHOUT_SPECIAL: Fields =
    |text| if ["<s>", "</s>", "<unk>", "<0x", "▁"].iter().any(|name| text.contains(name)) { 0..0 } else { 0..1 };

/// A small unigram model in the terms of GGUF.
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
    check(&unigram("unigram"), "unigram", WITHOUT_SPECIAL);
}

#[test]
fn unigram_with_byte_fallback() {
    check(&unigram("unigram-bytes"), "unigram-bytes", WITHOUT_SPECIAL);
}

#[test]
fn beginnings_of_texts() {
    let encode =
        |tokenizer: &Tokenizer| tokenizer.encode("Hi", EncodeOptions { add_special: true, parse_special: true });
    let ids = |tokenizer: Tokenizer| encode(&tokenizer).unwrap();
    assert_eq!(ids(from_json("gemma3")), [2, 10979]);
    assert_eq!(ids(from_json("llama3_1")), [128000, 13347]);
    assert_eq!(ids(from_json("llama3")), [13347]);
    assert_eq!(ids(from_json("qwen3")), [13048]);
    assert_eq!(ids(from_json("deepseek_v3")), [0, 23166], "tokenizer_config.json says add_bos_token");
    assert_eq!(ids(from_gguf_file("gemma-3-270m-q4_k_m.gguf")), [2, 10979]);
    assert_eq!(ids(from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf")), [26843]);
}

#[test]
fn ends_of_answers() {
    let names = |tokenizer: &Tokenizer| -> Vec<String> {
        let name = |&id: &u32| String::from_utf8(tokenizer.token_bytes(id).unwrap().to_vec()).unwrap();
        tokenizer.end_of_generation().iter().map(name).collect()
    };
    assert_eq!(names(&from_json("qwen3")), ["<|endoftext|>", "<|im_end|>"]);
    assert_eq!(names(&from_json("llama3_1")), ["<|end_of_text|>", "<|eot_id|>"]);
    assert_eq!(names(&from_json("gptoss")), ["<|endoftext|>", "<|return|>", "<|call|>"]);
    assert_eq!(names(&from_json("gemma3")), ["<eos>", "<end_of_turn>"]);
    assert_eq!(names(&from_gguf_file("gemma-3-270m-q4_k_m.gguf")), ["<eos>", "<end_of_turn>"]);
    assert_eq!(names(&from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf")), ["<|endoftext|>", "<|im_end|>"]);
}

#[test]
fn special_tokens_have_names() {
    let tokenizer = from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf");
    let variables = serde_json::Value::Object(tokenizer.template_variables()).to_string();
    let expected =
        r#"{"bos_token":"<|im_start|>","eos_token":"<|im_end|>","unk_token":"<|endoftext|>","pad_token":"<|im_end|>"}"#;
    assert_eq!(variables, expected);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.special_id("<|im_end|>")), (Some(1), Some(2), Some(2)));
    assert_eq!((tokenizer.special_id("the"), tokenizer.vocab_size()), (None, 49152));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(100));
    let variables = from_json("gemma3").template_variables();
    assert_eq!(
        (variables["eos_token"].as_str(), variables["boi_token"].as_str()),
        (Some("<end_of_turn>"), Some("<start_of_image>"))
    );
}
