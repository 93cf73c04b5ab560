//! Number formats of cached keys and values.

use std::fmt;
use std::str::FromStr;

use crate::Format;

/// How a device stores keys and values.
///
/// A vector, one head's key or value of one token, is quantised by itself, in blocks of 32 consecutive dimensions as the
/// table of formats describes them: each with an `f16` scale, and codes that are rounded to nearest under that scale,
/// ties away from zero.
/// Where the codes and scales lie in memory is up to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    /// Each value as an `f16`.
    #[default]
    F16,
    /// As [`Format::Q8_0`]: scale = largest magnitude / 127, value = scale · code, with codes from −127 to 127.
    Q8,
    /// As [`Format::Q4_0`]: scale = the value of largest magnitude / −8, value = scale · (code − 8), with codes from 0 to
    /// 15.
    Q4,
}

impl KvFormat {
    /// All formats, the most precise first.
    pub const ALL: [KvFormat; 3] = [KvFormat::F16, KvFormat::Q8, KvFormat::Q4];

    /// The row of the table that says how a vector is encoded: its reference codec is that of this format.
    pub fn format(self) -> Format {
        match self {
            KvFormat::F16 => Format::F16,
            KvFormat::Q8 => Format::Q8_0,
            KvFormat::Q4 => Format::Q4_0,
        }
    }

    /// Values that share a scale. Heads have to be whole blocks.
    pub fn block(self) -> usize {
        self.format().block().elements
    }

    /// Bits of a code, by which users choose the format.
    pub fn bits(self) -> usize {
        match self {
            KvFormat::F16 => 16,
            KvFormat::Q8 => 8,
            KvFormat::Q4 => 4,
        }
    }

    /// Bytes that `values` values take with their scales. A partial block counts as a whole one.
    pub fn bytes(self, values: usize) -> usize {
        values.div_ceil(self.block()).saturating_mul(self.format().block().bytes)
    }
}

impl fmt::Display for KvFormat {
    /// Its name, such as `q8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
            KvFormat::Q4 => "q4",
        })
    }
}

impl FromStr for KvFormat {
    type Err = String;

    /// Reads the bits of a code: `16`, `8` or `4`.
    fn from_str(text: &str) -> Result<Self, String> {
        let format = KvFormat::ALL.into_iter().find(|format| format.bits().to_string() == text);
        format.ok_or_else(|| format!("keys and values cannot have '{text}' bits; they can have 16, 8 or 4"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_whole_blocks() {
        assert_eq!(KvFormat::ALL.map(|format| format.bytes(64)), [128, 68, 36]);
        assert_eq!(KvFormat::ALL.map(|format| format.bytes(33)), [66, 68, 36]);
        assert_eq!(KvFormat::ALL.map(|format| format.bytes(0)), [0; 3]);
    }

    #[test]
    fn formats_are_chosen_by_bits() {
        for format in KvFormat::ALL {
            assert_eq!(format.bits().to_string().parse(), Ok(format));
        }
        for text in ["3", "", "016", "q8", "-4"] {
            assert!(text.parse::<KvFormat>().unwrap_err().contains("16, 8 or 4"), "{text}");
        }
    }
}
