//! Small random graphs: any ops in any order, with operands that several share, windows, chunks, experts. What the
//! oracle computes of them, every device computes, fused or not.

use std::fmt::Write;

use basert::core::{Format, KvFormat, codec};
use basert::files::{ModelFile, TensorSpec, gguf};
use basert::graph::{Architecture, Graph};
use basert::plan::{FUSIONS, Limits};
use basert_convert::Random;
use basert_cpu::{CpuDevice, Isa};

use crate::golden::Golden;
use crate::gpu;

/// Graphs a run looks at, and of which size.
const GRAPHS: u64 = 40;
const OPS: usize = 9;
const PROMPT: usize = 48;
const VOCABULARY: usize = 96;
const LIMITS: Limits = Limits { tokens: 32, wanted: 32 };

/// A graph while it is made, as an architecture file and its tensors.
struct Draft {
    random: Random,
    /// Widths are multiples of this number.
    unit: usize,
    ops: String,
    ropes: String,
    tensors: Vec<(String, Vec<usize>)>,
    /// The values so far, with their widths.
    values: Vec<(String, usize)>,
}

impl Draft {
    fn below(&mut self, end: usize) -> usize {
        self.random.below(end)
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn width(&mut self) -> usize {
        self.unit * (1 + self.below(3))
    }

    /// A tensor, with its name in quotes.
    fn tensor(&mut self, shape: &[usize]) -> String {
        let name = format!("t{}", self.tensors.len());
        self.tensors.push((name.clone(), shape.to_vec()));
        format!("'{name}'")
    }

    /// A value so far; late ones are likelier.
    fn value(&mut self) -> (String, usize) {
        let wide = self.wide();
        let from = if self.flip() { wide.len().saturating_sub(3) } else { 0 };
        wide[from + self.below(wide.len() - from)].clone()
    }

    /// The values that are read again: the norm of very few numbers says nothing but their signs.
    fn wide(&self) -> Vec<(String, usize)> {
        self.values.iter().filter(|(_, width)| *width >= 8).cloned().collect()
    }

    fn push(&mut self, op: &str, attributes: &str, width: usize) -> String {
        let name = format!("v{}", self.values.len());
        writeln!(self.ops, "  {{ op = '{op}', {attributes}, out = '{name}' }},").unwrap();
        if width > 0 {
            self.values.push((name.clone(), width));
        }
        name
    }

    fn linear(&mut self, x: &(String, usize), width: usize) -> String {
        let weight = self.tensor(&[width, x.1]);
        let bias = if self.flip() { format!(", bias = {}", self.tensor(&[width])) } else { String::new() };
        self.push("linear", &format!("in = '{}', weight = {weight}{bias}", x.0), width)
    }

    fn norm(&mut self, x: &(String, usize), group: usize) -> String {
        let vector = |draft: &mut Draft| match draft.below(3) {
            0 => String::new(),
            1 => draft.tensor(&[group]),
            _ => draft.tensor(&[x.1]),
        };
        let mut attributes = format!("in = '{}', group = {group}", x.0);
        let weight = vector(self);
        if !weight.is_empty() {
            write!(attributes, ", weight = {weight}").unwrap();
        }
        if self.below(3) == 0 {
            // As long as the weight.
            let last = self.tensors.last().filter(|_| !weight.is_empty()).map(|(_, shape)| shape[0]);
            let length = last.unwrap_or_else(|| self.pick(&[group, x.1]));
            write!(attributes, ", bias = {}", self.tensor(&[length])).unwrap();
        }
        let kind = self.pick(&["rms", "layer"]);
        self.push("norm", &format!("{attributes}, kind = \"'{kind}'\""), x.1)
    }

    fn attention(&mut self) {
        let (head_dim, kv) = (self.pick(&[12, 16, 32, 48]), 1 + self.below(2));
        let heads = kv * (1 + self.below(3));
        let (x, other) = (self.value(), self.value());
        let mut q = self.linear(&x, heads * head_dim);
        let mut k = self.linear(&x, kv * head_dim);
        // Values may be the keys before they are rotated, and both may be of another value than queries.
        let v = match self.below(4) {
            0 => k.clone(),
            1 => self.linear(&other, kv * head_dim),
            _ => self.linear(&x, kv * head_dim),
        };
        if self.flip() {
            let weight = self.tensor(&[head_dim]);
            for (of, heads) in [(&mut q, heads), (&mut k, kv)] {
                let attributes = format!("in = '{of}', weight = {weight}, group = {head_dim}");
                *of = self.push("norm", &attributes, heads * head_dim);
            }
        }
        let rotated = self.below(4);
        for (i, (of, heads)) in [(&mut q, heads), (&mut k, kv)].into_iter().enumerate() {
            // Now and then only queries, or none.
            if rotated > i {
                let attributes = format!("in = '{of}', head_dim = {head_dim}, rope = 'r{head_dim}'");
                *of = self.push("rope", &attributes, heads * head_dim);
            }
        }
        let store = format!("k = '{k}', v = '{v}', kv_heads = {kv}, head_dim = {head_dim}");
        writeln!(self.ops, "  {{ op = 'store', {store}, out = 'kv' }},").unwrap();
        let reach = match self.below(4) {
            0 => String::new(),
            1 => format!(", window = {}", 1 + self.below(40)),
            2 => format!(", skipped = {}", 1 + self.below(3)),
            _ => format!(", chunk = {}", 1 + self.below(40)),
        };
        let cap = if self.below(4) == 0 { ", cap = 3" } else { "" };
        let alibi = if self.below(4) == 0 { ", alibi = 6" } else { "" };
        let sinks = if self.below(3) == 0 { format!(", sinks = {}", self.tensor(&[heads])) } else { String::new() };
        let attributes = format!("in = '{q}', kv = 'kv', heads = {heads}, scale = 0.2{reach}{cap}{alibi}{sinks}");
        let a = self.push("attention", &attributes, heads * head_dim);
        // What was made for it may be read again.
        if self.flip() {
            let width = self.width();
            self.linear(&(a, heads * head_dim), width);
        }
    }

    /// A convolution, of keys or of anything.
    fn conv(&mut self, x: &str, width: usize) -> String {
        let taps = 1 + self.below(5);
        let weight = self.tensor(&[width, taps]);
        let bias = if self.flip() { format!(", bias = {}", self.tensor(&[width])) } else { String::new() };
        self.push("conv", &format!("in = '{x}', weight = {weight}{bias}"), width)
    }

    /// A vector for this number of columns, of which some may share a number, or none, as an attribute.
    fn shared(&mut self, name: &str, columns: usize) -> String {
        let times = [1, 2, 3, columns].into_iter().filter(|times| columns.is_multiple_of(*times)).collect::<Vec<_>>();
        let length = columns / self.pick(&times);
        if self.below(3) > 0 { format!(", {name} = {}", self.tensor(&[length])) } else { String::new() }
    }

    fn linear_attention(&mut self) {
        let (key_dim, value_dim) = (self.pick(&[4, 6, 16, 24]), self.pick(&[1, 4, 7, 16, 32]));
        let keys = 1 + self.below(3);
        let heads = keys * (1 + self.below(3));
        let (x, other) = (self.value(), self.value());
        let q = self.linear(&x, keys * key_dim);
        let mut k = self.linear(&x, keys * key_dim);
        let mut v = self.linear(&other, heads * value_dim);
        if self.flip() {
            (k, v) = (self.conv(&k, keys * key_dim), self.conv(&v, heads * value_dim));
        }
        // Keys of length 1, so that the delta rule does not overshoot, and decays below 0.
        let attributes = format!("in = '{k}', group = {key_dim}");
        k = self.push("norm", &attributes, keys * key_dim);
        let factor = 1.0 / (key_dim as f32).sqrt();
        k = self.push("scale", &format!("in = '{k}', factor = {factor}"), keys * key_dim);
        let (by_row, of_heads) = (self.flip(), self.flip());
        let decays = heads * if by_row { key_dim } else { 1 };
        let mut decay = self.linear(&x, if of_heads { heads } else { decays });
        let width = if of_heads { heads } else { decays };
        decay = self.push("activate", &format!("in = '{decay}', kind = \"'softplus'\""), width);
        let rate = self.tensor(&[decays]);
        decay = self.push("affine", &format!("in = '{decay}', weight = {rate}, decay = true"), decays);
        let mut attributes = format!(
            "q = '{q}', k = '{k}', v = '{v}', decay = '{decay}', heads = {heads}, key_heads = {keys}, tiled = {}, \
             delta = {}, scale = 0.5",
            self.flip(),
            self.flip()
        );
        if self.below(3) > 0 {
            let beta = self.linear(&x, heads);
            let beta = self.push("activate", &format!("in = '{beta}', kind = \"'sigmoid'\""), heads);
            write!(attributes, ", beta = '{beta}'").unwrap();
        }
        self.push("linear_attention", &attributes, heads * value_dim);
    }

    fn experts(&mut self) {
        let (groups, size) = (1 + self.below(3), 2 + self.below(3));
        let (count, x, inner) = (groups * size, self.value(), self.width());
        let router = self.linear(&x, count);
        let used = 1 + self.below(size.min(3));
        let score = self.pick(&["softmax", "sigmoid"]);
        let normalised = self.flip();
        let bias = if self.flip() { format!(", bias = {}", self.tensor(&[count])) } else { String::new() };
        let used_groups = 1 + self.below(groups);
        let attributes = format!(
            "in = '{router}', used = {used}, score = \"'{score}'\", groups = {groups}, groups_used = {used_groups}, \
             normalised = {normalised}, scale = 1.3{bias}"
        );
        writeln!(self.ops, "  {{ op = 'route', {attributes}, out = 'route' }},").unwrap();
        let mut product = |of: &str, name: &str, width: usize, inputs: usize| {
            let weight = self.tensor(&[count, width, inputs]);
            writeln!(
                self.ops,
                "  {{ op = 'linear', in = '{of}', weight = {weight}, route = 'route', out = '{name}' }},"
            )
            .unwrap();
        };
        product(&x.0, "g", inner, x.1);
        product(&x.0, "u", inner, x.1);
        writeln!(self.ops, "  {{ op = 'activate', in = 'g', kind = \"'silu'\", out = 'g' }},").unwrap();
        writeln!(self.ops, "  {{ op = 'mul', in = ['g', 'u'], out = 'f' }},").unwrap();
        let weight = self.tensor(&[count, x.1, inner]);
        writeln!(self.ops, "  {{ op = 'linear', in = 'f', weight = {weight}, route = 'route', out = 'f' }},").unwrap();
        self.push("combine", "in = 'f', route = 'route'", x.1);
    }

    fn op(&mut self) {
        let x = self.value();
        let kinds = ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh", "softplus"];
        match self.below(16) {
            0 | 1 => {
                let width = self.width();
                self.linear(&x, width);
            }
            2 => {
                let parts = 1 + self.below(3);
                let group = if x.1.is_multiple_of(2 * parts) { x.1 / parts } else { x.1 };
                self.norm(&x, group);
            }
            3 => {
                _ = {
                    let kind = self.pick(&kinds);
                    self.push("activate", &format!("in = '{}', kind = \"'{kind}'\"", x.0), x.1)
                }
            }
            4 if self.flip() => _ = self.push("temper", &format!("in = '{}', factor = 0.3, every = 5", x.0), x.1),
            4 => _ = self.push("scale", &format!("in = '{}', factor = 0.7", x.0), x.1),
            5 => _ = self.push("soft_cap", &format!("in = '{}', cap = 2", x.0), x.1),
            6 => {
                let width = self.unit.min(x.1);
                let first = self.pick(&[0, 3, 16]).min(x.1 - width);
                self.push("slice", &format!("in = '{}', first = {first}, width = {width}", x.0), width);
            }
            7 => self.experts(),
            8 | 9 => self.attention(),
            10 | 11 => self.linear_attention(),
            12 => _ = self.conv(&x.0, x.1),
            13 => {
                let attributes = self.shared("weight", x.1) + &self.shared("bias", x.1);
                self.push("affine", &format!("in = '{}'{attributes}", x.0), x.1);
            }
            _ => {
                let op = self.pick(&["mul", "add", "add", "clamped_swish"]);
                // Another value of the same width, or the same one; a factor may be narrower.
                let fits = |width: usize| width == x.1 || (op == "mul" && x.1.is_multiple_of(width));
                let same: Vec<_> = self.values.iter().filter(|value| fits(value.1)).cloned().collect();
                let other = same[self.below(same.len())].clone();
                let made = self.push(op, &format!("in = ['{}', '{}']", x.0, other.0), x.1);
                // A product grows.
                let group = x.1;
                if op == "mul" {
                    self.norm(&(made, x.1), group);
                }
            }
        }
    }

    /// The graph with this number, whose widths are multiples of `unit`.
    fn graph(seed: u64, unit: usize) -> Golden {
        let random = Random::new(seed, unit as u64);
        let (ops, ropes, tensors, values) = (String::new(), String::new(), Vec::new(), Vec::new());
        let mut draft = Draft { random, unit, ops, ropes, tensors, values };
        for head_dim in [12, 16, 32, 48] {
            let dim = draft.pick(&[head_dim, head_dim / 2]);
            let pairs = draft.pick(&["half", "interleaved"]);
            writeln!(draft.ropes, "[rope.r{head_dim}]\ndim = {dim}\npairs = \"'{pairs}'\"").unwrap();
        }
        let width = draft.width();
        let table = draft.tensor(&[VOCABULARY, width]);
        draft.push("embed", &format!("weight = {table}"), width);
        (0..OPS).for_each(|_| draft.op());
        let (last, width) = draft.wide().last().cloned().unwrap();
        let (first, first_width) = draft.values[0].clone();
        // Logits of the last value and the first one, which lives through all.
        let a = draft.linear(&(last, width), VOCABULARY);
        let b = draft.linear(&(first, first_width), VOCABULARY);
        writeln!(draft.ops, "  {{ op = 'add', in = ['{a}', '{b}'], out = 'y' }},").unwrap();
        draft.finish(seed)
    }

    fn finish(mut self, seed: u64) -> Golden {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.gguf");
        let mut writer = gguf::Writer::new();
        writer.set("general.architecture", "random").unwrap();
        for (name, shape) in &self.tensors {
            writer.declare(TensorSpec::new(name.as_str(), Format::F32, shape)).unwrap();
        }
        let mut out = writer.begin(std::fs::File::create(&path).unwrap()).unwrap();
        for (_, shape) in &self.tensors {
            let (count, inputs) = (shape.iter().product::<usize>(), shape.last().copied().unwrap());
            let scale = if shape.len() == 1 { 1.0 } else { 1.3 / (inputs as f32).sqrt() };
            let values: Vec<f32> = (0..count).map(|_| scale * self.random.normal()).collect();
            let mut bytes = vec![0; Format::F32.row_bytes(count).unwrap()];
            codec::encode(Format::F32, &values, &mut bytes).unwrap();
            out.append(&bytes).unwrap();
        }
        out.finish().unwrap();
        let names: String = self.tensors.iter().map(|(name, _)| format!("{name} = {{ gguf = '{name}' }}\n")).collect();
        let text = format!(
            "name = 'random'\ngguf = ['random']\nuse = ['common']\n[parameters]\nlayers = 1\ncontext = 4096\n\
             eps = 1e-5\nhead_dim = 16\n[tensors]\n{names}\n[rope.main]\n{}[graph]\nstart = [\n{}]\nblock = []\n\
             finish = [{{ op = 'select', in = 'y', out = 'logits' }}]\n",
            self.ropes, self.ops
        );
        let architecture = Architecture::parse(&text, "random").unwrap_or_else(|error| panic!("{error}\n{text}"));
        let file = ModelFile::open(&path).unwrap();
        let graph = Graph::open(&file, &[architecture]).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let prompt = (0..PROMPT).map(|_| self.random.below(VOCABULARY) as u32).collect();
        Golden::of_oracle(format!("graph {seed} of {}s\n{}", self.unit, self.ops), &path, graph, prompt, folder)
    }
}

/// Graphs of widths that vectors divide, and of odd ones.
fn drafts(count: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..count).flat_map(|seed| [(seed, 32), (seed, 13)])
}

#[test]
fn cpu_computes_what_the_oracle_does() {
    for (seed, unit) in drafts(GRAPHS) {
        let golden = Draft::graph(seed, unit);
        let on = |isa, threads, fusions: &[_]| {
            golden.on(&CpuDevice::with_isa(Some(threads), isa).unwrap(), KvFormat::F16, LIMITS, fusions)
        };
        let expected = on(Isa::detect(), 2, &FUSIONS);
        let error = golden.error(&expected);
        assert!(error < 5e-3, "{error}: {}", golden.name);
        assert!(on(Isa::detect(), 1, &[]) == expected, "without fusions: {}", golden.name);
        for isa in Isa::available() {
            assert!(on(isa, 1, &FUSIONS) == expected, "{isa}: {}", golden.name);
        }
    }
}

#[test]
fn gpu_computes_what_the_oracle_does() {
    let device = gpu::device();
    for (seed, unit) in drafts(GRAPHS / 8) {
        let golden = Draft::graph(seed, unit);
        for tokens in [1, 32] {
            let limits = Limits { tokens, wanted: tokens };
            let error = golden.error(&golden.on(&*device, KvFormat::F16, limits, &FUSIONS));
            assert!(error < 1e-2, "{tokens} at once, {error}: {}", golden.name);
        }
    }
}
