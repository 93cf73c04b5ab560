//! The header of one GGUF file.

use std::ops::Range;

use basert_core::{FORMATS, Format};
use indexmap::IndexMap;
use indexmap::map::Entry;

use super::{Cursor, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, Type};
use crate::tensor::byte_len;
use crate::{Problem, TensorInfo, Value};

/// Everything before the tensors' bytes, checked against the length of the file.
///
/// It holds names and positions; values stay in the file's bytes.
#[derive(Debug)]
pub struct Header {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// The multiple at which tensors begin.
    pub alignment: usize,
    /// The tensors, in the order of the file.
    pub tensors: IndexMap<String, TensorInfo>,
    metadata: IndexMap<String, (Type, usize)>,
}

impl Header {
    /// The metadata keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The value of `key` in `bytes`, the file that this header was parsed from.
    pub fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let &(ty, at) = self.metadata.get(key)?;
        Cursor::new(bytes.get(at..)?).value(ty).ok()
    }
}

/// Reads and checks everything in a GGUF file except the values of tensors.
///
/// # Errors
/// The first problem found: see [`Problem`].
pub fn parse(bytes: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.take(4).map_err(|fault| fault.of("the magic"))?;
    if magic != MAGIC {
        return Err(not_gguf(bytes));
    }
    let version = cursor.u32().map_err(|fault| fault.of("the version"))?;
    check_version(version)?;
    let tensor_count = cursor.u64().map_err(|fault| fault.of("the number of tensors"))?;
    let key_count = cursor.u64().map_err(|fault| fault.of("the number of metadata keys"))?;

    let mut metadata = IndexMap::new();
    for i in 0..key_count {
        let key = name(&mut cursor, || format!("metadata key {i} of {key_count}"))?;
        let field = || format!("metadata '{key}'");
        let ty = cursor.ty().map_err(|fault| fault.of(field()))?;
        let at = cursor.at();
        cursor.checked_value(ty).map_err(|fault| fault.of(field()))?;
        match metadata.entry(key) {
            Entry::Vacant(entry) => entry.insert((ty, at)),
            Entry::Occupied(entry) => {
                return Err(Problem::Duplicate { field: format!("metadata key '{}'", entry.key()) });
            }
        };
    }
    let mut header = Header { version, alignment: DEFAULT_ALIGNMENT, tensors: IndexMap::new(), metadata };
    if let Some(value) = header.get(bytes, "general.alignment") {
        header.alignment = alignment(value)?;
    }

    for i in 0..tensor_count {
        let (name, info) = tensor(&mut cursor, i, tensor_count, header.alignment)?;
        match header.tensors.entry(name) {
            Entry::Vacant(entry) => entry.insert(info),
            Entry::Occupied(entry) => return Err(Problem::Duplicate { field: format!("tensor '{}'", entry.key()) }),
        };
    }
    let data = cursor.at().checked_next_multiple_of(header.alignment).unwrap_or(usize::MAX);
    for (name, info) in &mut header.tensors {
        info.range = place(&info.range, data, bytes.len()).ok_or_else(|| Problem::Truncated {
            field: format!("the values of tensor '{name}'"),
            offset: (data as u64).saturating_add(info.range.start as u64),
            needed: info.range.len() as u64,
            available: (bytes.len() as u64).saturating_sub((data as u64).saturating_add(info.range.start as u64)),
        })?;
    }
    Ok(header)
}

/// What a GGUF file calls its architecture, as far as its first bytes tell.
pub fn architecture(head: &[u8]) -> Option<&str> {
    let mut cursor = Cursor::new(head);
    if cursor.take(4).ok()? != MAGIC {
        return None;
    }
    check_version(cursor.u32().ok()?).ok()?;
    let (_, keys) = (cursor.u64().ok()?, cursor.u64().ok()?);
    for _ in 0..keys {
        let key = cursor.string().ok()?;
        let ty = cursor.ty().ok()?;
        let value = cursor.checked_value(ty).ok()?;
        if key == b"general.architecture" {
            return match value {
                Value::Str(text) => Some(text),
                _ => None,
            };
        }
    }
    None
}

/// `range`, which counts from `data`, counted from the start of the file; `None` if it is not inside the file.
fn place(range: &Range<usize>, data: usize, file: usize) -> Option<Range<usize>> {
    let end = data.checked_add(range.end)?;
    (end <= file).then(|| data + range.start..end)
}

/// The info of one tensor, with its range still counted from the start of the data.
fn tensor(cursor: &mut Cursor<'_>, i: u64, count: u64, alignment: usize) -> Result<(String, TensorInfo), Problem> {
    let name = name(cursor, || format!("the name of tensor {i} of {count}"))?;
    let of = |what: &str| format!("the {what} of tensor '{name}'");
    let dimensions = cursor.u32().map_err(|fault| fault.of(of("number of dimensions")))?;
    if !(1..=MAX_DIMENSIONS as u32).contains(&dimensions) {
        return Err(Problem::invalid(of("number of dimensions"), dimensions.to_string(), "1 to 4"));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let dimension = cursor.u64().map_err(|fault| fault.of(of("shape")))?;
        let too_large = |_| Problem::invalid(of("shape"), dimension.to_string(), "dimensions that fit in memory");
        shape.push(usize::try_from(dimension).map_err(too_large)?);
    }
    shape.reverse();
    let number = cursor.u32().map_err(|fault| fault.of(of("type")))?;
    let format = Format::from_gguf_type(number).ok_or_else(|| unreadable_type(&name, number))?;
    let offset = cursor.u64().map_err(|fault| fault.of(of("offset")))?;
    if offset % alignment as u64 != 0 {
        return Err(Problem::invalid(of("offset"), offset.to_string(), format!("a multiple of {alignment}")));
    }
    let len = byte_len(&name, format, &shape)?;
    let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(len)?));
    let range = range.ok_or_else(|| Problem::invalid(of("offset"), offset.to_string(), "one inside the file"))?;
    Ok((name, TensorInfo { format, shape, range }))
}

/// A key or a name: UTF-8.
fn name(cursor: &mut Cursor<'_>, field: impl Fn() -> String) -> Result<String, Problem> {
    let bytes = cursor.string().map_err(|fault| fault.of(field()))?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => {
            let start = &bytes[..bytes.len().min(64)];
            Err(Problem::invalid(field(), format!("b\"{}\"", start.escape_ascii()), "UTF-8"))
        }
    }
}

fn alignment(value: Value<'_>) -> Result<usize, Problem> {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| n.is_power_of_two() && *n >= 8)
        .map(|n| n as usize)
        .ok_or_else(|| Problem::invalid("metadata 'general.alignment'", value.to_string(), "a power of two from 8 on"))
}

fn check_version(version: u32) -> Result<(), Problem> {
    let supported = "GGUF versions 2 and 3, little-endian, can be read";
    match version {
        2 | 3 => Ok(()),
        1 => Err(Problem::unsupported("GGUF version 1", supported)),
        // A small number in the wrong byte order.
        _ if version.trailing_zeros() >= 16 => {
            let version = version.swap_bytes();
            Err(Problem::unsupported(format!("big-endian GGUF (version {version})"), supported))
        }
        _ => Err(Problem::unsupported(format!("GGUF version {version}"), supported)),
    }
}

/// The error for a file that is not GGUF, with what it probably is.
fn not_gguf(bytes: &[u8]) -> Problem {
    let guesses: [(&[u8], &str); 7] = [
        (b"lmgg", " (GGML, which came before GGUF)"),
        (b"fmgg", " (GGMF, which came before GGUF)"),
        (b"tjgg", " (GGJT, which came before GGUF)"),
        (b"version https://git-lfs", " (a Git LFS pointer: the file itself was not downloaded)"),
        (b"PK\x03\x04", " (a zip archive, perhaps a PyTorch checkpoint)"),
        (b"<", " (a web page?)"),
        (b"{", " (JSON?)"),
    ];
    let guess = guesses.iter().find(|(start, _)| bytes.starts_with(start)).map_or("", |row| row.1);
    let start = &bytes[..bytes.len().min(4)];
    Problem::invalid("the magic", format!("b\"{}\"{guess}", start.escape_ascii()), "b\"GGUF\"")
}

fn unreadable_type(tensor: &str, number: u32) -> Problem {
    let known = OTHER_TYPES.iter().find(|row| row.0 == number).map_or(String::new(), |row| format!(" ({})", row.1));
    let readable: Vec<_> = FORMATS.iter().map(|row| row.name).collect();
    Problem::unsupported(
        format!("type {number}{known} of tensor '{tensor}'"),
        format!("readable are {}", readable.join(", ")),
    )
}

/// Types of ggml that this library does not read, for the message.
static OTHER_TYPES: [(u32, &str); 25] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
];
