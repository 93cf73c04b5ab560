//! SentencePiece's `precompiled_charsmap`: which characters are replaced by which before a text is cut.
//!
//! Four bytes with the length of a double array, the double array, and the replacements, each ended by a zero byte.
//! A unit of the array has in its low byte the label by which it is reached, in bits 10 to 30 the distance to its
//! children (in units of 256 if bit 9 is set), and bit 8 says that it has a child with a value: where the replacement
//! starts. The format is that of the darts-clone library.

use crate::TokenizerError;

/// The map, as in the file.
pub(crate) struct CharsMap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl CharsMap {
    /// Reads the map; `field` names where it comes from.
    pub fn new(bytes: &[u8], field: &str) -> Result<Self, TokenizerError> {
        let wrong = |found: String, expected: &str| TokenizerError::field(field, found, expected);
        let (head, rest) =
            bytes.split_first_chunk().ok_or_else(|| wrong(format!("{} bytes", bytes.len()), "a length of 4 bytes"))?;
        let len = u32::from_le_bytes(*head) as usize;
        if len > rest.len() || !len.is_multiple_of(4) || len == 0 {
            let found = format!("an array of {len} bytes in {} bytes", bytes.len());
            return Err(wrong(found, "a multiple of 4 that fits"));
        }
        let (array, replacements) = rest.split_at(len);
        let units =
            array.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
        if replacements.last() != Some(&0) || std::str::from_utf8(replacements).is_err() {
            return Err(wrong("replacements that are not so".into(), "UTF-8 strings, each ended by a zero byte"));
        }
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// The text with every longest match replaced.
    pub fn apply(&self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let taken = match self.longest_match(rest.as_bytes()) {
                // A match may only end between characters.
                Some((len, replacement)) if rest.is_char_boundary(len) => {
                    result.push_str(replacement);
                    len
                }
                _ => {
                    result.push(first);
                    first.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        result
    }

    /// Length of the longest key that `text` begins with, and its replacement.
    fn longest_match(&self, text: &[u8]) -> Option<(usize, &str)> {
        let distance = |unit: u32| ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
        let mut longest = None;
        let mut at = distance(*self.units.first()?);
        for (index, &byte) in text.iter().enumerate().take_while(|&(_, &byte)| byte != 0) {
            at ^= byte as usize;
            let Some(&unit) = self.units.get(at) else { break };
            if unit & 0x8000_00FF != u32::from(byte) {
                break;
            }
            at ^= distance(unit);
            if unit & 0x100 != 0
                && let Some(value) = self.units.get(at)
            {
                longest = Some((index + 1, (value & 0x7FFF_FFFF) as usize));
            }
        }
        let (len, start) = longest?;
        let tail = self.replacements.get(start..)?;
        let end = tail.iter().position(|&byte| byte == 0)?;
        Some((len, std::str::from_utf8(&tail[..end]).ok()?))
    }
}
