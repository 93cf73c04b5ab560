//! The cost of a step: bytes moved and operations computed, op by op.

use std::ops::AddAssign;

use basert_core::KvFormat;
use basert_graph::{Attention, Op, Part, Rows, State, ValueId};

use crate::plan::{Linear, Plan, PlanNode, PlanOp};

/// The properties of a step that determine its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub wanted: usize,
    /// Tokens before them in the sequence.
    pub context: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
}

/// The least that an op has to move and compute.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes of weights read.
    pub weights: f64,
    /// Bytes of cached keys and values, and of running states, read and written.
    pub cache: f64,
    /// Bytes of intermediate values read and written.
    pub values: f64,
    /// Floating-point operations; a multiplication and an addition are two.
    pub flops: f64,
}

impl Cost {
    /// Bytes that have to come from memory; intermediate values stay in the CPU's caches.
    pub fn memory_bytes(&self) -> f64 {
        self.weights + self.cache
    }

    /// The least time in seconds, with `bandwidth` in bytes and `rate` in operations per second.
    pub fn seconds(&self, bandwidth: f64, rate: f64) -> f64 {
        (self.memory_bytes() / bandwidth).max(self.flops / rate)
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.weights += other.weights;
        self.cache += other.cache;
        self.values += other.values;
        self.flops += other.flops;
    }
}

impl Plan {
    /// The cost of one of the plan's nodes in a step of this shape.
    pub fn cost(&self, node: &PlanNode, step: StepShape) -> Cost {
        let rows = |rows: Rows| match rows {
            Rows::Tokens => step.tokens as f64,
            Rows::Wanted => step.wanted as f64,
        };
        let out = &self.values[node.out.0];
        let m = rows(out.rows);
        let elements = |value: ValueId| {
            let value = &self.values[value.0];
            rows(value.rows) * value.width as f64
        };
        let moved = node.reads().chain([node.out]).map(elements).sum::<f64>() * 4.0;
        let signature = node.op.signature();
        let written = signature.writes.map(|state| self.graph.states[state.0]);
        let stored = written.and_then(|state| state.paged());
        let computed = if stored.is_some() { moved / 4.0 } else { m * out.width as f64 };
        let mut cost = Cost { values: moved, flops: signature.flops * computed, ..Cost::default() };
        for (weight, part) in &signature.weights {
            if *part == Part::Table {
                let weight = &self.graph.weights[weight.0];
                cost.weights += m * weight.bytes() as f64 / weight.rows as f64;
            }
        }
        match written {
            Some(State::Paged(cache)) => cost.cache += m * cache.token_bytes(step.kv) as f64,
            // It is read and written once, however many tokens change it.
            Some(State::Running(values)) if m > 0.0 => cost.cache += (2 * values * size_of::<f32>()) as f64,
            _ => {}
        }
        match &node.op {
            PlanOp::Linear(Linear { matrices, experts, .. }) if m > 0.0 => {
                // The share of the experts that a token uses, and the share used by any token if all are equally
                // likely.
                let share: f64 = experts.map_or(1.0, |experts| experts.used as f64 / experts.count as f64);
                let touched = 1.0 - (1.0 - share).powf(m);
                for id in matrices {
                    let matrix = &self.matrices[id.0];
                    let bytes = matrix.format.row_bytes(matrix.columns).unwrap_or(0) as f64 * matrix.rows as f64;
                    cost.weights += touched * bytes;
                    cost.flops += 2.0 * m * share * matrix.rows as f64 * matrix.columns as f64;
                }
            }
            PlanOp::Plain(Op::Attention(Attention { cache, reach, .. })) => {
                let all = step.context + step.tokens;
                let seen = |token: usize| reach.seen(step.context + token, all);
                let scores: f64 = (0..step.tokens).map(|token| seen(token).len() as f64).sum();
                let read = (all - seen(0).start) as f64;
                cost.cache = read * self.graph.cache(*cache).token_bytes(step.kv) as f64;
                cost.flops = 4.0 * scores * out.width as f64;
            }
            _ => {}
        }
        cost
    }

    /// The cost of a whole step, and its least time in seconds (see [`Cost::seconds`]).
    pub fn step_cost(&self, step: StepShape, bandwidth: f64, rate: f64) -> (Cost, f64) {
        let mut total = Cost::default();
        let mut seconds = 0.0;
        for node in self.model() {
            let cost = self.cost(node, step);
            seconds += cost.seconds(bandwidth, rate);
            total += cost;
        }
        (total, seconds)
    }
}
