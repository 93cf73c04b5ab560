//! Reads an op of an architecture file into one of the graph.

use std::collections::BTreeSet;

use super::{Builder, MAX_WIDTH, Result};
use crate::GraphError;
use crate::expr::Value as Val;
use crate::graph::*;

/// One op of an architecture file, while it is being read.
pub(super) struct OpReader<'b, 'a, 't> {
    pub builder: &'b mut Builder<'a>,
    pub table: &'t toml::Table,
    /// Attributes that have been read.
    pub read: BTreeSet<&'t str>,
}

impl<'t> OpReader<'_, '_, 't> {
    pub fn build(mut self) -> Result<()> {
        let name = self.required("op")?;
        let (op, width, rows) = match name {
            "embed" => self.embed()?,
            "norm" => self.norm()?,
            "linear" => self.linear()?,
            "route" => self.route()?,
            "combine" => self.combine()?,
            "rope_cache" => self.rope_cache()?,
            "attention" => self.attention()?,
            "gate" => self.gate()?,
            "add" => self.add()?,
            "select" => {
                let x = self.input("in")?;
                (Op::Select { x }, self.width(x), Rows::Wanted)
            }
            "soft_cap" => {
                let x = self.input("in")?;
                let cap = self.number("cap")? as f32;
                (Op::SoftCap { x, cap }, self.width(x), self.rows(x))
            }
            _ => {
                return Err(self.builder.wrong(format!(
                    "there is no op '{name}'; there are embed, norm, linear, route, combine, rope_cache, attention, \
                     gate, add, select, soft_cap"
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
        graph.nodes.push(Node { op, out: id });
        self.builder.names.insert(out.to_owned(), id);
        Ok(())
    }

    fn embed(&mut self) -> Result<(Op, usize, Rows)> {
        let weight = self.weight("weight")?;
        let scale = match self.table.get("scale") {
            Some(_) => self.number("scale")? as f32,
            None => 1.0,
        };
        Ok((Op::Embed { weight, scale }, self.builder.graph.weights[weight.0].columns, Rows::Tokens))
    }

    fn norm(&mut self) -> Result<(Op, usize, Rows)> {
        let x = self.input("in")?;
        let weight = self.weight("weight")?;
        let bias = self.optional_weight("bias")?;
        if let Some(bias) = bias {
            self.check_vector(bias, self.width(x))?;
        }
        let centred = match self.value_or("kind", "norm_kind")? {
            Val::Text(kind) if kind == "rms" => false,
            Val::Text(kind) if kind == "layer" => true,
            other => return Err(self.wrong(format!("the norm kind {other} is not known; known are 'rms' and 'layer'"))),
        };
        let norm = Norm { centred, bias, ..self.norm_of(weight, self.width(x))? };
        Ok((Op::Norm { x, norm }, self.width(x), self.rows(x)))
    }

    fn linear(&mut self) -> Result<(Op, usize, Rows)> {
        let x = self.input("in")?;
        let weight = self.weight("weight")?;
        let experts = self.experts()?;
        let Weight { rows, columns, ref tensor, .. } = self.builder.graph.weights[weight.0];
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
            let Weight { rows: a, columns: b, ref tensor, .. } = self.builder.graph.weights[bias.0];
            if a * b != rows {
                return Err(self.builder.fail(format!("tensor '{tensor}' has {} values, expected {rows}", a * b)));
            }
        }
        let out = (rows / count).saturating_mul(used);
        Ok((Op::Linear { x, weight, bias, experts }, out, self.rows(x)))
    }

    /// The experts that an op uses, if it names a route.
    fn experts(&mut self) -> Result<Option<Experts>> {
        self.read.insert("route");
        if !self.table.contains_key("route") {
            return Ok(None);
        }
        let route = self.input("route")?;
        let nodes = &self.builder.graph.nodes;
        let Some(&Op::Route { x, used, .. }) = nodes.iter().find(|node| node.out == route).map(|node| &node.op) else {
            return Err(self.wrong("`route` does not name what an op 'route' computes".to_owned()));
        };
        Ok(Some(Experts { route, count: self.width(x), used }))
    }

    fn route(&mut self) -> Result<(Op, usize, Rows)> {
        let x = self.input("in")?;
        let (count, used) = (self.width(x), self.count("used")?);
        if used > count {
            return Err(self.builder.fail(format!("a token is to use {used} of {count} experts")));
        }
        let normalised = match self.value_or("normalised", "normalised")? {
            Val::Bool(normalised) => normalised,
            other => return Err(self.wrong(format!("`normalised` is {other}, neither true nor false"))),
        };
        Ok((Op::Route { x, used, normalised }, 2 * used, self.rows(x)))
    }

    fn combine(&mut self) -> Result<(Op, usize, Rows)> {
        let x = self.input("in")?;
        let Some(experts) = self.experts()? else { return Err(self.wrong("`route` is missing".to_owned())) };
        let width = self.width(x);
        if !width.is_multiple_of(experts.used) {
            return Err(self.wrong(format!("its input is {width} wide, which {} experts cannot share", experts.used)));
        }
        Ok((Op::Combine { x, experts }, width / experts.used, self.rows(x)))
    }

    fn rope_cache(&mut self) -> Result<(Op, usize, Rows)> {
        let (q, k, v) = (self.input("q")?, self.input("k")?, self.input("v")?);
        let heads = self.count("heads")?;
        let kv_heads = self.count("kv_heads")?;
        let head_dim = self.count("head_dim")?;
        for (name, value, heads) in [("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)] {
            self.check_heads(name, value, heads, head_dim)?;
        }
        let mut head_norm = |attribute| -> Result<Option<Norm>> {
            match self.optional_weight(attribute)? {
                Some(weight) => Ok(Some(self.norm_of(weight, head_dim)?)),
                None => Ok(None),
            }
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let rope = match self.table.get("rope") {
            Some(_) => self.required("rope")?.to_owned(),
            None => match self.builder.parameters.named("rope")? {
                Some(Val::Text(name)) => name,
                _ => return Err(self.wrong("no `rope` says which rotary embedding".to_owned())),
            },
        };
        self.read.insert("rope");
        let rope = self.builder.rope(&rope)?;
        let rotated = 2 * self.builder.graph.ropes[rope.0].frequencies.len();
        if rotated > head_dim {
            return Err(self.builder.fail(format!("{rotated} dimensions are to be rotated of heads of {head_dim}")));
        }
        let cache = CacheId(self.builder.graph.caches.len());
        self.builder.graph.caches.push(Cache { kv_heads, head_dim });
        Ok((Op::RopeCache { q, k, v, q_norm, k_norm, rope, cache }, self.width(q), self.rows(q)))
    }

    fn attention(&mut self) -> Result<(Op, usize, Rows)> {
        let q = self.input("in")?;
        let Some(last) = self.builder.graph.caches.len().checked_sub(1) else {
            return Err(self.wrong("no rope_cache comes before it".to_owned()));
        };
        let cache = CacheId(last);
        let Cache { kv_heads, head_dim } = self.builder.graph.caches[last];
        let heads = self.count("heads")?;
        self.check_heads("q", q, heads, head_dim)?;
        if heads % kv_heads != 0 {
            return Err(self.builder.fail(format!("{heads} heads of queries cannot share {kv_heads} heads of keys")));
        }
        let scale = self.number_or("scale", "attention_scale")? as f32;
        let window = self.number_or("window", "attention_window")?;
        let window = self.builder.whole("the attention window", &Val::Number(window), 0, usize::MAX >> 12)?;
        let cap = self.number_or("cap", "attention_cap")? as f32;
        let sinks = self.optional_weight("sinks")?;
        if let Some(sinks) = sinks {
            self.check_vector(sinks, heads)?;
        }
        let op = Op::Attention {
            q,
            cache,
            heads,
            scale,
            window: (window > 0).then_some(window),
            cap: (cap > 0.0).then_some(cap),
            sinks,
        };
        Ok((op, self.width(q), self.rows(q)))
    }

    fn gate(&mut self) -> Result<(Op, usize, Rows)> {
        let (gate, up) = (self.input("gate")?, self.input("up")?);
        self.same_shape(gate, up)?;
        self.read.insert("activation");
        let activation = match self.value_or("activation", "activation")? {
            Val::Text(name) if name == "silu" => Activation::Silu,
            Val::Text(name) if name == "gelu_pytorch_tanh" || name == "gelu_tanh" => Activation::GeluTanh,
            Val::Text(name) if name == "clamped_swish" => Activation::ClampedSwish,
            other => {
                return Err(self.builder.fail(format!(
                    "the activation {other} is not known; known are silu, gelu_pytorch_tanh and clamped_swish"
                )));
            }
        };
        Ok((Op::Gate { gate, up, activation }, self.width(gate), self.rows(gate)))
    }

    fn add(&mut self) -> Result<(Op, usize, Rows)> {
        self.read.insert("in");
        let names = self.table.get("in").and_then(toml::Value::as_array);
        let names: Vec<_> = names.into_iter().flatten().filter_map(toml::Value::as_str).collect();
        let [a, b] = names[..] else { return Err(self.wrong("`in` does not name two values".to_owned())) };
        let (a, b) = (self.value_named(a)?, self.value_named(b)?);
        self.same_shape(a, b)?;
        Ok((Op::Add { a, b }, self.width(a), self.rows(a)))
    }

    pub fn wrong(&self, what: String) -> GraphError {
        let op = self.table.get("op").and_then(toml::Value::as_str).unwrap_or("?");
        let out = self.table.get("out").and_then(toml::Value::as_str).unwrap_or("?");
        self.builder.wrong(format!("op '{op}' that computes '{out}': {what}"))
    }

    fn required(&mut self, attribute: &'static str) -> Result<&'t str> {
        self.read.insert(attribute);
        let value = self.table.get(attribute).and_then(toml::Value::as_str);
        value.ok_or_else(|| self.wrong(format!("`{attribute}` is missing or is not text")))
    }

    fn input(&mut self, attribute: &'static str) -> Result<ValueId> {
        let name = self.required(attribute)?;
        self.value_named(name)
    }

    fn value_named(&self, name: &str) -> Result<ValueId> {
        let value = self.builder.names.get(name).copied();
        value.ok_or_else(|| self.wrong(format!("no op before it computes '{name}'")))
    }

    fn weight(&mut self, attribute: &'static str) -> Result<WeightId> {
        let name = self.required(attribute)?;
        let weight = self.builder.weight(name)?;
        weight.ok_or_else(|| self.builder.fail(format!("tensor '{name}' is missing")))
    }

    fn optional_weight(&mut self, attribute: &'static str) -> Result<Option<WeightId>> {
        self.read.insert(attribute);
        if !self.table.contains_key(attribute) {
            return Ok(None);
        }
        let name = self.required(attribute)?;
        self.builder.weight(name)
    }

    fn norm_of(&mut self, weight: WeightId, width: usize) -> Result<Norm> {
        self.check_vector(weight, width)?;
        let (eps, offset) = (self.number("eps")? as f32, self.number_or("offset", "norm_offset")? as f32);
        Ok(Norm { centred: false, weight, bias: None, eps, offset })
    }

    /// The attribute's value, or that of the parameter called `parameter` if it is left out.
    fn value_or(&mut self, attribute: &'static str, parameter: &str) -> Result<Val> {
        self.read.insert(attribute);
        if let Some(value) = self.table.get(attribute) {
            let expression = self.builder.expression(attribute, value)?;
            return self.builder.parameters.evaluate(&expression);
        }
        let value = self.builder.parameters.named(parameter)?;
        value.ok_or_else(|| self.wrong(format!("`{attribute}` is missing, and there is no parameter '{parameter}'")))
    }

    fn number_or(&mut self, attribute: &'static str, parameter: &str) -> Result<f64> {
        match self.value_or(attribute, parameter)? {
            Val::Number(x) if x.is_finite() => Ok(x),
            other => Err(self.builder.fail(format!("{attribute} is {other}, not a number"))),
        }
    }

    fn number(&mut self, attribute: &'static str) -> Result<f64> {
        self.number_or(attribute, attribute)
    }

    fn count(&mut self, attribute: &'static str) -> Result<usize> {
        let value = self.value_or(attribute, attribute)?;
        self.builder.whole(attribute, &value, 1, MAX_WIDTH)
    }

    fn width(&self, value: ValueId) -> usize {
        self.builder.graph.values[value.0].width
    }

    fn rows(&self, value: ValueId) -> Rows {
        self.builder.graph.values[value.0].rows
    }

    fn same_shape(&self, a: ValueId, b: ValueId) -> Result<()> {
        let (a, b) = (&self.builder.graph.values[a.0], &self.builder.graph.values[b.0]);
        if a.width == b.width && a.rows == b.rows {
            return Ok(());
        }
        Err(self.builder.fail(format!("'{}' is {} wide, and '{}' is {}", a.name, a.width, b.name, b.width)))
    }

    fn check_vector(&self, weight: WeightId, length: usize) -> Result<()> {
        let Weight { ref tensor, rows, columns, .. } = self.builder.graph.weights[weight.0];
        if rows == 1 && columns == length {
            return Ok(());
        }
        Err(self.builder.fail(format!("tensor '{tensor}' has shape [{rows}, {columns}], expected [{length}]")))
    }

    fn check_heads(&self, name: &str, value: ValueId, heads: usize, head_dim: usize) -> Result<()> {
        let width = self.width(value);
        if heads.checked_mul(head_dim) == Some(width) {
            return Ok(());
        }
        Err(self.builder.fail(format!("{name} is {width} wide, and {heads} heads of {head_dim} are expected")))
    }
}
