//! Weights, repacked for the kernels.
//!
//! A matrix of N rows is repacked at load into *panels* of 16 rows, in which lane = row: a vector holds the same piece
//! of 16 rows, so that a dot product never sums across lanes. The codes of a block keep their arrangement in the file:
//! bytes 4w … 4w+3 of a block's codes in row r become lane r of vector w in the panel. So repacking is a transposition
//! of 32-bit words, the same for every format, and a panel is no larger than the file except for K-quants' packed
//! scales, which become a byte each.
//!
//! ```text
//! panel = [ block 0: word 0 of rows 0…15 | word 1 of rows 0…15 | … ][ block 1 ]    codes of a few blocks
//!         [ block 0: base ×16 | min ×16 | group scales ×16 … ][ block 1 ]          and their scales
//!         [ block 2 ] …
//! ```
//!
//! Blocks are grouped, as few as have scales of whole cache lines, so that a panel is read as one stream.
//!
//! Matrices of floats are panels of `[k][16]` values.

use std::sync::atomic::{AtomicUsize, Ordering};

use basert_core::{Base, BlockFormat, Codes, FORMATS, Format, GroupScales, Plane, Value};
pub use basert_plan::Order;
use half::f16;

use crate::dot::Expanded;
use crate::linear;
use crate::memory::{AllocError, Buffer};
use crate::pool::{Counter, Pool, WorkerPanicked};
use crate::simd::LANES;

/// The layout of a format's blocks in a panel. Offsets and sizes are for 16 rows together.
#[derive(Clone, Copy)]
pub(crate) struct PanelFormat {
    pub elements: usize,
    pub group: usize,
    /// Bytes of a block's codes, and of its scales.
    pub code_bytes: usize,
    pub scale_bytes: usize,
    /// Blocks in a group, whose scales follow their codes.
    pub together: usize,
    /// Where the bits of a code lie among a row's code bytes; the second plane is optional.
    pub planes: [Option<Plane>; 2],
    pub base: Base,
    /// Offset of the mins and their sign.
    pub min: Option<(usize, f32)>,
    pub scales: GroupScales,
    /// Offset of the group scales.
    pub groups_at: usize,
    pub value: Value,
}

impl PanelFormat {
    /// The layout of a quantised format of the table.
    pub const fn of(format: &BlockFormat) -> PanelFormat {
        let Codes::Quantised { base, min, group, scales, planes, value } = format.codes else {
            panic!("floats have no blocks")
        };
        let mut packed = [None, None];
        let mut bytes = 0;
        let mut p = 0;
        while p < planes.len() {
            let (mut span, mut run) = (planes[p].span, planes[p].run);
            let size = format.elements / span * run;
            if run < 4 {
                // Four neighbouring elements get neighbouring bytes: see `spread`.
                (span, run) = (32, 4);
            }
            packed[p] = Some(Plane { offset: bytes, width: planes[p].width, span, run });
            bytes += size;
            p += 1;
        }
        let base_bytes = match base {
            Base::F16(_) => 2 * LANES,
            Base::E8M0(_) => LANES,
        };
        let (min, groups_at) = match min {
            Some((_, sign)) => (Some((base_bytes, sign)), base_bytes + 2 * LANES),
            None => (None, base_bytes),
        };
        let group_bytes = match scales {
            GroupScales::None => 0,
            GroupScales::Nibbles(_) => LANES,
            _ if min.is_some() => 2 * LANES,
            _ => LANES,
        };
        let scale_bytes = groups_at + format.elements / group * group_bytes;
        PanelFormat {
            elements: format.elements,
            group,
            code_bytes: bytes * LANES,
            scale_bytes,
            together: if scale_bytes.is_multiple_of(64) { 1 } else { 64 >> scale_bytes.trailing_zeros() },
            planes: packed,
            base,
            min,
            scales,
            groups_at,
            value,
        }
    }

    /// Where the codes and the scales of block `i` of a panel of `blocks` blocks begin.
    #[inline(always)]
    pub const fn offsets(&self, i: usize, blocks: usize) -> (usize, usize) {
        let (first, within) = (i / self.together * self.together, i % self.together);
        let left = blocks - first;
        let codes = if left < self.together { left } else { self.together } * self.code_bytes;
        let start = first * self.bytes();
        (start + within * self.code_bytes, start + codes + within * self.scale_bytes)
    }

    /// The largest magnitude of an [`operand`](crate::dot).
    pub const fn largest(&self) -> usize {
        match self.value {
            Value::Integer { .. } => {
                let (mut bits, mut i) = (0, 0);
                while i < self.planes.len() {
                    if let Some(plane) = self.planes[i] {
                        bits += plane.width;
                    }
                    i += 1;
                }
                (1 << bits) - 1
            }
            Value::Signed8 => 128,
            Value::Table(table) => {
                let (mut largest, mut i) = (0, 0);
                while i < table.len() {
                    let magnitude = table[i].unsigned_abs() as usize;
                    largest = if magnitude > largest { magnitude } else { largest };
                    i += 1;
                }
                largest
            }
        }
    }

    /// Bytes of a block.
    pub const fn bytes(&self) -> usize {
        self.code_bytes + self.scale_bytes
    }

    /// Bytes of a panel of `blocks` blocks.
    fn panel_len(&self, blocks: usize) -> usize {
        (blocks * self.bytes()).next_multiple_of(64)
    }
}

/// Rows of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its bytes, in the format of the matrix.
    pub bytes: &'a [u8],
    /// Its rows.
    pub rows: usize,
}

/// Why a matrix cannot be repacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The length of a source does not match its shape.
    #[error("{rows} rows of {k} values of {format} take {expected} bytes, not {found}")]
    WrongBytes {
        /// The format.
        format: Format,
        /// Rows of the source.
        rows: usize,
        /// Values in a row.
        k: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// Rows are not whole blocks of the format, or of the quantised activations.
    #[error("rows of {k} values of {format} are not whole blocks of {block}")]
    BadWidth {
        /// The format.
        format: Format,
        /// Values in a row.
        k: usize,
        /// The required divisor.
        block: usize,
    },
    /// A weight or its scale is NaN or infinite.
    #[error("row {row} of source {tensor} has a weight or scale that is not finite")]
    NotFinite {
        /// Which source.
        tensor: usize,
        /// Which of its rows.
        row: usize,
    },
    /// `Order::Paired` needs two sources with the same number of rows.
    #[error("a paired matrix takes two sources of equal size")]
    Unpaired,
    /// There is not enough memory.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// A worker panicked.
    #[error(transparent)]
    Panicked(#[from] WorkerPanicked),
}

/// A matrix of weights, repacked.
pub struct PackedMatrix {
    format: Format,
    k: usize,
    rows: usize,
    order: Order,
    panel_len: usize,
    panels: usize,
    /// The form of its panels after expansion.
    expanded: Expanded,
    data: Buffer,
}

impl PackedMatrix {
    /// Bytes of repacked sources with these numbers of rows, each of `k` values in `format`.
    ///
    /// # Errors
    /// [`PackError::BadWidth`], [`PackError::Unpaired`], [`PackError::Alloc`].
    pub fn packed_bytes(format: Format, k: usize, rows: &[usize], order: Order) -> Result<usize, PackError> {
        let (_, panels, panel_len) = shape(format, k, rows, order)?;
        panels.checked_mul(panel_len).ok_or(AllocError { bytes: usize::MAX }.into())
    }

    /// Repacks the rows of `sources`, each of `k` values in `format`, into `memory`, which has
    /// [`packed_bytes`](Self::packed_bytes). `done` is called with every part of the sources that is not needed any
    /// more, so that a large matrix never takes its memory twice.
    ///
    /// # Errors
    /// See [`PackError`].
    ///
    /// # Panics
    /// When `memory` is too small.
    pub fn pack(
        pool: &Pool,
        format: Format,
        k: usize,
        sources: &[Source<'_>],
        order: Order,
        memory: Buffer,
        done: &mut dyn FnMut(&[u8]),
    ) -> Result<PackedMatrix, PackError> {
        let all_rows: Vec<usize> = sources.iter().map(|source| source.rows).collect();
        let (rows, panels, panel_len) = shape(format, k, &all_rows, order)?;
        let row_len = format.row_bytes(k).unwrap_or(usize::MAX);
        for &Source { bytes, rows } in sources {
            let expected = rows.saturating_mul(row_len);
            if bytes.len() != expected {
                return Err(PackError::WrongBytes { format, rows, k, expected, found: bytes.len() });
            }
        }
        let mut data = memory;
        assert!(data.len() >= panels * panel_len);

        let out = SendPtr(data.as_mut_ptr());
        let bad = AtomicUsize::new(usize::MAX);
        let stripe = (STRIPE_BYTES / panel_len).max(1).next_multiple_of(2);
        for first in (0..panels).step_by(stripe) {
            let stripe = first..panels.min(first + stripe);
            let counter = Counter::new(pool.threads());
            pool.run(|worker| {
                for panel in worker.chunks(&counter, stripe.len(), 16).flatten() {
                    let panel = first + panel;
                    let rows: [usize; LANES] = std::array::from_fn(|lane| panel_row(order, rows, panel, lane));
                    let bytes: [&[u8]; LANES] = std::array::from_fn(|lane| row_bytes(sources, row_len, rows[lane]));
                    // SAFETY: panels do not overlap, and each is claimed by one worker.
                    let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(panel * panel_len), panel_len) };
                    if let Some(lane) = pack_panel(format, &bytes, k, out) {
                        bad.fetch_min(rows[lane], Ordering::Relaxed);
                    }
                }
            })?;
            let mut offset = 0;
            for source in sources {
                // Of paired sources, both have the same rows in a stripe.
                let (before, per_row) = if order == Order::Paired { (0, 2) } else { (offset, 1) };
                let row = |panel: usize| (panel / per_row * LANES).saturating_sub(before).min(source.rows);
                done(&source.bytes[row(stripe.start) * row_len..row(stripe.end) * row_len]);
                offset += source.rows;
            }
        }
        match bad.into_inner() {
            usize::MAX => {
                let quantised = || Expanded::of(&PanelFormat::of(format.block()));
                let expanded = if format.is_float() { Expanded::Floats } else { quantised() };
                Ok(PackedMatrix { format, k, rows, order, panel_len, panels, expanded, data })
            }
            row => {
                let (tensor, row) = locate(sources, row);
                Err(PackError::NotFinite { tensor, row })
            }
        }
    }

    /// Repacks into memory of its own; see [`pack`](Self::pack).
    ///
    /// # Errors
    /// See [`PackError`].
    pub fn pack_alone(
        pool: &Pool,
        format: Format,
        k: usize,
        sources: &[Source<'_>],
        order: Order,
    ) -> Result<PackedMatrix, PackError> {
        let rows: Vec<usize> = sources.iter().map(|source| source.rows).collect();
        let memory = Buffer::zeroed(PackedMatrix::packed_bytes(format, k, &rows, order)?)?;
        PackedMatrix::pack(pool, format, k, sources, order, memory, &mut |_| {})
    }

    /// Format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Values in a row: the width of the input.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the output: all rows, or those of one source if they are paired.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How sources were combined.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Units of work: panels, or pairs of panels; 16 columns of output each.
    pub fn units(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Its size in bytes, all of which a product with it reads.
    pub fn bytes(&self) -> usize {
        self.panels * self.panel_len
    }

    /// Scratch memory that a worker needs to multiply by it, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        linear::scratch_bytes(self.expanded, self.k)
    }

    /// The form of its panels after expansion, for the kernels.
    pub(crate) fn expanded(&self) -> Expanded {
        self.expanded
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_len(&self) -> usize {
        self.panel_len
    }

    /// Whether it multiplies quantised activations, not floats.
    pub fn wants_quantised(&self) -> bool {
        !self.format.is_float()
    }

    /// Where panel `i` begins: aligned to 64 bytes.
    pub(crate) fn panel(&self, i: usize) -> *const u8 {
        assert!(i < self.panels);
        // SAFETY: inside the buffer.
        unsafe { self.data.as_ptr().add(i * self.panel_len) }
    }
}

/// How many bytes are packed before their sources are released.
const STRIPE_BYTES: usize = 16 << 20;

/// Rows of the output, panels, and bytes of a panel.
fn shape(format: Format, k: usize, rows: &[usize], order: Order) -> Result<(usize, usize, usize), PackError> {
    let block = format.block().elements;
    if k == 0 || format.row_bytes(k).is_err() {
        return Err(PackError::BadWidth { format, k, block });
    }
    let (rows, panels) = match (order, rows) {
        (Order::Stacked, _) => {
            let rows = rows.iter().fold(0, |sum: usize, &rows| sum.saturating_add(rows));
            (rows, rows.div_ceil(LANES))
        }
        (Order::Paired, [a, b]) if a == b => (*a, 2 * a.div_ceil(LANES)),
        (Order::Paired, _) => return Err(PackError::Unpaired),
    };
    let panel_len = match format.block().codes {
        Codes::Float => (k * LANES * format.block().bytes).next_multiple_of(64),
        Codes::Quantised { .. } => PanelFormat::of(format.block()).panel_len(k / block),
    };
    Ok((rows, panels, panel_len))
}

/// A pointer that workers share.
struct SendPtr(*mut u8);

// SAFETY: its users exclude data races.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// Which row of the stacked sources is in a lane of a panel. Lanes beyond the last row repeat it: their results are never
/// read.
fn panel_row(order: Order, rows: usize, panel: usize, lane: usize) -> usize {
    match order {
        Order::Stacked => (panel * LANES + lane).min(rows - 1),
        Order::Paired => panel % 2 * rows + (panel / 2 * LANES + lane).min(rows - 1),
    }
}

/// Source and row in it of a row of the stacked sources.
fn locate(sources: &[Source<'_>], mut row: usize) -> (usize, usize) {
    let mut tensor = 0;
    while row >= sources[tensor].rows {
        row -= sources[tensor].rows;
        tensor += 1;
    }
    (tensor, row)
}

fn row_bytes<'a>(sources: &[Source<'a>], len: usize, row: usize) -> &'a [u8] {
    let (tensor, row) = locate(sources, row);
    &sources[tensor].bytes[row * len..][..len]
}

/// Calls a function that is generic over a quantised format, given as its index in the table.
macro_rules! with_format {
    ($format:expr, $function:ident $(::<$($more:tt),+>)? ($($arg:expr),* $(,)?), else $float:expr) => {
        with_format!(@ [Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4]
            $format, $function, [$($($more),+)?], ($($arg),*), $float)
    };
    (@ [$($name:ident)+] $format:expr, $function:ident, $more:tt, $args:tt, $float:expr) => {
        match $format {
            $(Format::$name => with_format!(@call $name $function $more $args),)+
            Format::F32 | Format::F16 | Format::BF16 => $float,
        }
    };
    (@call $name:ident $function:ident [$($more:tt),*] ($($arg:expr),*)) => {
        $function::<{ Format::$name as usize } $(, $more)*>($($arg),*)
    };
}
pub(crate) use with_format;

/// Transposes the blocks of 16 rows into a panel. Returns a lane with a value that is not finite, if there is one.
fn pack_panel(format: Format, rows: &[&[u8]; LANES], k: usize, out: &mut [u8]) -> Option<usize> {
    with_format!(format, pack_quantised(rows, out), else match format {
        Format::F32 => pack_floats(rows, k, out, f32::from_le_bytes, |x| x.is_finite()),
        Format::F16 => pack_floats(rows, k, out, u16::from_le_bytes, |x| x & 0x7c00 != 0x7c00),
        _ => pack_floats(rows, k, out, u16::from_le_bytes, |x| x & 0x7f80 != 0x7f80),
    })
}

fn pack_floats<T: Copy, const N: usize>(
    rows: &[&[u8]; LANES],
    k: usize,
    out: &mut [u8],
    read: impl Fn([u8; N]) -> T,
    is_finite: impl Fn(T) -> bool,
) -> Option<usize> {
    let mut bad = None;
    for (lane, row) in rows.iter().enumerate() {
        let (row, _) = row.as_chunks::<N>();
        let (out, _) = out.as_chunks_mut::<N>();
        let mut finite = true;
        for (i, &value) in row[..k].iter().enumerate() {
            finite &= is_finite(read(value));
            out[i * LANES + lane] = value;
        }
        bad = bad.or((!finite).then_some(lane));
    }
    bad
}

fn pack_quantised<const F: usize>(rows: &[&[u8]; LANES], out: &mut [u8]) -> Option<usize> {
    let source = const { &FORMATS[F] };
    let packed = const { PanelFormat::of(&FORMATS[F]) };
    let Codes::Quantised { base, min, planes, scales, .. } = source.codes else { return None };
    let blocks = rows[0].len() / source.bytes;
    let mut bad = None;
    for b in 0..blocks {
        let (codes_at, scales_at) = packed.offsets(b, blocks);
        let (codes_out, scales_out) = out[codes_at..scales_at + packed.scale_bytes].split_at_mut(scales_at - codes_at);
        let codes_out = &mut codes_out[..packed.code_bytes];
        let blocks: [&[u8]; LANES] = std::array::from_fn(|lane| &rows[lane][b * source.bytes..][..source.bytes]);

        let mut words_out = codes_out.as_chunks_mut::<4>().0.as_chunks_mut::<LANES>().0.iter_mut();
        for plane in planes {
            let words = source.elements / plane.span * plane.run / 4;
            for (w, out) in words_out.by_ref().take(words).enumerate() {
                let at = plane.offset + 4 * w;
                for (out, block) in out.iter_mut().zip(&blocks) {
                    let word = [block[at], block[at + 1], block[at + 2], block[at + 3]];
                    *out = if plane.run < 4 { spread(word) } else { word };
                }
            }
        }

        for (lane, block) in blocks.iter().enumerate() {
            let finite = match base {
                Base::F16(at) => {
                    scales_out[2 * lane..][..2].copy_from_slice(&block[at..at + 2]);
                    f16::from_le_bytes([block[at], block[at + 1]]).is_finite()
                }
                Base::E8M0(at) => {
                    scales_out[lane] = block[at];
                    // The one value that is NaN.
                    block[at] != 255
                }
            };
            let min_finite = match (min, packed.min) {
                (Some((from, _)), Some((to, _))) => {
                    scales_out[to + 2 * lane..][..2].copy_from_slice(&block[from..from + 2]);
                    f16::from_le_bytes([block[from], block[from + 1]]).is_finite()
                }
                _ => true,
            };
            bad = bad.or((!finite || !min_finite).then_some(lane));
            let groups = source.elements / packed.group;
            match scales {
                GroupScales::None => {}
                GroupScales::Nibbles(at) => {
                    for g in 0..groups {
                        scales_out[packed.groups_at + g * LANES + lane] = block[at + g];
                    }
                }
                _ => {
                    let step = if min.is_some() { 2 * LANES } else { LANES };
                    for g in 0..groups {
                        let (scale, min) = scales.read(block, g);
                        let out = &mut scales_out[packed.groups_at + g * step..][..step];
                        out[lane] = scale as u8;
                        if let Some(out) = out.get_mut(LANES + lane) {
                            *out = min as u8;
                        }
                    }
                }
            }
        }
    }
    bad
}

/// Rearranges the bits of 32 elements, element i at bit i, so that element i is bit i / 4 of byte i mod 4.
fn spread(word: [u8; 4]) -> [u8; 4] {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut i = 0;
            while i < 8 {
                table[byte] |= ((byte >> i & 1) as u32) << (i % 4 * 8 + i / 4);
                i += 1;
            }
            byte += 1;
        }
        table
    };
    let part = |i: usize| TABLE[usize::from(word[i])] << (2 * i);
    (part(0) | part(1) | part(2) | part(3)).to_le_bytes()
}
