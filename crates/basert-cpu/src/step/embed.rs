//! Embeddings: rows of a table of the model file.

use std::sync::atomic::Ordering;

use basert_core::codec;
use basert_graph::{Index, Weight, WeightId};
use basert_plan::{DeviceError, Place, PlanNode};

use super::{Bound, Kernel, ROWS, Run, WorkerScratch};
use crate::device::Binder;
use crate::{Worker, elementwise};

struct BoundEmbed {
    table: Weight,
    scale: f32,
    by: Index,
    vocabulary: usize,
    out: Place,
}

pub(super) fn bind(
    binder: &Binder,
    node: &PlanNode,
    weight: WeightId,
    scale: f32,
    by: Index,
) -> Result<Box<dyn Kernel>, DeviceError> {
    let table = binder.weight(weight).clone();
    let vocabulary = binder.graph().vocabulary;
    Ok(Box::new(BoundEmbed { table, scale, by, vocabulary, out: binder.place(node.out) }))
}

impl Kernel for BoundEmbed {
    /// Rows are read from the file and not from its mapping: a file that was written to or shortened since it was opened
    /// is an error of the step, where a mapping of it would end the process.
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let out = run.view(self.out, run.tokens());
        for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
            let index = self.by.of(run.step.tokens[row], run.step.positions[row], self.vocabulary);
            // SAFETY: guaranteed by the caller.
            let values = unsafe { out.row_mut(row) };
            let (tensor, at) = self.table.locate(index);
            let decoded = self.table.format.row_bytes(values.len()).ok().and_then(|len| {
                let bytes = scratch.embedding.get_mut(..len)?;
                run.file.read(tensor, at * len, bytes).ok()?;
                codec::decode(self.table.format, bytes, values).ok()
            });
            if decoded.is_none() || values.iter().any(|x| !x.is_finite()) {
                run.damaged.store(run.step.tokens[row], Ordering::Relaxed);
            }
            if self.scale != 1.0 {
                elementwise::scale(run.isa, values, self.scale);
            }
        }
    }
}
