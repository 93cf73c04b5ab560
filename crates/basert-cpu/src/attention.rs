//! Attention over a paged cache.
//!
//! A query is multiplied by its keys a page at a time, in order of position. A page yields a *partial*: with `s` its
//! scores, the maximum m, the sum l of p = exp(s − m), and the sum o of p·V in order of keys. Partials are merged in
//! order of pages:
//!
//! ```text
//! m' = max(m, m_page)     a = exp(m − m')     b = exp(m_page − m')
//! l' = fma(l_page, b, l · a)                  o' = fma(o_page, b, o · a)
//! ```
//!
//! So a result depends only on the query and the KV cache. Either the queries of a step share each read of a page
//! ([`attend`]), or workers share the pages of a query ([`attend_pages`], [`merge_pages`]): both do these operations in
//! this order.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use basert_core::{Format, KvFormat};

use basert_graph::{Alibi, Reach};

use crate::Isa;
use crate::dot::expand_floats;
use crate::int14::Planes;
use crate::kv::{BLOCK, Blocks, KvLayer, MAX_HEAD_DIM, PAGE, filled_up};
use crate::page_products_float::{Ahead, keys_tile, values_tile};
use crate::page_products_quantised::{key_codes, split_query, value_codes};
use crate::partials::{Visible, clear, finish, merge, partial_len, softmax};
use crate::rows::Rows;
use crate::simd::LANES;
use crate::tiles::{TILE, tile_width};

/// About how many queries pass over a page together.
const QUERIES: usize = 96;

/// The parameters of an attention op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Values of a head.
    pub head_dim: usize,
    /// Heads of queries.
    pub q_heads: usize,
    /// Heads of keys and values, each shared by `q_heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Factor of the dot products.
    pub scale: f32,
    /// The cap of soft-capped scores.
    pub soft_cap: Option<f32>,
    /// Which keys a query sees.
    pub reach: Reach,
    /// What is subtracted from scores by distance.
    pub alibi: Option<Alibi>,
}

/// Why the kernels do not support an attention op.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttentionError {
    /// The length of heads.
    #[error("attention heads of {0} values; the CPU's kernels take from 1 to {MAX_HEAD_DIM}")]
    HeadDim(usize),
    /// The number of heads.
    #[error("{q_heads} heads of queries cannot share {kv_heads} heads of keys evenly")]
    Heads {
        /// Heads of queries.
        q_heads: usize,
        /// Heads of keys.
        kv_heads: usize,
    },
}

impl Attention {
    /// Checks that the kernels support it.
    ///
    /// # Errors
    /// What they do not support.
    pub fn check(&self) -> Result<(), AttentionError> {
        let Attention { head_dim, q_heads, kv_heads, .. } = *self;
        if head_dim == 0 || head_dim > MAX_HEAD_DIM {
            return Err(AttentionError::HeadDim(head_dim));
        }
        if kv_heads == 0 || q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { q_heads, kv_heads });
        }
        Ok(())
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// The most rows of one call of [`attend`].
    pub fn row_block(&self) -> usize {
        (QUERIES / self.group()).max(1)
    }

    /// The blocks of the page table that the query of a row sees.
    pub fn blocks(&self, sequence: &Sequence<'_>, row: usize) -> Range<usize> {
        let seen = self.reach.seen(sequence.position + row, sequence.tokens);
        seen.start / PAGE..seen.end.div_ceil(PAGE)
    }

    /// The tokens of a block that the heads of a group see, of the query of a row.
    fn see(&self, sequence: &Sequence<'_>, row: usize, block: usize, kv_head: usize, visible: &mut [Visible]) {
        let within = |position: usize| position.saturating_sub(block * PAGE).min(PAGE);
        let position = sequence.position + row;
        let seen = self.reach.seen(position, sequence.tokens);
        let (start, end) = (within(seen.start), within(seen.end));
        for (head, visible) in visible.iter_mut().enumerate() {
            let head = kv_head * self.group() + head;
            let slope = self.alibi.map_or(0.0, |alibi| alibi.slope(head, self.q_heads));
            *visible = Visible { start, end, slope, distance: (block * PAGE) as f32 - position as f32 };
        }
    }
}

/// The location of a sequence's keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The page table: block i, with the positions from `i · PAGE`, is in page `pages[i]`.
    pub pages: &'a [u32],
    /// Position of the first row of queries; the other rows follow it.
    pub position: usize,
    /// Its tokens, up to the last row.
    pub tokens: usize,
}

/// A worker's memory for attention.
pub struct Scratch {
    q: Queries,
    /// The tokens of a page that each query sees.
    visible: Vec<Visible>,
    /// Weights of a page's tokens, for a tile of queries.
    p: Vec<f32>,
    /// Partials of a tile, and the merged partials of all queries: o, m, l.
    page: Vec<f32>,
    merged: Vec<f32>,
    /// A page's keys and values as `f32`.
    keys: Vec<Line>,
    values: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Scratch {
    /// Scratch memory for an attention op.
    pub fn new(attention: &Attention) -> Scratch {
        let queries = attention.row_block() * attention.group();
        // As many as any format stores.
        let dim = attention.head_dim.next_multiple_of(BLOCK);
        let partials = queries * partial_len(dim);
        let expanded = || vec![Line([0.0; LANES]); dim * PAGE / LANES];
        Scratch {
            q: Queries { floats: vec![0.0; queries * dim], split: vec![Planes::ZERO; queries * (dim / BLOCK)] },
            visible: vec![Visible::default(); queries],
            p: vec![0.0; TILE * PAGE],
            page: vec![0.0; TILE * partial_len(dim)],
            merged: vec![0.0; partials],
            keys: expanded(),
            values: expanded(),
        }
    }
}

/// Queries, laid out for the format of the keys.
struct Queries {
    /// In tiles, interleaved within a tile.
    floats: Vec<f32>,
    /// For quantised keys: the blocks of each query, consecutively.
    split: Vec<Planes<BLOCK>>,
}

impl Queries {
    /// Copies the queries of some rows and one head of keys, of which the cache has `dim` values.
    fn load(
        &mut self,
        isa: Isa,
        attention: &Attention,
        (format, dim): (KvFormat, usize),
        q: Rows<'_>,
        kv_head: usize,
        rows: Range<usize>,
    ) {
        let (own, group) = (attention.head_dim, attention.group());
        let blocks = dim / BLOCK;
        let mut full = [0.0; MAX_HEAD_DIM];
        let count = rows.len() * group;
        for tile in tiles(count) {
            for (i, query) in tile.clone().enumerate() {
                let head = kv_head * group + query % group;
                // SAFETY: callers of `attend` and `attend_pages` guarantee that nothing writes `q`.
                let from = unsafe { q.columns(head * own..(head + 1) * own).row(rows.start + query / group) };
                let from = filled_up(from, &mut full, dim);
                match format {
                    KvFormat::F16 => {
                        let to = &mut self.floats[tile.start * dim + i..tile.end * dim];
                        from.iter().zip(to.iter_mut().step_by(tile.len())).for_each(|(from, to)| *to = *from);
                    }
                    KvFormat::Q8 | KvFormat::Q4 => {
                        // SAFETY: there is room for the blocks of every query.
                        unsafe { split_query(isa, from, &mut self.split[query * blocks..(query + 1) * blocks]) }
                    }
                }
            }
        }
    }

    /// Those of a tile.
    fn tile(&self, dim: usize, tile: &Range<usize>) -> QueryTile {
        let blocks = dim / BLOCK;
        QueryTile {
            floats: self.floats[tile.start * dim..tile.end * dim].as_ptr(),
            split: self.split[tile.start * blocks..tile.end * blocks].as_ptr(),
        }
    }
}

/// A tile of [`Queries`]; the pointer for the format of the keys is valid.
#[derive(Clone, Copy)]
struct QueryTile {
    floats: *const f32,
    split: *const Planes<BLOCK>,
}

/// Attention of the queries in `rows` of `q` with the keys and values of `kv_head`, into the same columns of `out`.
/// Each query head may have a sink: an additional score, without a value.
///
/// Row i is the token at position `sequence.position + i`, with all query heads concatenated.
///
/// # Safety
/// Nobody writes `q` or the sequence's pages at the same time, or touches these rows and columns of `out`.
///
/// # Panics
/// When shapes do not agree, the page table is too short, or there are more rows than
/// [`row_block`](Attention::row_block).
#[allow(clippy::too_many_arguments)]
pub unsafe fn attend(
    isa: Isa,
    attention: &Attention,
    kv: KvLayer<'_>,
    sequence: &Sequence<'_>,
    q: Rows<'_>,
    kv_head: usize,
    rows: Range<usize>,
    sinks: Option<&[f32]>,
    out: Rows<'_>,
    scratch: &mut Scratch,
) {
    assert!(rows.len() <= attention.row_block());
    check(attention, kv, q);
    let Some(last) = rows.clone().last() else { return };
    let (dim, group) = (kv.head_dim(), attention.group());
    let count = rows.len() * group;
    scratch.q.load(isa, attention, (kv.format(), dim), q, kv_head, rows.clone());
    let sinks = sinks.map(|sinks| &sinks[kv_head * group..(kv_head + 1) * group]);
    let (own, merged) = (attention.head_dim, &mut scratch.merged[..count * partial_len(dim)]);
    clear(merged, dim);

    let blocks = attention.blocks(sequence, rows.start).start..attention.blocks(sequence, last).end;
    // A page's keys and values are widened once for several tiles.
    let expands = count > TILE && kv.format() == KvFormat::F16;
    for block in blocks.clone() {
        let mut page = Page::of(kv, sequence, kv_head, &blocks, block);
        if expands {
            // SAFETY: guaranteed by the caller.
            unsafe { page.expand(isa, &mut scratch.keys, &mut scratch.values) };
        }
        for (row, visible) in scratch.visible.chunks_exact_mut(group).take(rows.len()).enumerate() {
            attention.see(sequence, rows.start + row, block, kv_head, visible);
        }
        for tile in tiles(count) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let q = scratch.q.tile(dim, &tile);
                let partial = &mut scratch.page[..tile.len() * partial_len(dim)];
                let visible = &scratch.visible[tile.clone()];
                partials(
                    isa,
                    attention,
                    (kv.format(), dim),
                    &page,
                    q,
                    visible,
                    &mut scratch.p,
                    partial,
                    tile.start == 0,
                );
                merge(isa, &mut merged[tile.start * partial_len(dim)..], partial, dim);
            }
        }
    }
    for (row, merged) in rows.zip(merged.chunks_exact(group * partial_len(dim))) {
        // SAFETY: guaranteed by the caller.
        unsafe { finish(isa, merged, dim, own, sinks, out.row_ptr(row).add(kv_head * group * own)) };
    }
}

/// The partials of `row` for some of the blocks that its query sees: the work of [`attend`] for one row, divided among
/// workers. The partial of block b and head h of the group goes to row `(b − first) · group + h` of `partials`, where
/// `first` is the first block of [`blocks`](Attention::blocks); rows have two columns more than
/// the cache stores values of a head.
///
/// # Safety
/// Nobody writes `q` or the sequence's pages at the same time, or touches these rows of `partials`.
///
/// # Panics
/// As for [`attend`], or when the query does not see a block.
#[allow(clippy::too_many_arguments)]
pub unsafe fn attend_pages(
    isa: Isa,
    attention: &Attention,
    kv: KvLayer<'_>,
    sequence: &Sequence<'_>,
    q: Rows<'_>,
    kv_head: usize,
    row: usize,
    blocks: Range<usize>,
    partials_out: Rows<'_>,
    scratch: &mut Scratch,
) {
    check(attention, kv, q);
    let (dim, group) = (kv.head_dim(), attention.group());
    let all = attention.blocks(sequence, row);
    assert!(all.start <= blocks.start && blocks.end <= all.end);
    assert_eq!(partials_out.cols(), partial_len(dim));
    scratch.q.load(isa, attention, (kv.format(), dim), q, kv_head, row..row + 1);
    for block in blocks.clone() {
        let page = Page::of(kv, sequence, kv_head, &blocks, block);
        attention.see(sequence, row, block, kv_head, &mut scratch.visible[..group]);
        for tile in tiles(group) {
            let q = scratch.q.tile(dim, &tile);
            let partial = &mut scratch.page[..tile.len() * partial_len(dim)];
            // SAFETY: guaranteed by the caller.
            unsafe {
                let visible = &scratch.visible[tile.clone()];
                partials(
                    isa,
                    attention,
                    (kv.format(), dim),
                    &page,
                    q,
                    visible,
                    &mut scratch.p,
                    partial,
                    tile.start == 0,
                );
                for (head, partial) in tile.zip(partial.chunks_exact(partial_len(dim))) {
                    partials_out.row_mut((block - all.start) * group + head).copy_from_slice(partial);
                }
            }
        }
    }
}

/// Merges the partials that [`attend_pages`] stored for all blocks of a row into the columns of `kv_head` in `out`.
///
/// # Safety
/// Nobody writes `partials` at the same time, or touches these columns of the row of `out`.
///
/// # Panics
/// When shapes do not agree.
#[allow(clippy::too_many_arguments)]
pub unsafe fn merge_pages(
    isa: Isa,
    attention: &Attention,
    sequence: &Sequence<'_>,
    kv_head: usize,
    row: usize,
    partials: Rows<'_>,
    sinks: Option<&[f32]>,
    out: Rows<'_>,
    scratch: &mut Scratch,
) {
    let (own, group) = (attention.head_dim, attention.group());
    let sinks = sinks.map(|sinks| &sinks[kv_head * group..(kv_head + 1) * group]);
    let dim = partials.cols() - partial_len(0);
    assert!(own <= dim && dim <= own.next_multiple_of(BLOCK));
    assert_eq!(out.cols(), attention.q_heads * own);
    let merged = &mut scratch.merged[..group * partial_len(dim)];
    clear(merged, dim);
    for block in 0..attention.blocks(sequence, row).len() {
        for tile in tiles(group) {
            // SAFETY: guaranteed by the caller; rows of partials follow each other.
            unsafe {
                let first = partials.row_ptr(block * group + tile.start);
                assert_eq!(partials.stride(), partial_len(dim));
                let partial = std::slice::from_raw_parts(first, tile.len() * partial_len(dim));
                merge(isa, &mut merged[tile.start * partial_len(dim)..], partial, dim);
            }
        }
    }
    // SAFETY: guaranteed by the caller.
    unsafe { finish(isa, merged, dim, own, sinks, out.row_ptr(row).add(kv_head * group * own)) };
}

fn check(attention: &Attention, kv: KvLayer<'_>, q: Rows<'_>) {
    assert!(attention.check().is_ok());
    let dim = KvLayer::stored_dim(kv.format(), attention.head_dim);
    assert_eq!((kv.heads(), kv.head_dim()), (attention.kv_heads, dim));
    assert_eq!(q.cols(), attention.q_heads * attention.head_dim);
}

/// Divides `count` queries into tiles.
fn tiles(count: usize) -> impl Iterator<Item = Range<usize>> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let width = tile_width(count - first);
        first += width;
        (width > 0).then(|| first - width..first)
    })
}

/// Keys and values of a page.
struct Page {
    keys: Blocks,
    values: Blocks,
    /// Whether they have been widened to `f32`.
    is_expanded: bool,
    /// The blocks in the KV cache, and those that are read after them, which are prefetched meanwhile.
    in_cache: [Blocks; 3],
}

impl Page {
    /// The page of `block`. After some blocks of one head, those of the next head are read.
    fn of(kv: KvLayer<'_>, sequence: &Sequence<'_>, kv_head: usize, blocks: &Range<usize>, block: usize) -> Page {
        let at = |block: usize, head: usize| {
            let page = sequence.pages[block] as usize;
            (kv.keys(page, head), kv.values(page, head))
        };
        let (keys, values) = at(block, kv_head);
        let (next, next_values) = match block + 1 {
            next if next < blocks.end => at(next, kv_head),
            _ => at(blocks.start, (kv_head + 1) % kv.heads()),
        };
        Page { keys, values, is_expanded: false, in_cache: [values, next, next_values] }
    }

    /// Widens `f16` keys and values.
    ///
    /// # Safety
    /// Nobody writes the page.
    ///
    /// # Panics
    /// When the memory is too small.
    unsafe fn expand(&mut self, isa: Isa, keys: &mut [Line], values: &mut [Line]) {
        const F16: usize = Format::F16 as usize;
        for (blocks, lines) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let columns = blocks.dims * PAGE / LANES;
            let out: *mut f32 = lines[..columns].as_mut_ptr().cast();
            // SAFETY: a page of a head has so many columns of 16 values, and there is room for as many.
            unsafe { expand_floats::<F16>(isa, blocks.codes(0), 0..columns, out) };
            blocks.start = out.cast();
        }
        self.is_expanded = true;
    }
}

/// Partials of a tile of queries for a page; the first tile `asks` for the blocks that are read next.
#[allow(clippy::too_many_arguments)]
unsafe fn partials(
    isa: Isa,
    attention: &Attention,
    (format, dim): (KvFormat, usize),
    page: &Page,
    q: QueryTile,
    visible: &[Visible],
    p: &mut [f32],
    out: &mut [f32],
    asks: bool,
) {
    let (keys, values, is_expanded) = (page.keys, page.values, page.is_expanded);
    let [soon, next, next_values] = page.in_cache;
    let ahead = |soon, far| asks.then_some(Ahead { soon, far });
    // The tokens that any of them sees, which may be none.
    let seen = || visible.iter().filter(|visible| visible.start < visible.end);
    let last = seen().map(|visible| visible.end).max().unwrap_or(0);
    let first = seen().map(|visible| visible.start).min().unwrap_or(0);
    let columns = first / LANES * LANES..last.next_multiple_of(LANES);
    // SAFETY: a page has `dim` rows of keys and `PAGE` rows of values; the buffers are as long as the shapes say.
    unsafe {
        query_keys(isa, format, is_expanded, visible.len(), q, keys, columns, p.as_mut_ptr(), ahead(soon, next));
        softmax(isa, p, visible, attention.scale, attention.soft_cap, out, dim);
        let stride = partial_len(dim);
        weigh_values(
            isa,
            format,
            is_expanded,
            visible,
            p.as_ptr(),
            values,
            first..last,
            out.as_mut_ptr(),
            stride,
            ahead(next, next_values),
        );
    }
}

/// Calls a kernel for a number of queries, a format and whether it is expanded, all known only at run time.
macro_rules! tile {
    ($queries:expr, $format:expr, |$q:ident, $expanded:ident| $floats:expr, |$bits:ident| $codes:expr) => {
        match $queries {
            6 => tile!(@ 6, $format, $q, $expanded, $floats, $bits, $codes),
            4 => tile!(@ 4, $format, $q, $expanded, $floats, $bits, $codes),
            3 => tile!(@ 3, $format, $q, $expanded, $floats, $bits, $codes),
            2 => tile!(@ 2, $format, $q, $expanded, $floats, $bits, $codes),
            1 => tile!(@ 1, $format, $q, $expanded, $floats, $bits, $codes),
            _ => unreachable!("`tiles` makes no such tile"),
        }
    };
    (@ $n:literal, $format:expr, $q:ident, $expanded:ident, $floats:expr, $bits:ident, $codes:expr) => {{
        const $q: usize = $n;
        match $format {
            (KvFormat::F16, true) => {
                const $expanded: bool = true;
                $floats
            }
            (KvFormat::F16, false) => {
                const $expanded: bool = false;
                $floats
            }
            (KvFormat::Q8, _) => {
                const $bits: usize = 8;
                $codes
            }
            (KvFormat::Q4, _) => {
                const $bits: usize = 4;
                $codes
            }
        }
    }};
}

/// Products of a tile of queries with a page's keys; rows of `out` are `PAGE` apart.
#[allow(clippy::too_many_arguments)]
unsafe fn query_keys(
    isa: Isa,
    format: KvFormat,
    is_expanded: bool,
    count: usize,
    q: QueryTile,
    keys: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    ahead: Option<Ahead>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        tile!(
            count,
            (format, is_expanded),
            |Q, E| keys_tile::<Q, E>(isa, q.floats, keys, tokens, out, PAGE, ahead),
            |BITS| key_codes::<Q, BITS>(isa, q.split, keys, tokens, out, PAGE, ahead)
        );
    }
}

/// Products of a tile's weights with a page's values.
#[allow(clippy::too_many_arguments)]
unsafe fn weigh_values(
    isa: Isa,
    format: KvFormat,
    is_expanded: bool,
    visible: &[Visible],
    p: *const f32,
    values: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    stride: usize,
    ahead: Option<Ahead>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        tile!(
            visible.len(),
            (format, is_expanded),
            |Q, E| values_tile::<Q, E>(isa, p, values, tokens, out, stride, ahead),
            |BITS| value_codes::<Q, BITS>(isa, p, values, tokens, visible, out, stride, ahead)
        );
    }
}
