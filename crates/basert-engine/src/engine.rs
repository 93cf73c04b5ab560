//! The engine: a device, its pages, and the steps that bring sequences up to date.

mod draw;
mod head;
mod prefixes;
mod score;
mod states;
mod tables;
mod timeline;

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use basert_plan::{Baked, DeviceError, Facts, Limits, Pass, Reach, StepState};

use self::draw::Chain;
pub(crate) use self::draw::choose;
pub use self::draw::{Allowed, Drawing};
use self::head::Carry;
pub(crate) use self::head::Drafting;
pub(crate) use self::states::Checkpoint;
use self::states::{Slots, States};
use crate::PrefixFile;
use crate::pages::{Group, PagePool};
use crate::prefix::PrefixTree;

/// A timeline of tokens, and the pages that hold the keys and values of those computed so far.
///
/// It belongs to the engine that made it, and must be returned to it by [`Engine::close`].
#[derive(Debug, Default)]
pub struct Sequence {
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// The page tables: see [`tables`].
    tables: Vec<Vec<u32>>,
    logits: Vec<f32>,
    /// Only sequences with the same salt share cached prefixes.
    salt: u64,
    /// The sequence's row in a chain of steps, numbered over all chains; 0 means none.
    chain: u64,
    states: States,
    carry: Carry,
}

impl Sequence {
    /// An empty sequence, which shares cached prefixes with sequences of the same salt.
    pub fn of_salt(salt: u64) -> Sequence {
        Sequence { salt, ..Sequence::default() }
    }

    /// Its salt.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Its tokens, computed or not.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Logits of the token after the last one, after [`Engine::advance`]; empty before that, and for an empty sequence.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// How many of the tokens have keys and values in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }
}

/// A sequence's part of a step.
#[derive(Debug)]
pub struct Part<'s> {
    /// The sequence.
    pub sequence: &'s mut Sequence,
    /// How many of the sequence's next uncomputed tokens to compute.
    pub count: usize,
    /// For how many of the last of these tokens to return a row of output.
    pub wanted: usize,
}

/// The use of the KV cache's pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageUse {
    /// All pages.
    pub total: usize,
    /// Pages of open sequences, whether or not they are also cached.
    pub held: usize,
    /// Pages that only the prefix cache holds.
    pub cached: usize,
}

/// Why a sequence could not be brought up to date.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// It is longer than the cache allows.
    #[error("{tokens} tokens do not fit the context of {context}; shorten the prompt or raise --max-context")]
    ContextFull {
        /// The sequence's length.
        tokens: usize,
        /// The longest possible.
        context: usize,
    },
    /// The model has hidden states, and no logits.
    #[error("the model embeds texts and does not generate any")]
    NoLogits,
    /// Other sequences use the rest of the cache.
    #[error("all {pages} pages of the KV cache are in use")]
    OutOfPages {
        /// The number of pages.
        pages: usize,
    },
    /// Other sequences use all slots for running states.
    #[error("all {slots} slots for running states are in use")]
    OutOfSlots {
        /// The number of slots.
        slots: usize,
    },
    /// A token is not in the vocabulary.
    #[error("token {token} is not one of the {vocabulary} of the vocabulary")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The size of the vocabulary.
        vocabulary: usize,
    },
    /// A request asks for more answers than are computed together.
    #[error("{answers} answers to a request are more than the {most} that can run together")]
    TooManyAnswers {
        /// The number of answers.
        answers: usize,
        /// The most there can be.
        most: usize,
    },
    /// The answer was interrupted.
    #[error("the model was unloaded, or the server stopped, before the answer was complete")]
    Stopped,
    /// The constraint allows no next token.
    #[error("the answer cannot go on within its constraint: {0}")]
    Constraint(String),
    /// All logits are NaN: the model or the cached prefixes are damaged.
    #[error("all logits are NaN; the model's file or the file of cached prefixes may be damaged")]
    NotNumbers,
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Owns the device and the KV cache.
pub struct Engine {
    baked: Box<dyn Baked>,
    groups: Vec<Group>,
    slots: Slots,
    /// Pages of sequences that were closed, if they are kept.
    cache: Option<PrefixTree>,
    /// The file in which they are saved, if any.
    prefix_file: Option<(PrefixFile, File)>,
    /// Limit on the bytes of pages that only the prefix cache holds.
    most_prefix_bytes: usize,
    page_tokens: usize,
    /// See [`Facts::layout`].
    layout: String,
    context: usize,
    vocabulary: usize,
    limits: Limits,
    /// Whether the model has logits.
    generates: bool,
    /// Whether a sequence can be computed in parts.
    is_causal: bool,
    /// Values of what the model's head reads of a token, if it has a head.
    head: Option<usize>,
    step: StepState,
    chain: Chain,
}

impl Engine {
    /// An engine over a plan that a device with these `facts` has loaded, with a cache of so many pages of each of its
    /// groups, for sequences of up to `context` tokens. The first group keeps all of a sequence.
    pub fn new(
        baked: Box<dyn Baked>,
        facts: &Facts,
        limits: Limits,
        pages: &[(Reach, usize)],
        context: usize,
        vocabulary: usize,
    ) -> Engine {
        let (step, page_tokens) = (StepState::default(), facts.page_tokens);
        let group = |(number, &(reach, pages)): (usize, &(Reach, usize))| Group {
            reach,
            pool: PagePool::new(pages),
            bytes: baked.page_bytes(number),
        };
        let groups = pages.iter().enumerate().map(group).collect();
        let (layout, chain) = (facts.layout.clone(), Chain::of(facts.chain));
        Engine {
            groups,
            baked,
            slots: Slots { pool: PagePool::new(0), bytes: 0 },
            cache: None,
            prefix_file: None,
            most_prefix_bytes: usize::MAX,
            page_tokens,
            layout,
            context,
            vocabulary,
            limits,
            generates: true,
            is_causal: true,
            head: None,
            step,
            chain,
        }
    }

    /// Sets what kind of model it is: whether it has logits, or hidden states alone; and whether it is causal. If not,
    /// each token depends on those after it, so a sequence is computed in one step, and is not cached for others.
    #[must_use]
    pub fn of_kind(self, generates: bool, is_causal: bool) -> Engine {
        Engine { generates, is_causal, ..self }
    }

    /// Whether the model has logits.
    pub fn generates(&self) -> bool {
        self.generates
    }

    /// Whether a sequence can be computed in parts.
    pub fn is_causal(&self) -> bool {
        self.is_causal
    }

    /// Sets the number of slots that the device has for running states, of `bytes` bytes each, for a model with such states.
    #[must_use]
    pub fn with_slots(mut self, slots: usize, bytes: usize) -> Engine {
        self.slots = Slots { pool: PagePool::new(slots), bytes };
        if self.has_states() {
            // What runs ahead would write over the states that a sequence may have to go on from.
            self.chain.most = self.chain.most.min(1);
        }
        self
    }

    /// Keeps the pages of closed sequences until the room is needed: a sequence that begins with the same tokens reuses
    /// them.
    pub fn with_prefix_cache(mut self) -> Engine {
        self.cache = Some(PrefixTree::new(self.page_tokens));
        self
    }

    /// Limits the bytes of pages that only the prefix cache holds; the least recently used ones are evicted first. The
    /// default is no limit.
    pub fn limit_prefixes(&mut self, bytes: usize) {
        self.most_prefix_bytes = bytes;
    }

    /// Whether the device can sample tokens.
    pub fn draws_on_device(&self) -> bool {
        self.chain.most > 0
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// The limits of a step.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Limit on a sequence's tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Computes the uncomputed tokens of all sequences together, in steps of at most `chunk` tokens (and no more than
    /// the plan allows). `progress` is called after each step with the number of tokens computed so far; if it returns
    /// false, the rest is not computed.
    ///
    /// # Errors
    /// When a sequence is too long, the pages do not suffice, or the device fails. The sequences stay usable.
    pub fn advance(
        &mut self,
        sequences: &mut [&mut Sequence],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), EngineError> {
        self.settle()?;
        self.check_logits()?;
        for sequence in sequences.iter_mut() {
            self.check(sequence)?;
        }
        let mut done = 0;
        loop {
            let mut parts = self.plan_step(sequences, chunk.clamp(1, self.limits.tokens))?;
            if parts.is_empty() {
                return Ok(());
            }
            self.run(&mut parts, false)?;
            for (row, part) in parts.iter_mut().filter(|part| part.wanted > 0).enumerate() {
                part.sequence.logits.extend_from_slice(self.baked.logits(row));
            }
            done += self.step.tokens.len();
            if !progress(done) {
                return Ok(());
            }
        }
    }

    fn check_logits(&self) -> Result<(), EngineError> {
        if self.generates { Ok(()) } else { Err(EngineError::NoLogits) }
    }

    fn check(&self, sequence: &Sequence) -> Result<(), EngineError> {
        let tokens = sequence.tokens.len();
        if tokens > self.context {
            return Err(EngineError::ContextFull { tokens, context: self.context });
        }
        let unknown = sequence.tokens[sequence.computed..].iter().find(|&&token| token as usize >= self.vocabulary);
        match unknown {
            Some(&token) => Err(EngineError::UnknownToken { token, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    /// Plans a step over the sequences, in order, and reserves its pages; output is wanted for their last tokens.
    fn plan_step<'s>(
        &mut self,
        sequences: &'s mut [&mut Sequence],
        budget: usize,
    ) -> Result<Vec<Part<'s>>, EngineError> {
        let (mut room, mut wanted) = (budget, self.limits.wanted);
        let mut parts = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let lacking = sequence.tokens.len() - sequence.computed;
            let count = lacking.min(room);
            let ends = count == lacking;
            if count == 0 || (ends && wanted == 0) {
                continue;
            }
            self.reserve(sequence, count, false)?;
            room -= count;
            wanted -= usize::from(ends);
            parts.push(Part { sequence, count, wanted: usize::from(ends) });
        }
        Ok(parts)
    }

    /// Runs a step: computes the next tokens of each sequence, whose pages must be reserved ([`Engine::reserve`]). The
    /// wanted rows are numbered across all parts: [`Engine::logits`], or [`Engine::hidden`] if `hidden` is set. The
    /// whole step must be within [`Engine::limits`].
    ///
    /// # Errors
    /// When a sequence is too long, or the device fails; the sequences are left as they were.
    pub fn run(&mut self, parts: &mut [Part<'_>], hidden: bool) -> Result<(), EngineError> {
        let computed = self.begin(parts, hidden).and_then(|()| Ok(self.baked.wait()?));
        let computed = computed.and_then(|()| if hidden { Ok(()) } else { self.follow(parts) });
        self.finish(parts, computed)
    }

    /// Records that the parts are computed, or that the step failed.
    fn finish<T>(&mut self, parts: &mut [Part<'_>], computed: Result<T, EngineError>) -> Result<T, EngineError> {
        for Part { sequence, count, .. } in parts {
            if computed.is_err() {
                self.states_lost(sequence);
                continue;
            }
            sequence.computed += *count;
            sequence.logits.clear();
            self.states_computed(sequence);
        }
        computed
    }

    /// Submits a step.
    fn begin(&mut self, parts: &[Part<'_>], hidden: bool) -> Result<(), EngineError> {
        self.settle()?;
        self.step.clear();
        self.step.pass = if hidden { Pass::Hidden } else { Pass::Logits };
        for Part { sequence, count, wanted } in parts {
            self.check(sequence)?;
            let (from, to) = (sequence.computed, sequence.computed + count);
            self.step.push(&sequence.tokens[from..to], from, &sequence.tables, *wanted);
            Engine::keep_states(&mut self.step, sequence);
        }
        Ok(self.baked.submit(&self.step)?)
    }

    /// The logits of a wanted row of the last step.
    pub fn logits(&self, row: usize) -> &[f32] {
        self.baked.logits(row)
    }

    /// Calls `work` for each item, on the device's threads.
    ///
    /// # Errors
    /// When `work` panicked.
    pub(crate) fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) -> Result<(), EngineError> {
        let items: Vec<Mutex<&mut T>> = items.iter_mut().map(Mutex::new).collect();
        let one = |i: usize| work(&mut items[i].lock().unwrap_or_else(PoisonError::into_inner));
        Ok(self.baked.divide(items.len(), &one)?)
    }

    /// The hidden state of a wanted row of the last step.
    pub fn hidden(&self, row: usize) -> &[f32] {
        self.baked.hidden(row)
    }
}
