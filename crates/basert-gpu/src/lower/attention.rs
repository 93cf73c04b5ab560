//! Attention: over tiles of queries, or of single tokens over a context that may be divided.

use basert_graph::{Attention, Reach, ValueId};
use basert_plan::{DeviceError, PlanNode, PlanOp};

use super::{Float, Lowered, Lowering, Memory, THREADGROUP_BYTES};
use crate::Kernel;
use crate::shape::{AttentionKind, Shape, tiles};
use crate::step::{PAGE, QUERY_TILE};
use crate::weights::Vector;

/// The most parts of a divided context.
const MOST_PARTS: usize = 64;
/// Simdgroups that have a head in attention over tiles of queries.
const PREFILL_SIMDGROUPS: usize = QUERY_TILE / 16;
/// Heads that share keys of which a threadgroup has the queries then, so that keys and values are read for all of them at once.
const PREFILL_HEADS: usize = 2;
/// Tokens of the shortest part of a context that is divided then.
const PREFILL_LEAST_SPLIT: usize = 256;

impl Lowering<'_> {
    /// Attention, and where `rope` is given, that op too, whose queries it reads.
    pub(super) fn attention(
        &mut self,
        node: &PlanNode,
        op: &Attention,
        rope: Option<&PlanNode>,
        shape: Shape,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let &Attention { cache, heads, scale, reach, cap, alibi, sinks } = op;
        let rope = rope.and_then(|node| match &node.op {
            PlanOp::RopeStore(op) => Some((node, op)),
            _ => None,
        });
        let of_rope = match rope {
            Some((node, op)) => self.rope_store_arguments(node, op)?,
            None => [(Memory::Weights, 0); 5],
        };
        let (q, value) = (rope.map_or(node, |(node, _)| node).inputs[0], node.out);
        let (window, chunk, skipped) = match reach {
            Reach::All | Reach::Everything => (0, 0, 0),
            Reach::Window(tokens) | Reach::Around(tokens) => (tokens, 0, 0),
            Reach::Chunk(tokens) => (0, tokens, 0),
            Reach::After(tokens) => (0, 0, tokens),
        };
        let stored = self.plan.graph.cache(cache);
        let (basert_graph::Cache { kv_heads, head_dim }, padded) = (stored, stored.padded_head());
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.unsupported(format!("{heads} query heads over {kv_heads} heads of keys")));
        }
        let (choice, group) = (self.tuning.decode, heads / kv_heads);
        let divided = shape.attention == AttentionKind::Divided;
        // On tiles heads have no numbers of their own.
        let on_tiles = divided && choice.tiles && alibi.is_none();
        let tiled = if on_tiles { decode_tiles(group, head_dim, choice.simdgroups / 2) } else { None };
        let has_sinks = sinks.is_some();
        let common = |kernel: Kernel| {
            kernel
                .define("Q_HEADS", heads)
                .define("SCALE", Float(scale))
                .define("WINDOW", window)
                .define("CHUNK", chunk)
                .define("SKIPPED", skipped)
                .define("BOTH_WAYS", u32::from(!reach.is_causal()))
                .define("USES_ALIBI", u32::from(alibi.is_some()))
                .define("ALIBI", Float(alibi.map_or(0.0, |alibi| alibi.most)))
                .define("ALIBI_HEADS", if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 })
                .define("CAP_SCORES", u32::from(cap.is_some()))
                .define("CAP", Float(cap.unwrap_or(0.0)))
                .define("SINKS", u32::from(has_sinks))
                .define("Q_STRIDE", self.place(q).stride)
                .define("OUT_STRIDE", self.place(value).stride)
        };
        let sinks = self.vector(sinks.map(Vector::plain))?;
        let (query, to, step, partial) = (self.at(q), self.at(value), (Memory::Step, 0), (Memory::Partial, 0));
        if shape.attention.is_tiled() {
            let at_once = group.min(PREFILL_HEADS);
            let sets = kv_heads * group.div_ceil(at_once);
            let wanted = self.cores / (sets * shape.tokens.div_ceil(QUERY_TILE));
            let parts = if shape.attention == AttentionKind::DividedTiles { wanted.clamp(1, MOST_PARTS) } else { 1 };
            let threads = (PREFILL_SIMDGROUPS * at_once * 32) as u32;
            let kernel = Kernel::new("attention/prefill.metal", "attention_prefill", threads);
            let (block, stages) = blocks_of_keys(padded, self.tuning.threadgroup_bytes);
            let kernel = common(kernel)
                .define("HEADS", at_once)
                .define("BLOCK", block)
                .define("STAGES", stages)
                .define("LEAST_SPLIT", PREFILL_LEAST_SPLIT)
                .define("PART_ROWS", if parts > 1 { shape.tokens } else { 0 });
            let (cache, kernel) = self.cache(cache, kernel)?;
            let bindings = vec![query, cache, to, partial, step, sinks];
            self.launch(out, kernel, bindings, [sets, tiles(shape.tokens, self.plan), parts]);
            return self.combine_parts(op, value, shape, parts, out);
        }
        // Sets of heads of equal size, with at most as many values as a simdgroup should hold; tiles hold all.
        let sets = if tiled.is_some() { 1 } else { group.div_ceil((choice.values / padded).max(1)) };
        let at_once = group.div_ceil(sets);
        let sets = kv_heads * group.div_ceil(at_once);
        // Enough threadgroups for every core, if rows and heads are too few, but no more than run at once.
        let wanted = choice.groups_per_core * self.cores / (shape.tokens * sets);
        let parts = if divided { wanted.clamp(2, MOST_PARTS) } else { 1 };
        let simdgroups = tiled.unwrap_or(choice.simdgroups);
        let kernel = Kernel::new("attention/decode.metal", "attention_decode", simdgroups as u32 * 32);
        let kernel = common(kernel)
            .define("HEADS", at_once)
            .define("ON_TILES", u32::from(tiled.is_some()))
            .define("LEAST_SPLIT", choice.least_split)
            .define("ROPE", u32::from(rope.is_some()));
        let kernel = rope.map_or(kernel.clone(), |(node, op)| self.rope_store_macros(node, op, kernel));
        let (cache_at, kernel) = self.cache(cache, kernel)?;
        let bindings = [query, cache_at, to, partial, step].into_iter().chain(of_rope).chain([sinks]).collect();
        self.launch(out, kernel, bindings, [sets, shape.tokens, parts]);
        self.combine_parts(op, value, shape, parts, out)
    }

    /// Puts the parts of a divided context together, if there are several.
    fn combine_parts(
        &mut self,
        op: &Attention,
        value: ValueId,
        shape: Shape,
        parts: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        if parts == 1 {
            return Ok(());
        }
        let stored = self.plan.graph.cache(op.cache);
        let bytes = parts * shape.tokens * op.heads * (stored.padded_head() + 3) * size_of::<f32>();
        self.partial_bytes = self.partial_bytes.max(bytes);
        out.barrier = true;
        let threads = stored.head_dim.min(128).next_multiple_of(32) as u32;
        let kernel = Kernel::new("attention/combine.metal", "attention_combine", threads)
            .define("Q_HEADS", op.heads)
            .define("HEAD_DIM", stored.padded_head())
            .define("HEAD_VALUES", stored.head_dim)
            .define("OUT_STRIDE", self.place(value).stride)
            .define("SINKS", u32::from(op.sinks.is_some()))
            .define("MOST_PARTS", MOST_PARTS);
        let sinks = self.vector(op.sinks.map(Vector::plain))?;
        let bindings = vec![(Memory::Partial, 0), self.at(value), (Memory::Step, 0), sinks];
        self.launch(out, kernel, bindings, [op.heads, shape.tokens, 1]);
        Ok(())
    }
}

/// Tokens whose keys, or values, pass through threadgroup memory together in attention of tiles, and how many such parts there is
/// room for: two, or three where there is more memory, for one of them to be read while another is written.
fn blocks_of_keys(head_dim: usize, threadgroup_bytes: usize) -> (usize, usize) {
    const LEAST: usize = 16;
    let stages = |block: usize| (threadgroup_bytes / (block * head_dim * size_of::<half::f16>())).min(4);
    let wanted = threadgroup_bytes / (16 << 10);
    // Where both products are as deep as each other, NVRTC 13.0 gives queries and weights the same registers.
    let fits = |&block: &usize| block != head_dim && stages(block) >= wanted;
    let block = [PAGE, PAGE / 2].into_iter().find(fits).unwrap_or(LEAST);
    (block, stages(block))
}

/// Simdgroups of attention of single tokens on tiles, as many of these as threadgroup memory has room for; none where heads are
/// not what it takes.
fn decode_tiles(group: usize, head_dim: usize, most: usize) -> Option<usize> {
    const TILE: usize = 16;
    // Sums in floats, queries in halves, weights in halves, and what is rotated in place.
    let bytes = |simdgroups: usize| {
        simdgroups * (group * (head_dim + 2) * 4 + TILE * TILE * 2) + TILE * head_dim * 2 + (group + 2) * head_dim * 4
    };
    let takes = (2..=TILE).contains(&group) && head_dim.is_multiple_of(64);
    (1..=most).rev().find(|&simdgroups| takes && bytes(simdgroups) <= THREADGROUP_BYTES)
}
