//! Rotary embeddings of a step, and storing its keys and values in the KV cache.

use super::{Bound, CachePlace, Kernel, Run};
use crate::elementwise::BoundNorm;
use crate::{RotaryStyle, Worker, elementwise};

/// Cosines and sines for the tokens of a step.
pub(crate) struct RopeTable {
    frequencies: Vec<f32>,
    style: RotaryStyle,
    /// For each token the cosines of all pairs, then the sines.
    values: Vec<f32>,
}

impl RopeTable {
    pub fn new(frequencies: Vec<f32>, style: RotaryStyle, tokens: usize) -> RopeTable {
        let values = vec![0.0; 2 * frequencies.len() * tokens];
        RopeTable { frequencies, style, values }
    }

    pub(super) fn fill(&mut self, positions: &[u32]) {
        let n = self.frequencies.len();
        for (&position, row) in positions.iter().zip(self.values.chunks_exact_mut(2 * n)) {
            let (cos, sin) = row.split_at_mut(n);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                (*sin, *cos) = (position as f32 * frequency).sin_cos();
            }
        }
    }

    fn row(&self, token: usize) -> (&[f32], &[f32]) {
        let n = self.frequencies.len();
        self.values[2 * n * token..][..2 * n].split_at(n)
    }
}

impl Run<'_> {
    /// One token's keys and values of one head, and the queries of its group.
    pub(super) unsafe fn rope_cache(&self, op: &Bound, worker: &Worker) {
        let Kernel::RopeCache { q, k, v, ref q_norm, ref k_norm, rope, cache, out } = op.kernel else { return };
        let CachePlace { kv_heads, head_dim, .. } = cache;
        let tokens = self.tokens();
        let (q, k, v, out) = (self.view(q, tokens), self.view(k, tokens), self.view(v, tokens), self.view(out, tokens));
        let (rope, layer) = (&self.ropes[rope], self.layer(cache));
        let group = q.cols() / kv_heads;
        let turn = |head: &mut [f32], norm: &Option<BoundNorm>, row: usize| {
            if let Some(norm) = norm {
                norm.apply_to_head(self.isa, head);
            }
            let (cos, sin) = rope.row(row);
            elementwise::rotate(self.isa, head, cos, sin, rope.style);
        };
        for unit in worker.chunks(&op.work, tokens * kv_heads, 2).flatten() {
            let (row, head) = (unit / kv_heads, unit % kv_heads);
            let of_head = head * head_dim..(head + 1) * head_dim;
            let (page, slot) = self.slots[row];
            // SAFETY: each head of each token is one worker's.
            unsafe {
                let queries = out.columns(head * group..(head + 1) * group).row_mut(row);
                if out.row_ptr(row) != q.row_ptr(row) {
                    queries.copy_from_slice(q.columns(head * group..(head + 1) * group).row(row));
                }
                queries.chunks_exact_mut(head_dim).for_each(|head| turn(head, q_norm, row));
                let keys = k.columns(of_head.clone()).row_mut(row);
                turn(keys, k_norm, row);
                layer.write(self.isa, head, page, slot, keys, v.columns(of_head).row(row));
            }
        }
    }
}
