//! The places of a plan's weights in a GPU's memory, and their upload.
//!
//! Launches name weights by consecutive addresses that do not depend on buffers: a device may use some weights where
//! the file is mapped, and may need several buffers for the others. [`Resident`] maps an address to its buffer.

use std::ops::Range;
use std::sync::Arc;

use basert_files::ModelFile;
use basert_graph::{Part, RopeId, WeightId};
use basert_plan::{DeviceError, Matrix, MatrixId, Order, Plan, Stage};

use crate::layout::Layout;
use crate::{Binding, Gpu, GpuError};

/// The alignment of matrices and vectors.
const ALIGNMENT: usize = 256;

/// A vector of f32 that kernels read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Vector {
    /// Values of the file, to each of which a number is added.
    Values {
        /// The file's.
        weight: WeightId,
        /// The number.
        offset: f32,
    },
    /// −e^w for each value w of the file.
    Decay(WeightId),
    /// The biases of a matrix.
    Bias(MatrixId),
    /// The frequencies of a rotary embedding.
    Frequencies(RopeId),
}

impl Vector {
    /// Values of the file as they are.
    pub fn plain(weight: WeightId) -> Vector {
        Vector::Values { weight, offset: 0.0 }
    }
}

/// A matrix and its address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    matrix: Matrix,
    pub layout: Layout,
    pub offset: usize,
}

/// The addresses of all weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights {
    matrices: Vec<Placed>,
    /// For each embedding the index of its matrix.
    embeddings: Vec<(WeightId, usize)>,
    vectors: Vec<(Vector, usize)>,
    pub bytes: usize,
}

impl Weights {
    /// Assigns an address to every weight of a plan.
    ///
    /// # Errors
    /// When the rows of a matrix are not whole blocks.
    pub fn new(plan: &Plan, device: &str) -> Result<Weights, DeviceError> {
        let mut weights = Weights { matrices: Vec::new(), embeddings: Vec::new(), vectors: Vec::new(), bytes: 0 };
        for matrix in &plan.matrices {
            weights.place(plan, matrix.clone(), device)?;
        }
        for node in &plan.nodes {
            for (weight, part) in node.op.signature().weights {
                match part {
                    Part::Table => weights.table(plan, weight, device)?,
                    Part::Norm(offset) => weights.vector(plan, Vector::Values { weight, offset }),
                    Part::Vector => weights.vector(plan, Vector::plain(weight)),
                    Part::Decay => weights.vector(plan, Vector::Decay(weight)),
                    // Those of the plan's matrices.
                    Part::Matrix | Part::Bias => {}
                }
            }
            node.op.rope().into_iter().for_each(|rope| weights.vector(plan, Vector::Frequencies(rope)));
        }
        (0..plan.matrices.len()).for_each(|id| weights.vector(plan, Vector::Bias(MatrixId(id))));
        Ok(weights)
    }

    /// A table of embeddings: the matrix of a linear op, if it is all of one.
    fn table(&mut self, plan: &Plan, weight: WeightId, device: &str) -> Result<(), DeviceError> {
        let alone = |placed: &Placed| matches!(placed.matrix.parts[..], [(part, _)] if part == weight);
        let at = match self.matrices.iter().position(alone) {
            Some(at) => at,
            None => {
                let &basert_graph::Weight { rows, columns, format, .. } = &plan.graph.weights[weight.0];
                let parts = vec![(weight, None)];
                let matrix = Matrix { parts, order: Order::Stacked, format, rows, columns, experts: 1 };
                self.place(plan, matrix, device)?;
                self.matrices.len() - 1
            }
        };
        self.embeddings.push((weight, at));
        Ok(())
    }

    fn place(&mut self, plan: &Plan, matrix: Matrix, device: &str) -> Result<(), DeviceError> {
        let tensor = plan.graph.weights[matrix.parts[0].0.0].name();
        let unsupported =
            |what| DeviceError::Unsupported { device: device.to_owned(), what: format!("tensor '{tensor}': {what}") };
        let layout = Layout::new(matrix.format, matrix.rows, matrix.columns).map_err(unsupported)?;
        let offset = self.bytes;
        self.bytes += layout.bytes;
        self.matrices.push(Placed { matrix, layout, offset });
        Ok(())
    }

    fn vector(&mut self, plan: &Plan, vector: Vector) {
        let len = self.len(plan, vector);
        if len > 0 && self.vectors.iter().all(|(known, _)| *known != vector) {
            self.vectors.push((vector, self.bytes));
            self.bytes = (self.bytes + len * size_of::<f32>()).next_multiple_of(ALIGNMENT);
        }
    }

    /// The length of a vector: 0 for the biases of a matrix without any.
    fn len(&self, plan: &Plan, vector: Vector) -> usize {
        match vector {
            Vector::Values { weight, .. } | Vector::Decay(weight) => plan.graph.weights[weight.0].len(),
            Vector::Bias(id) if plan.matrices[id.0].has_bias() => plan.matrices[id.0].rows,
            Vector::Bias(_) => 0,
            Vector::Frequencies(rope) => plan.graph.ropes[rope.0].frequencies.len(),
        }
    }

    /// A matrix of the plan.
    pub fn matrix(&self, id: MatrixId) -> &Placed {
        &self.matrices[id.0]
    }

    /// The matrix whose rows are embeddings.
    pub fn embedding(&self, weight: WeightId) -> Option<&Placed> {
        self.embeddings.iter().find(|(known, _)| *known == weight).map(|&(_, at)| &self.matrices[at])
    }

    /// The address of a vector, if it has any values.
    pub fn vector_at(&self, vector: Vector) -> Option<usize> {
        self.vectors.iter().find(|(known, _)| *known == vector).map(|&(_, at)| at)
    }

    /// Makes all weights of the file usable on a device: where they are mapped, if their layout is that of kernels and
    /// the device supports it, and otherwise in memory of the device. `progress` is called with the bytes done and the
    /// total.
    ///
    /// # Errors
    /// When a tensor is missing or damaged, or the device lacks memory or fails.
    pub fn bring(
        &self,
        plan: &Plan,
        file: &Arc<ModelFile>,
        gpu: &mut dyn Gpu,
        progress: &mut dyn FnMut(Stage, usize, usize),
    ) -> Result<Resident, BringError> {
        let mut runs = Vec::with_capacity(self.matrices.len() + self.vectors.len());
        let mut ready = 0;
        let mut done = |bytes| {
            ready += bytes;
            progress(Stage::Weights, ready, self.bytes);
        };
        let parts = self.matrices.iter().map(|placed| placed.in_file(plan, file)).collect::<Result<Vec<_>, _>>()?;
        let usable: Vec<&[u8]> = parts.iter().flatten().copied().collect();
        let mut mapped = gpu.map(file, &usable)?.into_iter();
        let mut copied = Vec::new();
        for (placed, part) in self.matrices.iter().zip(parts) {
            match part.and_then(|part| Some((part, mapped.next()??))) {
                Some((part, binding)) => {
                    placed.check(plan, part)?;
                    runs.push((placed.offset, binding));
                    done(placed.layout.bytes);
                }
                None => copied.push((placed.offset, placed.layout.bytes, Copied::Matrix(placed))),
            }
        }
        copied.extend(self.vectors.iter().map(|&(vector, offset)| {
            let bytes = self.len(plan, vector) * size_of::<f32>();
            (offset, bytes.next_multiple_of(ALIGNMENT), Copied::Vector(vector))
        }));
        let sizes: Vec<_> = copied.iter().map(|&(_, bytes, _)| bytes).collect();
        let (chunks, places) = chunks(&sizes, gpu.facts().largest_buffer);
        let rooms: Vec<_> = chunks.into_iter().map(|bytes| (bytes, "weights")).collect();
        let buffers = gpu.allocate_all(&rooms)?;
        for ((address, bytes, what), (chunk, offset)) in copied.into_iter().zip(places) {
            let binding = Binding { buffer: buffers[chunk], offset };
            match what {
                Copied::Matrix(placed) => gpu.write(binding, &placed.pack(plan, file)?)?,
                Copied::Vector(vector) => {
                    gpu.write(binding, bytemuck::cast_slice(&self.values(plan, file, vector)?))?;
                }
            }
            runs.push((address, binding));
            done(bytes);
        }
        runs.sort_by_key(|&(address, _)| address);
        Ok(Resident { runs })
    }

    fn values(&self, plan: &Plan, file: &ModelFile, vector: Vector) -> Result<Vec<f32>, DeviceError> {
        match vector {
            Vector::Values { weight, offset } => {
                let mut values = plan.graph.weights[weight.0].values(file)?;
                values.iter_mut().for_each(|value| *value += offset);
                Ok(values)
            }
            Vector::Decay(weight) => {
                let values = plan.graph.weights[weight.0].values(file)?;
                Ok(values.into_iter().map(|value| -value.exp()).collect())
            }
            Vector::Bias(id) => Ok(plan.matrices[id.0].bias(&plan.graph, file)?.unwrap_or_default()),
            Vector::Frequencies(rope) => Ok(plan.graph.ropes[rope.0].frequencies.clone()),
        }
    }
}

/// A weight that has to be copied.
enum Copied<'w> {
    Matrix(&'w Placed),
    Vector(Vector),
}

/// The places of weights: the first address of each run of them, and its binding.
pub(crate) struct Resident {
    runs: Vec<(usize, Binding)>,
}

impl Resident {
    /// The binding of an address.
    pub fn at(&self, address: usize) -> Option<Binding> {
        let after = self.runs.partition_point(|&(begin, _)| begin <= address);
        let (begin, Binding { buffer, offset }) = *self.runs.get(after.checked_sub(1)?)?;
        Some(Binding { buffer, offset: offset + (address - begin) })
    }
}

/// Why weights could not be uploaded to a device.
pub(crate) enum BringError {
    /// Something is wrong with them.
    Weights(DeviceError),
    /// The device failed.
    Gpu(GpuError),
}

impl From<DeviceError> for BringError {
    fn from(error: DeviceError) -> BringError {
        BringError::Weights(error)
    }
}

impl From<GpuError> for BringError {
    fn from(error: GpuError) -> BringError {
        BringError::Gpu(error)
    }
}

/// The sizes of buffers of at most `limit` bytes for pieces of these sizes, in order; and for each piece its buffer and
/// its offset there. A larger piece gets its own buffer, which the device will refuse.
fn chunks(sizes: &[usize], limit: usize) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut chunks: Vec<usize> = Vec::new();
    let places = sizes.iter().map(|&bytes| {
        match chunks.last_mut() {
            Some(chunk) if *chunk + bytes <= limit => *chunk += bytes,
            _ => chunks.push(bytes),
        }
        (chunks.len() - 1, chunks[chunks.len() - 1] - bytes)
    });
    let places = places.collect();
    (chunks, places)
}

impl Placed {
    /// The matrix in the file, if its layout there is that of kernels.
    fn in_file<'f>(&self, plan: &Plan, file: &'f ModelFile) -> Result<Option<&'f [u8]>, DeviceError> {
        let [(id, _)] = self.matrix.parts[..] else { return Ok(None) };
        let bytes = plan.graph.weights[id.0].mapped(file)?;
        Ok(bytes.filter(|bytes| self.layout.is_that_of_files() && bytes.len() == self.layout.bytes_of_file()))
    }

    /// Checks for values that are not finite, for a matrix that is not copied.
    fn check(&self, plan: &Plan, bytes: &[u8]) -> Result<(), DeviceError> {
        let tensor = || plan.graph.weights[self.matrix.parts[0].0.0].name().to_owned();
        self.layout.check(bytes).map_err(|what| DeviceError::Weight { tensor: tensor(), what })
    }

    /// The matrix in the device's layout, packed on all cores.
    fn pack(&self, plan: &Plan, file: &ModelFile) -> Result<Vec<u8>, DeviceError> {
        let weights: Vec<_> = self.matrix.parts.iter().map(|(id, _)| &plan.graph.weights[id.0]).collect();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let blocks_per_row = self.layout.blocks() / self.matrix.rows;
        let rows_each = self.matrix.rows.div_ceil(threads);
        let rows: Vec<Range<usize>> = (0..self.matrix.rows)
            .step_by(rows_each.max(1))
            .map(|first| first..self.matrix.rows.min(first + rows_each))
            .collect();
        let blocks: Vec<_> = rows.iter().map(|r| r.start * blocks_per_row..r.end * blocks_per_row).collect();
        let mut memory = vec![0; self.layout.bytes];
        let pieces = self.layout.pieces(&mut memory, &blocks);
        std::thread::scope(|scope| {
            let workers: Vec<_> = rows
                .into_iter()
                .zip(pieces)
                .map(|(rows, mut piece)| {
                    let weights = &weights;
                    scope.spawn(move || {
                        for row in rows {
                            let (part, row_of_part) = self.source(plan, row);
                            let weight = weights[part];
                            let fail = |what: String| DeviceError::Weight { tensor: weight.name().to_owned(), what };
                            let bytes = weight.read(file, row_of_part..row_of_part + 1)?;
                            self.layout.pack(row * blocks_per_row, &bytes, &mut piece).map_err(fail)?;
                        }
                        Ok::<(), DeviceError>(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let tensors = weights.iter().flat_map(|weight| &weight.tensors).filter_map(|name| file.tensor(name));
        tensors.for_each(|tensor| file.release(tensor.bytes));
        Ok(memory)
    }

    /// The part from which a row of the matrix comes, and the row in that part.
    fn source(&self, plan: &Plan, row: usize) -> (usize, usize) {
        if self.matrix.order == Order::Paired {
            return (row % 2, row / 2);
        }
        let mut before = 0;
        for (part, (id, _)) in self.matrix.parts.iter().enumerate() {
            let rows = plan.graph.weights[id.0].rows;
            if row < before + rows {
                return (part, row - before);
            }
            before += rows;
        }
        (0, row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    #[test]
    fn pieces_fill_buffers_up_to_their_limit() {
        assert_eq!(
            chunks(&[4, 4, 4, 12, 20, 2], 12),
            (vec![12, 12, 20, 2], vec![(0, 0), (0, 4), (0, 8), (1, 0), (2, 0), (3, 0)])
        );
        assert_eq!(chunks(&[4, 20, 2], usize::MAX), (vec![26], vec![(0, 0), (0, 4), (0, 24)]));
        assert_eq!(chunks(&[], 12), (vec![], vec![]));
    }

    #[test]
    fn an_address_is_in_the_run_before_it() {
        let binding = |buffer, offset| Binding { buffer: Buffer(buffer), offset };
        let resident = Resident { runs: vec![(0, binding(7, 512)), (256, binding(3, 0)), (1024, binding(7, 0))] };
        assert_eq!(resident.at(0), Some(binding(7, 512)));
        assert_eq!(resident.at(1023), Some(binding(3, 767)));
        assert_eq!(resident.at(1024), Some(binding(7, 0)));
        assert_eq!(Resident { runs: vec![] }.at(0), None);
    }
}
