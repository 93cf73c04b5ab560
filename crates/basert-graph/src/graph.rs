//! The op catalogue, and graphs made of it.

use std::fmt;

use basert_core::Format;

/// A matrix of intermediate values: one row of f32 for every token of the step (or, after [`Op::Select`], for
/// every token whose logits are wanted).
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name in the architecture file, with the layer where it is inside one.
    pub name: String,
    /// Columns.
    pub width: usize,
    /// Which tokens it has a row for.
    pub rows: Rows,
}

/// Which tokens a value has rows for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Every token of the step.
    Tokens,
    /// The tokens whose logits are wanted.
    Wanted,
}

/// A tensor of the model file: `rows` × `columns`, row-major, or a vector with one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Its name in the file.
    pub tensor: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Its number format.
    pub format: Format,
}

impl Weight {
    /// Its size in the file, in bytes.
    pub fn bytes(&self) -> usize {
        self.format.row_bytes(self.columns).unwrap_or(0) * self.rows
    }
}

/// A rotary embedding: the frequencies of the rotated pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Its name in the architecture file.
    pub name: String,
    /// Which dimensions of a head form a pair.
    pub pairs: Pairs,
    /// Radians per position of each pair; twice as many dimensions are rotated, the first ones of a head.
    pub frequencies: Vec<f32>,
}

/// Which dimensions of a head, of `n` rotated ones, form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + n/2`.
    Half,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// The keys and values that one layer stores for every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

/// The gate's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// The tanh approximation of x · Φ(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
    /// The activation of gpt-oss: with the gate g clamped to at most 7 and the other factor u to ±7, g · σ(1.702 g) ·
    /// (u + 1).
    ClampedSwish,
}

/// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): `x / √(mean(x²) + eps) · (weight + offset)`. If `centred`,
/// LayerNorm (Ba et al. 2016, arXiv 1607.06450): the same of x − mean(x), plus a bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Whether the mean is subtracted first.
    pub centred: bool,
    /// A vector, as long as the normed vectors.
    pub weight: WeightId,
    /// A vector added to the result.
    pub bias: Option<WeightId>,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to every weight.
    pub offset: f32,
}

/// The experts that a router chose for each token, out of several that are stacked in one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// The value that [`Op::Route`] computed.
    pub route: ValueId,
    /// The number of experts.
    pub count: usize,
    /// The number of experts that a token uses.
    pub used: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub usize);
    };
}
id!(
    /// Index into [`Graph::values`].
    ValueId
);
id!(
    /// Index into [`Graph::weights`].
    WeightId
);
id!(
    /// Index into [`Graph::ropes`].
    RopeId
);
id!(
    /// Index into [`Graph::caches`].
    CacheId
);

/// The op catalogue. `y` is the value that an op computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// y = scale · row of `weight` for each token.
    Embed {
        /// One row for each token of the vocabulary.
        weight: WeightId,
        /// Factor.
        scale: f32,
    },
    /// y = norm(x).
    Norm {
        /// Input.
        x: ValueId,
        /// What kind.
        norm: Norm,
    },
    /// y = x · weightᵀ + bias. With experts, the results of those that each token uses, concatenated.
    Linear {
        /// Input, as wide as the weight has columns; with experts it may also have that many columns for each expert
        /// used.
        x: ValueId,
        /// Matrix.
        weight: WeightId,
        /// As many values as the matrix has rows.
        bias: Option<WeightId>,
        /// The experts whose rows of the matrix are used.
        experts: Option<Experts>,
    },
    /// The experts with the largest softmax(x); ties go to the first. y has their indices, and then their values.
    Route {
        /// Input: one value for each expert.
        x: ValueId,
        /// The number of experts chosen.
        used: usize,
        /// Whether their values are divided by their sum.
        normalised: bool,
    },
    /// y = the sum of the results of a token's experts, weighted by the router's values.
    Combine {
        /// Input: the results of all experts used, concatenated.
        x: ValueId,
        /// The experts.
        experts: Experts,
    },
    /// Norms each head of q and k if there are norms, rotates them by position, and stores k and v in the KV cache. y
    /// is the rotated q.
    RopeCache {
        /// Queries, `heads · head_dim` wide.
        q: ValueId,
        /// Keys, `kv_heads · head_dim` wide.
        k: ValueId,
        /// Values, as wide as the keys.
        v: ValueId,
        /// Norm of each head of q.
        q_norm: Option<Norm>,
        /// Norm of each head of k.
        k_norm: Option<Norm>,
        /// Rotation.
        rope: RopeId,
        /// Where k and v are stored; states the number of KV heads.
        cache: CacheId,
    },
    /// Causal attention of q over the KV cache: y = softmax(cap(scale · q·kᵀ)) · v for each head, where query head h
    /// reads cache head h · kv_heads / heads.
    Attention {
        /// Queries.
        q: ValueId,
        /// Keys and values.
        cache: CacheId,
        /// Heads of q.
        heads: usize,
        /// Factor of the scores.
        scale: f32,
        /// A token sees itself and the `window − 1` tokens before it; all tokens if `None`.
        window: Option<usize>,
        /// Scores become cap · tanh(score / cap).
        cap: Option<f32>,
        /// A vector with one additional score for each head of q, which takes part in the softmax and has no value.
        sinks: Option<WeightId>,
    },
    /// y = activation(gate) · up; but see [`Activation::ClampedSwish`].
    Gate {
        /// The input of the nonlinearity.
        gate: ValueId,
        /// The other factor.
        up: ValueId,
        /// The nonlinearity.
        activation: Activation,
    },
    /// y = a + b.
    Add {
        /// One term.
        a: ValueId,
        /// The other.
        b: ValueId,
    },
    /// y = the rows of x whose logits are wanted.
    Select {
        /// Input, with a row for every token.
        x: ValueId,
    },
    /// y = cap · tanh(x / cap).
    SoftCap {
        /// Input.
        x: ValueId,
        /// Largest magnitude.
        cap: f32,
    },
}

impl Op {
    /// Its name in architecture files.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Norm { .. } => "norm",
            Op::Linear { .. } => "linear",
            Op::Route { .. } => "route",
            Op::Combine { .. } => "combine",
            Op::RopeCache { .. } => "rope_cache",
            Op::Attention { .. } => "attention",
            Op::Gate { .. } => "gate",
            Op::Add { .. } => "add",
            Op::Select { .. } => "select",
            Op::SoftCap { .. } => "soft_cap",
        }
    }

    /// The values it reads.
    pub fn inputs(&self) -> Vec<ValueId> {
        match *self {
            Op::Embed { .. } => vec![],
            Op::Linear { x, experts: Some(experts), .. } | Op::Combine { x, experts } => vec![x, experts.route],
            Op::Norm { x, .. }
            | Op::Linear { x, .. }
            | Op::Route { x, .. }
            | Op::Select { x }
            | Op::SoftCap { x, .. } => vec![x],
            Op::RopeCache { q, k, v, .. } => vec![q, k, v],
            Op::Attention { q, .. } => vec![q],
            Op::Gate { gate, up, .. } => vec![gate, up],
            Op::Add { a, b } => vec![a, b],
        }
    }
}

/// An op and the value it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// The result; every value is computed once.
    pub out: ValueId,
}

/// What a model computes for a step of tokens: concrete in everything but their number.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Name of the architecture file.
    pub family: String,
    /// Tokens in the vocabulary: the width of the logits.
    pub vocabulary: usize,
    /// The context length that the model was trained for, in tokens.
    pub context: usize,
    /// Layers.
    pub layers: usize,
    /// Intermediate values.
    pub values: Vec<Value>,
    /// Tensors of the file.
    pub weights: Vec<Weight>,
    /// Rotary embeddings.
    pub ropes: Vec<Rope>,
    /// What is stored for every token.
    pub caches: Vec<Cache>,
    /// The ops, in order.
    pub nodes: Vec<Node>,
    /// The last value: one row of logits for each token wanted.
    pub logits: ValueId,
}

impl Graph {
    /// The hidden state from which a linear op (and a soft cap, if there is one) computes the logits: a row for each
    /// wanted token.
    pub fn hidden(&self) -> ValueId {
        let mut value = self.logits;
        while let Some(node) = self.nodes.iter().find(|node| node.out == value) {
            match node.op {
                Op::SoftCap { x, .. } => value = x,
                Op::Linear { x, experts: None, .. } => return x,
                _ => break,
            }
        }
        value
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} layers, vocabulary {}, context {}",
            self.family, self.layers, self.vocabulary, self.context
        )?;
        for node in &self.nodes {
            let out = &self.values[node.out.0];
            let inputs: Vec<_> = node.op.inputs().iter().map(|id| self.values[id.0].name.clone()).collect();
            write!(f, "{} [{}] = {}({})", out.name, out.width, node.op.name(), inputs.join(", "))?;
            if let Op::Linear { weight, .. } | Op::Embed { weight, .. } | Op::Norm { norm: Norm { weight, .. }, .. } =
                node.op
            {
                let weight = &self.weights[weight.0];
                write!(f, " {} {}", weight.tensor, weight.format)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
