//! The arithmetic of architecture files: numbers, strings, lists, names, `+ - * / %`, comparisons,
//! `&& || !`, `a ? b : c`, `list[i]`, and the functions `sqrt`, `min`, `max`. No loops, no definitions.

use std::fmt;

/// The value of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number. Whole numbers below 2^53 are exact.
    Number(f64),
    /// A truth value.
    Bool(bool),
    /// A piece of text.
    Text(String),
    /// Several values, such as one a layer.
    List(Vec<Value>),
}

impl Value {
    /// The number, if it is one, or a list of the same one for every layer.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Number(x) => Some(*x),
            Value::List(items) => {
                let first = items.first()?;
                items.iter().all(|item| item == first).then(|| first.number())?
            }
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(x) => write!(f, "{x}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::Text(x) => write!(f, "'{x}'"),
            Value::List(items) => write!(f, "a list of {}", items.len()),
        }
    }
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("in '{expression}': {what}")]
pub struct ExprError {
    expression: String,
    what: String,
}

/// The value of `expression`, with names looked up by `lookup`.
///
/// # Errors
/// When it does not parse, has an unknown name, or applies an operation to a value of the wrong type.
pub fn evaluate(expression: &str, lookup: &dyn Fn(&str) -> Option<Value>) -> Result<Value, ExprError> {
    let mut parser = Parser { rest: expression, lookup, depth: 0, live: true };
    let value = parser.choice().and_then(|value| match parser.peek() {
        None => Ok(value),
        Some(c) => Err(format!("did not expect '{c}' here")),
    });
    value.map_err(|what| ExprError { expression: expression.to_owned(), what })
}

struct Parser<'t, 'a> {
    rest: &'t str,
    lookup: &'a dyn Fn(&str) -> Option<Value>,
    depth: usize,
    /// Whether the part being parsed is evaluated; a branch that was not chosen only has to parse.
    live: bool,
}

/// The deepest nesting: deeper than any sensible expression, and safe for any stack.
const MAX_DEPTH: usize = 32;

/// Binary operators, loosest first.
const LEVELS: [&[&str]; 5] = [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

impl<'t> Parser<'t, '_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn accept(&mut self, token: &str) -> bool {
        self.peek();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.accept(token) { Ok(()) } else { Err(format!("expected '{token}' before '{}'", self.rest)) }
    }

    fn choice(&mut self) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let condition = self.binary(0)?;
        let value = if self.accept("?") {
            let chosen = self.live && truth(&condition)?;
            let yes = self.only_if(chosen, Self::choice)?;
            self.expect(":")?;
            let no = self.only_if(!chosen, Self::choice)?;
            if chosen { yes } else { no }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(value)
    }

    /// Parses a part that is evaluated only if `condition` holds.
    fn only_if(
        &mut self,
        condition: bool,
        part: impl FnOnce(&mut Self) -> Result<Value, String>,
    ) -> Result<Value, String> {
        let outer = self.live;
        self.live = outer && condition;
        let value = part(self);
        self.live = outer;
        value
    }

    fn binary(&mut self, level: usize) -> Result<Value, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.accept(operator)) {
            let decided = self.live && (level < 2) && truth(&left)? == (*operator == "||");
            let right = self.only_if(!decided, |parser| parser.binary(level + 1))?;
            if self.live && !decided {
                left = apply(operator, &left, &right)?;
            }
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let value = if self.accept("!") {
            let value = self.unary()?;
            if self.live { Value::Bool(!truth(&value)?) } else { value }
        } else if self.accept("-") {
            let value = self.unary()?;
            if self.live { Value::Number(-number(&value)?) } else { value }
        } else {
            self.operand()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn operand(&mut self) -> Result<Value, String> {
        let mut value = match self.peek() {
            None => return Err("it ends too early".to_owned()),
            Some('(') => {
                self.expect("(")?;
                let value = self.choice()?;
                self.expect(")")?;
                value
            }
            Some(quote @ ('\'' | '"')) => {
                let (text, rest) = self.rest[1..].split_once(quote).ok_or("a string is not closed")?;
                self.rest = rest;
                Value::Text(text.to_owned())
            }
            Some(c) if c.is_ascii_digit() || c == '.' => {
                let word = self.word(|c| c.is_ascii_alphanumeric() || c == '.');
                Value::Number(word.parse().map_err(|_| format!("'{word}' is not a number"))?)
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
                if self.accept("(") {
                    self.call(name)?
                } else {
                    match name {
                        "true" => Value::Bool(true),
                        "false" => Value::Bool(false),
                        _ if !self.live => Value::Bool(false),
                        _ => (self.lookup)(name).ok_or_else(|| format!("'{name}' is not known"))?,
                    }
                }
            }
            Some(c) => return Err(format!("did not expect '{c}' here")),
        };
        while self.accept("[") {
            let index = self.choice()?;
            self.expect("]")?;
            if !self.live {
                continue;
            }
            let index = number(&index)?;
            value = item(&value, index).ok_or(format!("{value} has no item {index}"))?;
        }
        Ok(value)
    }

    fn call(&mut self, name: &str) -> Result<Value, String> {
        let mut arguments = vec![self.choice()?];
        while self.accept(",") {
            arguments.push(self.choice()?);
        }
        self.expect(")")?;
        if !self.live {
            return Ok(Value::Bool(false));
        }
        if let ("has", [Value::List(items), item]) = (name, &arguments[..]) {
            return Ok(Value::Bool(items.contains(item)));
        }
        // An item of a list, or a value that stands for all of them.
        if let ("at", [values, index]) = (name, &arguments[..]) {
            let Value::List(_) = values else { return Ok(values.clone()) };
            let index = number(index)?;
            return item(values, index).ok_or(format!("{values} has no item {index}"));
        }
        match (name, &arguments[..]) {
            ("len", [Value::List(items)]) => return Ok(Value::Number(items.len() as f64)),
            ("len", [Value::Text(text)]) => return Ok(Value::Number(text.chars().count() as f64)),
            _ => {}
        }
        let arguments = arguments.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        match (name, &arguments[..]) {
            ("floor", [x]) => Ok(Value::Number(x.floor())),
            ("exp", [x]) => Ok(Value::Number(x.exp())),
            ("pow", [x, y]) => Ok(Value::Number(x.powf(*y))),
            ("sqrt", [x]) => Ok(Value::Number(x.sqrt())),
            ("ln", [x]) => Ok(Value::Number(x.ln())),
            ("min", [a, b]) => Ok(Value::Number(a.min(*b))),
            ("max", [a, b]) => Ok(Value::Number(a.max(*b))),
            _ => Err(format!("there is no function '{name}' of {} arguments", arguments.len())),
        }
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }
}

/// An item of a list, or a character of a text.
fn item(value: &Value, index: f64) -> Option<Value> {
    let index = (index >= 0.0).then_some(index as usize)?;
    match value {
        Value::List(items) => items.get(index).cloned(),
        Value::Text(text) => text.chars().nth(index).map(|c| Value::Text(c.to_string())),
        _ => None,
    }
}

fn number(value: &Value) -> Result<f64, String> {
    value.number().ok_or_else(|| format!("{value} is not a number"))
}

fn truth(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(x) => Ok(*x),
        _ => Err(format!("{value} is neither true nor false")),
    }
}

fn apply(operator: &str, left: &Value, right: &Value) -> Result<Value, String> {
    Ok(match operator {
        "==" => Value::Bool(left == right),
        "!=" => Value::Bool(left != right),
        "&&" => Value::Bool(truth(left)? && truth(right)?),
        "||" => Value::Bool(truth(left)? || truth(right)?),
        _ => {
            let (a, b) = (number(left)?, number(right)?);
            match operator {
                "<" => Value::Bool(a < b),
                ">" => Value::Bool(a > b),
                "<=" => Value::Bool(a <= b),
                ">=" => Value::Bool(a >= b),
                "+" => Value::Number(a + b),
                "-" => Value::Number(a - b),
                "*" => Value::Number(a * b),
                "/" => Value::Number(a / b),
                _ => Value::Number(a % b),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(expression: &str) -> Result<Value, ExprError> {
        evaluate(expression, &|name| match name {
            "hidden" => Some(Value::Number(576.0)),
            "heads" => Some(Value::Number(9.0)),
            "source" => Some(Value::Text("hf".into())),
            "kinds" => Some(Value::List(vec![Value::Text("a".into()), Value::Text("b".into())])),
            "kv_heads" => Some(Value::List(vec![Value::Number(3.0); 2])),
            "widths" => Some(Value::List(vec![Value::Number(3.0), Value::Number(4.0)])),
            _ => None,
        })
    }

    #[test]
    fn arithmetic_binds_as_usual() {
        for (expression, value) in [
            ("hidden / heads", 64.0),
            ("1 + 2 * 3 - -4", 11.0),
            ("(1 + 2) * 3 % 5", 4.0),
            ("1 / sqrt(hidden / heads)", 0.125),
            ("source == 'hf' ? 1 : 0", 1.0),
            ("2 > 1 && !(3 <= 2) ? max(1, 2) : 1e3", 2.0),
            ("kinds[1] == \"b\" ? 1.5 : 2", 1.5),
            ("heads / kv_heads + widths[1]", 7.0),
            ("source == '' ? 1 : source == 'hf' ? 3 : hidden[2]", 3.0),
            ("false && source[1] || true ? 4 : sqrt(source)", 4.0),
            ("source[1] == 'f' ? len(source) : len(widths)", 2.0),
        ] {
            assert_eq!(eval(expression), Ok(Value::Number(value)), "{expression}");
        }
    }

    #[test]
    fn errors_say_where() {
        for (expression, part) in [
            ("hiden / 2", "'hiden' is not known"),
            ("1 +", "ends too early"),
            ("source * 2", "'hf' is not a number"),
            ("widths * 2", "a list of 2 is not a number"),
            ("1 2", "did not expect '2'"),
            ("kinds[7]", "has no item 7"),
            ("source[0 - 1]", "has no item -1"),
            ("'open", "not closed"),
        ] {
            let error = eval(expression).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(expression), "{error}");
        }
        let deep = "(".repeat(10_000) + "1";
        assert!(eval(&deep).unwrap_err().to_string().contains("nested too deeply"));
        assert!(eval(&"-".repeat(10_000)).unwrap_err().to_string().contains("nested too deeply"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~]{0,40}") {
            let _ = eval(&text);
        }
    }
}
