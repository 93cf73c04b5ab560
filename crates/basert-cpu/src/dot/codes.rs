//! Unpacking the codes and scales of a panel.

use basert_core::{Base, FORMATS, Format, GroupScales, Plane, Value};

use crate::panel::{PanelFormat, with_format};
use crate::simd::{LANES, Simd};

/// Layout of a quantised format, as a constant.
pub(super) struct Packed<const F: usize>;

impl<const F: usize> Packed<F> {
    pub const FORMAT: PanelFormat = PanelFormat::of(&FORMATS[F]);

    /// How many products of four columns can be added before they have to be widened. Two neighbouring products are at
    /// most `2 · 127` times the largest code.
    pub const fn together<S: Simd>() -> usize {
        if !S::NARROW {
            return 8;
        }
        let steps = i16::MAX as usize / (2 * 127 * Self::FORMAT.largest());
        if steps >= 8 { 8 } else { 1 << steps.ilog2() }
    }

    /// The same, but at most as many as a group has.
    pub const fn at_once<S: Simd>() -> usize {
        let (together, steps) = (Self::together::<S>(), Self::FORMAT.group / 4);
        if together < steps { together } else { steps }
    }

    /// Whether several products fit into a sum of 16 bits, which needs half as many registers.
    pub const fn sums_are_narrow<S: Simd>() -> bool {
        S::NARROW && Self::together::<S>() > 1
    }

    /// Whether expanded codes are the file's unsigned codes, because the instructions need that or there are mins.
    /// Otherwise they are signed.
    pub const fn expands_unsigned<S: Simd>() -> bool {
        let integer = matches!(Self::FORMAT.value, Value::Integer { .. });
        integer && !S::PAIRS && (Self::FORMAT.min.is_some() || S::NARROW)
    }

    /// The first format of the table whose expanded panels are multiplied in the same way: one kernel serves all of
    /// these.
    pub const fn stand_in<S: Simd>() -> Format {
        let (own, mut f) = (expansion::<F, S>(), 0);
        while f < F {
            // No format has groups of zero values.
            let [group, min, zero, at_once] = with_format!(FORMATS[f].format, expansion::<S>(), else [0; 4]);
            if group == own[0] && min == own[1] && zero == own[2] && at_once == own[3] {
                break;
            }
            f += 1;
        }
        FORMATS[f].format
    }
}

/// The properties of a format that products with its expanded panels depend on.
const fn expansion<const F: usize, S: Simd>() -> [usize; 4] {
    let format = Packed::<F>::FORMAT;
    let zero = match format.value {
        Value::Integer { zero } if Packed::<F>::expands_unsigned::<S>() => 1 + zero as usize,
        _ => 0,
    };
    [format.group, format.min.is_some() as usize, zero, Packed::<F>::at_once::<S>()]
}

#[inline(always)]
pub(super) unsafe fn table<S: Simd, const F: usize>() -> S::B {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match const { Packed::<F>::FORMAT.value } {
            Value::Table(table) => S::load_table(table.as_ptr().cast()),
            _ => S::splat_u8(0),
        }
    }
}

/// The initial value of a group's integer sum: the codes' zero point, subtracted for the whole group.
#[inline(always)]
pub(super) unsafe fn start<S: Simd, const F: usize>(start: i32) -> S::I {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match const { Packed::<F>::FORMAT.value } {
            Value::Integer { zero: 0 } => S::splat_i32(0),
            // All zero points are powers of two.
            Value::Integer { zero } => S::shr_i32(S::splat_i32(start), 7 - zero.trailing_zeros()),
            _ => S::signed_start(start),
        }
    }
}

/// The blocks' own scales and mins.
#[inline(always)]
pub(super) unsafe fn base<S: Simd, const F: usize>(scales: *const u8) -> (S::F, S::F) {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let scale = match format.base {
            Base::F16(_) => S::load_f16(scales.cast()),
            Base::E8M0(_) => {
                // 2^(e − 127) from its bits, where e = 0 is a subnormal; halved, since the table holds doubled values.
                let bits = S::max_i32(S::shl_i32(S::load_u8(scales), 23), S::splat_i32(0x0040_0000));
                S::mul(S::from_bits(bits), S::splat(0.5))
            }
        };
        let min = match format.min {
            Some((at, sign)) => S::mul(S::load_f16(scales.add(at).cast()), S::splat(sign)),
            None => S::splat(0.0),
        };
        (scale, min)
    }
}

/// Scale and min of group `g` of the blocks.
#[inline(always)]
pub(super) unsafe fn group<S: Simd, const F: usize>(
    (scale, min): (S::F, S::F),
    scales: *const u8,
    g: usize,
) -> (S::F, S::F) {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let groups = scales.add(format.groups_at);
        match format.scales {
            GroupScales::None => (scale, min),
            GroupScales::Nibbles(_) => {
                let both = S::load_u8(groups.add(g * LANES));
                let (low, high) = (S::and_i32(both, S::splat_i32(15)), S::shr_i32(both, 4));
                (S::mul(scale, S::float(low)), S::mul(min, S::float(high)))
            }
            _ if format.min.is_some() => {
                let groups = groups.add(2 * g * LANES).cast();
                let low = S::float(S::load_i8(groups));
                let high = S::float(S::load_i8(groups.add(LANES)));
                (S::mul(scale, low), S::mul(min, high))
            }
            _ => (S::mul(scale, S::float(S::load_i8(groups.add(g * LANES).cast()))), min),
        }
    }
}

/// A plane's bits of elements `i` to `i + 3` of the blocks, shifted left by `below` bits.
#[inline(always)]
pub(super) unsafe fn bits<S: Simd>(codes: *const u8, i: usize, plane: Plane, below: u32) -> S::B {
    let byte = plane.offset + i / plane.span * plane.run + i % plane.run;
    let shift = plane.width * ((i % plane.span) / plane.run) as u32;
    // SAFETY: guaranteed by the caller; four bytes of a row are a vector.
    unsafe {
        let bytes = S::load_bytes(codes.add(byte * LANES));
        if plane.width == 8 {
            return bytes;
        }
        let mask = ((1u32 << plane.width) - 1) << below;
        S::and(S::shift_bits(bytes, below as i32 - shift as i32), S::splat_u8(mask as u8))
    }
}

/// The codes of elements `i` to `i + 3` of the blocks: what `dot` or `dot_signed` takes.
#[inline(always)]
pub(super) unsafe fn operand<S: Simd, const F: usize>(codes: *const u8, i: usize, table: S::B) -> S::B {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let code = match format.planes {
            [Some(low), Some(high)] => S::or(bits::<S>(codes, i, low, 0), bits::<S>(codes, i, high, low.width)),
            [Some(low), None] => bits::<S>(codes, i, low, 0),
            [None, _] => S::splat_u8(0),
        };
        match format.value {
            Value::Integer { .. } => code,
            Value::Signed8 => S::signed_operand(code),
            Value::Table(_) => S::signed_operand(S::lookup(table, code)),
        }
    }
}

/// [`operand`] in the form that kernels of expanded panels take.
#[inline(always)]
pub(super) unsafe fn expanded<S: Simd, const F: usize>(codes: *const u8, i: usize, table: S::B) -> S::B {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let operand = operand::<S, F>(codes, i, table);
        match format.value {
            Value::Integer { .. } if const { Packed::<F>::expands_unsigned::<S>() } => operand,
            Value::Integer { zero: 0 } => S::signed_operand(operand),
            Value::Integer { zero } => S::signed_operand(S::sub_bytes(operand, S::splat_u8(zero as u8))),
            _ => operand,
        }
    }
}
