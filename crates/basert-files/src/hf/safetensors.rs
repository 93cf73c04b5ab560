//! The header of a safetensors file: a u64 length, then JSON that gives each tensor's dtype, shape and place.
//!
//! The `safetensors` crate reads this too, but its errors do not name the tensor, and a sum of offsets in it can
//! overflow; the format is small.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use basert_core::Format;
use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::tensor::byte_len;
use crate::{Problem, TensorInfo};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The supported dtypes.
const DTYPES: [(&str, Format); 3] = [("F32", Format::F32), ("F16", Format::F16), ("BF16", Format::BF16)];

/// Dtypes of what old checkpoints keep beside weights, the numbers of positions and masks, with the bytes of a value: such
/// tensors are passed over.
const PASSED_OVER: [(&str, usize); 2] = [("I64", 8), ("BOOL", 1)];

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Tensors by name, in the order of the header. The map refuses duplicate keys.
struct Entries<'a>(IndexMap<String, Entry<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = IndexMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor '{name}': {e}")))?;
                        if entries.contains_key(&name) {
                            return Err(A::Error::custom(format!("tensor '{name}' appears more than once")));
                        }
                        entries.insert(name, entry);
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Reads and checks everything in a safetensors file except the values of tensors.
///
/// # Errors
/// The first problem found: see [`Problem`].
pub fn parse_safetensors(bytes: &[u8]) -> Result<IndexMap<String, TensorInfo>, Problem> {
    let available = bytes.len() as u64;
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return Err(Problem::Truncated { field: "the length of the header".into(), offset: 0, needed: 8, available });
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        let expected = format!("at most {MAX_HEADER}, as for every safetensors file");
        return Err(Problem::invalid("the length of the header", len.to_string(), expected));
    }
    let Some((header, data)) = rest.split_at_checked(len as usize) else {
        let available = rest.len() as u64;
        return Err(Problem::Truncated { field: "the header".into(), offset: 8, needed: len, available });
    };
    let Entries(entries) = serde_json::from_slice(header).map_err(|e| Problem::json("the header", &e))?;

    let start = bytes.len() - data.len();
    let (mut tensors, mut ranges) = (IndexMap::new(), Vec::new());
    for (name, entry) in entries {
        let (len, format) = match PASSED_OVER.iter().find(|row| row.0 == entry.dtype) {
            Some(&(_, size)) => (entry.shape.iter().fold(size, |all, &part| all.saturating_mul(part)), None),
            None => {
                let format = format_of(&name, &entry)?;
                (byte_len(&name, format, &entry.shape)?, Some(format))
            }
        };
        let range = place(&name, &entry, len, start, bytes.len())?;
        ranges.push((range.start, range.end, name.clone()));
        if let Some(format) = format {
            tensors.insert(name, TensorInfo { format, shape: entry.shape, range });
        }
    }
    check_cover(ranges, start, bytes.len())?;
    Ok(tensors)
}

fn format_of(name: &str, entry: &Entry<'_>) -> Result<Format, Problem> {
    DTYPES.iter().find(|row| row.0 == entry.dtype).map(|row| row.1).ok_or_else(|| {
        Problem::unsupported(format!("dtype {} of tensor '{name}'", entry.dtype), "readable are F32, F16, BF16")
    })
}

/// The checked place of a tensor of so many bytes in a file of `file` bytes, whose data begin at `start`.
fn place(name: &str, entry: &Entry<'_>, len: usize, start: usize, file: usize) -> Result<Range<usize>, Problem> {
    let (begin, end) = entry.data_offsets;
    if end.checked_sub(begin) != Some(len) {
        let expected = format!("{len} bytes, for {:?} of {}", entry.shape, entry.dtype);
        return Err(Problem::invalid(format!("the range of tensor '{name}'"), format!("{begin} to {end}"), expected));
    }
    // The data are the rest of the file after `start`: this sum does not overflow when the check before it holds.
    if end > file - start {
        return Err(Problem::Truncated {
            field: format!("the values of tensor '{name}'"),
            offset: (start as u64).saturating_add(begin as u64),
            needed: len as u64,
            available: (file - start).saturating_sub(begin) as u64,
        });
    }
    Ok(start + begin..start + end)
}

/// The format allows no overlap, no gap and nothing after the last tensor.
fn check_cover(mut ranges: Vec<(usize, usize, String)>, start: usize, file: usize) -> Result<(), Problem> {
    ranges.sort_unstable();
    let mut at = start;
    for (begin, end, name) in ranges {
        if begin != at {
            let field = format!("the offset of tensor '{name}'");
            return Err(Problem::invalid(field, (begin - start).to_string(), (at - start).to_string()));
        }
        at = end;
    }
    if at != file {
        return Err(Problem::invalid(
            "the length of the file",
            file.to_string(),
            format!("{at}, where the tensors end"),
        ));
    }
    Ok(())
}
