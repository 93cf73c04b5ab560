//! Mixtures of experts: routing, products with the matrices of chosen experts, and their sum.

use basert_graph::{Experts, Route, Score};
use basert_plan::{DeviceError, Gate, MatrixId, PlanNode};

use super::linear::{End, Input, RESULTS};
use super::{Float, Lowered, Lowering, Memory, THREADGROUP_BYTES};
use crate::Kernel;
use crate::layout::padded;
use crate::tuning::{Gemm, Product, STRIP};
use crate::weights::Vector;

/// Tokens up to which experts have few uses each, if they are so few on average: tiles of them would be mostly empty.
const FEW_TOKENS: usize = 64;
const FEW_USES: usize = 6;

impl Lowering<'_> {
    pub(super) fn route(
        &mut self,
        node: &PlanNode,
        route: &Route,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, simdgroups) = (node.inputs[0], 4);
        let kernel = Kernel::new("moe/route.metal", "route", simdgroups as u32 * 32)
            .define("EXPERTS", route.experts.count)
            .define("USED", route.experts.used)
            .define("SIGMOID", u32::from(route.score == Score::Sigmoid))
            .define("HAS_BIAS", u32::from(route.bias.is_some()))
            .define("GROUPS", route.groups)
            .define("GROUPS_USED", route.groups_used)
            .define("NORMALISED", u32::from(route.normalised))
            .define("FACTOR", Float(route.scale))
            .define("X_STRIDE", self.place(x).stride)
            .define("OUT_STRIDE", self.place(node.out).stride)
            .define("COUNT", count);
        let bias = self.vector(route.bias.map(Vector::plain))?;
        let bindings = vec![self.at(x), bias, self.at(node.out), (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [rows.div_ceil(simdgroups), 1, 1]);
        Ok(())
    }

    pub(super) fn combine(
        &mut self,
        node: &PlanNode,
        experts: Experts,
        weighted: bool,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, route) = (node.inputs[0], node.inputs[1]);
        let (place, threads) = (self.place(node.out), 256);
        let kernel = Kernel::new("moe/combine.metal", "combine", threads)
            .define("WIDTH", place.width)
            .define("USED", experts.used)
            .define("WEIGHTED", u32::from(weighted))
            .define("X_STRIDE", self.place(x).stride)
            .define("ROUTE_STRIDE", self.place(route).stride)
            .define("OUT_STRIDE", place.stride)
            .define("COUNT", count)
            .define("ADD", u32::from(node.onto.is_some()));
        let bindings = vec![self.at(x), self.at(route), self.at(node.out), (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
        Ok(())
    }

    pub(super) fn weigh(
        &mut self,
        node: &PlanNode,
        experts: Experts,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, route, threads) = (node.inputs[0], node.inputs[1], 256);
        let (from, place) = (self.place(x), self.place(node.out));
        let kernel = Kernel::new("moe/weigh.metal", "weigh", threads)
            .define("WIDTH", from.width)
            .define("USED", experts.used)
            .define("X_STRIDE", from.stride)
            .define("ROUTE_STRIDE", self.place(route).stride)
            .define("OUT_STRIDE", place.stride)
            .define("COUNT", count);
        let bindings = vec![self.at(x), self.at(route), self.at(node.out), (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
        Ok(())
    }

    /// A linear op of the experts that each token uses: a product for each use, for each expert where these have few uses, or
    /// for each tile of uses of the same expert.
    pub(super) fn experts(
        &mut self,
        node: &PlanNode,
        matrices: &[MatrixId],
        experts: Experts,
        gate: Option<Gate>,
        (rows, count): (usize, &'static str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, of_route, value, end) = (node.inputs[0], node.inputs[1], node.out, End { gate, add: false });
        let (from, place, uses) = (self.place(x), self.place(value), rows * experts.used);
        for &id in matrices {
            let matrix = &self.plan.matrices[id.0];
            let (columns, of_w) = (matrix.columns, matrix.rows / experts.count);
            // Where each use has an input of its own, those of a token lie side by side, as the outputs do.
            let of_uses = from.width != columns;
            if place.stride != place.width || (of_uses && from.stride != from.width) {
                return Err(self.unsupported("results of experts among other values".to_owned()));
            }
            let [w, bias] = self.matrix_at(id)?;
            let (route, route_stride) = (self.at(of_route), self.place(of_route).stride);
            let macros = |kernel: Kernel| {
                kernel
                    .define("EXPERTS", experts.count)
                    .define("USED", experts.used)
                    .define("ROUTE_STRIDE", route_stride)
                    .define("COUNT", count)
            };
            let inputs = if of_uses { experts.used } else { 1 };
            let few = rows <= FEW_TOKENS && uses <= FEW_USES * experts.count;
            let (kernel, bindings, groups) = if rows <= self.tuning.few_tokens {
                let fits = columns + columns / 8 + RESULTS <= THREADGROUP_BYTES;
                let integers = self.tuning.integer_dots && !matrix.format.is_float() && fits;
                let kind = if integers { Input::QuantisedHere } else { Input::Floats };
                let (kernel, each) = self.gemv(Product { tokens: 1, rows: of_w, columns }, kind);
                let (input, stride) = match of_uses {
                    _ if padded(columns) > columns => {
                        self.prepare(x, None, Input::Normed, (rows, count), inputs, out)?;
                        out.barrier = true;
                        ((Memory::Prepared, 0), padded(columns))
                    }
                    true => (self.at(x), columns),
                    false => (self.at(x), from.stride),
                };
                let kernel = macros(kernel).define("TOKENS", 1).define("X_STRIDE", stride).define("NORM", 0);
                let (step, norm) = ((Memory::Step, 0), (Memory::Weights, 0));
                let bindings = vec![w, input, self.at(value), bias, norm, step, route];
                (kernel, bindings, [of_w.div_ceil(each), uses, 1])
            } else if few {
                // The experts together fill a device.
                let product = Product { tokens: self.tuning.few_tokens, rows: matrix.rows, columns };
                self.prepare(x, None, Input::Halves, (rows, count), inputs, out)?;
                out.barrier = true;
                let Gemm { n, simdgroups, resident, .. } = self.tuning.gemm(product);
                let most = (self.tuning.threadgroup_bytes - RESULTS) / (8 * STRIP * size_of::<half::f16>());
                let strips = columns.div_ceil(STRIP);
                let kernel = Kernel::new("linear/experts.metal", "experts", simdgroups as u32 * 32)
                    .define("PARTS", n / simdgroups / 16)
                    .define("DEPTH", strips.div_ceil(strips.div_ceil(most)))
                    .define("MOST_USES", FEW_TOKENS)
                    .define("RESIDENT", resident);
                let bindings = vec![w, (Memory::Prepared, 0), self.at(value), bias, (Memory::Step, 0), route];
                (macros(kernel), bindings, [of_w.div_ceil(n), experts.count, 1])
            } else {
                let each = uses.div_ceil(experts.count);
                let (kernel, Gemm { m, n, .. }) = self.gemm(Product { tokens: each, rows: of_w, columns });
                let most = |uses: usize| uses / m + experts.count.min(uses);
                let tiles = most(uses);
                // After as many tiles as the largest step has, lest these be other kernels for each size of a step.
                let numbers = 4 + 3 * most(self.plan.limits.tokens * experts.used);
                let sorted = |kernel: Kernel| {
                    let kernel = macros(kernel).define("TILE_M", m);
                    kernel.define("USES_TILES", 4).define("USES_NUMBERS", numbers)
                };
                let sort = sorted(Kernel::new("moe/sort.metal", "sort_uses", 1024));
                let kernel = sorted(kernel);
                self.partial_bytes = self.partial_bytes.max((numbers + uses) * size_of::<u32>());
                self.launch(out, sort, vec![route, (Memory::Partial, 0), (Memory::Step, 0)], [1, 1, 1]);
                out.barrier = false;
                self.prepare(x, None, Input::Halves, (rows, count), inputs, out)?;
                out.barrier = true;
                let (step, input) = ((Memory::Step, 0), (Memory::Prepared, 0));
                let bindings = vec![w, input, self.at(value), bias, step, (Memory::Partial, 0)];
                (kernel, bindings, [tiles, of_w.div_ceil(n), 1])
            };
            let width = of_w / end.rows_a_column();
            let kernel =
                self.product(kernel, id, of_w, end).define("OUT_STRIDE", width).define("X_OF_USES", u32::from(of_uses));
            self.launch(out, kernel, bindings, groups);
        }
        Ok(())
    }
}
