//! A smaller model of the same vocabulary, which guesses for a larger one.

use std::collections::BTreeMap;

use crate::{Engine, EngineError, Sampler, Sequence};

/// The smaller model, and how far it is with each answer.
pub struct Draft {
    engine: Engine,
    sequences: BTreeMap<u64, Sequence>,
}

/// An answer to guess for.
pub struct Ask {
    /// Its number: the same each time.
    pub number: u64,
    /// The salt of its sequence.
    pub salt: u64,
    /// Its text so far.
    pub tokens: Vec<u32>,
    /// What draws its next token.
    pub sampler: Sampler,
    /// How many guesses are wanted.
    pub most: usize,
}

impl Draft {
    /// One that computes on this engine.
    pub fn new(engine: Engine) -> Draft {
        Draft { engine, sequences: BTreeMap::new() }
    }

    /// Guesses for each of these, which are all there are, with their numbers. A long text is read in pieces, one each
    /// time, with no guesses till then; nor are there any where the model fails, or has no room.
    pub fn guess(&mut self, mut asks: Vec<Ask>) -> Vec<(u64, Vec<u32>)> {
        let guesses = self.try_guess(&mut asks).unwrap_or_else(|_| {
            self.keep(&[]);
            vec![Vec::new(); asks.len()]
        });
        asks.iter().map(|ask| ask.number).zip(guesses).collect()
    }

    /// Gives memory back that no answer needs, where there are none to guess for.
    pub(crate) fn give_back(&mut self) {
        self.keep(&[]);
        self.engine.give_back();
    }

    /// Gives up all answers but these.
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
