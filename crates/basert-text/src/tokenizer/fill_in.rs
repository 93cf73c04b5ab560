//! Prompts of models that fill in the middle of a text, and the tokens that they have for that.
//!
//! Text before the gap, text behind it and the answer each follow a token (Bavarian et al. 2022, "Efficient Training of
//! Language Models to Fill in the Middle", arXiv 2207.14255). A model without a token for the answer has the text behind
//! the gap first, and continues the text before it.

use std::collections::HashMap;

use super::control::MARKERS;
use super::vocabulary::{Kind, Vocabulary};
use super::{EncodeOptions, Tokenizer};
use crate::TokenizerError;

/// What published models call the tokens before the gap, behind it, and before the answer.
const NAMES: [[&str; 3]; 8] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<PRE>", "<SUF>", "<MID>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
    // There is a token [MIDDLE], which is not used.
    ["[PREFIX]", "[SUFFIX]", ""],
];
/// What they call those before the name of a repository and of a file, and one that fills up a batch.
const REPOSITORY: [&str; 3] = ["<|repo_name|>", "<reponame>", "<repo_name>"];
const FILE: [&str; 2] = ["<|file_sep|>", "<file_sep>"];
const PADDING: [&str; 3] = ["<|fim_pad|>", "<fim_pad>", "<fim-pad>"];

/// What stands for names that are not known.
const SOME_REPOSITORY: &str = "repository\n";
const SOME_FILE: &str = "file\n";
/// What stands between texts of other files where there is no token for that.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";

/// The tokens of a vocabulary for filling in, as far as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillInTokens {
    /// Before the text that is before the gap.
    pub prefix: Option<u32>,
    /// Before the text behind the gap.
    pub suffix: Option<u32>,
    /// Before the answer.
    pub middle: Option<u32>,
    /// Before the name of a repository.
    pub repository: Option<u32>,
    /// Before the name of a file.
    pub file: Option<u32>,
    /// Fills up a batch.
    pub padding: Option<u32>,
}

/// A text with a gap.
#[derive(Clone, Copy, Debug, Default)]
pub struct FillIn<'a> {
    /// The text before the gap.
    pub prefix: &'a str,
    /// The text behind it.
    pub suffix: &'a str,
    /// Names and texts of other files that belong to it.
    pub files: &'a [(String, String)],
}

impl FillInTokens {
    /// These tokens, and where some are not given, those of a known name.
    pub(super) fn or_named(self, vocabulary: &Vocabulary) -> FillInTokens {
        let whole = vocabulary.iter().filter(|(.., kind)| kind.is_special() || *kind == Kind::UserDefined);
        // Where SentencePiece spells a space as a mark, the vocabulary has a space.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(' ', "▁");
        let whole: HashMap<String, u32> = whole.map(|(id, bytes, _)| (text(bytes), id)).collect();
        let id = |name: &str| whole.get(name).copied();
        let named =
            NAMES.map(|names| names.map(id)).into_iter().find(|[prefix, suffix, _]| prefix.and(*suffix).is_some());
        let [prefix, suffix, middle] = named.unwrap_or_default();
        let is_given = self.prefix.and(self.suffix).is_some();
        let first = |names: &[&str]| names.iter().find_map(|name| id(name));
        FillInTokens {
            prefix: if is_given { self.prefix } else { prefix },
            suffix: if is_given { self.suffix } else { suffix },
            middle: self.middle.or(middle),
            repository: self.repository.or(first(&REPOSITORY)),
            file: self.file.or(first(&FILE)),
            padding: self.padding.or(first(&PADDING)),
        }
    }

    fn all(&self) -> impl Iterator<Item = u32> + use<> {
        let FillInTokens { prefix, suffix, middle, repository, file, padding } = *self;
        [prefix, suffix, middle, repository, file, padding].into_iter().flatten()
    }
}

enum Piece<'a> {
    Token(u32),
    Text(&'a str),
}

impl Tokenizer {
    /// Whether the vocabulary has tokens for filling in.
    pub fn fills_in(&self) -> bool {
        self.fill_in.prefix.and(self.fill_in.suffix).is_some()
    }

    /// The tokens that end an answer which fills in, beside those that end every answer; none if the model cannot.
    pub fn ends_of_filling_in(&self) -> Vec<u32> {
        if self.fills_in() { self.fill_in.all().collect() } else { vec![] }
    }

    /// The prompt whose answer fills the gap in a text. The text is text, whatever control tokens it spells.
    ///
    /// # Errors
    /// When the model has no tokens for that, or the vocabulary cannot spell the text.
    pub fn encode_fill_in(&self, text: &FillIn<'_>) -> Result<Vec<u32>, TokenizerError> {
        let FillInTokens { prefix, suffix, middle, repository, file, .. } = self.fill_in;
        let (Some(before), Some(behind)) = (prefix, suffix) else {
            let names = NAMES[0].join(", ");
            return Err(TokenizerError::field(
                "vocabulary",
                "no tokens for filling in",
                format!("some such as {names}"),
            ));
        };
        let mut pieces = Vec::new();
        if let (false, Some(file)) = (text.files.is_empty(), file) {
            pieces.extend(repository.into_iter().flat_map(|token| [Piece::Token(token), Piece::Text(SOME_REPOSITORY)]));
            for (name, text) in text.files {
                pieces.extend([Piece::Token(file), Piece::Text(name), Piece::Text("\n"), Piece::Text(text)]);
            }
            pieces.extend([Piece::Token(file), Piece::Text(SOME_FILE)]);
        } else {
            pieces.extend(text.files.iter().flat_map(|(_, text)| [Piece::Text(SNIPPET), Piece::Text(text)]));
        }
        let before = [Piece::Token(before), Piece::Text(text.prefix)];
        let behind = [Piece::Token(behind), Piece::Text(text.suffix)];
        match middle {
            Some(middle) => {
                pieces.extend(before);
                pieces.extend(behind);
                pieces.push(Piece::Token(middle));
            }
            None => {
                pieces.extend(behind);
                pieces.extend(before);
            }
        }
        self.encode_pieces(&pieces)
    }

    fn encode_pieces(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let is_used =
            |marker: char| pieces.iter().any(|piece| matches!(piece, Piece::Text(text) if text.contains(marker)));
        let mut markers = MARKERS;
        let marker = markers.find(|&marker| !is_used(marker)).ok_or_else(|| {
            TokenizerError::field("text", "all of the noncharacters U+FDD0 to U+FDEF", "text, which has none")
        })?;
        let beginning = self.encode("", EncodeOptions { add_special: true, parse_special: false })?;
        let mut ids: Vec<u32> = self.bos.filter(|bos| beginning.first() == Some(bos)).into_iter().collect();
        for piece in pieces {
            match piece {
                Piece::Token(id) => ids.push(*id),
                Piece::Text("") => {}
                Piece::Text(text) => {
                    let broken = self.without_fill_in_tokens(text, marker);
                    ids.extend(self.encode_without(&broken, EncodeOptions::default(), Some(marker))?);
                }
            }
        }
        Ok(ids)
    }

    /// A text with a marker in what would be a token for filling in: some vocabularies count those as text.
    fn without_fill_in_tokens(&self, text: &str, marker: char) -> String {
        let mut text = text.to_owned();
        for name in self.fill_in.all().filter_map(|id| std::str::from_utf8(self.token_bytes(id)?).ok()) {
            if let Some(first) = name.chars().next().filter(|_| text.contains(name)) {
                text = text.replace(name, &format!("{first}{marker}{}", &name[first.len_utf8()..]));
            }
        }
        text
    }
}
