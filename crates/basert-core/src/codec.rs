//! The reference decoder and encoder of every block format, driven by its [`BlockFormat`].
//!
//! They are written for clarity. The fast paths of the devices are checked against them.

use half::{bf16, f16};

use crate::{Base, BlockFormat, Codes, Format, FormatError, GroupScales, Plane, Value};

impl Plane {
    /// Byte and shift of the bits of element `i` of a block.
    pub fn locate(&self, i: usize) -> (usize, u32) {
        let byte = self.offset + i / self.span * self.run + i % self.run;
        let shift = self.width * ((i % self.span) / self.run) as u32;
        (byte, shift)
    }
}

impl Base {
    /// The scale of the block.
    pub fn read(self, block: &[u8]) -> f32 {
        match self {
            Base::F16(offset) => read_f16(block, offset),
            Base::E8M0(offset) => exp2(i32::from(block[offset]) - E8M0_BIAS),
        }
    }

    fn write(self, block: &mut [u8], scale: f32) {
        match self {
            Base::F16(offset) => write_f16(block, offset, scale),
            Base::E8M0(offset) => {
                let exponent = if scale > 0.0 { scale.log2().ceil() as i32 } else { -E8M0_BIAS };
                block[offset] = (exponent + E8M0_BIAS).clamp(0, 254) as u8;
            }
        }
    }
}

/// E8M0's bias is 127; one more halves the scale, since tables of E2M1 hold doubled values.
const E8M0_BIAS: i32 = 128;

impl GroupScales {
    /// Integer scale and min of group `g`; (1, 1) if groups have none.
    pub fn read(self, block: &[u8], g: usize) -> (i32, i32) {
        match self {
            GroupScales::None => (1, 1),
            GroupScales::Nibbles(at) => (i32::from(block[at + g] & 15), i32::from(block[at + g] >> 4)),
            GroupScales::SixBitPairs(at) => {
                let s = &block[at..at + 12];
                let (scale, min) = if g < 4 {
                    (s[g] & 63, s[g + 4] & 63)
                } else {
                    ((s[g + 4] & 15) | (s[g - 4] >> 6 << 4), (s[g + 4] >> 4) | (s[g] >> 6 << 4))
                };
                (i32::from(scale), i32::from(min))
            }
            GroupScales::SixBitSigned(at) => {
                let s = &block[at..at + 12];
                let low = (s[g % 8] >> (4 * (g / 8))) & 15;
                let high = (s[8 + g % 4] >> (2 * (g / 4))) & 3;
                (i32::from(low | high << 4) - 32, 0)
            }
            GroupScales::I8(at) => (i32::from(block[at + g] as i8), 0),
            GroupScales::NibbleAndTwoBits { low, high } => {
                let low = (block[low + g / 2] >> (4 * (g % 2))) & 15;
                let high = (u16::from_le_bytes([block[high], block[high + 1]]) >> (2 * g)) & 3;
                (i32::from(low) + (i32::from(high) << 4) - 32, 0)
            }
        }
    }

    /// Sets scale and min of group `g` in a block whose scales were all zero.
    fn write(self, block: &mut [u8], g: usize, scale: i32, min: i32) {
        let (scale_bits, min_bits) = (scale as u8, min as u8);
        match self {
            GroupScales::None => {}
            GroupScales::Nibbles(at) => block[at + g] = scale_bits | min_bits << 4,
            GroupScales::SixBitPairs(at) => {
                let s = &mut block[at..at + 12];
                if g < 4 {
                    s[g] |= scale_bits;
                    s[g + 4] |= min_bits;
                } else {
                    s[g + 4] |= (scale_bits & 15) | min_bits << 4;
                    s[g - 4] |= scale_bits >> 4 << 6;
                    s[g] |= min_bits >> 4 << 6;
                }
            }
            GroupScales::SixBitSigned(at) => {
                let (s, bits) = (&mut block[at..at + 12], (scale + 32) as u8);
                s[g % 8] |= (bits & 15) << (4 * (g / 8));
                s[8 + g % 4] |= (bits >> 4) << (2 * (g / 4));
            }
            GroupScales::I8(at) => block[at + g] = scale_bits,
            GroupScales::NibbleAndTwoBits { low, high } => {
                let bits = (scale + 32) as u16;
                block[low + g / 2] |= ((bits & 15) << (4 * (g % 2))) as u8;
                let both = u16::from_le_bytes([block[high], block[high + 1]]) | (bits >> 4) << (2 * g);
                block[high..high + 2].copy_from_slice(&both.to_le_bytes());
            }
        }
    }

    /// The largest magnitude that a group's scale can have, and the largest min.
    fn limits(self) -> (i32, i32) {
        match self {
            GroupScales::None => (1, 1),
            GroupScales::Nibbles(_) => (15, 15),
            GroupScales::SixBitPairs(_) => (63, 63),
            GroupScales::SixBitSigned(_) | GroupScales::NibbleAndTwoBits { .. } => (31, 0),
            GroupScales::I8(_) => (127, 0),
        }
    }
}

impl Value {
    /// The value of `code`, before any scale.
    pub fn decode(self, code: u8) -> i32 {
        match self {
            Value::Integer { zero } => i32::from(code) - zero,
            Value::Signed8 => i32::from(code as i8),
            Value::Table(table) => i32::from(table[usize::from(code & 15)]),
        }
    }

    /// The code of `bits` bits whose value is nearest to `x`.
    fn encode(self, x: f32, bits: u32) -> u8 {
        match self {
            Value::Integer { zero } => (x.round() as i32).saturating_add(zero).clamp(0, (1 << bits) - 1) as u8,
            Value::Signed8 => x.round().clamp(-127.0, 127.0) as i8 as u8,
            Value::Table(table) => {
                let distance = |code: &u8| (f32::from(table[usize::from(*code)]) - x).abs();
                (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
            }
        }
    }

    /// The range of values of codes of `bits` bits.
    fn range(self, bits: u32) -> (f32, f32) {
        match self {
            Value::Integer { zero } => (-zero as f32, ((1 << bits) - 1 - zero) as f32),
            Value::Signed8 => (-127.0, 127.0),
            Value::Table(table) => {
                (f32::from(*table.iter().min().unwrap_or(&0)), f32::from(*table.iter().max().unwrap_or(&0)))
            }
        }
    }
}

/// Decodes a row of `out.len()` values.
///
/// # Errors
/// When the values are not whole blocks, or `bytes` is not as long as they take.
pub fn decode(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), FormatError> {
    check(format, bytes.len(), out.len())?;
    let block = format.block();
    for (bytes, out) in bytes.chunks_exact(block.bytes).zip(out.chunks_exact_mut(block.elements)) {
        decode_block(block, bytes, out);
    }
    Ok(())
}

/// Encodes a row, rounding each value to the nearest code under scales derived from its group's extremes.
///
/// # Errors
/// When the values are not whole blocks, or `bytes` is not as long as they take.
pub fn encode(format: Format, values: &[f32], bytes: &mut [u8]) -> Result<(), FormatError> {
    check(format, bytes.len(), values.len())?;
    let block = format.block();
    for (bytes, values) in bytes.chunks_exact_mut(block.bytes).zip(values.chunks_exact(block.elements)) {
        encode_block(block, values, bytes);
    }
    Ok(())
}

fn check(format: Format, found: usize, len: usize) -> Result<(), FormatError> {
    let expected = format.row_bytes(len)?;
    if expected != found {
        return Err(FormatError::WrongSize { format, len, expected, found });
    }
    Ok(())
}

fn decode_block(format: &BlockFormat, block: &[u8], out: &mut [f32]) {
    let Codes::Quantised { base, min, group, scales, planes, value } = format.codes else {
        out[0] = match *block {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if format.format == Format::BF16 => bf16::from_le_bytes([a, b]).to_f32(),
            [a, b] => f16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("the caller cut the bytes into blocks"),
        };
        return;
    };
    let d = base.read(block);
    let dmin = min.map_or(0.0, |(offset, sign)| sign * read_f16(block, offset));
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let (scale, min) = scales.read(block, g);
        let (scale, min) = (d * scale as f32, dmin * min as f32);
        for (j, out) in out.iter_mut().enumerate() {
            *out = scale * value.decode(read_code(planes, block, g * group + j)) as f32 + min;
        }
    }
}

/// The integer code of element `i` of a block.
pub fn read_code(planes: &[Plane], block: &[u8], i: usize) -> u8 {
    let mut code = 0;
    let mut bits = 0;
    for plane in planes {
        let (byte, shift) = plane.locate(i);
        let mask = ((1u16 << plane.width) - 1) as u8;
        code |= ((block[byte] >> shift) & mask) << bits;
        bits += plane.width;
    }
    code
}

fn write_code(planes: &[Plane], block: &mut [u8], i: usize, code: u8) {
    let mut code = u16::from(code);
    for plane in planes {
        let (byte, shift) = plane.locate(i);
        block[byte] |= ((code & ((1 << plane.width) - 1)) << shift) as u8;
        code >>= plane.width;
    }
}

fn encode_block(format: &BlockFormat, values: &[f32], block: &mut [u8]) {
    let Codes::Quantised { base, min, group, scales, planes, value } = format.codes else {
        match format.format {
            Format::F32 => block.copy_from_slice(&values[0].to_le_bytes()),
            Format::BF16 => block.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes()),
            _ => block.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes()),
        }
        return;
    };
    block.fill(0);
    let bits = planes.iter().map(|plane| plane.width).sum();
    let range = value.range(bits);
    // The ideal of each group: a scale, and a min that is added.
    let wanted: Vec<(f32, f32)> = values
        .chunks_exact(group)
        .map(|values| match min {
            Some((_, sign)) => affine(values, range, sign < 0.0),
            None => (symmetric(values, range), 0.0),
        })
        .collect();
    let (scale_limit, min_limit) = scales.limits();
    let largest =
        |x: fn(&(f32, f32)) -> f32| wanted.iter().map(x).fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
    base.write(block, largest(|w| w.0) / scale_limit as f32);
    let d = base.read(block);
    let mut dmin = 0.0;
    if let Some((offset, sign)) = min {
        write_f16(block, offset, largest(|w| w.1) / (min_limit as f32 * sign));
        dmin = sign * read_f16(block, offset);
    }
    let ratio = |x: f32, unit: f32, low: i32, high: i32| {
        if unit == 0.0 { 0 } else { ((x / unit).round() as i32).clamp(low, high) }
    };
    for (g, values) in values.chunks_exact(group).enumerate() {
        let signed = if min.is_none() { -scale_limit } else { 0 };
        scales.write(block, g, ratio(wanted[g].0, d, signed, scale_limit), ratio(wanted[g].1, dmin, 0, min_limit));
        let (scale, min) = scales.read(block, g);
        let (scale, min) = (d * scale as f32, dmin * min as f32);
        for (j, &x) in values.iter().enumerate() {
            let x = if scale == 0.0 { 0.0 } else { (x - min) / scale };
            write_code(planes, block, g * group + j, value.encode(x, bits));
        }
    }
}

/// The scale under which the value of largest magnitude falls on the end of the codes' range.
fn symmetric(values: &[f32], (low, high): (f32, f32)) -> f32 {
    let extreme = values.iter().fold(0.0, |a: f32, &b| if b.abs() > a.abs() { b } else { a });
    if high == -low { extreme.abs() / high } else { extreme / low }
}

/// Scale and min under which the group's extremes fall on the ends of the codes' range; the min is at most 0
/// where the format cannot store another.
fn affine(values: &[f32], (low, high): (f32, f32), min_is_negative: bool) -> (f32, f32) {
    let cap = if min_is_negative { 0.0 } else { f32::INFINITY };
    let min = values.iter().fold(cap, |a: f32, &b| a.min(b));
    let max = values.iter().fold(min, |a: f32, &b| a.max(b));
    ((max - min) / (high - low), min)
}

fn read_f16(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn write_f16(block: &mut [u8], offset: usize, x: f32) {
    block[offset..offset + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// 2^exponent, exactly, for exponents from −149 to 127.
fn exp2(exponent: i32) -> f32 {
    match exponent {
        -126.. => f32::from_bits(((exponent + 127) as u32) << 23),
        _ => f32::from_bits(1 << (exponent + 149)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FORMATS;

    /// Values that differ in every lane, with a few outliers.
    fn sample(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0 * if i % 61 == 0 { 1.5 } else { 1.0 }).collect()
    }

    #[test]
    fn what_is_encoded_decodes_to_nearly_itself() {
        for row in &FORMATS {
            let values = sample(512);
            let mut bytes = vec![0; row.format.row_bytes(values.len()).unwrap()];
            encode(row.format, &values, &mut bytes).unwrap();
            let mut decoded = vec![0.0; values.len()];
            decode(row.format, &bytes, &mut decoded).unwrap();
            let bound = match row.format {
                Format::F32 => 0.0,
                Format::F16 => 1e-3,
                Format::BF16 => 8e-3,
                // Its largest codes are 4 and 6: the gap is a third of the range.
                Format::MXFP4 => 0.26,
                _ => 3.6 / f64::from(1u32 << (row.format.bits() as u32)) as f32,
            };
            for (i, (a, b)) in values.iter().zip(&decoded).enumerate() {
                assert!((a - b).abs() <= bound, "{} value {i}: {a} became {b}", row.name);
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_no_value() {
        for row in FORMATS.iter().filter(|row| row.format.is_float()) {
            let values = sample(64);
            let mut bytes = vec![0; row.format.row_bytes(64).unwrap()];
            encode(row.format, &values, &mut bytes).unwrap();
            let mut once = vec![0.0; 64];
            decode(row.format, &bytes, &mut once).unwrap();
            let mut again = bytes.clone();
            encode(row.format, &once, &mut again).unwrap();
            assert_eq!(bytes, again, "{}", row.name);
        }
    }

    #[test]
    fn zeros_survive() {
        for row in &FORMATS {
            let mut bytes = vec![0xaa; row.format.row_bytes(256).unwrap()];
            encode(row.format, &[0.0; 256], &mut bytes).unwrap();
            let mut decoded = vec![1.0; 256];
            decode(row.format, &bytes, &mut decoded).unwrap();
            assert!(decoded.iter().all(|&x| x == 0.0), "{}", row.name);
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let mut out = [0.0; 32];
        assert!(matches!(decode(Format::Q4_0, &[0; 17], &mut out), Err(FormatError::WrongSize { expected: 18, .. })));
        assert!(matches!(decode(Format::Q4_0, &[0; 18], &mut out[..31]), Err(FormatError::PartialBlock { .. })));
    }
}
