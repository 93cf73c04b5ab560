//! The op catalogue: what each op computes, and what plans and devices have to know about it.

use std::ops::Range;

use crate::graph::{RopeId, StateId, WeightId};

/// The op catalogue. `y` is the value that an op computes; its inputs are those of its [`Node`](crate::Node), in the
/// order in which they are named here. Every op computes each row from the same rows of its inputs, but for `Select`,
/// `Store`, `Attention` and those with a running state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// y = scale · row of `weight` for each token; no inputs.
    Embed {
        /// One row for each token of the vocabulary, or for each position.
        weight: WeightId,
        /// Factor.
        scale: f32,
        /// What chooses the row.
        by: Index,
    },
    /// y = norm(x).
    Norm(Norm),
    /// y = x · weightᵀ + bias. With experts, whose route is the second input, the results of those that each token
    /// uses, concatenated; x may then also have as many columns as the weight for each expert used.
    Linear {
        /// Matrix.
        weight: WeightId,
        /// As many values as the matrix has rows.
        bias: Option<WeightId>,
        /// The experts whose rows of the matrix are used.
        experts: Option<Experts>,
    },
    /// The experts that a token uses, from one logit for each expert: y has their indices, and then their weights.
    Route(Route),
    /// y = the sum of the results x of a token's experts, weighted as its route, the second input, says; or their plain
    /// sum.
    Combine {
        /// The experts.
        experts: Experts,
        /// Whether they are weighted.
        weighted: bool,
    },
    /// y = x with the pairs of each head rotated by the token's position.
    Rope {
        /// The frequencies, and which values form a pair.
        rope: RopeId,
        /// Values of a head.
        head_dim: usize,
    },
    /// Stores keys and values, the two inputs, in the KV cache. y has no columns: it stands for what is stored.
    Store(StateId),
    /// Attention of the queries x over what is stored, of which the second input is a result of `Store`:
    /// y = softmax(cap(scale · q·kᵀ)) · v for each head, where query head h reads cache head h · kv_heads / heads.
    Attention(Attention),
    /// y = Σ weight[k] · x[t + 1 − K + k] + bias for each column, over the rows x[t] of a sequence: a causal convolution
    /// of each channel over the last K tokens.
    Conv(Conv),
    /// Attention whose past is one matrix for each head, which every token changes (see [`LinearAttention`]). The inputs
    /// are queries, keys, values and the decay, and then, if there is one, beta.
    LinearAttention(LinearAttention),
    /// y = weight · x + bias, column by column.
    Affine(Affine),
    /// y = activation(x).
    Activate(Activation),
    /// y = a · b, value by value. Each value of a narrower b is the factor of as many consecutive ones of a.
    Mul,
    /// y = a + b.
    Add,
    /// y = factor · x.
    Scale(f32),
    /// y = x · (1 + factor · ln(1 + ⌊(position + offset) / every⌋)): attention whose scores grow with the position.
    Temper(Temper),
    /// y = for each expert that a token uses x times its weight, concatenated; the second input is the route.
    Weigh(Experts),
    /// y = as many columns of x as y has, from this one on.
    Slice(usize),
    /// The gate of gpt-oss, of g and u: with g clamped to at most 7 and u to ±7, y = g · σ(1.702 g) · (u + 1).
    ClampedSwish,
    /// y = the rows of x whose logits are wanted.
    Select,
    /// y = cap · tanh(x / cap).
    SoftCap(f32),
}

/// What chooses the row of an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// The token.
    Token,
    /// Its position in the sequence.
    Position,
    /// Which of the texts that are read together it belongs to.
    Segment,
}

impl Index {
    /// The row for a token of a step, of a model with a vocabulary of this size: the token of a second text is its id and
    /// that size.
    pub fn of(self, token: u32, position: u32, vocabulary: usize) -> usize {
        match self {
            Index::Token => token as usize % vocabulary.max(1),
            Index::Position => position as usize,
            Index::Segment => token as usize / vocabulary.max(1),
        }
    }
}

/// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): `x / √(mean(x²) + eps) · (weight + offset)`. If `centred`,
/// LayerNorm (Ba et al. 2016, arXiv 1607.06450): the same of x − mean(x), plus a bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Whether the mean is subtracted first.
    pub centred: bool,
    /// Values that are normed together: a row has one group of them, or several.
    pub group: usize,
    /// A vector as long as a group, or as a row; 1 if there is none.
    pub weight: Option<WeightId>,
    /// A vector added to the result, as long as the weight.
    pub bias: Option<WeightId>,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to every weight of the file.
    pub offset: f32,
}

/// A causal convolution over time, channel by channel. Its state holds the inputs of the last K − 1 tokens, the oldest
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// A row of K factors for each channel.
    pub weight: WeightId,
    /// A number for each channel.
    pub bias: Option<WeightId>,
    /// The inputs of earlier tokens.
    pub state: StateId,
}

/// Linear attention with decay. Each head has a matrix S of key_dim rows and value_dim columns. For every token, S becomes
/// e^decay · S, row by row, and then S + k uᵀ, with u = beta · v; or, by the delta rule, u = beta · (v − Sᵀk) (gated
/// DeltaNet, Yang et al. 2024, arXiv 2412.06464). y = scale · Sᵀq. Mamba-2 is the former (Dao and Gu 2024, arXiv
/// 2405.21060), with k = B, q = C and beta = Δ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearAttention {
    /// The matrices of all heads.
    pub state: StateId,
    /// Heads of values, and of the result.
    pub heads: usize,
    /// Heads of queries and keys, which several heads of values share.
    pub key_heads: usize,
    /// Values of a head of queries and keys.
    pub key_dim: usize,
    /// Values of a head of values.
    pub value_dim: usize,
    /// Whether head h has the queries and keys of head h % key_heads; else of h / (heads / key_heads).
    pub tiled: bool,
    /// Whether each row of a matrix has a decay of its own; else each head has one.
    pub by_row: bool,
    /// The delta rule.
    pub delta: bool,
    /// Factor of the result.
    pub scale: f32,
}

impl LinearAttention {
    /// The head of queries and keys of a head of values.
    pub fn key_head(&self, head: usize) -> usize {
        match self.tiled {
            true => head % self.key_heads,
            false => head * self.key_heads / self.heads,
        }
    }
}

/// Factors and terms of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// The factors; 1 if there are none. Each of fewer values than y has columns is that of as many consecutive ones.
    pub weight: Option<WeightId>,
    /// The terms, likewise; 0 if there are none.
    pub bias: Option<WeightId>,
    /// Whether weights w stand for −e^w.
    pub decay: bool,
}

/// Unary activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// x · Φ(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    Gelu,
    /// The tanh approximation of the same.
    GeluTanh,
    /// x · σ(1.702 x), the other approximation of it.
    GeluSigmoid,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al. 2021, arXiv 2109.08668).
    ReluSquared,
    /// σ(x) = 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// tanh(x).
    Tanh,
    /// ln(1 + eˣ).
    Softplus,
    /// xIELU (Huang and Schlag 2024, arXiv 2411.13010): αp x² + βx above 0, αn (e^min(x, ε) − 1 − x) + βx elsewhere.
    Xielu {
        /// αp.
        above: f32,
        /// αn.
        below: f32,
        /// β.
        slope: f32,
        /// ε, a small negative number.
        eps: f32,
    },
}

/// Experts that are stacked in one weight: each has an equal, consecutive share of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// The number of experts.
    pub count: usize,
    /// The number of experts that a token uses.
    pub used: usize,
}

/// How a router chooses experts and weighs them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Route {
    /// The experts.
    pub experts: Experts,
    /// What makes scores of logits.
    pub score: Score,
    /// A vector with a number for each expert that is added to its score where experts are chosen, but not in its
    /// weight.
    pub bias: Option<WeightId>,
    /// Experts are divided into this number of groups of the same size, consecutive ones; 1 does not restrict.
    pub groups: usize,
    /// Only experts of this number of groups are chosen: those with the largest sums of their two best scores.
    pub groups_used: usize,
    /// Whether weights are divided by their sum.
    pub normalised: bool,
    /// Factor of all weights.
    pub scale: f32,
}

/// What makes the scores of experts of a router's logits. Those with the largest are chosen, the first of equals; the
/// scores are their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// The softmax over all experts.
    Softmax,
    /// The sigmoid of each logit.
    Sigmoid,
}

/// How values grow with the position: see [`Op::Temper`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temper {
    /// Factor of the logarithm.
    pub factor: f32,
    /// Positions at which it grows.
    pub every: usize,
    /// Added to the position.
    pub offset: usize,
}

impl Temper {
    /// The factor of a token's values.
    pub fn at(self, position: usize) -> f32 {
        1.0 + self.factor * (((position + self.offset) / self.every) as f32).ln_1p()
    }
}

/// Attention over one cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Keys and values.
    pub cache: StateId,
    /// Heads of queries.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Which tokens a token sees.
    pub reach: Reach,
    /// Scores become cap · tanh(score / cap).
    pub cap: Option<f32>,
    /// What is subtracted from scores by distance.
    pub alibi: Option<Alibi>,
    /// A vector with one additional score for each head, which takes part in the softmax and has no value.
    pub sinks: Option<WeightId>,
}

/// Attention with linear biases (Press et al. 2021, arXiv 2108.12409): a head's scores lose its slope times the distance
/// in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alibi {
    /// Slopes begin near 1 and end at 2 to the power of minus this.
    pub most: f32,
}

impl Alibi {
    /// The slope of a head: those of a power of two of heads are 2^(−most · (head + 1) / heads), and further ones lie
    /// between them.
    pub fn slope(self, head: usize, heads: usize) -> f32 {
        let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let exponent = match head.checked_sub(whole) {
            None => (head + 1) as f32 / whole as f32,
            Some(further) => (2 * further + 1) as f32 / (2 * whole) as f32,
        };
        (-self.most * exponent).exp2()
    }
}

/// Which tokens a token sees: itself, and of those before it …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// The last ones: this number of tokens with itself.
    Window(usize),
    /// Those of its chunk: chunks of this number of tokens follow each other from position 0 on.
    Chunk(usize),
    /// All but this number of first ones, and itself.
    After(usize),
    /// All, and all after it.
    Everything,
    /// Those at a distance below this number of tokens, and those after it at such a distance.
    Around(usize),
}

impl Reach {
    /// The positions that the token at `position` of a sequence of so many tokens sees.
    pub fn seen(self, position: usize, tokens: usize) -> Range<usize> {
        match self {
            Reach::All => 0..position + 1,
            Reach::Window(window) => (position + 1).saturating_sub(window)..position + 1,
            Reach::Chunk(chunk) => position - position % chunk..position + 1,
            Reach::After(first) => first.min(position)..position + 1,
            Reach::Everything => 0..tokens,
            Reach::Around(window) => (position + 1).saturating_sub(window)..tokens.min(position.saturating_add(window)),
        }
    }

    /// Whether no token sees a later one.
    pub fn is_causal(self) -> bool {
        match self {
            Reach::All | Reach::Window(_) | Reach::Chunk(_) | Reach::After(_) => true,
            Reach::Everything | Reach::Around(_) => false,
        }
    }
}

/// What plans and devices have to know about an op.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Its name in architecture files and tables.
    pub name: &'static str,
    /// The weights that it reads, and what they are to it.
    pub weights: Vec<(WeightId, Part)>,
    /// The state that it reads.
    pub reads: Option<StateId>,
    /// The state that it writes.
    pub writes: Option<StateId>,
    /// The input over which its result may be written, if nothing reads that input afterwards and it is not another
    /// input as well. Results of other ops share no memory with their inputs.
    pub overwrites: Option<usize>,
    /// Whether each row of the result depends on that row of the inputs alone, so that selected rows can be computed
    /// from selected rows.
    pub row_wise: bool,
    /// Floating-point operations for each value of the result, but for products with matrices and with keys and
    /// values.
    pub flops: f64,
}

/// What a weight is to an op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// A matrix that is multiplied.
    Matrix,
    /// A table, of which rows are read.
    Table,
    /// A vector of a norm, to whose values this is added.
    Norm(f32),
    /// A vector that is added to the results of a matrix.
    Bias,
    /// A vector that is read as it is.
    Vector,
    /// A vector of numbers w that stand for −e^w.
    Decay,
}

impl Norm {
    /// The vectors that it reads.
    pub fn weights(&self) -> impl Iterator<Item = (WeightId, Part)> {
        let weight = self.weight.map(|weight| (weight, Part::Norm(self.offset)));
        weight.into_iter().chain(self.bias.map(|bias| (bias, Part::Vector)))
    }
}

impl Affine {
    /// The vectors that it reads.
    pub fn weights(&self) -> impl Iterator<Item = (WeightId, Part)> {
        let part = if self.decay { Part::Decay } else { Part::Vector };
        self.weight.map(|weight| (weight, part)).into_iter().chain(self.bias.map(|bias| (bias, Part::Vector)))
    }
}

impl Op {
    /// What there is to know about it.
    pub fn signature(&self) -> Signature {
        let plain = |name| Signature {
            name,
            weights: Vec::new(),
            reads: None,
            writes: None,
            overwrites: None,
            row_wise: true,
            flops: 0.0,
        };
        // In place of the first input, value by value.
        let in_place = |name, flops| Signature { overwrites: Some(0), flops, ..plain(name) };
        match *self {
            Op::Embed { weight, by, .. } => Signature {
                weights: vec![(weight, Part::Table)],
                row_wise: false,
                flops: 1.0,
                ..plain(match by {
                    Index::Token => "embed",
                    Index::Position => "embed_position",
                    Index::Segment => "embed_segment",
                })
            },
            Op::Norm(norm) => Signature { weights: norm.weights().collect(), flops: 4.0, ..plain("norm") },
            Op::Linear { weight, bias, .. } => Signature {
                weights: [(weight, Part::Matrix)].into_iter().chain(bias.map(|bias| (bias, Part::Bias))).collect(),
                ..plain("linear")
            },
            Op::Route(route) => Signature {
                weights: route.bias.map(|bias| (bias, Part::Vector)).into_iter().collect(),
                flops: ((4 + route.experts.used) * route.experts.count) as f64 / (2 * route.experts.used) as f64,
                ..plain("route")
            },
            Op::Combine { experts, .. } => Signature { flops: 2.0 * experts.used as f64, ..plain("combine") },
            Op::Weigh(_) => Signature { flops: 1.0, ..plain("weigh") },
            Op::Temper(_) => Signature { row_wise: false, ..in_place("temper", 1.0) },
            Op::Rope { .. } => Signature { row_wise: false, ..in_place("rope", 3.0) },
            Op::Store(cache) => Signature { writes: Some(cache), row_wise: false, ..plain("store") },
            Op::Attention(attention) => Signature {
                weights: attention.sinks.map(|sinks| (sinks, Part::Vector)).into_iter().collect(),
                reads: Some(attention.cache),
                row_wise: false,
                ..plain("attention")
            },
            Op::Conv(Conv { weight, bias, state }) => Signature {
                weights: [weight].into_iter().chain(bias).map(|vector| (vector, Part::Vector)).collect(),
                reads: Some(state),
                writes: Some(state),
                row_wise: false,
                flops: 8.0,
                ..plain("conv")
            },
            Op::LinearAttention(LinearAttention { state, key_dim, .. }) => Signature {
                reads: Some(state),
                writes: Some(state),
                row_wise: false,
                flops: 7.0 * key_dim as f64,
                ..plain("linear_attention")
            },
            Op::Affine(affine) => Signature { weights: affine.weights().collect(), ..in_place("affine", 2.0) },
            Op::Activate(_) => in_place("activate", 8.0),
            Op::Mul => in_place("mul", 1.0),
            Op::Add => in_place("add", 1.0),
            Op::Scale(_) => in_place("scale", 1.0),
            Op::Slice(_) => plain("slice"),
            Op::ClampedSwish => in_place("clamped_swish", 8.0),
            Op::Select => Signature { row_wise: false, ..plain("select") },
            Op::SoftCap(_) => in_place("soft_cap", 8.0),
        }
    }
}
