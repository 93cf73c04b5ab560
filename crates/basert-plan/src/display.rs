//! Plans as text.

use std::fmt;

use basert_graph::{Attention, LinearAttention, Op, Part, Reach, WeightId};

use crate::plan::{Gate, Linear, Order, Plan, PlanNode, PlanOp, RopeStore};

impl Plan {
    /// A short description of a node: the weights and their shape, or the heads.
    pub fn describe(&self, node: &PlanNode) -> String {
        let weight = |id: WeightId| &self.graph.weights[id.0];
        match &node.op {
            PlanOp::Linear(Linear { matrices, gate, .. }) => {
                let mut parts: Vec<_> = matrices
                    .iter()
                    .map(|id| {
                        let matrix = &self.matrices[id.0];
                        let names: Vec<_> = matrix.parts.iter().map(|(id, _)| weight(*id).name()).collect();
                        let joint = if matrix.order == Order::Paired { " | " } else { " + " };
                        format!("{} {}×{} {}", shorten(&names, joint), matrix.rows, matrix.columns, matrix.format)
                    })
                    .collect();
                parts.extend(gate.map(|gate| gate.to_string()));
                parts.join(", ")
            }
            PlanOp::RopeStore(RopeStore { q_norm, rope, cache, .. }) => {
                let (rope, cache) = (&self.graph.ropes[rope.0], self.graph.cache(*cache));
                let norm = if q_norm.is_some() { "QK-norm, " } else { "" };
                format!("{norm}rope {}, {} kv heads of {}", rope.name, cache.kv_heads, cache.head_dim)
            }
            PlanOp::Gate(gate) => gate.to_string(),
            PlanOp::Plain(Op::Attention(Attention { heads, cache, reach, .. })) => {
                let cache = self.graph.cache(*cache);
                let reach = match reach {
                    Reach::All => String::new(),
                    Reach::Window(tokens) => format!(", window {tokens}"),
                    Reach::Chunk(tokens) => format!(", chunks of {tokens}"),
                    Reach::After(tokens) => format!(", after the first {tokens}"),
                    Reach::Everything => ", both ways".to_owned(),
                    Reach::Around(tokens) => format!(", window {tokens} both ways"),
                };
                format!("{heads} heads on {} of {}{reach}", cache.kv_heads, cache.head_dim)
            }
            PlanOp::Plain(Op::Rope { rope, .. }) => format!("rope {}", self.graph.ropes[rope.0].name),
            PlanOp::Plain(Op::Store(cache)) => {
                let cache = self.graph.cache(*cache);
                format!("{} kv heads of {}", cache.kv_heads, cache.head_dim)
            }
            PlanOp::Plain(Op::LinearAttention(LinearAttention { heads, key_heads, key_dim, value_dim, .. })) => {
                format!("{heads} heads of {key_dim}×{value_dim}, {key_heads} of keys")
            }
            PlanOp::Plain(Op::Activate(activation)) => format!("{activation:?}"),
            PlanOp::Plain(Op::Scale(factor)) => format!("by {factor}"),
            PlanOp::Plain(op) => match op.signature().weights.first() {
                Some(&(id, Part::Table)) => {
                    let w = weight(id);
                    format!("{} {}×{} {}", w.name(), w.rows, w.columns, w.format)
                }
                Some(&(id, _)) => weight(id).name().to_owned(),
                None => String::new(),
            },
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Product(activation) => write!(f, "{activation:?}"),
            Gate::ClampedSwish => write!(f, "ClampedSwish"),
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
        let barriers = self.nodes.iter().filter(|node| node.barrier).count();
        writeln!(
            f,
            "{}: {} ops, {barriers} barriers, arena {} bytes for {} tokens with {} rows of logits",
            self.graph.family,
            self.nodes.len(),
            self.arena_bytes,
            self.limits.tokens,
            self.limits.wanted
        )?;
        for (i, node) in self.nodes.iter().enumerate() {
            if self.head.is_some_and(|head| head.after == i) {
                writeln!(f, "head:")?;
            }
            let (out, place) = (&self.values[node.out.0], self.places[node.out.0]);
            let bar = if node.barrier { '|' } else { ' ' };
            let position = format!("@{}+{}", place.offset, place.column);
            writeln!(f, "{bar} {:<17} {:<14} {:<6} {}", node.name(), position, out.width, self.describe(node))?;
        }
        Ok(())
    }
}
