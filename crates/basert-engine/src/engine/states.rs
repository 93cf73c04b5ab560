//! Running states of sequences: the slots that hold them, and how a sequence goes back.
//!
//! A slot holds the states after one token of a sequence, and has several users like a page of the KV cache. A step reads
//! the slot of a sequence and writes another one, or the same if the sequence is its only user. States after other tokens
//! are kept as checkpoints: a state cannot be cut like a list of keys, so a sequence goes back, or on from a common prefix,
//! only to where one is.

use super::{Engine, EngineError, Sequence};
use crate::pages::PagePool;

/// Tokens between checkpoints of a long prompt: about as many bytes as the keys and values of the same tokens in models
/// where one layer of four is attention.
const SPACING: usize = 1024;

/// The states after the first `position` tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub position: usize,
    pub slot: u32,
}

/// The running states of a sequence.
#[derive(Debug, Default)]
pub(super) struct States {
    /// Those after the tokens computed so far; none before the first one, and in models without running states.
    pub slot: Option<u32>,
    /// Earlier ones, by position.
    pub checkpoints: Vec<Checkpoint>,
    /// Those after tokens of the last step that may be taken back.
    pub trail: Vec<Checkpoint>,
    /// Those that the next step, for which slots are reserved, will keep; the last one is that after all its tokens.
    pub reserved: Vec<Checkpoint>,
    /// Whether `reserved` are of tokens that may be taken back.
    pub may_rewind: bool,
}

/// The slots of an engine.
#[derive(Debug)]
pub(super) struct Slots {
    pub pool: PagePool,
    /// Bytes of a slot; 0 for a model without running states.
    pub bytes: usize,
}

impl Engine {
    /// Whether the model has running states.
    pub(super) fn has_states(&self) -> bool {
        self.slots.bytes > 0
    }

    /// The slots that are free or hold checkpoints of the prefix cache alone; as many as wished in models without running
    /// states.
    pub fn available_slots(&self) -> usize {
        if !self.has_states() {
            return usize::MAX;
        }
        self.slots.pool.available() + self.cache.as_ref().map_or(0, |cache| cache.evictable_slots(&self.slots.pool))
    }

    /// Reserves slots for the next `count` tokens of a sequence: for the states after all of them, and for those that are
    /// worth keeping, or all if they may be taken back.
    pub(super) fn reserve_slots(
        &mut self,
        sequence: &mut Sequence,
        count: usize,
        may_rewind: bool,
    ) -> Result<(), EngineError> {
        if !self.has_states() {
            return Ok(());
        }
        self.unreserve(sequence);
        let (from, to) = (sequence.computed, sequence.computed + count);
        let mut reserved = Vec::new();
        for position in from + 1..to {
            if may_rewind || self.is_checkpoint(position, sequence.tokens.len()) {
                match self.take_slot() {
                    Some(slot) => reserved.push(Checkpoint { position, slot }),
                    None if may_rewind => break,
                    None => {}
                }
            }
        }
        let last = self.take_or_reuse(sequence).or_else(|| {
            // Its own checkpoints are worth less than going on.
            for kept in std::mem::take(&mut sequence.states.checkpoints) {
                self.slots.pool.release(kept.slot);
            }
            self.take_or_reuse(sequence)
        });
        let is_short = may_rewind && reserved.len() + 1 < count;
        (sequence.states.reserved, sequence.states.may_rewind) = (reserved, may_rewind);
        match last {
            Some(slot) if !is_short => {
                sequence.states.reserved.push(Checkpoint { position: to, slot });
                Ok(())
            }
            last => {
                last.into_iter().for_each(|slot| self.slots.pool.release(slot));
                self.unreserve(sequence);
                Err(EngineError::OutOfSlots { slots: self.slots.pool.total() })
            }
        }
    }

    /// Whether the states after `position` tokens of a prompt of `length` are kept: at the last token but one, as the last
    /// one is always computed for its logits; a little before, as another prompt may end otherwise; and at times
    /// between.
    fn is_checkpoint(&self, position: usize, length: usize) -> bool {
        let last = length.saturating_sub(1);
        // Far enough before the end for what a chat template writes there, which the next turn may not repeat.
        let least = self.page_tokens / 4;
        let before = last.saturating_sub(least) / least.max(1) * least;
        position == last || position == before || position.is_multiple_of(SPACING)
    }

    /// Takes a free slot, for which a checkpoint of the prefix cache may be evicted.
    fn take_slot(&mut self) -> Option<u32> {
        if self.slots.pool.available() == 0
            && let Some(cache) = &mut self.cache
        {
            cache.evict_slot(&mut self.slots.pool);
        }
        self.slots.pool.take()
    }

    /// The slot of a sequence, if nobody else uses it, or a free one.
    fn take_or_reuse(&mut self, sequence: &Sequence) -> Option<u32> {
        match sequence.states.slot.filter(|&slot| !self.slots.pool.is_shared(slot)) {
            Some(own) => {
                self.slots.pool.share(own);
                Some(own)
            }
            None => self.take_slot(),
        }
    }

    fn unreserve(&mut self, sequence: &mut Sequence) {
        for Checkpoint { slot, .. } in sequence.states.reserved.drain(..) {
            self.slots.pool.release(slot);
        }
    }

    /// Says in a step, to which the sequence was added last, where its states are and which are kept.
    pub(super) fn keep_states(step: &mut basert_plan::StepState, sequence: &Sequence) {
        let States { slot, reserved, .. } = &sequence.states;
        let kept = reserved.iter().map(|kept| (kept.position - sequence.computed - 1, kept.slot));
        step.keep(*slot, kept);
    }

    /// Records that the step for which slots are reserved is computed.
    pub(super) fn states_computed(&mut self, sequence: &mut Sequence) {
        let is_checkpoint = self.is_checkpoint(sequence.computed, sequence.tokens.len());
        let states = &mut sequence.states;
        let Some(last) = states.reserved.pop() else { return };
        let Checkpoint { slot, .. } = last;
        let before = states.slot.replace(slot);
        let gone = std::mem::take(&mut states.trail);
        let kept = if states.may_rewind { &mut states.trail } else { &mut states.checkpoints };
        kept.append(&mut states.reserved);
        if is_checkpoint && !states.may_rewind {
            self.slots.pool.share(slot);
            states.checkpoints.push(last);
        }
        let gone = gone.into_iter().map(|kept| kept.slot).chain(before);
        gone.for_each(|slot| self.slots.pool.release(slot));
    }

    /// Goes back to at most `length` computed tokens: to the last ones after which the states are known, and the pages that
    /// the next tokens see are there.
    pub(super) fn go_back(&mut self, sequence: &mut Sequence, length: usize) {
        if !self.has_states() {
            sequence.computed = self.reusable(sequence, sequence.computed.min(length));
            return;
        }
        self.unreserve(sequence);
        if sequence.computed <= length {
            return;
        }
        let known = sequence.states.trail.iter().chain(&sequence.states.checkpoints);
        let goes_on =
            |kept: &&Checkpoint| kept.position <= length && self.reusable(sequence, kept.position) == kept.position;
        let best = known.filter(goes_on).max_by_key(|kept| kept.position).copied();
        let states = &mut sequence.states;
        let trail = std::mem::take(&mut states.trail);
        best.iter().for_each(|kept| self.slots.pool.share(kept.slot));
        let gone = states.checkpoints.extract_if(.., |kept| kept.position > length).chain(trail);
        let gone = gone.map(|kept| kept.slot).chain(states.slot.take());
        gone.for_each(|slot| self.slots.pool.release(slot));
        states.slot = best.map(|kept| kept.slot);
        sequence.computed = best.map_or(0, |kept| kept.position);
    }

    /// A step failed that may have written over the states: the sequence goes back to earlier ones.
    pub(super) fn states_lost(&mut self, sequence: &mut Sequence) {
        self.unreserve(sequence);
        if self.has_states() {
            self.go_back(sequence, sequence.computed.saturating_sub(1));
        }
    }

    /// The checkpoints of a sequence, and the states it is at.
    pub(super) fn known_states(sequence: &Sequence) -> Vec<Checkpoint> {
        let States { slot, checkpoints, .. } = &sequence.states;
        let last = slot.map(|slot| Checkpoint { position: sequence.computed, slot });
        checkpoints.iter().copied().chain(last).filter(|kept| kept.position > 0).collect()
    }

    /// Frees all slots of a sequence.
    pub(super) fn release_states(&mut self, sequence: &mut Sequence) {
        let States { slot, checkpoints, trail, reserved, .. } = std::mem::take(&mut sequence.states);
        let kept = checkpoints.into_iter().chain(trail).chain(reserved).map(|kept| kept.slot);
        slot.into_iter().chain(kept).for_each(|slot| self.slots.pool.release(slot));
    }
}
