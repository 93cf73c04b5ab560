//! The shapes that steps have: for each there is a list of dispatches.

use basert_core::KvFormat;
use basert_plan::{Plan, StepShape, StepState};

use crate::step::QUERY_TILE;

/// Contexts up to this length are not divided.
const WHOLE_CONTEXT: usize = 512;

/// What a step is like, as far as its dispatches are concerned. Kernels find out themselves how many rows there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Tokens, at most.
    pub tokens: usize,
    /// Tokens whose logits are wanted, at most.
    pub wanted: usize,
    /// How attention is computed.
    pub attention: AttentionKind,
    /// What comes of the logits.
    pub outcome: Outcome,
    /// Whether each token is the only one of its sequence.
    pub alone: bool,
}

/// What comes of a step's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// They are wanted themselves.
    Logits,
    /// It does not come to them: hidden states are wanted.
    Hidden,
    /// Tokens are drawn from them.
    Tokens,
    /// So they are, and the step began with the tokens that were drawn in the one before.
    Chained,
    /// Tokens are drawn from those of the step before, and nothing else is done.
    Drawn,
}

impl Outcome {
    /// Whether tokens are drawn.
    pub fn draws(self) -> bool {
        matches!(self, Outcome::Tokens | Outcome::Chained | Outcome::Drawn)
    }
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionKind {
    /// Token by token, each over its whole context.
    Whole,
    /// Token by token, over parts of the context that are put together.
    Divided,
    /// Tiles of consecutive tokens.
    Tiles,
}

impl Shape {
    /// The shape of a step, with `tiles` tiles of queries, none of them at a position beyond `last`.
    pub fn of(step: &StepState, found: usize, plan: &Plan, kv: KvFormat) -> Shape {
        // The least of `classes`.
        let class = |rows: usize, limit: usize| rows.next_power_of_two().min(limit);
        let tokens = class(step.tokens.len(), plan.limits.tokens);
        let wanted = if step.wanted.is_empty() { 0 } else { class(step.wanted.len(), plan.limits.wanted) };
        let last = step.positions.iter().copied().max().unwrap_or(0) as usize;
        let attention = if Shape::tiled(tokens) && found <= tiles(tokens) {
            AttentionKind::Tiles
        } else if last < WHOLE_CONTEXT {
            AttentionKind::Whole
        } else {
            AttentionKind::Divided
        };
        let outcome = match () {
            () if !step.draws.is_empty() => Outcome::Tokens,
            // Where nothing is wanted, it is all the same.
            () if step.hidden && wanted > 0 => Outcome::Hidden,
            () => Outcome::Logits,
        };
        // Quantised keys and values are those of the cache for everyone who reads them.
        let alone = kv == KvFormat::F16
            && attention != AttentionKind::Tiles
            && step.sequences.iter().all(|sequence| sequence.rows.len() == 1);
        Shape { tokens, wanted, attention, outcome, alone }
    }

    /// The shape of a step of one sequence's next tokens, of which the last is drawn from where that is the only one.
    pub fn of_one_sequence(step: StepShape, plan: &Plan) -> Shape {
        let rows = step.tokens.min(plan.limits.tokens);
        let tokens = rows.next_power_of_two().min(plan.limits.tokens);
        let attention = match () {
            () if Shape::tiled(tokens) => AttentionKind::Tiles,
            () if step.context + step.tokens <= WHOLE_CONTEXT => AttentionKind::Whole,
            () => AttentionKind::Divided,
        };
        let outcome = if tokens == 1 { Outcome::Tokens } else { Outcome::Logits };
        Shape { tokens, wanted: 1, attention, outcome, alone: tokens == 1 && step.kv == KvFormat::F16 }
    }

    /// The shape of the step that follows one of this shape, none of whose positions are beyond `last`.
    pub fn chained(self, last: usize) -> Shape {
        let attention = match self.attention {
            AttentionKind::Whole if last >= WHOLE_CONTEXT => AttentionKind::Divided,
            attention => attention,
        };
        Shape { attention, outcome: Outcome::Chained, ..self }
    }

    /// The shape of what draws from a step's logits after it, where so many were wanted, at most.
    pub fn drawn(wanted: usize) -> Shape {
        Shape { tokens: 0, wanted, attention: AttentionKind::Whole, outcome: Outcome::Drawn, alone: false }
    }

    /// Whether so many tokens are worth tiles.
    fn tiled(tokens: usize) -> bool {
        tokens > 16
    }

    /// Whether [`Shape::of`] gives it.
    pub fn is_used(self) -> bool {
        // Tokens are drawn where each row wants one.
        self.wanted <= self.tokens
            && (self.attention != AttentionKind::Tiles || (Shape::tiled(self.tokens) && !self.alone))
            && (self.outcome != Outcome::Hidden || self.wanted > 0)
            && (!self.outcome.draws() || self.wanted == self.tokens)
    }
}

/// Sizes that steps are rounded up to: powers of two, and the limit.
pub fn classes(limit: usize) -> Vec<usize> {
    let powers = (0..usize::BITS - 1).map(|n| 1 << n);
    powers.take_while(|&size| size < limit).chain([limit]).collect()
}

/// Tiles that a step of so many tokens has room for: full ones, and one more for each of some sequences.
pub fn tiles(tokens: usize) -> usize {
    const SEQUENCES: usize = 16;
    (tokens / QUERY_TILE + SEQUENCES).min(tokens)
}
