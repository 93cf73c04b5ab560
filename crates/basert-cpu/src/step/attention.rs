//! Attention of a step: which worker takes which rows, heads or pages.

use std::ops::Range;

use basert_plan::{DeviceError, Place, PlanNode};

use super::{Bound, CachePlace, Kernel, Run, WorkerScratch};
use crate::attention::{Attention, Sequence, attend, attend_pages, merge_pages};
use crate::device::Binder;
use crate::partials::partial_len;
use crate::{Rows, Worker};

/// A context of at least this many pages is divided among the workers when a sequence has a single token.
const DIVIDED_PAGES: usize = 4;
/// About how many pieces of such contexts a worker takes, and the most pages of a piece.
const UNITS: usize = 8;
const PAGES: usize = 8;

struct BoundAttention {
    q: Place,
    attention: Attention,
    sinks: Option<Vec<f32>>,
    cache: CachePlace,
    out: Place,
}

pub(super) fn bind(
    binder: &Binder,
    node: &PlanNode,
    op: &basert_graph::Attention,
) -> Result<Box<dyn Kernel>, DeviceError> {
    let attention = binder.attention(op);
    attention.check().map_err(|what| binder.unsupported(what.to_string()))?;
    let sinks = op.sinks.map(|sinks| binder.vector(sinks)).transpose()?;
    let (q, out) = (binder.place(node.inputs[0]), binder.place(node.out));
    Ok(Box::new(BoundAttention { q, attention, sinks, cache: binder.cache(op.cache), out }))
}

impl Kernel for BoundAttention {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let (q, out) = (run.view(self.q, run.tokens()), run.view(self.out, run.tokens()));
        let (attention, sinks, layer) = (&self.attention, self.sinks.as_deref(), run.layer(self.cache));
        let Some(scratch) = &mut scratch.attention else { return };
        let block = attention.row_block();
        let (all, table) = (&run.step.sequences, run.step.page_table(self.cache.group));
        let sequence = |i: usize| {
            let (rows, pages) = (all[i].rows.clone(), &table[all[i].pages.clone()]);
            let position = run.step.positions[rows.start] as usize;
            let tokens = position + rows.len();
            (rows, Sequence { pages, position, tokens })
        };
        let blocks = |i: usize| attention.blocks(&sequence(i).1, 0);
        let pages: usize = (0..all.len()).map(|i| blocks(i).len()).sum();
        let longest = (0..all.len()).map(|i| blocks(i).len()).max().unwrap_or(0);
        let needed = pages * attention.q_heads * partial_len(layer.head_dim());
        // Many contexts of about the same length are not divided.
        let share = pages * attention.kv_heads / (UNITS * worker.count());
        let divided = run.tokens() == all.len() && longest >= DIVIDED_PAGES.max(share / 2) && needed <= run.partials.1;

        // A unit of work: some rows of a sequence, or some pages of its context, for one head of keys.
        let piece = share.clamp(1, PAGES);
        let units = |i: usize| {
            let parts = if divided { blocks(i).len().div_ceil(piece) } else { all[i].rows.len().div_ceil(block) };
            attention.kv_heads * parts
        };
        let total = (0..all.len()).map(units).sum();
        // The sequence of the last unit, and the units and pages of the sequences before it: units mostly come in
        // order.
        let (mut i, mut before, mut pages_before) = (0, 0, 0);
        for unit in worker.chunks(&op.work, total, 1).flatten() {
            if unit < before {
                (i, before, pages_before) = (0, 0, 0);
            }
            while unit >= before + units(i) {
                (before, pages_before) = (before + units(i), pages_before + blocks(i).len());
                i += 1;
            }
            let (part, head) = ((unit - before) / attention.kv_heads, (unit - before) % attention.kv_heads);
            let (rows, sequence) = sequence(i);
            let (q, out) = (rows_of(q, &rows), rows_of(out, &rows));
            // SAFETY: each unit is one worker's, and writes rows, heads or partials of its own.
            unsafe {
                if divided {
                    let blocks = blocks(i);
                    let partials =
                        run.partials(pages_before, head, blocks.len(), pages, (attention.group(), layer.head_dim()));
                    let first = blocks.start + part * piece;
                    let some = first..blocks.end.min(first + piece);
                    attend_pages(run.isa, attention, layer, &sequence, q, head, 0, some, partials, scratch);
                } else {
                    let taken = part * block..rows.len().min((part + 1) * block);
                    attend(run.isa, attention, layer, &sequence, q, head, taken, sinks, out, scratch);
                }
            }
        }
        if !divided {
            return;
        }
        worker.barrier();
        for unit in worker.chunks(&op.prepare, all.len() * attention.kv_heads, 1).flatten() {
            let (i, head) = (unit / attention.kv_heads, unit % attention.kv_heads);
            let before = (0..i).map(|i| blocks(i).len()).sum();
            let (rows, sequence) = sequence(i);
            let blocks = blocks(i).len();
            // SAFETY: each head of each sequence is one worker's, and its partials are complete.
            unsafe {
                let partials = run.partials(before, head, blocks, pages, (attention.group(), layer.head_dim()));
                merge_pages(run.isa, attention, &sequence, head, 0, partials, sinks, rows_of(out, &rows), scratch);
            }
        }
    }
}

impl Run<'_> {
    /// Partial results of one KV head for a sequence's pages; earlier sequences of the step have `before` pages.
    unsafe fn partials(
        &self,
        before: usize,
        head: usize,
        blocks: usize,
        pages: usize,
        (group, dim): (usize, usize),
    ) -> Rows<'_> {
        let width = partial_len(dim);
        // SAFETY: `attention` divides a step only if the partials of all its pages and heads have room.
        unsafe {
            let start = self.partials.0.add((head * pages + before) * group * width);
            Rows::from_raw(start, blocks * group, width, width)
        }
    }
}

/// Some rows of a matrix, as a matrix.
fn rows_of<'a>(matrix: Rows<'a>, range: &Range<usize>) -> Rows<'a> {
    // SAFETY: they are rows of the matrix.
    unsafe { Rows::from_raw(matrix.row_ptr(range.start), range.len(), matrix.cols(), matrix.stride()) }
}
