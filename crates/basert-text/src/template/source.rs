//! Preparation of a template's source for minijinja.

use std::collections::BTreeSet;
use std::ops::Range;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use regex_automata::meta::Regex;

use super::limits::{CHECKS, MOST_OPERATORS, PERCENT, TICK};

/// The filter that the operands of `~` pass through, and the function that macros with `varargs` are called by.
pub(super) const TEXT: &str = "__text";
pub(super) const CALL: &str = "__call";

/// The names of the arguments that a macro does not declare.
const UNDECLARED: [&str; 2] = ["varargs", "kwargs"];

/// The template with `\n` at the end of each line, without tags for training, with `%` for texts, `~` for floats,
/// `varargs` and `kwargs` as Python has them, and with what keeps it within its limits.
///
/// Fails with the line and the reason if one tag holds too much.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, (usize, String)> {
    let source = without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"));
    let variadic = variadic_macros(&source, syntax);
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
                of_variadic(&tag, &variadic, &mut edits);
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
            // The inserted tag takes over the white space control of the tag before it.
            let sign = source[..end.end].trim_end_matches('}').trim_end_matches('%').chars().next_back();
            let sign = sign.filter(|sign| matches!(sign, '-' | '+')).map(String::from).unwrap_or_default();
            edits.push((end.end..end.end, format!("{{% if {TICK}() {sign}%}}{{% endif {sign}%}}")));
        }
        _ => {}
    }
}

/// The macros that use arguments that they do not declare.
fn variadic_macros(source: &str, syntax: &SyntaxConfig) -> BTreeSet<String> {
    let (mut found, mut open, mut tag) = (BTreeSet::new(), Vec::new(), Vec::new());
    if !UNDECLARED.iter().any(|name| source.contains(name)) {
        return found;
    }
    for (token, _) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        match token {
            Token::BlockStart | Token::VariableStart => tag.clear(),
            Token::BlockEnd | Token::VariableEnd => match tag.as_slice() {
                [Token::Ident("macro"), Token::Ident(name), ..] => open.push((*name).to_owned()),
                [Token::Ident("endmacro"), ..] => drop(open.pop()),
                tokens => {
                    let uses =
                        tokens.iter().any(|token| matches!(token, Token::Ident(name) if UNDECLARED.contains(name)));
                    found.extend(open.last().filter(|_| uses).cloned());
                }
            },
            token => tag.push(token),
        }
    }
    found
}

/// Such a macro declares those arguments after all, and is called by a function that collects them.
fn of_variadic(tag: &Tokens<'_>, variadic: &BTreeSet<String>, edits: &mut Vec<Edit>) {
    let is_variadic = |token: &Token<'_>| matches!(token, Token::Ident(name) if variadic.contains(*name));
    let [varargs, kwargs] = UNDECLARED;
    if let [(Token::Ident("macro"), _), (name, _), (Token::ParenOpen, _), .., (Token::ParenClose, place)] = tag
        && is_variadic(name)
    {
        let comma = if tag.len() > 4 { ", " } else { "" };
        edits.push((place.start..place.start, format!("{comma}{varargs}=(), {kwargs}={{}}")));
        return;
    }
    for (i, pair) in tag.windows(2).enumerate() {
        let [(token, name), (Token::ParenOpen, bracket)] = pair else { continue };
        let is_attribute = i > 0 && matches!(tag[i - 1].0, Token::Dot | Token::Pipe);
        if is_variadic(token) && !is_attribute {
            let has_arguments = tag.get(i + 2).is_some_and(|(token, _)| !matches!(token, Token::ParenClose));
            edits.push((name.start..name.start, format!("{CALL}(")));
            edits.push((bracket.clone(), if has_arguments { ", ".into() } else { String::new() }));
        }
    }
}

/// Finds the operands of `%`, which Python defines for numbers and strings, and minijinja only for numbers: `a % b`
/// becomes a filter of `a`. If an operator of the same precedence comes before it, `a` can only be a number.
///
/// The operands of `~` become strings. Unary `+` is removed, because minijinja lacks it.
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

    /// Operands and operators, up to a closing bracket. Nested brackets recurse; the parser limits their depth to less
    /// than the stack has room for.
    fn list(&mut self) {
        let mut binds = false;
        // Where the product or the like at hand begins, whether an operand of it has just ended, and whether the
        // product is an operand of `~`.
        let (mut product, mut ended, mut joins): (Option<usize>, bool, bool) = (None, false, false);
        while let Some(token) = self.peek() {
            let is_sign = !ended && matches!(token, Token::Minus | Token::Plus);
            match token {
                Token::ParenClose | Token::BracketClose | Token::BraceClose => break,
                Token::Plus if is_sign => {
                    self.edits.push((self.tag[self.at].1.clone(), " ".into()));
                    self.at += 1;
                    continue;
                }
                Token::Mod if !binds => {
                    self.edits.push((self.tag[self.at].1.clone(), format!("|{PERCENT}(")));
                    self.at += 1;
                    self.operand();
                    while matches!(self.peek(), Some(Token::Pow)) {
                        self.at += 1;
                        self.operand();
                    }
                    self.edits.push((self.end()..self.end(), ")".into()));
                    ended = true;
                }
                Token::Mul | Token::Div | Token::FloorDiv | Token::Mod | Token::Pow => {
                    self.at += 1;
                    (binds, ended) = (true, false);
                }
                Token::Minus if is_sign => {
                    product.get_or_insert(self.at);
                    self.at += 1;
                    binds = true;
                }
                Token::Tilde => {
                    self.join(product.take());
                    self.at += 1;
                    (binds, ended, joins) = (false, false, true);
                }
                Token::Ident(name) if !is_operator(name) => {
                    self.begin(&mut product, ended, &mut joins);
                    self.operand();
                    ended = true;
                }
                Token::Str(_)
                | Token::String(_)
                | Token::Int(_)
                | Token::Int128(_)
                | Token::Float(_)
                | Token::ParenOpen
                | Token::BracketOpen
                | Token::BraceOpen => {
                    self.begin(&mut product, ended, &mut joins);
                    self.operand();
                    ended = true;
                }
                other => {
                    let binds_next = matches!(other, Token::Minus);
                    if std::mem::take(&mut joins) {
                        self.join(product);
                    }
                    self.at += 1;
                    (binds, product, ended) = (binds_next, None, false);
                }
            }
        }
        if joins {
            self.join(product);
        }
    }

    /// An operand begins: another product, if it follows one that has ended.
    fn begin(&mut self, product: &mut Option<usize>, ended: bool, joins: &mut bool) {
        if ended {
            if std::mem::take(joins) {
                self.join(*product);
            }
            *product = None;
        }
        product.get_or_insert(self.at);
    }

    /// What begins at this token and ends here is an operand of `~`.
    fn join(&mut self, product: Option<usize>) {
        let (tag, at) = (self.tag, self.at);
        let Some(tokens) = product.and_then(|first| tag.get(first..at)) else { return };
        if let [(Token::Str(_) | Token::String(_), _)] | [] = tokens {
            return;
        }
        let begin = tokens[0].1.start;
        self.edits.push((begin..begin, "(".into()));
        self.edits.push((self.end()..self.end(), format!(")|{TEXT}")));
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

/// Whether the word stands between operands.
fn is_operator(word: &str) -> bool {
    matches!(word, "not" | "and" | "or" | "in" | "is" | "if" | "else")
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
