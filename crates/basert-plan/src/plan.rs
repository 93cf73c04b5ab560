//! Plans, and how they are built.

use std::sync::Arc;

use basert_core::Format;
use basert_graph::{Activation, CacheId, Experts, Graph, Norm, Op, RopeId, Rows, ValueId, WeightId};

use crate::arena;
use crate::fuse::Fusion;

/// The largest step that a plan's arena has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub wanted: usize,
}

impl Limits {
    /// The most rows that a value can have.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Wanted => self.wanted,
        }
    }
}

/// Index into [`Plan::matrices`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixId(pub usize);

/// One matrix made of weights of the same format and width: their rows stacked, or those of two weights paired.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// The weights, with their biases if they have any.
    pub parts: Vec<(WeightId, Option<WeightId>)>,
    /// How their rows lie.
    pub order: Order,
    /// Their format.
    pub format: Format,
    /// Rows of all parts together.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
    /// The number of experts, which have equal, consecutive shares of the rows; 1 without experts.
    pub experts: usize,
}

/// How the rows of a packed matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Part after part.
    Stacked,
    /// Rows of the first part beside those of the second, so that one worker computes both factors of a gate.
    Paired,
}

/// What happens to the output of a linear op before it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// Nothing.
    Store,
    /// It is added to this value in place; nothing reads the value afterwards.
    Add(ValueId),
    /// For the paired matrix (gate, up), activation(gate) · up is stored.
    Gated(Activation),
}

/// An op as it is executed. Operands are values of the plan.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanOp {
    /// out = scale · row of `weight` for each token.
    Embed {
        /// One row for each token of the vocabulary.
        weight: WeightId,
        /// Factor.
        scale: f32,
        /// Output.
        out: ValueId,
    },
    /// out = norm(x) + residual.
    Norm {
        /// Input.
        x: ValueId,
        /// What kind.
        norm: Norm,
        /// A value that nothing reads afterwards: the output lies where it does.
        residual: Option<ValueId>,
        /// Output.
        out: ValueId,
    },
    /// out = epilogue(norm(x) · matricesᵀ): the outputs of the matrices, concatenated.
    Linear {
        /// Input.
        x: ValueId,
        /// Applied to x first.
        norm: Option<Norm>,
        /// One matrix for each run of weights of the same format; just one with experts.
        matrices: Vec<MatrixId>,
        /// The experts whose rows of the matrix are used.
        experts: Option<Experts>,
        /// Applied to the result.
        epilogue: Epilogue,
        /// Output.
        out: ValueId,
    },
    /// See [`Op::Route`].
    Route {
        /// One value for each expert.
        x: ValueId,
        /// How many are chosen.
        used: usize,
        /// Whether their values are divided by their sum.
        normalised: bool,
        /// Output.
        out: ValueId,
    },
    /// out = the weighted sum of the experts' results + residual.
    Combine {
        /// The results of all experts used.
        x: ValueId,
        /// Who they are.
        experts: Experts,
        /// A value that nothing reads afterwards: the output lies where it does.
        residual: Option<ValueId>,
        /// Output.
        out: ValueId,
    },
    /// See [`Op::RopeCache`].
    RopeCache {
        /// Queries.
        q: ValueId,
        /// Keys.
        k: ValueId,
        /// Values.
        v: ValueId,
        /// Norm of each head of q.
        q_norm: Option<Norm>,
        /// Norm of each head of k.
        k_norm: Option<Norm>,
        /// Rotation.
        rope: RopeId,
        /// Where k and v are kept.
        cache: CacheId,
        /// The rotated queries; may lie where q does.
        out: ValueId,
    },
    /// See [`Op::Attention`].
    Attention {
        /// Queries.
        q: ValueId,
        /// Keys and values.
        cache: CacheId,
        /// Heads of q.
        heads: usize,
        /// Factor of the scores.
        scale: f32,
        /// The number of tokens that a token sees, itself included.
        window: Option<usize>,
        /// Soft cap of the scores.
        cap: Option<f32>,
        /// An additional score for each head.
        sinks: Option<WeightId>,
        /// Output.
        out: ValueId,
    },
    /// out = activation(gate) · up, if they could not be paired.
    Gate {
        /// Input of the nonlinearity.
        gate: ValueId,
        /// The other factor.
        up: ValueId,
        /// The nonlinearity.
        activation: Activation,
        /// Output; may lie where `gate` does.
        out: ValueId,
    },
    /// out = a + b.
    Add {
        /// One term.
        a: ValueId,
        /// The other.
        b: ValueId,
        /// Output; may lie where `a` does.
        out: ValueId,
    },
    /// out = the rows of x whose logits are wanted.
    Select {
        /// Input.
        x: ValueId,
        /// Output.
        out: ValueId,
    },
    /// out = cap · tanh(x / cap).
    SoftCap {
        /// Input.
        x: ValueId,
        /// Largest magnitude.
        cap: f32,
        /// Output; may lie where x does.
        out: ValueId,
    },
}

impl PlanOp {
    /// A name for tables.
    pub fn name(&self) -> &'static str {
        match self {
            PlanOp::Embed { .. } => "embed",
            PlanOp::Norm { residual: None, .. } => "norm",
            PlanOp::Norm { residual: Some(_), .. } => "norm+add",
            PlanOp::Linear { experts: Some(_), epilogue: Epilogue::Gated(_), .. } => "experts+gate",
            PlanOp::Linear { experts: Some(_), .. } => "experts",
            PlanOp::Linear { norm, epilogue, .. } => match (norm, epilogue) {
                (None, Epilogue::Store) => "linear",
                (None, Epilogue::Add(_)) => "linear+add",
                (None, Epilogue::Gated(_)) => "linear+gate",
                (Some(_), Epilogue::Store) => "norm+linear",
                (Some(_), Epilogue::Add(_)) => "norm+linear+add",
                (Some(_), Epilogue::Gated(_)) => "norm+linear+gate",
            },
            PlanOp::Route { .. } => "route",
            PlanOp::Combine { residual: None, .. } => "combine",
            PlanOp::Combine { residual: Some(_), .. } => "combine+add",
            PlanOp::RopeCache { .. } => "rope+cache",
            PlanOp::Attention { .. } => "attention",
            PlanOp::Gate { .. } => "gate",
            PlanOp::Add { .. } => "add",
            PlanOp::Select { .. } => "select",
            PlanOp::SoftCap { .. } => "soft cap",
        }
    }

    /// The values it reads.
    pub fn reads(&self) -> Vec<ValueId> {
        match *self {
            PlanOp::Embed { .. } => vec![],
            PlanOp::Norm { x, residual, .. } => [x].into_iter().chain(residual).collect(),
            PlanOp::Linear { x, epilogue: Epilogue::Add(residual), .. } => vec![x, residual],
            PlanOp::Linear { x, experts, .. } => [x].into_iter().chain(experts.map(|experts| experts.route)).collect(),
            PlanOp::Combine { x, experts, residual, .. } => [x, experts.route].into_iter().chain(residual).collect(),
            PlanOp::RopeCache { q, k, v, .. } => vec![q, k, v],
            PlanOp::Attention { q, .. } => vec![q],
            PlanOp::Gate { gate, up, .. } => vec![gate, up],
            PlanOp::Add { a, b, .. } => vec![a, b],
            PlanOp::Route { x, .. } | PlanOp::Select { x, .. } | PlanOp::SoftCap { x, .. } => vec![x],
        }
    }

    /// The value it computes.
    pub fn out(&self) -> ValueId {
        match *self {
            PlanOp::Embed { out, .. }
            | PlanOp::Norm { out, .. }
            | PlanOp::Linear { out, .. }
            | PlanOp::Route { out, .. }
            | PlanOp::Combine { out, .. }
            | PlanOp::RopeCache { out, .. }
            | PlanOp::Attention { out, .. }
            | PlanOp::Gate { out, .. }
            | PlanOp::Add { out, .. }
            | PlanOp::Select { out, .. }
            | PlanOp::SoftCap { out, .. } => out,
        }
    }

    /// The cache it writes to, and the one it reads from.
    pub fn caches(&self) -> (Option<CacheId>, Option<CacheId>) {
        match *self {
            PlanOp::RopeCache { cache, .. } => (Some(cache), None),
            PlanOp::Attention { cache, .. } => (None, Some(cache)),
            _ => (None, None),
        }
    }
}

/// An op of a plan, with its barrier.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedOp {
    /// The op.
    pub op: PlanOp,
    /// Whether all earlier ops must be complete before it.
    pub barrier: bool,
}

/// An intermediate value of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanValue {
    /// A name for people.
    pub name: String,
    /// Columns.
    pub width: usize,
    /// Which tokens it has rows for.
    pub rows: Rows,
    /// The value in whose columns it lies, and its first column there, if it has no place of its own.
    pub within: Option<(ValueId, usize)>,
}

/// Where a value lies in the arena: row `r` begins `offset + 4 · (r · stride + column)` bytes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Bytes from the start of the arena; a multiple of 64.
    pub offset: usize,
    /// f32 values from one row to the next.
    pub stride: usize,
    /// First column.
    pub column: usize,
    /// Columns.
    pub width: usize,
}

/// How a graph is executed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is computed.
    pub graph: Arc<Graph>,
    /// The largest step.
    pub limits: Limits,
    /// The packed weights.
    pub matrices: Vec<Matrix>,
    /// Intermediate values: those of the graph, and then those that packing added.
    pub values: Vec<PlanValue>,
    /// Where each value lies.
    pub places: Vec<Place>,
    /// Size of the arena in bytes.
    pub arena_bytes: usize,
    /// The ops in order.
    pub ops: Vec<PlannedOp>,
    /// The value that holds the logits.
    pub logits: ValueId,
    /// How a step for hidden states ends.
    pub hidden: Hidden,
}

/// The end of a step for hidden states, which [`Graph::hidden`] defines.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// The number of ops before the end.
    pub after: usize,
    /// The last op, if a fusion has left the hidden state without a place.
    pub op: Option<PlanOp>,
    /// The value that holds them.
    pub value: ValueId,
}

impl Plan {
    /// The plan of `graph` for steps within `limits`, with these fusions, usually [`crate::FUSIONS`].
    pub fn build(graph: Arc<Graph>, limits: Limits, fusions: &[Fusion]) -> Plan {
        let mut plan = Plan::unfused(graph, limits);
        for fusion in fusions {
            (fusion.apply)(&mut plan);
        }
        plan.drop_unused_matrices();
        plan.find_hidden();
        arena::share(&mut plan);
        arena::place(&mut plan);
        arena::set_barriers(&mut plan);
        plan
    }

    /// One op for each node of the graph.
    fn unfused(graph: Arc<Graph>, limits: Limits) -> Plan {
        let value = |value: &basert_graph::Value| PlanValue {
            name: value.name.clone(),
            width: value.width,
            rows: value.rows,
            within: None,
        };
        let mut plan = Plan {
            limits,
            matrices: Vec::new(),
            values: graph.values.iter().map(value).collect(),
            places: Vec::new(),
            arena_bytes: 0,
            ops: Vec::with_capacity(graph.nodes.len()),
            logits: graph.logits,
            hidden: Hidden { after: 0, op: None, value: graph.logits },
            graph: graph.clone(),
        };
        for node in &graph.nodes {
            plan.push_node(&node.op, node.out);
        }
        plan
    }

    fn push_node(&mut self, op: &Op, out: ValueId) {
        let op = match *op {
            Op::Embed { weight, scale } => PlanOp::Embed { weight, scale, out },
            Op::Norm { x, norm } => PlanOp::Norm { x, norm, residual: None, out },
            Op::Linear { x, weight, bias, experts } => {
                let basert_graph::Weight { rows, columns, format, .. } = self.graph.weights[weight.0];
                let id = MatrixId(self.matrices.len());
                let parts = vec![(weight, bias)];
                let count = experts.map_or(1, |experts| experts.count);
                self.matrices.push(Matrix { parts, order: Order::Stacked, format, rows, columns, experts: count });
                PlanOp::Linear { x, norm: None, matrices: vec![id], experts, epilogue: Epilogue::Store, out }
            }
            Op::Route { x, used, normalised } => PlanOp::Route { x, used, normalised, out },
            Op::Combine { x, experts } => PlanOp::Combine { x, experts, residual: None, out },
            Op::RopeCache { q, k, v, q_norm, k_norm, rope, cache } => {
                PlanOp::RopeCache { q, k, v, q_norm, k_norm, rope, cache, out }
            }
            Op::Attention { q, cache, heads, scale, window, cap, sinks } => {
                PlanOp::Attention { q, cache, heads, scale, window, cap, sinks, out }
            }
            Op::Gate { gate, up, activation } => PlanOp::Gate { gate, up, activation, out },
            Op::Add { a, b } => PlanOp::Add { a, b, out },
            Op::Select { x } => PlanOp::Select { x, out },
            Op::SoftCap { x, cap } => PlanOp::SoftCap { x, cap, out },
        };
        self.ops.push(PlannedOp { op, barrier: true });
    }

    /// Removes the matrices whose parts packing has moved.
    fn drop_unused_matrices(&mut self) {
        let all = std::mem::take(&mut self.matrices);
        for op in &mut self.ops {
            let PlanOp::Linear { matrices, .. } = &mut op.op else { continue };
            for id in matrices {
                self.matrices.push(all[id.0].clone());
                *id = MatrixId(self.matrices.len() - 1);
            }
        }
    }

    /// Finds the hidden state from the logits, since fusions may have renamed or removed it.
    fn find_hidden(&mut self) {
        let mut value = self.logits;
        self.hidden = Hidden { after: self.ops.len(), op: None, value };
        while let Some(at) = self.position_of(value) {
            match self.ops[at].op {
                PlanOp::SoftCap { x, .. } => value = x,
                PlanOp::Linear { x, norm, experts: None, epilogue: Epilogue::Store, .. } => {
                    self.hidden = Hidden { after: at, op: None, value: x };
                    if let Some(norm) = norm {
                        let PlanValue { width, rows, .. } = self.values[x.0];
                        let out = self.add_value("hidden".to_owned(), width, rows);
                        let op = Some(PlanOp::Norm { x, norm, residual: None, out });
                        self.hidden = Hidden { after: at, op, value: out };
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    /// The position of the op that computes `value`.
    pub(crate) fn position_of(&self, value: ValueId) -> Option<usize> {
        self.ops.iter().position(|op| op.op.out() == value)
    }

    /// The positions of the ops that read `value`.
    pub(crate) fn readers(&self, value: ValueId) -> Vec<usize> {
        let reads = |op: &PlannedOp| op.op.reads().contains(&value);
        self.ops.iter().enumerate().filter(|(_, op)| reads(op)).map(|(i, _)| i).collect()
    }

    /// The value in whose place `value` lies, and its first column there.
    pub fn root(&self, value: ValueId) -> (ValueId, usize) {
        let (mut value, mut column) = (value, 0);
        while let Some((outer, at)) = self.values[value.0].within {
            (value, column) = (outer, column + at);
        }
        (value, column)
    }

    /// The most bytes of weights that a step reads.
    pub fn weight_bytes(&self) -> usize {
        let matrices = self.matrices.iter().flat_map(|matrix| &matrix.parts);
        matrices.map(|(weight, _)| self.graph.weights[weight.0].bytes()).sum()
    }

    /// Bytes of keys and values of one token, with `bytes_per_value` bytes each.
    pub fn kv_bytes_per_token(&self, bytes_per_value: usize) -> usize {
        self.graph.caches.iter().map(|cache| 2 * cache.kv_heads * cache.head_dim * bytes_per_value).sum()
    }
}
