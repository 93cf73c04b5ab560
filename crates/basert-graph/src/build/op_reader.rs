//! Reads an op of an architecture file into one of the graph.

mod attributes;

use std::collections::BTreeSet;

use super::{Builder, MAX_WIDTH, Result};
use crate::GraphError;
use crate::expr::Value as Val;
use crate::graph::*;
use crate::op::{
    Activation, Affine, Alibi, Attention, Conv, Experts, Index, LinearAttention, Norm, Op, Reach, Route, Score, Temper,
};
use crate::weight::Weight;

/// One op of an architecture file, while it is being read.
pub(super) struct OpReader<'b, 'a, 't> {
    pub builder: &'b mut Builder<'a>,
    pub table: &'t toml::Table,
    /// Attributes that have been read.
    pub read: BTreeSet<&'t str>,
}

/// The most groups of experts.
const MAX_GROUPS: usize = 64;
/// The most tokens that a convolution sees.
const MAX_TAPS: usize = 16;
/// The most values of a running state.
const MAX_STATE: usize = 1 << 26;

/// An op, what it reads, and the shape of what it computes.
struct Read {
    op: Op,
    inputs: Vec<ValueId>,
    width: usize,
    rows: Rows,
}

impl<'t> OpReader<'_, '_, 't> {
    pub fn build(mut self) -> Result<()> {
        let name = self.required("op")?;
        let Read { op, inputs, width, rows } = match name {
            "embed" => self.embed()?,
            "norm" => self.norm()?,
            "linear" => self.linear()?,
            "route" => self.route()?,
            "combine" => self.combine()?,
            "rope" => self.rope()?,
            "store" => self.store()?,
            "attention" => self.attention()?,
            "conv" => self.conv()?,
            "linear_attention" => self.linear_attention()?,
            "affine" => self.affine()?,
            "activate" => self.activate()?,
            "mul" => self.mul()?,
            "add" => self.of_two(Op::Add)?,
            "clamped_swish" => self.of_two(Op::ClampedSwish)?,
            "scale" => {
                let factor = self.number("factor")? as f32;
                self.of_one(Op::Scale(factor))?
            }
            "temper" => self.temper()?,
            "weigh" => self.weigh()?,
            "slice" => self.slice()?,
            "select" => {
                let read = self.of_one(Op::Select)?;
                self.of_tokens(read.inputs[0])?;
                Read { rows: Rows::Wanted, ..read }
            }
            "soft_cap" => {
                let cap = self.number("cap")? as f32;
                self.of_one(Op::SoftCap(cap))?
            }
            "rope_cache" => {
                let what = "there is no op 'rope_cache' any more: say norm, rope and store, and name what is stored in \
                            `kv` of attention";
                return Err(self.builder.wrong(what.to_owned()));
            }
            "gate" => {
                let what = "there is no op 'gate' any more: say activate and mul, or clamped_swish";
                return Err(self.builder.wrong(what.to_owned()));
            }
            _ => {
                return Err(self.builder.wrong(format!(
                    "there is no op '{name}'; there are embed, norm, linear, route, combine, rope, store, attention, \
                     conv, linear_attention, affine, activate, mul, add, clamped_swish, scale, temper, weigh, slice, \
                     select, soft_cap"
                )));
            }
        };
        let out = self.required("out")?;
        if let Some(unknown) = self.table.keys().find(|key| !self.read.contains(key.as_str())) {
            return Err(self.wrong(format!("it has no attribute '{unknown}'")));
        }
        if width > MAX_WIDTH {
            return Err(self.wrong(format!("'{out}' would be {width} wide")));
        }
        let graph = &mut self.builder.graph;
        let id = ValueId(graph.values.len());
        let value_name = match self.builder.layer {
            Some(layer) => format!("{layer}.{out}"),
            None => out.to_owned(),
        };
        graph.values.push(Value { name: value_name, width, rows });
        graph.nodes.push(Node { op, inputs, out: id });
        self.builder.names.insert(out.to_owned(), id);
        Ok(())
    }

    /// An op of the value `in` whose result has the same shape.
    fn of_one(&mut self, op: Op) -> Result<Read> {
        let x = self.input("in")?;
        Ok(Read { op, inputs: vec![x], width: self.width(x), rows: self.rows(x) })
    }

    fn mul(&mut self) -> Result<Read> {
        let (a, b) = self.two()?;
        let (width, narrow) = (self.width(a), self.width(b));
        if self.rows(a) != self.rows(b) || !width.is_multiple_of(narrow.max(1)) {
            self.same_shape(a, b)?;
        }
        Ok(Read { op: Op::Mul, inputs: vec![a, b], width, rows: self.rows(a) })
    }

    /// An op of the two values of `in`, which have the same shape, as its result has.
    fn of_two(&mut self, op: Op) -> Result<Read> {
        let (a, b) = self.two()?;
        self.same_shape(a, b)?;
        Ok(Read { op, inputs: vec![a, b], width: self.width(a), rows: self.rows(a) })
    }

    /// The two values of `in`.
    fn two(&mut self) -> Result<(ValueId, ValueId)> {
        self.read.insert("in");
        let names = self.table.get("in").and_then(toml::Value::as_array);
        let names: Vec<_> = names.into_iter().flatten().filter_map(toml::Value::as_str).collect();
        let [a, b] = names[..] else { return Err(self.wrong("`in` does not name two values".to_owned())) };
        Ok((self.value_named(a)?, self.value_named(b)?))
    }

    fn embed(&mut self) -> Result<Read> {
        let weight = self.weight("weight")?;
        let scale = match self.table.get("scale") {
            Some(_) => self.number("scale")? as f32,
            None => 1.0,
        };
        let by = match self.optional("by")? {
            None => Index::Token,
            Some(Val::Text(by)) if by == "token" => Index::Token,
            Some(Val::Text(by)) if by == "position" => Index::Position,
            Some(other) => return Err(self.wrong(format!("`by` is {other}, neither 'token' nor 'position'"))),
        };
        let Weight { columns: width, cut, .. } = self.builder.graph.weights[weight.0];
        if cut.is_some() {
            return Err(self.wrong("its table has only some of the columns of a tensor".to_owned()));
        }
        Ok(Read { op: Op::Embed { weight, scale, by }, inputs: vec![], width, rows: Rows::Tokens })
    }

    fn norm(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let width = self.width(x);
        let group = match self.optional("group")? {
            Some(group) => self.builder.whole("the group of a norm", &group, 1, MAX_WIDTH)?,
            None => width,
        };
        if !width.is_multiple_of(group) {
            return Err(self.builder.fail(format!("a row of {width} values has no groups of {group} to norm")));
        }
        let weight = self.optional_weight("weight")?;
        let bias = self.optional_weight("bias")?;
        // Each group may have values of its own, or all the same.
        let mut length = group;
        for vector in weight.into_iter().chain(bias) {
            if self.builder.graph.weights[vector.0].len() == width {
                length = width;
            }
        }
        weight.into_iter().chain(bias).try_for_each(|vector| self.check_vector(vector, length))?;
        let centred = match self.value_or("kind", "norm_kind")? {
            Val::Text(kind) if kind == "rms" => false,
            Val::Text(kind) if kind == "layer" => true,
            other => return Err(self.wrong(format!("the norm kind {other} is not known; known are 'rms' and 'layer'"))),
        };
        let eps = self.number("eps")? as f32;
        let offset = self.number_or("offset", "norm_offset")? as f32;
        let norm = Norm { centred, group, weight, bias, eps, offset };
        Ok(Read { op: Op::Norm(norm), inputs: vec![x], width, rows: self.rows(x) })
    }

    fn linear(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let weight = self.weight("weight")?;
        let route = self.experts()?;
        let experts = route.map(|(_, experts)| experts);
        let of_weight = &self.builder.graph.weights[weight.0];
        let (rows, columns, tensor) = (of_weight.rows, of_weight.columns, of_weight.name());
        let (width, used) = (self.width(x), experts.map_or(1, |experts| experts.used));
        if columns != width && columns.checked_mul(used) != Some(width) {
            return Err(self.builder.fail(format!(
                "tensor '{tensor}' has {columns} columns, and its input '{}' is {width} wide",
                self.builder.graph.values[x.0].name,
            )));
        }
        let count = experts.map_or(1, |experts| experts.count);
        if !rows.is_multiple_of(count) {
            return Err(self
                .builder
                .fail(format!("tensor '{tensor}' has {rows} rows, which {count} experts cannot share")));
        }
        let bias = self.optional_weight("bias")?;
        if let Some(bias) = bias {
            let bias = &self.builder.graph.weights[bias.0];
            let values = bias.len();
            if values != rows {
                return Err(self
                    .builder
                    .fail(format!("tensor '{}' has {values} values, expected {rows}", bias.name())));
            }
        }
        let width = (rows / count).saturating_mul(used);
        let inputs = [x].into_iter().chain(route.map(|(route, _)| route)).collect();
        Ok(Read { op: Op::Linear { weight, bias, experts }, inputs, width, rows: self.rows(x) })
    }

    /// The route that an op names, if it does, and its experts.
    fn experts(&mut self) -> Result<Option<(ValueId, Experts)>> {
        let Some(route) = self.optional_input("route")? else { return Ok(None) };
        let x = self.input("in")?;
        if self.rows(x) != self.rows(route) {
            return Err(self.wrong("its input and the route have rows for different tokens".to_owned()));
        }
        match self.maker(route) {
            Some(Op::Route(of)) => Ok(Some((route, of.experts))),
            _ => Err(self.wrong("`route` does not name what an op 'route' computes".to_owned())),
        }
    }

    /// The op that computes a value.
    fn maker(&self, value: ValueId) -> Option<Op> {
        self.builder.graph.nodes.iter().find(|node| node.out == value).map(|node| node.op)
    }

    fn route(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let (count, used) = (self.width(x), self.count("used")?);
        if used > count {
            return Err(self.builder.fail(format!("a token is to use {used} of {count} experts")));
        }
        let score = match self.value_or("score", "route_score")? {
            Val::Text(score) if score == "softmax" => Score::Softmax,
            Val::Text(score) if score == "sigmoid" => Score::Sigmoid,
            other => {
                return Err(self
                    .builder
                    .fail(format!("the score {other} of experts is not known; known are 'softmax' and 'sigmoid'")));
            }
        };
        let bias = self.optional_weight("bias")?;
        if let Some(bias) = bias {
            self.check_vector(bias, count)?;
        }
        let groups = self.value_or("groups", "route_groups")?;
        let groups = self.builder.whole("the number of groups of experts", &groups, 1, count.min(MAX_GROUPS))?;
        let groups_used = self.value_or("groups_used", "route_groups_used")?;
        let groups_used = self.builder.whole("the number of groups of experts used", &groups_used, 1, groups)?;
        if !count.is_multiple_of(groups) || count / groups * groups_used < used {
            return Err(self.builder.fail(format!(
                "{used} of {count} experts are to be in {groups_used} of {groups} groups of the same size"
            )));
        }
        let normalised = self.value_or("normalised", "normalised")?;
        let normalised = self.truth("normalised", normalised)?;
        let scale = self.number_or("scale", "route_scale")? as f32;
        let experts = Experts { count, used };
        let route = Route { experts, score, bias, groups, groups_used, normalised, scale };
        Ok(Read { op: Op::Route(route), inputs: vec![x], width: 2 * used, rows: self.rows(x) })
    }

    fn combine(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let Some((route, experts)) = self.experts()? else {
            return Err(self.wrong("`route` is missing".to_owned()));
        };
        let width = self.width(x);
        if !width.is_multiple_of(experts.used) {
            return Err(self.wrong(format!("its input is {width} wide, which {} experts cannot share", experts.used)));
        }
        let weighted = self.optional_truth("weighted")?.unwrap_or(true);
        let (op, width) = (Op::Combine { experts, weighted }, width / experts.used);
        Ok(Read { op, inputs: vec![x, route], width, rows: self.rows(x) })
    }

    fn weigh(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let Some((route, experts)) = self.experts()? else {
            return Err(self.wrong("`route` is missing".to_owned()));
        };
        let width = self.width(x).saturating_mul(experts.used);
        Ok(Read { op: Op::Weigh(experts), inputs: vec![x, route], width, rows: self.rows(x) })
    }

    fn temper(&mut self) -> Result<Read> {
        let (factor, every) = (self.number("factor")? as f32, self.count("every")?);
        let offset = match self.optional("offset")? {
            None => 0,
            Some(offset) => self.builder.whole("offset", &offset, 0, MAX_WIDTH)?,
        };
        let read = self.of_one(Op::Temper(Temper { factor, every, offset }))?;
        self.of_tokens(read.inputs[0])?;
        Ok(read)
    }

    fn rope(&mut self) -> Result<Read> {
        let rope = match self.table.get("rope") {
            Some(_) => self.required("rope")?.to_owned(),
            None => match self.builder.parameters.named("rope")? {
                Some(Val::Text(name)) => name,
                _ => "main".to_owned(),
            },
        };
        self.read.insert("rope");
        let head_dim = self.count("head_dim")?;
        let rope = self.builder.rope(&rope)?;
        let rotated = 2 * self.builder.graph.ropes[rope.0].frequencies.len();
        if rotated > head_dim {
            return Err(self.builder.fail(format!("{rotated} dimensions are to be rotated of heads of {head_dim}")));
        }
        let read = self.of_one(Op::Rope { rope, head_dim })?;
        self.of_tokens(read.inputs[0])?;
        if !read.width.is_multiple_of(head_dim) {
            return Err(self.wrong(format!("its input is {} wide, not whole heads of {head_dim}", read.width)));
        }
        Ok(read)
    }

    fn store(&mut self) -> Result<Read> {
        let (k, v) = (self.input("k")?, self.input("v")?);
        let (kv_heads, head_dim) = (self.count("kv_heads")?, self.count("head_dim")?);
        for (name, value) in [("k", k), ("v", v)] {
            self.of_tokens(value)?;
            self.check_heads(name, value, kv_heads, head_dim)?;
        }
        let cache = self.state(State::Paged(Cache { kv_heads, head_dim }));
        Ok(Read { op: Op::Store(cache), inputs: vec![k, v], width: 0, rows: Rows::Tokens })
    }

    /// A new state of the graph.
    fn state(&mut self, state: State) -> StateId {
        self.builder.graph.states.push(state);
        StateId(self.builder.graph.states.len() - 1)
    }

    fn conv(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        self.of_tokens(x)?;
        let (weight, width) = (self.weight("weight")?, self.width(x));
        let of_weight = &self.builder.graph.weights[weight.0];
        let (rows, taps) = (of_weight.rows, of_weight.columns);
        if rows != width || taps > MAX_TAPS {
            return Err(self.builder.fail(format!(
                "tensor '{}' has shape [{rows}, {taps}], expected [{width}, a number up to {MAX_TAPS}]",
                of_weight.name()
            )));
        }
        let bias = self.optional_weight("bias")?;
        if let Some(bias) = bias {
            self.check_vector(bias, width)?;
        }
        let state = self.state(State::Running((taps - 1) * width));
        Ok(Read { op: Op::Conv(Conv { weight, bias, state }), inputs: vec![x], width, rows: Rows::Tokens })
    }

    fn linear_attention(&mut self) -> Result<Read> {
        let (q, k, v) = (self.input("q")?, self.input("k")?, self.input("v")?);
        let decay = self.input("decay")?;
        let beta = self.optional_input("beta")?;
        let (heads, key_heads) = (self.count("heads")?, self.count("key_heads")?);
        let inputs: Vec<_> = [q, k, v, decay].into_iter().chain(beta).collect();
        inputs.iter().try_for_each(|&input| self.of_tokens(input))?;
        self.same_shape(q, k)?;
        if !heads.is_multiple_of(key_heads) {
            return Err(self.builder.fail(format!("{key_heads} heads of keys cannot be shared by {heads} heads")));
        }
        let (key_dim, value_dim) = (self.width(k) / key_heads, self.width(v) / heads);
        self.check_heads("k", k, key_heads, key_dim)?;
        self.check_heads("v", v, heads, value_dim)?;
        let by_row = self.width(decay) != heads;
        self.check_heads("decay", decay, heads, if by_row { key_dim } else { 1 })?;
        if let Some(beta) = beta {
            self.check_heads("beta", beta, heads, 1)?;
        }
        let values = heads.saturating_mul(key_dim).saturating_mul(value_dim);
        if values > MAX_STATE || values == 0 {
            return Err(self.builder.fail(format!("a state of {heads} matrices of {key_dim} × {value_dim} values")));
        }
        let delta = self.optional_truth("delta")?.ok_or_else(|| self.wrong("`delta` is missing".to_owned()))?;
        let tiled = self.optional_truth("tiled")?.unwrap_or(false);
        let scale = match self.table.get("scale") {
            Some(_) => self.number("scale")? as f32,
            None => 1.0,
        };
        let state = self.state(State::Running(values));
        let op = LinearAttention { state, heads, key_heads, key_dim, value_dim, tiled, by_row, delta, scale };
        Ok(Read { op: Op::LinearAttention(op), inputs, width: heads * value_dim, rows: Rows::Tokens })
    }

    fn affine(&mut self) -> Result<Read> {
        let x = self.input("in")?;
        let (weight, bias) = (self.optional_weight("weight")?, self.optional_weight("bias")?);
        let decay = self.optional_truth("decay")?.unwrap_or(false);
        let len = |vector: WeightId| self.builder.graph.weights[vector.0].len();
        let width = self.width(x).max(weight.map_or(0, len));
        for vector in weight.into_iter().chain(bias) {
            if !width.is_multiple_of(len(vector).max(1)) {
                return Err(self.builder.fail(format!(
                    "tensor '{}' has {} values, which {width} columns cannot share",
                    self.builder.graph.weights[vector.0].name(),
                    len(vector)
                )));
            }
        }
        if !width.is_multiple_of(self.width(x)) {
            return Err(self.wrong(format!("its input is {} wide, which {width} columns cannot share", self.width(x))));
        }
        let op = Op::Affine(Affine { weight, bias, decay });
        Ok(Read { op, inputs: vec![x], width, rows: self.rows(x) })
    }

    fn attention(&mut self) -> Result<Read> {
        let q = self.input("in")?;
        self.of_tokens(q)?;
        let kv = self.required("kv")?;
        let kv = self.any_named(kv)?;
        let Some(Op::Store(cache)) = self.maker(kv) else {
            return Err(self.wrong("`kv` does not name what an op 'store' stores".to_owned()));
        };
        let Cache { kv_heads, head_dim } = self.builder.graph.cache(cache);
        let heads = self.count("heads")?;
        self.check_heads("q", q, heads, head_dim)?;
        if heads % kv_heads != 0 {
            return Err(self.builder.fail(format!("{heads} heads of queries cannot share {kv_heads} heads of keys")));
        }
        let scale = self.number_or("scale", "attention_scale")? as f32;
        let window = self.tokens_or("window", "attention_window")?;
        let chunk = self.tokens_or("chunk", "attention_chunk")?;
        let causal = self.value_or("causal", "attention_causal")?;
        let skipped = self.tokens_or("skipped", "attention_skipped")?;
        let reach = match (window, chunk, self.truth("causal", causal)?) {
            (0, 0, true) if skipped > 0 => Reach::After(skipped),
            _ if skipped > 0 => {
                return Err(self.wrong("it skips tokens, and has a window, or a chunk, or is not causal".to_owned()));
            }
            (0, 0, true) => Reach::All,
            (window, 0, true) => Reach::Window(window),
            (0, chunk, true) => Reach::Chunk(chunk),
            (0, 0, false) => Reach::Everything,
            (window, 0, false) => Reach::Around(window),
            (0, _, false) => return Err(self.wrong("it has chunks, and is not causal".to_owned())),
            _ => return Err(self.wrong("it has both a window and a chunk".to_owned())),
        };
        let cap = self.number_or("cap", "attention_cap")? as f32;
        let sinks = self.optional_weight("sinks")?;
        if let Some(sinks) = sinks {
            self.check_vector(sinks, heads)?;
        }
        let most = self.number_or("alibi", "attention_alibi")? as f32;
        let (cap, alibi) = ((cap > 0.0).then_some(cap), (most > 0.0).then_some(Alibi { most }));
        let attention = Attention { cache, heads, scale, reach, cap, alibi, sinks };
        Ok(Read { op: Op::Attention(attention), inputs: vec![q, kv], width: self.width(q), rows: self.rows(q) })
    }

    fn activate(&mut self) -> Result<Read> {
        let activation = match self.value_or("kind", "activation")? {
            Val::Text(name) => match name.as_str() {
                "silu" | "swish" => Activation::Silu,
                "gelu" => Activation::Gelu,
                "gelu_pytorch_tanh" | "gelu_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
                "quick_gelu" => Activation::GeluSigmoid,
                "relu" => Activation::Relu,
                "relu2" => Activation::ReluSquared,
                "sigmoid" => Activation::Sigmoid,
                "tanh" => Activation::Tanh,
                "softplus" => Activation::Softplus,
                "xielu" => Activation::Xielu {
                    above: self.number_or("above", "xielu_above")? as f32,
                    below: self.number_or("below", "xielu_below")? as f32,
                    slope: self.number_or("slope", "xielu_slope")? as f32,
                    eps: self.number_or("eps", "xielu_eps")? as f32,
                },
                _ => return Err(self.unknown_activation(&Val::Text(name))),
            },
            other => return Err(self.unknown_activation(&other)),
        };
        self.of_one(Op::Activate(activation))
    }

    fn unknown_activation(&self, found: &Val) -> GraphError {
        self.builder.fail(format!(
            "the activation {found} is not known; known are silu, gelu, gelu_pytorch_tanh, quick_gelu, relu, relu2, \
             sigmoid, tanh, softplus and xielu"
        ))
    }

    fn slice(&mut self) -> Result<Read> {
        let first = self.value_or("first", "first")?;
        let first = self.builder.whole("first", &first, 0, MAX_WIDTH)?;
        let width = self.count("width")?;
        let read = self.of_one(Op::Slice(first))?;
        if first + width > read.width {
            let what = format!("its input is {} wide, and {width} columns from {first} on are wanted", read.width);
            return Err(self.wrong(what));
        }
        Ok(Read { width, ..read })
    }
}
