//! From an architecture and a model file to a graph.

mod op_reader;

use std::collections::{BTreeMap, BTreeSet};

use basert_core::codec;
use basert_files::{Kind, ModelFile};

use crate::GraphError;
use crate::arch::{Architecture, Expression, TensorName};
use crate::expr::Value as Val;
use crate::graph::*;
use crate::parameters::Parameters;
use crate::rope::{self, Scaling};
use op_reader::OpReader;

/// Bounds beyond any real model; a larger number means a damaged file.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;

impl Graph {
    /// The graph of `file`, by the matching architecture among `extra` and the built-in ones.
    ///
    /// # Errors
    /// When none matches, or the file lacks something that the architecture needs, or holds tensors that it does not
    /// mention.
    pub fn open(file: &ModelFile, extra: &[Architecture]) -> Result<Graph, GraphError> {
        let key = match file.kind() {
            Kind::Gguf => "general.architecture",
            Kind::HuggingFace => "model_type",
        };
        let path = file.path().display().to_string();
        let text = |key: &str| file.get(key).and_then(basert_files::Value::as_str);
        let built_in = Architecture::built_in()?;
        let families = || extra.iter().chain(&built_in);
        // Without a type, a folder may name the class that computes it.
        let class = text("architectures.0").filter(|_| file.kind() == Kind::HuggingFace).map(class_type);
        let of_class = || {
            let mut names = families().flat_map(|family| family.names(file.kind()));
            names.find(|name| class.as_ref() == Some(&class_type(name)))
        };
        let found = text(key).or_else(|| of_class().map(String::as_str)).ok_or_else(|| GraphError::Model {
            file: path.clone(),
            what: format!("'{key}' is missing, which names the architecture"),
        })?;
        match families().find(|family| family.names(file.kind()).iter().any(|name| name == found)) {
            Some(family) => Graph::build(family, file, found),
            None => {
                let known: Vec<&str> =
                    families().flat_map(|family| family.names(file.kind())).map(String::as_str).collect();
                Err(GraphError::UnknownArchitecture { file: path, found: found.into(), known: known.join(", ") })
            }
        }
    }

    /// The graph of `file`, whose architecture is named `arch_name`, by `family`.
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

/// What a class of transformers, such as `Qwen3MoeForCausalLM`, and its `model_type` have in common.
fn class_type(name: &str) -> String {
    let name = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    name.replace(['_', '-'], "").to_lowercase()
}

struct Builder<'a> {
    family: &'a Architecture,
    file: &'a ModelFile,
    parameters: Parameters<'a>,
    layer: Option<usize>,
    /// The value that each name of the architecture file refers to at this point.
    names: BTreeMap<String, ValueId>,
    weights: BTreeMap<String, WeightId>,
    /// Tensors that were used, as weights or read here.
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
        for op in &self.family.graph.start {
            self.op(op)?;
        }
        for layer in 0..self.graph.layers {
            self.layer = Some(layer);
            self.parameters.set_layer(self.layer);
            for op in &self.family.graph.block {
                self.op(op)?;
            }
        }
        self.layer = None;
        self.parameters.set_layer(None);
        for op in &self.family.graph.finish {
            self.op(op)?;
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

    /// An unused tensor means that the architecture file does not describe this model.
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
        match value.number() {
            Some(x) if x.fract() == 0.0 && x >= least as f64 && x <= most as f64 => Ok(x as usize),
            _ => Err(self.fail(format!("{name} is {value}, not a whole number from {least} to {most}"))),
        }
    }

    fn op(&mut self, op: &toml::Table) -> Result<()> {
        let op = OpReader { builder: self, table: op, read: BTreeSet::from(["op", "when"]) };
        if let Some(when) = op.table.get("when") {
            let when = op.builder.expression("when", when)?;
            match op.builder.parameters.evaluate(&when)? {
                Val::Bool(true) => {}
                Val::Bool(false) => return Ok(()),
                other => return Err(op.wrong(format!("`when` is {other}, neither true nor false"))),
            }
        }
        op.build()
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

    /// The weight called `name` in the architecture file; `None` if it is optional and missing.
    fn weight(&mut self, name: &str) -> Result<Option<WeightId>> {
        let Some(tensor) = self.tensor_name(name)? else { return Ok(None) };
        if let Some(&id) = self.weights.get(&tensor) {
            return Ok(Some(id));
        }
        let Some(found) = self.file.tensor(&tensor) else { return Ok(None) };
        let (rows, columns) = match *found.shape {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            // The matrices of experts, stacked along the rows.
            [experts, rows, columns] => (experts.saturating_mul(rows), columns),
            _ => return Err(self.fail(format!("tensor '{tensor}' has shape {:?}, not one of a matrix", found.shape))),
        };
        let id = WeightId(self.graph.weights.len());
        self.graph.weights.push(Weight { tensor: tensor.clone(), rows, columns, format: found.format });
        self.weights.insert(tensor, id);
        Ok(Some(id))
    }

    /// The name in the model file of the tensor called `name` in the architecture file, if it exists.
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
        const KNOWN: [&str; 12] = [
            "base",
            "dim",
            "pairs",
            "scaling",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_context",
            "beta_fast",
            "beta_slow",
            "truncate",
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
            Val::Text(text) if text == "yarn" => Scaling::Yarn {
                factor: number(self, "factor")?,
                fast: number(self, "beta_fast")?,
                slow: number(self, "beta_slow")?,
                original_context: number(self, "original_context")?,
                truncated: value(self, "truncate")? == Val::Bool(true),
            },
            other => {
                let what = format!("rope scaling {other} is not known; known are none, linear, llama3, yarn");
                return Err(self.fail(what));
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
