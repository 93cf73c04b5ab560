//! Writing a GGUF file, version 3.

use std::io::Write;

use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, Type};
use crate::{Problem, TensorSpec, TensorWriter};

/// A GGUF file under construction: metadata and the declarations of tensors. Their values follow as a stream.
///
/// ```
/// use basert_core::Format;
/// use basert_files::{TensorSpec, gguf};
///
/// let mut writer = gguf::Writer::new();
/// writer.set("general.architecture", "llama")?;
/// writer.set("llama.block_count", &2u32)?;
/// writer.set("tokenizer.ggml.tokens", ["a", "b"].as_slice())?;
/// writer.declare(TensorSpec::new("output_norm.weight", Format::F32, &[2]))?;
/// let mut tensors = writer.begin(Vec::new())?;
/// tensors.append(&[0; 8])?;
/// let file = tensors.finish()?;
/// assert_eq!(gguf::parse(&file)?.tensors.len(), 1);
/// # Ok::<(), basert_files::Problem>(())
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    /// Key, and the encoded value.
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<(TensorSpec, usize)>,
}

impl Writer {
    /// A file without metadata and tensors.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a metadata value. `general.alignment` cannot be set: tensors lie at multiples of 32.
    ///
    /// # Errors
    /// When the key has a value already, or is `general.alignment`.
    pub fn set<T: Field + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), Problem> {
        if key == "general.alignment" {
            return Err(Problem::unsupported("setting 'general.alignment'", "tensors are aligned to 32 bytes"));
        }
        if self.metadata.iter().any(|row| row.0 == key) {
            return Err(Problem::Duplicate { field: format!("metadata key '{key}'") });
        }
        let mut bytes = (T::TYPE as u32).to_le_bytes().to_vec();
        value.write(&mut bytes);
        self.metadata.push((key.to_owned(), bytes));
        Ok(())
    }

    /// Adds a tensor; tensors are written in the order of these calls.
    ///
    /// # Errors
    /// When the name is taken, or a GGUF file cannot hold this shape in this format.
    pub fn declare(&mut self, tensor: TensorSpec) -> Result<(), Problem> {
        if self.tensors.iter().any(|row| row.0.name == tensor.name) {
            return Err(Problem::Duplicate { field: format!("tensor '{}'", tensor.name) });
        }
        if !(1..=MAX_DIMENSIONS).contains(&tensor.shape.len()) {
            let field = format!("the number of dimensions of tensor '{}'", tensor.name);
            return Err(Problem::invalid(field, tensor.shape.len().to_string(), "1 to 4"));
        }
        let len = tensor.byte_len()?;
        self.tensors.push((tensor, len));
        Ok(())
    }

    /// Writes everything except the tensors' values, which go to the result.
    ///
    /// # Errors
    /// When the output fails.
    pub fn begin<W: Write>(self, mut out: W) -> Result<TensorWriter<W>, Problem> {
        let mut head = MAGIC.to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            key.write(&mut head);
            head.extend(value);
        }
        let mut offset = 0u64;
        for (tensor, len) in &self.tensors {
            tensor.name.write(&mut head);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dimension in tensor.shape.iter().rev() {
                head.extend((dimension as u64).to_le_bytes());
            }
            head.extend(tensor.format.block().gguf_type.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += (*len as u64).next_multiple_of(DEFAULT_ALIGNMENT as u64);
        }
        head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
        out.write_all(&head)?;
        let lengths = self.tensors.into_iter().map(|row| row.1).collect();
        Ok(TensorWriter::new(out, lengths, DEFAULT_ALIGNMENT))
    }
}

/// A Rust value that GGUF metadata can hold: numbers, truth values, strings, and slices of these.
pub trait Field {
    /// The type that it has in the file.
    const TYPE: Type;

    /// Appends its bytes to `out`, without the type.
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($rust:ty => $variant:ident),*) => {$(
        impl Field for $rust {
            const TYPE: Type = Type::$variant;

            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}

numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, u64 => U64, i64 => I64,
    f64 => F64);

impl Field for bool {
    const TYPE: Type = Type::Bool;

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Field for str {
    const TYPE: Type = Type::String;

    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend(self.as_bytes());
    }
}

impl Field for String {
    const TYPE: Type = Type::String;

    fn write(&self, out: &mut Vec<u8>) {
        self.as_str().write(out);
    }
}

impl<T: Field + ?Sized> Field for &T {
    const TYPE: Type = T::TYPE;

    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
}

impl<T: Field> Field for [T] {
    const TYPE: Type = Type::Array;

    fn write(&self, out: &mut Vec<u8>) {
        (T::TYPE as u32).write(out);
        (self.len() as u64).write(out);
        self.iter().for_each(|element| element.write(out));
    }
}

impl<T: Field> Field for Vec<T> {
    const TYPE: Type = Type::Array;

    fn write(&self, out: &mut Vec<u8>) {
        self.as_slice().write(out);
    }
}
