//! Finding tokens that are written whole: control tokens such as `<|im_end|>` and user-defined ones.

use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::control::ControlTexts;
use super::vocabulary::{Kind, Vocabulary};
use crate::TokenizerError;

/// The most text that such tokens may have together; the largest published vocabularies have a tenth of it.
const MOST_BYTES: usize = 4 << 20;

/// Searches a text for such tokens, the longest of those that begin at the same place. The search automatons are built
/// when they are first needed.
#[derive(Default)]
pub(crate) struct SpecialTokens {
    all: OnceLock<Matcher>,
    user_defined: OnceLock<Matcher>,
    control: OnceLock<ControlTexts>,
}

struct Matcher {
    /// `None` if there is nothing to search for.
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

/// A piece of a text.
pub(crate) enum Piece<'t> {
    /// A token written whole.
    Token(u32),
    /// Text between such tokens; never empty.
    Text(&'t str),
}

impl SpecialTokens {
    /// Checks that the vocabulary can be searched for; `field` names where the tokens come from.
    pub fn new(vocabulary: &Vocabulary, field: &str) -> Result<Self, TokenizerError> {
        let bytes: usize = whole_tokens(vocabulary, true).map(|(_, bytes)| bytes.len()).sum();
        if bytes > MOST_BYTES {
            let found = format!("{bytes} bytes of control and user-defined tokens");
            return Err(TokenizerError::field(field, found, format!("at most {MOST_BYTES}")));
        }
        Ok(Self::default())
    }

    /// What the tokens are written as for which `is_control` holds.
    pub fn control_texts(&self, vocabulary: &Vocabulary, is_control: impl Fn(u32) -> bool) -> &ControlTexts {
        self.control.get_or_init(|| ControlTexts::new(vocabulary, is_control))
    }

    /// Cuts the text at user-defined tokens and, with `control`, at control and unknown tokens too.
    pub fn split<'t>(
        &self,
        vocabulary: &Vocabulary,
        text: &'t str,
        control: bool,
        mut piece: impl FnMut(Piece<'t>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let cell = if control { &self.all } else { &self.user_defined };
        let matcher = cell.get_or_init(|| Matcher::new(vocabulary, control));
        let mut done = 0;
        for found in matcher.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if done < found.start() {
                piece(Piece::Text(&text[done..found.start()]))?;
            }
            piece(Piece::Token(matcher.ids[found.pattern().as_usize()]))?;
            done = found.end();
        }
        if done < text.len() {
            piece(Piece::Text(&text[done..]))?;
        }
        Ok(())
    }
}

/// The tokens to search for and their bytes. Only those that are themselves UTF-8 can be cut out of a text.
fn whole_tokens(vocabulary: &Vocabulary, control: bool) -> impl Iterator<Item = (u32, &[u8])> {
    let wanted = move |kind: Kind| kind == Kind::UserDefined || (control && kind.is_special());
    vocabulary
        .iter()
        .filter(move |(_, bytes, kind)| wanted(*kind) && !bytes.is_empty() && std::str::from_utf8(bytes).is_ok())
        .map(|(id, bytes, _)| (id, bytes))
}

impl Matcher {
    fn new(vocabulary: &Vocabulary, control: bool) -> Self {
        let (ids, patterns): (Vec<u32>, Vec<&[u8]>) = whole_tokens(vocabulary, control).unzip();
        if ids.is_empty() {
            return Self { automaton: None, ids };
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns)
            .expect("patterns within MOST_BYTES are within the automaton's limit of 2 GiB");
        Self { automaton: Some(automaton), ids }
    }
}
