//! What happens to a sequence between steps: its tokens change, it is copied, it leaves its pages to others and finds some.

use super::states::States;
use super::{Engine, EngineError, Part, Sequence};
use crate::pages::NONE;
use crate::prefix::Found;

impl Engine {
    /// Sets the sequence's timeline to `tokens`. The KV cache of the common prefix is kept.
    pub fn sync(&mut self, sequence: &mut Sequence, tokens: &[u32]) {
        sequence.chain = 0;
        let common = sequence.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let unchanged = common == tokens.len() && common == sequence.tokens.len();
        sequence.tokens.truncate(common);
        sequence.carry.truncate(common, self.head.unwrap_or(0));
        sequence.tokens.extend_from_slice(&tokens[common..]);
        if unchanged && !sequence.logits.is_empty() {
            return;
        }
        // The last token is recomputed, if need be, for its logits.
        self.go_back(sequence, common.min(tokens.len().saturating_sub(1)));
        sequence.logits.clear();
        self.release_pages(sequence, sequence.computed.div_ceil(self.page_tokens));
        self.adopt(sequence);
    }

    /// Sets the timeline of an empty sequence to `tokens`, without a lookup in the prefix cache.
    ///
    /// # Errors
    /// When there are too many tokens, or some are not in the vocabulary.
    pub fn set(&self, sequence: &mut Sequence, tokens: Vec<u32>) -> Result<(), EngineError> {
        sequence.tokens = tokens;
        self.check(sequence)
    }

    /// Takes pages from the prefix cache if they hold more of the sequence's tokens than are computed, as far as all pages
    /// of the windows before are there; in models with running states only up to a checkpoint. Returns how many tokens that saves. The last token is never
    /// among them, because its logits are needed.
    pub fn adopt(&mut self, sequence: &mut Sequence) -> usize {
        let has_states = self.has_states();
        let Some(cache) = self.cache.as_mut().filter(|_| self.is_causal) else { return 0 };
        let lacking = sequence.tokens.len().saturating_sub(sequence.computed);
        if lacking <= 1 {
            return 0;
        }
        let before = &sequence.tokens[..sequence.tokens.len() - 1];
        let found = match has_states {
            true => cache.find_checkpoint(sequence.salt, before, &self.groups),
            false => cache.find(sequence.salt, before, &self.groups),
        };
        let saved = found.tokens.saturating_sub(sequence.computed);
        if saved == 0 {
            return 0;
        }
        cache.taken_up(&found, &self.groups);
        let Found { tables, tokens, slot, .. } = found;
        if let Some(slot) = slot {
            self.slots.pool.share(slot);
            sequence.states.slot.replace(slot).into_iter().for_each(|old| self.slots.pool.release(old));
        }
        for (table, group) in tables.iter().zip(&mut self.groups) {
            table.iter().for_each(|&page| group.share(page));
        }
        self.release_pages(sequence, 0);
        (sequence.tables, sequence.computed) = (tables, tokens);
        saved
    }

    /// Adds the sequence's full pages to the prefix cache, for others that begin with the same tokens. If pages with
    /// the same tokens are there already, the sequence uses those instead: its own copies could not be found, nor
    /// evicted as long as cached pages follow them.
    pub fn publish(&mut self, sequence: &mut Sequence) {
        let Some(cache) = self.cache.as_mut().filter(|_| self.is_causal) else { return };
        let full = sequence.computed / self.page_tokens;
        let tokens = &sequence.tokens[..full * self.page_tokens];
        let ends = sequence.computed == sequence.tokens.len();
        let nodes = cache.insert(sequence.salt, tokens, &sequence.tables, ends, &mut self.groups);
        // Those that the cache has can be evicted from it, and are not kept here as well.
        let whole = sequence.states.checkpoints.extract_if(.., |kept| kept.position <= tokens.len());
        for kept in whole {
            cache.keep(sequence.salt, &tokens[..kept.position], kept.slot, &mut self.slots.pool);
            self.slots.pool.release(kept.slot);
        }
        for (i, node) in nodes.into_iter().enumerate() {
            for ((table, &known), group) in sequence.tables.iter_mut().zip(cache.pages(node)).zip(&mut self.groups) {
                if table[i] != NONE && known != NONE {
                    group.share(known);
                    group.release(std::mem::replace(&mut table[i], known));
                }
            }
        }
    }

    /// Moves the sequence's pages to the prefix cache, from which the sequence can continue until they are evicted. Its
    /// tokens stay.
    pub fn release(&mut self, sequence: &mut Sequence) {
        if let Some(cache) = self.cache.as_mut().filter(|_| self.is_causal) {
            let tokens = &sequence.tokens[..sequence.computed];
            cache.insert(sequence.salt, tokens, &sequence.tables, true, &mut self.groups);
            for kept in Engine::known_states(sequence) {
                cache.keep(sequence.salt, &sequence.tokens[..kept.position], kept.slot, &mut self.slots.pool);
            }
        }
        self.release_states(sequence);
        self.release_pages(sequence, 0);
        sequence.logits.clear();
        (sequence.computed, sequence.chain) = (0, 0);
        self.bound_prefixes();
    }

    /// Adds a token to the timeline.
    pub fn push(&mut self, sequence: &mut Sequence, token: u32) {
        sequence.chain = 0;
        sequence.tokens.push(token);
        sequence.logits.clear();
    }

    /// Adds tokens to the timeline, all earlier tokens of which must be computed, and computes them: the logits after
    /// each are the rows from 0 on. Tokens beyond the limit of a step are not added.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn extend(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<(), EngineError> {
        sequence.chain = 0;
        sequence.tokens.extend_from_slice(tokens);
        let count = tokens.len();
        let result = self.reserve(sequence, count, true);
        result.and_then(|()| self.run(&mut [Part { sequence, count, wanted: count }], false))
    }

    /// Truncates the timeline to its first `length` tokens, which must be computed. If the tokens after them were not
    /// reserved as such that may be taken back, some of these are computed again: in models with running states from the
    /// last checkpoint, and where pages that a window needs were given back, from where the prefix cache has them.
    pub fn rewind(&mut self, sequence: &mut Sequence, length: usize) {
        sequence.chain = 0;
        sequence.tokens.truncate(length);
        sequence.carry.truncate(length, self.head.unwrap_or(0));
        self.go_back(sequence, length);
        sequence.logits.clear();
        if sequence.computed < length {
            self.adopt(sequence);
        }
    }

    /// Another sequence with the same timeline. Pages are shared until one of the two writes to them (copy on write).
    pub fn fork(&mut self, sequence: &Sequence) -> Sequence {
        let pages = sequence.computed.div_ceil(self.page_tokens);
        let tables: Vec<_> = sequence.tables.iter().map(|table| table[..pages].to_vec()).collect();
        for (table, group) in tables.iter().zip(&mut self.groups) {
            table.iter().for_each(|&page| group.share(page));
        }
        let slot = sequence.states.slot.inspect(|&slot| self.slots.pool.share(slot));
        Sequence {
            tokens: sequence.tokens.clone(),
            computed: sequence.computed,
            tables,
            logits: sequence.logits.clone(),
            salt: sequence.salt,
            chain: 0,
            carry: sequence.carry.clone(),
            states: States { slot, ..States::default() },
        }
    }

    /// Frees the sequence's pages, or moves them to the prefix cache.
    pub fn close(&mut self, sequence: &mut Sequence) {
        self.release(sequence);
        *sequence = Sequence::default();
    }
}
