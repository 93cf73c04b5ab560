//! Metadata values, of either kind of file.

use std::fmt;

use serde_json::Value as Json;

use crate::gguf::{Cursor, Type};

/// A metadata value: a view of the mapping (GGUF) or of parsed JSON (Hugging Face).
///
/// Numbers come as the widest type of their kind. The accessors convert between integers where the value allows it,
/// and from integers to floats, never the other way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A JSON null; only as an element of an array, since a key whose value is null counts as absent.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number of a signed type, or a negative one in JSON.
    Int(i64),
    /// A number of an unsigned type, or an integer that is not negative in JSON.
    Uint(u64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// A GGUF string that is not UTF-8.
    Bytes(&'a [u8]),
    /// A list.
    Array(Array<'a>),
    /// A JSON object. Its fields have dotted keys of their own.
    Object,
}

impl<'a> Value<'a> {
    /// The truth value, if it is one.
    #[inline]
    pub fn as_bool(self) -> Option<bool> {
        if let Value::Bool(x) = self { Some(x) } else { None }
    }

    /// The integer, if it is one that is not negative.
    #[inline]
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Value::Uint(x) => Some(x),
            Value::Int(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// The integer, if it is one that fits.
    #[inline]
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Value::Int(x) => Some(x),
            Value::Uint(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    #[inline]
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(x),
            Value::Int(x) => Some(x as f64),
            Value::Uint(x) => Some(x as f64),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[inline]
    pub fn as_str(self) -> Option<&'a str> {
        if let Value::Str(text) = self { Some(text) } else { None }
    }

    /// The bytes of the text, UTF-8 or not.
    #[inline]
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Str(text) => Some(text.as_bytes()),
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_array(self) -> Option<Array<'a>> {
        if let Value::Array(array) = self { Some(array) } else { None }
    }

    pub(crate) fn of_json(json: &'a Json) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(x) => Value::Bool(*x),
            Json::Number(x) => match (x.as_u64(), x.as_i64()) {
                (Some(x), _) => Value::Uint(x),
                (None, Some(x)) => Value::Int(x),
                (None, None) => Value::Float(x.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Str(text),
            Json::Array(elements) => Value::Array(Array(Elements::Json(elements))),
            Json::Object(_) => Value::Object,
        }
    }

    #[inline]
    pub(crate) fn of_text(bytes: &'a [u8]) -> Value<'a> {
        std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Str)
    }
}

/// As `inspect` shows it: strings quoted, long lists truncated, with their length.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::Int(x) => write!(f, "{x}"),
            Value::Uint(x) => write!(f, "{x}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Str(text) => write!(f, "{text:?}"),
            Value::Bytes(bytes) => write!(f, "b\"{}\"", bytes.escape_ascii()),
            Value::Array(array) => write!(f, "{array:?}"),
            Value::Object => f.write_str("{…}"),
        }
    }
}

/// A list in metadata. Its elements are decoded lazily.
#[derive(Clone, Copy)]
pub struct Array<'a>(pub(crate) Elements<'a>);

#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    /// `len` elements, known to lie entirely in `bytes`.
    Gguf {
        ty: Type,
        len: usize,
        bytes: &'a [u8],
    },
    Json(&'a [Json]),
}

impl<'a> Array<'a> {
    /// How many elements it has.
    pub fn len(self) -> usize {
        match self.0 {
            Elements::Gguf { len, .. } => len,
            Elements::Json(elements) => elements.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// What the elements are: the name of the GGUF type, or "json".
    pub fn element_type(self) -> &'static str {
        match self.0 {
            Elements::Gguf { ty, .. } => ty.name(),
            Elements::Json(_) => "json",
        }
    }

    /// Its elements. Each step takes constant time (for an array in an array: time linear in its size).
    pub fn iter(self) -> ArrayIter<'a> {
        ArrayIter(self.0)
    }

    /// The bytes of the elements, if they are strings.
    ///
    /// Unlike [`Value::as_str`] this does not check for UTF-8, which would dominate the time for a large vocabulary.
    pub fn byte_strings(self) -> Option<impl Iterator<Item = &'a [u8]> + Clone + use<'a>> {
        let strings = match self.0 {
            Elements::Gguf { ty, .. } => ty == Type::String,
            Elements::Json(elements) => elements.iter().all(Json::is_string),
        };
        let mut rest = self.0;
        let text = |json: &'a Json| json.as_str().map(str::as_bytes);
        strings.then(|| std::iter::from_fn(move || rest.step(|cursor, _| cursor.string().ok(), text)))
    }

    /// The elements as converted by `read`, if it converts all of them: `array.all(Value::as_str)`. Checks the array in
    /// one pass first; nothing is stored.
    pub fn all<T>(self, read: fn(Value<'a>) -> Option<T>) -> Option<impl Iterator<Item = T> + Clone + use<'a, T>> {
        self.iter().all(|value| read(value).is_some()).then(|| self.iter().filter_map(read))
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        f.write_str("[")?;
        for (i, value) in self.iter().take(SHOWN).enumerate() {
            write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
        }
        if self.len() > SHOWN { write!(f, ", … {} in all]", self.len()) } else { f.write_str("]") }
    }
}

impl<'a> Elements<'a> {
    /// Takes the first element, as the reader of its kind decodes it.
    #[inline]
    fn step<T>(
        &mut self,
        gguf: impl FnOnce(&mut Cursor<'a>, Type) -> Option<T>,
        json: impl FnOnce(&'a Json) -> Option<T>,
    ) -> Option<T> {
        match self {
            Elements::Gguf { ty, len, bytes } => {
                *len = len.checked_sub(1)?;
                let mut cursor = Cursor::new(bytes);
                let value = gguf(&mut cursor, *ty)?;
                *bytes = cursor.rest();
                Some(value)
            }
            Elements::Json(elements) => {
                let (first, rest) = elements.split_first()?;
                *elements = rest;
                json(first)
            }
        }
    }
}

/// The elements of an [`Array`].
#[derive(Debug, Clone)]
pub struct ArrayIter<'a>(Elements<'a>);

impl fmt::Debug for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Array(*self).fmt(f)
    }
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.0.step(|cursor, ty| cursor.value(ty).ok(), |json| Some(Value::of_json(json)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = Array(self.0).len();
        (len, Some(len))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}
