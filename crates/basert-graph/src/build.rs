//! From an architecture and a model file to a graph.

use std::collections::{BTreeMap, BTreeSet};

use basert_core::codec;
use basert_files::{Kind, ModelFile};

use crate::GraphError;
use crate::arch::{Architecture, Expression, TensorName};
use crate::expr::Value as Val;
use crate::graph::*;
use crate::parameters::Parameters;
use crate::rope::{self, Scaling};

/// More layers, or a wider value, than any model has: a number beyond is damage.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;

impl Graph {
    /// The graph of `file`, by the architecture among `extra` or the built-in ones that is for it.
    ///
    /// # Errors
    /// When none is, or the file lacks what the architecture asks for, or holds tensors that it does not mention.
    pub fn open(file: &ModelFile, extra: &[Architecture]) -> Result<Graph, GraphError> {
        let (key, names): (_, fn(&Architecture) -> &[String]) = match file.kind() {
            Kind::Gguf => ("general.architecture", |family| &family.gguf),
            Kind::HuggingFace => ("model_type", |family| &family.hf),
        };
        let path = file.path().display().to_string();
        let value = file.get(key);
        let found = value.as_ref().and_then(|value| value.as_str()).ok_or_else(|| GraphError::Model {
            file: path.clone(),
            what: format!("'{key}' is missing, which names the architecture"),
        })?;
        let built_in = Architecture::built_in()?;
        let families = || extra.iter().chain(&built_in);
        match families().find(|family| names(family).iter().any(|name| name == found)) {
            Some(family) => Graph::build(family, file, found),
            None => {
                let known: Vec<&str> = families().flat_map(names).map(String::as_str).collect();
                Err(GraphError::UnknownArchitecture { file: path, found: found.into(), known: known.join(", ") })
            }
        }
    }

    /// The graph of `file`, which calls its architecture `arch_name`, by `family`.
    ///
    /// # Errors
    /// As for [`Graph::open`].
    pub fn build(family: &Architecture, file: &ModelFile, arch_name: &str) -> Result<Graph, GraphError> {
        let mut builder = Builder {
            family,
            file,
            parameters: Parameters::new(family, file, arch_name.to_owned()),
            layer: None,
            names: BTreeMap::new(),
            weights: BTreeMap::new(),
            used: BTreeSet::new(),
            ropes: BTreeMap::new(),
            graph: Graph {
                family: family.name.clone(),
                vocabulary: 0,
                context: 0,
                layers: 0,
                values: Vec::new(),
                weights: Vec::new(),
                ropes: Vec::new(),
                caches: Vec::new(),
                nodes: Vec::new(),
                logits: ValueId(0),
            },
        };
        builder.run()?;
        Ok(builder.graph)
    }
}

struct Builder<'a> {
    family: &'a Architecture,
    file: &'a ModelFile,
    parameters: Parameters<'a>,
    layer: Option<usize>,
    /// The value that each name of the architecture file stands for at this point.
    names: BTreeMap<String, ValueId>,
    weights: BTreeMap<String, WeightId>,
    /// Tensors that were asked for by name, whether they became weights or were read here.
    used: BTreeSet<String>,
    ropes: BTreeMap<String, RopeId>,
    graph: Graph,
}

type Result<T, E = GraphError> = std::result::Result<T, E>;

impl Builder<'_> {
    fn run(&mut self) -> Result<()> {
        for refusal in &self.family.refuse {
            if matches!(self.parameters.evaluate(&refusal.when)?, Val::Bool(true)) {
                return Err(self.fail(format!("{}: {}", self.family.name, refusal.because)));
            }
        }
        self.graph.layers = self.size("layers", MAX_LAYERS)?;
        self.graph.context = self.size("context", usize::MAX >> 12)?;
        for step in &self.family.graph.start {
            self.step(step)?;
        }
        for layer in 0..self.graph.layers {
            self.layer = Some(layer);
            self.parameters.set_layer(self.layer);
            for step in &self.family.graph.block {
                self.step(step)?;
            }
        }
        self.layer = None;
        self.parameters.set_layer(None);
        for step in &self.family.graph.finish {
            self.step(step)?;
        }
        let logits = self.names.get("logits").copied();
        self.graph.logits = logits.ok_or_else(|| self.wrong("no op computes 'logits'".to_owned()))?;
        self.graph.vocabulary = self.graph.values[self.graph.logits.0].width;
        for node in &self.graph.nodes {
            let Op::Embed { weight, .. } = node.op else { continue };
            let Weight { ref tensor, rows, .. } = self.graph.weights[weight.0];
            if rows < self.graph.vocabulary {
                let what =
                    format!("tensor '{tensor}' has {rows} rows, and there are logits for {}", self.graph.vocabulary);
                return Err(self.fail(what));
            }
        }
        self.refuse_unused()
    }

    /// A tensor that no op uses means that the model is not what the architecture file describes.
    fn refuse_unused(&self) -> Result<()> {
        let ignored = |name: &str| self.family.ignore.iter().any(|pattern| matches(pattern, name));
        let unused: Vec<_> = self
            .file
            .tensors()
            .map(|tensor| tensor.name)
            .filter(|name| !self.used.contains(*name) && !ignored(name))
            .collect();
        match unused.first() {
            None => Ok(()),
            Some(first) => Err(self.fail(format!(
                "it has {} tensor(s) that the architecture {} does not mention, the first of them '{first}'; \
                 the model would be computed without them",
                unused.len(),
                self.family.name
            ))),
        }
    }

    /// An error about the model file.
    fn fail(&self, what: String) -> GraphError {
        self.parameters.fail(what)
    }

    /// An error about the architecture file.
    fn wrong(&self, what: String) -> GraphError {
        GraphError::Architecture { file: self.family.name.clone(), what }
    }

    /// The parameter `name` as a whole number from 1 to `most`.
    fn size(&self, name: &str, most: usize) -> Result<usize> {
        match self.parameters.named(name)? {
            Some(value) => self.whole(name, &value, 1, most),
            None => Err(self.wrong(format!("there is no parameter '{name}'"))),
        }
    }

    fn whole(&self, name: &str, value: &Val, least: usize, most: usize) -> Result<usize> {
        match *value {
            Val::Number(x) if x.fract() == 0.0 && x >= least as f64 && x <= most as f64 => Ok(x as usize),
            _ => Err(self.fail(format!("{name} is {value}, not a whole number from {least} to {most}"))),
        }
    }

    fn step(&mut self, step: &toml::Table) -> Result<()> {
        let step = Step { builder: self, table: step, read: BTreeSet::from(["op", "when"]) };
        if let Some(when) = step.table.get("when") {
            let when = step.builder.expression("when", when)?;
            match step.builder.parameters.evaluate(&when)? {
                Val::Bool(true) => {}
                Val::Bool(false) => return Ok(()),
                other => return Err(step.wrong(format!("`when` is {other}, neither true nor false"))),
            }
        }
        step.build()
    }

    fn expression(&self, name: &str, value: &toml::Value) -> Result<Expression> {
        match value {
            toml::Value::String(text) => Ok(Expression::Text(text.clone())),
            toml::Value::Integer(x) => Ok(Expression::Number(*x as f64)),
            toml::Value::Float(x) => Ok(Expression::Number(*x)),
            toml::Value::Boolean(x) => Ok(Expression::Bool(*x)),
            _ => Err(self.wrong(format!("'{name}' is neither a number, a truth value nor an expression"))),
        }
    }

    /// The weight called `name` in the architecture file; none where it is optional and missing.
    fn weight(&mut self, name: &str) -> Result<Option<WeightId>> {
        let Some(tensor) = self.tensor_name(name)? else { return Ok(None) };
        if let Some(&id) = self.weights.get(&tensor) {
            return Ok(Some(id));
        }
        let Some(found) = self.file.tensor(&tensor) else { return Ok(None) };
        let (rows, columns) = match *found.shape {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(self.fail(format!("tensor '{tensor}' has shape {:?}, not one of a matrix", found.shape))),
        };
        let id = WeightId(self.graph.weights.len());
        self.graph.weights.push(Weight { tensor: tensor.clone(), rows, columns, format: found.format });
        self.weights.insert(tensor, id);
        Ok(Some(id))
    }

    /// What the tensor called `name` in the architecture file is called in the model file, if it is there.
    fn tensor_name(&mut self, name: &str) -> Result<Option<String>> {
        let mut name = name;
        let mut tried = Vec::new();
        loop {
            let entry: &TensorName = self
                .family
                .tensors
                .get(name)
                .ok_or_else(|| self.wrong(format!("there is no tensor '{name}' under [tensors]")))?;
            let pattern = match self.file.kind() {
                Kind::Gguf => entry.gguf.as_deref(),
                Kind::HuggingFace => entry.hf.as_deref(),
            };
            if let Some(pattern) = pattern {
                let tensor = match self.layer {
                    Some(layer) => pattern.replace("{layer}", &layer.to_string()),
                    None => pattern.to_owned(),
                };
                if self.file.tensor(&tensor).is_some() {
                    self.used.insert(tensor.clone());
                    return Ok(Some(tensor));
                }
                tried.push(tensor);
            }
            match &entry.otherwise {
                Some(other) if tried.len() < self.family.tensors.len() => name = other,
                _ if entry.optional => return Ok(None),
                _ if tried.is_empty() => {
                    return Err(self.wrong(format!("tensor '{name}' has no name in this kind of file")));
                }
                _ => return Err(self.fail(format!("tensor '{}' is missing", tried.join("' or '")))),
            }
        }
    }

    fn rope(&mut self, name: &str) -> Result<RopeId> {
        if let Some(&id) = self.ropes.get(name) {
            return Ok(id);
        }
        let table = self
            .family
            .rope
            .get(name)
            .ok_or_else(|| self.wrong(format!("there is no rotary embedding [rope.{name}]")))?;
        const KNOWN: [&str; 9] = [
            "base",
            "dim",
            "pairs",
            "scaling",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_context",
            "factors",
        ];
        if let Some(unknown) = table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(self.wrong(format!("[rope.{name}] has no '{unknown}'; it has {}", KNOWN.join(", "))));
        }
        let value = |builder: &Self, attribute: &str| match table.get(attribute) {
            Some(expression) => builder.parameters.evaluate(expression),
            None => {
                let parameter = format!("rope_{attribute}");
                let value = builder.parameters.named(&parameter)?;
                value.ok_or_else(|| builder.wrong(format!("there is no parameter '{parameter}'")))
            }
        };
        let number = |builder: &Self, attribute: &str| match value(builder, attribute)? {
            Val::Number(x) if x.is_finite() && x > 0.0 => Ok(x),
            other => Err(builder.fail(format!("the rope {attribute} is {other}, not a positive number"))),
        };
        let dim = self.whole("the rope dim", &value(self, "dim")?, 2, MAX_WIDTH)?;
        let pairs = match &value(self, "pairs")? {
            Val::Text(text) if text == "half" => Pairs::Half,
            Val::Text(text) if text == "interleaved" => Pairs::Interleaved,
            other => return Err(self.wrong(format!("rope pairs are {other}; known are 'half' and 'interleaved'"))),
        };
        let scaling = match &value(self, "scaling")? {
            Val::Text(text) if text == "none" || text == "default" => Scaling::None,
            Val::Text(text) if text == "linear" => Scaling::Linear { factor: number(self, "factor")? },
            Val::Text(text) if text == "llama3" => Scaling::Llama3 {
                factor: number(self, "factor")?,
                low: number(self, "low_freq_factor")?,
                high: number(self, "high_freq_factor")?,
                original_context: number(self, "original_context")?,
            },
            other => {
                return Err(self.fail(format!("rope scaling {other} is not known; known are none, linear, llama3")));
            }
        };
        let mut frequencies = rope::frequencies(dim, number(self, "base")?, scaling);
        if let Some(Expression::Text(tensor)) = table.get("factors") {
            self.divide_by_factors(tensor, &mut frequencies)?;
        }
        let id = RopeId(self.graph.ropes.len());
        self.graph.ropes.push(Rope { name: name.to_owned(), pairs, frequencies });
        self.ropes.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Files may hold a divisor for each frequency instead of naming a scaling.
    fn divide_by_factors(&mut self, name: &str, frequencies: &mut [f32]) -> Result<()> {
        let Some(tensor) = self.tensor_name(name)? else { return Ok(()) };
        let Some(found) = self.file.tensor(&tensor) else { return Ok(()) };
        let mut factors = vec![0.0; frequencies.len()];
        codec::decode(found.format, found.bytes, &mut factors)
            .map_err(|error| self.fail(format!("tensor '{tensor}': {error}")))?;
        for (frequency, factor) in frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        Ok(())
    }
}

/// Whether `name` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|tail| {
            (0..=tail.len()).filter(|&i| tail.is_char_boundary(i)).any(|i| matches(rest, &tail[i..]))
        }),
    }
}

/// One op of an architecture file, while it is being read.
struct Step<'b, 'a, 't> {
    builder: &'b mut Builder<'a>,
    table: &'t toml::Table,
    /// Attributes that the op knows.
    read: BTreeSet<&'t str>,
}

impl<'t> Step<'_, '_, 't> {
    fn build(mut self) -> Result<()> {
        let name = self.required("op")?;
        let (op, width, rows) = match name {
            "embed" => self.embed()?,
            "norm" => self.norm()?,
            "linear" => self.linear()?,
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
                    "there is no op '{name}'; there are embed, norm, linear, rope_cache, attention, gate, add, \
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
        let norm = self.norm_of(weight, self.width(x))?;
        Ok((Op::Norm { x, norm }, self.width(x), self.rows(x)))
    }

    fn linear(&mut self) -> Result<(Op, usize, Rows)> {
        let x = self.input("in")?;
        let weight = self.weight("weight")?;
        let Weight { rows, columns, ref tensor, .. } = self.builder.graph.weights[weight.0];
        if columns != self.width(x) {
            return Err(self.builder.fail(format!(
                "tensor '{tensor}' has {columns} columns, and its input '{}' is {} wide",
                self.builder.graph.values[x.0].name,
                self.width(x)
            )));
        }
        let bias = self.optional_weight("bias")?;
        if let Some(bias) = bias {
            self.check_vector(bias, rows)?;
        }
        Ok((Op::Linear { x, weight, bias }, rows, self.rows(x)))
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
        let op = Op::Attention {
            q,
            cache,
            heads,
            scale,
            window: (window > 0).then_some(window),
            cap: (cap > 0.0).then_some(cap),
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
            other => {
                return Err(self
                    .builder
                    .fail(format!("the activation {other} is not known; known are silu and gelu_pytorch_tanh")));
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

    fn wrong(&self, what: String) -> GraphError {
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
        Ok(Norm { weight, eps: self.number("eps")? as f32, offset: self.number_or("offset", "norm_offset")? as f32 })
    }

    /// The attribute's value, or that of the parameter called `parameter` where it is left out.
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
