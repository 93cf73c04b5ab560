//! The interface between the engine and a device.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_graph::WeightError;

use crate::{Bounds, Limits, PageGroup, Plan};

/// The properties of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The name that selects it, such as `cpu`.
    pub name: String,
    /// A description for people.
    pub description: String,
    /// Tokens in one page of the KV cache.
    pub page_tokens: usize,
    /// Identifies the layout of a page's bytes, and everything that their last bits depend on. If it is the same, and
    /// the model and the format too, a page can be moved from one device to another.
    pub layout: String,
    /// Tokens of the largest step that still gains speed.
    pub step_tokens: usize,
    /// How many steps can be in flight at once, each continuing with the tokens sampled in the one before. 0 if the
    /// device does not sample.
    pub chain: usize,
    /// Peak bandwidth and FLOP/s as its maker or driver states them, if known.
    pub bounds: Option<Bounds>,
    /// Bytes of memory of its own that were free when it was opened, where it has such memory and says so.
    pub free_memory: Option<usize>,
}

/// How to load a plan.
pub struct LoadOptions<'a> {
    /// Pages of the KV cache, of each of [`Plan::page_groups`].
    pub pages: Vec<usize>,
    /// Slots, each for the running states of a sequence after one of its tokens (see [`basert_graph::State`]).
    pub slots: usize,
    /// How keys and values are stored. A device that lacks the format refuses.
    pub kv: KvFormat,
    /// Called with the current stage, the amount done, and the total.
    pub progress: Progress<'a>,
}

/// A progress callback: the stage of loading, the amount done, and the total.
pub type Progress<'a> = &'a mut dyn FnMut(Stage, usize, usize);

/// A stage of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Kernels are compiled, or found in the cache; counted in kernels.
    Kernels,
    /// Weights are read, repacked and uploaded; counted in bytes.
    Weights,
}

/// A device that executes plans.
pub trait Device: Send {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Binds a plan to the device: loads its weights, and allocates all memory that steps will need.
    ///
    /// # Errors
    /// When the device does not support an op of the plan, lacks the memory, or the weights are damaged.
    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError>;
}

/// A plan bound to a device. Nothing is allocated, compiled or refused any more, except inside the device's driver.
pub trait Baked: Send {
    /// Begins a step. Earlier steps must have been waited for.
    ///
    /// # Errors
    /// When the step exceeds the plan's limits, names tokens or pages that do not exist, or the device fails.
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError>;

    /// Begins the step that follows the last one, which sampled a token for each of its rows: with these tokens, at the
    /// next positions, which must have pages. At most [`Facts::chain`] steps are in flight.
    ///
    /// # Errors
    /// When the device does not sample, or fails.
    fn chain(&mut self) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device does not sample".to_owned()))
    }

    /// Computes a step as [`Baked::submit`] does, but its parts one at a time, waits for it, and returns the time of
    /// each part. Its logits and tokens must not be read.
    ///
    /// # Errors
    /// As for [`Baked::submit`]; and when the device cannot time its ops.
    fn profile(&mut self, _step: &StepState) -> Result<Vec<Span>, DeviceError> {
        Err(DeviceError::Step("this device cannot time its ops".to_owned()))
    }

    /// Waits for the oldest step in flight, after which its logits, or the tokens sampled from them, can be read.
    ///
    /// # Errors
    /// When the device failed.
    fn wait(&mut self) -> Result<(), DeviceError>;

    /// Logits of the `i`-th wanted token of the step waited for, one for each token of the vocabulary; for a step that
    /// does not sample.
    fn logits(&self, i: usize) -> &[f32];

    /// The hidden state of the `i`-th wanted token of the step waited for; for a step of [`Pass::Hidden`].
    fn hidden(&self, i: usize) -> &[f32];

    /// What the head reads of a token to predict further ones, if the plan has one: of the `i`-th token of a step of
    /// [`Pass::Logits`], and of the `i`-th wanted token of a step of [`Pass::Head`].
    fn for_head(&self, _i: usize) -> &[f32] {
        &[]
    }

    /// Runs `work` for every number below `count` on the device's thread pool. No step may be in flight.
    ///
    /// # Errors
    /// When `work` panicked on another thread.
    fn divide(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> Result<(), DeviceError> {
        (0..count).for_each(work);
        Ok(())
    }

    /// The tokens sampled in the step waited for, plus [`Draw::NOT_A_NUMBER`] where the logit is NaN: none was possible.
    fn drawn(&self) -> &[u32] {
        &[]
    }

    /// Sets the mask with this number to `allowed`: token t is allowed if bit t % 32 of word t / 32 is set. Steps
    /// already submitted do not see it.
    ///
    /// # Errors
    /// When it allows no token, or the device does not sample or fails.
    fn set_mask(&mut self, _mask: u32, _allowed: &[u32]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device does not sample".to_owned()))
    }

    /// Samples a token from each row of logits of the last submitted step, which must not sample itself: histories and
    /// masks may be set while it is in flight. The tokens replace its logits.
    ///
    /// # Errors
    /// When there are not as many draws as rows, or the device does not sample or fails.
    fn draw(&mut self, _draws: &[Draw]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device does not sample".to_owned()))
    }

    /// Sets the history with this number to `counts`: for each token of the vocabulary how often it occurs in the
    /// output, plus [`Draw::IN_PROMPT`] if it is in the prompt. Sampled tokens are added.
    ///
    /// # Errors
    /// When the device does not sample, or fails.
    fn set_history(&mut self, _history: u32, _counts: &[u16]) -> Result<(), DeviceError> {
        Err(DeviceError::Step("this device does not sample".to_owned()))
    }

    /// Copies the keys and values of one page of a group to another, in all of the group's layers.
    fn copy_page(&mut self, group: usize, from: u32, to: u32);

    /// Bytes of a page of a group.
    fn page_bytes(&self, group: usize) -> usize;

    /// Copies a page of a group, as it lies in the KV cache, into [`Baked::page_bytes`] bytes.
    ///
    /// # Errors
    /// When the device fails.
    fn read_page(&mut self, group: usize, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Overwrites a page of a group with these bytes, which were read from one with the same [`Facts::layout`].
    ///
    /// # Errors
    /// When the device fails.
    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies a slot into [`Graph::slot_bytes`](basert_graph::Graph::slot_bytes) bytes.
    ///
    /// # Errors
    /// When the device fails.
    fn read_slot(&mut self, slot: u32, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Overwrites a slot with these bytes, which were read from one with the same [`Facts::layout`].
    ///
    /// # Errors
    /// When the device fails.
    fn write_slot(&mut self, slot: u32, bytes: &[u8]) -> Result<(), DeviceError>;

    /// What is in a page of a group is not needed any more: its memory may be given back to the system until it is used
    /// again.
    fn discard_page(&mut self, _group: usize, _page: u32) {}
}

/// A part of a profiled step.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The ops of the plan that it computes, entirely or in part; empty for sampling.
    pub ops: Range<usize>,
    /// What ran: on a GPU the kernel's function.
    pub kernel: String,
    /// Seconds from the beginning of the step.
    pub begin: f64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Everything that varies from step to step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepState {
    /// The tokens of all sequences, concatenated.
    pub tokens: Vec<u32>,
    /// The position of each in its sequence.
    pub positions: Vec<u32>,
    /// Which rows belong to which sequence.
    pub sequences: Vec<SequenceRows>,
    /// For each of [`Plan::page_groups`] the pages of all sequences, concatenated. All tables are equally long; a page
    /// before everything that the step sees may be [`StepState::NONE`]. A single table serves all groups.
    pub page_tables: Vec<Vec<u32>>,
    /// For each token the slot in which the running states after it are stored, or [`StepState::NONE`].
    pub kept: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<u32>,
    /// How to sample a token for each of them; empty if logits are wanted instead.
    pub draws: Vec<Draw>,
    /// What is computed.
    pub pass: Pass,
    /// For a step of the head, what it reads of the token before each: see [`Baked::for_head`]; the rows concatenated.
    pub given: Vec<f32>,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pass {
    /// The model's logits, or tokens sampled from them.
    #[default]
    Logits,
    /// The hidden states of the wanted tokens instead.
    Hidden,
    /// The head's logits: see [`basert_graph::Head`]. If none are wanted, it leaves what can be read of the step before.
    Head,
}

/// How the device samples a token from logits: the settings of the engine's sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: u32,
    /// Only the most likely tokens whose probabilities sum to this many parts of 2^20.
    pub top_p: u32,
    /// Only tokens whose logit is at least the largest plus this negative number.
    pub log_min_p: f32,
    /// Divides positive logits of tokens in the history, and multiplies negative ones.
    pub repeat_penalty: f32,
    /// Subtracted from logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted once for every occurrence of a token in the output.
    pub frequency_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How many tokens of the output were sampled before.
    pub index: u32,
    /// The number of the history that penalties use.
    pub history: Option<u32>,
    /// The number of the mask; `None` allows all tokens.
    pub mask: Option<u32>,
}

impl Draw {
    /// The unit of [`Draw::top_p`] is 1 / `PARTS`.
    pub const PARTS: u32 = 1 << 20;
    /// Added to a sampled token whose logit is NaN.
    pub const NOT_A_NUMBER: u32 = 1 << 31;
    /// Added to the count of a token that is in the prompt.
    pub const IN_PROMPT: u16 = 1 << 15;

    /// Refuses draws that are not one for each of `rows` rows of logits, or that name a history or mask beyond the
    /// limits.
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
    /// Its pages in each of [`StepState::page_tables`]; the one at index i holds positions from i · page_tokens on.
    pub pages: Range<usize>,
    /// The slot with the running states before its first token, or [`StepState::NONE`] at position 0.
    pub slot: u32,
}

impl StepState {
    /// No slot, no page.
    pub const NONE: u32 = u32::MAX;

    /// Empties it for the next step.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.page_tables.iter_mut().for_each(Vec::clear);
        self.kept.clear();
        self.wanted.clear();
        self.draws.clear();
        self.pass = Pass::Logits;
        self.given.clear();
    }

    /// Adds a sequence's next tokens, the first of them at `position`, with its page tables: one for each group, or one
    /// that serves all. The logits of the last `wanted` of them are wanted.
    pub fn push(&mut self, tokens: &[u32], position: usize, tables: &[impl AsRef<[u32]>], wanted: usize) {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.wanted.extend(rows.clone().skip(tokens.len().saturating_sub(wanted)).map(|row| row as u32));
        self.kept.resize(rows.end, StepState::NONE);
        let first = self.page_tables.first().map_or(0, Vec::len);
        self.page_tables.resize(tables.len(), Vec::new());
        for (all, own) in self.page_tables.iter_mut().zip(tables) {
            all.extend_from_slice(own.as_ref());
        }
        let pages = first..self.page_tables.first().map_or(0, Vec::len);
        self.sequences.push(SequenceRows { rows, pages, slot: StepState::NONE });
    }

    /// The page table of a group.
    pub fn page_table(&self, group: usize) -> &[u32] {
        let single = if self.page_tables.len() == 1 { 0 } else { group };
        self.page_tables.get(single).map_or(&[], Vec::as_slice)
    }

    /// Says where the running states of the sequence that was added last are: before its first token in the slot `from`,
    /// if any, and after its `i`-th one in `slot`, for each `(i, slot)` of `kept`. A slot is written by one token only,
    /// and read by no other sequence of the step.
    pub fn keep(&mut self, from: Option<u32>, kept: impl IntoIterator<Item = (usize, u32)>) {
        let Some(sequence) = self.sequences.last_mut() else { return };
        sequence.slot = from.unwrap_or(StepState::NONE);
        for (i, slot) in kept {
            self.kept[sequence.rows.start + i] = slot;
        }
    }

    /// Refuses a step that exceeds `plan`, a KV cache of so many pages of each group, or `slots` slots.
    ///
    /// # Errors
    /// [`DeviceError::Step`], with what is wrong.
    pub fn check(&self, plan: &Plan, (pages, slots): (&[usize], usize), page_tokens: usize) -> Result<(), DeviceError> {
        let fail = |what: String| Err(DeviceError::Step(what));
        let (tokens, wanted, limits) = (self.tokens.len(), self.wanted.len(), plan.limits);
        if tokens == 0 || tokens > limits.tokens || wanted > limits.wanted {
            return fail(format!(
                "{tokens} tokens with {wanted} rows of logits, within {} and {}",
                limits.tokens, limits.wanted
            ));
        }
        if !self.draws.is_empty() {
            if self.pass != Pass::Logits {
                return fail("tokens can be sampled from the model's logits only".to_owned());
            }
            Draw::check(&self.draws, wanted, limits)?;
        }
        if [self.positions.len(), self.kept.len()] != [tokens; 2]
            || self.wanted.iter().any(|&row| row as usize >= tokens)
        {
            return fail("rows and tokens do not agree".to_owned());
        }
        if let Some(token) = self.tokens.iter().find(|&&token| token as usize >= plan.graph.tokens()) {
            return fail(format!("token {token} is not one of the {} of the vocabulary", plan.graph.vocabulary));
        }
        match (self.pass, plan.head) {
            (Pass::Head, None) => return fail("the plan has no head".to_owned()),
            (Pass::Head, Some(head)) if self.given.len() != tokens * plan.values[head.given.0].width => {
                return fail(format!("{} given values for {tokens} tokens", self.given.len()));
            }
            // It has no running states.
            (Pass::Head, Some(_)) => {}
            (Pass::Logits | Pass::Hidden, _) => self.check_slots(plan, slots)?,
        }
        let mut row = 0;
        for sequence in &self.sequences {
            if sequence.rows.start != row || sequence.rows.is_empty() || sequence.rows.end > tokens {
                return fail("the rows of sequences are not consecutive".to_owned());
            }
            row = sequence.rows.end;
            let positions = &self.positions[sequence.rows.clone()];
            if positions.windows(2).any(|pair| pair[1] != pair[0] + 1) {
                return fail("positions of a sequence are not consecutive".to_owned());
            }
            let [first, last] = [positions[0], positions[positions.len() - 1]].map(|position| position as usize);
            for (number, (group, &pages)) in plan.page_groups.iter().zip(pages).enumerate() {
                let table = self.page_table(number).get(sequence.pages.clone()).unwrap_or_default();
                let from = PageGroup::needed(group.reach, first, page_tokens).start;
                let exists = |&page: &u32| (page as usize) < pages;
                // Those of steps that may follow on the device are optional.
                let later = table.iter().skip(last / page_tokens + 1).filter(|page| **page != StepState::NONE);
                let seen = table.get(from..=last / page_tokens);
                if seen.is_none_or(|seen| !seen.iter().all(exists)) || !later.copied().all(|page| exists(&page)) {
                    return fail(format!("position {last}, or one that it sees, has no page"));
                }
            }
        }
        if row == tokens { Ok(()) } else { fail("tokens without a sequence".to_owned()) }
    }

    /// Refuses slots that do not exist, that two tokens write, or that one sequence writes and another reads.
    fn check_slots(&self, plan: &Plan, slots: usize) -> Result<(), DeviceError> {
        if plan.graph.slot_bytes() == 0 {
            return Ok(());
        }
        let fail = |what: &str| Err(DeviceError::Step(what.to_owned()));
        let mut users = BTreeMap::new();
        for (number, sequence) in self.sequences.iter().enumerate() {
            if sequence.slot == StepState::NONE && self.positions.get(sequence.rows.start) != Some(&0) {
                return fail("a sequence goes on without its running states");
            }
            let kept = self.kept.get(sequence.rows.clone()).unwrap_or_default();
            for &slot in kept.iter().filter(|&&slot| slot != StepState::NONE) {
                if slot as usize >= slots || users.insert(slot, number).is_some() {
                    return fail("a slot does not exist, or two tokens write it");
                }
            }
        }
        let read = self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.slot != StepState::NONE);
        for (number, sequence) in read {
            let other = users.get(&sequence.slot).is_some_and(|&user| user != number);
            if other || sequence.slot as usize >= slots {
                return fail("a slot does not exist, or a sequence reads what another writes");
            }
        }
        Ok(())
    }
}

/// The largest KV cache of a format that fits a device beside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The format of keys and values.
    pub kv: KvFormat,
    /// Pages of the cache, of each group at most.
    pub pages: usize,
}

/// Why a device could not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// It does not support an op.
    #[error("the {device} device cannot run this model: {what}")]
    Unsupported {
        /// The device.
        device: String,
        /// Which op, and what would be supported.
        what: String,
    },
    /// A weight is invalid in its format.
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
        /// The size of the allocation in bytes.
        bytes: usize,
        /// Its purpose.
        what: String,
    },
    /// A model with its KV cache exceeds the device's memory. Nothing was allocated.
    #[error("the {device} device has {free} bytes left, and {needed} are needed: {} too many", needed - free)]
    TooLarge {
        /// The device.
        device: String,
        /// Bytes needed in all.
        needed: usize,
        /// Bytes that there are.
        free: usize,
        /// What would fit: with the requested format, and then with smaller ones.
        fits: Vec<Fit>,
    },
    /// The step itself is wrong.
    #[error("step refused: {0}")]
    Step(String),
    /// The device failed.
    #[error("the device failed: {0}")]
    Failed(String),
}

impl From<WeightError> for DeviceError {
    fn from(WeightError { tensor, what }: WeightError) -> DeviceError {
        DeviceError::Weight { tensor, what }
    }
}
