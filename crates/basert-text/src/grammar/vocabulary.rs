//! The vocabulary in the form that `llguidance` needs.

use toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::Tokenizer;

/// The most ids that the library's tree can tell apart.
const MOST_TOKENS: usize = 1 << 22;

/// A tokenizer's tokens in a tree, by their bytes.
pub(super) struct Vocabulary(TokTrie);

impl Vocabulary {
    /// Control tokens are marked, so that no text is taken for one; unused ones are left out.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let len = tokenizer.vocab_size();
        if len > MOST_TOKENS {
            return Err(format!("a vocabulary of {len} tokens; expected up to {MOST_TOKENS}"));
        }
        let ends = tokenizer.end_of_generation();
        if ends.is_empty() {
            return Err("a tokenizer without a token that ends an answer".into());
        }
        let words: Vec<Vec<u8>> = (0..len as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                match () {
                    () if tokenizer.is_special(id) || ends.contains(&id) => {
                        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
                    }
                    () if tokenizer.is_unused(id) => Vec::new(),
                    () => bytes.to_vec(),
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(len as u32, ends[0]), &words);
        Ok(Self(trie.with_eos_tokens(ends)))
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// Every way to spell a text is allowed, and the model chooses.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
