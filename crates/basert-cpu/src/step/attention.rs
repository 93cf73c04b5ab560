//! Attention of a step: which worker takes which rows, heads or pages.

use std::ops::Range;

use basert_plan::Place;

use super::{Bound, Run};
use crate::attention::{Attention, Scratch, Sequence, attend, attend_pages, merge_pages};
use crate::kv::KvLayer;
use crate::{Rows, Worker};

/// A context of at least this many pages is divided among the workers when a sequence has a single token.
const DIVIDED_PAGES: usize = 4;
/// How many pieces a worker takes of such contexts, about, and how many pages a piece has at most.
const UNITS: usize = 8;
const PAGES: usize = 8;

impl Run<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn attention(
        &self,
        op: &Bound,
        worker: &Worker,
        scratch: &mut Scratch,
        attention: &Attention,
        sinks: Option<&[f32]>,
        layer: KvLayer<'_>,
        (q, out): (Place, Place),
    ) {
        let (q, out) = (self.view(q, self.tokens()), self.view(out, self.tokens()));
        let block = attention.row_block();
        let sequences = || {
            self.step.sequences.iter().map(|sequence| {
                let first = self.step.positions[sequence.rows.start] as usize;
                let pages = &self.step.page_table[sequence.pages.clone()];
                (sequence.rows.clone(), Sequence { pages, position: first })
            })
        };
        let pages: usize = sequences().map(|(_, sequence)| attention.blocks(sequence.position).len()).sum();
        let partial_width = attention.head_dim + 2;
        let needed = pages * attention.q_heads * partial_width;
        let divided = self.tokens() == self.step.sequences.len()
            && pages >= DIVIDED_PAGES * self.step.sequences.len()
            && needed <= self.partials.1;

        // A unit of work: some rows of a sequence, or some pages of its context, for one head of keys.
        let run = (pages * attention.kv_heads / (UNITS * worker.count())).clamp(1, PAGES);
        let units = |rows: &Range<usize>, sequence: &Sequence| {
            let blocks = attention.blocks(sequence.position).len();
            attention.kv_heads * if divided { blocks.div_ceil(run) } else { rows.len().div_ceil(block) }
        };
        let total = sequences().map(|(rows, sequence)| units(&rows, &sequence)).sum();
        for unit in worker.chunks(&op.work, total, 1).flatten() {
            let (mut before, mut pages_before) = (0, 0);
            for (rows, sequence) in sequences() {
                let count = units(&rows, &sequence);
                let blocks = attention.blocks(sequence.position);
                if unit >= before + count {
                    before += count;
                    pages_before += blocks.len();
                    continue;
                }
                let (part, head) = ((unit - before) / attention.kv_heads, (unit - before) % attention.kv_heads);
                let (q, out) = (rows_of(q, &rows), rows_of(out, &rows));
                // SAFETY: each unit is one worker's, and writes rows, heads or partials of its own.
                unsafe {
                    if divided {
                        let partials = self.partials(pages_before, head, blocks.len(), pages, attention);
                        let first = blocks.start + part * run;
                        let some = first..blocks.end.min(first + run);
                        attend_pages(self.isa, attention, layer, &sequence, q, head, 0, some, partials, scratch);
                    } else {
                        let taken = part * block..rows.len().min((part + 1) * block);
                        attend(self.isa, attention, layer, &sequence, q, head, taken, sinks, out, scratch);
                    }
                }
                break;
            }
        }
        if !divided {
            return;
        }
        worker.barrier();
        for unit in worker.chunks(&op.prepare, self.step.sequences.len() * attention.kv_heads, 1).flatten() {
            let (i, head) = (unit / attention.kv_heads, unit % attention.kv_heads);
            let before = sequences().take(i).map(|(_, sequence)| attention.blocks(sequence.position).len()).sum();
            let Some((rows, sequence)) = sequences().nth(i) else { continue };
            let blocks = attention.blocks(sequence.position).len();
            // SAFETY: each head of each sequence is one worker's, and its partials are complete.
            unsafe {
                let partials = self.partials(before, head, blocks, pages, attention);
                merge_pages(self.isa, attention, &sequence, head, 0, partials, sinks, rows_of(out, &rows), scratch);
            }
        }
    }

    /// Partial results of one head of keys for a sequence's pages, of which `before` come before it in the step.
    unsafe fn partials(
        &self,
        before: usize,
        head: usize,
        blocks: usize,
        pages: usize,
        attention: &Attention,
    ) -> Rows<'_> {
        let (group, width) = (attention.q_heads / attention.kv_heads, attention.head_dim + 2);
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
