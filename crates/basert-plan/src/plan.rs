//! Plans, and how they are built.

use std::sync::Arc;

use basert_core::Format;
use basert_files::ModelFile;
use basert_graph::{
    Activation, Experts, Graph, Head, Norm, Op, RopeId, Rows, Signature, StateId, ValueId, Weight, WeightError,
    WeightId,
};

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

impl Matrix {
    /// Whether any of its parts has biases.
    pub fn has_bias(&self) -> bool {
        self.parts.iter().any(|(_, bias)| bias.is_some())
    }

    /// The biases of its rows, zeros for parts without any; `None` if no part has them.
    ///
    /// # Errors
    /// When a tensor is missing or damaged.
    pub fn bias(&self, graph: &Graph, file: &ModelFile) -> Result<Option<Vec<f32>>, WeightError> {
        if !self.has_bias() {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(self.rows);
        for &(weight, bias) in &self.parts {
            match bias {
                Some(bias) => all.extend(graph.weights[bias.0].values(file)?),
                None => all.resize(all.len() + graph.weights[weight.0].rows, 0.0),
            }
        }
        Ok(Some(all))
    }
}

/// How the rows of a packed matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Part after part.
    Stacked,
    /// Rows of the first part beside those of the second, so that one worker computes both factors of a gate.
    Paired,
}

/// A node's op: one of the graph, or what fusions make of several.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanOp {
    /// One of the graph's, but for `Linear`, and for gates.
    Plain(Op),
    /// y = gate(norm(x) · matricesᵀ): the outputs of the matrices, concatenated.
    Linear(Linear),
    /// Heads of the inputs q, k and v: those of q and k are normed and rotated, and k and v are stored. y is the rotated
    /// q.
    RopeStore(RopeStore),
    /// y = gate(g, u).
    Gate(Gate),
}

/// A linear op with packed matrices. Its inputs are x and, with experts, their route.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Applied to x first.
    pub norm: Option<Norm>,
    /// One matrix for each run of weights of the same format; just one with experts.
    pub matrices: Vec<MatrixId>,
    /// The experts whose rows of the matrix are used.
    pub experts: Option<Experts>,
    /// Of the paired matrix (g, u), gate(g, u) is stored.
    pub gate: Option<Gate>,
}

/// Norm, rotation and storing of heads, as one op.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeStore {
    /// Norm of each head of q.
    pub q_norm: Option<Norm>,
    /// Norm of each head of k.
    pub k_norm: Option<Norm>,
    /// Rotation.
    pub rope: RopeId,
    /// Where k and v are stored.
    pub cache: StateId,
}

/// What the two factors of a gate, g and u, become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// activation(g) · u.
    Product(Activation),
    /// See [`Op::ClampedSwish`].
    ClampedSwish,
}

impl PlanOp {
    /// What there is to know about it: see [`Signature`].
    pub fn signature(&self) -> Signature {
        let fused = |name, norms: [Option<Norm>; 2], flops| Signature {
            name,
            weights: norms.iter().flatten().flat_map(Norm::weights).collect(),
            reads: None,
            writes: None,
            overwrites: None,
            row_wise: true,
            flops,
        };
        match self {
            PlanOp::Plain(op) => op.signature(),
            PlanOp::Linear(Linear { norm, .. }) => fused("linear", [*norm, None], 0.0),
            PlanOp::RopeStore(RopeStore { q_norm, k_norm, cache, .. }) => Signature {
                writes: Some(*cache),
                overwrites: Some(0),
                row_wise: false,
                ..fused("rope+store", [*q_norm, *k_norm], 3.0)
            },
            PlanOp::Gate(_) => Signature { overwrites: Some(0), ..fused("gate", [None, None], 8.0) },
        }
    }

    /// The rotation that it applies.
    pub fn rope(&self) -> Option<RopeId> {
        match *self {
            PlanOp::Plain(Op::Rope { rope, .. }) | PlanOp::RopeStore(RopeStore { rope, .. }) => Some(rope),
            _ => None,
        }
    }

    /// Whether a device can add its result to a value in place.
    pub(crate) fn can_add(&self) -> bool {
        match self {
            PlanOp::Plain(Op::Norm(_) | Op::Combine { .. }) => true,
            PlanOp::Linear(Linear { experts, gate, .. }) => experts.is_none() && gate.is_none(),
            _ => false,
        }
    }
}

/// An op as it is executed, with the values that it uses.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanNode {
    /// The op.
    pub op: PlanOp,
    /// What it reads, in the order that the op states.
    pub inputs: Vec<ValueId>,
    /// The result is added to this value in place, which nothing reads afterwards.
    pub onto: Option<ValueId>,
    /// What it computes.
    pub out: ValueId,
    /// Whether all earlier nodes must be complete before it.
    pub barrier: bool,
}

impl PlanNode {
    pub(crate) fn new(op: PlanOp, inputs: Vec<ValueId>, out: ValueId) -> PlanNode {
        PlanNode { op, inputs, onto: None, out, barrier: true }
    }

    /// The values it reads.
    pub fn reads(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().copied().chain(self.onto)
    }

    /// Whether it selects rows.
    pub(crate) fn is_select(&self) -> bool {
        self.op == PlanOp::Plain(Op::Select)
    }

    /// A name for tables.
    pub fn name(&self) -> String {
        let name = match &self.op {
            PlanOp::Linear(Linear { experts, gate, norm, .. }) => {
                let norm = if norm.is_some() { "norm+" } else { "" };
                let name = if experts.is_some() { "experts" } else { "linear" };
                format!("{norm}{name}{}", if gate.is_some() { "+gate" } else { "" })
            }
            op => op.signature().name.to_owned(),
        };
        if self.onto.is_some() { name + "+add" } else { name }
    }
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
    /// The ops in order, those of the head last.
    pub nodes: Vec<PlanNode>,
    /// The value that holds the logits.
    pub logits: ValueId,
    /// How a step for hidden states ends.
    pub hidden: Hidden,
    /// The graph's head, with the number of the plan's ops that come before its own.
    pub head: Option<Head>,
}

/// The end of a step for hidden states, which [`Graph::hidden`] defines.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// The number of ops before the end.
    pub after: usize,
    /// The last node, if a fusion has left the hidden state without a place.
    pub node: Option<PlanNode>,
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
        plan.find_head();
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
            nodes: Vec::with_capacity(graph.nodes.len()),
            logits: graph.logits,
            hidden: Hidden { after: 0, node: None, value: graph.logits },
            head: graph.head,
            graph: graph.clone(),
        };
        for node in &graph.nodes {
            plan.push_node(node);
        }
        plan
    }

    fn push_node(&mut self, node: &basert_graph::Node) {
        let op = match node.op {
            Op::Linear { weight, bias, experts } => {
                let &Weight { rows, columns, format, .. } = &self.graph.weights[weight.0];
                let id = MatrixId(self.matrices.len());
                let parts = vec![(weight, bias)];
                let count = experts.map_or(1, |experts| experts.count);
                self.matrices.push(Matrix { parts, order: Order::Stacked, format, rows, columns, experts: count });
                PlanOp::Linear(Linear { norm: None, matrices: vec![id], experts, gate: None })
            }
            Op::ClampedSwish => PlanOp::Gate(Gate::ClampedSwish),
            op => PlanOp::Plain(op),
        };
        // What is stored is not among the values: barriers know of states.
        let inputs = node.inputs.iter().copied().filter(|x| self.values[x.0].width > 0).collect();
        self.nodes.push(PlanNode::new(op, inputs, node.out));
    }

    /// Removes the matrices whose parts packing has moved, and keeps one of those that are the same.
    fn drop_unused_matrices(&mut self) {
        let all = std::mem::take(&mut self.matrices);
        for node in &mut self.nodes {
            let PlanOp::Linear(Linear { matrices, .. }) = &mut node.op else { continue };
            for id in matrices {
                let matrix = &all[id.0];
                let known = self.matrices.iter().position(|known| known == matrix);
                *id = MatrixId(known.unwrap_or(self.matrices.len()));
                if known.is_none() {
                    self.matrices.push(matrix.clone());
                }
            }
        }
    }

    /// Finds where the head's ops begin: after the model's last one, which computes the logits.
    fn find_head(&mut self) {
        let after = self.position_of(self.logits).map_or(0, |last| last + 1);
        if let Some(head) = &mut self.head {
            head.after = after;
        }
    }

    /// The ops that are executed for logits.
    pub fn model(&self) -> &[PlanNode] {
        &self.nodes[..self.head.map_or(self.nodes.len(), |head| head.after)]
    }

    /// The values that the host reads.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = ValueId> {
        let of_head = self.head.map(|head| [head.hidden, head.logits, head.next]);
        [self.logits].into_iter().chain(of_head.into_iter().flatten())
    }

    /// Finds the hidden state from the logits, since fusions may have renamed or removed it.
    fn find_hidden(&mut self) {
        let mut value = self.logits;
        self.hidden = Hidden { after: self.model().len(), node: None, value };
        while let Some(at) = self.position_of(value) {
            let PlanNode { op, inputs, onto: None, .. } = &self.nodes[at] else { return };
            match (op, &inputs[..]) {
                (PlanOp::Plain(Op::SoftCap(_) | Op::Scale(_)), &[x]) => value = x,
                (&PlanOp::Linear(Linear { norm, experts: None, gate: None, .. }), &[x]) => {
                    self.hidden = Hidden { after: at, node: None, value: x };
                    if let Some(norm) = norm {
                        let PlanValue { width, rows, .. } = self.values[x.0];
                        let out = self.add_value("hidden".to_owned(), width, rows);
                        let node = PlanNode::new(PlanOp::Plain(Op::Norm(norm)), vec![x], out);
                        self.hidden = Hidden { after: at, node: Some(node), value: out };
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    /// The position of the node that computes `value`.
    pub(crate) fn position_of(&self, value: ValueId) -> Option<usize> {
        self.nodes.iter().position(|node| node.out == value)
    }

    /// The positions of the nodes that read `value`.
    pub(crate) fn readers(&self, value: ValueId) -> Vec<usize> {
        let reads = |node: &PlanNode| node.reads().any(|read| read == value);
        self.nodes.iter().enumerate().filter(|(_, node)| reads(node)).map(|(i, _)| i).collect()
    }

    /// The value in whose place `value` lies, and its first column there.
    pub fn root(&self, value: ValueId) -> (ValueId, usize) {
        let (mut value, mut column) = (value, 0);
        while let Some((outer, at)) = self.values[value.0].within {
            (value, column) = (outer, column + at);
        }
        (value, column)
    }

    /// What a value that is a selection was selected from, which a device may use in its place if all rows are wanted.
    pub fn selected_from(&self, value: ValueId) -> Option<ValueId> {
        if self.values[value.0].rows == Rows::Tokens {
            return None;
        }
        let selects = |node: &&PlanNode| node.out == value && node.is_select();
        self.nodes.iter().find(selects).map(|node| node.inputs[0])
    }

    /// The value in whose place `value` lies, what that was selected from if it is a selection, and so on: each with the
    /// first column there.
    pub(crate) fn holders(&self, value: ValueId) -> impl Iterator<Item = (ValueId, usize)> {
        let selected_from = |&(root, column): &(ValueId, usize)| {
            let (root, first) = self.root(self.selected_from(root)?);
            Some((root, first + column))
        };
        std::iter::successors(Some(self.root(value)), selected_from)
    }

    /// The most bytes of weights that a step reads.
    pub fn weight_bytes(&self) -> usize {
        let matrices = self.matrices.iter().flat_map(|matrix| &matrix.parts);
        matrices.map(|(weight, _)| self.graph.weights[weight.0].bytes()).sum()
    }
}
