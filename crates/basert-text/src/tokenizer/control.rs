//! The texts of control tokens, and protection against such texts from outside.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, Input};

use super::vocabulary::{Kind, Vocabulary};

/// Noncharacters of Unicode, for internal use and never part of text: they break what would be a token.
pub(crate) const MARKERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The longest control token, in bytes, that is looked for across the ends of texts. Published ones have up to 50.
const LONGEST: usize = 128;

/// What control tokens are written as.
#[derive(Default)]
pub(crate) struct ControlTexts {
    /// `None` if there are none.
    automaton: Option<AhoCorasick>,
    texts: Vec<Box<str>>,
    /// Texts of up to [`LONGEST`] bytes, one after the other.
    joined: Box<str>,
    /// The ranges of those texts, and of all their suffixes, both sorted by the text there.
    wholes: Vec<(u32, u32)>,
    ends: Vec<(u32, u32)>,
    /// User-defined tokens that begin like a control token but are not one, and their lengths.
    found_in_text: BTreeSet<Box<str>>,
    lengths: BTreeSet<usize>,
    /// The characters that they begin with, and that they end with.
    first: BTreeSet<char>,
    last: BTreeSet<char>,
}

impl ControlTexts {
    /// The texts of the tokens for which `is_control` holds. Those of one character cannot be split, so they are skipped.
    pub fn new(vocabulary: &Vocabulary, is_control: impl Fn(u32) -> bool) -> Self {
        let texts = vocabulary.iter().filter(|&(id, ..)| is_control(id));
        let texts = texts.filter_map(|(_, bytes, _)| std::str::from_utf8(bytes).ok());
        let texts: Vec<Box<str>> = texts.filter(|text| text.chars().nth(1).is_some()).map(Into::into).collect();
        let mut found = Self::default();
        if texts.is_empty() {
            return found;
        }
        let (mut joined, mut at) = (String::new(), Vec::new());
        for text in texts.iter().filter(|text| text.len() <= LONGEST) {
            let begin = joined.len() as u32;
            joined.push_str(text);
            let end = joined.len() as u32;
            at.push((begin, end));
            found.ends.extend(text.char_indices().map(|(i, _)| (begin + i as u32, end)));
            found.first.extend(text.chars().next());
            found.last.extend(text.chars().next_back());
        }
        let others = vocabulary.iter().filter(|&(id, _, kind)| kind == Kind::UserDefined && !is_control(id));
        for text in others.filter_map(|(_, bytes, _)| std::str::from_utf8(bytes).ok()) {
            if text.len() <= LONGEST && text.chars().next().is_some_and(|c| found.first.contains(&c)) {
                found.lengths.insert(text.len());
                found.found_in_text.insert(text.into());
            }
        }
        let text = |&(begin, end): &(u32, u32)| &joined[begin as usize..end as usize];
        at.sort_unstable_by_key(text);
        found.ends.sort_unstable_by_key(text);
        // A template may change the case of letters.
        let automaton = AhoCorasick::builder().ascii_case_insensitive(true).build(texts.iter().map(|text| &**text));
        found.automaton =
            Some(automaton.expect("patterns within MOST_BYTES are within the automaton's limit of 2 GiB"));
        Self { texts, joined: joined.into(), wholes: at, ..found }
    }

    /// The text with `marker` inside every control token except those in `allowed`, and inside anything that could become
    /// part of one together with the text before or after. `None` if there is no such place.
    pub fn broken(&self, text: &str, marker: char, allowed: &[&str]) -> Option<String> {
        let automaton = self.automaton.as_ref()?;
        let mut places = Vec::new();
        let mut at = 0;
        // The match that ends first either begins last or contains no other: breaking it after its first character also
        // breaks all that contain that character.
        while let Some(found) = automaton.find(Input::new(text).range(at..)) {
            at = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
            if !allowed.contains(&&*self.texts[found.pattern().as_usize()]) {
                places.push(at);
            }
        }
        self.at_begins(text, allowed, &mut places);
        self.at_ends(text, &mut places);
        if places.is_empty() {
            return None;
        }
        places.sort_unstable();
        places.dedup();
        let mut broken = String::with_capacity(text.len() + places.len() * marker.len_utf8());
        let mut done = 0;
        for place in places {
            broken.push_str(&text[done..place]);
            broken.push(marker);
            done = place;
        }
        Some(broken + &text[done..])
    }

    /// The places after the first character of anything that begins like a control token: a template may remove what
    /// follows, and so join it to the rest of one. Templates search texts for closing tags, so those are left alone.
    fn at_begins(&self, text: &str, allowed: &[&str], places: &mut Vec<usize>) {
        for (i, first) in text.char_indices().filter(|(_, c)| self.first.contains(c)) {
            let after = i + first.len_utf8();
            let Some(second) = text[after..].chars().next().filter(|&c| c != '/') else { continue };
            let begin = &text[i..after + second.len_utf8()];
            let begins = self.from(&self.wholes, begin).is_some_and(|whole| whole.starts_with(begin));
            let is_other = || {
                let mut others = self.lengths.iter().filter_map(|length| text.get(i..i + length));
                others.any(|other| self.found_in_text.contains(other))
            };
            if begins && !allowed.iter().any(|allowed| text[i..].starts_with(allowed)) && !is_other() {
                places.push(after);
            }
        }
    }

    /// The places inside parts of a control token at the beginning and end of the text, which a template may trim. Plain
    /// words are left alone: templates compare them, and put the role into `<|user|>`.
    fn at_ends(&self, text: &str, places: &mut Vec<usize>) {
        let trimmed = text.trim();
        let begin = text.len() - text.trim_start().len();
        if trimmed.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
            return;
        }
        let near = trimmed.char_indices();
        for (i, c) in near.clone().rev().take_while(|(i, _)| trimmed.len() - i < LONGEST) {
            let end = if self.first.contains(&c) { &trimmed[i..] } else { continue };
            if self.from(&self.wholes, end).is_some_and(|whole| whole.len() > end.len() && whole.starts_with(end)) {
                places.push(begin + i + c.len_utf8());
            }
        }
        for (i, c) in near.take_while(|(i, _)| *i < LONGEST) {
            let start = if self.last.contains(&c) { &trimmed[..i + c.len_utf8()] } else { continue };
            let is_end = self.from(&self.ends, start) == Some(start);
            if is_end && self.from(&self.wholes, start) != Some(start) {
                places.push(begin + i);
            }
        }
        let is_inside = |end: &str| end.len() > trimmed.len() && end.starts_with(trimmed);
        if trimmed.len() < LONGEST && self.from(&self.ends, trimmed).is_some_and(is_inside) {
            places.push(begin + trimmed.chars().next().map_or(0, char::len_utf8));
        }
    }

    /// The first of these texts that does not come before `text`.
    fn from(&self, places: &[(u32, u32)], text: &str) -> Option<&str> {
        let at = |&(begin, end): &(u32, u32)| &self.joined[begin as usize..end as usize];
        places.get(places.partition_point(|place| at(place) < text)).map(at)
    }
}
