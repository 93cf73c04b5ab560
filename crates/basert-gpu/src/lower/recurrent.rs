//! Ops with running states: convolutions over time, and linear attention.
//!
//! Their threadgroups find the rows of sequences in the step: each goes through some of the sequences, since their number is
//! not known.

use basert_graph::{Conv, LinearAttention, StateId, ValueId};
use basert_plan::{DeviceError, PlanNode};

use super::{Float, Lowered, Lowering, Memory};
use crate::Kernel;
use crate::shape::Shape;
use crate::weights::Vector;

/// Simdgroups for each core that several sequences are worth.
const SIMDGROUPS_PER_CORE: usize = 32;
/// The most rows of queries and keys, which lanes have in registers.
const MOST_ROWS: usize = 1024;
/// The alignment of kernels' arguments, in bytes.
const ALIGNMENT: usize = 16;

/// A running state: where it is in the first slot, and its first value there.
struct Running {
    at: (Memory, usize),
    first: usize,
}

impl Lowering<'_> {
    /// A running state, and the kernel with the macros of its place.
    fn running(&self, id: StateId, kernel: Kernel) -> (Running, Kernel) {
        let offset = self.plan.graph.slot_offset(id);
        let (at, first) = (offset / ALIGNMENT * ALIGNMENT, offset % ALIGNMENT / size_of::<f32>());
        let kernel = kernel.define("SLOT_VALUES", self.slot_values()).define("STATE_AT", first);
        (Running { at: (Memory::Slots, at), first }, kernel)
    }

    /// Values of a slot.
    fn slot_values(&self) -> usize {
        self.plan.graph.slot_bytes() / size_of::<f32>()
    }

    /// How many sequences have threadgroups of their own, if each has so many `groups`: as many as there may be, but no more than
    /// run at once.
    fn sequences(&self, shape: Shape, groups: usize, simdgroups: usize) -> usize {
        (SIMDGROUPS_PER_CORE * self.cores).div_ceil(groups * simdgroups).min(shape.tokens)
    }

    pub(super) fn conv(
        &mut self,
        node: &PlanNode,
        how: &Conv,
        shape: Shape,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        // Tokens that a thread computes, more than a convolution has taps.
        const ROWS: usize = 32;
        const SIMDGROUPS: usize = 8;
        let (x, place) = (self.place(node.inputs[0]), self.place(node.out));
        let kernel = Kernel::new("recurrent/conv.metal", "conv", 32 * SIMDGROUPS as u32)
            .define("CHANNELS", place.width)
            .define("TAPS", self.plan.graph.weights[how.weight.0].columns)
            .define("ROWS", ROWS)
            .define("HAS_BIAS", u32::from(how.bias.is_some()))
            .define("X_STRIDE", x.stride)
            .define("OUT_STRIDE", place.stride);
        let (state, kernel) = self.running(how.state, kernel);
        let (weight, bias) = (self.vector(Some(Vector::plain(how.weight)))?, self.vector(how.bias.map(Vector::plain))?);
        let kernel = out.after.define(kernel);
        let bindings = [self.at(node.inputs[0]), weight, bias, state.at, self.at(node.out), (Memory::Step, 0)];
        let bindings = bindings.into_iter().chain(out.after.bindings()).collect();
        let (blocks, parts) = (place.width.div_ceil(32 * SIMDGROUPS), shape.tokens.div_ceil(ROWS));
        let sequences = self.sequences(shape, blocks * parts, SIMDGROUPS);
        self.launch(out, kernel, bindings, [blocks, sequences, parts]);
        Ok(())
    }

    pub(super) fn linear_attention(
        &mut self,
        node: &PlanNode,
        how: &LinearAttention,
        shape: Shape,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        const SIMDGROUPS: usize = 2;
        let &LinearAttention { state, heads, key_heads, key_dim, value_dim, tiled, by_row, delta, scale } = how;
        if key_dim > MOST_ROWS {
            let what = format!("linear attention with keys of {key_dim} values, more than {MOST_ROWS}");
            return Err(self.unsupported(what));
        }
        let (q, k, v, decay) = (node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3]);
        let beta = node.inputs.get(4).copied();
        let stride = |value: ValueId| self.place(value).stride;
        let aligned = |value: ValueId| self.at(value).1.is_multiple_of(ALIGNMENT) && stride(value).is_multiple_of(4);
        let aligned = key_dim.is_multiple_of(4) && aligned(q) && aligned(k) && (!by_row || aligned(decay));
        let kernel = Kernel::new("recurrent/linear_attention.metal", "linear_attention", 32 * SIMDGROUPS as u32)
            .define("HEADS", heads)
            .define("KEY_HEADS", key_heads)
            .define("KEY_DIM", key_dim)
            .define("VALUE_DIM", value_dim)
            .define("TILED", u32::from(tiled))
            .define("BY_ROW", u32::from(by_row))
            .define("DELTA", u32::from(delta))
            .define("SCALE", Float(scale))
            .define("HAS_BETA", u32::from(beta.is_some()))
            .define("Q_STRIDE", stride(q))
            .define("K_STRIDE", stride(k))
            .define("V_STRIDE", stride(v))
            .define("DECAY_STRIDE", stride(decay))
            .define("BETA_STRIDE", beta.map_or(0, stride))
            .define("OUT_STRIDE", stride(node.out))
            .define("ALIGNED", u32::from(aligned));
        let (running, kernel) = self.running(state, kernel);
        // Two columns are read at once where they lie at multiples of eight bytes.
        let wide = 1 + usize::from([value_dim, self.slot_values(), running.first].iter().all(|n| n.is_multiple_of(2)));
        let split = lanes_of_column(key_dim);
        let kernel = kernel.define("WIDE", wide).define("SPLIT", split);
        let beta = self.at(beta.unwrap_or(decay));
        let [q, k, v, decay, to] = [q, k, v, decay, node.out].map(|value| self.at(value));
        let bindings = vec![q, k, v, decay, beta, running.at, to, (Memory::Step, 0)];
        let blocks = (heads * value_dim).div_ceil(32 / split * wide * SIMDGROUPS);
        let sequences = self.sequences(shape, blocks, SIMDGROUPS);
        self.launch(out, kernel, bindings, [blocks, sequences, 1]);
        Ok(())
    }
}

/// Lanes that share a column of a state of so many rows: as many as leave each of them about sixteen, and no fewer than four where
/// there are rows for them.
fn lanes_of_column(rows: usize) -> usize {
    let quads = rows.div_ceil(4);
    quads.div_ceil(4).next_power_of_two().clamp(quads.next_power_of_two().min(4), 32)
}
