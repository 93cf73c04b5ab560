//! The layout of a weight matrix in a GPU's memory, as `kernels/common/format.h` describes it.
//!
//! The bits of a block are split into separate arrays, each aligned for the widest load: planes of codes, and scales.
//! Nothing is rounded, and (except for the scales of Q3_K, and zeros after rows of floats that are no whole groups) no byte
//! is added.

use std::ops::Range;

use basert_core::{Base, BlockFormat, Codes, Format, GroupScales, Value};

use crate::Kernel;

/// Values in a group.
pub const GROUP: usize = 32;
/// Alignment of arrays.
const ALIGNMENT: usize = 256;

/// The contents of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// The values as they are.
    Floats,
    /// `bits` bits of each code, starting with bit `from`.
    Codes { bits: u32, from: u32 },
    /// Scales and mins of groups.
    Scales(Scales),
    /// The block's own scales or mins, which multiply those of groups.
    Bases { min: bool },
}

/// The kinds of scales; the numbers are those of `format.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    F16 = 1,
    F16Min = 2,
    SixBits = 3,
    Nibbles = 4,
    I8 = 5,
    SixSigned = 6,
    E8M0 = 7,
}

/// One array.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Array {
    content: Content,
    /// Bytes per block of the format.
    bytes: usize,
    /// Bytes from the start of the matrix.
    offset: usize,
}

/// The columns of a matrix with zeros after each row, up to whole groups.
pub fn padded(columns: usize) -> usize {
    columns.next_multiple_of(GROUP)
}

/// The layout of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    format: Format,
    /// Blocks of the matrix, those of zeros among them.
    blocks: usize,
    /// Whether zeros follow each row.
    is_padded: bool,
    arrays: Vec<Array>,
    /// Its size in bytes.
    pub bytes: usize,
}

impl Layout {
    /// The layout of `rows` × `columns` values.
    ///
    /// # Errors
    /// When rows are not whole blocks.
    pub fn new(format: Format, rows: usize, columns: usize) -> Result<Layout, String> {
        let block = format.block();
        if !columns.is_multiple_of(block.elements) {
            return Err(format!("rows of {columns} values are not whole blocks of {}", block.elements));
        }
        // Floats have blocks of one value, and all others of whole groups.
        let blocks = rows * padded(columns) / block.elements;
        let mut arrays = Vec::new();
        let mut offset = 0;
        for content in contents(block) {
            let bytes = content.bytes(block);
            arrays.push(Array { content, bytes, offset });
            offset = (offset + bytes * blocks).next_multiple_of(ALIGNMENT);
        }
        Ok(Layout { format, blocks, is_padded: padded(columns) > columns, arrays, bytes: offset })
    }

    /// The kernel with the macros that `format.h` needs.
    #[must_use]
    pub fn define(&self, mut kernel: Kernel) -> Kernel {
        kernel = kernel.define("FLOAT_BITS", float_bits(self.format));
        for array in &self.arrays {
            kernel = match array.content {
                Content::Floats => kernel,
                Content::Codes { bits, from } => {
                    let name = match bits {
                        8 => "BYTES_AT",
                        4 => "NIBBLES_AT",
                        2 => "PAIRS_AT",
                        _ => "BITS_AT",
                    };
                    let kernel = kernel.define(name, format!("{}ul", array.offset));
                    if from > 0 { kernel.define("BITS_SHIFT", from) } else { kernel }
                }
                Content::Scales(scales) => {
                    kernel.define("SCALES", scales as u32).define("SCALES_AT", format!("{}ul", array.offset))
                }
                Content::Bases { .. } => kernel.define("BASES_AT", format!("{}ul", array.offset)),
            };
        }
        match self.format.block().codes {
            Codes::Float => kernel,
            Codes::Quantised { value: Value::Integer { zero }, .. } => kernel.define("ZERO", format!("{zero}.0f")),
            Codes::Quantised { value: Value::Signed8, .. } => kernel.define("ZERO", "0.0f").define("CODE_SIGNED", 1),
            Codes::Quantised { value: Value::Table(table), .. } => {
                let names = ["CODE_TABLE_0", "CODE_TABLE_1", "CODE_TABLE_2", "CODE_TABLE_3"];
                let words = table.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(four.map(|x| x as u8)));
                let kernel = names
                    .into_iter()
                    .zip(words)
                    .fold(kernel, |kernel, (name, word)| kernel.define(name, format!("{word}u")));
                kernel.define("ZERO", "0.0f")
            }
        }
    }

    /// Whether the file's layout is that of kernels.
    pub fn is_that_of_files(&self) -> bool {
        matches!(self.format.block().codes, Codes::Float) && !self.is_padded
    }

    /// Bytes of its blocks in a file whose layout is that of kernels.
    pub fn bytes_of_file(&self) -> usize {
        self.blocks * self.format.block().bytes
    }

    /// Checks that all scales and values of the file's blocks are finite.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, source: &[u8]) -> Result<(), String> {
        let block = self.format.block();
        match block.codes {
            Codes::Float => check_floats(self.format, source),
            Codes::Quantised { .. } => source.chunks_exact(block.bytes).try_for_each(|bytes| check_block(block, bytes)),
        }
    }

    /// Repacks a row of the file's blocks, or several without zeros after them: block `first` of the matrix and those after it.
    ///
    /// # Errors
    /// What is wrong, when a scale is not finite.
    ///
    /// # Panics
    /// When `source` is not whole blocks, or `memory` too small.
    pub fn pack(&self, first: usize, source: &[u8], memory: &mut Pieces<'_>) -> Result<(), String> {
        let block = self.format.block();
        assert!(source.len().is_multiple_of(block.bytes));
        if let Codes::Float = block.codes {
            check_floats(self.format, source)?;
            memory.piece(0, first * block.bytes, source.len()).copy_from_slice(source);
            return Ok(());
        }
        let mut codes = vec![0; block.elements];
        for (i, bytes) in source.chunks_exact(block.bytes).enumerate() {
            check_block(block, bytes)?;
            unpack_codes(block, bytes, &mut codes);
            for (k, array) in self.arrays.iter().enumerate() {
                let out = memory.piece(k, (first + i) * array.bytes, array.bytes);
                match array.content {
                    Content::Floats => {}
                    Content::Codes { bits, from } => pack_codes(&codes, bits, from, out),
                    Content::Scales(scales) => pack_scales(block, bytes, scales, out),
                    Content::Bases { min } => pack_bases(block, bytes, min, out),
                }
            }
        }
        Ok(())
    }

    /// Splits the memory of a matrix into pieces for ranges of blocks, which can be packed independently.
    pub fn pieces<'m>(&self, memory: &'m mut [u8], ranges: &[Range<usize>]) -> Vec<Pieces<'m>> {
        let mut pieces: Vec<Pieces> = ranges.iter().map(|_| Pieces { arrays: Vec::new() }).collect();
        let mut rest = memory;
        let mut at = 0;
        for array in &self.arrays {
            rest = rest.split_at_mut(array.offset - at).1;
            at = array.offset;
            for (range, piece) in ranges.iter().zip(&mut pieces) {
                let (own, after) = rest.split_at_mut(range.len() * array.bytes);
                piece.arrays.push((range.start * array.bytes, own));
                rest = after;
                at += range.len() * array.bytes;
            }
        }
        pieces
    }

    /// Blocks of the matrix, those of zeros among them.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}

/// The part of a matrix's memory that belongs to a range of blocks.
pub struct Pieces<'m> {
    /// For each array the offset of the part, and its bytes.
    arrays: Vec<(usize, &'m mut [u8])>,
}

impl Pieces<'_> {
    fn piece(&mut self, array: usize, offset: usize, len: usize) -> &mut [u8] {
        let (start, bytes) = &mut self.arrays[array];
        &mut bytes[offset - *start..][..len]
    }
}

/// 0 for formats that are not floats; bfloat16 counts as 17.
fn float_bits(format: Format) -> u32 {
    match format {
        Format::F32 => 32,
        Format::F16 => 16,
        Format::BF16 => 17,
        _ => 0,
    }
}

fn contents(block: &BlockFormat) -> Vec<Content> {
    let Codes::Quantised { base, min, scales, planes, .. } = block.codes else { return vec![Content::Floats] };
    let bits: u32 = planes.iter().map(|plane| plane.width).sum();
    let mut contents = Vec::new();
    // All bits of a code, the widest plane first.
    let mut from = 0;
    for width in [8, 4, 2, 1] {
        if bits - from >= width {
            contents.push(Content::Codes { bits: width, from });
            from += width;
        }
    }
    let (kind, bases) = match (base, scales) {
        (Base::E8M0(_), _) => (Scales::E8M0, false),
        (_, GroupScales::None) if min.is_some() => (Scales::F16Min, false),
        (_, GroupScales::None) => (Scales::F16, false),
        (_, GroupScales::SixBitPairs(_)) => (Scales::SixBits, false),
        (_, GroupScales::Nibbles(_)) => (Scales::Nibbles, true),
        (_, GroupScales::SixBitSigned(_) | GroupScales::I8(_)) => (Scales::I8, true),
        (_, GroupScales::NibbleAndTwoBits { .. }) => (Scales::SixSigned, false),
    };
    contents.push(Content::Scales(kind));
    if bases {
        contents.push(Content::Bases { min: min.is_some() });
    }
    contents
}

impl Content {
    /// Its bytes per block.
    fn bytes(self, block: &BlockFormat) -> usize {
        let groups = block.elements / GROUP;
        match self {
            Content::Floats => block.bytes,
            Content::Codes { bits, .. } => block.elements * bits as usize / 8,
            Content::Scales(Scales::F16) => 2 * groups,
            Content::Scales(Scales::F16Min) => 4 * groups,
            Content::Scales(Scales::SixBits) => 16,
            Content::Scales(Scales::Nibbles | Scales::I8) => 2 * groups,
            Content::Scales(Scales::SixSigned) => 8,
            Content::Scales(Scales::E8M0) => groups,
            Content::Bases { min } => {
                if min {
                    4
                } else {
                    2
                }
            }
        }
    }
}

/// The code of each value of a block.
fn unpack_codes(block: &BlockFormat, bytes: &[u8], codes: &mut [u8]) {
    let Codes::Quantised { planes, .. } = block.codes else { return };
    codes.fill(0);
    let mut position = 0;
    for plane in planes {
        let mask = ((1u16 << plane.width) - 1) as u8;
        for (s, span) in codes.chunks_exact_mut(plane.span).enumerate() {
            let from = &bytes[plane.offset + s * plane.run..][..plane.run];
            for (k, run) in span.chunks_exact_mut(plane.run).enumerate() {
                let shift = plane.width * k as u32;
                for (code, byte) in run.iter_mut().zip(from) {
                    *code |= ((byte >> shift) & mask) << position;
                }
            }
        }
        position += plane.width;
    }
}

/// Byte i of a group's `n` holds values i, i + n, i + 2n, … from its lowest bits up; whole bytes are interleaved
/// instead, four of the first half and four of the second.
fn pack_codes(codes: &[u8], bits: u32, from: u32, out: &mut [u8]) {
    let n = GROUP * bits as usize / 8;
    for (group, out) in codes.chunks_exact(GROUP).zip(out.chunks_exact_mut(n)) {
        if bits == 8 {
            for (j, (low, high)) in group[..16].chunks_exact(4).zip(group[16..].chunks_exact(4)).enumerate() {
                out[8 * j..8 * j + 4].copy_from_slice(low);
                out[8 * j + 4..8 * j + 8].copy_from_slice(high);
            }
            continue;
        }
        let mask = ((1u16 << bits) - 1) as u8;
        out.fill(0);
        for (k, values) in group.chunks_exact(n).enumerate() {
            for (byte, code) in out.iter_mut().zip(values) {
                *byte |= ((code >> from) & mask) << (bits as usize * k);
            }
        }
    }
}

fn pack_scales(block: &BlockFormat, bytes: &[u8], kind: Scales, out: &mut [u8]) {
    let Codes::Quantised { base, min, scales, .. } = block.codes else { return };
    let base_at = match base {
        Base::F16(at) | Base::E8M0(at) => at,
    };
    let min_at = min.map_or(0, |(at, _)| at);
    match (kind, scales) {
        (Scales::F16, _) => out.copy_from_slice(&bytes[base_at..base_at + 2]),
        (Scales::E8M0, _) => out[0] = bytes[base_at],
        (Scales::F16Min, _) => {
            out[..2].copy_from_slice(&bytes[base_at..base_at + 2]);
            out[2..].copy_from_slice(&bytes[min_at..min_at + 2]);
        }
        (Scales::SixBits, GroupScales::SixBitPairs(at)) => {
            out[..2].copy_from_slice(&bytes[base_at..base_at + 2]);
            out[2..4].copy_from_slice(&bytes[min_at..min_at + 2]);
            out[4..].copy_from_slice(&bytes[at..at + 12]);
        }
        (Scales::Nibbles, GroupScales::Nibbles(at)) => out.copy_from_slice(&bytes[at..at + out.len()]),
        (Scales::SixSigned, GroupScales::NibbleAndTwoBits { low, high }) => {
            out[..2].copy_from_slice(&bytes[base_at..base_at + 2]);
            out[2..4].copy_from_slice(&bytes[high..high + 2]);
            out[4..].copy_from_slice(&bytes[low..low + 4]);
        }
        _ => out.iter_mut().enumerate().for_each(|(g, out)| *out = scales.read(bytes, g).0 as u8),
    }
}

fn pack_bases(block: &BlockFormat, bytes: &[u8], with_min: bool, out: &mut [u8]) {
    let Codes::Quantised { base: Base::F16(at), min, .. } = block.codes else { return };
    out[..2].copy_from_slice(&bytes[at..at + 2]);
    if let (true, Some((at, _))) = (with_min, min) {
        out[2..].copy_from_slice(&bytes[at..at + 2]);
    }
}

fn check_block(block: &BlockFormat, bytes: &[u8]) -> Result<(), String> {
    let Codes::Quantised { base, min, .. } = block.codes else { return Ok(()) };
    let scale = base.read(bytes);
    let min = min.map_or(0.0, |(at, _)| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32());
    match [scale, min].into_iter().find(|x| !x.is_finite()) {
        Some(x) => Err(format!("a scale is {x}, not a finite number")),
        None => Ok(()),
    }
}

fn check_floats(format: Format, bytes: &[u8]) -> Result<(), String> {
    // A value is not finite if all bits of its exponent are set.
    let (size, exponent) = match format {
        Format::F32 => (4, 0x7f80),
        Format::F16 => (2, 0x7c00),
        _ => (2, 0x7f80),
    };
    let top = |value: &[u8]| u16::from_le_bytes([value[size - 2], value[size - 1]]);
    match bytes.chunks_exact(size).position(|value| top(value) & exponent == exponent) {
        Some(i) => Err(format!("value {i} is not a finite number")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use basert_core::{FORMATS, codec};

    use super::*;

    /// The decoder of `format.h`, for a value of the matrix.
    fn value(layout: &Layout, memory: &[u8], i: usize) -> f32 {
        let array = |wanted: fn(Content) -> bool| {
            layout.arrays.iter().find(|array| wanted(array.content)).map(|array| &memory[array.offset..])
        };
        let half = |bytes: &[u8], i: usize| half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32();
        let (group, e) = (i / GROUP, i % GROUP);
        let Codes::Quantised { value, .. } = layout.format.block().codes else {
            let mut out = [0.0];
            let size = layout.format.block().bytes;
            codec::decode(layout.format, &memory[i * size..][..size], &mut out).unwrap();
            return out[0];
        };
        let mut code = 0;
        for array in &layout.arrays {
            let Content::Codes { bits, from } = array.content else { continue };
            let n = GROUP * bits as usize / 8;
            let bytes = &memory[array.offset + group * n..][..n];
            let bits_of = if bits == 8 {
                bytes[e % 16 / 4 * 8 + e / 16 * 4 + e % 4]
            } else {
                (bytes[e % n] >> (bits as usize * (e / n))) & ((1u16 << bits) - 1) as u8
            };
            code |= bits_of << from;
        }
        let scales = array(|content| matches!(content, Content::Scales(_))).unwrap();
        let bases = array(|content| matches!(content, Content::Bases { .. }));
        let Some(Content::Scales(kind)) =
            layout.arrays.iter().map(|array| array.content).find(|content| matches!(content, Content::Scales(_)))
        else {
            panic!("no scales");
        };
        let (g, b) = (group % 8, group / 8);
        let (scale, min) = match kind {
            Scales::F16 => (half(scales, group), 0.0),
            Scales::F16Min => (half(scales, 2 * group), half(scales, 2 * group + 1)),
            Scales::E8M0 => (2f32.powi(i32::from(scales[group]) - 128), 0.0),
            Scales::SixBits => {
                let all = &scales[16 * b..16 * b + 16];
                let (scale, min) = GroupScales::SixBitPairs(4).read(all, g);
                (half(all, 0) * scale as f32, -half(all, 1) * min as f32)
            }
            Scales::SixSigned => {
                let all = &scales[8 * b..8 * b + 8];
                (half(all, 0) * GroupScales::NibbleAndTwoBits { low: 4, high: 2 }.read(all, g).0 as f32, 0.0)
            }
            Scales::Nibbles => {
                let (both, bases) = (scales[2 * group + e / 16], bases.unwrap());
                (half(bases, 2 * b) * f32::from(both & 15), -half(bases, 2 * b + 1) * f32::from(both >> 4))
            }
            Scales::I8 => (half(bases.unwrap(), b) * f32::from(scales[2 * group + e / 16] as i8), 0.0),
        };
        scale * value.decode(code) as f32 + min
    }

    #[test]
    fn packed_values_are_those_of_the_codec() {
        let (rows, columns) = (3, 512);
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919 % 1013) as f32 / 506.0 - 1.0) * 3.0).collect();
        for row in &FORMATS {
            let mut source = vec![0; row.format.row_bytes(columns).unwrap() * rows];
            codec::encode(row.format, &values, &mut source).unwrap();
            let mut expected = vec![0.0; values.len()];
            codec::decode(row.format, &source, &mut expected).unwrap();
            let layout = Layout::new(row.format, rows, columns).unwrap();
            let mut memory = vec![0xff; layout.bytes];
            let middle = layout.blocks() / 2;
            let ranges = [0..middle, middle..layout.blocks()];
            for (range, mut piece) in ranges.iter().zip(layout.pieces(&mut memory, &ranges)) {
                let bytes = &source[range.start * row.bytes..range.end * row.bytes];
                layout.pack(range.start, bytes, &mut piece).unwrap();
            }
            for (i, expected) in expected.iter().enumerate() {
                let found = value(&layout, &memory, i);
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{} value {i}", row.name);
            }
            let overhead = layout.bytes as f64 / source.len() as f64;
            assert!(overhead < 1.04 + 4.0 * ALIGNMENT as f64 / source.len() as f64, "{} takes {overhead}", row.name);
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_found() {
        for row in FORMATS.iter().filter(|row| !matches!(row.codes, Codes::Quantised { base: Base::E8M0(_), .. })) {
            let layout = Layout::new(row.format, 1, 256).unwrap();
            let source = vec![0xff; row.format.row_bytes(256).unwrap()];
            let mut memory = vec![0; layout.bytes];
            let ranges = std::slice::from_ref(&(0..layout.blocks())).to_vec();
            let mut pieces = layout.pieces(&mut memory, &ranges);
            assert!(layout.pack(0, &source, &mut pieces[0]).unwrap_err().contains("finite"), "{}", row.name);
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert!(Layout::new(Format::Q4_0, 2, 48).unwrap_err().contains("48"));
        assert!(Layout::new(Format::Q4_K, 2, 96).is_err());
    }

    #[test]
    fn zeros_follow_rows_that_are_no_whole_groups() {
        let layout = Layout::new(Format::F16, 2, 48).unwrap();
        assert_eq!((layout.blocks(), layout.is_that_of_files()), (128, false));
        let mut memory = vec![0; layout.bytes];
        let rows = [0..64, 64..128];
        for (row, mut piece) in rows.iter().zip(layout.pieces(&mut memory, &rows)) {
            layout.pack(row.start, &[0x3c; 96], &mut piece).unwrap();
        }
        for row in memory[..256].chunks_exact(128) {
            assert!(row[..96].iter().all(|&byte| byte == 0x3c) && row[96..].iter().all(|&byte| byte == 0));
        }
    }
}
