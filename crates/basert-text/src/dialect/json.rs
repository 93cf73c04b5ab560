//! Values as models write them, made JSON character by character.
//!
//! A value of JSON comes out as it is. What models write instead of JSON becomes JSON: strings in single quotes or
//! between markers, line feeds in strings, escapes that JSON does not have, commas before a closing bracket, names
//! without quotes as keys, Python's `True`, `False`, `None` and tuples, and the arguments of a function call.

use std::sync::Arc;

use super::Notation;

/// Values inside each other; `serde_json` and others read no more than 128.
const DEEPEST: usize = 100;

/// What a character meant for the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the value, which goes on.
    More,
    /// It is the value's last.
    Last,
    /// The value, a number, ended before it.
    After,
    /// It cannot follow.
    Wrong,
}

/// One value, without space around it.
///
/// Nesting is limited, and escaped surrogates have to come in pairs: what comes out is JSON that every reader accepts.
#[derive(Clone, Debug)]
pub(super) struct Value {
    state: State,
    open: Vec<Bracket>,
    /// A comma and the space after it, left out if a bracket closes next.
    comma: String,
    /// What stands between a name and its value in the arguments of a call, and what closes them.
    is: char,
    close: char,
    /// The marker around strings, if there is one.
    quote: Arc<str>,
    has_argument: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    List,
    Tuple,
    Object,
    /// Around the arguments of a call.
    Call,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// A value comes, or the end of a list.
    Start {
        or_end: bool,
    },
    /// A key comes, or the end of an object.
    Key {
        or_end: bool,
    },
    /// In a key without quotes.
    Name,
    /// The sign after a key.
    Colon,
    /// A comma or the end of what is open.
    Next,
    String {
        is_key: bool,
        quote: char,
        at: InString,
    },
    /// In the marker before a string, or in the string after it; this many bytes of the marker have come.
    Marked {
        is_key: bool,
        is_open: bool,
        matched: usize,
    },
    /// What is left of a word, and what it is in JSON.
    Word(&'static str, &'static str),
    Number(InNumber),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum InString {
    /// Between characters; after an escaped high surrogate only a low one may follow.
    Plain {
        high: bool,
    },
    Escape {
        high: bool,
    },
    /// The number of digits of `\uXXXX`, and their value.
    Hex {
        high: bool,
        digits: u8,
        unit: u32,
    },
    /// The number of digits missing of Python's `\xXX` or `\UXXXXXXXX`, and their value.
    Code {
        missing: u8,
        code: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum InNumber {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl InNumber {
    /// Whether the number may end here.
    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Power)
    }

    fn next(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus | Self::Digits, '0'..='9') => Self::Digits,
            (Self::Zero | Self::Digits, '.') => Self::Point,
            (Self::Point | Self::Fraction, '0'..='9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, 'e' | 'E') => Self::Exponent,
            (Self::Exponent, '+' | '-') => Self::Sign,
            (Self::Exponent | Self::Sign | Self::Power, '0'..='9') => Self::Power,
            _ => return None,
        })
    }
}

impl Value {
    /// Before the first character.
    pub fn new() -> Self {
        let (open, comma, quote) = (Vec::new(), String::new(), "".into());
        Self { state: State::Start { or_end: false }, open, comma, is: ':', close: '}', quote, has_argument: false }
    }

    /// In the arguments of a call, after the bracket that opens them. They become an object, whose brace is not among
    /// what comes out.
    pub fn arguments(notation: &Notation) -> Self {
        Self {
            state: State::Key { or_end: true },
            open: vec![Bracket::Call],
            is: notation.is,
            close: notation.close,
            quote: notation.quote.as_str().into(),
            ..Self::new()
        }
    }

    /// Whether the arguments of a call have begun.
    pub fn has_argument(&self) -> bool {
        self.has_argument
    }

    /// The brackets that are missing at the end, if nothing else is.
    pub fn missing(&self) -> Option<String> {
        let is_whole = match self.state {
            State::Next => true,
            State::Number(at) => at.is_whole(),
            State::Start { .. } | State::Key { .. } => !self.comma.is_empty(),
            _ => false,
        };
        is_whole.then(|| self.open.iter().rev().map(|bracket| bracket.closing_json()).collect())
    }

    /// The next character. What comes out of it is added to `out`.
    pub fn push(&mut self, c: char, out: &mut String) -> Step {
        match self.state {
            State::String { is_key, quote, at } => self.string(is_key, quote, at, c, out),
            State::Marked { is_key, is_open, matched } => self.marked(is_key, is_open, matched, c, out),
            State::Word(rest, json) => match rest.strip_prefix(c) {
                Some("") => {
                    out.push_str(json);
                    self.ended()
                }
                Some(rest) => self.go(State::Word(rest, json)),
                None => Step::Wrong,
            },
            State::Number(at) => match at.next(c) {
                Some(next) => {
                    out.push(c);
                    self.go(State::Number(next))
                }
                None if !at.is_whole() => Step::Wrong,
                None if self.open.is_empty() => Step::After,
                None => {
                    self.state = State::Next;
                    self.push(c, out)
                }
            },
            State::Name if super::call::is_of_name(c) => {
                out.push(c);
                Step::More
            }
            State::Name => {
                out.push('"');
                self.state = State::Colon;
                self.push(c, out)
            }
            State::Start { .. } if self.open.is_empty() && is_space(c) => Step::Wrong,
            _ if is_space(c) => {
                let target = if self.comma.is_empty() { out } else { &mut self.comma };
                target.push(c);
                Step::More
            }
            State::Start { or_end } | State::Key { or_end } if or_end && self.closes(c) => self.close(out),
            State::Start { .. } => self.start(c, out),
            State::Key { .. } => self.key(c, out),
            State::Colon => self.colon(c, out),
            State::Next if c == ',' => {
                self.comma.push(c);
                let has_keys = matches!(self.open.last(), Some(Bracket::Object | Bracket::Call));
                self.go(if has_keys { State::Key { or_end: true } } else { State::Start { or_end: true } })
            }
            State::Next if self.closes(c) => self.close(out),
            State::Next => Step::Wrong,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    /// The comma before this, if there is one, separates it from something.
    fn separate(&mut self, out: &mut String) {
        out.push_str(&self.comma);
        self.comma.clear();
    }

    fn start(&mut self, c: char, out: &mut String) -> Step {
        let bracket = match c {
            '{' => Some(Bracket::Object),
            '[' => Some(Bracket::List),
            '(' if self.close == ')' => Some(Bracket::Tuple),
            _ => None,
        };
        if let Some(bracket) = bracket {
            if self.open.len() == DEEPEST {
                return Step::Wrong;
            }
            self.separate(out);
            self.open.push(bracket);
            out.push(bracket.opening_json());
            return self.go(match bracket {
                Bracket::Object | Bracket::Call => State::Key { or_end: true },
                Bracket::List | Bracket::Tuple => State::Start { or_end: true },
            });
        }
        let number = match c {
            '-' => Some(InNumber::Minus),
            '0' => Some(InNumber::Zero),
            '1'..='9' => Some(InNumber::Digits),
            _ => None,
        };
        if let Some(number) = number {
            self.separate(out);
            out.push(c);
            return self.go(State::Number(number));
        }
        let word = match c {
            't' | 'T' => State::Word("rue", "true"),
            'f' | 'F' => State::Word("alse", "false"),
            'n' => State::Word("ull", "null"),
            'N' => State::Word("one", "null"),
            _ => return self.begin_string(false, c, out),
        };
        self.separate(out);
        self.go(word)
    }

    fn key(&mut self, c: char, out: &mut String) -> Step {
        if super::call::is_of_name(c) {
            self.separate(out);
            out.push('"');
            out.push(c);
            return self.go(State::Name);
        }
        self.begin_string(true, c, out)
    }

    fn begin_string(&mut self, is_key: bool, c: char, out: &mut String) -> Step {
        let state = match c {
            '"' | '\'' => State::String { is_key, quote: c, at: InString::Plain { high: false } },
            _ if self.quote.starts_with(c) => State::Marked { is_key, is_open: false, matched: c.len_utf8() },
            _ => return Step::Wrong,
        };
        self.separate(out);
        out.push('"');
        self.go(state)
    }

    fn colon(&mut self, c: char, out: &mut String) -> Step {
        let is_argument = self.open.last() == Some(&Bracket::Call);
        if c != if is_argument { self.is } else { ':' } {
            return Step::Wrong;
        }
        self.has_argument |= is_argument;
        out.push_str(if is_argument { ": " } else { ":" });
        self.go(State::Start { or_end: false })
    }

    /// Whether the character closes what was opened last.
    fn closes(&self, c: char) -> bool {
        self.open.last().is_some_and(|bracket| match bracket {
            Bracket::List => c == ']',
            Bracket::Tuple => c == ')',
            Bracket::Object => c == '}',
            Bracket::Call => c == self.close,
        })
    }

    fn close(&mut self, out: &mut String) -> Step {
        self.comma.clear();
        out.extend(self.open.pop().map(Bracket::closing_json));
        self.ended()
    }

    /// A value has ended: the whole, or one inside it.
    fn ended(&mut self) -> Step {
        self.state = State::Next;
        if self.open.is_empty() { Step::Last } else { Step::More }
    }

    fn string_ended(&mut self, is_key: bool, out: &mut String) -> Step {
        out.push('"');
        if is_key { self.go(State::Colon) } else { self.ended() }
    }

    fn string(&mut self, is_key: bool, quote: char, at: InString, c: char, out: &mut String) -> Step {
        let plain = InString::Plain { high: false };
        let at = match (at, c) {
            (InString::Plain { high }, '\\') => InString::Escape { high },
            (InString::Plain { high: true }, _) => return Step::Wrong,
            (InString::Plain { .. }, _) if c == quote => return self.string_ended(is_key, out),
            (InString::Plain { .. }, _) => {
                append_escaped(c, out);
                at
            }
            (InString::Escape { high }, 'u') => {
                out.push_str("\\u");
                InString::Hex { high, digits: 0, unit: 0 }
            }
            (InString::Escape { high: true }, _) => return Step::Wrong,
            (InString::Escape { .. }, 'x') => InString::Code { missing: 2, code: 0 },
            (InString::Escape { .. }, 'U') => InString::Code { missing: 8, code: 0 },
            (InString::Escape { .. }, '\'') => {
                out.push(c);
                plain
            }
            (InString::Escape { .. }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                out.extend(['\\', c]);
                plain
            }
            // As Python has it, what is no escape is a backslash and a character.
            (InString::Escape { .. }, _) => {
                out.push_str("\\\\");
                append_escaped(c, out);
                plain
            }
            (InString::Hex { high, digits, unit }, _) => {
                let Some(digit) = c.to_digit(16) else { return Step::Wrong };
                out.push(c);
                let unit = 16 * unit + digit;
                match (digits, unit) {
                    (0..3, _) => InString::Hex { high, digits: digits + 1, unit },
                    (_, 0xD800..0xDC00) if !high => InString::Plain { high: true },
                    (_, 0xDC00..0xE000) if high => plain,
                    (_, 0xD800..0xE000) => return Step::Wrong,
                    _ if high => return Step::Wrong,
                    _ => plain,
                }
            }
            (InString::Code { missing, code }, _) => {
                let Some(digit) = c.to_digit(16) else { return Step::Wrong };
                match (missing, code << 4 | digit) {
                    (1, code) => {
                        let Some(c) = char::from_u32(code) else { return Step::Wrong };
                        append_escaped(c, out);
                        plain
                    }
                    (_, code) => InString::Code { missing: missing - 1, code },
                }
            }
        };
        self.go(State::String { is_key, quote, at })
    }

    fn marked(&mut self, is_key: bool, is_open: bool, matched: usize, c: char, out: &mut String) -> Step {
        let quote = Arc::clone(&self.quote);
        if quote[matched..].starts_with(c) {
            let matched = matched + c.len_utf8();
            return match (matched == quote.len(), is_open) {
                (false, _) => self.go(State::Marked { is_key, is_open, matched }),
                (true, false) => self.go(State::Marked { is_key, is_open: true, matched: 0 }),
                (true, true) => self.string_ended(is_key, out),
            };
        }
        if !is_open {
            return Step::Wrong;
        }
        // What began like the marker is text; its first character does not come again in it.
        quote[..matched].chars().for_each(|c| append_escaped(c, out));
        let matched = if quote.starts_with(c) { c.len_utf8() } else { 0 };
        if matched == 0 {
            append_escaped(c, out);
        }
        self.go(State::Marked { is_key, is_open, matched })
    }
}

impl Bracket {
    fn opening_json(self) -> char {
        if matches!(self, Self::List | Self::Tuple) { '[' } else { '{' }
    }

    fn closing_json(self) -> char {
        if matches!(self, Self::List | Self::Tuple) { ']' } else { '}' }
    }
}

/// A character of a string, as JSON has it.
fn append_escaped(c: char, out: &mut String) {
    const CONTROL: [&str; 32] = [
        "\\u0000", "\\u0001", "\\u0002", "\\u0003", "\\u0004", "\\u0005", "\\u0006", "\\u0007", "\\b", "\\t", "\\n",
        "\\u000b", "\\f", "\\r", "\\u000e", "\\u000f", "\\u0010", "\\u0011", "\\u0012", "\\u0013", "\\u0014",
        "\\u0015", "\\u0016", "\\u0017", "\\u0018", "\\u0019", "\\u001a", "\\u001b", "\\u001c", "\\u001d", "\\u001e",
        "\\u001f",
    ];
    match (c, CONTROL.get(c as usize)) {
        ('"', _) => out.push_str("\\\""),
        // A backslash comes here only by its code.
        ('\\', _) => out.push_str("\\\\"),
        (_, Some(escaped)) => out.push_str(escaped),
        _ => out.push(c),
    }
}

/// Whether JSON takes the character for space.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// What comes out of a value, if the text is one.
    fn read(mut value: Value, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut whole = false;
        for c in text.chars() {
            match value.push(c, &mut out) {
                _ if whole => return None,
                Step::More => {}
                Step::Last => whole = true,
                Step::After | Step::Wrong => return None,
            }
        }
        let is_number = matches!(value.state, State::Number(at) if at.is_whole() && value.open.is_empty());
        (whole || is_number).then_some(out)
    }

    fn json(text: &str) -> Option<String> {
        read(Value::new(), text)
    }

    fn call(text: &str) -> Option<String> {
        read(Value::arguments(&Notation::default()), text).map(|rest| format!("{{{rest}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// JSON comes out as it is, and whatever comes out is JSON.
        #[test]
        fn json_comes_out(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"a\":", "\\", "\\n", "\\ud83d", "\\ude00", "\\u00e9", "é",
            "1", "0", "-", ".", "e", "E+", "12", "true", "false", "null", "nul", " ", "{}", "[]", "[1", "\"\"",
            "'", "'a'", "None", "True", "a", "\n", "\\d", "\\'", "(", ")", "=", "\\x41", "\\U0001F600",
        ]), 0..12), is_call in any::<bool>()) {
            let text: String = pieces.concat();
            let is_json = text.trim_matches(is_space) == text && serde_json::from_str::<IgnoredAny>(&text).is_ok();
            // `IgnoredAny` does not look at surrogates.
            let strings = serde_json::from_str::<serde_json::Value>(&text);
            let lone = strings.is_err_and(|error| error.to_string().contains("surrogate") || error.to_string().contains("hex escape"));
            if is_json && !lone {
                prop_assert_eq!(json(&text), Some(text.clone()));
            }
            if let Some(found) = if is_call { call(&text) } else { json(&text) } {
                let read = serde_json::from_str::<serde_json::Value>(&found);
                let is_json = read.as_ref().is_ok_and(|value| !is_call || value.is_object());
                prop_assert!(is_json || read.is_err_and(|error| error.to_string().contains("out of range")), "{} from {}", found, text);
            }
        }
    }

    #[test]
    fn what_models_write_becomes_json() {
        for (written, expected) in [
            ("{'a': 'it\\'s \"so\"', 'b': None}", r#"{"a": "it's \"so\"", "b": null}"#),
            ("{\"a\": 1,}", r#"{"a": 1}"#),
            ("[1, 2, ]", "[1, 2]"),
            ("{\"a\": [True, False,\n],\n}", r#"{"a": [true, false]}"#),
            ("{a: 1, \"b\" : 2}", r#"{"a": 1, "b" : 2}"#),
            ("\"a\nb\\d \\x41\\U0001F600\"", r#""a\nb\\d A😀""#),
        ] {
            assert_eq!(json(written).as_deref(), Some(expected), "{written}");
        }
        for (written, expected) in [
            ("city=\"Paris\", n=3)", r#"{"city": "Paris", "n": 3}"#),
            ("x=(1, 'a',), y={'k': [None]})", r#"{"x": [1, "a"], "y": {"k": [null]}}"#),
            (")", "{}"),
        ] {
            assert_eq!(call(written).as_deref(), Some(expected), "{written}");
        }
        for wrong in ["{,}", "[,]", "[1,,]", "{'a': }", "(1)", "{\"a\" 1}", "\"\\ud83d\"", "'a", "[1}"] {
            assert_eq!(json(wrong), None, "{wrong}");
        }
        for wrong in ["'Paris')", "a=b)", "a:1)", "a=1]"] {
            assert_eq!(call(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn strings_may_stand_between_markers() {
        let notation = Notation { before: "call:".into(), open: '{', is: ':', close: '}', quote: "<|\"|>".into() };
        let read = |text: &str| read(Value::arguments(&notation), text).map(|rest| format!("{{{rest}"));
        for (written, expected) in [
            ("city:<|\"|>São \"P\"\\n<|\"|>,n:3}", r#"{"city": "São \"P\"\\n","n": 3}"#),
            (
                "o:{a:[1,true,None,<|\"|>x<|\"|>],<|\"|>b c<|\"|>:<|\"|><<|<|\"|>}}",
                r#"{"o": {"a":[1,true,null,"x"],"b c":"<<|"}}"#,
            ),
        ] {
            assert_eq!(read(written).as_deref(), Some(expected), "{written}");
        }
        assert_eq!(read("a:<|x<|\"|>}"), None);
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(json(&nested(DEEPEST)).is_some() && json(&nested(DEEPEST + 1)).is_none());
    }
}
