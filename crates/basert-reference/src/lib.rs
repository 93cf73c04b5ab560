//! The oracle: every op of the catalogue as a textbook writes it, in f32, over a whole sequence at once.
//!
//! It executes the graph itself, without plans, packing, pages or threads, and is slow. Every faster path is compared
//! with it, and it is compared with independent implementations. [`ReferenceDevice`] makes a device of it.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_graph::{
    Activation, Affine, Attention, Conv, Experts, Graph, Index, LinearAttention, Norm, Op, Pairs, Rope, Route, Score,
    ValueId, WeightId,
};
use basert_plan::{Baked, Device, DeviceError, Facts, LoadOptions, Pass, Plan, StepState};

/// Tokens of a page of the device.
const PAGE: usize = 64;
/// Tokens of a step of the device.
const STEP_TOKENS: usize = 512;

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

    fn map(&self, f: impl Fn(f32) -> f32) -> Matrix {
        Matrix { width: self.width, data: self.data.iter().map(|&x| f(x)).collect() }
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
        let decode = |weight: &basert_graph::Weight| -> Result<Matrix, DeviceError> {
            Ok(Matrix { width: weight.columns, data: weight.values(file)? })
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

    /// The head's logits of these tokens, and what it reads to predict further ones: from what it reads of the token before
    /// each of `tokens`, or what the model gives it.
    fn head(&self, tokens: &[u32], given: Option<Matrix>, wanted: &[usize]) -> Option<[Matrix; 2]> {
        let head = self.graph.head?;
        let given = given.unwrap_or_else(|| {
            let mut hidden = self.value(head.hidden, tokens, &[]);
            hidden.data.truncate(hidden.data.len() - hidden.width);
            hidden.data.splice(..0, vec![0.0; hidden.width]);
            hidden
        });
        let ops = head.after..self.graph.nodes.len();
        let given = Some((head.given, &given));
        Some([head.logits, head.next].map(|result| self.run(ops.clone(), given, result, tokens, wanted)))
    }

    /// Logits of the head, for the token after the next one, at `wanted` of a sequence that begins with `tokens`: one row
    /// each; `None` if there is no head.
    pub fn head_logits(&self, tokens: &[u32], wanted: &[usize]) -> Option<Matrix> {
        self.head(tokens, None, wanted).map(|[logits, _]| logits)
    }

    fn value(&self, result: ValueId, tokens: &[u32], wanted: &[usize]) -> Matrix {
        let after = self.graph.head.map_or(self.graph.nodes.len(), |head| head.after);
        self.run(0..after, None, result, tokens, wanted)
    }

    /// A value that some of the ops compute, of a sequence that begins with `tokens`, and of a value that is given.
    fn run(
        &self,
        ops: Range<usize>,
        given: Option<(ValueId, &Matrix)>,
        result: ValueId,
        tokens: &[u32],
        wanted: &[usize],
    ) -> Matrix {
        let mut values: Vec<Option<Matrix>> = vec![None; self.graph.values.len()];
        let mut caches: Vec<Option<(Matrix, Matrix)>> = vec![None; self.graph.states.len()];
        if let Some((value, rows)) = given {
            values[value.0] = Some(rows.clone());
        }
        for node in &self.graph.nodes[ops] {
            let input = |i: usize| values[node.inputs[i].0].as_ref().expect("ops come in order");
            let out = match node.op {
                Op::Embed { weight, scale, by } => self.embed(weight, scale, by, tokens),
                Op::Norm(norm) => {
                    let mut normed = input(0).clone();
                    normed.data.chunks_exact_mut(normed.width).for_each(|row| self.norm(&norm, row));
                    normed
                }
                Op::Linear { weight, bias, experts: None } => self.linear(input(0), weight, bias),
                Op::Linear { weight, bias, experts: Some(experts) } => {
                    self.experts(input(0), weight, bias, input(1), experts)
                }
                Op::Route(how) => {
                    let bias = how.bias.map(|bias| &self.weights[bias.0].data[..]);
                    input(0).map_rows(2 * how.experts.used, |x, y| route(x, &how, bias, y))
                }
                Op::Combine { experts, weighted } => combine(input(0), input(1), experts.used, weighted),
                Op::Weigh(experts) => weigh(input(0), input(1), experts.used),
                Op::Temper(how) => {
                    let mut out = input(0).clone();
                    for (position, row) in out.data.chunks_exact_mut(out.width).enumerate() {
                        row.iter_mut().for_each(|x| *x *= how.at(position));
                    }
                    out
                }
                Op::Rope { rope, head_dim } => rotate_heads(input(0), head_dim, &self.graph.ropes[rope.0]),
                Op::Store(cache) => {
                    caches[cache.0] = Some((input(0).clone(), input(1).clone()));
                    Matrix { width: 0, data: Vec::new() }
                }
                Op::Attention(how) => {
                    let (k, v) = caches[how.cache.0].as_ref().expect("ops come in order");
                    let sinks = how.sinks.map(|sinks| &self.weights[sinks.0].data[..]);
                    attention(input(0), k, v, &how, self.graph.cache(how.cache).kv_heads, sinks)
                }
                Op::Conv(how) => self.conv(input(0), &how),
                Op::LinearAttention(how) => {
                    let beta = (node.inputs.len() > 4).then(|| input(4));
                    linear_attention([0, 1, 2, 3].map(input), beta, &how)
                }
                Op::Affine(how) => self.affine(input(0), &how, self.graph.values[node.out.0].width),
                Op::Activate(activation) => input(0).map(|x| activate(activation, x)),
                Op::Mul => {
                    let (a, b) = (input(0), input(1));
                    let times = a.width / b.width;
                    let data = a.data.iter().enumerate().map(|(i, a)| a * b.data[i / times]).collect();
                    Matrix { width: a.width, data }
                }
                Op::Add => input(0).zip(input(1), |a, b| a + b),
                Op::Scale(factor) => input(0).map(|x| factor * x),
                Op::Slice(first) => {
                    let width = self.graph.values[node.out.0].width;
                    input(0).map_rows(width, |x, y| y.copy_from_slice(&x[first..first + width]))
                }
                Op::ClampedSwish => input(0).zip(input(1), clamped_swish),
                Op::Select => {
                    let data = wanted.iter().flat_map(|&row| input(0).row(row)).copied().collect();
                    Matrix { width: input(0).width, data }
                }
                Op::SoftCap(cap) => input(0).map(|x| cap * (x / cap).tanh()),
            };
            values[node.out.0] = Some(out);
        }
        values[result.0].take().expect("the graph computes all values")
    }

    fn embed(&self, weight: WeightId, scale: f32, by: Index, tokens: &[u32]) -> Matrix {
        let table = &self.weights[weight.0];
        let vocabulary = self.graph.vocabulary;
        let row = |(position, &token): (usize, &u32)| table.row(by.of(token, position as u32, vocabulary));
        let data = tokens.iter().enumerate().flat_map(row).map(|x| x * scale).collect();
        Matrix { width: table.width, data }
    }

    /// x ← x / √(mean(x²) + ε) · (w + offset) + b, of x − mean(x) if it is centred, for each group of a row
    fn norm(&self, norm: &Norm, row: &mut [f32]) {
        // The part of a vector that belongs to a group: all of it, or a part of its own.
        let of = |weight: Option<WeightId>, group: usize| {
            let vector = &self.weights[weight?.0].data;
            let first = if vector.len() == norm.group { 0 } else { group * norm.group };
            Some(&vector[first..first + norm.group])
        };
        for (group, x) in row.chunks_exact_mut(norm.group).enumerate() {
            if norm.centred {
                let mean = x.iter().sum::<f32>() / x.len() as f32;
                x.iter_mut().for_each(|x| *x -= mean);
            }
            let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
            let scale = 1.0 / (mean + norm.eps).sqrt();
            match of(norm.weight, group) {
                Some(weight) => x.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * (w + norm.offset)),
                None => x.iter_mut().for_each(|x| *x *= scale),
            }
            if let Some(bias) = of(norm.bias, group) {
                x.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
    }

    /// y[t] = Σ weight[k] x[t + 1 − K + k] + bias, where nothing comes before the first token
    fn conv(&self, x: &Matrix, how: &Conv) -> Matrix {
        let weight = &self.weights[how.weight.0];
        let mut out = Matrix::new(x.rows().len(), x.width);
        for (t, y) in out.data.chunks_exact_mut(x.width).enumerate() {
            for (c, y) in y.iter_mut().enumerate() {
                for (k, w) in weight.row(c).iter().enumerate() {
                    *y += (t + 1 + k).checked_sub(weight.width).map_or(0.0, |past| w * x.row(past)[c]);
                }
                *y += how.bias.map_or(0.0, |bias| self.weights[bias.0].data[c]);
            }
        }
        out
    }

    /// y = w x + b, column by column, of which several may share a number.
    fn affine(&self, x: &Matrix, how: &Affine, width: usize) -> Matrix {
        let shared = |values: &[f32], column: usize| values[column / (width / values.len())];
        let of = |vector: WeightId| &self.weights[vector.0].data[..];
        let (weight, bias) = (how.weight.map(of), how.bias.map(of));
        x.map_rows(width, |x, y| {
            for (c, y) in y.iter_mut().enumerate() {
                let weight = weight.map_or(1.0, |weight| shared(weight, c));
                let weight = if how.decay { -weight.exp() } else { weight };
                *y = weight * shared(x, c) + bias.map_or(0.0, |bias| shared(bias, c));
            }
        })
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
}

/// Rotates the pairs of each head by position · frequency.
fn rotate_heads(x: &Matrix, head_dim: usize, rope: &Rope) -> Matrix {
    let mut out = x.clone();
    for (position, row) in out.data.chunks_exact_mut(x.width).enumerate() {
        row.chunks_exact_mut(head_dim).for_each(|head| rotate(head, rope, position));
    }
    out
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
        let (a_turned, b_turned) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        (head[a], head[b]) = (rope.magnitude * a_turned, rope.magnitude * b_turned);
    }
}

/// The indices of the experts with the largest scores, and then their weights.
fn route(x: &[f32], how: &Route, bias: Option<&[f32]>, y: &mut [f32]) {
    let (chosen, weights) = y.split_at_mut(how.experts.used);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = x.iter().map(|x| (x - max).exp()).sum();
    let score = |expert: usize| match how.score {
        Score::Softmax => (x[expert] - max).exp() / sum,
        Score::Sigmoid => 1.0 / (1.0 + (-x[expert]).exp()),
    };
    let biased = |expert: usize| score(expert) + bias.map_or(0.0, |bias| bias[expert]);
    let largest = |candidates: std::ops::Range<usize>, value: &dyn Fn(usize) -> f32| {
        let mut order: Vec<usize> = candidates.collect();
        order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        order
    };
    let size = x.len() / how.groups;
    let of_group = |group: usize| {
        let best = largest(group * size..(group + 1) * size, &biased);
        best.iter().take(2).map(|&expert| biased(expert)).sum()
    };
    let groups = &largest(0..how.groups, &of_group)[..how.groups_used];
    // Without a bias and groups, logits are in the order of scores, and finer.
    let order = match bias.is_some() || how.groups > 1 {
        true => largest(0..x.len(), &biased),
        false => largest(0..x.len(), &|expert| x[expert]),
    };
    let order = order.into_iter().filter(|expert| groups.contains(&(expert / size)));
    for ((chosen, weight), expert) in chosen.iter_mut().zip(&mut *weights).zip(order) {
        (*chosen, *weight) = (expert as f32, score(expert));
    }
    let sum = if how.normalised { weights.iter().sum::<f32>() } else { 1.0 };
    weights.iter_mut().for_each(|weight| *weight *= how.scale / sum);
}

/// y = weight · x for each of a token's experts, side by side.
fn weigh(x: &Matrix, route: &Matrix, used: usize) -> Matrix {
    let mut out = Matrix::new(route.rows().len(), x.width * used);
    for ((x, route), y) in x.rows().zip(route.rows()).zip(out.data.chunks_exact_mut(x.width * used)) {
        for (y, weight) in y.chunks_exact_mut(x.len()).zip(&route[used..]) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = weight * x);
        }
    }
    out
}

/// y = Σ weight · x over the experts of each token, or Σ x.
fn combine(x: &Matrix, route: &Matrix, used: usize, weighted: bool) -> Matrix {
    let mut out = Matrix::new(route.rows().len(), x.width / used);
    for ((x, route), y) in x.rows().zip(route.rows()).zip(out.data.chunks_exact_mut(x.width / used)) {
        for (x, weight) in x.chunks_exact(y.len()).zip(&route[used..]) {
            let weight = if weighted { *weight } else { 1.0 };
            y.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
        }
    }
    out
}

/// softmax(cap(scale · q kᵀ)) v for each head, over the tokens that each token sees, and a sink that has no value.
fn attention(q: &Matrix, k: &Matrix, v: &Matrix, how: &Attention, kv_heads: usize, sinks: Option<&[f32]>) -> Matrix {
    let Attention { heads, scale, reach, cap, alibi, .. } = *how;
    let head_dim = q.width / heads;
    let mut out = Matrix::new(q.data.len() / q.width, q.width);
    for (position, (q, out)) in q.rows().zip(out.data.chunks_exact_mut(q.width)).enumerate() {
        let seen = reach.seen(position, k.rows().len());
        for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let of_head = head * kv_heads / heads * head_dim..(head * kv_heads / heads + 1) * head_dim;
            let score = |token: usize| {
                let score = scale * dot(q, &k.row(token)[of_head.clone()]);
                let score = cap.map_or(score, |cap| cap * (score / cap).tanh());
                score - alibi.map_or(0.0, |alibi| alibi.slope(head, heads) * position.abs_diff(token) as f32)
            };
            let scores: Vec<f32> = seen.clone().map(score).collect();
            let sink = sinks.map(|sinks| sinks[head]);
            let max = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum = weights.iter().sum::<f32>() + sink.map_or(0.0, |sink| (sink - max).exp());
            for (token, weight) in seen.clone().zip(weights) {
                for (out, v) in out.iter_mut().zip(&v.row(token)[of_head.clone()]) {
                    *out += weight / sum * v;
                }
            }
        }
    }
    out
}

/// S ← e^decay S + k uᵀ with u = beta (v − Sᵀk), or beta v, and y = scale Sᵀq for each head, token by token.
fn linear_attention([q, k, v, decay]: [&Matrix; 4], beta: Option<&Matrix>, how: &LinearAttention) -> Matrix {
    let &LinearAttention { heads, key_dim, value_dim, by_row, delta, scale, .. } = how;
    let mut out = Matrix::new(v.rows().len(), v.width);
    for head in 0..heads {
        let of_keys = how.key_head(head) * key_dim..(how.key_head(head) + 1) * key_dim;
        let of_values = head * value_dim..(head + 1) * value_dim;
        let mut state = Matrix::new(key_dim, value_dim);
        for t in 0..v.rows().len() {
            let (q, k, v) = (&q.row(t)[of_keys.clone()], &k.row(t)[of_keys.clone()], &v.row(t)[of_values.clone()]);
            let decay = |i: usize| decay.row(t)[if by_row { head * key_dim + i } else { head }].exp();
            let beta = beta.map_or(1.0, |beta| beta.row(t)[head]);
            for (i, row) in state.data.chunks_exact_mut(value_dim).enumerate() {
                row.iter_mut().for_each(|s| *s *= decay(i));
            }
            let times = |state: &Matrix, x: &[f32], j: usize| -> f32 {
                x.iter().zip(state.rows()).map(|(x, row)| x * row[j]).sum()
            };
            let u: Vec<f32> =
                (0..value_dim).map(|j| beta * (v[j] - if delta { times(&state, k, j) } else { 0.0 })).collect();
            for (k, row) in k.iter().zip(state.data.chunks_exact_mut(value_dim)) {
                row.iter_mut().zip(&u).for_each(|(s, u)| *s += k * u);
            }
            let y = &mut out.data[t * v.len() * heads..][of_values.clone()];
            y.iter_mut().enumerate().for_each(|(j, y)| *y = scale * times(&state, q, j));
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
        let count = options.pages[0];
        pages.try_reserve_exact(count).map_err(|_| DeviceError::OutOfMemory {
            device: self.facts.name.clone(),
            bytes: count.saturating_mul(size_of::<[u32; PAGE]>()),
            what: "the cache".to_owned(),
        })?;
        pages.resize(count, [0; PAGE]);
        let (given, none) = (vec![Vec::new(); count], || Matrix::new(0, 1));
        let (counts, slots) = (options.pages, options.slots);
        Ok(Box::new(ReferenceBaked { reference, plan, counts, pages, given, slots, rows: none(), for_head: none() }))
    }
}

struct ReferenceBaked {
    reference: Reference,
    plan: Arc<Plan>,
    /// Pages of each group. In all groups but the first one, which keeps all of a sequence, they have no contents.
    counts: Vec<usize>,
    /// The tokens at the positions of each page of the first group.
    pages: Vec<[u32; PAGE]>,
    /// What the head was given there.
    given: Vec<Vec<f32>>,
    /// Slots, in which nothing is kept.
    slots: usize,
    /// The logits or hidden states of the last step.
    rows: Matrix,
    /// What the head can read of it.
    for_head: Matrix,
}

impl Baked for ReferenceBaked {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        step.check(&self.plan, (&self.counts, self.slots), PAGE)?;
        let (graph, reference) = (&self.plan.graph, &self.reference);
        let mut results = vec![];
        for sequence in &step.sequences {
            let table = &step.page_table(0)[sequence.pages.clone()];
            for row in sequence.rows.clone() {
                let position = step.positions[row] as usize;
                let (page, place) = (table[position / PAGE] as usize, position % PAGE);
                self.pages[page][place] = step.tokens[row];
                if let (Pass::Head, Some(head)) = (step.pass, graph.head) {
                    let width = graph.values[head.given.0].width;
                    self.given[page].resize(PAGE * width, 0.0);
                    self.given[page][place * width..][..width].copy_from_slice(&step.given[row * width..][..width]);
                }
            }
            let wanted = step.wanted.iter().map(|&row| row as usize).filter(|row| sequence.rows.contains(row));
            let wanted: Vec<usize> = wanted.map(|row| step.positions[row] as usize).collect();
            let length = step.positions[sequence.rows.end - 1] as usize + 1;
            let table = &table[..length.div_ceil(PAGE)];
            let tokens: Vec<u32> = table.iter().flat_map(|&page| self.pages[page as usize]).take(length).collect();
            results.push(match (step.pass, graph.head) {
                (Pass::Hidden, _) => [reference.hidden(&tokens, &wanted), Matrix::new(0, 1)],
                (Pass::Head, Some(head)) => {
                    let width = graph.values[head.given.0].width;
                    let data = table.iter().flat_map(|&page| self.given[page as usize].iter().copied());
                    let given = Matrix { width, data: data.take(length * width).collect() };
                    reference.head(&tokens, Some(given), &wanted).unwrap_or_else(|| [(); 2].map(|()| Matrix::new(0, 1)))
                }
                (_, head) => {
                    let of_step = |mut hidden: Matrix| {
                        hidden.data.drain(..(length - sequence.rows.len()) * hidden.width);
                        hidden
                    };
                    let hidden = head.map(|head| of_step(reference.value(head.hidden, &tokens, &[])));
                    [reference.logits(&tokens, &wanted), hidden.unwrap_or_else(|| Matrix::new(0, 1))]
                }
            });
        }
        let joined = |i: usize| Matrix {
            width: results[0][i].width,
            data: results.iter().flat_map(|result: &[Matrix; 2]| &result[i].data).copied().collect(),
        };
        if step.pass != Pass::Head || !step.wanted.is_empty() {
            (self.rows, self.for_head) = (joined(0), joined(1));
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

    fn for_head(&self, i: usize) -> &[f32] {
        self.for_head.row(i)
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        if group == 0 {
            self.pages[to as usize] = self.pages[from as usize];
            self.given[to as usize] = self.given[from as usize].clone();
        }
    }

    fn page_bytes(&self, group: usize) -> usize {
        if group == 0 { size_of::<[u32; PAGE]>() } else { 0 }
    }

    fn read_page(&mut self, group: usize, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        if group == 0 {
            bytes.copy_from_slice(bytemuck::cast_slice(&self.pages[page as usize]));
        }
        Ok(())
    }

    fn read_slot(&mut self, _slot: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.fill(0);
        Ok(())
    }

    fn write_slot(&mut self, _slot: u32, _bytes: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        if group == 0 {
            bytemuck::cast_slice_mut(&mut self.pages[page as usize]).copy_from_slice(bytes);
        }
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => silu(x),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::GeluSigmoid => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Activation::Xielu { above, slope, .. } if x > 0.0 => above * x * x + slope * x,
        Activation::Xielu { below, slope, eps, .. } => below * (x.min(eps).exp_m1() - x) + slope * x,
    }
}

fn clamped_swish(g: f32, u: f32) -> f32 {
    let g = g.min(7.0);
    g / (1.0 + (-1.702 * g).exp()) * (u.clamp(-7.0, 7.0) + 1.0)
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}
