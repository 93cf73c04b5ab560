//! A JSON value, checked character by character.

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

/// Checks one value as RFC 8259 defines it, without space around it.
///
/// Two things are stricter, so that every reader accepts what passes: nesting is limited, and escaped surrogates come in
/// pairs. One is laxer: control characters in strings pass, for models write line feeds there. Whoever copies the value
/// escapes them: see [`Value::escaped`].
#[derive(Clone, Debug)]
pub(super) struct Value {
    state: State,
    /// The lists (false) and objects (true) that are open.
    open: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// A value comes; in an empty list it may also end.
    Start {
        or_end: bool,
    },
    /// A key comes; in an empty object it may also end.
    Key {
        or_end: bool,
    },
    /// The colon after a key.
    Colon,
    /// A comma or the end of what is open.
    Next,
    String {
        is_key: bool,
        at: InString,
    },
    /// What is left of `true`, `false` or `null`.
    Word(&'static str),
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
    /// So many digits of `\uXXXX`, and their value.
    Hex {
        high: bool,
        digits: u8,
        unit: u32,
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
        Self { state: State::Start { or_end: false }, open: Vec::new() }
    }

    /// The character as it has to be copied: control characters inside a string are escaped.
    pub fn escaped(&self, c: char) -> Option<&'static str> {
        const CONTROL: [&str; 32] = [
            "\\u0000", "\\u0001", "\\u0002", "\\u0003", "\\u0004", "\\u0005", "\\u0006", "\\u0007", "\\b", "\\t",
            "\\n", "\\u000b", "\\f", "\\r", "\\u000e", "\\u000f", "\\u0010", "\\u0011", "\\u0012", "\\u0013",
            "\\u0014", "\\u0015", "\\u0016", "\\u0017", "\\u0018", "\\u0019", "\\u001a", "\\u001b", "\\u001c",
            "\\u001d", "\\u001e", "\\u001f",
        ];
        let is_text = matches!(self.state, State::String { at: InString::Plain { .. }, .. });
        CONTROL.get(c as usize).filter(|_| is_text).copied()
    }

    /// The brackets that are missing at the end, if nothing else is.
    pub fn missing(&self) -> Option<String> {
        let is_whole = match self.state {
            State::Next => true,
            State::Number(at) => at.is_whole(),
            _ => false,
        };
        is_whole.then(|| self.open.iter().rev().map(|&is_object| if is_object { '}' } else { ']' }).collect())
    }

    /// The next character.
    pub fn push(&mut self, c: char) -> Step {
        match self.state {
            State::String { is_key, at } => self.string(is_key, at, c),
            State::Word(rest) => match rest.strip_prefix(c) {
                Some("") => self.ended(),
                Some(rest) => self.go(State::Word(rest)),
                None => Step::Wrong,
            },
            State::Number(at) => match at.next(c) {
                Some(next) => self.go(State::Number(next)),
                None if !at.is_whole() => Step::Wrong,
                None if self.open.is_empty() => Step::After,
                None => {
                    self.state = State::Next;
                    self.push(c)
                }
            },
            State::Start { .. } if self.open.is_empty() && is_space(c) => Step::Wrong,
            _ if is_space(c) => Step::More,
            State::Start { or_end } => match c {
                ']' if or_end => self.close(false),
                _ => self.start(c),
            },
            State::Key { or_end } => match c {
                '"' => self.go(State::String { is_key: true, at: InString::Plain { high: false } }),
                '}' if or_end => self.close(true),
                _ => Step::Wrong,
            },
            State::Colon if c == ':' => self.go(State::Start { or_end: false }),
            State::Next => match (c, self.open.last()) {
                (',', Some(true)) => self.go(State::Key { or_end: false }),
                (',', Some(false)) => self.go(State::Start { or_end: false }),
                ('}', Some(true)) => self.close(true),
                (']', Some(false)) => self.close(false),
                _ => Step::Wrong,
            },
            State::Colon => Step::Wrong,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    fn start(&mut self, c: char) -> Step {
        let state = match c {
            '"' => State::String { is_key: false, at: InString::Plain { high: false } },
            '{' | '[' if self.open.len() == DEEPEST => return Step::Wrong,
            '{' => {
                self.open.push(true);
                State::Key { or_end: true }
            }
            '[' => {
                self.open.push(false);
                State::Start { or_end: true }
            }
            't' => State::Word("rue"),
            'f' => State::Word("alse"),
            'n' => State::Word("ull"),
            '-' => State::Number(InNumber::Minus),
            '0' => State::Number(InNumber::Zero),
            '1'..='9' => State::Number(InNumber::Digits),
            _ => return Step::Wrong,
        };
        self.go(state)
    }

    fn close(&mut self, is_object: bool) -> Step {
        match self.open.pop() {
            Some(open) if open == is_object => self.ended(),
            _ => Step::Wrong,
        }
    }

    /// A value has ended, be it the whole or one inside it.
    fn ended(&mut self) -> Step {
        self.state = State::Next;
        if self.open.is_empty() { Step::Last } else { Step::More }
    }

    fn string(&mut self, is_key: bool, at: InString, c: char) -> Step {
        let at = match (at, c) {
            (InString::Plain { high }, '\\') => InString::Escape { high },
            (InString::Plain { high: true }, _) => return Step::Wrong,
            (InString::Plain { .. }, '"') if is_key => return self.go(State::Colon),
            (InString::Plain { .. }, '"') => return self.ended(),
            (InString::Plain { .. }, _) => at,
            (InString::Escape { high }, 'u') => InString::Hex { high, digits: 0, unit: 0 },
            (InString::Escape { high: false }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                InString::Plain { high: false }
            }
            (InString::Escape { .. }, _) => return Step::Wrong,
            (InString::Hex { high, digits, unit }, _) => {
                let Some(digit) = c.to_digit(16) else { return Step::Wrong };
                let unit = 16 * unit + digit;
                match (digits, unit) {
                    (0..3, _) => InString::Hex { high, digits: digits + 1, unit },
                    (_, 0xD800..0xDC00) if !high => InString::Plain { high: true },
                    (_, 0xDC00..0xE000) if high => InString::Plain { high: false },
                    (_, 0xD800..0xE000) => return Step::Wrong,
                    _ if high => return Step::Wrong,
                    _ => InString::Plain { high: false },
                }
            }
        };
        self.go(State::String { is_key, at })
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

    /// Whether the text is one value, by this module.
    fn is_value(text: &str) -> bool {
        let mut value = Value::new();
        let mut whole = false;
        for c in text.chars() {
            if whole {
                return false;
            }
            match value.push(c) {
                Step::More => {}
                Step::Last => whole = true,
                Step::After | Step::Wrong => return false,
            }
        }
        whole || matches!(value.state, State::Number(at) if at.is_whole() && value.open.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// On texts made of JSON's own pieces, the same as `serde_json`.
        #[test]
        fn agrees_with_serde(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"a\":", "\\", "\\n", "\\ud83d", "\\ude00", "\\u00e9", "é",
            "1", "0", "-", ".", "e", "E+", "12", "true", "false", "null", "nul", " ", "{}", "[]", "[1", "\"\"",
        ]), 0..12)) {
            let text: String = pieces.concat();
            let expected = text.trim_matches(is_space) == text && serde_json::from_str::<IgnoredAny>(&text).is_ok();
            // `IgnoredAny` does not look at surrogates.
            let strings = serde_json::from_str::<serde_json::Value>(&text);
            let lone = strings.is_err_and(|error| error.to_string().contains("surrogate") || error.to_string().contains("hex escape"));
            prop_assert_eq!(is_value(&text), expected && !lone, "{}", text);
        }
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(is_value(&nested(DEEPEST)) && !is_value(&nested(DEEPEST + 1)));
    }
}
