//! Ops of single values that a kernel applies before it stores its result, so that they need no launches of their own.

use std::fmt::Write;
use std::ops::Range;

use basert_graph::{Activation, Affine, Op, ValueId, WeightId};
use basert_plan::{DeviceError, Gate, PlanNode, PlanOp};

use super::values::name_of;
use super::{Float, Lowering, Memory};
use crate::Kernel;
use crate::weights::Vector;

/// Names of what else such ops read, in `kernels/common/after.h`.
const OTHERS: [&str; 2] = ["OTHER_A(row, column)", "OTHER_B(row, column)"];

/// What becomes of a result before it is stored.
#[derive(Debug, Clone, Default)]
pub(super) struct After {
    /// An expression over `x`; empty for nothing.
    expression: String,
    others: Vec<Other>,
}

/// A value, or weights, that it reads: where, the values from a row to the next, and the columns that share one.
#[derive(Debug, Clone, Copy)]
struct Other {
    at: (Memory, usize),
    stride: usize,
    each: usize,
}

impl After {
    /// The kernel with its macros.
    pub(super) fn define(&self, mut kernel: Kernel) -> Kernel {
        if self.expression.is_empty() {
            return kernel;
        }
        kernel = kernel.define("AFTER(x, row, column)", &self.expression);
        for (other, names) in
            self.others.iter().zip([("AFTER_A_STRIDE", "AFTER_A_EACH"), ("AFTER_B_STRIDE", "AFTER_B_EACH")])
        {
            kernel = kernel.define(names.0, other.stride).define(names.1, other.each);
        }
        kernel
    }

    /// The kernel's last two arguments.
    pub(super) fn bindings(&self) -> impl Iterator<Item = (Memory, usize)> {
        let all = self.others.iter().map(|other| other.at).chain([(Memory::Weights, 0); OTHERS.len()]);
        all.take(OTHERS.len()).collect::<Vec<_>>().into_iter()
    }
}

impl Lowering<'_> {
    /// For the first of `nodes`, which follow each other: how many of those after it its kernel can apply, what they are to it,
    /// and the value that it computes then.
    pub(super) fn after(&self, nodes: &[PlanNode]) -> Result<(usize, After, Option<ValueId>), DeviceError> {
        let mut found = (0, After::default(), None);
        let Some((first, rest)) = nodes.split_first().filter(|(first, _)| is_start(first)) else { return Ok(found) };
        let (mut value, mut after) = (first.out, After { expression: "(x)".to_owned(), others: Vec::new() });
        for (i, node) in rest.iter().enumerate() {
            if !self.reads_alone(node, value) || !self.apply(node, value, &mut after)? {
                break;
            }
            value = node.out;
            // Where it is stored nothing may lie that other threads read.
            let others = rest[..=i].iter().flat_map(|node| node.inputs.iter().copied());
            let computed: Vec<_> = [first].into_iter().chain(&rest[..i]).map(|node| node.out).collect();
            let by_place = !matches!(first.op, PlanOp::Plain(Op::Conv(_) | Op::Norm(_)));
            let alike = |other: ValueId| self.place(other) == self.place(value);
            let safe = first.inputs.iter().all(|&x| self.apart(x, value) || (by_place && alike(x)))
                && others.filter(|other| !computed.contains(other)).all(|x| self.apart(x, value) || alike(x));
            if safe {
                found = (i + 1, after.clone(), Some(value));
            }
        }
        Ok(found)
    }

    /// Whether a node reads `value`, of its own size, and nothing else does, nor any columns of it.
    fn reads_alone(&self, node: &PlanNode, value: ValueId) -> bool {
        let (values, [from, to]) = (&self.plan.values, [value, node.out].map(|value| &self.plan.values[value.0]));
        let reads = |node: &PlanNode| node.reads().filter(|&read| read == value).count();
        let only = self.plan.nodes.iter().map(reads).sum::<usize>() == 1 && reads(node) == 1;
        let viewed = (0..values.len()).any(|v| v != node.out.0 && values[v].within.is_some_and(|(of, _)| of == value));
        let of_head = self.plan.head.iter().flat_map(|head| [head.hidden, head.logits, head.next]);
        let kept = of_head.chain([self.plan.logits, self.plan.hidden.value]).any(|kept| kept == value);
        only && !viewed && !kept && node.onto.is_none() && (from.width, from.rows) == (to.width, to.rows)
    }

    /// Adds what a node does to `value`, if that can be said.
    fn apply(&self, node: &PlanNode, value: ValueId, after: &mut After) -> Result<bool, DeviceError> {
        let width = self.plan.values[value.0].width;
        let other = node.inputs.iter().copied().find(|&input| input != value);
        let mut others = after.others.clone();
        let mut add = |other| {
            others.push(other);
            OTHERS.get(others.len() - 1).copied()
        };
        let of_value = |other: ValueId| {
            let place = self.place(other);
            Other { at: self.at(other), stride: place.stride, each: width / place.width.max(1) }
        };
        let x = &after.expression;
        let mut expression = String::new();
        let written = match (&node.op, other) {
            (PlanOp::Plain(Op::Activate(of)), None) => plain(*of).map(|name| write!(expression, "{name}({x})")),
            (PlanOp::Plain(Op::Scale(factor)), None) => Some(write!(expression, "({} * {x})", Float(*factor))),
            (PlanOp::Plain(Op::Add), Some(other)) => {
                add(of_value(other)).map(|other| write!(expression, "({x} + {other})"))
            }
            (PlanOp::Plain(Op::Mul), Some(other)) => {
                add(of_value(other)).map(|other| write!(expression, "({x} * {other})"))
            }
            (PlanOp::Gate(Gate::Product(of)), Some(other)) => {
                let factor = plain(*of).zip(add(of_value(other)));
                factor.map(|(name, other)| match node.inputs[0] == value {
                    true => write!(expression, "({name}({x}) * {other})"),
                    false => write!(expression, "({name}({other}) * {x})"),
                })
            }
            (&PlanOp::Plain(Op::Affine(Affine { weight: Some(weight), bias, decay })), None) => {
                let mut of_weights = |vector: Vector, weight: WeightId| -> Result<Option<&str>, DeviceError> {
                    let each = width / self.plan.graph.weights[weight.0].len().max(1);
                    Ok(add(Other { at: self.vector(Some(vector))?, stride: 0, each }))
                };
                let factor = of_weights(if decay { Vector::Decay(weight) } else { Vector::plain(weight) }, weight)?;
                match bias {
                    None => factor.map(|factor| write!(expression, "({x} * {factor})")),
                    Some(bias) => {
                        let term = of_weights(Vector::plain(bias), bias)?;
                        factor.zip(term).map(|(factor, term)| write!(expression, "fma({factor}, {x}, {term})"))
                    }
                }
            }
            _ => None,
        };
        if written.is_none() {
            return Ok(false);
        }
        *after = After { expression, others };
        Ok(true)
    }

    /// Whether two values lie in different memory.
    fn apart(&self, a: ValueId, b: ValueId) -> bool {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        let (p, q) = (self.place(a), self.place(b));
        if (p.offset, p.stride) == (q.offset, q.stride) {
            return !overlap(&(p.column..p.column + p.width), &(q.column..q.column + q.width));
        }
        let bytes = |value: ValueId| {
            let place = self.place(value);
            let rows = self.plan.limits.rows(self.plan.values[value.0].rows);
            place.offset..place.offset + rows * place.stride * size_of::<f32>()
        };
        !overlap(&bytes(a), &bytes(b))
    }
}

/// Whether its kernel has room for what comes after.
fn is_start(node: &PlanNode) -> bool {
    let op = match &node.op {
        PlanOp::Gate(_) => true,
        PlanOp::Plain(op) => {
            matches!(op, Op::Conv(_) | Op::Norm(_) | Op::Affine(_) | Op::Activate(_) | Op::Mul | Op::Add | Op::Scale(_))
        }
        _ => false,
    };
    op && node.onto.is_none()
}

/// The name of an activation that needs no macros.
fn plain(activation: Activation) -> Option<&'static str> {
    Some(name_of(activation)).filter(|_| !matches!(activation, Activation::Xielu { .. }))
}
