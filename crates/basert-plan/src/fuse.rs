//! The fusion table.
//!
//! Each fusion removes a dependency between ops, or superfluous work. A plan built without one of them computes the
//! same: tests compare plans with and without each.

use basert_graph::{Activation, Experts, Norm, Op, Rows, ValueId};

use crate::plan::{Gate, Linear, Matrix, MatrixId, Order, Plan, PlanNode, PlanOp, PlanValue, RopeStore};

/// A rewrite of a plan.
#[derive(Clone, Copy)]
pub struct Fusion {
    /// Its name.
    pub name: &'static str,
    /// Its reason.
    pub why: &'static str,
    pub(crate) apply: fn(&mut Plan),
}

/// All fusions, in the order in which they are applied.
pub const FUSIONS: [Fusion; 9] = [
    Fusion {
        name: "select early",
        why: "ops after the last attention are computed only for the tokens whose logits are wanted",
        apply: select_early,
    },
    Fusion { name: "slice in place", why: "columns are read where they lie", apply: slice_in_place },
    Fusion {
        name: "activation and product",
        why: "one pass over both factors of a gate",
        apply: activation_and_product,
    },
    Fusion {
        name: "gate and up",
        why: "the activation is applied while both factors are in registers",
        apply: pair_gate_and_up,
    },
    Fusion {
        name: "rope and store",
        why: "heads are normed, rotated and stored where they are read, which removes two barriers",
        apply: rope_and_store,
    },
    Fusion { name: "pack", why: "one pass over the input for all matrices that multiply it", apply: pack },
    Fusion {
        name: "norm into linear",
        why: "a row is normed where it is read, which removes a barrier",
        apply: norm_into_linear,
    },
    Fusion {
        name: "residual into linear",
        why: "the op that computes the term stores the sum, which removes a barrier",
        apply: |plan| fuse_residual(plan, |op| matches!(op, PlanOp::Linear(_))),
    },
    Fusion {
        name: "residual into norm",
        why: "one pass over the row instead of two",
        apply: |plan| fuse_residual(plan, |op| !matches!(op, PlanOp::Linear(_))),
    },
];

impl Plan {
    /// The op that computes `value`, if nothing but the op at `reader` reads it, or columns of it.
    fn only_for(&self, value: ValueId, reader: usize) -> Option<usize> {
        let reads = |node: &PlanNode| node.reads().any(|read| self.overlap(value, read));
        let readers = self.nodes.iter().enumerate().filter(|(_, node)| reads(node)).map(|(at, _)| at);
        let only = readers.eq([reader]) && !self.outputs().any(|output| self.overlap(value, output));
        if only { self.position_of(value) } else { None }
    }

    /// Whether nothing after position `i` reads the columns in which `value` lies.
    pub(crate) fn dead_after(&self, value: ValueId, i: usize) -> bool {
        let used = |other: ValueId| self.overlap(value, other);
        !self.outputs().any(used)
            && !self.nodes[(i + 1).min(self.nodes.len())..].iter().any(|node| node.reads().any(used))
    }

    /// Whether two values lie in the same columns, of selections or of what these are selected from.
    pub(crate) fn overlap(&self, a: ValueId, b: ValueId) -> bool {
        let columns = |value: ValueId| {
            let (root, first) = self.holders(value).last().unwrap_or((value, 0));
            (root, first..first + self.values[value.0].width)
        };
        let ((root, a), (other, b)) = (columns(a), columns(b));
        root == other && a.start < b.end && b.start < a.end
    }

    pub(crate) fn add_value(&mut self, name: String, width: usize, rows: Rows) -> ValueId {
        self.values.push(PlanValue { name, width, rows, within: None });
        ValueId(self.values.len() - 1)
    }
}

/// Moves `select` before every row-wise op whose result only it reads.
fn select_early(plan: &mut Plan) {
    while let Some((by, selects)) = find_selectable(plan) {
        // All selections of its result become one, which it computes from selections of what it reads.
        let outs: Vec<_> = selects.iter().map(|&i| plan.nodes[i].out).collect();
        for &i in selects.iter().rev() {
            plan.nodes.remove(i);
        }
        for &out in &outs[1..] {
            replace(plan, out, outs[0]);
        }
        plan.nodes[by].out = outs[0];
        let mut at = by;
        for i in 0..plan.nodes[at].inputs.len() {
            let (selected, inserted) = selection_before(plan, at, plan.nodes[at].inputs[i]);
            at += usize::from(inserted);
            plan.nodes[at].inputs[i] = selected;
        }
    }
}

/// The selection of `x` for the node at position `at`: one that comes before it, or one that is inserted there, which is a
/// later one if there is any. Whether it was inserted.
fn selection_before(plan: &mut Plan, at: usize, x: ValueId) -> (ValueId, bool) {
    let selects_x = |node: &PlanNode| node.is_select() && node.inputs[0] == x;
    let select = match plan.nodes.iter().position(selects_x) {
        Some(earlier) if earlier < at => return (plan.nodes[earlier].out, false),
        Some(later) => plan.nodes.remove(later),
        None => {
            let PlanValue { ref name, width, .. } = plan.values[x.0];
            let out = plan.add_value(format!("{name} selected"), width, Rows::Wanted);
            PlanNode::new(PlanOp::Plain(Op::Select), vec![x], out)
        }
    };
    let out = select.out;
    plan.nodes.insert(at, select);
    (out, true)
}

/// The position of a row-wise op whose result only selections read, and theirs.
fn find_selectable(plan: &Plan) -> Option<(usize, Vec<usize>)> {
    plan.nodes.iter().filter(|node| node.is_select()).find_map(|node| {
        let x = node.inputs[0];
        let by = plan.position_of(x)?;
        let readers = plan.readers(x);
        let is_output = plan.outputs().any(|output| output == x);
        let only_selected = !is_output && readers.iter().all(|&i| plan.nodes[i].is_select());
        (plan.nodes[by].op.signature().row_wise && only_selected).then_some((by, readers))
    })
}

fn replace(plan: &mut Plan, old: ValueId, new: ValueId) {
    let inputs = plan.nodes.iter_mut().flat_map(|node| node.inputs.iter_mut().chain(&mut node.onto));
    let of_head = plan.head.iter_mut().flat_map(|head| [&mut head.hidden, &mut head.logits, &mut head.next]);
    for value in inputs.chain([&mut plan.logits]).chain(of_head) {
        if *value == old {
            *value = new;
        }
    }
}

/// Values in a cache line: columns that begin and end with one can be read where they lie.
const LINE: usize = 16;

/// A slice of whole cache lines as a view.
fn slice_in_place(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        let PlanNode { ref op, ref inputs, out, .. } = plan.nodes[i];
        let PlanOp::Plain(Op::Slice(first)) = *op else {
            i += 1;
            continue;
        };
        let (x, width) = (inputs[0], plan.values[out.0].width);
        let lines = [first, width, plan.values[x.0].width].iter().all(|n| n.is_multiple_of(LINE));
        // The device returns logits as they lie, and a selection may be its own input.
        let is_maker = |value| plan.position_of(value).is_some_and(|at| !plan.nodes[at].is_select());
        if lines && !plan.outputs().any(|output| output == out) && is_maker(x) {
            plan.values[out.0].within = Some((x, first));
            plan.nodes.remove(i);
        } else {
            i += 1;
        }
    }
}

/// activation(g) · u as one op.
fn activation_and_product(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((activation, g, at, u)) = activated(plan, i) {
            let (op, out) = (PlanOp::Gate(Gate::Product(activation)), plan.nodes[i].out);
            plan.nodes[i] = PlanNode::new(op, vec![g, u], out);
            plan.nodes.remove(at);
            i -= 1;
        }
        i += 1;
    }
}

/// For the product at position `i`: the activation of one factor, what it is of, its position, and the other factor.
fn activated(plan: &Plan, i: usize) -> Option<(Activation, ValueId, usize, ValueId)> {
    let PlanNode { op: PlanOp::Plain(Op::Mul), ref inputs, .. } = plan.nodes[i] else { return None };
    [(inputs[0], inputs[1]), (inputs[1], inputs[0])].into_iter().find_map(|(factor, other)| {
        let at = plan.only_for(factor, i)?;
        let PlanOp::Plain(Op::Activate(activation)) = plan.nodes[at].op else { return None };
        let same_width = plan.values[factor.0].width == plan.values[other.0].width;
        (factor != other && same_width).then(|| (activation, plan.nodes[at].inputs[0], at, other))
    })
}

/// gate(x · Gᵀ, x · Uᵀ) as one linear op over the paired matrix (G, U).
fn pair_gate_and_up(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((node, first, second)) = paired(plan, i) {
            plan.nodes[i] = node;
            plan.nodes.remove(first.max(second));
            plan.nodes.remove(first.min(second));
            i -= 2;
        }
        i += 1;
    }
}

fn paired(plan: &mut Plan, i: usize) -> Option<(PlanNode, usize, usize)> {
    let PlanNode { op: PlanOp::Gate(kind), ref inputs, out, .. } = plan.nodes[i] else { return None };
    let (first, second) = (plan.only_for(inputs[0], i)?, plan.only_for(inputs[1], i)?);
    let ((x, g, experts), (same, u, others)) = (stored_linear(plan, first)?, stored_linear(plan, second)?);
    let (gate, up) = (&plan.matrices[g.0], &plan.matrices[u.0]);
    let bias = gate.parts[0].1.or(up.parts[0].1);
    if first == second
        || x != same
        || experts != others
        || gate.format != up.format
        || gate.rows != up.rows
        || bias.is_some()
    {
        return None;
    }
    let parts = vec![gate.parts[0], up.parts[0]];
    let matrix = Matrix { parts, order: Order::Paired, rows: gate.rows * 2, ..gate.clone() };
    let inputs = x.to_vec();
    plan.matrices[g.0] = matrix;
    let linear = Linear { norm: None, matrices: vec![g], experts, gate: Some(kind) };
    Some((PlanNode::new(PlanOp::Linear(linear), inputs, out), first, second))
}

/// Inputs, matrix and experts of a plain linear op.
fn stored_linear(plan: &Plan, i: usize) -> Option<(&[ValueId], MatrixId, Option<Experts>)> {
    let PlanNode { op: PlanOp::Linear(linear), inputs, onto: None, .. } = &plan.nodes[i] else { return None };
    match *linear {
        Linear { norm: None, ref matrices, experts, gate: None } => match matrices[..] {
            [matrix] => Some((inputs, matrix, experts)),
            _ => None,
        },
        _ => None,
    }
}

/// Input and matrix of one without experts.
fn plain_linear(plan: &Plan, i: usize) -> Option<(ValueId, MatrixId)> {
    stored_linear(plan, i).filter(|(.., experts)| experts.is_none()).map(|(inputs, matrix, _)| (inputs[0], matrix))
}

/// What precedes the store of keys and values, and the queries that attend to them.
fn rope_and_store(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((node, at, mut parts)) = heads(plan, i) {
            plan.nodes[at] = node;
            parts.sort_unstable();
            for &part in parts.iter().rev() {
                plan.nodes.remove(part);
            }
            i = at - parts.len();
        }
        i += 1;
    }
}

/// For the store at position `i` of rotated keys: the op that norms and rotates queries too, the position in whose place
/// it comes, and those of the ops that it replaces besides.
fn heads(plan: &Plan, i: usize) -> Option<(PlanNode, usize, Vec<usize>)> {
    let PlanNode { op: PlanOp::Plain(Op::Store(cache)), ref inputs, .. } = plan.nodes[i] else { return None };
    let (keys, v) = (inputs[0], inputs[1]);
    let head_dim = plan.graph.cache(cache).head_dim;
    let attends = |node: &&PlanNode| node.op.signature().reads == Some(cache);
    let queries = plan.nodes.iter().find(attends)?.inputs[0];
    let (of_k, of_q) = (plan.only_for(keys, i)?, plan.position_of(queries)?);
    let rope_of = |at: usize| match plan.nodes[at].op {
        PlanOp::Plain(Op::Rope { rope, head_dim: of_heads }) if of_heads == head_dim => Some(rope),
        _ => None,
    };
    let rope = rope_of(of_k).filter(|&rope| rope_of(of_q) == Some(rope))?;
    let mut parts = vec![of_k, of_q, i];
    // The norm of the heads before a rotation, if there is one and nothing else reads its result, and their input.
    let mut normed = |rotation: usize| {
        let x = plan.nodes[rotation].inputs[0];
        let at = plan.only_for(x, rotation);
        match at.map(|at| (at, &plan.nodes[at])) {
            Some((at, PlanNode { op: PlanOp::Plain(Op::Norm(norm)), inputs, onto: None, .. }))
                if is_norm_of_heads(plan, norm, head_dim) =>
            {
                parts.push(at);
                (Some(*norm), inputs[0])
            }
            _ => (None, x),
        }
    };
    let ((k_norm, k), (q_norm, q)) = (normed(of_k), normed(of_q));
    let at = of_k.max(of_q).max(i);
    // All that it reads is computed before, and all that reads it comes after; queries may then lie in its place.
    let early = plan.nodes[..=at].iter().any(|node| node.reads().any(|read| plan.overlap(read, queries)));
    let apart = !plan.overlap(q, k) && !plan.overlap(q, v);
    if early || !apart {
        return None;
    }
    parts.retain(|&part| part != at);
    let op = PlanOp::RopeStore(RopeStore { q_norm, k_norm, rope, cache });
    Some((PlanNode::new(op, vec![q, k, v], queries), at, parts))
}

/// Whether a norm is that of heads, with the same weights for all.
fn is_norm_of_heads(plan: &Plan, norm: &Norm, head_dim: usize) -> bool {
    let Norm { centred, group, weight, bias, .. } = *norm;
    let shared = weight.is_some_and(|weight| plan.graph.weights[weight.0].len() == head_dim);
    !centred && group == head_dim && bias.is_none() && shared
}

/// Values that a GPU loads at a time: rows and columns that begin elsewhere could not be read so.
const VECTOR: usize = 4;

/// Linear ops over the same input as one, which writes their outputs concatenated.
fn pack(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((x, _)) = plain_linear(plan, i) {
            let aligned = |j: usize| plan.values[plan.nodes[j].out.0].width.is_multiple_of(VECTOR);
            let packs = |&j: &usize| plain_linear(plan, j).is_some_and(|(other, _)| other == x) && aligned(j);
            let group: Vec<_> = (i..plan.nodes.len()).filter(packs).collect();
            if group.len() > 1 && group[0] == i {
                pack_group(plan, x, &group);
            }
        }
        i += 1;
    }
}

fn pack_group(plan: &mut Plan, x: ValueId, group: &[usize]) {
    let outs: Vec<_> = group.iter().map(|&j| plan.nodes[j].out).collect();
    let names: Vec<_> = outs.iter().map(|out| plan.values[out.0].name.clone()).collect();
    let width = outs.iter().map(|out| plan.values[out.0].width).sum();
    let packed = plan.add_value(names.join("+"), width, plan.values[outs[0].0].rows);
    let mut matrices: Vec<MatrixId> = Vec::new();
    let mut column = 0;
    for (&j, &out) in group.iter().zip(&outs) {
        let Some((_, id)) = plain_linear(plan, j) else { continue };
        plan.values[out.0].within = Some((packed, column));
        column += plan.values[out.0].width;
        let matrix = plan.matrices[id.0].clone();
        match matrices.last() {
            Some(&last) if plan.matrices[last.0].format == matrix.format => {
                plan.matrices[last.0].rows += matrix.rows;
                plan.matrices[last.0].parts.extend(matrix.parts);
            }
            _ => matrices.push(id),
        }
    }
    for &j in group[1..].iter().rev() {
        plan.nodes.remove(j);
    }
    let linear = Linear { norm: None, matrices, experts: None, gate: None };
    plan.nodes[group[0]] = PlanNode::new(PlanOp::Linear(linear), vec![x], packed);
}

/// linear(norm(x)) as one op, if nothing else reads norm(x).
fn norm_into_linear(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((at, x, found)) = normed_input(plan, i)
            && let PlanNode { op: PlanOp::Linear(Linear { norm, .. }), inputs, .. } = &mut plan.nodes[i]
        {
            (inputs[0], *norm) = (x, Some(found));
            plan.nodes.remove(at);
            i -= 1;
        }
        i += 1;
    }
}

/// For the linear op at position `i`: the position of the norm of its input that only it reads, and what is normed.
fn normed_input(plan: &Plan, i: usize) -> Option<(usize, ValueId, Norm)> {
    let PlanNode { op: PlanOp::Linear(Linear { norm: None, experts: None, .. }), ref inputs, .. } = plan.nodes[i]
    else {
        return None;
    };
    let at = plan.only_for(inputs[0], i)?;
    let PlanNode { op: PlanOp::Plain(Op::Norm(norm)), inputs: ref of, onto: None, .. } = plan.nodes[at] else {
        return None;
    };
    let whole = norm.group == plan.values[of[0].0].width && norm.weight.is_some();
    whole.then(|| (at, of[0], norm))
}

/// For the sum at position `i`: the node that computes one term, and the other, if that can be overwritten there.
fn addable(plan: &Plan, i: usize) -> Option<(usize, ValueId, ValueId)> {
    let PlanNode { op: PlanOp::Plain(Op::Add), ref inputs, out, .. } = plan.nodes[i] else { return None };
    let (a, b) = (inputs[0], inputs[1]);
    [(a, b), (b, a)].into_iter().find_map(|(residual, term)| {
        let at = plan.only_for(term, i)?;
        let reads_it = plan.nodes[at].reads().any(|x| plan.root(x).0 == plan.root(residual).0);
        (residual != term && !reads_it && plan.dead_after(residual, i)).then_some((at, residual, out))
    })
}

/// x + op(h) as an op that adds to x, for the ops that `wanted` accepts.
fn fuse_residual(plan: &mut Plan, wanted: fn(&PlanOp) -> bool) {
    let mut i = 0;
    while i < plan.nodes.len() {
        if let Some((at, residual, out)) = addable(plan, i) {
            let node = &plan.nodes[at];
            if wanted(&node.op) && node.op.can_add() && node.onto.is_none() {
                let node = PlanNode { onto: Some(residual), out, ..node.clone() };
                plan.values[out.0].within = Some((residual, 0));
                plan.nodes[i] = node;
                plan.nodes.remove(at);
                i -= 1;
            }
        }
        i += 1;
    }
}
