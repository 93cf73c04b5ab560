//! The op table: ops, formats and shapes, each as a model of that op alone, with the oracle's result. Tests check every
//! device against it, and `basert tune` every variant of a kernel.

use std::fmt::Display;
use std::fs;
use std::sync::Arc;

use basert_convert::Random;
use basert_core::{FORMATS, Format, KvFormat, codec};
use basert_files::{ModelFile, TensorSpec, gguf};
use basert_graph::{Architecture, Graph};
use basert_plan::{Baked, Device, DeviceError, FUSIONS, Limits, LoadOptions, Plan, StepState};
use basert_reference::Reference;

use crate::Error;

mod recurrent;

/// Tokens whose logits are compared.
pub const COMPARED: usize = 40;
/// The largest number of tokens in a step.
pub const AT_ONCE: usize = 64;
/// The longest context.
const CONTEXT: usize = 4096;
/// Rows of the embeddings, unless their logits need more.
const TOKENS: usize = 160;

/// The kind of op that a row of the table checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Products with matrices.
    Linear,
    /// Embeddings.
    Embed,
    /// Norms, activations and sums.
    Around,
    /// Rotations, and attention over a cache.
    Attention,
    /// Products with the matrices of experts.
    Experts,
    /// Ops with running states.
    Recurrent,
}

/// A row of the table: a model of a few ops, and its tensors.
#[derive(Debug, Clone)]
pub struct Row {
    /// The name in messages.
    pub name: String,
    /// The kind of op.
    pub kind: Kind,
    /// Whether it is one of the few rows that show most mistakes.
    pub essential: bool,
    /// What comes after `embed`, which computes `x`, up to `y`.
    ops: String,
    tensors: Vec<(&'static str, Vec<usize>, Format)>,
    /// Values of tensors that are not random.
    given: Vec<(&'static str, Vec<f32>)>,
    /// Tokens of the prompt.
    tokens: usize,
}

/// A row's model, with the expected result.
pub struct Case {
    /// The row's.
    pub name: String,
    /// The row's.
    pub kind: Kind,
    /// The row's.
    pub essential: bool,
    file: Arc<ModelFile>,
    graph: Arc<Graph>,
    prompt: Vec<u32>,
    /// Logits of the last [`COMPARED`] tokens.
    expected: Vec<f32>,
}

fn failed(error: impl Display) -> Error {
    Error::Check(error.to_string())
}

impl Row {
    fn new(name: impl Into<String>, kind: Kind, ops: &str, tensors: &[(&'static str, &[usize], Format)]) -> Row {
        let tensors = tensors.iter().map(|(name, shape, format)| (*name, shape.to_vec(), *format)).collect();
        let (name, ops) = (name.into(), ops.to_owned());
        Row { name, kind, essential: false, ops, tensors, given: Vec::new(), tokens: COMPARED }
    }

    /// A model whose logits after token t are twice the row t % `rows.len()`; all rows are as long as the vocabulary.
    pub fn of_logits(rows: &[Vec<f32>]) -> Row {
        let (kinds, vocabulary) = (rows.len(), rows.first().map_or(0, Vec::len));
        let embed = (0..vocabulary * kinds).map(|i| f32::from(u8::from(i / kinds % kinds == i % kinds))).collect();
        let w = (0..vocabulary * kinds).map(|i| rows[i % kinds][i / kinds]).collect();
        let ops = format!("{LINEAR}, {{ op = 'add', in = ['y', 'y'], out = 'y' }}");
        let shape = &[vocabulary, kinds][..];
        let tensors = [("embed", shape, Format::F32), ("w", shape, Format::F32)];
        Row { given: vec![("embed", embed), ("w", w)], ..Row::new("logits", Kind::Linear, &ops, &tensors) }
    }

    /// A model whose logits are no numbers, as infinity less infinity is.
    pub fn of_no_numbers(vocabulary: usize) -> Row {
        let row = Row::of_logits(&vec![vec![f32::MAX; vocabulary]; 32]);
        let less_itself =
            "{ op = 'scale', in = 'y', factor = -1, out = 'z' }, { op = 'add', in = ['y', 'z'], out = 'y' }";
        Row { ops: format!("{}, {less_itself}", row.ops), ..row }
    }

    fn essential(self, essential: bool) -> Row {
        Row { essential, ..self }
    }

    /// Random weights that roughly preserve the magnitude of activations.
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        if let Some((_, values)) = self.given.iter().find(|(given, _)| *given == name) {
            return values.clone();
        }
        let stream = name.bytes().chain(self.name.bytes()).fold(7, |h, b| h * 31 % 65_521 + u64::from(b));
        let mut random = Random::new(1, stream);
        let (count, inputs) = (shape.iter().product(), shape.last().copied().unwrap_or(1));
        let scale = if shape.len() == 1 || name == "embed" { 1.0 } else { 1.0 / (inputs as f32).sqrt() };
        (0..count).map(|_| scale * random.normal()).collect()
    }

    /// The bytes of its file.
    fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut tensors = self.writer()?.begin(Vec::new()).map_err(failed)?;
        for (name, shape, format) in &self.tensors {
            let values = self.values(name, shape);
            let mut bytes = vec![0; format.row_bytes(values.len()).map_err(failed)?];
            codec::encode(*format, &values, &mut bytes).map_err(failed)?;
            tensors.append(&bytes).map_err(failed)?;
        }
        tensors.finish().map_err(failed)
    }

    fn writer(&self) -> Result<gguf::Writer, Error> {
        let mut writer = gguf::Writer::new();
        writer.set("general.architecture", "row").map_err(failed)?;
        for (name, shape, format) in &self.tensors {
            writer.declare(TensorSpec::new(*name, *format, shape)).map_err(failed)?;
        }
        Ok(writer)
    }

    fn architecture(&self) -> Result<Architecture, Error> {
        let names: String = self.tensors.iter().map(|(name, ..)| format!("{name} = {{ gguf = '{name}' }}\n")).collect();
        let text = format!(
            "name = 'row'\ngguf = ['row']\nuse = ['common']\n[parameters]\nlayers = 1\ncontext = {CONTEXT}\neps = 1e-5\n\
             head_dim = 64\nrope_dim = 'head_dim'\nrope_scaling = \"'none'\"\n\
             [tensors]\n{names}[rope.main]\nbase = 10000\nfactor = 1\nlow_freq_factor = 1\nhigh_freq_factor = 4\n\
             original_context = {CONTEXT}\n[rope.turned]\nbase = 10000\ndim = 32\npairs = \"'interleaved'\"\n[graph]\n\
             start = [ {{ op = 'embed', weight = 'embed', out = 'x' }}, {} ]\n\
             block = []\nfinish = [ {{ op = 'select', in = 'y', out = 'logits' }} ]\n",
            self.ops
        );
        Architecture::parse(&text, &self.name).map_err(failed)
    }

    /// The row's model with the oracle's result.
    ///
    /// # Errors
    /// When a temporary file cannot be written.
    pub fn case(&self) -> Result<Case, Error> {
        let (file, graph) = self.model()?;
        // No output is narrower.
        let mut random = Random::new(2, 0);
        let prompt: Vec<u32> = (0..self.tokens).map(|_| random.below(96) as u32).collect();
        let last: Vec<usize> = (self.tokens - COMPARED..self.tokens).collect();
        let expected = Reference::new(graph.clone(), &file).map_err(failed)?.logits(&prompt, &last).data;
        let (name, kind, essential) = (self.name.clone(), self.kind, self.essential);
        Ok(Case { name, kind, essential, file, graph, prompt, expected })
    }

    /// The row's model.
    ///
    /// # Errors
    /// When a temporary file cannot be written.
    pub fn model(&self) -> Result<(Arc<ModelFile>, Arc<Graph>), Error> {
        let folder = tempfile::tempdir().map_err(failed)?;
        let path = folder.path().join("row.gguf");
        fs::write(&path, self.bytes()?).map_err(failed)?;
        // The mapping outlives its folder.
        let file = Arc::new(ModelFile::open(&path).map_err(failed)?);
        let graph = Arc::new(Graph::open(&file, &[self.architecture()?]).map_err(failed)?);
        Ok((file, graph))
    }

    /// A plan of the row's model for steps of up to `tokens` tokens, all with logits, and the model's file, whose
    /// weights are zeros that take no room on disk.
    ///
    /// # Errors
    /// When a temporary file cannot be written.
    pub fn outline(&self, tokens: usize) -> Result<(Plan, Arc<ModelFile>), Error> {
        let folder = tempfile::tempdir().map_err(failed)?;
        let path = folder.path().join("row.gguf");
        let mut head = Vec::new();
        // No tensor follows, only a hole in the file.
        drop(self.writer()?.begin(&mut head).map_err(failed)?);
        let mut length = head.len();
        for (_, shape, format) in &self.tensors {
            let bytes = format.row_bytes(shape.iter().product()).map_err(failed)?;
            length += bytes.next_multiple_of(gguf::DEFAULT_ALIGNMENT);
        }
        fs::write(&path, head).map_err(failed)?;
        let hole = fs::OpenOptions::new().write(true).open(&path).map_err(failed)?;
        hole.set_len(length as u64).map_err(failed)?;
        // The mapping outlives its folder.
        let file = Arc::new(ModelFile::open(&path).map_err(failed)?);
        let graph = Arc::new(Graph::open(&file, &[self.architecture()?]).map_err(failed)?);
        Ok((Plan::build(graph, Limits { tokens, wanted: tokens }, &FUSIONS), file))
    }
}

impl Case {
    /// Loads the row's model on a device, for steps of up to all of the last tokens.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn load(&self, device: &dyn Device) -> Result<Box<dyn Baked>, DeviceError> {
        let limits = Limits { tokens: AT_ONCE, wanted: COMPARED };
        let plan = Arc::new(Plan::build(self.graph.clone(), limits, &FUSIONS));
        let pages = vec![self.prompt.len().div_ceil(device.facts().page_tokens); plan.page_groups.len()];
        let options = LoadOptions { pages, slots: recurrent::SLOTS, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
        device.load(plan, self.file.clone(), options)
    }

    /// Logits of the last tokens from a loaded model, with `at_once` tokens in a step.
    fn logits(&self, baked: &mut dyn Baked, page_tokens: usize, at_once: usize) -> Result<Vec<f32>, DeviceError> {
        let before = self.prompt.len() - COMPARED;
        let pages: Vec<u32> = (0..self.prompt.len().div_ceil(page_tokens) as u32).collect();
        let (mut step, mut slot) = (StepState::default(), None);
        let mut compute = |baked: &mut dyn Baked, tokens: &[u32], position, wanted| {
            step.clear();
            step.push(tokens, position, &[&pages], wanted);
            let other = slot.map_or(0, |slot| 1 - slot);
            step.keep(slot.replace(other), [(tokens.len() - 1, other)]);
            baked.submit(&step)?;
            baked.wait()
        };
        let (first, last) = self.prompt.split_at(before);
        for (i, chunk) in first.chunks(AT_ONCE).enumerate() {
            compute(baked, chunk, i * AT_ONCE, 0)?;
        }
        let mut logits = Vec::with_capacity(self.expected.len());
        for (i, chunk) in last.chunks(at_once).enumerate() {
            compute(baked, chunk, before + i * at_once, chunk.len())?;
            (0..chunk.len()).for_each(|row| logits.extend_from_slice(baked.logits(row)));
        }
        Ok(logits)
    }

    /// The largest difference between a device's logits and the oracle's, relative to the oracle's largest, over steps
    /// of each of the sizes in `at_once`.
    ///
    /// # Errors
    /// When the difference is more than rounding explains, or the device fails.
    pub fn check(&self, device: &dyn Device, at_once: &[usize]) -> Result<f32, String> {
        let wrong = |what: String| format!("{}: {what}", self.name);
        let mut baked = self.load(device).map_err(|error| wrong(error.to_string()))?;
        let mut largest = 0.0f32;
        let mut compare = |what: String, logits: Result<Vec<f32>, DeviceError>, tokens| {
            let wrong = |found: String| format!("{}, {what}: {found}", self.name);
            let (error, bound) =
                (self.error(&logits.map_err(|error| wrong(error.to_string()))?), self.bound(device, tokens));
            largest = largest.max(error);
            // NaN is within no bound.
            if error < bound { Ok(()) } else { Err(wrong(format!("off by {error:.1e}, beyond {bound:.0e}"))) }
        };
        let page_tokens = device.facts().page_tokens;
        for &tokens in at_once {
            compare(format!("{tokens} at once"), self.logits(&mut *baked, page_tokens, tokens), tokens)?;
        }
        if self.graph.slot_bytes() > 0 {
            for (i, logits) in self.of_sequences(&mut *baked).map_err(|error| wrong(error.to_string()))?.enumerate() {
                compare(format!("sequence {i} of several"), Ok(logits), AT_ONCE)?;
            }
        }
        Ok(largest)
    }

    fn error(&self, logits: &[f32]) -> f32 {
        if logits.len() != self.expected.len() || logits.iter().any(|x| !x.is_finite()) {
            return f32::NAN;
        }
        let largest = self.expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let difference = self.expected.iter().zip(logits).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        difference / largest
    }

    fn bound(&self, device: &dyn Device, at_once: usize) -> f32 {
        let bytes = ["cuda", "cpu"].iter().any(|name| device.facts().name.starts_with(name));
        let quantised = self.graph.weights.iter().any(|weight| !weight.format.is_float());
        let tiles = at_once > 16 || self.prompt.len() > COMPARED;
        // Inputs of quantised weights are bytes there, and halves where tiles are multiplied.
        match bytes && quantised {
            true => 2e-2,
            false if tiles => 3e-3,
            false => 1e-3,
        }
    }
}

const LINEAR: &str = "{ op = 'linear', in = 'x', weight = 'w', out = 'y' }";

/// Formats that differ in how their codes are put together, and how they are scaled.
const ESSENTIAL: [Format; 5] = [Format::F16, Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::Q6_K];

/// Products with matrices of every format, of rows and columns that are no multiple of any tile.
fn linear() -> Vec<Row> {
    let row = |format: Format| {
        // Rows are whole blocks; those of 32 also with columns that are no multiple of 256.
        let columns = if format.block().elements > 32 { 512 } else { 288 };
        let tensors = [("embed", &[TOKENS, columns][..], Format::F32), ("w", &[130, columns], format)];
        Row::new(format!("linear {format}"), Kind::Linear, LINEAR, &tensors).essential(ESSENTIAL.contains(&format))
    };
    FORMATS.iter().map(|row_of| row(row_of.format)).chain([Format::F32, Format::F16, Format::BF16].map(odd)).collect()
}

/// Products whose rows and inputs are no multiple of anything: of embeddings, of a norm, and of sums.
fn odd(format: Format) -> Row {
    let ops = "{ op = 'linear', in = 'x', weight = 'a', out = 'h' },\
               { op = 'norm', in = 'h', weight = 'norm', out = 'h' }, { op = 'linear', in = 'h', weight = 'b', bias = 'bias', out = 'h' },\
               { op = 'add', in = ['x', 'h'], out = 'h' }, { op = 'norm', in = 'h', group = 15, out = 'h' },\
               { op = 'linear', in = 'h', weight = 'w', out = 'y' }";
    let tensors = [
        ("embed", &[TOKENS, 45][..], format),
        ("a", &[7, 45], format),
        ("norm", &[7], Format::F32),
        ("b", &[45, 7], format),
        ("bias", &[45], Format::F32),
        ("w", &[131, 45], format),
    ];
    Row::new(format!("linear {format} of odd rows"), Kind::Linear, ops, &tensors)
}

/// Embeddings in every format.
fn embed() -> Vec<Row> {
    let row = |format: Format| {
        let ops = "{ op = 'soft_cap', in = 'x', cap = 2, out = 'y' }";
        let tensors = [("embed", &[TOKENS.max(256), 256][..], format)];
        Row::new(format!("embed {format}"), Kind::Embed, ops, &tensors).essential(format == Format::Q4_0)
    };
    FORMATS.iter().map(|row_of| row(row_of.format)).collect()
}

/// What is done to inputs and outputs of products.
fn around() -> Vec<Row> {
    let mut rows = Vec::new();
    let gates = [
        ("silu", Format::Q4_0),
        ("gelu", Format::F32),
        ("gelu_tanh", Format::F16),
        ("quick_gelu", Format::F32),
        ("relu", Format::F32),
        ("relu2", Format::F32),
        ("sigmoid", Format::F32),
        ("tanh", Format::F32),
        ("softplus", Format::F32),
        ("clamped_swish", Format::Q8_0),
    ];
    for (activation, format) in gates {
        let gate = match activation {
            "clamped_swish" => "{ op = 'clamped_swish', in = ['g', 'u'], out = 'f' }".to_owned(),
            _ => format!(
                "{{ op = 'activate', in = 'g', kind = \"'{activation}'\", out = 'g' }},\
                 {{ op = 'mul', in = ['u', 'g'], out = 'f' }}"
            ),
        };
        let ops = format!(
            "{{ op = 'norm', in = 'x', weight = 'norm', offset = 1, out = 'h' }},\
             {{ op = 'linear', in = 'h', weight = 'gate', out = 'g' }}, {{ op = 'linear', in = 'h', weight = 'up', out = 'u' }},\
             {gate}, {{ op = 'linear', in = 'f', weight = 'down', bias = 'bias', out = 'f' }},\
             {{ op = 'add', in = ['x', 'f'], out = 'y' }}"
        );
        let tensors = [
            ("embed", &[TOKENS, 96][..], Format::F32),
            ("norm", &[96], Format::F32),
            ("gate", &[160, 96], format),
            ("up", &[160, 96], format),
            ("down", &[96, 160], format),
            ("bias", &[96], Format::F32),
        ];
        let name = format!("gate {activation} {format}");
        rows.push(Row::new(name, Kind::Around, &ops, &tensors).essential(activation == "silu"));
    }
    for (kind, width) in [("rms", 96), ("layer", 96), ("rms", 2080), ("layer", 2080)] {
        let ops =
            format!("{{ op = 'norm', in = 'x', weight = 'norm', bias = 'bias', kind = \"'{kind}'\", out = 'y' }}");
        let vector: &[usize] = &[width];
        let tensors = [
            ("embed", &[TOKENS.max(width), width][..], Format::F32),
            ("norm", vector, Format::F32),
            ("bias", vector, Format::F32),
        ];
        rows.push(Row::new(format!("norm {kind} {width}"), Kind::Around, &ops, &tensors).essential(width == 96));
    }
    // Norms of groups, whose weights are shared, their own, or none; and what is done to single values.
    let ops = "{ op = 'norm', in = 'x', weight = 'shared', bias = 'bias', group = 32, kind = \"'layer'\", out = 'a' },\
               { op = 'norm', in = 'x', weight = 'own', group = 48, out = 'b' }, { op = 'norm', in = 'x', group = 24, out = 'c' },\
               { op = 'mul', in = ['a', 'b'], out = 'a' }, { op = 'add', in = ['a', 'c'], out = 'a' },\
               { op = 'activate', in = 'a', kind = \"'xielu'\", above = 0.8, below = 0.6, slope = 0.5, eps = -1e-6, out = 'a' },\
               { op = 'activate', in = 'a', kind = \"'silu'\", out = 'b' }, { op = 'scale', in = 'b', factor = 0.3, out = 'b' },\
               { op = 'slice', in = 'a', first = 32, width = 64, out = 'c' }, { op = 'slice', in = 'b', first = 5, width = 64, out = 'd' },\
               { op = 'mul', in = ['c', 'd'], out = 'c' }, { op = 'add', in = ['c', 'c'], out = 'c' },\
               { op = 'linear', in = 'c', weight = 'w', out = 'c' }, { op = 'add', in = ['c', 'a'], out = 'c' },\
               { op = 'temper', in = 'c', factor = 0.4, every = 7, offset = 1, out = 'y' }";
    let tensors = [
        ("embed", &[TOKENS, 96][..], Format::F32),
        ("shared", &[32], Format::F32),
        ("bias", &[32], Format::F32),
        ("own", &[96], Format::F32),
        ("w", &[96, 64], Format::F32),
    ];
    rows.push(Row::new("values", Kind::Around, ops, &tensors).essential(true));
    // Positions that are learned.
    let ops = "{ op = 'embed', weight = 'positions', by = \"'position'\", out = 'p' }, { op = 'add', in = ['x', 'p'], out = 'y' }";
    let tensors = [("embed", &[TOKENS, 96][..], Format::F32), ("positions", &[CONTEXT, 96], Format::F16)];
    rows.push(Row::new("positions", Kind::Around, ops, &tensors));
    rows
}

/// Attention: sizes of heads, how many share keys, what scores go through, and how long the context is.
fn attention() -> Vec<Row> {
    let table = [
        (64, 4, 4, "window = 5", "main", COMPARED),
        (64, 6, 2, "sinks = 'sinks'", "turned", COMPARED),
        (80, 4, 2, "cap = 3", "main", COMPARED),
        (128, 8, 1, "", "turned", COMPARED),
        (128, 3, 1, "window = 9, sinks = 'sinks'", "main", COMPARED),
        (64, 4, 2, "chunk = 7", "none", COMPARED),
        (64, 4, 2, "skipped = 1", "main", COMPARED),
        (64, 6, 2, "alibi = 8", "none", COMPARED),
        (64, 6, 2, "alibi = 8, cap = 4", "none", 640),
        (256, 2, 1, "", "main", COMPARED),
        // Contexts that GPUs divide. Its products are of the size that those of the other essential row are.
        (64, 6, 2, "sinks = 'sinks'", "turned", 640),
    ];
    let row = |&(dim, heads, kv, with, rope, tokens): &(usize, usize, usize, &str, &str, usize)| {
        let name = format!("attention {dim} {heads}/{kv} {with} {rope} {tokens}");
        let row = attend(name, (dim, heads, kv), with, rope).essential(tokens > COMPARED || (dim, heads) == (128, 3));
        Row { tokens, ..row }
    };
    table.iter().map(row).collect()
}

fn attend(name: impl Into<String>, (dim, heads, kv): (usize, usize, usize), with: &str, rope: &str) -> Row {
    let comma = if with.is_empty() { "" } else { "," };
    let linear = |x: &str| format!("{{ op = 'linear', in = 'x', weight = 'w{x}', out = '{x}' }},");
    let turned = |x: &str| {
        let norm = format!("{{ op = 'norm', in = '{x}', weight = 'norm', group = {dim}, out = '{x}' }},");
        let turn = format!("{{ op = 'rope', in = '{x}', head_dim = {dim}, rope = '{rope}', out = '{x}' }},");
        format!("{}{}", if heads > 4 { norm.as_str() } else { "" }, if rope == "none" { "" } else { turn.as_str() })
    };
    let ops = format!(
        "{}{}{}{}{}{{ op = 'store', k = 'k', v = 'v', kv_heads = {kv}, head_dim = {dim}, out = 'kv' }},\
         {{ op = 'attention', in = 'q', kv = 'kv', heads = {heads}, scale = 0.1{comma} {with}, out = 'y' }}",
        linear("q"),
        linear("k"),
        linear("v"),
        turned("q"),
        turned("k"),
    );
    let tensors = [
        ("embed", &[TOKENS.max(heads * dim), 64][..], Format::F32),
        ("wq", &[heads * dim, 64], Format::F32),
        ("wk", &[kv * dim, 64], Format::F32),
        ("wv", &[kv * dim, 64], Format::F32),
        ("norm", &[dim], Format::F32),
        ("sinks", &[heads], Format::F32),
    ];
    let mut row = Row::new(name, Kind::Attention, &ops, &tensors);
    // What no op asks for is an error.
    row.tensors.retain(|(name, ..)| !["norm", "sinks"].contains(name) || ops.contains(&format!("'{name}'")));
    row
}

/// Experts, with an input of each token and one of each use.
fn experts() -> Vec<Row> {
    let row = |width: usize, (format, experts, route, weighed): (Format, usize, &str, bool)| {
        let ops = format!(
            "{{ op = 'linear', in = 'x', weight = 'router', out = 'r' }},\
                   {{ op = 'route', in = 'r', used = 3, {route}, out = 'route' }},"
        ) + "\
                   { op = 'linear', in = 'x', weight = 'gate', route = 'route', out = 'g' },\
                   { op = 'linear', in = 'x', weight = 'up', route = 'route', out = 'u' },\
                   { op = 'activate', in = 'g', out = 'g' }, { op = 'mul', in = ['g', 'u'], out = 'f' },\
                   { op = 'linear', in = 'f', weight = 'down', bias = 'bias', route = 'route', out = 'f' },\
                   { op = 'combine', in = 'f', route = 'route', out = 'f' }, { op = 'add', in = ['x', 'f'], out = 'y' }";
        let tensors = [
            ("embed", &[TOKENS.max(width), width][..], Format::F32),
            ("router", &[experts, width], Format::F32),
            ("gate", &[experts, width, width], format),
            ("up", &[experts, width, width], format),
            ("down", &[experts, width, width], format),
            ("bias", &[experts, width], Format::F32),
            ("choice", &[experts], Format::F32),
        ];
        let ops = match weighed {
            true => ops
                .replace("{ op = 'linear', in = 'x', weight = 'gate'", "{ op = 'weigh', in = 'x', route = 'route', out = 'h' }, { op = 'linear', in = 'h', weight = 'gate'")
                .replace("in = 'x', weight = 'up'", "in = 'h', weight = 'up'")
                .replace("op = 'combine', in = 'f', route = 'route'", "op = 'combine', in = 'f', route = 'route', weighted = false"),
            false => ops,
        };
        let name = format!("experts {format} {experts} {route}{}", if weighed { " weighed" } else { "" });
        let mut row = Row::new(name, Kind::Experts, &ops, &tensors).essential(format == Format::Q4_0);
        // What no op asks for is an error.
        row.tensors.retain(|(name, ..)| *name != "choice" || route.contains("choice"));
        row
    };
    let softmax = "normalised = false";
    let others = [
        (Format::F32, 7, "normalised = false, score = \"'sigmoid'\"", true),
        (Format::F32, 7, "normalised = true, scale = 1.5", false),
        (Format::F32, 7, "score = \"'sigmoid'\", bias = 'choice', scale = 2.5", false),
        (Format::F32, 12, "score = \"'sigmoid'\", bias = 'choice', groups = 4, groups_used = 2", false),
        (Format::F32, 12, "groups = 3, groups_used = 2, normalised = false", false),
    ];
    let formats = [Format::BF16, Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::MXFP4];
    let rows = formats.map(|format| (format, 7, softmax, false)).into_iter().chain(others).map(|of| row(256, of));
    // Of rows that are no multiple of anything.
    rows.chain([row(131, (Format::F16, 7, softmax, false))]).collect()
}

/// All rows.
pub fn table() -> Vec<Row> {
    [linear(), embed(), around(), attention(), experts(), recurrent::rows()].into_iter().flatten().collect()
}

/// A product to be timed, the first of two: the second makes few logits of what the first computes.
pub fn product(format: Format, rows: usize, columns: usize) -> Row {
    let ops =
        "{ op = 'linear', in = 'x', weight = 'w', out = 'h' }, { op = 'linear', in = 'h', weight = 'v', out = 'y' }";
    let tensors =
        [("embed", &[TOKENS, columns][..], format), ("w", &[rows, columns], format), ("v", &[96, rows], Format::F16)];
    Row::new(format!("{rows}×{columns} {format}"), Kind::Linear, ops, &tensors)
}

/// The products of a layer to be timed, and few logits: of `width` values a token, `heads` values of all query heads,
/// and `wide` between gate and down.
pub fn layer(format: Format, width: usize, heads: usize, wide: usize) -> Row {
    let ops = "{ op = 'norm', in = 'x', weight = 'norm', out = 'h' }, { op = 'linear', in = 'h', weight = 'q', out = 'h' },\
               { op = 'linear', in = 'h', weight = 'o', out = 'h' }, { op = 'add', in = ['x', 'h'], out = 'x' },\
               { op = 'norm', in = 'x', weight = 'norm', out = 'h' }, { op = 'linear', in = 'h', weight = 'gate', out = 'g' },\
               { op = 'linear', in = 'h', weight = 'up', out = 'u' },\
               { op = 'activate', in = 'g', kind = \"'silu'\", out = 'g' }, { op = 'mul', in = ['g', 'u'], out = 'f' },\
               { op = 'linear', in = 'f', weight = 'down', out = 'f' }, { op = 'add', in = ['x', 'f'], out = 'x' },\
               { op = 'linear', in = 'x', weight = 'v', out = 'y' }";
    let tensors = [
        ("embed", &[TOKENS, width][..], format),
        ("v", &[96, width], Format::F16),
        ("norm", &[width], Format::F32),
        ("q", &[heads, width], format),
        ("o", &[width, heads], format),
        ("gate", &[wide, width], format),
        ("up", &[wide, width], format),
        ("down", &[width, wide], format),
    ];
    Row::new(format!("layer {width} {format}"), Kind::Around, ops, &tensors)
}

/// Attention to be timed, of heads of 128 values.
pub fn long_attention(heads: usize, kv: usize) -> Row {
    attend("attention", (128, heads, kv), "", "main")
}

#[cfg(test)]
mod tests {
    use basert_plan::PlanNode;

    use super::*;

    #[test]
    fn the_products_of_a_layer_are_fused_as_those_of_models_are() {
        let (plan, _) = layer(Format::Q4_K, 256, 512, 768).outline(1).unwrap();
        let names = plan.nodes.iter().map(PlanNode::name).filter(|name| name != "select");
        let expected = ["embed", "norm+linear", "linear+add", "norm+linear+gate", "linear+add", "linear"];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
