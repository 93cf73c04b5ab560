//! Heads of queries, keys and values: norms, rotations, and storing in the KV cache.

use basert_core::KvFormat;
use basert_graph::{Pairs, RopeId, StateId};
use basert_plan::{DeviceError, PlanNode, RopeStore};

use super::{Float, Lowered, Lowering, Memory};
use crate::Kernel;
use crate::step::PAGE;
use crate::weights::Vector;

/// Simdgroups of a threadgroup, each with a head.
const SIMDGROUPS: usize = 4;

impl Lowering<'_> {
    /// The KV cache of a layer, and the kernel with the macros of its layout.
    pub(super) fn cache(&self, id: StateId, kernel: Kernel) -> Result<((Memory, usize), Kernel), DeviceError> {
        let cache = self.plan.graph.cache(id);
        if cache.head_dim > 256 {
            return Err(self.unsupported(format!("heads of {} values, more than 256", cache.head_dim)));
        }
        let kv = self.cache.kv;
        if kv != KvFormat::F16 && !cache.head_dim.is_multiple_of(kv.block()) {
            let what = format!("{kv} keys and values of heads of {} values, not whole blocks", cache.head_dim);
            return Err(self.unsupported(what));
        }
        let (group, in_page) = self.plan.place_in_page(id, kv, PAGE);
        let kernel = self
            .step
            .of_group(kernel, group)
            .define("KV_HEADS", cache.kv_heads)
            .define("HEAD_DIM", cache.padded_head())
            .define("HEAD_VALUES", cache.head_dim)
            .define("KV_BITS", kv.bits())
            .define("PAGE", PAGE)
            .define("PAGE_BYTES", format!("{}ul", self.cache.page_bytes(group)));
        Ok(((Memory::Cache, self.cache.page(group, 0) + in_page), kernel))
    }

    pub(super) fn rope(
        &mut self,
        node: &PlanNode,
        rope: RopeId,
        head_dim: usize,
        rows: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (from, to) = (self.place(node.inputs[0]), self.place(node.out));
        let heads = to.width / head_dim;
        let kernel = Kernel::new("rope/rope.metal", "rope", SIMDGROUPS as u32 * 32)
            .define("HEADS", heads)
            .define("HEAD_DIM", head_dim)
            .define("HEAD_VALUES", head_dim)
            .define("X_STRIDE", from.stride)
            .define("OUT_STRIDE", to.stride);
        let kernel = self.rotation(rope, kernel);
        let frequencies = self.vector(Some(Vector::Frequencies(rope)))?;
        let bindings = vec![self.at(node.inputs[0]), frequencies, self.at(node.out), (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [heads.div_ceil(SIMDGROUPS), rows, 1]);
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        node: &PlanNode,
        cache: StateId,
        rows: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (k, v) = (node.inputs[0], node.inputs[1]);
        let kernel = Kernel::new("rope/store.metal", "store", SIMDGROUPS as u32 * 32)
            .define("K_STRIDE", self.place(k).stride)
            .define("V_STRIDE", self.place(v).stride);
        let heads = 2 * self.plan.graph.cache(cache).kv_heads;
        let (cache, kernel) = self.cache(cache, kernel)?;
        let bindings = vec![self.at(k), self.at(v), cache, (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [heads.div_ceil(SIMDGROUPS), rows, 1]);
        Ok(())
    }

    pub(super) fn rope_store(
        &mut self,
        node: &PlanNode,
        op: &RopeStore,
        rows: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.cache(op.cache);
        let q = node.inputs[0];
        let heads = self.place(q).width / head_dim;
        let kernel = Kernel::new("rope/rope_cache.metal", "rope_cache", SIMDGROUPS as u32 * 32)
            .define("Q_HEADS", heads)
            .define("Q_STRIDE", self.place(q).stride)
            .define("OUT_STRIDE", self.place(node.out).stride);
        let kernel = self.rope_store_macros(node, op, kernel);
        let (cache, kernel) = self.cache(op.cache, kernel)?;
        let after = [self.at(node.out), cache, (Memory::Step, 0)];
        let bindings = [self.at(q)].into_iter().chain(self.rope_store_arguments(node, op)?).chain(after).collect();
        let groups = [(heads + 2 * kv_heads).div_ceil(SIMDGROUPS), rows, 1];
        self.launch(out, kernel, bindings, groups);
        Ok(())
    }

    /// The kernel with the macros of a rotation.
    fn rotation(&self, rope: RopeId, kernel: Kernel) -> Kernel {
        let table = &self.plan.graph.ropes[rope.0];
        kernel
            .define("ROTATED", 2 * table.frequencies.len())
            .define("INTERLEAVED", u32::from(table.pairs == Pairs::Interleaved))
            .define("MAGNITUDE", Float(table.magnitude))
    }

    /// The kernel with the macros of what is done to heads of q and k.
    pub(super) fn rope_store_macros(&self, node: &PlanNode, op: &RopeStore, kernel: Kernel) -> Kernel {
        let RopeStore { q_norm, k_norm, rope, .. } = op;
        let kernel = self
            .rotation(*rope, kernel)
            .define("K_STRIDE", self.place(node.inputs[1]).stride)
            .define("V_STRIDE", self.place(node.inputs[2]).stride)
            .define("Q_NORM", u32::from(q_norm.is_some()))
            .define("K_NORM", u32::from(k_norm.is_some()));
        let kernel = q_norm.map_or(kernel.clone(), |norm| kernel.define("Q_EPS", Float(norm.eps)));
        k_norm.map_or(kernel.clone(), |norm| kernel.define("K_EPS", Float(norm.eps)))
    }

    /// What it reads besides the queries: keys, values, the norms of heads, frequencies.
    pub(super) fn rope_store_arguments(
        &self,
        node: &PlanNode,
        op: &RopeStore,
    ) -> Result<[(Memory, usize); 5], DeviceError> {
        let frequencies = self.vector(Some(Vector::Frequencies(op.rope)))?;
        let (k, v) = (self.at(node.inputs[1]), self.at(node.inputs[2]));
        Ok([k, v, self.norm_at(op.q_norm.as_ref())?, self.norm_at(op.k_norm.as_ref())?, frequencies])
    }
}
