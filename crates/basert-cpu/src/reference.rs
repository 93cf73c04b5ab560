//! The oracle: every op of the catalogue as a textbook writes it, in f32, over a whole sequence at once.
//!
//! It executes the graph itself, without plans, packing, pages or threads, and is slow. Every faster path is compared
//! with it, and it is compared with independent implementations. [`ReferenceDevice`] makes a device of it.

use std::sync::Arc;

use crate::STEP_TOKENS;
use crate::kv::PAGE;
use basert_core::{KvFormat, codec};
use basert_files::ModelFile;
use basert_graph::{Activation, Experts, Graph, Norm, Op, Pairs, Rope, ValueId, WeightId};
use basert_plan::{Baked, Device, DeviceError, Facts, LoadOptions, Plan, StepState};

/// A row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Values in a row.
    pub width: usize,
    /// Row after row.
    pub data: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, width: usize) -> Matrix {
        Matrix { width, data: vec![0.0; rows * width] }
    }

    /// The rows, in order.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width)
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.width..][..self.width]
    }

    fn map_rows(&self, width: usize, f: impl Fn(&[f32], &mut [f32])) -> Matrix {
        let mut out = Matrix::new(self.data.len() / self.width, width);
        self.rows().zip(out.data.chunks_exact_mut(width)).for_each(|(x, y)| f(x, y));
        out
    }

    fn zip(&self, other: &Matrix, f: impl Fn(f32, f32) -> f32) -> Matrix {
        let data = self.data.iter().zip(&other.data).map(|(&a, &b)| f(a, b)).collect();
        Matrix { width: self.width, data }
    }
}

/// A model with all its weights decoded to f32.
pub struct Reference {
    graph: Arc<Graph>,
    weights: Vec<Matrix>,
}

impl Reference {
    /// Decodes the weights of `graph` from `file`.
    ///
    /// # Errors
    /// When a tensor is missing or damaged.
    pub fn new(graph: Arc<Graph>, file: &ModelFile) -> Result<Reference, DeviceError> {
        let decode = |weight: &basert_graph::Weight| {
            let fail = |what: String| DeviceError::Weight { tensor: weight.tensor.clone(), what };
            let tensor = file.tensor(&weight.tensor).ok_or_else(|| fail("it is missing".to_owned()))?;
            let mut matrix = Matrix::new(weight.rows, weight.columns);
            codec::decode(tensor.format, tensor.bytes, &mut matrix.data).map_err(|error| fail(error.to_string()))?;
            Ok(matrix)
        };
        let weights = graph.weights.iter().map(decode).collect::<Result<_, _>>()?;
        Ok(Reference { graph, weights })
    }

    /// Logits of the tokens at `wanted` of a sequence that begins with `tokens`: one row each.
    pub fn logits(&self, tokens: &[u32], wanted: &[usize]) -> Matrix {
        self.value(self.graph.logits, tokens, wanted)
    }

    /// The hidden states from which these logits are computed.
    pub fn hidden(&self, tokens: &[u32], wanted: &[usize]) -> Matrix {
        self.value(self.graph.hidden(), tokens, wanted)
    }

    fn value(&self, result: ValueId, tokens: &[u32], wanted: &[usize]) -> Matrix {
        let mut values: Vec<Option<Matrix>> = vec![None; self.graph.values.len()];
        let mut caches: Vec<Option<(Matrix, Matrix)>> = vec![None; self.graph.caches.len()];
        for node in &self.graph.nodes {
            let value = |id: ValueId| values[id.0].as_ref().expect("ops come in order");
            let out = match node.op {
                Op::Embed { weight, scale } => self.embed(weight, scale, tokens),
                Op::Norm { x, norm } => {
                    let mut normed = value(x).clone();
                    normed.data.chunks_exact_mut(normed.width).for_each(|row| self.norm(&norm, row));
                    normed
                }
                Op::Linear { x, weight, bias, experts: None } => self.linear(value(x), weight, bias),
                Op::Linear { x, weight, bias, experts: Some(experts) } => {
                    self.experts(value(x), weight, bias, value(experts.route), experts)
                }
                Op::Route { x, used, normalised } => value(x).map_rows(2 * used, |x, y| route(x, normalised, y)),
                Op::Combine { x, experts } => combine(value(x), value(experts.route), experts.used),
                Op::RopeCache { q, k, v, q_norm, k_norm, rope, cache } => {
                    let (head_dim, rope) = (self.graph.caches[cache.0].head_dim, &self.graph.ropes[rope.0]);
                    let keys = self.rotate_heads(value(k), head_dim, k_norm.as_ref(), rope);
                    caches[cache.0] = Some((keys, value(v).clone()));
                    self.rotate_heads(value(q), head_dim, q_norm.as_ref(), rope)
                }
                Op::Attention { q, cache, heads, scale, window, cap, sinks } => {
                    let (k, v) = caches[cache.0].as_ref().expect("ops come in order");
                    let sinks = sinks.map(|sinks| &self.weights[sinks.0].data[..]);
                    attention(value(q), k, v, heads, self.graph.caches[cache.0].kv_heads, scale, window, cap, sinks)
                }
                Op::Gate { gate, up, activation } => value(gate).zip(value(up), |g, u| gated(activation, g, u)),
                Op::Add { a, b } => value(a).zip(value(b), |a, b| a + b),
                Op::Select { x } => {
                    let data = wanted.iter().flat_map(|&row| value(x).row(row)).copied().collect();
                    Matrix { width: value(x).width, data }
                }
                Op::SoftCap { x, cap } => value(x).zip(value(x), |x, _| cap * (x / cap).tanh()),
            };
            values[node.out.0] = Some(out);
        }
        values[result.0].take().expect("the graph computes all values")
    }

    fn embed(&self, weight: WeightId, scale: f32, tokens: &[u32]) -> Matrix {
        let table = &self.weights[weight.0];
        let data = tokens.iter().flat_map(|&token| table.row(token as usize)).map(|x| x * scale).collect();
        Matrix { width: table.width, data }
    }

    /// x ← x / √(mean(x²) + ε) · (w + offset) + b, of x − mean(x) if it is centred
    fn norm(&self, norm: &Norm, x: &mut [f32]) {
        if norm.centred {
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            x.iter_mut().for_each(|x| *x -= mean);
        }
        let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        let scale = 1.0 / (mean + norm.eps).sqrt();
        for (x, w) in x.iter_mut().zip(&self.weights[norm.weight.0].data) {
            *x *= scale * (w + norm.offset);
        }
        if let Some(bias) = norm.bias {
            x.iter_mut().zip(&self.weights[bias.0].data).for_each(|(x, b)| *x += b);
        }
    }

    /// y = W x + b
    fn linear(&self, x: &Matrix, weight: WeightId, bias: Option<WeightId>) -> Matrix {
        let weight = &self.weights[weight.0];
        let bias = bias.map(|bias| &self.weights[bias.0]);
        x.map_rows(weight.data.len() / weight.width, |x, y| {
            for (i, (y, w)) in y.iter_mut().zip(weight.rows()).enumerate() {
                *y = dot(w, x) + bias.map_or(0.0, |bias| bias.data[i]);
            }
        })
    }

    /// y = W x + b of each expert in the token's route, concatenated; each expert may have its own x.
    fn experts(
        &self,
        x: &Matrix,
        weight: WeightId,
        bias: Option<WeightId>,
        route: &Matrix,
        experts: Experts,
    ) -> Matrix {
        let weight = &self.weights[weight.0];
        let rows = weight.data.len() / weight.width / experts.count;
        let mut out = Matrix::new(route.rows().len(), experts.used * rows);
        for ((x, route), y) in x.rows().zip(route.rows()).zip(out.data.chunks_exact_mut(experts.used * rows)) {
            for (slot, y) in y.chunks_exact_mut(rows).enumerate() {
                let x = if x.len() == weight.width { x } else { &x[slot * weight.width..][..weight.width] };
                let first = route[slot] as usize * rows;
                for (i, y) in y.iter_mut().enumerate() {
                    *y = dot(weight.row(first + i), x) + bias.map_or(0.0, |bias| self.weights[bias.0].data[first + i]);
                }
            }
        }
        out
    }

    /// Norms each head, and rotates its pairs by position · frequency.
    fn rotate_heads(&self, x: &Matrix, head_dim: usize, norm: Option<&Norm>, rope: &Rope) -> Matrix {
        let mut out = x.clone();
        for (position, row) in out.data.chunks_exact_mut(x.width).enumerate() {
            for head in row.chunks_exact_mut(head_dim) {
                if let Some(norm) = norm {
                    self.norm(norm, head);
                }
                rotate(head, rope, position);
            }
        }
        out
    }
}

/// (a, b) ← (a cos θ − b sin θ, a sin θ + b cos θ) for each pair, with θ = position · frequency.
fn rotate(head: &mut [f32], rope: &Rope, position: usize) {
    let n = rope.frequencies.len();
    for (i, frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = match rope.pairs {
            Pairs::Half => (i, i + n),
            Pairs::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
}

/// The indices of the experts with the largest softmax, and then their weights.
fn route(x: &[f32], normalised: bool, y: &mut [f32]) {
    let (chosen, weights) = y.split_at_mut(y.len() / 2);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = x.iter().map(|x| (x - max).exp()).sum();
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    for ((chosen, weight), expert) in chosen.iter_mut().zip(&mut *weights).zip(order) {
        (*chosen, *weight) = (expert as f32, (x[expert] - max).exp() / sum);
    }
    if normalised {
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
}

/// y = Σ weight · x over the experts of each token.
fn combine(x: &Matrix, route: &Matrix, used: usize) -> Matrix {
    let mut out = Matrix::new(route.rows().len(), x.width / used);
    for ((x, route), y) in x.rows().zip(route.rows()).zip(out.data.chunks_exact_mut(x.width / used)) {
        for (x, weight) in x.chunks_exact(y.len()).zip(&route[used..]) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
        }
    }
    out
}

/// softmax(cap(scale · q kᵀ)) v for each head, over the tokens that each token sees, and a sink that has no value.
#[allow(clippy::too_many_arguments)]
fn attention(
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    window: Option<usize>,
    cap: Option<f32>,
    sinks: Option<&[f32]>,
) -> Matrix {
    let head_dim = q.width / heads;
    let mut out = Matrix::new(q.data.len() / q.width, q.width);
    for (position, (q, out)) in q.rows().zip(out.data.chunks_exact_mut(q.width)).enumerate() {
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let of_head = head * kv_heads / heads * head_dim..(head * kv_heads / heads + 1) * head_dim;
            let score = |token: usize| {
                let score = scale * dot(q, &k.row(token)[of_head.clone()]);
                cap.map_or(score, |cap| cap * (score / cap).tanh())
            };
            let scores: Vec<f32> = (first..=position).map(score).collect();
            let sink = sinks.map(|sinks| sinks[head]);
            let max = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum = weights.iter().sum::<f32>() + sink.map_or(0.0, |sink| (sink - max).exp());
            for (token, weight) in (first..=position).zip(weights) {
                for (out, v) in out.iter_mut().zip(&v.row(token)[of_head.clone()]) {
                    *out += weight / sum * v;
                }
            }
        }
    }
    out
}

/// The oracle as a device. Its cache holds tokens instead of keys and values, and every step recomputes whole
/// sequences. It has nothing to quantise, so it refuses formats of keys and values other than the default.
pub struct ReferenceDevice {
    facts: Facts,
}

impl Default for ReferenceDevice {
    fn default() -> Self {
        let facts = Facts {
            name: "reference".to_owned(),
            description: "the textbook, f32, one thread".to_owned(),
            page_tokens: PAGE,
            layout: "tokens".to_owned(),
            step_tokens: STEP_TOKENS,
            chain: 0,
            bounds: None,
            free_memory: None,
        };
        ReferenceDevice { facts }
    }
}

impl Device for ReferenceDevice {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError> {
        if options.kv != KvFormat::default() {
            let what = format!(
                "keys and values in {}; it caches tokens, and computes with keys and values in f32",
                options.kv
            );
            return Err(DeviceError::Unsupported { device: self.facts.name.clone(), what });
        }
        let reference = Reference::new(plan.graph.clone(), &file)?;
        let mut pages = Vec::new();
        pages.try_reserve_exact(options.pages).map_err(|_| DeviceError::OutOfMemory {
            device: self.facts.name.clone(),
            bytes: options.pages.saturating_mul(size_of::<[u32; PAGE]>()),
            what: "the cache".to_owned(),
        })?;
        pages.resize(options.pages, [0; PAGE]);
        Ok(Box::new(ReferenceBaked { reference, plan, pages, rows: Matrix::new(0, 1) }))
    }
}

struct ReferenceBaked {
    reference: Reference,
    plan: Arc<Plan>,
    /// The tokens at the positions of each page.
    pages: Vec<[u32; PAGE]>,
    /// The logits or hidden states of the last step.
    rows: Matrix,
}

impl Baked for ReferenceBaked {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        step.check(&self.plan, self.pages.len(), PAGE)?;
        let value = if step.hidden { self.plan.graph.hidden() } else { self.plan.graph.logits };
        self.rows = Matrix::new(0, self.plan.graph.values[value.0].width);
        for sequence in &step.sequences {
            let table = &step.page_table[sequence.pages.clone()];
            for row in sequence.rows.clone() {
                let position = step.positions[row] as usize;
                self.pages[table[position / PAGE] as usize][position % PAGE] = step.tokens[row];
            }
            let wanted = step.wanted.iter().map(|&row| row as usize).filter(|row| sequence.rows.contains(row));
            let wanted: Vec<usize> = wanted.map(|row| step.positions[row] as usize).collect();
            let length = step.positions[sequence.rows.end - 1] as usize + 1;
            let tokens: Vec<u32> = table.iter().flat_map(|&page| self.pages[page as usize]).take(length).collect();
            if !wanted.is_empty() {
                self.rows.data.extend(self.reference.value(value, &tokens, &wanted).data);
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn logits(&self, i: usize) -> &[f32] {
        self.rows.row(i)
    }

    fn hidden(&self, i: usize) -> &[f32] {
        self.rows.row(i)
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        self.pages[to as usize] = self.pages[from as usize];
    }

    fn page_bytes(&self) -> usize {
        size_of::<[u32; PAGE]>()
    }

    fn read_page(&mut self, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(bytemuck::cast_slice(&self.pages[page as usize]));
        Ok(())
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        bytemuck::cast_slice_mut(&mut self.pages[page as usize]).copy_from_slice(bytes);
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What a gate makes of the other factor.
fn gated(activation: Activation, gate: f32, up: f32) -> f32 {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::GeluTanh => gelu_tanh(gate) * up,
        Activation::ClampedSwish => {
            let gate = gate.min(7.0);
            gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}
