//! The shapes of steps: each has a list of dispatches.

use basert_core::KvFormat;
use basert_plan::{Pass, Plan, StepShape, StepState};

use crate::step::QUERY_TILE;

/// Contexts up to this length are not divided.
const WHOLE_CONTEXT: usize = 512;

/// Sequences that may always be computed in tiles together.
const FEW_SEQUENCES: usize = 16;
/// Tokens for each tile, on average, from which more of them are.
const TILED_TOKENS: usize = 3;

/// The properties of a step that its dispatches depend on. Kernels read the actual numbers of rows themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// The most tokens.
    pub tokens: usize,
    /// The most tokens whose logits are wanted.
    pub wanted: usize,
    /// How attention is computed.
    pub attention: AttentionKind,
    /// What happens to the logits.
    pub outcome: Outcome,
    /// Whether each token is the only one of its sequence.
    pub alone: bool,
}

/// What happens to a step's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The host reads them.
    Logits,
    /// They are not computed: hidden states are wanted.
    Hidden,
    /// The host reads those of the head, which is computed instead.
    Head,
    /// Tokens are sampled from them.
    Tokens,
    /// The same, and the step begins with the tokens sampled in the previous one.
    Chained,
    /// Tokens are sampled from the logits of the previous step, and nothing else is computed.
    Drawn,
}

impl Outcome {
    /// Whether tokens are sampled.
    pub fn draws(self) -> bool {
        matches!(self, Outcome::Tokens | Outcome::Chained | Outcome::Drawn)
    }
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionKind {
    /// Token by token, each over its whole context.
    Whole,
    /// Token by token, over parts of the context that are merged.
    Divided,
    /// Tiles of consecutive tokens.
    Tiles,
    /// The same, over parts of the context that are merged, where there are few tiles.
    DividedTiles,
}

impl AttentionKind {
    /// All kinds.
    pub const ALL: [AttentionKind; 4] =
        [AttentionKind::Whole, AttentionKind::Divided, AttentionKind::Tiles, AttentionKind::DividedTiles];

    /// Of this many tokens of context.
    fn new(tiled: bool, context: usize) -> AttentionKind {
        match (tiled, context > WHOLE_CONTEXT) {
            (false, false) => AttentionKind::Whole,
            (false, true) => AttentionKind::Divided,
            (true, false) => AttentionKind::Tiles,
            (true, true) => AttentionKind::DividedTiles,
        }
    }

    /// Whether it is that of tiles.
    pub fn is_tiled(self) -> bool {
        matches!(self, AttentionKind::Tiles | AttentionKind::DividedTiles)
    }
}

impl Shape {
    /// The shape of a step with `found` tiles of queries.
    pub fn of(step: &StepState, found: usize, plan: &Plan, kv: KvFormat) -> Shape {
        // The smallest of `classes`.
        let class = |rows: usize, limit: usize| rows.next_power_of_two().min(limit);
        let tokens = class(step.tokens.len(), plan.limits.tokens);
        let wanted = if step.wanted.is_empty() { 0 } else { class(step.wanted.len(), plan.limits.wanted) };
        let last = step.positions.iter().copied().max().unwrap_or(0) as usize;
        // Tiles of single tokens are worth it beside enough others.
        let full = found <= tokens / QUERY_TILE + FEW_SEQUENCES || TILED_TOKENS * found <= step.tokens.len();
        let tiled = !plan.graph.is_causal() || (Shape::tiled(tokens) && full && found <= tiles(tokens, plan));
        let attention = AttentionKind::new(tiled, last + 1);
        let outcome = match () {
            () if !step.draws.is_empty() => Outcome::Tokens,
            // If nothing is wanted, the outcome does not matter.
            () if step.pass == Pass::Head => Outcome::Head,
            () if step.pass == Pass::Hidden && wanted > 0 => Outcome::Hidden,
            () => Outcome::Logits,
        };
        // Quantised keys and values must be read from the KV cache by every reader.
        let alone = kv == KvFormat::F16
            && !attention.is_tiled()
            && step.sequences.iter().all(|sequence| sequence.rows.len() == 1);
        Shape { tokens, wanted, attention, outcome, alone }
    }

    /// The shape of a step with the next tokens of one sequence; a single token is sampled from.
    pub fn of_one_sequence(step: StepShape, plan: &Plan) -> Shape {
        let rows = step.tokens.min(plan.limits.tokens);
        let tokens = rows.next_power_of_two().min(plan.limits.tokens);
        let attention = AttentionKind::new(Shape::tiled(tokens) || !plan.graph.is_causal(), step.context + step.tokens);
        let outcome = if tokens == 1 { Outcome::Tokens } else { Outcome::Logits };
        let alone = tokens == 1 && step.kv == KvFormat::F16 && !attention.is_tiled();
        Shape { tokens, wanted: 1, attention, outcome, alone }
    }

    /// The shape of the step that follows one of this shape, with positions up to `last`.
    pub fn chained(self, last: usize) -> Shape {
        let attention = match self.attention {
            AttentionKind::Whole if last >= WHOLE_CONTEXT => AttentionKind::Divided,
            attention => attention,
        };
        Shape { attention, outcome: Outcome::Chained, ..self }
    }

    /// The shape of the submission that samples from at most `wanted` rows of logits of the previous step.
    pub fn drawn(wanted: usize) -> Shape {
        Shape { tokens: 0, wanted, attention: AttentionKind::Whole, outcome: Outcome::Drawn, alone: false }
    }

    /// Whether this number of tokens is computed in tiles.
    fn tiled(tokens: usize) -> bool {
        tokens > 16
    }

    /// Whether [`Shape::of`] can return it.
    pub fn is_used(self, plan: &Plan) -> bool {
        // Later tokens are seen only in tiles.
        let tiled = match plan.graph.is_causal() {
            true => !self.attention.is_tiled() || Shape::tiled(self.tokens),
            false => self.attention.is_tiled(),
        };
        // Tokens are sampled only if each row wants one.
        self.wanted <= self.tokens
            && tiled
            && !(self.attention.is_tiled() && self.alone)
            && (self.outcome != Outcome::Hidden || self.wanted > 0)
            && (!self.outcome.draws() || self.wanted == self.tokens)
    }
}

/// Sizes that steps are rounded up to: powers of two, and the limit.
pub fn classes(limit: usize) -> Vec<usize> {
    let powers = (0..usize::BITS - 1).map(|n| 1 << n);
    powers.take_while(|&size| size < limit).chain([limit]).collect()
}

/// The tiles for which a step of `tokens` tokens has room: full ones, and one more for each of some sequences, or of all if there
/// is nothing but tiles for them.
pub fn tiles(tokens: usize, plan: &Plan) -> usize {
    const SEQUENCES: usize = 128;
    if !plan.graph.is_causal() {
        return tokens;
    }
    (tokens / QUERY_TILE + (tokens / TILED_TOKENS).clamp(FEW_SEQUENCES, SEQUENCES)).min(tokens)
}
