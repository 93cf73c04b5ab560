//! The fusion table.
//!
//! Each fusion removes a dependency between ops, or superfluous work. A plan built without one of them computes the
//! same: tests compare plans with and without each.

use basert_graph::{Experts, Rows, ValueId};

use crate::plan::{Epilogue, Matrix, MatrixId, Order, Plan, PlanOp, PlanValue, PlannedOp};

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
pub const FUSIONS: [Fusion; 6] = [
    Fusion {
        name: "select early",
        why: "ops after the last attention are computed only for the tokens whose logits are wanted",
        apply: select_early,
    },
    Fusion {
        name: "gate and up",
        why: "the activation is applied while both factors are in registers",
        apply: pair_gate_and_up,
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
        apply: residual_into_linear,
    },
    Fusion { name: "residual into norm", why: "one pass over the row instead of two", apply: residual_into_norm },
];

impl Plan {
    /// The op that computes `value`, if nothing but the op at `reader` reads it.
    fn only_for(&self, value: ValueId, reader: usize) -> Option<usize> {
        if self.readers(value) == [reader] { self.position_of(value) } else { None }
    }

    /// Whether nothing after position `i` reads `value`.
    pub(crate) fn dead_after(&self, value: ValueId, i: usize) -> bool {
        value != self.logits && self.readers(value).iter().all(|&reader| reader <= i)
    }

    pub(crate) fn add_value(&mut self, name: String, width: usize, rows: Rows) -> ValueId {
        self.values.push(PlanValue { name, width, rows, within: None });
        ValueId(self.values.len() - 1)
    }
}

/// Moves `select` before every row-wise op whose result only it reads.
fn select_early(plan: &mut Plan) {
    while let Some((value, selects)) = find_selectable(plan) {
        let Some(at) = plan.position_of(value) else { return };
        // All selections of the value become one.
        let outs: Vec<_> = selects.iter().map(|&i| plan.ops[i].op.out()).collect();
        let first = outs[0];
        for &i in selects.iter().rev() {
            plan.ops.remove(i);
        }
        for &out in &outs[1..] {
            replace(plan, out, first);
        }
        let mut op = plan.ops[at].op.clone();
        let mut inserted = Vec::new();
        for x in op.reads() {
            if inserted.iter().any(|&(before, _)| before == x) {
                continue;
            }
            let PlanValue { ref name, width, .. } = plan.values[x.0];
            let selected = plan.add_value(format!("{name} selected"), width, Rows::Wanted);
            inserted.push((x, selected));
        }
        for &(before, selected) in &inserted {
            op.substitute(before, selected);
        }
        op.set_out(first);
        plan.ops[at].op = op;
        for &(x, out) in &inserted {
            plan.ops.insert(at, PlannedOp { op: PlanOp::Select { x, out }, barrier: true });
        }
    }
}

/// A value that only selections read and that a row-wise op computes, with the positions of the selections.
fn find_selectable(plan: &Plan) -> Option<(ValueId, Vec<usize>)> {
    plan.ops.iter().find_map(|op| {
        let PlanOp::Select { x, .. } = op.op else { return None };
        let by = &plan.ops[plan.position_of(x)?].op;
        let row_wise = matches!(
            by,
            PlanOp::Norm { .. }
                | PlanOp::Linear { .. }
                | PlanOp::Route { .. }
                | PlanOp::Combine { .. }
                | PlanOp::Gate { .. }
                | PlanOp::Add { .. }
                | PlanOp::SoftCap { .. }
        );
        let readers = plan.readers(x);
        let only_selected = readers.iter().all(|&i| matches!(plan.ops[i].op, PlanOp::Select { .. }));
        (row_wise && only_selected).then_some((x, readers))
    })
}

fn replace(plan: &mut Plan, old: ValueId, new: ValueId) {
    for op in &mut plan.ops {
        op.op.substitute(old, new);
    }
    if plan.logits == old {
        plan.logits = new;
    }
}

/// gate(x · Gᵀ, x · Uᵀ) as one linear op over the paired matrix (G, U).
fn pair_gate_and_up(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.ops.len() {
        if let Some((op, first, second)) = paired(plan, i) {
            plan.ops[i].op = op;
            plan.ops.remove(first.max(second));
            plan.ops.remove(first.min(second));
            i -= 2;
        }
        i += 1;
    }
}

fn paired(plan: &mut Plan, i: usize) -> Option<(PlanOp, usize, usize)> {
    let PlanOp::Gate { gate, up, activation, out } = plan.ops[i].op else { return None };
    let (first, second) = (plan.only_for(gate, i)?, plan.only_for(up, i)?);
    let ((x, g, experts), (same, u, others)) = (stored_linear(plan, first)?, stored_linear(plan, second)?);
    let (gate, up) = (&plan.matrices[g.0], &plan.matrices[u.0]);
    let bias = gate.parts[0].1.or(up.parts[0].1);
    if x != same || experts != others || gate.format != up.format || gate.rows != up.rows || bias.is_some() {
        return None;
    }
    let parts = vec![gate.parts[0], up.parts[0]];
    let matrix = Matrix { parts, order: Order::Paired, rows: gate.rows * 2, ..gate.clone() };
    plan.matrices[g.0] = matrix;
    let epilogue = Epilogue::Gated(activation);
    Some((PlanOp::Linear { x, norm: None, matrices: vec![g], experts, epilogue, out }, first, second))
}

/// Input, matrix and experts of a plain linear op.
fn stored_linear(plan: &Plan, i: usize) -> Option<(ValueId, MatrixId, Option<Experts>)> {
    match plan.ops[i].op {
        PlanOp::Linear { x, norm: None, ref matrices, experts, epilogue: Epilogue::Store, .. } => match matrices[..] {
            [matrix] => Some((x, matrix, experts)),
            _ => None,
        },
        _ => None,
    }
}

/// Input and matrix of one without experts.
fn plain_linear(plan: &Plan, i: usize) -> Option<(ValueId, MatrixId)> {
    stored_linear(plan, i).filter(|(.., experts)| experts.is_none()).map(|(x, matrix, _)| (x, matrix))
}

/// Linear ops over the same input as one, which writes their outputs concatenated.
fn pack(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.ops.len() {
        if let Some((x, _)) = plain_linear(plan, i) {
            let group: Vec<_> =
                (i..plan.ops.len()).filter(|&j| plain_linear(plan, j).is_some_and(|(other, _)| other == x)).collect();
            if group.len() > 1 {
                pack_group(plan, x, &group);
            }
        }
        i += 1;
    }
}

fn pack_group(plan: &mut Plan, x: ValueId, group: &[usize]) {
    let outs: Vec<_> = group.iter().map(|&j| plan.ops[j].op.out()).collect();
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
        plan.ops.remove(j);
    }
    let epilogue = Epilogue::Store;
    plan.ops[group[0]].op = PlanOp::Linear { x, norm: None, matrices, experts: None, epilogue, out: packed };
}

/// linear(norm(x)) as one op, if nothing else reads norm(x).
fn norm_into_linear(plan: &mut Plan) {
    let mut i = 0;
    while i < plan.ops.len() {
        if let PlanOp::Linear { x, norm: None, experts: None, .. } = plan.ops[i].op
            && let Some(at) = plan.only_for(x, i)
            && let PlanOp::Norm { x: input, norm: found, residual: None, .. } = plan.ops[at].op
            && let PlanOp::Linear { x, norm, .. } = &mut plan.ops[i].op
        {
            (*x, *norm) = (input, Some(found));
            plan.ops.remove(at);
            i -= 1;
        }
        i += 1;
    }
}

/// For add(a, b) at position `i`: the op that computes `b`, and `a`, if `a` can be overwritten there.
fn addable(plan: &Plan, i: usize) -> Option<(usize, ValueId, ValueId)> {
    let PlanOp::Add { a, b, out } = plan.ops[i].op else { return None };
    [(a, b), (b, a)].into_iter().find_map(|(residual, term)| {
        let at = plan.only_for(term, i)?;
        let reads_it = plan.ops[at].op.reads().iter().any(|&x| plan.root(x).0 == plan.root(residual).0);
        (residual != term && !reads_it && plan.dead_after(residual, i)).then_some((at, residual, out))
    })
}

/// x + linear(h) as a linear op that adds to x.
fn residual_into_linear(plan: &mut Plan) {
    fuse_residual(plan, |op, residual, sum| match op {
        PlanOp::Linear { epilogue, experts: None, out, .. } if *epilogue == Epilogue::Store => {
            (*epilogue, *out) = (Epilogue::Add(residual), sum);
            true
        }
        _ => false,
    });
}

/// x + norm(h) as a norm that adds to x, and the same for the combined results of experts.
fn residual_into_norm(plan: &mut Plan) {
    fuse_residual(plan, |op, into, sum| match op {
        PlanOp::Norm { residual: residual @ None, out, .. }
        | PlanOp::Combine { residual: residual @ None, out, .. } => {
            (*residual, *out) = (Some(into), sum);
            true
        }
        _ => false,
    });
}

/// Replaces the addition of an op's result to a value by the op itself, if `rewrite` accepts it.
fn fuse_residual(plan: &mut Plan, rewrite: fn(&mut PlanOp, ValueId, ValueId) -> bool) {
    let mut i = 0;
    while i < plan.ops.len() {
        if let Some((at, residual, out)) = addable(plan, i) {
            let mut op = plan.ops[at].op.clone();
            if rewrite(&mut op, residual, out) {
                plan.values[out.0].within = Some((residual, 0));
                plan.ops[i].op = op;
                plan.ops.remove(at);
                i -= 1;
            }
        }
        i += 1;
    }
}

impl PlanOp {
    /// Replaces `old` by `new` in all reads.
    fn substitute(&mut self, old: ValueId, new: ValueId) {
        let operands: Vec<&mut ValueId> = match self {
            PlanOp::Embed { .. } => vec![],
            PlanOp::Norm { x, residual, .. } => std::iter::once(x).chain(residual.as_mut()).collect(),
            PlanOp::Linear { x, epilogue: Epilogue::Add(residual), .. } => vec![x, residual],
            PlanOp::Linear { x, experts, .. } => {
                std::iter::once(x).chain(experts.as_mut().map(|experts| &mut experts.route)).collect()
            }
            PlanOp::Combine { x, experts, residual, .. } => {
                [x, &mut experts.route].into_iter().chain(residual.as_mut()).collect()
            }
            PlanOp::Route { x, .. } | PlanOp::Select { x, .. } | PlanOp::SoftCap { x, .. } => vec![x],
            PlanOp::RopeCache { q, k, v, .. } => vec![q, k, v],
            PlanOp::Attention { q, .. } => vec![q],
            PlanOp::Gate { gate, up, .. } => vec![gate, up],
            PlanOp::Add { a, b, .. } => vec![a, b],
        };
        for operand in operands {
            if *operand == old {
                *operand = new;
            }
        }
    }

    fn set_out(&mut self, new: ValueId) {
        match self {
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
            | PlanOp::SoftCap { out, .. } => *out = new,
        }
    }
}
