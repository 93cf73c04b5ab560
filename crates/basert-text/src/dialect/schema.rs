//! The types of arguments by their tool's schema, for arguments that are not written as JSON.

use serde_json::Value;

/// How many schemas within one are looked at.
const MOST: usize = 200;

/// Kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    /// A string.
    pub const TEXT: Self = Self(1);
    const INTEGER: Self = Self(2);
    const NUMBER: Self = Self(2 | 4);
    const BOOLEAN: Self = Self(8);
    const NULL: Self = Self(16);
    const LIST: Self = Self(32);
    const OBJECT: Self = Self(64);
    /// Any kind.
    pub const ANY: Self = Self(127);

    /// What the argument of this name may be in a call by this schema.
    pub fn of(schema: &Value, key: &str) -> Self {
        Self::by(&schema["properties"][key], schema, &mut { MOST })
    }

    /// Whether it can only be a text.
    pub fn is_text(self) -> bool {
        self == Self::TEXT
    }

    /// Whether it can be a text.
    pub fn may_be_text(self) -> bool {
        self.has(Self::TEXT)
    }

    /// The value that is written so, as JSON. What is of no other kind is a text.
    pub fn json(self, written: &str) -> String {
        let trimmed = written.trim();
        // As Python has them.
        let known = match trimmed {
            "True" | "TRUE" if self.has(Self::BOOLEAN) => "true",
            "False" | "FALSE" if self.has(Self::BOOLEAN) => "false",
            "None" | "NULL" if self.has(Self::NULL) => "null",
            other => other,
        };
        // Not deeper than it may be within the arguments.
        match serde_json::from_str::<[Value; 1]>(&format!("[{known}]")) {
            Ok([value]) if !value.is_string() && self.has(Self::value(&value)) => known.into(),
            Ok([Value::Number(number)]) if self.has(Self::INTEGER) && !self.has(Self::NUMBER) => {
                match number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9e15) {
                    Some(number) => format!("{number:.0}"),
                    None => Value::from(written).to_string(),
                }
            }
            _ => Value::from(written).to_string(),
        }
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::TEXT,
            Value::Array(_) => Self::LIST,
            Value::Object(_) => Self::OBJECT,
        }
    }

    fn named(name: &Value) -> Self {
        match name.as_str() {
            Some("string") => Self::TEXT,
            Some("integer") => Self::INTEGER,
            Some("number") => Self::NUMBER,
            Some("boolean") => Self::BOOLEAN,
            Some("null") => Self::NULL,
            Some("array") => Self::LIST,
            Some("object") => Self::OBJECT,
            _ => Self::ANY,
        }
    }

    fn by(schema: &Value, root: &Value, left: &mut usize) -> Self {
        let Value::Object(parts) = schema else { return Self::ANY };
        let Some(rest) = left.checked_sub(1) else { return Self::ANY };
        *left = rest;
        let mut kinds = Self::ANY;
        for (word, part) in parts {
            let others = match (word.as_str(), part) {
                ("type", Value::Array(names)) => Self(names.iter().fold(0, |all, name| all | Self::named(name).0)),
                ("type", name) => Self::named(name),
                ("const", value) => Self::value(value),
                ("enum", Value::Array(values)) => Self(values.iter().fold(0, |all, value| all | Self::value(value).0)),
                ("anyOf" | "oneOf", Value::Array(schemas)) => {
                    Self(schemas.iter().fold(0, |all, schema| all | Self::by(schema, root, left).0))
                }
                ("allOf", Value::Array(schemas)) => {
                    Self(schemas.iter().fold(Self::ANY.0, |all, schema| all & Self::by(schema, root, left).0))
                }
                ("$ref", Value::String(path)) => {
                    let target = path.strip_prefix('#').and_then(|path| root.pointer(path));
                    target.map_or(Self::ANY, |target| Self::by(target, root, left))
                }
                _ => continue,
            };
            kinds = Self(kinds.0 & others.0);
        }
        if kinds.0 == 0 { Self::ANY } else { kinds }
    }
}
