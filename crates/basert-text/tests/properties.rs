//! What holds for every text and every sequence of ids.

use std::sync::{Arc, LazyLock};

use basert_text::{ChatTemplate, Detokenizer, EncodeOptions, Tokenizer};
use proptest::prelude::*;

use crate::common;

static BYTE_PAIR: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(common::from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf")));
static SENTENCE_PIECE: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(common::from_gguf_file("gemma-3-270m-q4_k_m.gguf")));
static QWEN: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(common::from_json("qwen3")));

fn tokenizers() -> [&'static Arc<Tokenizer>; 3] {
    [&BYTE_PAIR, &SENTENCE_PIECE, &QWEN]
}

fn encode(tokenizer: &Tokenizer, text: &str, parse_special: bool) -> Vec<u32> {
    tokenizer.encode(text, EncodeOptions { add_special: false, parse_special }).unwrap()
}

/// The text of ids that come one at a time, and its pieces.
fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> (String, Vec<String>) {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), skip_special);
    let mut pieces = vec![String::new(); ids.len() + 1];
    for (&id, piece) in ids.iter().zip(&mut pieces) {
        detokenizer.push(id, piece);
    }
    detokenizer.finish(&mut pieces[ids.len()]);
    (pieces.concat(), pieces)
}

/// Text with everything in it that a tokenizer may treat in its own way.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[ \t\r\n\u{a0}\u{3000}]{1,12}",
        "[a-zA-Z0-9'’,.!? ]{1,30}",
        "\\PC{1,8}",
        prop::sample::select(vec!["<|im_end|>", "<end_of_turn>", "<think>", "▁", "Ġ", "<0x0A>", "👩‍👩‍👧‍👦", "é", "\u{301}"])
            .prop_map(str::to_string),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decoding_gives_the_text_back(text in text(), parse_special: bool) {
        // Some bytes that never occur in UTF-8, and a few control characters, have no token in SmolLM2's vocabulary.
        let spelled = text.bytes().all(|byte| (0..BYTE_PAIR.vocab_size() as u32).any(|id| BYTE_PAIR.token_bytes(id) == Some(&[byte])));
        if spelled {
            prop_assert_eq!(BYTE_PAIR.decode(&encode(&BYTE_PAIR, &text, parse_special), false), text.as_str());
        }
        // SentencePiece writes a space as ▁ and so takes ▁ for a space.
        let marked = text.replace('▁', " ");
        prop_assert_eq!(SENTENCE_PIECE.decode(&encode(&SENTENCE_PIECE, &text, parse_special), false).replace('▁', " "), marked);
    }

    #[test]
    fn a_stream_is_the_whole(ids in prop::collection::vec(0..300_000u32, 0..40), skip_special: bool) {
        for tokenizer in tokenizers() {
            let (whole, _) = streamed(tokenizer, &ids, skip_special);
            prop_assert_eq!(&whole, &tokenizer.decode(&ids, skip_special));
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|&&id| !(skip_special && tokenizer.is_special(id)))
                .flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec())
                .collect();
            prop_assert_eq!(whole, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_stream_of_a_text_has_whole_characters(text in text()) {
        for tokenizer in tokenizers() {
            let ids = encode(tokenizer, &text, true);
            let (whole, pieces) = streamed(tokenizer, &ids, false);
            // A replacement character in a piece would be half a character, unless it is in the text.
            if !whole.contains(char::REPLACEMENT_CHARACTER) {
                prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
            }
        }
    }

    #[test]
    fn special_tokens_come_only_from_parsing(text in text()) {
        for tokenizer in tokenizers() {
            prop_assert!(encode(tokenizer, &text, false).iter().all(|&id| !tokenizer.is_special(id)));
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Tokenizer::from_json(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = ChatTemplate::new(&text);
    }

    #[test]
    fn arbitrary_templates_do_not_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "-%}", "{#", "#}", "for", "m", "in", "messages", "endfor", "if", "endif", "set", "=", "macro", "f()",
            "endmacro", "'", "\"", "[", "]", "(", ")", "|", "tojson", "~", "+", "generation", "endgeneration", "\n", " ", "1", "loop.index",
        ]), 0..40)
    ) {
        if let Ok(template) = ChatTemplate::new(&pieces.join(" ")) {
            let _ = template.render(&Default::default());
        }
    }
}

/// Encoding takes time linear in the text (but for a logarithm), whatever the text is.
#[test]
fn long_runs_are_not_quadratic() {
    for unit in ["a", " ", "\n", "é", "漢", "ab", "0", "!", "😀", "\u{301}", "' "] {
        let text = unit.repeat(300_000 / unit.len());
        for tokenizer in [&BYTE_PAIR, &SENTENCE_PIECE] {
            let start = std::time::Instant::now();
            let ids = encode(tokenizer, &text, true);
            let elapsed = start.elapsed();
            assert_eq!(tokenizer.decode(&ids, false), text);
            assert!(elapsed.as_secs() < 10, "{unit:?}: {elapsed:?}");
        }
    }
}
