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

use std::ops::Range;

use crate::Isa;
use crate::isa::dispatch;
use crate::kv::{KvLayer, PAGE};
use crate::math;
use crate::rows::Rows;
use crate::simd::{LANES, Simd};

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

    /// The tokens of a block that a query at `position` sees; empty ranges may lie anywhere.
    fn visible(&self, position: usize, block: usize) -> Range<usize> {
        let within = |position: usize| position.saturating_sub(block * PAGE).min(PAGE);
        within(self.first_key(position))..within(position + 1)
    }
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
    /// Queries, side by side.
    q: Vec<f32>,
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
            p: vec![0.0; MAX_TILE * PAGE],
            page: vec![0.0; MAX_TILE * partial_len(attention.head_dim)],
            merged: vec![0.0; partials],
        }
    }

    /// Copies the queries of some rows and one head of keys.
    fn load(&mut self, attention: &Attention, q: Rows<'_>, kv_head: usize, rows: Range<usize>) {
        let width = attention.group() * attention.head_dim;
        for (row, to) in rows.zip(self.q.chunks_exact_mut(width)) {
            // SAFETY: `attend` and `attend_pages` ask their callers that nobody writes `q`.
            to.copy_from_slice(unsafe { q.columns(kv_head * width..(kv_head + 1) * width).row(row) });
        }
    }
}

/// Attention of the queries in `rows` of `q` with the keys and values of `kv_head`, into the same columns of `out`.
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
    out: Rows<'_>,
    scratch: &mut Scratch,
) {
    assert!(rows.len() <= attention.row_block());
    check(attention, kv, q);
    let Some(last) = rows.clone().last() else { return };
    let (dim, group) = (attention.head_dim, attention.group());
    let count = rows.len() * group;
    scratch.load(attention, q, kv_head, rows.clone());
    let merged = &mut scratch.merged[..count * partial_len(dim)];
    clear(merged, dim);

    let position = |query: usize| sequence.position + rows.start + query / group;
    let blocks = attention.blocks(position(0)).start..attention.blocks(sequence.position + last).end;
    for block in blocks {
        let mut first = 0;
        while first < count {
            let queries = first..count.min(first + tile(isa, count - first));
            let visible = |query: usize| attention.visible(position(first + query), block);
            // SAFETY: the caller's.
            unsafe {
                let pages = &mut scratch.page[..queries.len() * partial_len(dim)];
                let q = &scratch.q[first * dim..queries.end * dim];
                partials(isa, attention, kv, sequence.pages[block], kv_head, q, &visible, &mut scratch.p, pages);
                let merged = merged[first * partial_len(dim)..].chunks_exact_mut(partial_len(dim));
                for (i, (page, merged)) in pages.chunks_exact(partial_len(dim)).zip(merged).enumerate() {
                    if !visible(i).is_empty() {
                        merge(isa, merged, page);
                    }
                }
            }
            first = queries.end;
        }
    }
    for (row, merged) in rows.zip(merged.chunks_exact(group * partial_len(dim))) {
        // SAFETY: the caller's.
        unsafe { finish(isa, merged, dim, out.row_ptr(row).add(kv_head * group * dim)) };
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
        let visible = |_| attention.visible(position, block);
        let mut first = 0;
        while first < group {
            let queries = first..group.min(first + tile(isa, group - first));
            let pages = &mut scratch.page[..queries.len() * partial_len(dim)];
            let q = &scratch.q[first * dim..queries.end * dim];
            // SAFETY: the caller's.
            unsafe {
                partials(isa, attention, kv, sequence.pages[block], kv_head, q, &visible, &mut scratch.p, pages);
                for (head, page) in queries.clone().zip(pages.chunks_exact(partial_len(dim))) {
                    partials_out.row_mut((block - all.start) * group + head).copy_from_slice(page);
                }
            }
            first = queries.end;
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
    out: Rows<'_>,
    scratch: &mut Scratch,
) {
    let (dim, group) = (attention.head_dim, attention.group());
    assert_eq!(partials.cols(), partial_len(dim));
    assert_eq!(out.cols(), attention.q_heads * dim);
    let merged = &mut scratch.merged[..group * partial_len(dim)];
    clear(merged, dim);
    for block in 0..attention.blocks(sequence.position + row).len() {
        for (head, merged) in merged.chunks_exact_mut(partial_len(dim)).enumerate() {
            // SAFETY: the caller's.
            unsafe { merge(isa, merged, partials.row(block * group + head)) };
        }
    }
    // SAFETY: the caller's.
    unsafe { finish(isa, merged, dim, out.row_ptr(row).add(kv_head * group * dim)) };
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

/// Queries that the kernels take together at most.
const MAX_TILE: usize = 6;

/// How many of `count` queries are taken together: as many as leave registers for the rest.
fn tile(isa: Isa, count: usize) -> usize {
    match (isa, count) {
        (Isa::Avx512, 6..) => 6,
        (Isa::Avx512, 4..) => 4,
        _ => count.min(3),
    }
}

/// Partials of a tile of queries for a page.
#[allow(clippy::too_many_arguments)]
unsafe fn partials(
    isa: Isa,
    attention: &Attention,
    kv: KvLayer<'_>,
    page: u32,
    kv_head: usize,
    q: &[f32],
    visible: &dyn Fn(usize) -> Range<usize>,
    p: &mut [f32],
    out: &mut [f32],
) {
    let dim = attention.head_dim;
    let (keys, values) = (kv.keys(page as usize, kv_head), kv.values(page as usize, kv_head));
    let count = q.len() / dim;
    let (mut first, mut last) = (PAGE, 0);
    // SAFETY: a page has `dim` rows of keys and `PAGE` rows of values; the buffers are as long as the shapes say.
    unsafe {
        product(isa, count, q.as_ptr(), dim, 0..dim, keys, PAGE, p.as_mut_ptr(), PAGE);
        for (i, p) in p.as_chunks_mut::<PAGE>().0[..count].iter_mut().enumerate() {
            let range = visible(i);
            let (m, l) = softmax(isa, p, range.clone(), attention.scale, attention.soft_cap);
            out[i * partial_len(dim) + dim] = m;
            out[i * partial_len(dim) + dim + 1] = l;
            if !range.is_empty() {
                (first, last) = (first.min(range.start), last.max(range.end));
            }
        }
        product(isa, count, p.as_ptr(), PAGE, first..last, values, dim, out.as_mut_ptr(), partial_len(dim));
    }
}

/// [`product_tile`] for a number of rows known only now.
#[allow(clippy::too_many_arguments)]
unsafe fn product(
    isa: Isa,
    rows: usize,
    a: *const f32,
    a_stride: usize,
    k: Range<usize>,
    b: *const u16,
    n: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        match rows {
            6 => product_tile::<6>(isa, a, a_stride, k, b, n, out, out_stride),
            4 => product_tile::<4>(isa, a, a_stride, k, b, n, out, out_stride),
            3 => product_tile::<3>(isa, a, a_stride, k, b, n, out, out_stride),
            2 => product_tile::<2>(isa, a, a_stride, k, b, n, out, out_stride),
            1 => product_tile::<1>(isa, a, a_stride, k, b, n, out, out_stride),
            _ => unreachable!("`tile` makes no tiles of {rows}"),
        }
    }
}

dispatch! {
    /// `out[i][j] = Σ a[i][k] · b[k][j]` for `Q` rows of `a` and the `n` columns of `b`, an f16 matrix, in order of k.
    unsafe fn product_tile[const Q: usize](
        a: *const f32, a_stride: usize, k: Range<usize>, b: *const u16, n: usize, out: *mut f32, out_stride: usize
    ) = product_kernel::<Q>;

    /// Turns dot products into weights, those outside of `visible` into zeros; returns the largest score and the sum.
    unsafe fn softmax(
        scores: &mut [f32; PAGE], visible: Range<usize>, scale: f32, soft_cap: Option<f32>
    ) -> (f32, f32) = softmax_kernel;

    /// Merges a page's partial.
    unsafe fn merge(merged: &mut [f32], page: &[f32]) = merge_kernel;

    /// Divides the merged sums, side by side, by their weights.
    unsafe fn finish(merged: &[f32], dim: usize, out: *mut f32) = finish_kernel;
}

#[inline(always)]
unsafe fn product_kernel<S: Simd, const Q: usize>(
    a: *const f32,
    a_stride: usize,
    k: Range<usize>,
    b: *const u16,
    n: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut at = 0;
    // SAFETY: the caller's.
    unsafe {
        while at + 2 * LANES <= n {
            product_columns::<S, Q, 2>(a, a_stride, k.clone(), b.add(at), n, out.add(at), out_stride);
            at += 2 * LANES;
        }
        if at < n {
            product_columns::<S, Q, 1>(a, a_stride, k, b.add(at), n, out.add(at), out_stride);
        }
    }
}

#[inline(always)]
unsafe fn product_columns<S: Simd, const Q: usize, const V: usize>(
    a: *const f32,
    a_stride: usize,
    k: Range<usize>,
    b: *const u16,
    n: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; Q];
        for k in k {
            let mut columns = [S::splat(0.0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = S::load_f16(b.add(k * n + v * LANES));
            }
            for (q, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*a.add(q * a_stride + k));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = S::fma(a, column, *sum);
                }
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                S::store(out.add(q * out_stride + v * LANES), sum);
            }
        }
    }
}

const LANE_NUMBERS: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

#[inline(always)]
unsafe fn softmax_kernel<S: Simd>(
    scores: &mut [f32; PAGE],
    visible: Range<usize>,
    scale: f32,
    soft_cap: Option<f32>,
) -> (f32, f32) {
    const VECTORS: usize = PAGE / LANES;
    // SAFETY: a page is whole vectors.
    unsafe {
        let hidden = S::splat(f32::NEG_INFINITY);
        let (first, end) = (S::splat(visible.start as f32), S::splat(visible.end as f32));
        let mut s = [hidden; VECTORS];
        let mut m = hidden;
        for (v, s) in s.iter_mut().enumerate() {
            let mut score = S::mul(S::load(scores.as_ptr().add(v * LANES)), S::splat(scale));
            if let Some(cap) = soft_cap {
                score = math::soft_cap::<S>(score, cap);
            }
            let token = S::add(S::load(LANE_NUMBERS.as_ptr()), S::splat((v * LANES) as f32));
            *s = S::select_less(token, first, hidden, S::select_less(token, end, score, hidden));
            m = S::max(m, *s);
        }
        let m = S::largest(m);
        for (v, s) in s.iter_mut().enumerate() {
            *s = math::exp::<S>(S::sub(*s, S::splat(m)));
            S::store(scores.as_mut_ptr().add(v * LANES), *s);
        }
        let l = S::sum(S::add(S::add(s[0], s[1]), S::add(s[2], s[3])));
        (m, l)
    }
}

#[inline(always)]
unsafe fn merge_kernel<S: Simd>(merged: &mut [f32], page: &[f32]) {
    let dim = merged.len() - 2;
    let (m, m_page) = (merged[dim], page[dim]);
    let largest = if m > m_page { m } else { m_page };
    // SAFETY: both have `dim` values, which are whole vectors, and two more.
    unsafe {
        let a = math::exp::<S>(S::splat(m - largest));
        let b = math::exp::<S>(S::splat(m_page - largest));
        for at in (0..dim).step_by(LANES) {
            let to = merged.as_mut_ptr().add(at);
            let from = S::load(page.as_ptr().add(at));
            S::store(to, S::fma(from, b, S::mul(S::load(to), a)));
        }
        merged[dim] = largest;
        merged[dim + 1] = page[dim + 1].mul_add(S::lanes(b)[0], merged[dim + 1] * S::lanes(a)[0]);
    }
}

#[inline(always)]
unsafe fn finish_kernel<S: Simd>(merged: &[f32], dim: usize, out: *mut f32) {
    for (i, merged) in merged.chunks_exact(partial_len(dim)).enumerate() {
        // SAFETY: `merged` has `dim` values, which are whole vectors; the caller's for `out`.
        unsafe {
            let inverse = S::splat(1.0 / merged[dim + 1]);
            for at in (0..dim).step_by(LANES) {
                S::store(out.add(i * dim + at), S::mul(S::load(merged.as_ptr().add(at)), inverse));
            }
        }
    }
}
