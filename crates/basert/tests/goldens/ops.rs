//! The op table: ops, formats and shapes, each as a model of that op alone, against the oracle. On the CPU, and on the GPU
//! that `BASERT_TEST_GPU` names or its simulation.

use std::sync::Arc;

use basert::core::{FORMATS, Format, KvFormat, codec};
use basert::files::{ModelFile, TensorSpec, gguf};
use basert::graph::{Architecture, Graph};
use basert::plan::{Device, FUSIONS, Limits};
use basert_convert::Random;

use crate::golden::Golden;
use crate::gpu;

/// Tokens of every prompt.
const PROMPT: usize = 40;
/// Rows of embeddings, as far as that is enough for their logits.
const TOKENS: usize = 160;

/// A row of the table: a model of a few ops, and its tensors.
pub struct Row {
    name: String,
    /// What comes after `embed`, which computes `x`, up to `logits`.
    ops: String,
    tensors: Vec<(&'static str, Vec<usize>, Format)>,
    /// Values of tensors that are not random.
    given: Vec<(&'static str, Vec<f32>)>,
}

impl Row {
    fn new(name: impl Into<String>, ops: &str, tensors: &[(&'static str, &[usize], Format)]) -> Row {
        let tensors = tensors.iter().map(|(name, shape, format)| (*name, shape.to_vec(), *format)).collect();
        Row { name: name.into(), ops: ops.to_owned(), tensors, given: Vec::new() }
    }

    /// A model whose logits after token t are twice the row t % `rows.len()`.
    pub fn of_logits(rows: &[Vec<f32>]) -> Row {
        let (kinds, vocabulary) = (rows.len(), rows[0].len());
        let embed = (0..vocabulary * kinds).map(|i| f32::from(u8::from(i / kinds % kinds == i % kinds))).collect();
        let w = (0..vocabulary * kinds).map(|i| rows[i % kinds][i / kinds]).collect();
        let ops = format!("{LINEAR}, {{ op = 'add', in = ['y', 'y'], out = 'y' }}");
        let shape = &[vocabulary, kinds][..];
        let row = Row::new("logits", &ops, &[("embed", shape, Format::F32), ("w", shape, Format::F32)]);
        Row { given: vec![("embed", embed), ("w", w)], ..row }
    }

    /// Weights that keep the size of what they multiply.
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        if let Some((_, values)) = self.given.iter().find(|(given, _)| *given == name) {
            return values.clone();
        }
        let mut random =
            Random::new(1, name.bytes().chain(self.name.bytes()).fold(7, |h, b| h * 31 % 65_521 + u64::from(b)));
        let (count, inputs) = (shape.iter().product(), *shape.last().unwrap());
        let scale = if shape.len() == 1 || name == "embed" { 1.0 } else { 1.0 / (inputs as f32).sqrt() };
        (0..count).map(|_| scale * random.normal()).collect()
    }

    pub fn model(&self) -> Golden {
        let mut writer = gguf::Writer::new();
        writer.set("general.architecture", "row").unwrap();
        for (name, shape, format) in &self.tensors {
            writer.declare(TensorSpec::new(*name, *format, shape)).unwrap();
        }
        let mut tensors = writer.begin(Vec::new()).unwrap();
        for (name, shape, format) in &self.tensors {
            let values = self.values(name, shape);
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            codec::encode(*format, &values, &mut bytes).unwrap();
            tensors.append(&bytes).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("row.gguf");
        std::fs::write(&path, tensors.finish().unwrap()).unwrap();

        let names: String = self.tensors.iter().map(|(name, ..)| format!("{name} = {{ gguf = '{name}' }}\n")).collect();
        let text = format!(
            "name = 'row'\ngguf = ['row']\nuse = ['common']\n[parameters]\nlayers = 1\ncontext = 256\neps = 1e-5\n\
             head_dim = 64\nrope_dim = 'head_dim'\nrope_scaling = \"'none'\"\nuse_sliding_window = false\n\
             [tensors]\n{names}[rope.main]\nbase = 10000\nfactor = 1\nlow_freq_factor = 1\nhigh_freq_factor = 4\n\
             original_context = 256\n[rope.turned]\nbase = 10000\ndim = 32\npairs = \"'interleaved'\"\n[graph]\n\
             start = [ {{ op = 'embed', weight = 'embed', out = 'x' }}, {} ]\n\
             block = []\nfinish = [ {{ op = 'select', in = 'y', out = 'logits' }} ]\n",
            self.ops
        );
        let architecture = Architecture::parse(&text, &self.name).unwrap_or_else(|error| panic!("{error}"));
        let file = Arc::new(ModelFile::open(&path).unwrap());
        let graph = Graph::open(&file, &[architecture]).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        // No output is narrower.
        let mut random = Random::new(2, 0);
        let prompt = (0..PROMPT).map(|_| random.below(96) as u32).collect();
        Golden::without_logits(self.name.clone(), file, Arc::new(graph), prompt, folder)
    }
}

const LINEAR: &str = "{ op = 'linear', in = 'x', weight = 'w', out = 'y' }";

/// Products with matrices of every format, of rows and columns that are no multiple of any tile.
fn linear() -> Vec<Row> {
    let row = |format: Format| {
        // Rows are whole blocks; those of 32 also with columns that are no multiple of 256.
        let columns = if format.block().elements > 32 { 512 } else { 288 };
        let tensors = [("embed", &[TOKENS, columns][..], Format::F32), ("w", &[130, columns], format)];
        Row::new(format!("linear {format}"), LINEAR, &tensors)
    };
    FORMATS.iter().map(|row_of| row(row_of.format)).collect()
}

/// Embeddings in every format.
fn embed() -> Vec<Row> {
    let row = |format: Format| {
        let ops = "{ op = 'soft_cap', in = 'x', cap = 2, out = 'y' }";
        Row::new(format!("embed {format}"), ops, &[("embed", &[TOKENS.max(256), 256][..], format)])
    };
    FORMATS.iter().map(|row_of| row(row_of.format)).collect()
}

/// What is done to inputs and outputs of products.
fn around() -> Vec<Row> {
    let mut rows = Vec::new();
    for (activation, format) in [("silu", Format::Q4_0), ("gelu_tanh", Format::F16), ("clamped_swish", Format::Q8_0)] {
        let ops = format!(
            "{{ op = 'norm', in = 'x', weight = 'norm', offset = 1, out = 'h' }},\
             {{ op = 'linear', in = 'h', weight = 'gate', out = 'g' }}, {{ op = 'linear', in = 'h', weight = 'up', out = 'u' }},\
             {{ op = 'gate', gate = 'g', up = 'u', activation = \"'{activation}'\", out = 'f' }},\
             {{ op = 'linear', in = 'f', weight = 'down', bias = 'bias', out = 'f' }},\
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
        rows.push(Row::new(format!("gate {activation} {format}"), &ops, &tensors));
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
        rows.push(Row::new(format!("norm {kind} {width}"), &ops, &tensors));
    }
    rows
}

/// Attention: sizes of heads, how many share keys, and what scores go through.
fn attention() -> Vec<Row> {
    let table = [
        (64, 4, 4, "window = 5", "main"),
        (64, 6, 2, "sinks = 'sinks'", "turned"),
        (80, 4, 2, "cap = 3", "main"),
        (128, 8, 1, "", "turned"),
        (128, 3, 1, "window = 9, sinks = 'sinks'", "main"),
        (256, 2, 1, "", "main"),
    ];
    let row = |&(dim, heads, kv, with, rope): &(usize, usize, usize, &str, &str)| {
        let (comma, norm) =
            (if with.is_empty() { "" } else { "," }, if heads > 4 { ", q_norm = 'norm', k_norm = 'norm'" } else { "" });
        let linear = |x: &str| format!("{{ op = 'linear', in = 'x', weight = 'w{x}', out = '{x}' }},");
        let ops = format!(
            "{}{}{}{{ op = 'rope_cache', q = 'q', k = 'k', v = 'v', heads = {heads}, kv_heads = {kv}, head_dim = {dim}, \
             rope = '{rope}'{norm}, out = 'q' }},\
             {{ op = 'attention', in = 'q', heads = {heads}, scale = 0.1{comma} {with}, out = 'y' }}",
            linear("q"),
            linear("k"),
            linear("v"),
        );
        let tensors = [
            ("embed", &[TOKENS.max(heads * dim), 64][..], Format::F32),
            ("wq", &[heads * dim, 64], Format::F32),
            ("wk", &[kv * dim, 64], Format::F32),
            ("wv", &[kv * dim, 64], Format::F32),
            ("norm", &[dim], Format::F32),
            ("sinks", &[heads], Format::F32),
        ];
        let mut row = Row::new(format!("attention {dim} {heads}/{kv} {with} {rope}"), &ops, &tensors);
        // What no op asks for is an error.
        row.tensors.retain(|(name, ..)| !["norm", "sinks"].contains(name) || ops.contains(&format!("'{name}'")));
        row
    };
    table.iter().map(row).collect()
}

/// Experts, with an input of each token and one of each use.
fn experts() -> Vec<Row> {
    let row = |format: Format| {
        let ops = "{ op = 'linear', in = 'x', weight = 'router', out = 'r' },\
                   { op = 'route', in = 'r', used = 3, normalised = false, out = 'route' },\
                   { op = 'linear', in = 'x', weight = 'gate', route = 'route', out = 'g' },\
                   { op = 'linear', in = 'x', weight = 'up', route = 'route', out = 'u' },\
                   { op = 'gate', gate = 'g', up = 'u', out = 'f' },\
                   { op = 'linear', in = 'f', weight = 'down', bias = 'bias', route = 'route', out = 'f' },\
                   { op = 'combine', in = 'f', route = 'route', out = 'f' }, { op = 'add', in = ['x', 'f'], out = 'y' }";
        let tensors = [
            ("embed", &[TOKENS.max(256), 256][..], Format::F32),
            ("router", &[7, 256], Format::F32),
            ("gate", &[7, 256, 256], format),
            ("up", &[7, 256, 256], format),
            ("down", &[7, 256, 256], format),
            ("bias", &[7, 256], Format::F32),
        ];
        Row::new(format!("experts {format}"), ops, &tensors)
    };
    [Format::BF16, Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::MXFP4].into_iter().map(row).collect()
}

fn table() -> Vec<Row> {
    [linear(), embed(), around(), attention(), experts()].into_iter().flatten().collect()
}

/// Every row, with so many tokens at once.
fn check(device: &dyn Device, at_once: &[usize]) {
    let bytes = ["cuda", "cpu"].iter().any(|name| device.facts().name.starts_with(name));
    let mut wrong = Vec::new();
    for row in table() {
        let golden = row.model().by_the_oracle();
        for &tokens in at_once {
            let limits = Limits { tokens, wanted: tokens };
            let error = golden.error(&golden.on(device, KvFormat::F16, limits, &FUSIONS));
            // Inputs of quantised weights are bytes there, and halves where tiles are multiplied.
            let bound = match bytes && golden.has_quantised_weights() {
                true => 2e-2,
                false if tokens > 16 => 3e-3,
                false => 1e-3,
            };
            println!("{:40} {tokens:3} at once {error:.1e}", golden.name);
            if error >= bound {
                wrong.push(format!("{}, {tokens} at once: {error}, beyond {bound}", golden.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn cpu_ops_agree_with_the_oracle() {
    check(&basert_cpu::CpuDevice::new(Some(2)).unwrap(), &[1, 4, 7, PROMPT]);
}

#[test]
fn gpu_ops_agree_with_the_oracle() {
    let device = gpu::device();
    // Each size is a kernel more to be compiled.
    let at_once: &[usize] = if device.facts().name == "simt" { &[1, PROMPT] } else { &[1, 2, 4, 16, PROMPT] };
    check(&*device, at_once);
}
