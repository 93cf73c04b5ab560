//! The op catalogue: what each op computes, and what plans and devices have to know about it.

use crate::graph::{CacheId, RopeId, WeightId};

/// The op catalogue. `y` is the value that an op computes; its inputs are those of its [`Node`](crate::Node), in the
/// order in which they are named here. Every op computes each row from the same rows of its inputs, but for `Select`,
/// `Store` and `Attention`.
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
    Store(CacheId),
    /// Causal attention of the queries x over what is stored, of which the second input is a result of `Store`:
    /// y = softmax(cap(scale · q·kᵀ)) · v for each head, where query head h reads cache head h · kv_heads / heads.
    Attention(Attention),
    /// y = activation(x).
    Activate(Activation),
    /// y = a · b, value by value.
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
    pub cache: CacheId,
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
}

impl Reach {
    /// The first position that the token at `position` sees.
    pub fn first(self, position: usize) -> usize {
        match self {
            Reach::All => 0,
            Reach::Window(tokens) => (position + 1).saturating_sub(tokens),
            Reach::Chunk(tokens) => position - position % tokens,
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
    /// The cache that it reads.
    pub reads: Option<CacheId>,
    /// The cache that it writes.
    pub writes: Option<CacheId>,
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
}

impl Norm {
    /// The vectors that it reads.
    pub fn weights(&self) -> impl Iterator<Item = (WeightId, Part)> {
        let weight = self.weight.map(|weight| (weight, Part::Norm(self.offset)));
        weight.into_iter().chain(self.bias.map(|bias| (bias, Part::Vector)))
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
