//! Embeddings, norms, and functions of single values.

use basert_graph::{Activation, Affine, Index, Norm, Temper, ValueId, WeightId};
use basert_plan::{DeviceError, Gate, PlanNode};

use super::after::After;
use super::{Float, Lowered, Lowering, Memory};
use crate::Kernel;
use crate::weights::{Placed, Vector};

/// A function of the values of one input, or of two, or a choice of them.
#[derive(Clone, Copy)]
pub(super) enum Function {
    Add,
    Mul,
    Gate(Gate),
    Activate(Activation),
    Scale(f32),
    SoftCap(f32),
    Temper(Temper),
    Select,
    /// Columns from this one on.
    Slice(usize),
}

/// The name of an activation in `common/activation.h`.
pub(super) fn name_of(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::GeluSigmoid => "gelu_sigmoid",
        Activation::Relu => "relu",
        Activation::ReluSquared => "relu_squared",
        Activation::Sigmoid => "sigmoid",
        Activation::Tanh => "tanh_of",
        Activation::Softplus => "softplus",
        Activation::Xielu { .. } => "xielu",
    }
}

/// The kernel with an activation, and what that needs besides.
fn activation(activation: Activation, mut kernel: Kernel) -> Kernel {
    if let Activation::Xielu { above, below, slope, eps } = activation {
        kernel = kernel.define("XIELU_ABOVE", Float(above)).define("XIELU_BELOW", Float(below));
        kernel = kernel.define("XIELU_SLOPE", Float(slope)).define("XIELU_EPS", Float(eps));
    }
    kernel.define("ACTIVATION", name_of(activation))
}

/// The kernel with the macros of a gate.
pub(super) fn gated(gate: Gate, kernel: Kernel) -> Kernel {
    match gate {
        Gate::Product(of) => activation(of, kernel).define("OTHER", "same"),
        Gate::ClampedSwish => kernel.define("ACTIVATION", "clamped_swish").define("OTHER", "clamped_plus_one"),
    }
}

impl Lowering<'_> {
    pub(super) fn embed(
        &mut self,
        node: &PlanNode,
        weight: WeightId,
        scale: f32,
        by: Index,
        rows: usize,
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let Some(Placed { layout, offset, .. }) = self.weights.embedding(weight) else {
            return Err(self.unsupported("an embedding without a matrix".to_owned()));
        };
        let table = &self.plan.graph.weights[weight.0];
        let kernel = Kernel::new("elementwise/embed.metal", "embed", 128)
            .define("COLUMNS", table.columns)
            .define("ROWS_OF_W", table.rows)
            .define("BY_POSITION", u32::from(by == Index::Position))
            .define("BY_SEGMENT", u32::from(by == Index::Segment))
            .define("VOCABULARY", if self.plan.graph.segments > 1 { self.plan.graph.vocabulary } else { 0 })
            .define("OUT_STRIDE", self.place(node.out).stride)
            .define("SCALE", Float(scale));
        let bindings = vec![(Memory::Weights, *offset), self.at(node.out), (Memory::Step, 0)];
        let kernel = layout.define(kernel);
        self.launch(out, kernel, bindings, [rows, 1, 1]);
        Ok(())
    }

    pub(super) fn norm(
        &mut self,
        node: &PlanNode,
        norm: &Norm,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, place) = (node.inputs[0], self.place(node.out));
        let kernel = self.norm_kernel(x, Some(norm), count).define("OUT_STRIDE", place.stride);
        let kernel = kernel.define("ADD", u32::from(node.onto.is_some())).define("OUTPUT", "OUTPUT_FLOATS");
        let mut bindings = self.norm_bindings(x, Some(norm), self.at(node.out))?;
        bindings.splice(bindings.len() - 2.., out.after.bindings());
        let kernel = out.after.define(kernel);
        self.launch(out, kernel, bindings, [rows * (place.width / norm.group), 1, 1]);
        Ok(())
    }

    /// The kernel that norms or copies rows of `x`, without the macros of its output.
    pub(super) fn norm_kernel(&self, x: ValueId, norm: Option<&Norm>, count: &str) -> Kernel {
        let place = self.place(x);
        let group = norm.map_or(place.width, |norm| norm.group);
        let length = |weight: Option<WeightId>| weight.map(|weight| self.plan.graph.weights[weight.0].len());
        let of_groups = norm.and_then(|norm| length(norm.weight.or(norm.bias))).is_some_and(|length| length > group);
        let threads = group.div_ceil(8).next_multiple_of(32).clamp(32, 512) as u32;
        let kernel = Kernel::new("norm/norm.metal", "row_norm", threads)
            .define("WIDTH", group)
            .define("GROUPS", place.width / group)
            .define("OF_GROUPS", u32::from(of_groups))
            .define("X_STRIDE", place.stride)
            .define("COUNT", count)
            .define("NORM", u32::from(norm.is_some()))
            .define("CENTRED", u32::from(norm.is_some_and(|norm| norm.centred)))
            .define("HAS_WEIGHT", u32::from(norm.is_some_and(|norm| norm.weight.is_some())))
            .define("HAS_BIAS", u32::from(norm.is_some_and(|norm| norm.bias.is_some())));
        norm.map_or(kernel.clone(), |norm| kernel.define("NORM_EPS", Float(norm.eps)))
    }

    /// Its arguments.
    pub(super) fn norm_bindings(
        &self,
        x: ValueId,
        norm: Option<&Norm>,
        to: (Memory, usize),
    ) -> Result<Vec<(Memory, usize)>, DeviceError> {
        let bias = norm.and_then(|norm| norm.bias).map(Vector::plain);
        let bindings = [self.at(x), self.norm_at(norm)?, to, self.vector(bias)?, (Memory::Step, 0)];
        Ok(bindings.into_iter().chain(After::default().bindings()).collect())
    }

    /// The place of a norm's weights.
    pub(super) fn norm_at(&self, norm: Option<&Norm>) -> Result<(Memory, usize), DeviceError> {
        let weights = norm.and_then(|norm| Some(Vector::Values { weight: norm.weight?, offset: norm.offset }));
        self.vector(weights)
    }

    pub(super) fn elementwise(
        &mut self,
        node: &PlanNode,
        function: Function,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (a, b) = (node.inputs[0], node.inputs.get(1).copied().unwrap_or(node.inputs[0]));
        let (place, threads) = (self.place(node.out), 256);
        let kernel = Kernel::new("elementwise/elementwise.metal", "elementwise", threads)
            .define("WIDTH", place.width)
            .define("A_STRIDE", self.place(a).stride)
            .define("B_STRIDE", self.place(b).stride)
            .define("B_TIMES", place.width / self.place(b).width.max(1))
            .define("OUT_STRIDE", place.stride)
            .define("COUNT", count);
        let named = |kernel: Kernel, name: &str| kernel.define("FUNCTION", name);
        let kernel = match function {
            Function::Add => named(kernel, "FUNCTION_ADD"),
            Function::Mul => named(kernel, "FUNCTION_MUL"),
            Function::Gate(gate) => gated(gate, named(kernel, "FUNCTION_GATE")),
            Function::Activate(of) => activation(of, named(kernel, "FUNCTION_ACTIVATE")),
            Function::Scale(factor) => named(kernel, "FUNCTION_SCALE").define("FACTOR", Float(factor)),
            Function::SoftCap(cap) => named(kernel, "FUNCTION_SOFT_CAP").define("CAP", Float(cap)),
            Function::Temper(Temper { factor, every, offset }) => named(kernel, "FUNCTION_TEMPER")
                .define("FACTOR", Float(factor))
                .define("EVERY", every)
                .define("OFFSET", offset),
            Function::Select => named(kernel, "FUNCTION_SELECT"),
            Function::Slice(first) => named(kernel, "FUNCTION_SLICE").define("FIRST", first),
        };
        let kernel = out.after.define(kernel);
        let bindings = [self.at(a), self.at(b), self.at(node.out), (Memory::Step, 0)];
        let bindings = bindings.into_iter().chain(out.after.bindings()).collect();
        self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
        Ok(())
    }

    pub(super) fn affine(
        &mut self,
        node: &PlanNode,
        how: &Affine,
        (rows, count): (usize, &str),
        out: &mut Lowered,
    ) -> Result<(), DeviceError> {
        let (x, place, threads) = (self.place(node.inputs[0]), self.place(node.out), 256);
        let each = |vector: Option<WeightId>| match vector {
            Some(vector) => place.width / self.plan.graph.weights[vector.0].len(),
            None => 1,
        };
        let kernel = Kernel::new("elementwise/affine.metal", "affine", threads)
            .define("WIDTH", place.width)
            .define("X_EACH", place.width / x.width)
            .define("WEIGHT_EACH", each(how.weight))
            .define("BIAS_EACH", each(how.bias))
            .define("HAS_WEIGHT", u32::from(how.weight.is_some()))
            .define("HAS_BIAS", u32::from(how.bias.is_some()))
            .define("X_STRIDE", x.stride)
            .define("OUT_STRIDE", place.stride)
            .define("COUNT", count);
        let weight = self.vector(how.weight.map(if how.decay { Vector::Decay } else { Vector::plain }))?;
        let bias = self.vector(how.bias.map(Vector::plain))?;
        let kernel = out.after.define(kernel);
        let bindings = [self.at(node.inputs[0]), weight, bias, self.at(node.out), (Memory::Step, 0)];
        let bindings = bindings.into_iter().chain(out.after.bindings()).collect();
        self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
        Ok(())
    }
}
