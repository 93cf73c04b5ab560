//! Norms of rows.

use basert_graph::Norm;
use basert_plan::{DeviceError, Place, PlanNode};

use super::{Bound, Kernel, Output, ROWS, Run, WorkerScratch};
use crate::device::Binder;
use crate::elementwise::BoundNorm;
use crate::{Worker, elementwise};

struct BoundNormOp {
    x: Place,
    norm: BoundNorm,
    /// Whether the result is added to what is there.
    add: bool,
    out: Output,
}

pub(super) fn bind(binder: &Binder, node: &PlanNode, norm: &Norm) -> Result<Box<dyn Kernel>, DeviceError> {
    let (x, add, out) = (binder.place(node.inputs[0]), node.onto.is_some(), binder.output(node.out));
    Ok(Box::new(BoundNormOp { x, norm: binder.norm(norm)?, add, out }))
}

impl Kernel for BoundNormOp {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, out) = (run.view(self.x, rows), run.view(self.out.0, rows));
        for row in worker.chunks(&op.work, rows, ROWS).flatten() {
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            let (x, out) = unsafe { (x.row(row), out.row_mut(row)) };
            if self.add {
                let normed = &mut scratch.row[..out.len()];
                self.norm.apply(run.isa, x, normed);
                elementwise::add(run.isa, out, normed);
            } else {
                self.norm.apply(run.isa, x, out);
            }
        }
    }
}
