//! Functions of single values, and copies of rows and columns.

use basert_graph::{Activation, Temper, WeightId};
use basert_plan::{DeviceError, Gate, Place, PlanNode};

use super::{Bound, Kernel, Output, ROWS, Run, WorkerScratch};
use crate::device::Binder;
use crate::{Worker, elementwise};

/// Values in a piece of work.
const COLUMNS: usize = 4096;

/// A function of the values of one input, or of two.
#[derive(Clone, Copy)]
pub(super) enum Function {
    Add,
    Mul,
    Gate(Gate),
    Activate(Activation),
    Scale(f32),
    SoftCap(f32),
}

struct Elementwise {
    function: Function,
    x: Place,
    /// The second input.
    y: Option<Place>,
    out: Output,
}

pub(super) fn bind(binder: &Binder, node: &PlanNode, function: Function) -> Box<dyn Kernel> {
    let y = node.inputs.get(1).map(|&y| binder.place(y));
    Box::new(Elementwise { function, x: binder.place(node.inputs[0]), y, out: binder.output(node.out) })
}

impl Kernel for Elementwise {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let parts = self.out.0.width.div_ceil(COLUMNS);
        let times = self.y.map_or(1, |y| self.out.0.width / y.width);
        for part in worker.chunks(&op.work, parts * run.count(self.out.1), 1).flatten() {
            let (row, first) = (part / parts, part % parts * COLUMNS);
            let columns = first..self.out.0.width.min(first + COLUMNS);
            // SAFETY: each part is one worker's, and plans place the output over `x`, if at all, only where that is not
            // `y` as well.
            let (out, y) = unsafe {
                let [x, out] = [self.x, self.out.0].map(|place| run.view(place, row + 1).columns(columns.clone()));
                let y = self.y.map(|y| match times {
                    1 => run.view(y, row + 1).columns(columns).row(row),
                    // A narrower factor is widened.
                    _ => {
                        let (narrow, wide) = (run.view(y, row + 1).row(row), &mut scratch.row[..columns.len()]);
                        wide.iter_mut().zip(columns).for_each(|(y, column)| *y = narrow[column / times]);
                        &*wide
                    }
                });
                (out.row_from(&x, row), y.unwrap_or_default())
            };
            match self.function {
                Function::Add => elementwise::add(run.isa, out, y),
                Function::Mul => elementwise::mul(run.isa, out, y),
                Function::Gate(gate) => elementwise::gate(run.isa, gate, out, y),
                Function::Activate(activation) => elementwise::activate(run.isa, activation, out),
                Function::Scale(factor) => elementwise::scale(run.isa, out, factor),
                Function::SoftCap(cap) => elementwise::soft_cap(run.isa, out, cap),
            }
        }
    }
}

/// Rows times a factor that grows with the position.
struct BoundTemper {
    x: Place,
    how: Temper,
    out: Place,
}

pub(super) fn bind_temper(binder: &Binder, node: &PlanNode, how: Temper) -> Box<dyn Kernel> {
    Box::new(BoundTemper { x: binder.place(node.inputs[0]), how, out: binder.place(node.out) })
}

impl Kernel for BoundTemper {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let (x, out) = (run.view(self.x, run.tokens()), run.view(self.out, run.tokens()));
        for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
            // SAFETY: each row is one worker's, and the output lies over the input or apart from it.
            let values = unsafe { out.row_from(&x, row) };
            elementwise::scale(run.isa, values, self.how.at(run.step.positions[row] as usize));
        }
    }
}

/// Factors and terms of columns.
struct Affine {
    x: Place,
    /// One for each column of the result, as the terms.
    weight: Vec<f32>,
    bias: Vec<f32>,
    out: Output,
}

pub(super) fn bind_affine(
    binder: &Binder,
    node: &PlanNode,
    how: &basert_graph::Affine,
) -> Result<Box<dyn Kernel>, DeviceError> {
    let out = binder.output(node.out);
    let of_columns = |vector: Option<WeightId>, otherwise: f32| -> Result<Vec<f32>, DeviceError> {
        let values = vector.map_or(Ok(vec![otherwise]), |vector| binder.vector(vector))?;
        let times = out.0.width / values.len();
        Ok(values.into_iter().flat_map(|value| std::iter::repeat_n(value, times)).collect())
    };
    let (mut weight, bias) = (of_columns(how.weight, 1.0)?, of_columns(how.bias, 0.0)?);
    if how.decay {
        weight.iter_mut().for_each(|w| *w = -w.exp());
    }
    Ok(Box::new(Affine { x: binder.place(node.inputs[0]), weight, bias, out }))
}

impl Kernel for Affine {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, out) = (run.view(self.x, rows), run.view(self.out.0, rows));
        let times = out.cols() / x.cols();
        for row in worker.chunks(&op.work, rows, ROWS).flatten() {
            // SAFETY: each row is one worker's, and the output lies over the input or apart from it; where it has more
            // columns it lies apart.
            let values = unsafe {
                if times == 1 {
                    out.row_from(&x, row)
                } else {
                    let values = out.row_mut(row);
                    values.chunks_exact_mut(times).zip(x.row(row)).for_each(|(values, x)| values.fill(*x));
                    values
                }
            };
            elementwise::affine(run.isa, values, &self.weight, &self.bias);
        }
    }
}

/// Columns of each row.
struct Slice {
    x: Place,
    out: Output,
}

pub(super) fn bind_slice(binder: &Binder, node: &PlanNode, first: usize) -> Box<dyn Kernel> {
    let (x, out) = (binder.place(node.inputs[0]), binder.output(node.out));
    Box::new(Slice { x: Place { column: x.column + first, width: out.0.width, ..x }, out })
}

impl Kernel for Slice {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, out) = (run.view(self.x, rows), run.view(self.out.0, rows));
        for row in worker.chunks(&op.work, rows, ROWS).flatten() {
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            unsafe { out.row_mut(row).copy_from_slice(x.row(row)) };
        }
    }
}

/// The rows whose logits are wanted.
struct Select {
    x: Place,
    out: Place,
}

pub(super) fn bind_select(binder: &Binder, node: &PlanNode) -> Box<dyn Kernel> {
    Box::new(Select { x: binder.place(node.inputs[0]), out: binder.place(node.out) })
}

impl Kernel for Select {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let (x, out) = (run.view(self.x, run.tokens()), run.view(self.out, run.step.wanted.len()));
        for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            unsafe { out.row_mut(row).copy_from_slice(x.row(run.step.wanted[row] as usize)) };
        }
    }
}
