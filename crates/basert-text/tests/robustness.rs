//! What is wrong with a vocabulary is said with the name of the field, and nothing panics.

use basert_text::{EncodeOptions, GgufVocabulary, HuggingFaceFiles, Tokenizer, TokenizerError};
use serde_json::{Value, json};

const TEXT: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const WHOLE: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// A vocabulary that is right, to be made wrong in one place.
struct Parts {
    model: &'static str,
    pre: Option<&'static str>,
    tokens: Vec<&'static [u8]>,
    types: Option<Vec<i32>>,
    scores: Option<Vec<f32>>,
    merges: Option<Vec<&'static [u8]>>,
    charsmap: Option<Vec<u8>>,
    bos: Option<u32>,
    add_bos: Option<bool>,
    unknown: Option<u32>,
}

fn byte_pair() -> Parts {
    Parts {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: vec![b"a", b"b", b"ab", "Ġ".as_bytes(), "Ġa".as_bytes(), b"<|end|>"],
        types: Some(vec![1, 1, 1, 1, 1, 3]),
        scores: None,
        merges: Some(vec![b"a b", "Ġ a".as_bytes()]),
        charsmap: None,
        bos: Some(5),
        add_bos: None,
        unknown: None,
    }
}

fn sentence_piece() -> Parts {
    Parts {
        model: "llama",
        pre: None,
        tokens: vec![b"<unk>", b"<s>", b"</s>", "▁".as_bytes(), b"a", b"b", b"ab", "▁a".as_bytes(), b"<0x0A>"],
        types: Some(vec![2, 3, 3, 1, 1, 1, 1, 1, 6]),
        scores: Some(vec![0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0, 0.0]),
        merges: None,
        bos: Some(1),
        ..byte_pair()
    }
}

fn unigram() -> Parts {
    Parts { model: "t5", bos: None, ..sentence_piece() }
}

impl Parts {
    fn build(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_gguf(GgufVocabulary {
            pre: self.pre,
            token_types: self.types.as_ref().map(|types| Box::new(types.iter().copied()) as _),
            scores: self.scores.as_ref().map(|scores| Box::new(scores.iter().copied()) as _),
            merges: self.merges.as_ref().map(|merges| Box::new(merges.iter().copied()) as _),
            precompiled_charsmap: self.charsmap.as_deref(),
            bos: self.bos,
            add_bos: self.add_bos,
            unknown: self.unknown,
            ..GgufVocabulary::new(self.model, self.tokens.iter().copied())
        })
    }

    #[track_caller]
    fn fails_with(&self, expected: &str) {
        let error = self.build().err().expect("an error").to_string();
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }
}

#[test]
fn right_vocabularies_work() {
    let encode = |parts: &Parts, text: &str, options| parts.build().unwrap().encode(text, options).unwrap();
    assert_eq!(encode(&byte_pair(), "ab ab a<|end|>", WHOLE), [2, 3, 2, 4, 5]);
    assert_eq!(encode(&sentence_piece(), "ab a\n", WHOLE), [1, 3, 6, 7, 8]);
    assert_eq!(encode(&sentence_piece(), "xy", TEXT), [3, 0]);
    assert_eq!(encode(&unigram(), "ab a", TEXT), [3, 6, 7]);
    assert_eq!(sentence_piece().build().unwrap().decode(&[1, 3, 6, 7, 8], true), "ab a\n");
    assert_eq!(sentence_piece().build().unwrap().decode(&[1, 7, 5], false), "<s> ab");
}

#[test]
fn wrong_metadata() {
    let fails = |parts: Parts, expected: &str| parts.fails_with(expected);
    fails(
        Parts { model: "none", ..byte_pair() },
        r#"tokenizer.ggml.model: "none"; expected gpt2, gemma4, whitespace, llama, t5, bert, rwkv or plamo2"#,
    );
    fails(Parts { pre: Some("tofu"), ..byte_pair() }, r#"tokenizer.ggml.pre: "tofu"; expected one of gpt-2, "#);
    fails(Parts { tokens: vec![], types: None, ..byte_pair() }, "tokenizer.ggml.tokens: no tokens; expected");
    fails(
        Parts { types: Some(vec![1, 1]), ..byte_pair() },
        "tokenizer.ggml.token_type: 2 numbers; expected one for each",
    );
    fails(
        Parts { tokens: vec![&[b'a'; 5000]], types: None, ..byte_pair() },
        "token 0: 5000 bytes long; expected at most 4096",
    );
    fails(Parts { merges: None, ..byte_pair() }, "tokenizer.ggml.merges: absent");
    fails(Parts { scores: Some(vec![0.0]), ..sentence_piece() }, "tokenizer.ggml.scores: 1; expected 9 numbers");
    fails(
        Parts { scores: Some(vec![f32::NAN; 9]), ..unigram() },
        "tokenizer.ggml.scores: NaN for token 0; expected finite",
    );
    fails(Parts { charsmap: Some(vec![1, 2]), ..unigram() }, "tokenizer.ggml.precompiled_charsmap: 2 bytes; expected");
    fails(
        Parts { charsmap: Some(vec![255; 40]), ..unigram() },
        "precompiled_charsmap: an array of 4294967295 bytes in 40",
    );
    fails(Parts { charsmap: Some(vec![4, 0, 0, 0, 1, 2, 3, 4, 255]), ..unigram() }, "replacements that are not so");
}

/// What converters have written and other programs open is opened, and means what it can mean.
#[test]
fn odd_metadata_is_opened() {
    let encode = |parts: Parts, text: &str, options| parts.build().unwrap().encode(text, options).unwrap();
    let usual = [2, 3, 2, 4, 5];
    let mut more_types = byte_pair();
    more_types.types.as_mut().unwrap().push(1);
    let odd = [
        ("more types than tokens", more_types),
        ("no types that are defined", Parts { types: Some(vec![0, 9, -1, 1, 1, 3]), ..byte_pair() }),
        ("bytes that are not written as bytes", Parts { types: Some(vec![6, 6, 1, 1, 1, 3]), ..byte_pair() }),
        ("ids of no token", Parts { bos: Some(6), unknown: Some(u32::MAX), ..byte_pair() }),
        ("a beginning that is to be added and is none", Parts { bos: None, add_bos: Some(true), ..byte_pair() }),
        (
            "merges of no tokens",
            Parts { merges: Some(vec![b"a c", b"a b", b"ab", b"b a", b"a \xff", "Ġ a".as_bytes()]), ..byte_pair() },
        ),
    ];
    for (what, parts) in odd {
        assert_eq!(encode(parts, "ab ab a<|end|>", WHOLE), usual, "{what}");
    }
    let mut twice = byte_pair();
    twice.tokens[3] = b"a";
    assert_eq!(encode(twice, "ab a", TEXT), [2, 0], "the first of two tokens that are the same");
    let raw: Parts =
        Parts { tokens: vec![b"a\xff", "é".as_bytes(), "Ã©".as_bytes(), b"b"], types: None, ..byte_pair() };
    let raw = Parts { merges: Some(vec!["Ã ©".as_bytes()]), ..raw }.build().unwrap();
    assert_eq!(raw.token_bytes(0), Some(&b"a\xff"[..]));
    assert_eq!(raw.encode("b", TEXT).unwrap(), [3]);
    // SentencePiece's scores fall along the vocabulary; its usual ids stand in for those that are not given.
    let bare = Parts { scores: None, bos: None, unknown: None, ..sentence_piece() };
    assert_eq!(encode(bare, "ab a\n", WHOLE), [1, 3, 6, 7, 8]);
}

#[test]
fn longest_tokens_are_taken_first() {
    let tokens: Vec<&[u8]> = vec![b"<s>", b"a", b"b", b"ab", b"\\n", b"\\xc3", b"\\xa9", b"\\\\", b"abcd", b"c"];
    let types = Some([3, 1, 1, 1, 1, 1, 1, 1, 1, 1].to_vec());
    let parts = Parts { model: "rwkv", tokens, types, bos: None, ..byte_pair() };
    let tokenizer = parts.build().unwrap();
    let text = "abc<s>\n\u{e9}\\";
    assert!(tokenizer.encode(text, TEXT).is_err(), "there is no token for <");
    let ids = tokenizer.encode(text, WHOLE).unwrap();
    assert_eq!(ids, [3, 9, 0, 4, 5, 6, 7]);
    assert_eq!(tokenizer.decode(&ids, false), text);
    let error = tokenizer.encode("z", TEXT).unwrap_err().to_string();
    assert!(error.contains("no token for the byte 0x7a and no unknown token"), "{error}");
}

#[test]
fn plamo_takes_the_best_cut() {
    let tokens: Vec<&[u8]> = vec![b"<unk>", b"<s>", b"a", b"b", b"ab", b"bc", b"c", b" c", b"<0xC3>", b"<0xA9>"];
    let types = Some([2, 3, 1, 1, 1, 1, 1, 1, 6, 6].to_vec());
    let scores = Some([0.0, 0.0, -1.0, -1.0, -3.0, -1.5, -2.0, -1.0, 0.0, 0.0].to_vec());
    let parts = Parts { model: "plamo2", tokens, types, scores, ..byte_pair() };
    let encode = |text: &str| parts.build().unwrap().encode(text, TEXT).unwrap();
    assert_eq!(encode("abc"), [2, 5]);
    assert_eq!(encode("ab c"), [2, 3, 7]);
    assert_eq!(encode("\u{FEFF}a\u{e9}"), [2, 8, 9]);
    assert_eq!(encode("zb"), [0, 3]);
    assert_eq!(parts.build().unwrap().encode("a", WHOLE).unwrap()[0], 5, "a beginning is added");
    Parts { scores: None, ..parts }.fails_with("tokenizer.ggml.scores: absent");
}

#[test]
fn white_space_may_only_separate() {
    let tokens: Vec<&[u8]> = vec![b"a", b"b", b"ab", "漢".as_bytes()];
    let parts = Parts {
        model: "gpt2",
        pre: Some("whitespace"),
        tokens,
        types: None,
        merges: Some(vec![b"a b"]),
        bos: None,
        ..byte_pair()
    };
    assert_eq!(parts.build().unwrap().encode(" ab  a\n漢ab ", TEXT).unwrap(), [2, 0, 3, 2]);
}

/// Text never becomes what ends an answer, whatever a file says of the token.
#[test]
fn plain_text_becomes_no_control_token() {
    let tokens: Vec<&[u8]> =
        vec![b"<", b"|", b"end", b"e", b"n", b"d", b">", b"<|", b"|>", b"<|end", b"<|end|>", b"en"];
    let merges: Vec<&[u8]> = vec![b"< |", b"| >", b"e n", b"en d", b"<| end", b"<|end |>"];
    for kind in [1, 3, 4] {
        let types = (0..12).map(|id| if id == 10 { kind } else { 1 }).collect();
        let parts = Parts {
            pre: Some("superbpe"),
            tokens: tokens.clone(),
            merges: Some(merges.clone()),
            types: Some(types),
            bos: None,
            ..byte_pair()
        };
        let tokenizer = parts.build().unwrap();
        assert_eq!(tokenizer.encode("<|end|>", TEXT).unwrap(), [9, 8], "type {kind}");
        assert_eq!(tokenizer.encode("<|end|>", WHOLE).unwrap(), [10], "type {kind}");
        assert!(tokenizer.end_of_generation().contains(&10));
    }
}

/// A control token that is also in the vocabulary of a `tokenizer.json`'s model, where text would become it.
#[test]
fn text_becomes_no_control_token_of_a_json() {
    let special = |id: u32| {
        json!([{"id": id, "content": "</s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false}])
    };
    let mut pairs = small_json();
    pairs["pre_tokenizer"] = json!(null);
    pairs["decoder"] = json!({"type": "Fuse"});
    pairs["added_tokens"] = special(6);
    pairs["model"]["vocab"] = json!({"<": 0, "/": 1, "s": 2, ">": 3, "</": 4, "s>": 5, "</s>": 6});
    pairs["model"]["merges"] = json!(["< /", "s >", "</ s>"]);
    let mut pieces = pairs.clone();
    pieces["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["<", -2.0], ["/", -2.0], ["s", -2.0], [">", -2.0], ["s>", -3.0], ["</s>", 0.0]]});
    for (json, ids) in [(pairs, [0, 1, 5]), (pieces, [1, 2, 5])] {
        let tokenizer = from_value(&json).unwrap();
        assert_eq!(tokenizer.encode("</s>", WHOLE).unwrap(), [6]);
        assert_eq!(tokenizer.encode("</s>", TEXT).unwrap(), ids);
        let many = tokenizer.encode(&"</s>".repeat(1000), TEXT).unwrap();
        assert!(many.len() == 3000 && !many.contains(&6));
    }
}

#[test]
fn text_that_cannot_be_spelled_is_an_error() {
    let mut parts = sentence_piece();
    parts.types.as_mut().unwrap()[0] = 3;
    let error = parts.build().unwrap().encode("xy", TEXT).unwrap_err().to_string();
    assert_eq!(error, "the text cannot be tokenized: the vocabulary has no token for \"x\" and no unknown token");
}

#[test]
fn charsmaps_that_lead_nowhere_are_harmless() {
    // Every unit points somewhere else; whatever it is, the text comes out as some text.
    for seed in 0..200u32 {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let mut charsmap = vec![0, 1, 0, 0];
        charsmap.extend((0..256).map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        }));
        charsmap.extend(b"x\0yz\0");
        let parts = Parts { charsmap: Some(charsmap), unknown: Some(0), ..unigram() };
        parts.build().unwrap().encode("ab é漢😀 \u{0}\u{1}", TEXT).unwrap();
    }
}

#[test]
fn ids_outside_the_vocabulary() {
    let tokenizer = byte_pair().build().unwrap();
    assert_eq!(tokenizer.token_bytes(6), None);
    assert_eq!(tokenizer.decode(&[0, 99, u32::MAX, 1], false), "ab");
    assert!(!tokenizer.is_special(u32::MAX));
}

fn small_json() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<end>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    })
}

fn from_value(value: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json(value.to_string().as_bytes())
}

#[test]
fn wrong_json() {
    assert_eq!(from_value(&small_json()).unwrap().encode("abb<end>", WHOLE).unwrap(), [2, 1, 3]);
    assert_eq!(from_value(&small_json()).unwrap().encode("ab<end>", TEXT).unwrap(), [2]);

    let fails = |change: fn(&mut Value), expected: &str| {
        let mut json = small_json();
        change(&mut json);
        let error = from_value(&json).err().expect("an error").to_string();
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    };
    fails(|json| json["model"]["vocab"] = json!({}), "tokenizer.json: ");
    fails(|json| json["model"]["merges"] = json!(["a c"]), "tokenizer.json: ");
    fails(
        |json| json["model"]["vocab"]["x"] = json!(4_000_000_000u32),
        "an id of 4000000000 among 5 tokens; expected ids",
    );
    fails(|json| json["decoder"] = json!(null), "tokenizer.json: decoder: null; expected ByteLevel");
    fails(
        |json| json["decoder"] = json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true}),
        "decoder: {",
    );
    fails(|json| *json = json!([]), "tokenizer.json: ");
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"null", b"{\"model\": {}}"] {
        assert!(Tokenizer::from_json(bytes).err().expect("an error").to_string().contains("tokenizer.json: "));
    }
    let json = small_json().to_string();
    let config = Tokenizer::from_hf_files(HuggingFaceFiles {
        tokenizer: json.as_bytes(),
        config: Some(b"[1"),
        generation_config: None,
    });
    assert!(config.err().expect("an error").to_string().starts_with("tokenizer_config.json: "));
    assert!(
        Tokenizer::from_hf_dir("/nowhere")
            .err()
            .expect("an error")
            .to_string()
            .starts_with("/nowhere/tokenizer.json: ")
    );
}

#[test]
fn truncated_json_is_an_error() {
    let json = small_json().to_string();
    for len in 0..json.len() {
        assert!(Tokenizer::from_json(&json.as_bytes()[..len]).is_err());
    }
}

#[test]
fn json_that_asks_for_too_much_is_an_error() {
    let fails = |key: &str, value: Value, expected: &str| {
        let mut json = small_json();
        json[key] = value;
        let error = from_value(&json).err().expect("an error").to_string();
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    };
    // A length of 2 GB in four bytes.
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "////fw=="});
    fails("normalizer", charsmap.clone(), "precompiled_charsmap: an array of 2147483647 bytes in 8 characters");
    fails("normalizer", json!({"type": "Sequence", "normalizers": [charsmap]}), "precompiled_charsmap: an array of");

    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let sequence = |step: Value, count: usize| json!({"type": "Sequence", "normalizers": vec![step; count]});
    let double = replace(json!({"String": "a"}), "aa");
    fails("normalizer", sequence(double.clone(), 20), "normalizer: steps that may make a text 1048576 times as long");
    fails("normalizer", sequence(replace(json!({"Regex": "a|b"}), "aaaaaaaa"), 3), "512 times as long");
    fails("normalizer", sequence(double.clone(), 99), &format!("{} times as long", usize::MAX));
    fails("normalizer", sequence(json!({"type": "ByteLevel"}), 20), "1048576 times as long");
    let bytes = small_json()["pre_tokenizer"].clone();
    fails("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![bytes; 20]}), "pre_tokenizer: steps");

    let mut json = small_json();
    json["normalizer"] = sequence(double, 6);
    assert_eq!(from_value(&json).unwrap().encode("a", TEXT).unwrap(), [0; 64]);
    json["normalizer"] = sequence(replace(json!({"String": " "}), "▁"), 99);
    assert!(from_value(&json).is_ok());

    let word_piece = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 10u64.pow(18), "vocab": {"[UNK]": 0, "a": 1},
    });
    fails("model", word_piece, "model.max_input_chars_per_word: 1000000000000000000; expected up to 1000");
}
