//! Linear ops: the input is prepared, normed and quantised as the matrices want it, and multiplied panel by panel.

use std::ops::Range;
use std::sync::Arc;

use basert_plan::{DeviceError, Linear, Place, PlanNode};

use super::{Bound, Kernel, Output, Run, WorkerScratch};
use crate::device::Binder;
use crate::dot::unexpanded_rows;
use crate::elementwise::BoundNorm;
use crate::tiles::TILE;
use crate::{Epilogue, FloatRows, Input, PackedMatrix, QuantisedRows, RowBlocks, Worker, linear};

/// Up to this number of values, every worker prepares the input of a linear op for itself instead of waiting for
/// others.
const OWN_INPUT: usize = 8192;

/// A matrix, and what is added to its outputs.
pub(super) type Biased = (Arc<PackedMatrix>, Option<Vec<f32>>);

/// Matrices whose outputs are concatenated, with their biases and columns of the output.
struct BoundLinear {
    x: Place,
    norm: Option<BoundNorm>,
    parts: Vec<(Biased, Range<usize>)>,
    epilogue: Epilogue,
    out: Output,
}

/// What becomes of a node's products.
pub(super) fn epilogue(node: &PlanNode, linear: &Linear) -> Epilogue {
    match (linear.gate, node.onto) {
        (Some(gate), _) => Epilogue::Gated(gate),
        (None, Some(_)) => Epilogue::Add,
        (None, None) => Epilogue::Store,
    }
}

/// The packed matrices of a linear op, or those of its experts, with their biases.
pub(super) fn matrices(
    binder: &Binder,
    linear: &Linear,
    packed: &[Vec<Arc<PackedMatrix>>],
) -> Result<Vec<Biased>, DeviceError> {
    let mut parts = Vec::with_capacity(linear.matrices.len());
    for id in &linear.matrices {
        let mut bias = binder.bias(*id)?;
        for matrix in &packed[id.0] {
            let rest = bias.as_mut().map(|bias| bias.split_off(matrix.rows()));
            parts.push((matrix.clone(), std::mem::replace(&mut bias, rest)));
        }
    }
    Ok(parts)
}

pub(super) fn bind(
    binder: &Binder,
    node: &PlanNode,
    linear: &Linear,
    packed: &[Vec<Arc<PackedMatrix>>],
) -> Result<Box<dyn Kernel>, DeviceError> {
    let mut column = 0;
    let with_columns = |part: Biased| {
        let first = column;
        column += part.0.rows();
        (part, first..column)
    };
    let parts = matrices(binder, linear, packed)?.into_iter().map(with_columns).collect();
    let norm = linear.norm.as_ref().map(|norm| binder.norm(norm)).transpose()?;
    let (x, out) = (binder.place(node.inputs[0]), binder.output(node.out));
    Ok(Box::new(BoundLinear { x, norm, parts, epilogue: epilogue(node, linear), out }))
}

impl Kernel for BoundLinear {
    fn prepares(&self) -> bool {
        true
    }

    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        if rows == 0 {
            return;
        }
        let (x, out) = (run.view(self.x, rows), run.view(self.out.0, rows));
        let any = |quantised| self.parts.iter().any(|((matrix, _), _)| matrix.wants_quantised() == quantised);
        let (quantised, float) = (any(true), any(false));
        let own = rows == 1 && x.cols() <= OWN_INPUT;
        let memory =
            if own { (scratch.row_floats.as_mut_ptr(), scratch.row_quantised.as_mut_ptr()) } else { run.prepared };
        // SAFETY: prepared inputs have room for the widest; a worker's own are its own.
        let floats = float.then(|| unsafe { FloatRows::from_raw(memory.0, rows, x.cols()) });
        // SAFETY: as above.
        let codes = quantised.then(|| unsafe { QuantisedRows::from_raw(memory.1, rows, x.cols()) });
        let mut prepare = |row: usize| {
            // SAFETY: each row is prepared by one worker, or by each for itself.
            unsafe {
                let mut values = x.row(row);
                if let Some(norm) = &self.norm {
                    norm.apply(run.isa, values, &mut scratch.row[..x.cols()]);
                    values = &scratch.row[..x.cols()];
                }
                if let Some(codes) = codes {
                    codes.write(run.isa, row, values);
                }
                if let Some(floats) = floats {
                    floats.write(row, values);
                }
            }
        };
        if own {
            prepare(0);
        } else {
            worker.chunks(&op.prepare, rows, TILE).flatten().for_each(prepare);
            worker.barrier();
        }

        let (codes, floats) = (codes.map(Input::Quantised), floats.map(Input::Float));
        let Some(blocks) = floats.or(codes).map(RowBlocks::of) else { return };
        let units: usize = self.parts.iter().map(|((matrix, _), _)| matrix.units()).sum();
        // Many rows are multiplied by two panels at a time.
        let many = self.parts.iter().any(|((matrix, _), _)| rows > unexpanded_rows(run.isa, matrix.format()));
        let step = if many { 2 } else { 1 };
        for (block, units) in worker.products(&op.work, blocks.len(), units, step) {
            let mut first = 0;
            for ((matrix, bias), columns) in &self.parts {
                let start = units.start.max(first) - first;
                let end = units.end.min(first + matrix.units()).saturating_sub(first);
                first += matrix.units();
                let Some(input) = (if matrix.wants_quantised() { codes } else { floats }) else { continue };
                if start < end {
                    let (rows, out) = (blocks.get(block), out.columns(columns.clone()));
                    // SAFETY: the columns of a unit, in the rows of a block, are computed by the worker that took it.
                    unsafe {
                        let (bias, panels) = (bias.as_deref(), &mut scratch.panels);
                        linear(run.isa, matrix, start..end, input, rows, bias, self.epilogue, out, None, panels);
                    }
                }
            }
        }
    }
}
