//! A draft model: a smaller model with the same vocabulary, which proposes draft tokens for a larger one.

use std::collections::BTreeMap;

use crate::{Engine, EngineError, Sampler, Sequence};

/// The draft model, with a sequence for each answer.
pub struct Draft {
    engine: Engine,
    sequences: BTreeMap<u64, Sequence>,
}

/// A request for draft tokens of an answer.
pub struct Ask {
    /// The number of the answer: the same each time.
    pub number: u64,
    /// The salt of the answer's sequence.
    pub salt: u64,
    /// The tokens of prompt and answer so far.
    pub tokens: Vec<u32>,
    /// The sampler of the next token.
    pub sampler: Sampler,
    /// Limit on the draft tokens.
    pub most: usize,
}

impl Draft {
    /// A draft model on this engine.
    pub fn new(engine: Engine) -> Draft {
        Draft { engine, sequences: BTreeMap::new() }
    }

    /// Proposes draft tokens for `asks`, which must be all answers that are running, and returns them with the answers'
    /// numbers. A long text is prefilled in pieces, one a call, without draft tokens until it is done. There are none
    /// either if the model fails or its KV cache is full.
    pub fn guess(&mut self, mut asks: Vec<Ask>) -> Vec<(u64, Vec<u32>)> {
        let guesses = self.try_guess(&mut asks).unwrap_or_else(|_| {
            self.keep(&[]);
            vec![Vec::new(); asks.len()]
        });
        asks.iter().map(|ask| ask.number).zip(guesses).collect()
    }

    /// Returns unused memory to the system; `is_idle` says that there are no answers.
    pub(crate) fn give_back(&mut self, is_idle: bool) {
        if is_idle {
            self.keep(&[]);
        }
        self.engine.give_back();
    }

    /// Closes the sequences of all answers but these.
    fn keep(&mut self, asks: &[Ask]) {
        let is_over = |number: &u64, _: &mut Sequence| asks.iter().all(|ask| ask.number != *number);
        for (_, mut sequence) in self.sequences.extract_if(.., is_over) {
            self.engine.close(&mut sequence);
        }
    }

    fn try_guess(&mut self, asks: &mut [Ask]) -> Result<Vec<Vec<u32>>, EngineError> {
        self.keep(asks);
        let mut drafts = Vec::with_capacity(asks.len());
        for ask in asks.iter() {
            let mut sequence = self.sequences.remove(&ask.number).unwrap_or_else(|| Sequence::of_salt(ask.salt));
            self.engine.sync(&mut sequence, &ask.tokens);
            drafts.push((sequence, Vec::new()));
        }
        let result = self.draw(asks, &mut drafts);
        let (sequences, guesses): (Vec<_>, Vec<_>) = drafts.into_iter().unzip();
        self.sequences.extend(asks.iter().map(|ask| ask.number).zip(sequences));
        result.map(|()| guesses)
    }

    fn draw(&mut self, asks: &mut [Ask], drafts: &mut [(Sequence, Vec<u32>)]) -> Result<(), EngineError> {
        let mut sequences: Vec<_> = drafts.iter_mut().map(|(sequence, _)| sequence).collect();
        self.engine.advance(&mut sequences, usize::MAX, &mut |_| false)?;
        loop {
            let mut going = Vec::with_capacity(asks.len());
            for (ask, (sequence, guesses)) in asks.iter_mut().zip(drafts.iter_mut()) {
                let has_room = sequence.tokens().len() < self.engine.context();
                if guesses.len() < ask.most && has_room && !sequence.logits().is_empty() {
                    let token = ask.sampler.next(sequence.logits());
                    guesses.push(token);
                    if guesses.len() < ask.most {
                        self.engine.push(sequence, token);
                        going.push(sequence);
                    }
                }
            }
            if going.is_empty() {
                return Ok(());
            }
            self.engine.advance(&mut going, usize::MAX, &mut |_| true)?;
        }
    }
}
