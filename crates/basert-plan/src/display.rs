//! Plans as text.

use std::fmt;

use crate::plan::{Epilogue, Order, Plan, PlanOp};

impl Plan {
    /// A short description of an op's operands: the weights and their shape, or the heads.
    pub fn describe(&self, op: &PlanOp) -> String {
        let weight = |id: basert_graph::WeightId| &self.graph.weights[id.0];
        match *op {
            PlanOp::Embed { weight: id, .. } => {
                let w = weight(id);
                format!("{} {}×{} {}", w.tensor, w.rows, w.columns, w.format)
            }
            PlanOp::Linear { ref matrices, epilogue, .. } => {
                let mut parts: Vec<_> = matrices
                    .iter()
                    .map(|id| {
                        let matrix = &self.matrices[id.0];
                        let names: Vec<_> = matrix.parts.iter().map(|(id, _)| weight(*id).tensor.as_str()).collect();
                        let joint = if matrix.order == Order::Paired { " | " } else { " + " };
                        format!("{} {}×{} {}", shorten(&names, joint), matrix.rows, matrix.columns, matrix.format)
                    })
                    .collect();
                if let Epilogue::Gated(activation) = epilogue {
                    parts.push(format!("{activation:?}"));
                }
                parts.join(", ")
            }
            PlanOp::RopeCache { rope, cache, q_norm, .. } => {
                let (rope, cache) = (&self.graph.ropes[rope.0], self.graph.caches[cache.0]);
                let norm = if q_norm.is_some() { "QK-norm, " } else { "" };
                format!("{norm}rope {}, {} kv heads of {}", rope.name, cache.kv_heads, cache.head_dim)
            }
            PlanOp::Attention { heads, cache, window, .. } => {
                let cache = self.graph.caches[cache.0];
                let window = window.map_or(String::new(), |window| format!(", window {window}"));
                format!("{heads} heads on {} of {}{window}", cache.kv_heads, cache.head_dim)
            }
            PlanOp::Norm { norm, .. } => weight(norm.weight).tensor.clone(),
            _ => String::new(),
        }
    }
}

/// The names joined, with their common prefix and suffix written once.
fn shorten(names: &[&str], joint: &str) -> String {
    let Some((first, rest)) = names.split_first() else { return String::new() };
    let common = rest
        .iter()
        .fold(first.len(), |n, name| first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count().min(n));
    let start = first.get(..common).and_then(|text| text.rfind('.')).map_or(0, |dot| dot + 1);
    let rest = rest.iter().map(|name| name.get(start..).unwrap_or(name));
    std::iter::once(*first).chain(rest).collect::<Vec<_>>().join(joint)
}

impl fmt::Display for Plan {
    /// One line per op: a bar for a barrier, its name, its output with place and width, and its operands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let barriers = self.ops.iter().filter(|op| op.barrier).count();
        writeln!(
            f,
            "{}: {} ops, {barriers} barriers, arena {} bytes for {} tokens with {} rows of logits",
            self.graph.family,
            self.ops.len(),
            self.arena_bytes,
            self.limits.tokens,
            self.limits.wanted
        )?;
        for op in &self.ops {
            let (out, place) = (&self.values[op.op.out().0], self.places[op.op.out().0]);
            let bar = if op.barrier { '|' } else { ' ' };
            let position = format!("@{}+{}", place.offset, place.column);
            writeln!(f, "{bar} {:<17} {:<14} {:<6} {}", op.op.name(), position, out.width, self.describe(&op.op))?;
        }
        Ok(())
    }
}
