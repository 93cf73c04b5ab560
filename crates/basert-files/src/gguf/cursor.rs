//! Reading GGUF's primitive values from untrusted bytes.

use crate::value::{Array, Elements};
use crate::{Problem, Value};

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Type {
    /// Every type with its name, in the order of their numbers in a file.
    const ALL: [(Type, &'static str); 13] = [
        (Type::U8, "u8"),
        (Type::I8, "i8"),
        (Type::U16, "u16"),
        (Type::I16, "i16"),
        (Type::U32, "u32"),
        (Type::I32, "i32"),
        (Type::F32, "f32"),
        (Type::Bool, "bool"),
        (Type::String, "string"),
        (Type::Array, "array"),
        (Type::U64, "u64"),
        (Type::I64, "i64"),
        (Type::F64, "f64"),
    ];

    pub(crate) fn from_number(number: u32) -> Option<Type> {
        Self::ALL.get(usize::try_from(number).ok()?).map(|row| row.0)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of a value, if its type has a fixed size.
    fn size(self) -> Option<u64> {
        match self {
            Type::U8 | Type::I8 | Type::Bool => Some(1),
            Type::U16 | Type::I16 => Some(2),
            Type::U32 | Type::I32 | Type::F32 => Some(4),
            Type::U64 | Type::I64 | Type::F64 => Some(8),
            Type::String | Type::Array => None,
        }
    }
}

/// The deepest nesting of arrays; no model's metadata is deeper.
const MAX_DEPTH: u32 = 4;

/// Why a read failed. The caller knows the field's name, the cursor does not.
#[derive(Debug)]
pub(crate) enum Fault {
    Short { offset: usize, needed: u64, available: usize },
    Wrong { found: String, expected: &'static str },
}

impl Fault {
    pub(crate) fn of(self, field: impl Into<String>) -> Problem {
        let field = field.into();
        match self {
            Fault::Short { offset, needed, available } => {
                Problem::Truncated { field, offset: offset as u64, needed, available: available as u64 }
            }
            Fault::Wrong { found, expected } => Problem::Invalid { field, found, expected: expected.into() },
        }
    }
}

/// A position in bytes.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The bytes from here on.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    #[inline]
    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let rest = self.rest();
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or(Fault::Short { offset: self.at, needed: len, available: rest.len() })?;
        self.at += taken.len();
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.u64()?;
        self.take(len)
    }

    /// The number of a type.
    pub(crate) fn ty(&mut self) -> Result<Type, Fault> {
        let number = self.u32()?;
        Type::from_number(number)
            .ok_or_else(|| Fault::Wrong { found: format!("of type {number}"), expected: "a type from 0 to 12" })
    }

    /// A value of type `ty`; the elements of an array are not checked.
    #[inline]
    pub(crate) fn value(&mut self, ty: Type) -> Result<Value<'a>, Fault> {
        Ok(match ty {
            Type::U8 => Value::Uint(self.array::<1>()?[0].into()),
            Type::I8 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            Type::U16 => Value::Uint(u16::from_le_bytes(self.array()?).into()),
            Type::I16 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            Type::U32 => Value::Uint(self.u32()?.into()),
            Type::I32 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            Type::F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            Type::Bool => Value::Bool(self.array::<1>()?[0] != 0),
            Type::String => Value::of_text(self.string()?),
            Type::Array => self.nested()?,
            Type::U64 => Value::Uint(self.u64()?),
            Type::I64 => Value::Int(i64::from_le_bytes(self.array()?)),
            Type::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
        })
    }

    fn nested(&mut self) -> Result<Value<'a>, Fault> {
        let (ty, len) = (self.ty()?, self.u64()?);
        let start = self.at;
        self.skip_elements(ty, len, MAX_DEPTH)?;
        let bytes = &self.bytes[start..self.at];
        // Every element takes at least a byte, so a count that fits the file fits a usize.
        Ok(Value::Array(Array(Elements::Gguf { ty, len: len as usize, bytes })))
    }

    /// Skips `len` elements of an array, checking that they exist and are well-formed.
    fn skip_elements(&mut self, ty: Type, len: u64, depth: u32) -> Result<(), Fault> {
        if let Some(size) = ty.size() {
            let bytes = self.take(len.saturating_mul(size))?;
            let odd = |&&byte: &&u8| ty == Type::Bool && byte > 1;
            return bytes.iter().find(odd).map_or(Ok(()), |&byte| Err(wrong_bool(byte)));
        }
        for _ in 0..len {
            if ty == Type::String {
                self.string()?;
            } else if depth > 1 {
                let (ty, len) = (self.ty()?, self.u64()?);
                self.skip_elements(ty, len, depth - 1)?;
            } else {
                return Err(Fault::Wrong { found: "nested too deep".into(), expected: "arrays at most 4 deep" });
            }
        }
        Ok(())
    }

    /// A value of type `ty`, fully checked.
    pub(crate) fn checked_value(&mut self, ty: Type) -> Result<Value<'a>, Fault> {
        match (ty, self.rest().first()) {
            (Type::Bool, Some(&byte)) if byte > 1 => Err(wrong_bool(byte)),
            _ => self.value(ty),
        }
    }
}

fn wrong_bool(byte: u8) -> Fault {
    Fault::Wrong { found: format!("a bool of value {byte}"), expected: "0 or 1" }
}
