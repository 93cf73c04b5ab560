//! A device that is easily understood: its cache holds the tokens themselves, and logits are a hash of all tokens that the
//! page table leads to. So a page that is not the sequence's own, or was written over, changes the text. Where it has a
//! second group of pages, with a window, these have to hold the same tokens as far as the window goes.

use std::cell::Cell;
use std::collections::BTreeMap;

use basert_engine::{Engine, Sampler, Sampling};
use basert_plan::{Baked, DeviceError, Draw, Facts, Limits, Reach, StepState};

const PAGE: usize = 4;
pub const VOCABULARY: usize = 50;
/// A token that the device cannot compute.
pub const FAULT: u32 = 49;

thread_local! {
    /// Steps of this test whose tokens were drawn after them.
    pub static DRAWN_AFTER: Cell<usize> = const { Cell::new(0) };
    /// Steps of this test.
    pub static STEPS: Cell<usize> = const { Cell::new(0) };
}

/// Tokens that the second group sees.
pub const WINDOW: usize = 7;

struct Hash {
    /// The pages of each group.
    cache: Vec<Vec<[u32; PAGE]>>,
    /// The running states: hashes of all tokens before. None for a model without.
    slots: Vec<u64>,
    /// As after a step: rows of logits, or tokens drawn, of each step under way.
    logits: Vec<Vec<f32>>,
    under_way: Vec<Vec<u32>>,
    drawn: Vec<u32>,
    masks: BTreeMap<u32, Vec<u32>>,
    last: StepState,
}

/// The state before the first token.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn state_after(state: u64, token: u32) -> u64 {
    (state ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
}

pub fn logits_after(tokens: impl IntoIterator<Item = u32>) -> Vec<f32> {
    logits_of(tokens.into_iter().fold(START, state_after))
}

fn logits_of(state: u64) -> Vec<f32> {
    let value = |i: u64| {
        let mixed = (state ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 40) as f32 / 4e6
    };
    // The token that faults never comes by itself.
    (0..VOCABULARY as u64).map(|i| if i == u64::from(FAULT) { f32::NEG_INFINITY } else { value(i) }).collect()
}

impl Hash {
    fn run(&mut self, step: &StepState) -> Vec<Vec<f32>> {
        STEPS.set(STEPS.get() + 1);
        let mut logits = Vec::new();
        for sequence in &step.sequences {
            let tables: Vec<&[u32]> =
                (0..self.cache.len()).map(|group| &step.page_table(group)[sequence.pages.clone()]).collect();
            let mut state = match sequence.slot {
                StepState::NONE => START,
                slot => self.slots[slot as usize],
            };
            for row in sequence.rows.clone() {
                let position = step.positions[row] as usize;
                for (cache, table) in self.cache.iter_mut().zip(&tables) {
                    cache[table[position / PAGE] as usize][position % PAGE] = step.tokens[row];
                }
                state = state_after(state, step.tokens[row]);
                if step.kept[row] != StepState::NONE {
                    self.slots[step.kept[row] as usize] = state;
                }
                if step.wanted.contains(&(row as u32)) {
                    let token = |group: usize, p: usize| self.cache[group][tables[group][p / PAGE] as usize][p % PAGE];
                    // What the pages say and what the states say are the same; if not, both are of no use.
                    let hashed = (0..=position).map(|p| token(0, p)).fold(START, state_after);
                    let mut seen = (1..tables.len())
                        .flat_map(|group| (position.saturating_sub(WINDOW - 1)..=position).map(move |p| (group, p)));
                    let is_right = (self.slots.is_empty() || state == hashed)
                        && seen.all(|(group, p)| token(group, p) == token(0, p));
                    logits.push(logits_of(if is_right { hashed } else { !hashed }));
                }
            }
        }
        logits
    }

    fn run_and_draw(&mut self, step: &StepState) -> Vec<u32> {
        let logits = self.run(step);
        logits.iter().map(|logits| greedy().next(logits)).collect()
    }
}

pub fn greedy() -> Sampler {
    Sampler::new(Sampling::default(), &[]).unwrap()
}

impl Baked for Hash {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        if step.tokens.contains(&FAULT) {
            return Err(DeviceError::Failed("as it was told to".to_owned()));
        }
        self.last = step.clone();
        if step.hidden {
            // Something finite, of the same tokens.
            self.logits = self.run(step);
            self.logits.iter_mut().for_each(|row| row.truncate(FAULT as usize));
        } else if step.draws.is_empty() {
            self.logits = self.run(step);
        } else {
            let drawn = self.run_and_draw(step);
            self.under_way.push(drawn);
        }
        Ok(())
    }

    fn chain(&mut self) -> Result<(), DeviceError> {
        self.last.tokens = self.under_way.last().unwrap().clone();
        self.last.positions.iter_mut().for_each(|position| *position += 1);
        let step = self.last.clone();
        let drawn = self.run_and_draw(&step);
        self.under_way.push(drawn);
        Ok(())
    }

    fn set_mask(&mut self, mask: u32, allowed: &[u32]) -> Result<(), DeviceError> {
        self.masks.insert(mask, allowed.to_vec());
        Ok(())
    }

    fn draw(&mut self, draws: &[Draw]) -> Result<(), DeviceError> {
        let drawn = self.logits.drain(..).zip(draws).map(|(logits, draw)| match draw.mask {
            None => greedy().next(&logits),
            Some(mask) => greedy().next_of(&logits, &self.masks[&mask]).unwrap(),
        });
        self.under_way.push(drawn.collect());
        DRAWN_AFTER.set(DRAWN_AFTER.get() + 1);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if !self.under_way.is_empty() {
            self.drawn = self.under_way.remove(0);
        }
        Ok(())
    }

    fn logits(&self, i: usize) -> &[f32] {
        &self.logits[i]
    }

    fn hidden(&self, i: usize) -> &[f32] {
        &self.logits[i]
    }

    fn drawn(&self) -> &[u32] {
        &self.drawn
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        self.cache[group][to as usize] = self.cache[group][from as usize];
    }

    fn page_bytes(&self, _group: usize) -> usize {
        size_of::<[u32; PAGE]>()
    }

    fn read_page(&mut self, group: usize, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let tokens = self.cache[group][page as usize].map(u32::to_le_bytes);
        bytes.copy_from_slice(tokens.as_flattened());
        Ok(())
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let tokens = bytes.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token));
        self.cache[group][page as usize].iter_mut().zip(tokens).for_each(|(to, token)| *to = token);
        Ok(())
    }

    fn read_slot(&mut self, slot: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.slots[slot as usize].to_le_bytes());
        Ok(())
    }

    fn write_slot(&mut self, slot: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.slots[slot as usize] = u64::from_le_bytes(bytes.try_into().unwrap());
        Ok(())
    }

    fn discard_page(&mut self, group: usize, page: u32) {
        self.cache[group][page as usize] = [u32::MAX; PAGE];
    }
}

pub fn engine(pages: usize, context: usize, chain: usize) -> Engine {
    engine_of(&[pages], 0, context, chain)
}

/// The engine of a model with running states, if there are slots for them, and with as many page groups as there are
/// numbers of pages: all but the first with a window.
pub fn engine_of(pages: &[usize], slots: usize, context: usize, chain: usize) -> Engine {
    // What no one wrote is no token.
    let cache = pages.iter().map(|&pages| vec![[u32::MAX; PAGE]; pages]).collect();
    let (masks, last) = (BTreeMap::new(), StepState::default());
    let hash = Hash { cache, slots: vec![0; slots], logits: vec![], under_way: vec![], drawn: vec![], masks, last };
    let (name, description, layout) = ("hash".to_owned(), String::new(), "hash".to_owned());
    let facts =
        Facts { name, description, page_tokens: PAGE, layout, step_tokens: 16, chain, bounds: None, free_memory: None };
    let limits = Limits { tokens: 16, wanted: 8 };
    let reaches = [Reach::All].into_iter().chain(std::iter::repeat(Reach::Window(WINDOW)));
    let pages: Vec<_> = reaches.zip(pages.iter().copied()).collect();
    let engine = Engine::new(Box::new(hash), &facts, limits, &pages, context, VOCABULARY).with_prefix_cache();
    engine.with_slots(slots, if slots > 0 { size_of::<u64>() } else { 0 })
}
