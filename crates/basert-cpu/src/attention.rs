//! Attention over a paged cache.
//!
//! A query meets its keys a page at a time, in order of position. A page gives a *partial*: with `s` its scores, the largest
//! one m, the sum l of p = exp(s − m), and the sum o of p·V in order of keys. Partials are merged in order of pages:
//!
//! ```text
//! m' = max(m, m_page)     a = exp(m − m')     b = exp(m_page − m')
//! l' = fma(l_page, b, l · a)                  o' = fma(o_page, b, o · a)
//! ```
//!
//! So a result depends on the query and the cache alone. Queries of a step share the reading of a page ([`attend`]), or
//! workers share the pages of a query ([`attend_pages`], [`merge_pages`]): both do these operations in this order.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::Isa;
use crate::isa::dispatch;
use crate::kv::{KvLayer, PAGE};
use crate::math;
use crate::page_product::{Ahead, product};
use crate::rows::Rows;
use crate::simd::{LANES, Simd};
use crate::tiles::{TILE, tile_width};

/// The longest heads there may be.
const MAX_HEAD_DIM: usize = 512;
/// Queries that pass over a page together, about.
const QUERIES: usize = 24;

/// What kind of attention it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Values of a head.
    pub head_dim: usize,
    /// Heads of queries.
    pub q_heads: usize,
    /// Heads of keys and values, each for `q_heads / kv_heads` neighbouring heads of queries.
    pub kv_heads: usize,
    /// What dot products are multiplied by.
    pub scale: f32,
    /// Where scores are capped softly.
    pub soft_cap: Option<f32>,
    /// How many keys a query sees, its own included.
    pub window: Option<usize>,
}

/// What kinds of attention the kernels do not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttentionError {
    /// The length of heads.
    #[error("attention heads of {0} values; the CPU's kernels take multiples of 16 up to {MAX_HEAD_DIM}")]
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
    /// Whether the kernels can do it.
    ///
    /// # Errors
    /// What they cannot do.
    pub fn check(&self) -> Result<(), AttentionError> {
        let Attention { head_dim, q_heads, kv_heads, .. } = *self;
        if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(LANES) {
            return Err(AttentionError::HeadDim(head_dim));
        }
        if kv_heads == 0 || q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { q_heads, kv_heads });
        }
        Ok(())
    }

    /// Heads of queries for each head of keys.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// The most rows that [`attend`] takes at once.
    pub fn row_block(&self) -> usize {
        (QUERIES / self.group()).max(1)
    }

    /// The blocks of its page table that a query at `position` looks at.
    pub fn blocks(&self, position: usize) -> Range<usize> {
        self.first_key(position) / PAGE..position / PAGE + 1
    }

    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The tokens of a block that a query at `position` sees.
    fn visible(&self, position: usize, block: usize) -> Visible {
        let within = |position: usize| position.saturating_sub(block * PAGE).min(PAGE);
        Visible { start: within(self.first_key(position)), end: within(position + 1) }
    }
}

/// Some tokens of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Visible {
    start: usize,
    end: usize,
}

/// Where a sequence's keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Its page table: block i, of the positions from `i · PAGE`, is in page `pages[i]`.
    pub pages: &'a [u32],
    /// Position of the first row of queries; the others follow.
    pub position: usize,
}

/// A worker's memory for attention.
pub struct Scratch {
    /// Queries in tiles, interleaved within a tile.
    q: Vec<f32>,
    /// The tokens of a page that each query sees.
    visible: Vec<Visible>,
    /// Weights of a page's tokens, for a tile of queries.
    p: Vec<f32>,
    /// Partials of a tile, and what has been merged for all queries: o, m, l.
    page: Vec<f32>,
    merged: Vec<f32>,
}

/// Length of a partial: o, m, l.
fn partial_len(head_dim: usize) -> usize {
    head_dim + 2
}

impl Scratch {
    /// Enough for a kind of attention.
    pub fn new(attention: &Attention) -> Scratch {
        let queries = attention.row_block() * attention.group();
        let partials = queries * partial_len(attention.head_dim);
        Scratch {
            q: vec![0.0; queries * attention.head_dim],
            visible: vec![Visible::default(); queries],
            p: vec![0.0; TILE * PAGE],
            page: vec![0.0; TILE * partial_len(attention.head_dim)],
            merged: vec![0.0; partials],
        }
    }

    /// Copies the queries of some rows and one head of keys.
    fn load(&mut self, attention: &Attention, q: Rows<'_>, kv_head: usize, rows: Range<usize>) {
        let (dim, group) = (attention.head_dim, attention.group());
        let count = rows.len() * group;
        for tile in tiles(count) {
            let to = &mut self.q[tile.start * dim..tile.end * dim];
            for (i, query) in tile.clone().enumerate() {
                let head = kv_head * group + query % group;
                // SAFETY: `attend` and `attend_pages` ask their callers that nobody writes `q`.
                let from = unsafe { q.columns(head * dim..(head + 1) * dim).row(rows.start + query / group) };
                from.iter().zip(to[i..].iter_mut().step_by(tile.len())).for_each(|(from, to)| *to = *from);
            }
        }
    }
}

/// Attention of the queries in `rows` of `q` with the keys and values of `kv_head`, into the same columns of `out`. Each
/// head of queries may have a sink: a score more, without a value.
///
/// Row i is the token at position `sequence.position + i`, and has all heads of queries side by side.
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
    let (dim, group) = (attention.head_dim, attention.group());
    let count = rows.len() * group;
    scratch.load(attention, q, kv_head, rows.clone());
    let sinks = sinks.map(|sinks| &sinks[kv_head * group..(kv_head + 1) * group]);
    let merged = &mut scratch.merged[..count * partial_len(dim)];
    clear(merged, dim);

    let first = sequence.position + rows.start;
    let blocks = attention.blocks(first).start..attention.blocks(sequence.position + last).end;
    for block in blocks {
        let pages = Pages::of(sequence, block);
        for (row, visible) in scratch.visible.chunks_exact_mut(group).take(rows.len()).enumerate() {
            visible.fill(attention.visible(first + row, block));
        }
        for tile in tiles(count) {
            // SAFETY: the caller's.
            unsafe {
                let partial = &mut scratch.page[..tile.len() * partial_len(dim)];
                let q = &scratch.q[tile.start * dim..tile.end * dim];
                let visible = &scratch.visible[tile.clone()];
                partials(isa, attention, kv, pages, kv_head, q, visible, &mut scratch.p, partial, tile.start == 0);
                merge(isa, &mut merged[tile.start * partial_len(dim)..], partial, dim);
            }
        }
    }
    for (row, merged) in rows.zip(merged.chunks_exact(group * partial_len(dim))) {
        // SAFETY: the caller's.
        unsafe { finish(isa, merged, dim, sinks, out.row_ptr(row).add(kv_head * group * dim)) };
    }
}

/// The partials of `row` for some of the blocks that its query looks at: the work of [`attend`] for one row, to be divided
/// among workers. That of block b and head h of the group goes to row `(b − first) · group + h` of `partials`, where
/// `first` is the first block of [`blocks`](Attention::blocks); rows have `head_dim + 2` columns.
///
/// # Safety
/// Nobody writes `q` or the sequence's pages at the same time, or touches these rows of `partials`.
///
/// # Panics
/// As [`attend`], or when a block is none of that query's.
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
    let (dim, group) = (attention.head_dim, attention.group());
    let position = sequence.position + row;
    let all = attention.blocks(position);
    assert!(all.start <= blocks.start && blocks.end <= all.end);
    assert_eq!(partials_out.cols(), partial_len(dim));
    scratch.load(attention, q, kv_head, row..row + 1);
    for block in blocks {
        scratch.visible[..group].fill(attention.visible(position, block));
        for tile in tiles(group) {
            let partial = &mut scratch.page[..tile.len() * partial_len(dim)];
            let q = &scratch.q[tile.start * dim..tile.end * dim];
            // SAFETY: the caller's.
            unsafe {
                let pages = Pages::of(sequence, block);
                let visible = &scratch.visible[tile.clone()];
                partials(isa, attention, kv, pages, kv_head, q, visible, &mut scratch.p, partial, tile.start == 0);
                for (head, partial) in tile.zip(partial.chunks_exact(partial_len(dim))) {
                    partials_out.row_mut((block - all.start) * group + head).copy_from_slice(partial);
                }
            }
        }
    }
}

/// Merges what [`attend_pages`] left for all blocks of a row into the columns of `kv_head` in `out`.
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
    let (dim, group) = (attention.head_dim, attention.group());
    let sinks = sinks.map(|sinks| &sinks[kv_head * group..(kv_head + 1) * group]);
    assert_eq!(partials.cols(), partial_len(dim));
    assert_eq!(out.cols(), attention.q_heads * dim);
    let merged = &mut scratch.merged[..group * partial_len(dim)];
    clear(merged, dim);
    for block in 0..attention.blocks(sequence.position + row).len() {
        for tile in tiles(group) {
            // SAFETY: the caller's; rows of partials follow each other.
            unsafe {
                let first = partials.row_ptr(block * group + tile.start);
                assert_eq!(partials.stride(), partial_len(dim));
                let partial = std::slice::from_raw_parts(first, tile.len() * partial_len(dim));
                merge(isa, &mut merged[tile.start * partial_len(dim)..], partial, dim);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { finish(isa, merged, dim, sinks, out.row_ptr(row).add(kv_head * group * dim)) };
}

fn check(attention: &Attention, kv: KvLayer<'_>, q: Rows<'_>) {
    assert!(attention.check().is_ok());
    assert_eq!((kv.heads(), kv.head_dim()), (attention.kv_heads, attention.head_dim));
    assert_eq!(q.cols(), attention.q_heads * attention.head_dim);
}

/// Nothing seen yet.
fn clear(merged: &mut [f32], dim: usize) {
    merged.fill(0.0);
    for merged in merged.chunks_exact_mut(partial_len(dim)) {
        merged[dim] = f32::NEG_INFINITY;
    }
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

/// A page of a sequence, and the one that comes after it, or the last one again.
#[derive(Clone, Copy)]
struct Pages {
    this: usize,
    next: usize,
}

impl Pages {
    fn of(sequence: &Sequence<'_>, block: usize) -> Pages {
        let page = |block: usize| sequence.pages[block] as usize;
        Pages { this: page(block), next: page((block + 1).min(sequence.pages.len() - 1)) }
    }
}

/// Partials of a tile of queries for a page, of which the first one `asks` for what is read after it.
#[allow(clippy::too_many_arguments)]
unsafe fn partials(
    isa: Isa,
    attention: &Attention,
    kv: KvLayer<'_>,
    pages: Pages,
    kv_head: usize,
    q: &[f32],
    visible: &[Visible],
    p: &mut [f32],
    out: &mut [f32],
    asks: bool,
) {
    let dim = attention.head_dim;
    let (keys, values) = (kv.keys(pages.this, kv_head), kv.values(pages.this, kv_head));
    let next = (kv.keys(pages.next, kv_head), kv.values(pages.next, kv_head));
    let ahead = |soon, far| asks.then_some(Ahead { soon, far });
    // What any of them sees. None may see anything.
    let seen = || visible.iter().filter(|visible| visible.start < visible.end);
    let last = seen().map(|visible| visible.end).max().unwrap_or(0);
    let first = seen().map(|visible| visible.start).min().unwrap_or(0);
    let columns = first / LANES * LANES..last.next_multiple_of(LANES);
    // SAFETY: a page has `dim` rows of keys and `PAGE` rows of values; the buffers are as long as the shapes say.
    unsafe {
        let (format, count, q, scores) = (kv.format(), visible.len(), q.as_ptr(), p.as_mut_ptr());
        product::<true>(isa, format, count, q, keys, columns, scores, PAGE, ahead(values, next.0));
        softmax(isa, p, visible, attention.scale, attention.soft_cap, out, dim);
        let (p, out, stride) = (p.as_ptr(), out.as_mut_ptr(), partial_len(dim));
        product::<false>(isa, format, count, p, values, first..last, out, stride, ahead(next.0, next.1));
    }
}

dispatch! {
    /// Turns dot products into weights, those of tokens that are not visible into zeros, for a tile of queries; puts the
    /// largest score and the sum behind the `dim` values of each one's partial.
    unsafe fn softmax(
        scores: &mut [f32], visible: &[Visible], scale: f32, soft_cap: Option<f32>, out: &mut [f32], dim: usize
    ) = softmax_kernel;

    /// Merges a page's partials of some queries into theirs.
    unsafe fn merge(merged: &mut [f32], page: &[f32], dim: usize) = merge_kernel;

    /// Divides the merged sums, side by side, by their weights.
    unsafe fn finish(merged: &[f32], dim: usize, sinks: Option<&[f32]>, out: *mut f32) = finish_kernel;
}

const LANE_NUMBERS: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// All queries take each step before the next one, so that their latencies overlap.
#[inline(always)]
unsafe fn softmax_kernel<S: Simd>(
    scores: &mut [f32],
    visible: &[Visible],
    scale: f32,
    soft_cap: Option<f32>,
    out: &mut [f32],
    dim: usize,
) {
    let scores = &mut scores.as_chunks_mut::<PAGE>().0[..visible.len()];
    let mut largest = [0.0; TILE];
    // SAFETY: a page is whole vectors.
    unsafe {
        let hidden = S::splat(f32::NEG_INFINITY);
        for (i, (scores, visible)) in scores.iter_mut().zip(visible).enumerate() {
            let all = *visible == Visible { start: 0, end: PAGE };
            let (first, end) = (S::splat(visible.start as f32), S::splat(visible.end as f32));
            let mut m = hidden;
            for at in (0..PAGE).step_by(LANES) {
                let mut score = S::mul(S::load(scores.as_ptr().add(at)), S::splat(scale));
                if let Some(cap) = soft_cap {
                    score = math::soft_cap::<S>(score, cap);
                }
                if !all {
                    let token = S::add(S::load(LANE_NUMBERS.as_ptr()), S::splat(at as f32));
                    score = S::select_less(token, first, hidden, S::select_less(token, end, score, hidden));
                }
                S::store(scores.as_mut_ptr().add(at), score);
                m = S::max(m, score);
            }
            largest[i] = S::largest(m);
        }
        for (i, scores) in scores.iter_mut().enumerate() {
            // Where nothing is visible, the difference of infinities would be NaN.
            let m = S::splat(if largest[i] > f32::NEG_INFINITY { largest[i] } else { 0.0 });
            for at in (0..PAGE).step_by(LANES) {
                let score = S::load(scores.as_ptr().add(at));
                S::store(scores.as_mut_ptr().add(at), math::exp_negative::<S>(S::sub(score, m)));
            }
        }
        for (i, scores) in scores.iter().enumerate() {
            let p = |v: usize| S::load(scores.as_ptr().add(v * LANES));
            out[i * partial_len(dim) + dim] = largest[i];
            out[i * partial_len(dim) + dim + 1] = S::sum(S::add(S::add(p(0), p(1)), S::add(p(2), p(3))));
        }
    }
}

#[inline(always)]
unsafe fn merge_kernel<S: Simd>(merged: &mut [f32], page: &[f32], dim: usize) {
    let len = partial_len(dim);
    let count = page.len() / len;
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..count {
        let (m, m_page) = (merged[i * len + dim], page[i * len + dim]);
        let largest = if m > m_page { m } else { m_page };
        merged[i * len + dim] = largest;
        // Where nothing has been seen yet, infinities would give NaN.
        let finite = largest > f32::NEG_INFINITY;
        (old[i], new[i]) = if finite { (m - largest, m_page - largest) } else { (0.0, 0.0) };
    }
    // SAFETY: a tile has no more queries than a vector lanes; both have `dim` values a query, which are whole vectors,
    // and two more.
    unsafe {
        let a = S::lanes(math::exp_negative::<S>(S::load(old.as_ptr())));
        let b = S::lanes(math::exp_negative::<S>(S::load(new.as_ptr())));
        for i in 0..count {
            let (to, from) = (merged.as_mut_ptr().add(i * len), page.as_ptr().add(i * len));
            for at in (0..dim).step_by(LANES) {
                let old = S::mul(S::load(to.add(at)), S::splat(a[i]));
                S::store(to.add(at), S::fma(S::load(from.add(at)), S::splat(b[i]), old));
            }
            *to.add(dim + 1) = (*from.add(dim + 1)).mul_add(b[i], *to.add(dim + 1) * a[i]);
        }
    }
}

#[inline(always)]
unsafe fn finish_kernel<S: Simd>(merged: &[f32], dim: usize, sinks: Option<&[f32]>, out: *mut f32) {
    for (i, merged) in merged.chunks_exact(partial_len(dim)).enumerate() {
        // SAFETY: `merged` has `dim` values, which are whole vectors; the caller's for `out`.
        unsafe {
            let mut inverse = S::splat(1.0 / merged[dim + 1]);
            if let Some(sinks) = sinks {
                // One score more: o · a / (l · a + b).
                let (m, sink) = (S::splat(merged[dim]), S::splat(sinks[i]));
                let largest = S::max(m, sink);
                let a = math::exp_negative::<S>(S::sub(m, largest));
                let b = math::exp_negative::<S>(S::sub(sink, largest));
                inverse = S::div(a, S::fma(S::splat(merged[dim + 1]), a, b));
            }
            for at in (0..dim).step_by(LANES) {
                S::store(out.add(i * dim + at), S::mul(S::load(merged.as_ptr().add(at)), inverse));
            }
        }
    }
}
