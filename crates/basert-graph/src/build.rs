//! From an architecture and a model file to a graph.

mod op_reader;

use std::collections::{BTreeMap, BTreeSet};

use basert_core::{Format, codec};
use basert_files::{Kind, ModelFile};

use crate::GraphError;
use crate::arch::{Architecture, Expression, TensorName};
use crate::expr::Value as Val;
use crate::graph::*;
use crate::op::{Index, Op};
use crate::parameters::{Metadata, Parameters};
use crate::rope::{self, Scaling};
use crate::tensors::TensorShape;
use crate::weight::{Cut, Taken, Weight};
use op_reader::OpReader;

/// Bounds beyond any real model; a larger number means a damaged file.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;
const MAX_TENSORS: usize = 1 << 16;
/// What stands in a tensor's name for one of several tensors, and the parameter that says how many there are.
const COUNTED: [(&str, &str); 3] = [("{expert}", "experts"), ("{head}", "heads"), ("{kv_head}", "kv_heads")];

/// Where tensors are, or whether there are any.
#[derive(Clone, Copy)]
pub(crate) enum Tensors<'a> {
    /// In a model file.
    File(&'a ModelFile),
    /// Nowhere: each has the shape that the architecture file states, and this says whether there is an optional one, by
    /// its name in the architecture file.
    Declared(&'a dyn Fn(&str) -> bool),
}

impl<'a> Tensors<'a> {
    fn file(self) -> Option<&'a ModelFile> {
        match self {
            Tensors::File(file) => Some(file),
            Tensors::Declared(_) => None,
        }
    }
}

impl Graph {
    /// The graph of `file`, by the matching architecture among `extra` and the built-in ones.
    ///
    /// # Errors
    /// When none matches, or the file lacks something that the architecture needs, or holds tensors that it does not
    /// mention.
    pub fn open(file: &ModelFile, extra: &[Architecture]) -> Result<Graph, GraphError> {
        Graph::open_for(file, extra, usize::MAX, false)
    }

    /// The same for sequences of up to `tokens` tokens: some models compute long ones in another way; and with the head that
    /// predicts a further token, if that is wanted and the file has it.
    ///
    /// # Errors
    /// As for [`Graph::open`].
    pub fn open_for(
        file: &ModelFile,
        extra: &[Architecture],
        tokens: usize,
        with_head: bool,
    ) -> Result<Graph, GraphError> {
        let key = match file.kind() {
            Kind::Gguf => "general.architecture",
            Kind::HuggingFace => "model_type",
        };
        let path = file.path().display().to_string();
        let text = |key: &str| file.get(key).and_then(basert_files::Value::as_str);
        let found = match text(key) {
            Some(name) => Some(name.to_owned()),
            // Without a type, a folder may name the class that computes it.
            None => {
                let class = text("architectures.0").filter(|_| file.kind() == Kind::HuggingFace).map(class_type);
                class.map(|class| name_of_class(&class, extra)).transpose()?.flatten()
            }
        };
        let found = found.ok_or_else(|| GraphError::Model {
            file: path.clone(),
            what: format!("'{key}' is missing, which names the architecture"),
        })?;
        let built_in;
        let family = match extra.iter().find(|family| family.is_called(file.kind(), &found)) {
            Some(family) => Some(family),
            None => {
                built_in = Architecture::built_in_for(file.kind(), &found)?;
                built_in.as_ref()
            }
        };
        match family {
            Some(family) => Ok(build(family, file, Tensors::File(file), &found, tokens, with_head)?.0),
            None => {
                let built_in = Architecture::built_in()?;
                let families = extra.iter().chain(&built_in);
                let known: Vec<&str> =
                    families.flat_map(|family| family.names(file.kind())).map(String::as_str).collect();
                Err(GraphError::UnknownArchitecture { file: path, found, known: known.join(", ") })
            }
        }
    }
}

/// What folders call the family of a class of transformers.
fn name_of_class(class: &str, extra: &[Architecture]) -> Result<Option<String>, GraphError> {
    let built_in = Architecture::built_in()?;
    let mut names = extra.iter().chain(&built_in).flat_map(|family| family.names(Kind::HuggingFace));
    Ok(names.find(|name| class_type(name) == class).cloned())
}

/// A tensor that an architecture names, with its weight if it is one.
pub(crate) type Declared = (TensorShape, Option<WeightId>);

/// The graph of a model with these hyperparameters and tensors, for sequences of up to `longest` tokens, and every tensor
/// that it names, in the order in which ops use them; with the head that predicts a further token, if there is one.
pub(crate) fn build(
    family: &Architecture,
    metadata: &dyn Metadata,
    tensors: Tensors<'_>,
    arch_name: &str,
    longest: usize,
    with_head: bool,
) -> Result<(Graph, Vec<Declared>), GraphError> {
    let mut builder = Builder {
        family,
        tensors,
        parameters: Parameters::new(family, metadata, arch_name.to_owned(), longest),
        layer: None,
        names: BTreeMap::new(),
        weights: BTreeMap::new(),
        used: BTreeSet::new(),
        declared: Vec::new(),
        ropes: BTreeMap::new(),
        graph: Graph {
            family: family.name.clone(),
            vocabulary: 0,
            context: 0,
            layers: 0,
            values: Vec::new(),
            weights: Vec::new(),
            ropes: Vec::new(),
            states: Vec::new(),
            nodes: Vec::new(),
            logits: ValueId(0),
            generates: true,
            head: None,
        },
        in_head: false,
    };
    builder.run(with_head)?;
    Ok((builder.graph, builder.declared))
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
    tensors: Tensors<'a>,
    parameters: Parameters<'a>,
    layer: Option<usize>,
    /// The value that each name of the architecture file refers to at this point.
    names: BTreeMap<String, ValueId>,
    /// By their names in the architecture file, with the layer.
    weights: BTreeMap<(String, Option<usize>), WeightId>,
    /// Tensors that were used, as weights or read here.
    used: BTreeSet<String>,
    /// The same where they are declared, in order.
    declared: Vec<Declared>,
    ropes: BTreeMap<String, RopeId>,
    graph: Graph,
    /// Whether the ops are those of the head.
    in_head: bool,
}

type Result<T, E = GraphError> = std::result::Result<T, E>;

impl Builder<'_> {
    fn run(&mut self, with_head: bool) -> Result<()> {
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
        let last = ["logits", "hidden"].into_iter().find_map(|name| Some((name, *self.names.get(name)?)));
        let (name, last) = last.ok_or_else(|| self.wrong("no op computes 'logits', or 'hidden'".to_owned()))?;
        let tokens = |node: &Node| match node.op {
            Op::Embed { weight, by: Index::Token, .. } => Some(self.graph.weights[weight.0].rows),
            _ => None,
        };
        (self.graph.logits, self.graph.generates) = (last, name == "logits");
        self.graph.vocabulary = match self.graph.generates {
            true => self.graph.values[last.0].width,
            false => self.graph.nodes.iter().find_map(tokens).unwrap_or(0),
        };
        if self.graph.vocabulary == 0 || self.graph.values[last.0].rows != Rows::Wanted {
            return Err(self.wrong(format!("'{name}' are not the values of the tokens that an op 'select' takes")));
        }
        for node in &self.graph.nodes {
            let Op::Embed { weight, by, .. } = node.op else { continue };
            let weight = &self.graph.weights[weight.0];
            let (least, what) = match by {
                Index::Token => (self.graph.vocabulary, "there are logits for"),
                Index::Position => (self.graph.context, "the context has"),
            };
            if weight.rows < least {
                return Err(self.fail(format!(
                    "tensor '{}' has {} rows, and {what} {least} tokens",
                    weight.name(),
                    weight.rows
                )));
            }
        }
        if with_head {
            self.head()?;
        }
        self.refuse_unused()
    }

    /// The head that predicts a further token, if the file has one.
    fn head(&mut self) -> Result<()> {
        let Some(head) = &self.family.head else { return Ok(()) };
        (self.layer, self.in_head) = (Some(self.graph.layers), true);
        self.parameters.set_layer(self.layer);
        if self.tensor_names(&head.tensor)?.is_none() {
            return Ok(());
        }
        let hidden = self.names.get("hidden").copied();
        let hidden = hidden.filter(|hidden| self.graph.values[hidden.0].rows == Rows::Tokens);
        let hidden =
            hidden.ok_or_else(|| self.wrong("no op computes 'hidden' of all tokens, for the head".to_owned()))?;
        let (after, given) = (self.graph.nodes.len(), ValueId(self.graph.values.len()));
        let width = self.graph.values[hidden.0].width;
        self.graph.values.push(Value { name: "given".to_owned(), width, rows: Rows::Tokens });
        self.names = BTreeMap::from([("given".to_owned(), given)]);
        for op in head.start.iter().chain(&self.family.graph.block).chain(&head.finish) {
            self.op(op)?;
        }
        let named = |name: &str, width: usize| {
            let found = self.names.get(name).copied().filter(|value| {
                let value = &self.graph.values[value.0];
                value.rows == Rows::Wanted && value.width == width
            });
            found
                .ok_or_else(|| self.wrong(format!("the head computes no '{name}', {width} wide, of the wanted tokens")))
        };
        let (logits, next) = (named("logits", self.graph.vocabulary)?, named("hidden", width)?);
        let signatures = self.graph.nodes[after..].iter().map(|node| node.op.signature());
        let states = signatures.filter_map(|signature| signature.writes).map(|state| self.graph.states[state.0]);
        if states.into_iter().any(|state| state.paged().is_none()) {
            return Err(self.wrong("the head has running states".to_owned()));
        }
        self.graph.head = Some(Head { after, hidden, given, logits, next });
        Ok(())
    }

    /// An unused tensor means that the architecture file does not describe this model.
    fn refuse_unused(&self) -> Result<()> {
        let Some(file) = self.tensors.file() else { return Ok(()) };
        let ignored = self.family.ignore.iter().map(|pattern| self.filled(pattern)).collect::<Result<Vec<_>>>()?;
        let ignored = |name: &str| ignored.iter().any(|pattern| matches(pattern, name));
        let unused: Vec<_> = file
            .tensors()
            .map(|tensor| tensor.name)
            .filter(|name| !self.used.contains(*name) && !self.parameters.has_read(name) && !ignored(name))
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

    /// A pattern with the numbers that it names by parameters in braces.
    fn filled(&self, pattern: &str) -> Result<String> {
        let mut parts = pattern.split('{');
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) =
                part.split_once('}').ok_or_else(|| self.wrong(format!("'{pattern}' has a brace too many")))?;
            filled += &self.size(name, usize::MAX >> 12)?.to_string();
            filled += rest;
        }
        Ok(filled)
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
        let Some((key, tensors)) = self.tensor_names(name)? else { return Ok(None) };
        let entry = &self.family.tensors[&key];
        // What has the same name in all layers is the same weight.
        let of_layers = entry.names(self.parameters.kind()).iter().any(|pattern| pattern.contains("{layer}"));
        let layer = self.layer.filter(|_| of_layers);
        if let Some(&id) = self.weights.get(&(key.clone(), layer)) {
            return Ok(Some(id));
        }
        let (mut shape, mut format) = (Vec::new(), Format::F32);
        for tensor in &tensors {
            let (of_this, is) = self.shape(&key, tensor)?;
            if !shape.is_empty() && (&shape, format) != (&of_this, is) {
                return Err(self.fail(format!("tensors '{}' and '{tensor}' have different shapes", tensors[0])));
            }
            (shape, format) = (of_this, is);
        }
        let (rows_each, columns) = match *shape {
            // Of a vector some values may be taken.
            _ if entry.vector || (shape.len() == 1 && !entry.rows.is_empty()) => (product(&shape), 1),
            [columns] => (1, columns),
            // The matrices of experts may be stacked along the rows.
            [.., columns] => (product(&shape[..shape.len() - 1]), columns),
            [] => return Err(self.fail(format!("tensor '{}' is a single number", tensors[0]))),
        };
        let mut weight = Weight { tensors, ..Weight::whole("", (rows_each, columns), format) };
        if let ([matrices @ .., inputs, outputs], true) = (&shape[..], entry.is_transposed(self.parameters.kind())) {
            if !format.is_float() {
                return Err(self.fail(format!("tensor '{}' is quantised, and has a row for each input", weight.name())));
            }
            weight.transposed = Some(*outputs);
            (weight.rows_each, weight.columns) = (product(matrices).saturating_mul(*outputs), *inputs);
        }
        self.cut(&key, &mut weight)?;
        let all = weight.rows_each.saturating_mul(weight.tensors.len());
        weight.taken = self.taken(&key, weight.name(), all)?;
        weight.rows = all / weight.taken.of * weight.taken.count;
        let id = WeightId(self.graph.weights.len());
        if self.tensors.file().is_none() {
            let shapes = weight.tensors.iter().map(|name| TensorShape::new(&key, name, self.layer, &shape));
            self.declared.extend(shapes.map(|shape| (shape, Some(id))));
        }
        self.graph.weights.push(weight);
        self.weights.insert((key, layer), id);
        Ok(Some(id))
    }

    /// Takes of a weight the columns of the tensor called `key` that are its own.
    fn cut(&self, key: &str, weight: &mut Weight) -> Result<()> {
        let numbers = self.family.tensors[key].columns.iter();
        let numbers: Vec<_> = numbers
            .map(|number| {
                let name = format!("a number of columns of '{key}'");
                self.whole(&name, &self.parameters.evaluate(number)?, 0, weight.columns)
            })
            .collect::<Result<_>>()?;
        let (first, count) = match numbers[..] {
            [] => return Ok(()),
            [first, count] => (first, count),
            _ => return Err(self.wrong(format!("'{key}' has {} numbers of columns, not 2", numbers.len()))),
        };
        let whole = |columns| weight.format.row_bytes(columns).is_ok();
        if count == 0 || first + count > weight.columns || weight.transposed.is_some() || !whole(first) || !whole(count)
        {
            let (tensor, of) = (weight.name(), weight.columns);
            return Err(
                self.fail(format!("of the {of} columns of tensor '{tensor}', {count} from {first} on cannot be taken"))
            );
        }
        weight.cut = Some(Cut { first, of: weight.columns });
        weight.columns = count;
        Ok(())
    }

    /// Which of `all` rows of the tensor called `key` are its own.
    fn taken(&self, key: &str, tensor: &str, all: usize) -> Result<Taken> {
        let whole = Taken { first: 0, count: all.max(1), of: all.max(1) };
        let numbers = self.family.tensors[key].rows.iter();
        let numbers: Vec<_> = numbers
            .map(|number| {
                self.whole(&format!("a number of rows of '{key}'"), &self.parameters.evaluate(number)?, 0, all)
            })
            .collect::<Result<_>>()?;
        let taken = match numbers[..] {
            [] => return Ok(whole),
            [first, count] => Taken { first, count, ..whole },
            [first, count, of] => Taken { first, count, of },
            _ => return Err(self.wrong(format!("'{key}' has {} numbers of rows, not 2 or 3", numbers.len()))),
        };
        if taken.count == 0 || taken.first + taken.count > taken.of || !all.is_multiple_of(taken.of) {
            let Taken { first, count, of } = taken;
            let what = format!(
                "tensor '{tensor}' has {all} rows, of which {count} of each {of} from {first} on are to be taken"
            );
            return Err(self.fail(what));
        }
        Ok(taken)
    }

    /// The shape and format of a tensor.
    fn shape(&self, key: &str, tensor: &str) -> Result<(Vec<usize>, Format)> {
        if let Some(file) = self.tensors.file() {
            let found = file.tensor(tensor).ok_or_else(|| self.fail(format!("tensor '{tensor}' is missing")))?;
            return Ok((found.shape.to_vec(), found.format));
        }
        let entry = &self.family.tensors[key];
        if entry.shape.is_empty() {
            return Err(self.wrong(format!("tensor '{key}' has no shape under [tensors]")));
        }
        let dimension = |expression| {
            let name = format!("a dimension of {tensor}");
            self.whole(&name, &self.parameters.evaluate(expression)?, 1, 1 << 32)
        };
        Ok((entry.shape.iter().map(dimension).collect::<Result<_>>()?, Format::F32))
    }

    /// Of the tensor called `name` in the architecture file, or the one that replaces it, the name there and those in
    /// the model file, if it exists: several where each expert, or each head, has one.
    fn tensor_names(&mut self, name: &str) -> Result<Option<(String, Vec<String>)>> {
        let mut name = name;
        let mut tried = Vec::new();
        for steps in 0.. {
            let entry: &TensorName = self
                .family
                .tensors
                .get(name)
                .ok_or_else(|| self.wrong(format!("there is no tensor '{name}' under [tensors]")))?;
            for pattern in self.family.tensor_names(entry, self.parameters.kind()) {
                let mut tensor = pattern.clone();
                let renamed = self.family.head.as_ref().filter(|_| self.in_head).and_then(|head| head.renamed.as_ref());
                if let (Some((from, to)), Kind::HuggingFace) = (renamed, self.parameters.kind()) {
                    tensor = tensor.replace(from, to);
                }
                if let Some(layer) = self.layer {
                    tensor = tensor.replace("{layer}", &layer.to_string());
                }
                let counted = COUNTED.iter().find(|(mark, _)| pattern.contains(mark));
                let count = counted.map_or(Ok(1), |(_, count)| self.size(count, MAX_TENSORS))?;
                let of = |number: usize| match counted {
                    Some((mark, _)) => tensor.replace(mark, &number.to_string()),
                    None => tensor.clone(),
                };
                let exists = match self.tensors {
                    Tensors::File(file) => file.tensor(&of(0)).is_some(),
                    Tensors::Declared(with) => !(entry.optional || entry.otherwise.is_some()) || with(name),
                };
                if exists {
                    let tensors: Vec<_> = (0..count).map(of).collect();
                    self.used.extend(tensors.iter().cloned());
                    return Ok(Some((name.to_owned(), tensors)));
                }
                tried.push(of(0));
            }
            match &entry.otherwise {
                // Names that lead to each other in a circle are tried no more often than there are any.
                Some(other) if steps < self.family.tensors.len() => name = other,
                _ if entry.optional => return Ok(None),
                _ if tried.is_empty() => {
                    return Err(self.wrong(format!("tensor '{name}' has no name in this kind of file")));
                }
                _ => break,
            }
        }
        Err(self.fail(format!("tensor '{}' is missing", tried.join("' or '"))))
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
        const KNOWN: [&str; 15] = [
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
            "divisors",
            "magnitude",
            "turning",
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
        if let Some(Expression::Text(text)) = table.get("factors") {
            // A tensor, or an expression that chooses one, or none.
            let chosen = match self.family.tensors.contains_key(text) {
                true => Val::Text(text.clone()),
                false => value(self, "factors")?,
            };
            match &chosen {
                Val::Text(none) if none.is_empty() => {}
                Val::Text(tensor) => self.divide_by_factors(tensor, &mut frequencies)?,
                other => return Err(self.wrong(format!("the rope factors are {other}, not the name of a tensor"))),
            }
        }
        if table.contains_key("divisors") {
            self.divide_by_list(&value(self, "divisors")?, &mut frequencies)?;
        }
        if table.contains_key("turning") {
            let turning = self.whole("the number of rope pairs that turn", &value(self, "turning")?, 0, dim / 2)?;
            frequencies[turning..].fill(0.0);
        }
        let magnitude = match table.get("magnitude") {
            Some(_) => number(self, "magnitude")? as f32,
            None => 1.0,
        };
        let id = RopeId(self.graph.ropes.len());
        self.graph.ropes.push(Rope { name: name.to_owned(), pairs, frequencies, magnitude });
        self.ropes.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Configurations may list a divisor for each frequency; an empty text means none.
    fn divide_by_list(&self, list: &Val, frequencies: &mut [f32]) -> Result<()> {
        let items = match list {
            Val::Text(none) if none.is_empty() => return Ok(()),
            Val::List(items) if items.len() == frequencies.len() => items,
            other => {
                let what = format!("the rope divisors are {other}, not a list of {} numbers", frequencies.len());
                return Err(self.fail(what));
            }
        };
        for (frequency, item) in frequencies.iter_mut().zip(items) {
            match item.number().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => *frequency /= x as f32,
                None => return Err(self.fail(format!("a rope divisor is {item}, not a positive number"))),
            }
        }
        Ok(())
    }

    /// Files may hold a divisor for each frequency instead of naming a scaling.
    fn divide_by_factors(&mut self, name: &str, frequencies: &mut [f32]) -> Result<()> {
        let Some((key, tensors)) = self.tensor_names(name)? else { return Ok(()) };
        let tensor = &tensors[0];
        let (shape, _) = self.shape(&key, tensor)?;
        let Some(file) = self.tensors.file() else {
            self.declared.push((TensorShape::new(&key, tensor, None, &shape), None));
            return Ok(());
        };
        let Some(found) = file.tensor(tensor) else { return Ok(()) };
        let mut factors = vec![0.0; frequencies.len()];
        codec::decode(found.format, found.bytes, &mut factors)
            .map_err(|error| self.fail(format!("tensor '{tensor}': {error}")))?;
        for (frequency, factor) in frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        Ok(())
    }
}

fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &x| n.saturating_mul(x))
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
