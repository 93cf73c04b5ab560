//! A vocabulary for synthetic models: a minimal byte-level BPE tokenizer that can encode any text.

/// A byte-level BPE vocabulary in the form of GGUF metadata.
pub struct Vocabulary {
    /// Tokens: the bytes, as GPT-2 writes them; begin and end of text; the results of a few merges; and fillers.
    pub tokens: Vec<String>,
    /// The type of each token: 1 for normal, 3 for control tokens.
    pub types: Vec<i32>,
    /// Merges by rank: two tokens with a space in between.
    pub merges: Vec<String>,
    /// The begin-of-text token.
    pub bos: u32,
    /// The end-of-text token.
    pub eos: u32,
}

/// Merges of frequent English bigrams and words. `Ġ` is a space.
const MERGES: [(&str, &str); 12] = [
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("in", "g"),
    ("Ġt", "o"),
];

impl Vocabulary {
    /// The smallest vocabulary.
    pub const LEAST: usize = 256 + 2 + MERGES.len();

    /// A vocabulary of `count` tokens, but at least [`LEAST`](Self::LEAST).
    pub fn new(count: usize) -> Vocabulary {
        let mut tokens: Vec<String> = byte_characters().map(String::from).collect();
        let mut types = vec![1; tokens.len()];
        let (bos, eos) = (tokens.len() as u32, tokens.len() as u32 + 1);
        tokens.extend(["<|begin|>", "<|end|>"].map(str::to_owned));
        types.extend([3, 3]);
        tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
        // No merge makes them, so no encoded text contains them; but a model of random weights mostly generates them.
        tokens.extend((tokens.len()..count).map(|id| format!("Ġw{id}")));
        types.resize(tokens.len(), 1);
        let merges = MERGES.map(|(left, right)| format!("{left} {right}")).to_vec();
        Vocabulary { tokens, types, merges, bos, eos }
    }
}

/// The printable character that GPT-2's vocabulary writes for each byte: itself if it is printable, and otherwise the
/// next one from U+0100 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    (0..=u8::MAX).map(move |byte| match printable(byte) {
        true => char::from(byte),
        false => others.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_are_as_many_as_asked_for_and_differ() {
        let vocabulary = Vocabulary::new(1000);
        assert_eq!((vocabulary.tokens.len(), vocabulary.types.len()), (1000, 1000));
        assert_eq!(vocabulary.tokens.iter().collect::<HashSet<_>>().len(), 1000);
        assert_eq!(vocabulary.tokens[usize::from(b' ')], "Ġ");
        assert_eq!(vocabulary.tokens[usize::from(b'\n')], "Ċ");
        assert_eq!(vocabulary.tokens[vocabulary.eos as usize], "<|end|>");
        for merge in &vocabulary.merges {
            let (left, right) = merge.split_once(' ').unwrap();
            for part in [left.to_owned(), right.to_owned(), format!("{left}{right}")] {
                assert!(vocabulary.tokens.contains(&part), "{part}");
            }
        }
        assert_eq!(Vocabulary::new(1).tokens.len(), Vocabulary::LEAST);
    }
}
