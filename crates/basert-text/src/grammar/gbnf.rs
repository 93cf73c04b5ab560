//! Translation of GBNF, llama.cpp's grammar format, to Lark.
//!
//! The library parses in two levels: regular terminals, and context-free rules over them. So the parts of a grammar
//! that do not recurse become terminals, as large as possible, and recursive parts become rules. As in Lark, a terminal
//! matches as much text as it can.

use std::collections::HashMap;
use std::fmt::Write;

/// Brackets inside each other.
const DEEPEST: usize = 200;

/// Rules that lead from one to the next. The library recurses as deep, and its errors grow on the way back.
const LONGEST_CHAIN: usize = 1000;

/// The most repetitions that can be asked for by number.
const MOST_TIMES: u32 = 10_000;

#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Text(String),
    /// A set of characters, as a regular expression writes it.
    Class(String),
    Rule(String),
    Sequence(Vec<Expr>),
    Choice(Vec<Expr>),
    Repeat(Box<Expr>, u32, Option<u32>),
}

/// Writes a grammar as Lark, whose rule `start` is the grammar's `root`.
pub(super) fn to_lark(source: &str) -> Result<String, String> {
    let rules = Reader { source, at: 0, depth: 0 }.rules()?;
    let names: HashMap<&str, usize> = rules.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    if names.len() < rules.len() {
        let twice = rules.iter().enumerate().find(|(i, (name, _))| names[name.as_str()] != *i);
        return Err(format!("there are two rules {}", twice.map_or("", |(_, (name, _))| name)));
    }
    for (name, rule) in &rules {
        let missing = uses(rule).into_iter().find(|used| !names.contains_key(used));
        if let Some(missing) = missing {
            return Err(format!("rule {name}: there is no rule {missing}"));
        }
    }
    let root = *names.get("root").ok_or("there is no rule root")?;
    let used: Vec<Vec<usize>> =
        rules.iter().map(|(_, rule)| uses(rule).into_iter().map(|name| names[name]).collect()).collect();
    refuse_deep(&used, root)?;
    let mut writer = Writer::new(&rules, names, &used);
    let start = writer.rule_text(&rules[root].1);
    let mut lark = format!("start: {start}\n");
    for (i, (_, rule)) in rules.iter().enumerate() {
        if writer.recursive[i] {
            let text = writer.rule_text(rule);
            let _ = writeln!(lark, "rule{i}: {text}");
        } else {
            let text = writer.terminal_text(rule);
            let _ = writeln!(lark, "TERM{i}: {text}");
        }
    }
    lark.extend(writer.terminals.iter().map(|line| format!("{line}\n")));
    Ok(lark)
}

/// The rules that an expression names.
fn uses(expr: &Expr) -> Vec<&str> {
    match expr {
        Expr::Text(_) | Expr::Class(_) => Vec::new(),
        Expr::Rule(name) => vec![name],
        Expr::Sequence(parts) | Expr::Choice(parts) => parts.iter().flat_map(uses).collect(),
        Expr::Repeat(inner, ..) => uses(inner),
    }
}

/// Refuses rules that go on from each other for too long, in the order in which they are compiled.
fn refuse_deep(used: &[Vec<usize>], root: usize) -> Result<(), String> {
    let (mut seen, mut chain) = (vec![false; used.len()], vec![(root, 0)]);
    seen[root] = true;
    while let Some((rule, next)) = chain.last_mut() {
        match used[*rule].get(*next) {
            Some(&inner) => {
                *next += 1;
                if !std::mem::replace(&mut seen[inner], true) {
                    chain.push((inner, 0));
                }
            }
            None => drop(chain.pop()),
        }
        if chain.len() > LONGEST_CHAIN {
            return Err(format!("more than {LONGEST_CHAIN} rules that lead from one to the next"));
        }
    }
    Ok(())
}

struct Writer<'r> {
    rules: &'r [(String, Expr)],
    names: HashMap<&'r str, usize>,
    /// Rules that lead to a recursion.
    recursive: Vec<bool>,
    /// Rules that match the empty text, of those that are not recursive.
    nullable: Vec<bool>,
    /// Definitions of terminals inside rules.
    terminals: Vec<String>,
}

impl<'r> Writer<'r> {
    fn new(rules: &'r [(String, Expr)], names: HashMap<&'r str, usize>, used: &[Vec<usize>]) -> Self {
        // Without those that use none of the rest, again and again, the recursive ones are left.
        let mut users = vec![Vec::new(); rules.len()];
        let mut left: Vec<usize> = used.iter().map(Vec::len).collect();
        for (i, used) in used.iter().enumerate() {
            used.iter().for_each(|&j| users[j].push(i));
        }
        let mut regular: Vec<usize> = (0..rules.len()).filter(|&i| left[i] == 0).collect();
        let mut done = 0;
        while let Some(&i) = regular.get(done) {
            done += 1;
            for &user in &users[i] {
                left[user] -= 1;
                if left[user] == 0 {
                    regular.push(user);
                }
            }
        }
        let recursive = left.iter().map(|&left| left > 0).collect();
        let nullable = vec![false; rules.len()];
        let mut writer = Self { rules, names, recursive, nullable, terminals: Vec::new() };
        for i in regular {
            writer.nullable[i] = writer.is_nullable(&writer.rules[i].1);
        }
        writer
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        uses(expr).into_iter().all(|name| !self.recursive[self.names[name]])
    }

    fn is_nullable(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Text(text) => text.is_empty(),
            Expr::Class(_) => false,
            Expr::Rule(name) => self.nullable[self.names[name.as_str()]],
            Expr::Sequence(parts) => parts.iter().all(|part| self.is_nullable(part)),
            Expr::Choice(parts) => parts.iter().any(|part| self.is_nullable(part)),
            Expr::Repeat(inner, least, _) => *least == 0 || self.is_nullable(inner),
        }
    }

    /// An expression in a terminal.
    fn terminal_text(&self, expr: &Expr) -> String {
        match expr {
            Expr::Text(text) => quoted(text),
            Expr::Class(class) => format!("/{class}/"),
            Expr::Rule(name) => format!("TERM{}", self.names[name.as_str()]),
            Expr::Sequence(parts) if parts.is_empty() => quoted(""),
            Expr::Sequence(parts) => joined(parts.iter().map(|part| self.terminal_text(part)), " "),
            Expr::Choice(parts) => joined(parts.iter().map(|part| self.terminal_text(part)), " | "),
            Expr::Repeat(inner, least, most) => format!("({}){}", self.terminal_text(inner), times(*least, *most)),
        }
    }

    /// An expression in a rule.
    fn rule_text(&mut self, expr: &Expr) -> String {
        if self.is_regular(expr) {
            return self.terminal(expr);
        }
        match expr {
            Expr::Text(_) | Expr::Class(_) => self.terminal(expr),
            Expr::Rule(name) => format!("rule{}", self.names[name.as_str()]),
            Expr::Sequence(parts) => {
                let mut texts = Vec::new();
                let runs: Vec<&[Expr]> = parts.chunk_by(|a, b| self.is_regular(a) && self.is_regular(b)).collect();
                for run in runs {
                    let is_regular = self.is_regular(&run[0]);
                    texts.push(if is_regular {
                        self.terminal(&Expr::Sequence(run.to_vec()))
                    } else {
                        self.rule_text(&run[0])
                    });
                }
                joined(texts.into_iter(), " ")
            }
            Expr::Choice(parts) => {
                let texts: Vec<String> = parts.iter().map(|part| self.rule_text(part)).collect();
                joined(texts.into_iter(), " | ")
            }
            Expr::Repeat(inner, least, most) => format!("({}){}", self.rule_text(inner), times(*least, *most)),
        }
    }

    /// A reference to a terminal of its own, which may not match the empty text.
    fn terminal(&mut self, expr: &Expr) -> String {
        let (text, is_nullable) = (self.terminal_text(expr), self.is_nullable(expr));
        if text == quoted("") {
            return text;
        }
        let name = format!("PART{}", self.terminals.len());
        let rest = if is_nullable { " & /(?s:.+)/" } else { "" };
        self.terminals.push(format!("{name}: ({text}){rest}"));
        if is_nullable { format!("({name})?") } else { name }
    }
}

fn joined(texts: impl Iterator<Item = String>, separator: &str) -> String {
    let texts: Vec<String> = texts.collect();
    format!("({})", texts.join(separator))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn times(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (_, None) => format!("{{{least},}}"),
        (_, Some(most)) => format!("{{{least},{most}}}"),
    }
}

struct Reader<'s> {
    source: &'s str,
    at: usize,
    depth: usize,
}

impl<'s> Reader<'s> {
    fn rules(mut self) -> Result<Vec<(String, Expr)>, String> {
        let mut rules = Vec::new();
        self.space();
        while !self.rest().is_empty() {
            let Some(name) = self.head() else { return Err(self.wrong("a rule, as in root ::= \"yes\"")) };
            rules.push((name.to_owned(), self.choice()?));
            if !self.rest().is_empty() && self.clone_head().is_none() {
                return Err(self.wrong("another rule or the end"));
            }
        }
        Ok(rules)
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn wrong(&self, expected: &str) -> String {
        let line = self.source[..self.at].matches('\n').count() + 1;
        let found: String = self.rest().chars().take(20).collect();
        format!("line {line}: found {found:?}; expected {expected}")
    }

    /// Skips space, line feeds and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest().trim_start();
            let rest = match rest.strip_prefix('#') {
                Some(comment) => comment.find('\n').map_or("", |end| &comment[end..]),
                None => rest,
            };
            let at = self.source.len() - rest.len();
            if at == self.at {
                return;
            }
            self.at = at;
        }
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn word(&mut self) -> Option<&'s str> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        self.at += end;
        (end > 0).then(|| &rest[..end])
    }

    /// `name ::=`.
    fn head(&mut self) -> Option<&'s str> {
        let name = self.word()?;
        self.space();
        let found = self.take("::=");
        self.space();
        found.then_some(name)
    }

    /// What [`Reader::head`] would find.
    fn clone_head(&self) -> Option<&'s str> {
        Reader { ..*self }.head()
    }

    fn choice(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong(&format!("at most {DEEPEST} brackets inside each other")));
        }
        let mut parts = vec![self.sequence()?];
        while self.take("|") {
            self.space();
            parts.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Choice(parts) })
    }

    fn sequence(&mut self) -> Result<Expr, String> {
        let mut parts = Vec::new();
        while let Some(first) = self.rest().chars().next() {
            let part = match first {
                '|' | ')' => break,
                '"' => Expr::Text(self.text()?),
                '[' => Expr::Class(self.class()?),
                '.' => {
                    self.at += 1;
                    Expr::Class("(?s:.)".into())
                }
                '(' => {
                    self.at += 1;
                    self.space();
                    let inner = self.choice()?;
                    if !self.take(")") {
                        return Err(self.wrong("a closing bracket"));
                    }
                    inner
                }
                _ if self.clone_head().is_some() => break,
                _ => match self.word() {
                    Some(name) => Expr::Rule(name.to_owned()),
                    None => return Err(self.wrong("a text, a set of characters, a rule's name or a bracket")),
                },
            };
            let part = self.repeated(part)?;
            parts.push(part);
            self.space();
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Sequence(parts) })
    }

    fn repeated(&mut self, mut part: Expr) -> Result<Expr, String> {
        loop {
            self.space();
            let (least, most) = match () {
                () if self.take("*") => (0, None),
                () if self.take("+") => (1, None),
                () if self.take("?") => (0, Some(1)),
                () if self.take("{") => {
                    let least = self.number()?;
                    let most = if !self.take(",") {
                        Some(least)
                    } else if self.rest().starts_with('}') {
                        None
                    } else {
                        Some(self.number()?)
                    };
                    if !self.take("}") || most.is_some_and(|most| most < least) {
                        return Err(self.wrong("numbers of repetitions, as in {2} or {2,} or {2,3}"));
                    }
                    (least, most)
                }
                () => return Ok(part),
            };
            part = Expr::Repeat(Box::new(part), least, most);
        }
    }

    fn number(&mut self) -> Result<u32, String> {
        let digits = self.rest().len() - self.rest().trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = self.rest()[..digits].parse().ok().filter(|&number| number <= MOST_TIMES);
        let number = number.ok_or_else(|| self.wrong(&format!("a number up to {MOST_TIMES}")))?;
        self.at += digits;
        Ok(number)
    }

    fn text(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.character()? {
                ('"', false) => return Ok(text),
                (c, _) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut class = String::from(if self.take("^") { "[^" } else { "[" });
        let mut is_empty = true;
        loop {
            let first = match self.character()? {
                (']', false) if is_empty => return Err(self.wrong("a character in the set")),
                (']', false) => return Ok(class + "]"),
                (c, _) => c,
            };
            let last = match self.rest().strip_prefix('-') {
                Some(rest) if !rest.starts_with(']') => {
                    self.at += 1;
                    self.character()?.0
                }
                _ => first,
            };
            if last < first {
                return Err(self.wrong("a range from a smaller to a larger character"));
            }
            let _ = write!(class, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(first), u32::from(last));
            is_empty = false;
        }
    }

    /// The next character, and whether it was escaped.
    fn character(&mut self) -> Result<(char, bool), String> {
        let unfinished = "more characters: the text or set has no end";
        let c = self.rest().chars().next().ok_or_else(|| self.wrong(unfinished))?;
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok((c, false));
        }
        let escape = self.rest().chars().next().ok_or_else(|| self.wrong(unfinished))?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let c = match escape {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '\\' | '"' | '[' | ']' | '-' | '^' => escape,
            'x' | 'u' | 'U' => {
                let code = self.rest().get(1..=digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                code.and_then(char::from_u32).ok_or_else(|| self.wrong("the number of a character"))?
            }
            _ => return Err(self.wrong("an escape: n, r, t, \\, \", [, ], x, u or U")),
        };
        self.at += escape.len_utf8() + digits;
        Ok((c, true))
    }
}
