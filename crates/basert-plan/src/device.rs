//! What the engine sees of a device.

use std::ops::Range;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;

use crate::{Bounds, Limits, Plan};

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The name it is chosen by, such as `cpu`.
    pub name: String,
    /// What it is made of, for people.
    pub description: String,
    /// Tokens whose keys and values lie in one page of the cache.
    pub page_tokens: usize,
    /// What the bytes of a page mean, and what else their last bits depend on. Where it is the same, and the model and
    /// the format too, a page of one device is as good as what another one would compute.
    pub layout: String,
    /// Tokens of the largest step that is worth it.
    pub step_tokens: usize,
    /// How many steps can be under way at once, each with the tokens that were drawn in the one before. 0 where the
    /// device draws no tokens.
    pub chain: usize,
    /// What its maker or driver says that bounds every op, where they do.
    pub bounds: Option<Bounds>,
}

/// How a plan is to be loaded.
pub struct LoadOptions<'a> {
    /// Pages of the KV cache.
    pub pages: usize,
    /// How it stores keys and values. A device that lacks the format refuses.
    pub kv: KvFormat,
    /// Called with what is being made ready, how much of it is, and how much there is in all.
    pub progress: Progress<'a>,
}

/// Told how far a device is with a part of loading.
pub type Progress<'a> = &'a mut dyn FnMut(Stage, usize, usize);

/// A part of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Kernels are compiled, or found compiled; counted in kernels.
    Kernels,
    /// Weights are brought to where they are used; counted in bytes.
    Weights,
}

/// A machine that plans run on.
pub trait Device: Send {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Binds a plan to the device: makes its weights ready, and takes all memory that steps will need.
    ///
    /// # Errors
    /// When the device cannot carry out an op of the plan, lacks the memory, or the weights are damaged.
    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError>;
}

/// A plan bound to a device. Nothing is allocated, compiled or refused any more, but for what the device itself does.
pub trait Baked: Send {
    /// Begins a step. Those before have to be waited for.
    ///
    /// # Errors
    /// When the step exceeds the plan's limits, names tokens or pages that do not exist, or the device fails.
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError>;

    /// Begins the step after the last one, which drew a token for each of its rows: these, at the next positions. They
    /// have to have pages. At most [`Facts::chain`] steps are under way.
    ///
    /// # Errors
    /// When the device draws no tokens, or fails.
    fn chain(&mut self) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device draws no tokens".to_owned()))
    }

    /// Computes a step as [`Baked::submit`] does, but its parts one after the other, waits for it, and tells how long each
    /// part took. Its logits or tokens are not to be read.
    ///
    /// # Errors
    /// As [`Baked::submit`]; and when the device does not tell.
    fn profile(&mut self, _step: &StepState) -> Result<Vec<Span>, DeviceError> {
        Err(DeviceError::Step("this device does not tell how long its ops take".to_owned()))
    }

    /// Waits for the oldest step under way, after which its logits, or the tokens drawn from them, can be read.
    ///
    /// # Errors
    /// When the device failed.
    fn wait(&mut self) -> Result<(), DeviceError>;

    /// Logits of the `i`-th wanted token of the step waited for, one for each token of the vocabulary; of a step that
    /// draws no tokens.
    fn logits(&self, i: usize) -> &[f32];

    /// The hidden state of the `i`-th wanted token of the step waited for, where hidden states are wanted.
    fn hidden(&self, i: usize) -> &[f32];

    /// Does `work` for every number below `count` by the threads that the device computes with. No step may be under way.
    ///
    /// # Errors
    /// When `work` panicked on another thread.
    fn divide(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> Result<(), DeviceError> {
        (0..count).for_each(work);
        Ok(())
    }

    /// The tokens drawn in the step waited for.
    fn drawn(&self) -> &[u32] {
        &[]
    }

    /// Makes `allowed` the mask of this number: token t where bit t % 32 of word t / 32 is set. What was submitted does not
    /// see it.
    ///
    /// # Errors
    /// When it allows no token, the device draws none, or fails.
    fn set_mask(&mut self, _mask: u32, _allowed: &[u32]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device draws no tokens".to_owned()))
    }

    /// Draws a token from each row of logits of the step submitted last, which was to draw none: histories and masks may
    /// be set while it is under way. The tokens take the place of its logits.
    ///
    /// # Errors
    /// When there are not as many draws as rows, the device draws no tokens, or fails.
    fn draw(&mut self, _draws: &[Draw]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device draws no tokens".to_owned()))
    }

    /// Makes `counts` the history of this number: for each token of the vocabulary how often it is in the answer, and
    /// [`Draw::IN_PROMPT`] more for those of the prompt. Tokens that are drawn are added.
    ///
    /// # Errors
    /// When the device draws no tokens, or fails.
    fn set_history(&mut self, _history: u32, _counts: &[u16]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device draws no tokens".to_owned()))
    }

    /// Copies the keys and values of one page to another, in all layers.
    fn copy_page(&mut self, from: u32, to: u32);

    /// Bytes of a page, all layers together.
    fn page_bytes(&self) -> usize;

    /// Reads a page, as it lies in the cache, into [`Baked::page_bytes`] bytes.
    ///
    /// # Errors
    /// When the device fails.
    fn read_page(&mut self, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Makes these bytes a page, which were read from one of the same [`Facts::layout`].
    ///
    /// # Errors
    /// When the device fails.
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), DeviceError>;
}

/// A part of a step that was profiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The ops of the plan that it computes, or a part of which it is; none where it draws tokens.
    pub ops: Range<usize>,
    /// What ran: on a GPU the kernel's function.
    pub kernel: &'static str,
    /// Seconds from the beginning of the step.
    pub begin: f64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Everything that varies from step to step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepState {
    /// The tokens of all sequences, one after the other.
    pub tokens: Vec<u32>,
    /// The position of each in its sequence.
    pub positions: Vec<u32>,
    /// Which rows belong to which sequence.
    pub sequences: Vec<SequenceRows>,
    /// The pages of all sequences, one after the other.
    pub page_table: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<u32>,
    /// How a token is drawn for each of them; empty where logits are wanted instead.
    pub draws: Vec<Draw>,
    /// Whether hidden states are wanted instead of logits.
    pub hidden: bool,
}

/// How the device draws a token from logits: the engine's sampler, in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: u32,
    /// Only the most likely tokens that together have so many of 2^20 parts of the probability.
    pub top_p: u32,
    /// Only tokens whose logit is at most that much (a negative number) from the largest.
    pub log_min_p: f32,
    /// Divides positive logits of tokens in the history, and multiplies negative ones.
    pub repeat_penalty: f32,
    /// Subtracted from logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted once for every time that a token is in the answer.
    pub frequency_penalty: f32,
    /// Chooses the random numbers.
    pub seed: u64,
    /// How many tokens of the answer were drawn before.
    pub index: u32,
    /// The history that penalties look at.
    pub history: Option<u32>,
    /// The mask that the token is to be one of; all may come where there is none.
    pub mask: Option<u32>,
}

impl Draw {
    /// Parts that [`Draw::top_p`] counts.
    pub const PARTS: u32 = 1 << 20;
    /// Added to the count of a token that is in the prompt.
    pub const IN_PROMPT: u16 = 1 << 15;

    /// Refuses draws that are not one for each of `rows` rows of logits, or look at what there is no room for.
    ///
    /// # Errors
    /// [`DeviceError::Step`], with what is wrong.
    pub fn check(draws: &[Draw], rows: usize, limits: Limits) -> Result<(), DeviceError> {
        if draws.len() != rows {
            return Err(DeviceError::Step(format!("{} draws for {rows} rows of logits", draws.len())));
        }
        let beyond = |number: &u32| *number as usize >= limits.wanted;
        match draws.iter().flat_map(|draw| [draw.history, draw.mask]).flatten().find(beyond) {
            Some(number) => Err(DeviceError::Step(format!("history or mask {number}, of {}", limits.wanted))),
            None => Ok(()),
        }
    }
}

/// The first token that a mask allows (see [`Baked::set_mask`]) of a vocabulary of this size.
pub fn first_allowed(mask: &[u32], vocabulary: usize) -> Option<u32> {
    let (word, bits) = mask.iter().enumerate().find(|(_, bits)| **bits != 0)?;
    let token = 32 * word + bits.trailing_zeros() as usize;
    (token < vocabulary).then_some(token as u32)
}

/// The part of a step that belongs to one sequence: its next tokens, at consecutive positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRows {
    /// Its rows in [`StepState::tokens`].
    pub rows: Range<usize>,
    /// Its pages in [`StepState::page_table`]; the one at index i holds positions from i · page_tokens on.
    pub pages: Range<usize>,
}

impl StepState {
    /// Empties it for the next step.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.page_table.clear();
        self.wanted.clear();
        self.draws.clear();
        self.hidden = false;
    }

    /// Adds a sequence's next tokens, the first of them at `position`, with its pages. The logits of the last
    /// `wanted` of them are wanted.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: &[u32], wanted: usize) {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.wanted.extend(rows.clone().skip(tokens.len().saturating_sub(wanted)).map(|row| row as u32));
        let first = self.page_table.len();
        self.page_table.extend_from_slice(pages);
        self.sequences.push(SequenceRows { rows, pages: first..self.page_table.len() });
    }

    /// Refuses a step that would reach outside what `plan` and a cache of `pages` pages have room for.
    ///
    /// # Errors
    /// [`DeviceError::Step`], with what is wrong.
    pub fn check(&self, plan: &Plan, pages: usize, page_tokens: usize) -> Result<(), DeviceError> {
        let fail = |what: String| Err(DeviceError::Step(what));
        let (tokens, wanted, limits) = (self.tokens.len(), self.wanted.len(), plan.limits);
        if tokens == 0 || tokens > limits.tokens || wanted > limits.wanted {
            return fail(format!(
                "{tokens} tokens with {wanted} rows of logits, within {} and {}",
                limits.tokens, limits.wanted
            ));
        }
        if !self.draws.is_empty() {
            if self.hidden {
                return fail("tokens are not drawn from hidden states".to_owned());
            }
            Draw::check(&self.draws, wanted, limits)?;
        }
        if self.positions.len() != tokens || self.wanted.iter().any(|&row| row as usize >= tokens) {
            return fail("rows and tokens do not agree".to_owned());
        }
        if let Some(token) = self.tokens.iter().find(|&&token| token as usize >= plan.graph.vocabulary) {
            return fail(format!("token {token} is not one of the {} of the vocabulary", plan.graph.vocabulary));
        }
        let mut row = 0;
        for sequence in &self.sequences {
            let Some(table) = self.page_table.get(sequence.pages.clone()) else {
                return fail("a sequence's pages are not in the page table".to_owned());
            };
            if sequence.rows.start != row || sequence.rows.is_empty() || sequence.rows.end > tokens {
                return fail("the rows of sequences do not follow each other".to_owned());
            }
            row = sequence.rows.end;
            let positions = &self.positions[sequence.rows.clone()];
            if positions.windows(2).any(|pair| pair[1] != pair[0] + 1) {
                return fail("positions of a sequence do not follow each other".to_owned());
            }
            let last = positions[positions.len() - 1] as usize;
            if table.len() <= last / page_tokens || table.iter().any(|&page| page as usize >= pages) {
                return fail(format!("position {last} has no page"));
            }
        }
        if row == tokens { Ok(()) } else { fail("tokens without a sequence".to_owned()) }
    }
}

/// The largest KV cache of a format that a device has room for beside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The format of keys and values.
    pub kv: KvFormat,
    /// Pages of the cache.
    pub pages: usize,
}

/// Why a device could not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// It has no way to carry out an op.
    #[error("the {device} device cannot run this model: {what}")]
    Unsupported {
        /// The device.
        device: String,
        /// Which op, and what it would have to be like.
        what: String,
    },
    /// A weight is not what its format promises.
    #[error("tensor '{tensor}': {what}")]
    Weight {
        /// Its name in the file.
        tensor: String,
        /// What is wrong.
        what: String,
    },
    /// Not enough memory.
    #[error("the {device} device cannot get {bytes} bytes for {what}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// How much was asked for.
        bytes: usize,
        /// What for.
        what: String,
    },
    /// A model with its KV cache is more than the device has room for. Nothing was taken.
    #[error("the {device} device has {free} bytes left, and {needed} are needed: {} too many", needed - free)]
    TooLarge {
        /// The device.
        device: String,
        /// Bytes needed in all.
        needed: usize,
        /// Bytes that there are.
        free: usize,
        /// What would fit: the format asked for, and then smaller ones.
        fits: Vec<Fit>,
    },
    /// The step itself is wrong.
    #[error("step refused: {0}")]
    Step(String),
    /// The device failed.
    #[error("the device failed: {0}")]
    Failed(String),
}
