//! The table of formats.

use std::fmt;
use std::str::FromStr;

use crate::FormatError;

/// A number format of a weight. The names are those of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// One format: `elements` values in `bytes` bytes, decoded as
///
/// ```text
/// value = base · scale[group] · code'  +  min_base · min[group]
/// ```
///
/// where `code'` is the integer that the bit planes of [`Codes`] hold for the element, interpreted by [`Value`]; a part
/// that a format lacks is 1 (a scale) or 0 (a min). Offsets are bytes from the start of the block.
///
/// Sources: the GGUF block layouts of ggml (`ggml-common.h`, `ggml-quants.c`), and for MXFP4 the OCP
/// Microscaling Formats specification 1.0.
#[derive(Debug, Clone, Copy)]
pub struct BlockFormat {
    /// Which format this describes.
    pub format: Format,
    /// Its name as GGUF tools print it.
    pub name: &'static str,
    /// The number of the type in a GGUF file.
    pub gguf_type: u32,
    /// Values in a block.
    pub elements: usize,
    /// Bytes in a block.
    pub bytes: usize,
    /// How the values are laid out in it.
    pub codes: Codes,
}

/// What a block holds.
#[derive(Debug, Clone, Copy)]
pub enum Codes {
    /// Floating-point values as they are, one an element.
    Float,
    /// Small integers with scales.
    Quantised {
        /// The block's own scale.
        base: Base,
        /// The block's own min, an f16 at this offset; negative factor where the min is subtracted.
        min: Option<(usize, f32)>,
        /// Values that share one scale.
        group: usize,
        /// The scale (and min) of each group.
        scales: GroupScales,
        /// Where the bits of a code lie, low bits first.
        planes: &'static [Plane],
        /// What the code stands for.
        value: Value,
    },
}

/// The scale of a whole block.
#[derive(Debug, Clone, Copy)]
pub enum Base {
    /// An f16 at this offset.
    F16(usize),
    /// A power of two, 2^(e − 127), with `e` the byte at this offset.
    E8M0(usize),
}

/// Scales of the groups inside a block: small integers.
#[derive(Debug, Clone, Copy)]
pub enum GroupScales {
    /// The block is one group.
    None,
    /// One byte a group at this offset: scale in the low nibble, min in the high one.
    Nibbles(usize),
    /// 12 bytes at this offset hold eight 6-bit scales and eight 6-bit mins (Q4_K, Q5_K).
    SixBitPairs(usize),
    /// 12 bytes at this offset hold sixteen 6-bit scales, of which 32 is subtracted (Q3_K).
    SixBitSigned(usize),
    /// One signed byte a group at this offset.
    I8(usize),
    /// Low nibbles at `low`, two high bits a group in a u16 at `high`, of which 32 is subtracted (IQ4_XS).
    NibbleAndTwoBits {
        /// Offset of the low nibbles.
        low: usize,
        /// Offset of the u16 of high bits.
        high: usize,
    },
}

/// Some bits of every code. Element `i` has `width` bits in byte `offset + (i / span)·run + i mod run`,
/// shifted by `width · ((i mod span) / run)`.
#[derive(Debug, Clone, Copy)]
pub struct Plane {
    /// Where the plane begins.
    pub offset: usize,
    /// Bits of each element in it.
    pub width: u32,
    /// Elements that share `run` bytes.
    pub span: usize,
    /// Bytes they share.
    pub run: usize,
}

/// What an integer code stands for.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// `code − zero`.
    Integer {
        /// The code of the value 0.
        zero: i32,
    },
    /// The code as a two's-complement byte.
    Signed8,
    /// An entry of a table of sixteen.
    Table(&'static [i8; 16]),
}

/// The non-linear 4-bit values of IQ4_NL and IQ4_XS.
static IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The values of E2M1, doubled so that they are integers.
static E2M1_TIMES_2: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

const fn plane(offset: usize, width: u32, span: usize, run: usize) -> Plane {
    Plane { offset, width, span, run }
}

const fn float(format: Format, name: &'static str, gguf_type: u32, bytes: usize) -> BlockFormat {
    BlockFormat { format, name, gguf_type, elements: 1, bytes, codes: Codes::Float }
}

const fn quantised(
    format: Format,
    name: &'static str,
    gguf_type: u32,
    (elements, bytes): (usize, usize),
    codes: Codes,
) -> BlockFormat {
    BlockFormat { format, name, gguf_type, elements, bytes, codes }
}

/// Every format that a weight can be in, in the order of [`Format`].
pub static FORMATS: [BlockFormat; 16] = {
    use Format::*;
    use GroupScales as G;
    use Value::*;
    [
        float(F32, "F32", 0, 4),
        float(F16, "F16", 1, 2),
        float(BF16, "BF16", 30, 2),
        quantised(
            Q4_0,
            "Q4_0",
            2,
            (32, 18),
            Codes::Quantised {
                base: Base::F16(0),
                min: None,
                group: 32,
                scales: G::None,
                planes: &[plane(2, 4, 32, 16)],
                value: Integer { zero: 8 },
            },
        ),
        quantised(
            Q4_1,
            "Q4_1",
            3,
            (32, 20),
            Codes::Quantised {
                base: Base::F16(0),
                min: Some((2, 1.0)),
                group: 32,
                scales: G::None,
                planes: &[plane(4, 4, 32, 16)],
                value: Integer { zero: 0 },
            },
        ),
        quantised(
            Q5_0,
            "Q5_0",
            6,
            (32, 22),
            Codes::Quantised {
                base: Base::F16(0),
                min: None,
                group: 32,
                scales: G::None,
                planes: &[plane(6, 4, 32, 16), plane(2, 1, 8, 1)],
                value: Integer { zero: 16 },
            },
        ),
        quantised(
            Q5_1,
            "Q5_1",
            7,
            (32, 24),
            Codes::Quantised {
                base: Base::F16(0),
                min: Some((2, 1.0)),
                group: 32,
                scales: G::None,
                planes: &[plane(8, 4, 32, 16), plane(4, 1, 8, 1)],
                value: Integer { zero: 0 },
            },
        ),
        quantised(
            Q8_0,
            "Q8_0",
            8,
            (32, 34),
            Codes::Quantised {
                base: Base::F16(0),
                min: None,
                group: 32,
                scales: G::None,
                planes: &[plane(2, 8, 32, 32)],
                value: Signed8,
            },
        ),
        quantised(
            Q2_K,
            "Q2_K",
            10,
            (256, 84),
            Codes::Quantised {
                base: Base::F16(80),
                min: Some((82, -1.0)),
                group: 16,
                scales: G::Nibbles(0),
                planes: &[plane(16, 2, 128, 32)],
                value: Integer { zero: 0 },
            },
        ),
        quantised(
            Q3_K,
            "Q3_K",
            11,
            (256, 110),
            Codes::Quantised {
                base: Base::F16(108),
                min: None,
                group: 16,
                scales: G::SixBitSigned(96),
                planes: &[plane(32, 2, 128, 32), plane(0, 1, 256, 32)],
                value: Integer { zero: 4 },
            },
        ),
        quantised(
            Q4_K,
            "Q4_K",
            12,
            (256, 144),
            Codes::Quantised {
                base: Base::F16(0),
                min: Some((2, -1.0)),
                group: 32,
                scales: G::SixBitPairs(4),
                planes: &[plane(16, 4, 64, 32)],
                value: Integer { zero: 0 },
            },
        ),
        quantised(
            Q5_K,
            "Q5_K",
            13,
            (256, 176),
            Codes::Quantised {
                base: Base::F16(0),
                min: Some((2, -1.0)),
                group: 32,
                scales: G::SixBitPairs(4),
                planes: &[plane(48, 4, 64, 32), plane(16, 1, 256, 32)],
                value: Integer { zero: 0 },
            },
        ),
        quantised(
            Q6_K,
            "Q6_K",
            14,
            (256, 210),
            Codes::Quantised {
                base: Base::F16(208),
                min: None,
                group: 16,
                scales: G::I8(192),
                planes: &[plane(0, 4, 128, 64), plane(128, 2, 128, 32)],
                value: Integer { zero: 32 },
            },
        ),
        quantised(
            IQ4_NL,
            "IQ4_NL",
            20,
            (32, 18),
            Codes::Quantised {
                base: Base::F16(0),
                min: None,
                group: 32,
                scales: G::None,
                planes: &[plane(2, 4, 32, 16)],
                value: Table(&IQ4),
            },
        ),
        quantised(
            IQ4_XS,
            "IQ4_XS",
            23,
            (256, 136),
            Codes::Quantised {
                base: Base::F16(0),
                min: None,
                group: 32,
                scales: G::NibbleAndTwoBits { low: 4, high: 2 },
                planes: &[plane(8, 4, 32, 16)],
                value: Table(&IQ4),
            },
        ),
        quantised(
            MXFP4,
            "MXFP4",
            39,
            (32, 17),
            Codes::Quantised {
                // One less in the exponent, for the table holds doubled values.
                base: Base::E8M0(0),
                min: None,
                group: 32,
                scales: G::None,
                planes: &[plane(1, 4, 32, 16)],
                value: Table(&E2M1_TIMES_2),
            },
        ),
    ]
};

impl Format {
    /// Its row of the table.
    pub fn block(self) -> &'static BlockFormat {
        &FORMATS[self as usize]
    }

    /// The format with this type number in a GGUF file, if there is one.
    pub fn from_gguf_type(number: u32) -> Option<Format> {
        FORMATS.iter().find(|row| row.gguf_type == number).map(|row| row.format)
    }

    /// Its name as GGUF tools print it.
    pub fn name(self) -> &'static str {
        self.block().name
    }

    /// Whether values are stored as they are, one an element.
    pub fn is_float(self) -> bool {
        matches!(self.block().codes, Codes::Float)
    }

    /// Bytes that a row of `len` values takes, or an error when the row does not consist of whole blocks.
    pub fn row_bytes(self, len: usize) -> Result<usize, FormatError> {
        let block = self.block();
        if !len.is_multiple_of(block.elements) {
            return Err(FormatError::PartialBlock { format: self, block: block.elements, len });
        }
        (len / block.elements).checked_mul(block.bytes).ok_or(FormatError::WrongSize {
            format: self,
            len,
            expected: usize::MAX,
            found: 0,
        })
    }

    /// Mean bits per value.
    pub fn bits(self) -> f64 {
        let block = self.block();
        block.bytes as f64 * 8.0 / block.elements as f64
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    /// Reads a name of the table, in either case.
    fn from_str(text: &str) -> Result<Self, String> {
        FORMATS.iter().find(|row| row.name.eq_ignore_ascii_case(text)).map(|row| row.format).ok_or_else(|| {
            let known: Vec<_> = FORMATS.iter().map(|row| row.name).collect();
            format!("no format is called '{text}'; known are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in FORMATS.iter().enumerate() {
            assert_eq!(row.format as usize, i, "{}", row.name);
            assert_eq!(Format::from_gguf_type(row.gguf_type), Some(row.format));
            assert_eq!(row.name.to_lowercase().parse(), Ok(row.format));
        }
    }

    /// Every bit of a block belongs to exactly one thing.
    #[test]
    fn planes_cover_their_bytes_once() {
        for row in &FORMATS {
            let Codes::Quantised { planes, group, .. } = row.codes else { continue };
            assert_eq!(row.elements % group, 0);
            let mut used = vec![0u8; row.bytes];
            for plane in planes {
                for i in 0..row.elements {
                    let (byte, shift) = plane.locate(i);
                    let mask = ((1u16 << plane.width) - 1) << shift;
                    assert!(mask < 256, "{}", row.name);
                    assert_eq!(used[byte] & mask as u8, 0, "{} element {i}", row.name);
                    used[byte] |= mask as u8;
                }
            }
            assert!(used.iter().all(|&bits| bits == 0 || bits == 0xff), "{}", row.name);
        }
    }
}
