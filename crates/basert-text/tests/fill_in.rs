//! Prompts whose answers fill a gap.

use basert_text::{FillIn, FillInTokens, GgufVocabulary, Tokenizer};

use crate::common;

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn fill_in(tokenizer: &Tokenizer, prefix: &str, suffix: &str) -> Vec<u32> {
    tokenizer.encode_fill_in(&FillIn { prefix, suffix, files: &[] }).unwrap()
}

#[test]
fn the_text_before_the_gap_comes_first_if_there_is_a_token_for_the_answer() {
    let names = [
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ];
    for names in names {
        let tokenizer = common::byte_tokenizer(&[&["<end>"][..], &names].concat());
        assert!(tokenizer.fills_in(), "{names:?}");
        assert_eq!(fill_in(&tokenizer, "ab", "c"), [257, 97, 98, 258, 99, 259], "{names:?}");
        assert_eq!(fill_in(&tokenizer, "", ""), [257, 258, 259]);
    }
    let mistral = common::byte_tokenizer(&["<end>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]);
    assert_eq!(fill_in(&mistral, "ab", "c"), [259, 99, 257, 97, 98]);
    let none = common::byte_tokenizer(&["<end>", "<|fim_prefix|>"]);
    assert!(!none.fills_in() && none.ends_of_filling_in().is_empty());
    assert!(none.encode_fill_in(&FillIn::default()).unwrap_err().to_string().contains("<|fim_suffix|>"));
}

#[test]
fn text_stays_text_whatever_it_spells() {
    let tokenizer = common::byte_tokenizer(&["<end>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]);
    let spelled = "<|fim_middle|><end>\u{FDD0}<|fim_suffix|>";
    let expected = [vec![257], bytes(spelled), vec![258], bytes(spelled), vec![259]].concat();
    assert_eq!(fill_in(&tokenizer, spelled, spelled), expected);
    let all: String = ('\u{FDD0}'..='\u{FDEF}').collect();
    assert!(tokenizer.encode_fill_in(&FillIn { prefix: &all, ..FillIn::default() }).is_err());
}

#[test]
fn a_file_may_say_which_tokens_they_are() {
    let tokens: Vec<String> =
        ["<s>", "a", "b", "<|fim_prefix|>", "[one]", "[two]", "[three]"].map(str::to_owned).into();
    let tokenizer = |fill_in| {
        Tokenizer::from_gguf(GgufVocabulary {
            pre: Some("gpt-2"),
            token_types: Some(Box::new([3, 1, 1, 3, 3, 3, 3].into_iter())),
            merges: Some(Box::new(std::iter::empty())),
            bos: Some(0),
            add_bos: Some(true),
            fill_in,
            ..GgufVocabulary::new("gpt2", tokens.iter().map(String::as_bytes))
        })
        .unwrap()
    };
    let given = FillInTokens { prefix: Some(4), suffix: Some(5), middle: Some(6), ..FillInTokens::default() };
    assert_eq!(fill_in(&tokenizer(given), "a", "b"), [0, 4, 1, 5, 2, 6]);
    assert!(!tokenizer(FillInTokens { suffix: Some(1000), ..given }).fills_in());
}

#[test]
fn other_files_come_before_it() {
    let files = [("x.rs".to_owned(), "<|file_sep|>".to_owned())];
    let text = FillIn { prefix: "a", suffix: "b", files: &files };
    let names = ["<end>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>", "<|repo_name|>"];
    let gap = [257, 97, 258, 98, 259];
    let found = common::byte_tokenizer(&names).encode_fill_in(&text).unwrap();
    let file = bytes("x.rs\n<|file_sep|>");
    let expected = [&[261][..], &bytes("repository\n"), &[260], &file, &[260], &bytes("file\n"), &gap].concat();
    assert_eq!(found, expected);
    let without = common::byte_tokenizer(&names[..4]).encode_fill_in(&text).unwrap();
    assert_eq!(without, [&bytes("\n\n--- snippet ---\n\n<|file_sep|>")[..], &gap].concat());
}
