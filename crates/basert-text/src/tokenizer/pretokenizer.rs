//! Pre-tokenizers: how a text is cut into words before byte pair encoding. One table, a row for each.
//!
//! A pre-tokenizer is a list of regular expressions. Each cuts the pieces that the one before left: a match is a piece,
//! and so is what lies between two matches. They are written as their authors published them.

use std::borrow::Cow;

use regex_automata::{Input, meta::Regex};
use unicode_normalization::UnicodeNormalization;

use crate::TokenizerError;

/// A row of the table.
struct Row {
    /// The values of `tokenizer.ggml.pre` that mean this row.
    names: &'static [&'static str],
    steps: &'static [&'static str],
    /// A word that is a token is not merged from its bytes.
    whole_words: bool,
    /// The text is brought into normalization form C first.
    compose: bool,
    /// A beginning-of-text token is put in front unless the file says otherwise.
    add_bos: bool,
}

const PLAIN: Row = Row { names: &[], steps: &[], whole_words: false, compose: false, add_bos: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const TABLE: &[Row] = &[
    Row {
        names: &["gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-es", "jina-de", "modern-bert"],
        steps: &[GPT2],
        ..PLAIN
    },
    Row {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        steps: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Row {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        steps: &[LLAMA3],
        whole_words: true,
        add_bos: true,
        ..PLAIN
    },
    Row { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[LLAMA3], ..PLAIN },
    Row { names: &["glm4"], steps: &[LLAMA3], whole_words: true, ..PLAIN },
    Row {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"],
        steps: &[QWEN2],
        compose: true,
        ..PLAIN
    },
    Row { names: &["qwen35"], steps: &[QWEN35], compose: true, ..PLAIN },
    Row { names: &["gpt-4o", "llama4", "kanana2"], steps: &[GPT4O], ..PLAIN },
    Row { names: &["tekken"], steps: &[TEKKEN], whole_words: true, add_bos: true, ..PLAIN },
    Row {
        names: &["deepseek-v3", "hunyuan-dense"],
        steps: &[r"\p{N}{1,3}", r"[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    Row { names: &["default"], steps: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN },
];

/// A row of the table, compiled.
pub(crate) struct Pretokenizer {
    row: &'static Row,
    steps: Vec<Step>,
}

/// One regular expression. Those that end in the alternatives `\s+(?!\S)|\s+` (white space, but the last of it is left
/// to the word that follows) are compiled without them and that rule is applied here: without a look-ahead matching
/// takes time linear in the text.
struct Step {
    regex: Regex,
    splits_white_space: bool,
}

/// The number of the pattern `\s+` in a [`Step`]'s regex.
const WHITE_SPACE: usize = 1;

impl Pretokenizer {
    /// The row that `tokenizer.ggml.pre` names.
    pub fn named(name: &str, field: &str) -> Result<Self, TokenizerError> {
        let Some(row) = TABLE.iter().find(|row| row.names.contains(&name)) else {
            let known: Vec<_> = TABLE.iter().flat_map(|row| row.names).copied().collect();
            return Err(TokenizerError::field(field, format!("{name:?}"), format!("one of {}", known.join(", "))));
        };
        let steps = row.steps.iter().map(|pattern| Step::new(pattern, field)).collect::<Result<_, _>>()?;
        Ok(Self { row, steps })
    }

    /// Whether a word that is a token stands for itself instead of being merged.
    pub fn keeps_whole_words(&self) -> bool {
        self.row.whole_words
    }

    /// Whether the text is to be [`compose`]d first.
    pub fn composes(&self) -> bool {
        self.row.compose
    }

    /// Whether a beginning-of-text token belongs in front where the file does not say.
    pub fn adds_bos(&self) -> bool {
        self.row.add_bos
    }

    /// Calls `word` with each piece of the text in turn.
    pub fn split(&self, text: &str, word: &mut impl FnMut(&str)) {
        split(&self.steps, text, word);
    }
}

/// The text in normalization form C.
pub(crate) fn compose(text: &str) -> Cow<'_, str> {
    match unicode_normalization::is_nfc_quick(text.chars()) {
        unicode_normalization::IsNormalized::Yes => Cow::Borrowed(text),
        _ => Cow::Owned(text.nfc().collect()),
    }
}

fn split(steps: &[Step], text: &str, word: &mut impl FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut done = 0;
    while done < text.len() {
        let (start, end) = step.next_match(text, done).unwrap_or((text.len(), text.len()));
        if done < start {
            split(rest, &text[done..start], word);
        }
        if start < end {
            split(rest, &text[start..end], word);
        }
        done = end;
    }
}

impl Step {
    fn new(pattern: &str, field: &str) -> Result<Self, TokenizerError> {
        let (regex, splits_white_space) = match pattern.strip_suffix(r"|\s+(?!\S)|\s+") {
            Some(words) => (Regex::new_many(&[words, r"\s+"]), true),
            None => (Regex::new(pattern), false),
        };
        let regex = regex.map_err(|error| TokenizerError::field(field, error.to_string(), "a regular expression"))?;
        Ok(Self { regex, splits_white_space })
    }

    /// Start and end of the first match that is not empty at or after `from`.
    fn next_match(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let found = self.regex.search(&Input::new(text).range(from..))?;
        let (start, mut end) = (found.start(), found.end());
        if self.splits_white_space && found.pattern().as_usize() == WHITE_SPACE && end < text.len() {
            let last = text[start..end].char_indices().next_back().map_or(0, |(at, _)| at);
            if last > 0 {
                end = start + last;
            }
        }
        Some((start, end))
    }
}
