//! Python's `%` of a text and values.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::python;

/// The format with values in place of its fields. One mapping may be the value of all fields that have names.
///
/// The caller limits how wide fields may be.
pub(super) fn format(format: &str, values: &[Value]) -> Result<String, String> {
    let mapping = values.first().filter(|value| values.len() == 1 && value.kind() == ValueKind::Map);
    let mut values = Values { left: values.iter(), mapping };
    let mut out = String::with_capacity(format.len());
    let mut rest = format;
    while let Some((before, field)) = rest.split_once('%') {
        out.push_str(before);
        let mut field = Cursor(field);
        let text = field.read(&mut values)?;
        out.push_str(&text);
        rest = field.0;
    }
    out.push_str(rest);
    match values.left.next() {
        Some(_) if mapping.is_none() => Err("not all values were converted by the format".into()),
        _ => Ok(out),
    }
}

/// The values that are not yet written.
struct Values<'v> {
    left: std::slice::Iter<'v, Value>,
    mapping: Option<&'v Value>,
}

impl<'v> Values<'v> {
    fn next(&mut self) -> Result<&'v Value, String> {
        self.left.next().ok_or_else(|| "not enough values for the format".into())
    }
}

/// The rest of a format, from within a field on.
struct Cursor<'f>(&'f str);

/// How a field is written.
#[derive(Default)]
struct Style {
    is_left: bool,
    has_zeros: bool,
    is_alternate: bool,
    /// What comes before numbers that are not negative.
    sign: Option<char>,
    width: usize,
    precision: Option<usize>,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<char> {
        self.0.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.0 = &self.0[c.len_utf8()..];
        Some(c)
    }

    fn next_if(&mut self, wanted: char) -> bool {
        let is_next = self.0.starts_with(wanted);
        if is_next {
            self.next();
        }
        is_next
    }

    /// A number, or `*` for one of the values.
    fn number(&mut self, values: &mut Values<'_>) -> Result<Option<i64>, String> {
        if self.next_if('*') {
            return values.next()?.as_i64().map(Some).ok_or_else(|| "* wants an integer".into());
        }
        let digits = self.0.len() - self.0.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        match number {
            "" => Ok(None),
            number => number.parse().map(Some).map_err(|_| format!("a width of {number}")),
        }
    }

    /// The text of a field, after its `%`.
    fn read(&mut self, values: &mut Values<'_>) -> Result<String, String> {
        let named = if self.next_if('(') {
            let (name, rest) = self.0.split_once(')').ok_or("a name without a closing bracket")?;
            self.0 = rest;
            let mapping = values.mapping.ok_or("the format wants a mapping")?;
            let value = mapping.get_item(&Value::from(name)).map_err(|error| error.to_string())?;
            Some(Some(value).filter(|value| !value.is_undefined()).ok_or_else(|| format!("there is no {name}"))?)
        } else {
            None
        };
        let mut style = Style::default();
        while let Some(flag) = self.peek().filter(|c| "#0- +".contains(*c)) {
            match flag {
                '#' => style.is_alternate = true,
                '0' => style.has_zeros = true,
                '-' => style.is_left = true,
                '+' => style.sign = Some('+'),
                _ => style.sign = style.sign.or(Some(' ')),
            }
            self.next();
        }
        let width = self.number(values)?.unwrap_or(0);
        style.is_left |= width < 0;
        style.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if self.next_if('.') {
            style.precision = Some(self.number(values)?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0));
        }
        while self.peek().is_some_and(|c| "hlL".contains(c)) {
            self.next();
        }
        let kind = self.next().ok_or("an incomplete format")?;
        if kind == '%' {
            return Ok("%".into());
        }
        let value = match &named {
            Some(value) => value,
            None => values.next()?,
        };
        style.write(kind, value)
    }
}

impl Style {
    fn write(&self, kind: char, value: &Value) -> Result<String, String> {
        match kind {
            's' => Ok(self.text(&python::text(value))),
            'r' => Ok(self.text(&python::representation(value))),
            'a' => {
                let mut text = String::new();
                for c in python::representation(value).chars() {
                    if c.is_ascii() { text.push(c) } else { python::code(c, &mut text) }
                }
                Ok(self.text(&text))
            }
            'c' => {
                let code = value.as_i64().and_then(|code| char::from_u32(u32::try_from(code).ok()?));
                let text = value.as_str().filter(|text| text.chars().nth(1).is_none() && !text.is_empty());
                let text = text.map(str::to_owned).or(code.map(String::from));
                Ok(self.padded(text.ok_or("%c wants a character")?))
            }
            'd' | 'i' | 'u' => {
                let number = match value.kind() {
                    ValueKind::Number if !value.is_integer() => float(value, kind)?.trunc() as i128,
                    _ => integer(value, kind)?,
                };
                let digits = number.unsigned_abs().to_string();
                Ok(self.number(number < 0, "", self.at_least(digits)))
            }
            'x' | 'X' | 'o' => {
                let number = integer(value, kind)?;
                let (prefix, digits) = match kind {
                    'x' => ("0x", format!("{:x}", number.unsigned_abs())),
                    'X' => ("0X", format!("{:X}", number.unsigned_abs())),
                    _ => ("0o", format!("{:o}", number.unsigned_abs())),
                };
                Ok(self.number(number < 0, if self.is_alternate { prefix } else { "" }, self.at_least(digits)))
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = float(value, kind)?;
                let text = self.float(kind.to_ascii_lowercase(), number.abs());
                let text = if kind.is_ascii_uppercase() { text.to_uppercase() } else { text };
                Ok(self.number(number.is_sign_negative() && !number.is_nan(), "", text))
            }
            kind => Err(format!("%{kind} is no format")),
        }
    }

    fn text(&self, text: &str) -> String {
        self.padded(text.chars().take(self.precision.unwrap_or(usize::MAX)).collect())
    }

    fn padded(&self, text: String) -> String {
        let missing = " ".repeat(self.width.saturating_sub(text.chars().count()));
        if self.is_left { text + &missing } else { missing + &text }
    }

    /// With as many digits as the precision asks for.
    fn at_least(&self, digits: String) -> String {
        let missing = self.precision.unwrap_or(0).saturating_sub(digits.len());
        "0".repeat(missing) + &digits
    }

    fn number(&self, is_negative: bool, prefix: &str, digits: String) -> String {
        let sign = if is_negative { Some('-') } else { self.sign }.map(String::from).unwrap_or_default();
        let missing = self.width.saturating_sub(sign.len() + prefix.len() + digits.len());
        let zeros = if self.has_zeros && !self.is_left { "0".repeat(missing) } else { String::new() };
        self.padded(format!("{sign}{prefix}{zeros}{digits}"))
    }

    /// A number that is not negative.
    fn float(&self, kind: char, number: f64) -> String {
        if !number.is_finite() {
            return if number.is_nan() { "nan" } else { "inf" }.into();
        }
        let precision = self.precision.unwrap_or(6);
        match kind {
            'f' => format!("{number:.precision$}"),
            'e' => scientific(number, precision).0,
            _ => {
                let digits = precision.max(1);
                let (text, exponent) = scientific(number, digits - 1);
                let text = match usize::try_from(exponent) {
                    Ok(exponent) if exponent < digits => format!("{number:.*}", digits - 1 - exponent),
                    Err(_) if exponent >= -4 => format!("{number:.*}", digits - 1 + exponent.unsigned_abs() as usize),
                    _ => text,
                };
                if self.is_alternate { text } else { without_zeros(&text) }
            }
        }
    }
}

/// A number with an exponent, and the exponent.
fn scientific(number: f64, precision: usize) -> (String, i32) {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    (format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()), exponent)
}

/// Without zeros at the end of the fraction.
fn without_zeros(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').map_or((text, ""), |(digits, _)| (digits, &text[digits.len()..]));
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}{exponent}")
}

fn integer(value: &Value, kind: char) -> Result<i128, String> {
    let number = match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("%{kind} wants an integer, not {}", value.kind()))
}

fn float(value: &Value, kind: char) -> Result<f64, String> {
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("%{kind} wants a number, not {}", value.kind()))
}
