//! Products of matrices: which kernel, and how its input is prepared.

use basert_graph::{Norm, ValueId};
use basert_plan::{DeviceError, Gate, Linear, MatrixId, PlanNode};

use super::values::gated;
use super::{Float, Lowered, Lowering, Memory, THREADGROUP_BYTES};
use crate::Kernel;
use crate::layout::padded;
use crate::tuning::{Gemm, Product, STRIP};
use crate::weights::Vector;

/// Threadgroup memory that a product of few rows needs for its results, at most.
pub(super) const RESULTS: usize = 4 << 10;

/// What the kernel of a linear op gets for its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The value itself, which it may norm.
    Floats,
    /// The same, and it quantises it.
    QuantisedHere,
    /// Prepared: normed where that is wanted, with zeros after rows that are no whole groups.
    Normed,
    /// Prepared: normed where that is wanted, and quantised.
    Quantised,
    /// Prepared: normed where that is wanted, and rounded to halves.
    Halves,
}

impl Input {
    fn macro_of_gemv(self) -> &'static str {
        match self {
            Input::QuantisedHere => "INPUT_QUANTISED_HERE",
            Input::Quantised => "INPUT_QUANTISED",
            Input::Floats | Input::Normed | Input::Halves => "INPUT_FLOATS",
        }
    }
}

impl Lowering<'_> {
    pub(super) fn linear(
        &mut self,
        node: &PlanNode,
        linear: &Linear,
        (rows, count): (usize, &'static str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let Linear { norm, ref matrices, gate, .. } = *linear;
        let (x, value, end) = (node.inputs[0], node.out, End { gate, add: node.onto.is_some() });
        let columns = self.place(x).width;
        let few = rows <= self.tuning.few_tokens;
        let quantised = matrices.iter().all(|id| !self.plan.matrices[id.0].format.is_float());
        // What a kernel does to its input itself.
        let plain = norm.is_none_or(|norm| !norm.centred && norm.bias.is_none());
        let fits = |bytes: usize| plain && bytes + RESULTS <= THREADGROUP_BYTES;
        let kind = match (few, self.tuning.integer_dots && quantised) {
            (false, _) => Input::Halves,
            (true, _) if padded(columns) > columns => Input::Normed,
            (true, true) if rows == 1 && fits(columns + columns / 8) => Input::QuantisedHere,
            (true, true) => Input::Quantised,
            (true, false) if norm.is_none() || fits(rows.next_power_of_two() * columns * size_of::<f32>()) => {
                Input::Floats
            }
            (true, false) => Input::Normed,
        };
        let norm_inside = norm.as_ref().filter(|_| matches!(kind, Input::QuantisedHere | Input::Floats));
        let input = if matches!(kind, Input::QuantisedHere | Input::Floats) {
            (self.at(x), self.place(x).stride)
        } else {
            self.prepare(x, norm.as_ref(), kind, (rows, count), 1, out)?;
            ((Memory::Prepared, 0), padded(columns))
        };
        let (mut to, place) = (self.at(value), self.place(value));
        let parts = if few { 1 } else { self.parts(matrices, rows, columns) };
        let width: usize = matrices.iter().map(|id| self.plan.matrices[id.0].rows).sum();
        let (out_at, mut part_at) = (to, 0);
        for &id in matrices {
            let of_w = self.plan.matrices[id.0].rows;
            let product = Product { tokens: rows, rows: of_w, columns };
            let [w, bias] = self.matrix_at(id)?;
            let (kernel, bindings, groups) = if few {
                let (mut kernel, each) = self.gemv(product, kind);
                kernel = kernel
                    .define("TOKENS", rows.next_power_of_two())
                    .define("X_STRIDE", input.1)
                    .define("SCALES_OF_X_AT", self.scales_of_x_at(columns))
                    .define("NORM", u32::from(norm_inside.is_some()));
                if let Some(norm) = norm_inside {
                    kernel = kernel.define("NORM_EPS", Float(norm.eps));
                }
                let norm = self.norm_at(norm_inside)?;
                let bindings = vec![w, input.0, to, bias, norm, (Memory::Step, 0), w];
                (kernel.define("OUT_STRIDE", place.stride), bindings, [of_w.div_ceil(each), 1, 1])
            } else {
                let (kernel, Gemm { m, n, .. }) = self.gemm(product);
                let (to, stride) = if parts > 1 { ((Memory::Partial, part_at), width) } else { (to, place.stride) };
                let kernel = kernel.define("SPLIT", parts).define("PART_ROWS", rows).define("OUT_STRIDE", stride);
                let bindings = vec![w, input.0, to, bias, (Memory::Step, 0), w];
                (kernel, bindings, [rows.div_ceil(m), of_w.div_ceil(n), parts])
            };
            let kernel = self.product(kernel, id, of_w, end).define("COUNT", count);
            self.launch(out, kernel, bindings, groups);
            // The matrices of an op write columns of their own.
            out.barrier = false;
            to.1 += of_w / end.rows_a_column() * size_of::<f32>();
            part_at += of_w * size_of::<f32>();
        }
        if parts > 1 {
            let threads = 128;
            self.partial_bytes = self.partial_bytes.max(parts * rows * width * size_of::<f32>());
            let kernel = Kernel::new("linear/sum_parts.metal", "sum_parts", threads)
                .define("WIDTH", width)
                .define("SPLIT", parts)
                .define("PART_ROWS", rows)
                .define("COUNT", count)
                .define("OUT_STRIDE", place.stride);
            let kernel = end.define(kernel);
            let bindings = vec![(Memory::Partial, 0), out_at, (Memory::Step, 0)];
            out.barrier = true;
            self.launch(out, kernel, bindings, [width.div_ceil(2 * threads as usize), rows, 1]);
        }
        Ok(())
    }

    /// How many threadgroups divide the columns of products of many rows, the same for all matrices of an op.
    fn parts(&self, matrices: &[MatrixId], rows: usize, columns: usize) -> usize {
        let groups = |id: &MatrixId| {
            let product = Product { tokens: rows, rows: self.plan.matrices[id.0].rows, columns };
            let choice = self.tuning.gemm(product);
            (rows.div_ceil(choice.m) * product.rows.div_ceil(choice.n), choice)
        };
        // The one with the most to do fills the device.
        let most = matrices.iter().map(groups).max_by_key(|(groups, _)| *groups);
        most.map_or(1, |(groups, choice)| choice.parts(groups, columns, self.cores))
    }

    /// Where a matrix is, and its biases: anywhere, where there are none.
    pub(super) fn matrix_at(&self, id: MatrixId) -> Result<[(Memory, usize); 2], DeviceError> {
        let bias = self.plan.matrices[id.0].has_bias().then_some(Vector::Bias(id));
        Ok([(Memory::Weights, self.weights.matrix(id).offset), self.vector(bias)?])
    }

    /// The kernel of a product of few rows, but for what is said of its input, and the rows of weights a threadgroup has.
    pub(super) fn gemv(&self, product: Product, kind: Input) -> (Kernel, usize) {
        let choice = self.tuning.gemv(product, self.cores);
        let kernel = Kernel::new("linear/gemv.metal", "gemv", choice.simdgroups as u32 * 32)
            .define("ROWS", choice.each)
            .define("SPLIT", choice.split)
            .define("INPUT", kind.macro_of_gemv());
        (kernel, choice.rows())
    }

    /// The kernel of a product of many rows, and its tiles.
    pub(super) fn gemm(&self, product: Product) -> (Kernel, Gemm) {
        let choice = self.tuning.gemm(product);
        let kernel = Kernel::new("linear/gemm.metal", "gemm", choice.simdgroups as u32 * 32)
            .define("TILE_M", choice.m)
            .define("TILE_N", choice.n)
            .define("STAGES", choice.stages(self.tuning.threadgroup_bytes))
            .define("RESIDENT", choice.resident)
            .define("SPLIT", 1);
        (kernel, choice)
    }

    /// The kernel of a product with the macros that say what it is multiplied by, of which `rows` are used at a time, and
    /// what becomes of it.
    pub(super) fn product(&self, kernel: Kernel, id: MatrixId, rows: usize, end: End) -> Kernel {
        let matrix = &self.plan.matrices[id.0];
        let kernel = kernel
            .define("ROWS_OF_W", rows)
            .define("COLUMNS", padded(matrix.columns))
            .define("HAS_BIAS", u32::from(matrix.has_bias()));
        self.weights.matrix(id).layout.define(end.define(kernel))
    }

    /// Where scales of quantised rows begin: after as many rows as there can be of those, lest there be another kernel for
    /// each number of them.
    fn scales_of_x_at(&self, columns: usize) -> usize {
        self.tuning.few_tokens * columns
    }

    /// Norms the input of a linear op, or rounds it, or both. Each row has `each` of the rows that the product has then.
    pub(super) fn prepare(
        &mut self,
        x: ValueId,
        norm: Option<&Norm>,
        kind: Input,
        (rows, count): (usize, &str),
        each: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        // A tile reads whole rows up to its end.
        const TILE: usize = 128;
        let columns = self.place(x).width / each;
        let (output, bytes) = match kind {
            Input::Halves => {
                let rows = (rows * each).next_multiple_of(TILE);
                ("OUTPUT_HALVES", rows * columns.next_multiple_of(STRIP) * size_of::<half::f16>())
            }
            Input::Quantised => ("OUTPUT_BYTES", self.tuning.few_tokens * (columns + columns / 32 * size_of::<f32>())),
            _ => ("OUTPUT_FLOATS", rows * each * padded(columns) * size_of::<f32>()),
        };
        self.prepared_bytes = self.prepared_bytes.max(bytes);
        let mut kernel = self
            .norm_kernel(x, norm, count)
            .define("OUT_STRIDE", padded(columns))
            .define("ADD", 0)
            .define("OUTPUT", output)
            .define("SCALES_OF_X_AT", self.scales_of_x_at(columns));
        if kind == Input::Halves || each > 1 {
            kernel = kernel.define("EACH", each);
        }
        if kind == Input::Normed && padded(columns) > columns {
            kernel = kernel.define("PADDED", 1);
        }
        if each > 1 {
            kernel = kernel.define("WIDTH", columns).define("X_STRIDE", columns);
        }
        let bindings = self.norm_bindings(x, norm, (Memory::Prepared, 0))?;
        self.launch(out, kernel, bindings, [rows * each, 1, 1]);
        Ok(())
    }
}

/// What becomes of products.
#[derive(Clone, Copy)]
pub(super) struct End {
    /// Pairs of them are the factors of a gate.
    pub gate: Option<Gate>,
    /// They are added to what is there.
    pub add: bool,
}

impl End {
    fn define(self, kernel: Kernel) -> Kernel {
        match self.gate {
            Some(gate) => gated(gate, kernel.define("EPILOGUE", "EPILOGUE_GATE")),
            None => kernel.define("EPILOGUE", if self.add { "EPILOGUE_ADD" } else { "EPILOGUE_STORE" }),
        }
    }

    /// Rows of weights that a column of the output is made of.
    pub fn rows_a_column(self) -> usize {
        if self.gate.is_some() { 2 } else { 1 }
    }
}
