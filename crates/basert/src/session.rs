//! A timeline of tokens.

use basert_engine::Sequence;
use basert_text::Preface;

use crate::chat::{ChatPrompt, Parts};
use crate::generate::{Generation, Pieces};
use crate::{Error, Model};

/// A timeline of tokens on a model. Its KV cache is kept: [`Session::sync`] computes only what differs.
pub struct Session<'m> {
    model: &'m Model,
    sequence: Sequence,
}

impl<'m> Session<'m> {
    pub(crate) fn new(model: &'m Model) -> Session<'m> {
        Session { model, sequence: Sequence::default() }
    }

    pub(crate) fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    pub(crate) fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Sets the timeline to `tokens` and computes those that are not computed yet.
    ///
    /// # Errors
    /// When they do not fit the context, or the device fails; the session stays usable.
    pub fn sync(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.sync_in_chunks(tokens, usize::MAX, &mut |_| true)
    }

    /// Like [`Session::sync`], with at most `chunk` tokens at once. `progress` is called after each chunk with the
    /// tokens computed so far, and returns whether to go on.
    ///
    /// # Errors
    /// As for [`Session::sync`].
    pub fn sync_in_chunks(
        &mut self,
        tokens: &[u32],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Error> {
        let mut engine = self.model.engine();
        engine.sync(&mut self.sequence, tokens);
        Ok(engine.advance(&mut [&mut self.sequence], chunk, progress)?)
    }

    /// Sets the timeline without computing it; [`Model::advance`] does that for several sessions together.
    pub fn set(&mut self, tokens: &[u32]) {
        self.model.engine().sync(&mut self.sequence, tokens);
    }

    /// Adds one token and computes it.
    ///
    /// # Errors
    /// As for [`Session::sync`].
    pub fn step(&mut self, token: u32) -> Result<(), Error> {
        let mut engine = self.model.engine();
        engine.push(&mut self.sequence, token);
        Ok(engine.advance(&mut [&mut self.sequence], usize::MAX, &mut |_| true)?)
    }

    /// Another session with the same timeline, which shares the KV cache.
    pub fn fork(&self) -> Session<'m> {
        Session { model: self.model, sequence: self.model.engine().fork(&self.sequence) }
    }

    /// The timeline.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Logits of the token after the last one; empty while the last token is not computed.
    pub fn logits(&self) -> &[f32] {
        self.sequence.logits()
    }

    /// Sets the timeline to `prompt` and continues it, piece by piece.
    ///
    /// # Errors
    /// When the prompt is empty or too long, a setting is out of range, or the device fails.
    pub fn generate(&mut self, prompt: &[u32], options: &Generation) -> Result<Pieces<'_, 'm>, Error> {
        Pieces::new(self, prompt, options, &Preface::None, Vec::new())
    }

    /// Answers a chat, part by part: reasoning and content.
    ///
    /// # Errors
    /// As for [`Session::generate`].
    pub fn answer(&mut self, prompt: &ChatPrompt, options: &Generation) -> Result<Parts<'_, 'm>, Error> {
        Parts::new(self, prompt, options)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.model.engine().close(&mut self.sequence);
    }
}
