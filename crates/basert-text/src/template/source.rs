//! Preparation of a template's source for minijinja.

use std::ops::Range;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use regex_automata::meta::Regex;

use super::limits::{CHECKS, MOST_OPERATORS, PERCENT, TICK};

/// The template with `\n` at the end of each line, without tags for training, with `%` for texts too, and with what
/// keeps it within its limits.
///
/// Fails with the line and the reason if one tag holds too much.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, (usize, String)> {
    let source = without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"));
    let mut edits = Vec::new();
    let mut tag = Vec::new();
    // Where it does not parse, the parser will say so.
    for (token, span) in tokenize(&source, false, syntax.clone()).map_while(Result::ok) {
        let place = span.start_offset as usize..span.end_offset as usize;
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => tag.clear(),
            Token::BlockEnd | Token::VariableEnd => {
                let is_operator =
                    |(token, _): &&(Token<'_>, _)| matches!(token, Token::Plus | Token::Mul | Token::Tilde);
                if tag.iter().filter(is_operator).count() > MOST_OPERATORS {
                    let line = source[..place.start].lines().count();
                    return Err((line, format!("more than {MOST_OPERATORS} operators in one tag")));
                }
                Operands { tag: &tag, at: 0, edits: &mut edits }.list();
                if matches!(token, Token::BlockEnd) {
                    of_statement(&tag, &source, &place, &mut edits);
                }
                tag.clear();
            }
            token => tag.push((token, place)),
        }
    }
    edits.sort_by_key(|(place, _)| place.start);
    let mut result = String::with_capacity(source.len());
    let mut done = 0;
    for (place, text) in edits {
        result.push_str(&source[done..place.start]);
        result.push_str(&text);
        done = place.end;
    }
    result.push_str(&source[done..]);
    Ok(result)
}

type Tokens<'t> = [(Token<'t>, Range<usize>)];

/// A text, and the place in the source that it takes.
type Edit = (Range<usize>, String);

/// What `{% set %}` assigns passes through one of [`CHECKS`], and loops and macros begin with a [`TICK`].
fn of_statement(tag: &Tokens<'_>, source: &str, end: &Range<usize>, edits: &mut Vec<Edit>) {
    match tag.first() {
        Some((Token::Ident("set"), _)) => {
            // `target = value`, or `target | filter` before a block of text.
            let (mut is_target, mut is_attribute, mut suffix) = (true, false, "|");
            for (token, place) in &tag[1..] {
                match token {
                    Token::Dot if is_target => is_attribute = true,
                    Token::Assign if is_target => {
                        edits.push((place.end..place.end, "(".into()));
                        (is_target, suffix) = (false, ")|");
                    }
                    Token::Pipe => is_target = false,
                    _ => {}
                }
            }
            edits.push((end.start..end.start, format!("{suffix}{}", CHECKS[usize::from(is_attribute)])));
        }
        Some((Token::Ident("for" | "macro"), _)) => {
            // Whatever the tag does to the white space behind it, what is inserted does in its place.
            let sign = source[..end.end].trim_end_matches('}').trim_end_matches('%').chars().next_back();
            let sign = sign.filter(|sign| matches!(sign, '-' | '+')).map(String::from).unwrap_or_default();
            edits.push((end.end..end.end, format!("{{% if {TICK}() {sign}%}}{{% endif {sign}%}}")));
        }
        _ => {}
    }
}

/// Finds the operands of `%`, which Python has for numbers and for texts, and minijinja for numbers alone: `a % b`
/// becomes a filter of `a`. Where an operator that binds as tightly stands before it, `a` can only be a number.
struct Operands<'a, 't> {
    tag: &'a Tokens<'t>,
    at: usize,
    edits: &'a mut Vec<Edit>,
}

impl<'t> Operands<'_, 't> {
    fn peek(&self) -> Option<&Token<'t>> {
        self.tag.get(self.at).map(|(token, _)| token)
    }

    /// Where the last token that was taken ends.
    fn end(&self) -> usize {
        self.at.checked_sub(1).and_then(|last| self.tag.get(last)).map_or(0, |(_, place)| place.end)
    }

    /// Operands and operators, up to a bracket that closes. Brackets within brackets recurse; how many there may be,
    /// the parser has a limit for, which is less than what the stack has room for.
    fn list(&mut self) {
        let mut binds = false;
        while let Some(token) = self.peek() {
            match token {
                Token::ParenClose | Token::BracketClose | Token::BraceClose => return,
                Token::Mod if !binds => {
                    self.edits.push((self.tag[self.at].1.clone(), format!("|{PERCENT}(")));
                    self.at += 1;
                    self.operand();
                    while matches!(self.peek(), Some(Token::Pow)) {
                        self.at += 1;
                        self.operand();
                    }
                    self.edits.push((self.end()..self.end(), ")".into()));
                }
                Token::Mul | Token::Div | Token::FloorDiv | Token::Mod | Token::Pow | Token::Minus => {
                    self.at += 1;
                    binds = true;
                }
                Token::Ident("not" | "and" | "or" | "in" | "is" | "if" | "else") => {
                    self.at += 1;
                    binds = false;
                }
                Token::Ident(_)
                | Token::Str(_)
                | Token::String(_)
                | Token::Int(_)
                | Token::Int128(_)
                | Token::Float(_)
                | Token::ParenOpen
                | Token::BracketOpen
                | Token::BraceOpen => self.operand(),
                _ => {
                    self.at += 1;
                    binds = false;
                }
            }
        }
    }

    /// A name, a literal or something in brackets, with what follows it: attributes, items, calls, filters.
    fn operand(&mut self) {
        while matches!(self.peek(), Some(Token::Minus | Token::Plus)) {
            self.at += 1;
        }
        let is_text = matches!(self.peek(), Some(Token::Str(_) | Token::String(_)));
        if !self.bracket() {
            self.at += 1;
        }
        while is_text && matches!(self.peek(), Some(Token::Str(_) | Token::String(_))) {
            self.at += 1;
        }
        loop {
            match self.peek() {
                Some(Token::Dot | Token::Pipe) => self.at += 2,
                Some(Token::BracketOpen | Token::ParenOpen) => {
                    self.bracket();
                }
                _ => return,
            }
        }
    }

    /// Something in brackets, if that is next.
    fn bracket(&mut self) -> bool {
        if !matches!(self.peek(), Some(Token::ParenOpen | Token::BracketOpen | Token::BraceOpen)) {
            return false;
        }
        self.at += 1;
        self.list();
        self.at += 1;
        true
    }
}

/// The template with `{% generation %}` … `{% endgeneration %}`, which marks what the assistant said for training,
/// replaced by a block that does nothing.
fn without_generation_tags(source: &str) -> String {
    let tag = Regex::new(r"\{%[-+]?\s*((?:end)?generation)\s*[-+]?%\}").expect("a constant that is tested");
    let mut captures = tag.create_captures();
    let mut result = String::with_capacity(source.len());
    let mut done = 0;
    while let Some(rest) = source.get(done..) {
        tag.captures(rest, &mut captures);
        let Some(name) = captures.get_group(1) else { break };
        result.push_str(&rest[..name.start]);
        result.push_str(if rest[name.range()].starts_with("end") { "endwith" } else { "with" });
        done += name.end;
    }
    result.push_str(&source[done..]);
    result
}
