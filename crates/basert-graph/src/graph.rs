//! Graphs: the ops of a model, and the values, weights, rotations and states that they name.

use std::collections::BTreeSet;
use std::fmt;

use basert_core::KvFormat;

use crate::op::Op;
use crate::weight::Weight;

/// A matrix of intermediate values: one row of f32 for every token of the step (or, after [`Op::Select`], for
/// every token whose logits are wanted).
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name in the architecture file, with the layer where it is inside one.
    pub name: String,
    /// Columns; none where it stands for what a cache stores.
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

/// A rotary embedding: the frequencies of the rotated pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Its name in the architecture file.
    pub name: String,
    /// Which dimensions of a head form a pair.
    pub pairs: Pairs,
    /// Radians per position of each pair; twice as many dimensions are rotated, the first ones of a head.
    pub frequencies: Vec<f32>,
    /// Factor of the rotated dimensions.
    pub magnitude: f32,
}

/// Which dimensions of a head, of `n` rotated ones, form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + n/2`.
    Half,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// What a sequence keeps from step to step for one op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Keys and values of every token, in pages of the KV cache.
    Paged(Cache),
    /// This number of f32 values, which every token changes: zeros before the first one.
    Running(usize),
}

/// The keys and values that one layer stores for every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
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
    /// Index into [`Graph::states`].
    StateId
);

/// An op, the values it reads, and the one it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// What of, in the order that [`Op`] states.
    pub inputs: Vec<ValueId>,
    /// The result; every value is computed once.
    pub out: ValueId,
}

/// What a model computes for a step of tokens: concrete in everything but their number.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Name of the architecture file.
    pub family: String,
    /// Tokens in the vocabulary: the width of the logits, if there are any.
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
    /// What a sequence keeps from step to step.
    pub states: Vec<State>,
    /// The ops, in order.
    pub nodes: Vec<Node>,
    /// The last value: one row of logits for each token wanted, or of hidden states, of a model that has no logits.
    pub logits: ValueId,
    /// Whether the last value are logits.
    pub generates: bool,
    /// How many texts that are read together the model tells apart: a token of the second is its id and the size of the
    /// vocabulary.
    pub segments: usize,
    /// The head that predicts a further token, if it is used.
    pub head: Option<Head>,
    /// What becomes of the pooled hidden state of a text, if the file says so.
    pub pooled: Option<Pooled>,
}

/// Ops on the pooled hidden state of a text. They are few, and computed by the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// How hidden states are pooled: 'first', 'mean' or 'last'; none if that is said elsewhere.
    pub pooling: Option<String>,
    /// Whether the result are scores, and not an embedding.
    pub is_scores: bool,
    /// The pooled hidden state.
    pub given: ValueId,
    /// The ops, in order: products with matrices, activations and norms.
    pub nodes: Vec<Node>,
    /// The result.
    pub out: ValueId,
}

/// A head that predicts one more token (multi-token prediction, DeepSeek-AI 2024, arXiv 2412.19437): from the embedding of
/// a token and the hidden state of the token before it, what comes after both. Its ops follow those of the model, and are
/// computed in steps of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the graph's ops that come before its own.
    pub after: usize,
    /// The model's hidden states, a row for each token, which it reads.
    pub hidden: ValueId,
    /// Where it reads them, a row for each token: that of the token before.
    pub given: ValueId,
    /// Its logits, a row for each wanted token.
    pub logits: ValueId,
    /// What it reads instead of the model's hidden state to predict the token after its prediction: a row for each wanted
    /// token.
    pub next: ValueId,
}

impl Graph {
    /// Whether no token sees a later one: then a sequence can be computed in parts.
    pub fn is_causal(&self) -> bool {
        self.nodes.iter().all(|node| match node.op {
            Op::Attention(attention) => attention.reach.is_causal(),
            _ => true,
        })
    }

    /// The number of tokens that a step may have: those of the vocabulary, in each of the texts that are told apart.
    pub fn tokens(&self) -> usize {
        self.vocabulary * self.segments
    }

    /// The keys and values of all layers.
    pub fn caches(&self) -> impl Iterator<Item = Cache> {
        self.states.iter().filter_map(State::paged)
    }

    /// The shape of the keys and values of a store.
    ///
    /// # Panics
    /// When the state is not paged: that of no op `Store`.
    pub fn cache(&self, id: StateId) -> Cache {
        self.states[id.0].paged().expect("a store has a state in pages")
    }

    /// Bytes of the running states of a sequence: 0 for a model that has none.
    pub fn slot_bytes(&self) -> usize {
        self.slot_offset(StateId(self.states.len()))
    }

    /// First byte of a running state in those of a sequence, which follow each other.
    pub fn slot_offset(&self, id: StateId) -> usize {
        self.states[..id.0].iter().map(|state| size_of::<f32>() * state.running()).sum()
    }

    /// What the head takes, if there is one: bytes of weights that the model does not read, and of a token in the KV cache.
    pub fn head_bytes(&self, kv: KvFormat) -> Option<(usize, usize)> {
        let (model, own) = self.nodes.split_at(self.head?.after);
        let weights = |nodes: &[Node]| -> BTreeSet<WeightId> {
            nodes.iter().flat_map(|node| node.op.signature().weights).map(|(weight, _)| weight).collect()
        };
        let of_model = weights(model);
        let bytes = weights(own).difference(&of_model).map(|weight| self.weights[weight.0].bytes()).sum();
        let stores = own.iter().filter_map(|node| node.op.signature().writes);
        let caches = stores.filter_map(|state| self.states[state.0].paged());
        Some((bytes, caches.map(|cache| cache.token_bytes(kv)).sum()))
    }

    /// The hidden state from which the last matrix computes the logits, and nothing but functions of single values
    /// after it: a row for each wanted token.
    pub fn hidden(&self) -> ValueId {
        let mut value = self.logits;
        while let Some(node) = self.nodes.iter().find(|node| node.out == value) {
            match (node.op, &node.inputs[..]) {
                (Op::Linear { experts: None, .. }, &[x]) => return x,
                (Op::SoftCap(_) | Op::Scale(_), &[x]) => value = x,
                _ => break,
            }
        }
        value
    }
}

impl Cache {
    /// Values of a head as devices keep it: filled up with zeros to a multiple of 16, of which kernels are made.
    pub fn padded_head(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Bytes of a token's keys and values in this format, of which every head has whole blocks.
    pub fn token_bytes(&self, kv: KvFormat) -> usize {
        kv.bytes(self.padded_head()).saturating_mul(2 * self.kv_heads)
    }
}

impl State {
    /// The keys and values that it is, if it is in pages.
    pub fn paged(&self) -> Option<Cache> {
        match *self {
            State::Paged(cache) => Some(cache),
            State::Running(_) => None,
        }
    }

    /// The values of a running state; 0 for others.
    pub fn running(&self) -> usize {
        match *self {
            State::Paged(_) => 0,
            State::Running(values) => values,
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} layers, vocabulary {}, context {}",
            self.family, self.layers, self.vocabulary, self.context
        )?;
        for (i, node) in self.nodes.iter().enumerate() {
            if self.head.is_some_and(|head| head.after == i) {
                writeln!(f, "head:")?;
            }
            let (out, signature) = (&self.values[node.out.0], node.op.signature());
            let inputs: Vec<_> = node.inputs.iter().map(|id| self.values[id.0].name.as_str()).collect();
            write!(f, "{} [{}] = {}({})", out.name, out.width, signature.name, inputs.join(", "))?;
            if let Some((weight, _)) = signature.weights.first() {
                let weight = &self.weights[weight.0];
                write!(f, " {} {}", weight.name(), weight.format)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
