//! Ops with running states: convolutions over time, and linear attention.
//!
//! Every column of a state is one worker's, which goes through the tokens of a sequence in order. So a result does not
//! depend on how a prompt is divided into steps.

use std::ops::Range;

use basert_graph::{Graph, Op, StateId};
use basert_plan::{DeviceError, Place, PlanNode, SequenceRows, StepState};

use super::{Bound, Kernel, Run, WorkerScratch};
use crate::device::Binder;
use crate::{Worker, recurrent};

/// Channels of a convolution in a piece of work.
const CHANNELS: usize = 256;

/// Values of a running state that a worker has at hand.
pub(crate) fn state_scratch(graph: &Graph) -> usize {
    let values = graph.nodes.iter().map(|node| match node.op {
        Op::Conv(conv) => graph.weights[conv.weight.0].columns * CHANNELS,
        // A row of decays comes after the columns.
        Op::LinearAttention(how) => how.key_dim * (how.value_dim.min(recurrent::COLUMNS) + 1),
        _ => 0,
    });
    values.max().unwrap_or(0)
}

impl Run<'_> {
    /// Row `row` of a state in a slot, of rows of `width` values: its columns in `range`; none for zeros.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the reference lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn state(&self, slot: u32, first: usize, (row, width): (usize, usize), range: &Range<usize>) -> &mut [f32] {
        // SAFETY: the step was checked to name slots that exist, each of which has room for all states.
        unsafe {
            let start = self.states.add(slot as usize * self.slot_values + first + row * width + range.start);
            std::slice::from_raw_parts_mut(start, range.len())
        }
    }

    /// The tokens of a sequence after which states are kept, with their slots.
    fn kept(&self, sequence: &SequenceRows) -> impl Iterator<Item = (usize, u32)> {
        let kept = sequence.rows.clone().zip(&self.step.kept[sequence.rows.clone()]);
        kept.filter(|(_, slot)| **slot != StepState::NONE).map(|(row, slot)| (row, *slot))
    }
}

/// First value of a state in a slot.
fn first_value(binder: &Binder, state: StateId) -> usize {
    binder.graph().slot_offset(state) / size_of::<f32>()
}

struct Conv {
    x: Place,
    /// For each tap, the oldest first, a factor for each channel.
    weight: Vec<f32>,
    bias: Vec<f32>,
    taps: usize,
    state: usize,
    out: Place,
}

pub(super) fn bind_conv(
    binder: &Binder,
    node: &PlanNode,
    how: &basert_graph::Conv,
) -> Result<Box<dyn Kernel>, DeviceError> {
    let (x, out) = (binder.place(node.inputs[0]), binder.place(node.out));
    let (rows, taps) = (binder.vector(how.weight)?, binder.weight(how.weight).columns);
    let weight = (0..taps).flat_map(|tap| rows.chunks_exact(taps).map(move |row| row[tap])).collect();
    let bias = how.bias.map_or(Ok(vec![0.0; out.width]), |bias| binder.vector(bias))?;
    Ok(Box::new(Conv { x, weight, bias, taps, state: first_value(binder, how.state), out }))
}

impl Kernel for Conv {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let (x, out) = (run.view(self.x, run.tokens()), run.view(self.out, run.tokens()));
        let (width, before) = (self.out.width, self.taps - 1);
        let blocks = width.div_ceil(CHANNELS);
        for unit in worker.chunks(&op.work, run.step.sequences.len() * blocks, 1).flatten() {
            let (sequence, first) = (&run.step.sequences[unit / blocks], unit % blocks * CHANNELS);
            let range = first..width.min(first + CHANNELS);
            let (x, out) = (x.columns(range.clone()), out.columns(range.clone()));
            let old = &mut scratch.state[..before * range.len()];
            old.fill(0.0);
            // SAFETY: each channel of a sequence is one worker's, and a slot that is kept is no other sequence's.
            unsafe {
                if sequence.slot != StepState::NONE {
                    for (row, old) in old.chunks_exact_mut(range.len()).enumerate() {
                        old.copy_from_slice(run.state(sequence.slot, self.state, (row, width), &range));
                    }
                }
                // The inputs of the step after those that were kept, by their distance from the first of these.
                let input = |at: usize| match at.checked_sub(before) {
                    Some(row) => x.row(sequence.rows.start + row),
                    None => &old[at * range.len()..][..range.len()],
                };
                for row in 0..sequence.rows.len() {
                    let y = out.row_mut(sequence.rows.start + row);
                    y.copy_from_slice(&self.bias[range.clone()]);
                    for tap in 0..self.taps {
                        let weight = &self.weight[tap * width..][range.clone()];
                        recurrent::multiply_add(run.isa, weight, input(row + tap), y);
                    }
                }
                for (row, slot) in run.kept(sequence) {
                    for i in 0..before {
                        let kept = run.state(slot, self.state, (i, width), &range);
                        kept.copy_from_slice(input(row + 1 - sequence.rows.start + i));
                    }
                }
            }
        }
    }
}

struct LinearAttention {
    /// Queries, keys, values and decays.
    inputs: [Place; 4],
    beta: Option<Place>,
    how: basert_graph::LinearAttention,
    state: usize,
    out: Place,
}

pub(super) fn bind_linear_attention(
    binder: &Binder,
    node: &PlanNode,
    how: basert_graph::LinearAttention,
) -> Box<dyn Kernel> {
    let inputs = [0, 1, 2, 3].map(|i| binder.place(node.inputs[i]));
    let beta = node.inputs.get(4).map(|&beta| binder.place(beta));
    let (state, out) = (first_value(binder, how.state), binder.place(node.out));
    Box::new(LinearAttention { inputs, beta, how, state, out })
}

impl Kernel for LinearAttention {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let &basert_graph::LinearAttention { heads, key_dim, value_dim, by_row, delta, scale, .. } = &self.how;
        let view = |place: Place| run.view(place, run.tokens());
        let ([q, k, v, decay], out) = (self.inputs.map(view), view(self.out));
        let beta = self.beta.map(view);
        let blocks = value_dim.div_ceil(recurrent::COLUMNS);
        for unit in worker.chunks(&op.work, run.step.sequences.len() * heads * blocks, 1).flatten() {
            let (sequence, head, block) =
                (&run.step.sequences[unit / blocks / heads], unit / blocks % heads, unit % blocks);
            let first = block * recurrent::COLUMNS;
            let range = first..value_dim.min(first + recurrent::COLUMNS);
            let key_head = self.how.key_head(head);
            let of_keys = key_head * key_dim..(key_head + 1) * key_dim;
            let of_values = head * value_dim + range.start..head * value_dim + range.end;
            let of_decays = if by_row { head * key_dim..(head + 1) * key_dim } else { head..head + 1 };
            let (state, decays) = scratch.state.split_at_mut(key_dim * range.len());
            let matrix = self.state + head * key_dim * value_dim;
            // SAFETY: each column of a sequence's state is one worker's, and a slot that is kept is no other sequence's.
            unsafe {
                for (row, state) in state.chunks_exact_mut(range.len()).enumerate() {
                    match sequence.slot {
                        StepState::NONE => state.fill(0.0),
                        slot => state.copy_from_slice(run.state(slot, matrix, (row, value_dim), &range)),
                    }
                }
                let mut kept = run.kept(sequence).peekable();
                for row in sequence.rows.clone() {
                    let token = recurrent::Token {
                        q: q.columns(of_keys.clone()).row(row),
                        k: k.columns(of_keys.clone()).row(row),
                        v: v.columns(of_values.clone()).row(row),
                        decay: decay.columns(of_decays.clone()).row(row),
                        beta: beta.map_or(1.0, |beta| beta.row(row)[head]),
                        delta,
                        scale,
                    };
                    let y = out.columns(of_values.clone()).row_mut(row);
                    recurrent::attend(run.isa, &token, state, &mut decays[..key_dim], y);
                    if let Some((_, slot)) = kept.next_if(|&(at, _)| at == row) {
                        for (row, state) in state.chunks_exact(range.len()).enumerate() {
                            run.state(slot, matrix, (row, value_dim), &range).copy_from_slice(state);
                        }
                    }
                }
            }
        }
    }
}
