//! Heads of queries, keys and values: norms, rotary embeddings, and storing in the KV cache.

use basert_graph::{Pairs, RopeId, StateId};
use basert_plan::{DeviceError, Place, PlanNode, RopeStore};

use super::{Bound, CachePlace, Kernel, Run, WorkerScratch};
use crate::device::Binder;
use crate::elementwise::BoundNorm;
use crate::{RotaryStyle, Worker, elementwise};

/// Cosines and sines for the tokens of a step.
pub(crate) struct RopeTable {
    frequencies: Vec<f32>,
    magnitude: f32,
    style: RotaryStyle,
    /// For each token the cosines of all pairs, then the sines.
    values: Vec<f32>,
}

impl RopeTable {
    pub fn new(rope: &basert_graph::Rope, tokens: usize) -> RopeTable {
        let style = match rope.pairs {
            Pairs::Half => RotaryStyle::Halves,
            Pairs::Interleaved => RotaryStyle::Pairs,
        };
        let values = vec![0.0; 2 * rope.frequencies.len() * tokens];
        RopeTable { frequencies: rope.frequencies.clone(), magnitude: rope.magnitude, style, values }
    }

    pub(super) fn fill(&mut self, positions: &[u32]) {
        let n = self.frequencies.len();
        for (&position, row) in positions.iter().zip(self.values.chunks_exact_mut(2 * n)) {
            let (cos, sin) = row.split_at_mut(n);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                (*sin, *cos) = (position as f32 * frequency).sin_cos();
                (*sin, *cos) = (self.magnitude * *sin, self.magnitude * *cos);
            }
        }
    }

    /// Rotates a head of a token.
    fn turn(&self, run: &Run, head: &mut [f32], token: usize) {
        let n = self.frequencies.len();
        let (cos, sin) = self.values[2 * n * token..][..2 * n].split_at(n);
        elementwise::rotate(run.isa, head, cos, sin, self.style);
    }
}

/// The rotation of each head.
struct Rope {
    x: Place,
    rope: usize,
    head_dim: usize,
    out: Place,
}

pub(super) fn bind_rope(binder: &Binder, node: &PlanNode, rope: RopeId, head_dim: usize) -> Box<dyn Kernel> {
    Box::new(Rope { x: binder.place(node.inputs[0]), rope: rope.0, head_dim, out: binder.place(node.out) })
}

impl Kernel for Rope {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let tokens = run.tokens();
        let (x, out, rope) = (run.view(self.x, tokens), run.view(self.out, tokens), &run.ropes[self.rope]);
        let heads = out.cols() / self.head_dim;
        for unit in worker.chunks(&op.work, tokens * heads, 2).flatten() {
            let (row, head) = (unit / heads, unit % heads);
            let columns = head * self.head_dim..(head + 1) * self.head_dim;
            let (x, out) = (x.columns(columns.clone()), out.columns(columns));
            // SAFETY: each head of each token is one worker's, and the output lies over the input or apart from it.
            let head = unsafe { out.row_from(&x, row) };
            rope.turn(run, head, row);
        }
    }
}

/// Storing keys and values.
struct Store {
    k: Place,
    v: Place,
    cache: CachePlace,
}

pub(super) fn bind_store(binder: &Binder, node: &PlanNode, cache: StateId) -> Box<dyn Kernel> {
    Box::new(Store { k: binder.place(node.inputs[0]), v: binder.place(node.inputs[1]), cache: binder.cache(cache) })
}

impl Kernel for Store {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let CachePlace { group: page_group, kv_heads, head_dim, .. } = self.cache;
        let tokens = run.tokens();
        let (k, v, layer) = (run.view(self.k, tokens), run.view(self.v, tokens), run.layer(self.cache));
        for unit in worker.chunks(&op.work, tokens * kv_heads, 2).flatten() {
            let (row, head) = (unit / kv_heads, unit % kv_heads);
            let columns = head * head_dim..(head + 1) * head_dim;
            let (page, slot) = run.places[page_group][row];
            // SAFETY: each head of each token is one worker's, and nobody writes the inputs.
            unsafe {
                let (k, v) = (k.columns(columns.clone()).row(row), v.columns(columns).row(row));
                layer.write(run.isa, head, page, slot, k, v);
            }
        }
    }
}

/// All of it.
struct BoundRopeStore {
    q: Place,
    k: Place,
    v: Place,
    q_norm: Option<BoundNorm>,
    k_norm: Option<BoundNorm>,
    rope: usize,
    cache: CachePlace,
    out: Place,
}

pub(super) fn bind_rope_store(
    binder: &Binder,
    node: &PlanNode,
    op: &RopeStore,
) -> Result<Box<dyn Kernel>, DeviceError> {
    let norm = |norm: &Option<_>| norm.as_ref().map(|norm| binder.norm(norm)).transpose();
    Ok(Box::new(BoundRopeStore {
        q: binder.place(node.inputs[0]),
        k: binder.place(node.inputs[1]),
        v: binder.place(node.inputs[2]),
        q_norm: norm(&op.q_norm)?,
        k_norm: norm(&op.k_norm)?,
        rope: op.rope.0,
        cache: binder.cache(op.cache),
        out: binder.place(node.out),
    }))
}

impl Kernel for BoundRopeStore {
    /// One token's keys and values of one head, and the queries of its group.
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let CachePlace { group: page_group, kv_heads, head_dim, .. } = self.cache;
        let view = |place: Place| run.view(place, run.tokens());
        let (q, k, v, out) = (view(self.q), view(self.k), view(self.v), view(self.out));
        let (rope, layer) = (&run.ropes[self.rope], run.layer(self.cache));
        let group = q.cols() / kv_heads;
        let turn = |head: &mut [f32], norm: &Option<BoundNorm>, row: usize| {
            if let Some(norm) = norm {
                norm.apply_to_head(run.isa, head);
            }
            rope.turn(run, head, row);
        };
        for unit in worker.chunks(&op.work, run.tokens() * kv_heads, 2).flatten() {
            let (row, head) = (unit / kv_heads, unit % kv_heads);
            let (of_group, of_head) = (head * group..(head + 1) * group, head * head_dim..(head + 1) * head_dim);
            let (page, slot) = run.places[page_group][row];
            // SAFETY: each head of each token is one worker's, and the output lies over the queries or apart from all
            // inputs.
            unsafe {
                let queries = out.columns(of_group.clone()).row_from(&q.columns(of_group), row);
                queries.chunks_exact_mut(head_dim).for_each(|head| turn(head, &self.q_norm, row));
                let keys = &mut scratch.row[..head_dim];
                keys.copy_from_slice(k.columns(of_head.clone()).row(row));
                turn(keys, &self.k_norm, row);
                layer.write(run.isa, head, page, slot, keys, v.columns(of_head).row(row));
            }
        }
    }
}
