//! Logits of a given sequence, for comparisons with other implementations.

use std::path::Path;
use std::sync::Arc;

use basert_engine::{Engine, EngineError};
use basert_files::ModelFile;
use basert_plan::{Device, LoadOptions};

use crate::loaded::plan_for;
use crate::{Error, Options};

/// A model that computes logits of sequences and nothing else: it needs neither a tokenizer nor a chat template.
pub struct Scorer {
    engine: Engine,
    vocabulary: usize,
    context: usize,
}

impl Scorer {
    /// Opens a GGUF file or a Hugging Face folder for sequences of up to `tokens` tokens. Of the options, the
    /// architecture files, the format of keys and values and the size of steps count.
    ///
    /// # Errors
    /// When the files are damaged, the architecture is unknown, or the device cannot hold the model.
    pub fn open(device: &dyn Device, path: &Path, options: &Options, tokens: usize) -> Result<Scorer, Error> {
        let file = Arc::new(ModelFile::open(path)?);
        let facts = device.facts();
        let step_tokens = options.step_tokens.unwrap_or(facts.step_tokens);
        let options = Options { max_context: Some(tokens), ..options.clone() };
        let plan = Arc::new(plan_for(&file, &options, step_tokens)?);
        let context = tokens.max(1);
        let pages = plan.pages_of(context, facts.page_tokens);
        let load = LoadOptions { pages: pages.clone(), slots: 1, kv: options.kv, progress: &mut |_, _, _| {} };
        let baked = device.load(plan.clone(), file.clone(), load).map_err(|source| {
            let file = file.path().display().to_string();
            Error::Device { file, source }
        })?;
        let vocabulary = plan.graph.vocabulary;
        let engine = Engine::new(baked, facts, plan.limits, &plan.reaches(&pages), context, vocabulary);
        let engine = engine.with_slots(1, plan.graph.slot_bytes());
        Ok(Scorer { engine, vocabulary, context })
    }

    /// The number of logits of a position.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The logits of what follows the tokens at `positions`, ascending: [`Scorer::vocabulary`] values each, one position
    /// after the other.
    ///
    /// # Errors
    /// When there are too many tokens, or a token that the model does not have, or the device fails.
    pub fn logits(&mut self, tokens: &[u32], positions: &[usize]) -> Result<Vec<f32>, EngineError> {
        let mut rows = Vec::with_capacity(positions.len() * self.vocabulary);
        let Some(&first) = positions.first() else { return Ok(rows) };
        self.engine.score(tokens, first, &mut |position, logits| {
            if positions.binary_search(&position).is_ok() {
                rows.extend_from_slice(logits);
            }
        })?;
        Ok(rows)
    }
}
