//! The one buffer that holds everything that varies from step to step.

use std::ops::Range;

use basert_plan::{DeviceError, Draw, Plan, SequenceRows, StepState, first_allowed};

use crate::Kernel;

/// Tokens in a page of the KV cache.
pub const PAGE: usize = 64;
/// Rows of a tile of queries, which one threadgroup computes in attention of many tokens.
pub const QUERY_TILE: usize = 64;
/// Words of a draw.
const DRAW_WORDS: usize = 12;
/// Words of what is said of a sequence.
const SEQUENCE_WORDS: usize = 4;
/// Words of a tile.
const TILE_WORDS: usize = 3;
/// Words before the sections.
const HEADER: usize = 5;

/// The offsets of the buffer's sections, in words; `kernels/common/step.h` describes their contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLayout {
    positions: usize,
    places: usize,
    tables: usize,
    sequences: usize,
    kept: usize,
    wanted: usize,
    draws: usize,
    tiles: usize,
    pages: usize,
    masks: usize,
    /// Tokens of the vocabulary.
    vocabulary: usize,
    /// Whether sequences have running states.
    running: bool,
    /// Page groups.
    groups: usize,
    /// The most tokens of a step: words of a section of one group.
    tokens: usize,
    /// The length of the buffer in words.
    pub words: usize,
}

impl StepLayout {
    /// For the steps of a plan over a KV cache of `pages` pages of the group that keeps all of a sequence.
    pub fn new(plan: &Plan, pages: usize) -> StepLayout {
        let (limits, vocabulary, groups) = (plan.limits, plan.graph.vocabulary, plan.page_groups.len());
        // Kernels look for sequences even where states have no values.
        let running = plan.graph.states.iter().any(|state| state.paged().is_none());
        // The page tables of all sequences together are not longer than this, even if they share pages.
        const TABLES: usize = 1 << 20;
        let positions = HEADER + limits.tokens;
        let places = positions + limits.tokens;
        let tables = places + groups * limits.tokens;
        let sequences = tables + groups * limits.tokens;
        let most = if running { limits.tokens } else { 0 };
        let kept = sequences + most * SEQUENCE_WORDS;
        // A token and its slot for each, and an end for each sequence.
        let wanted = kept + most * 3;
        let draws = wanted + limits.wanted;
        let tiles = draws + limits.wanted * DRAW_WORDS;
        let pages_at = tiles + TILE_WORDS * limits.tokens;
        let masks = pages_at + groups * limits.tokens.saturating_mul(pages).min(TABLES);
        let words = masks + limits.wanted * vocabulary.div_ceil(32);
        StepLayout {
            positions,
            places,
            tables,
            sequences,
            kept,
            wanted,
            draws,
            tiles,
            pages: pages_at,
            masks,
            vocabulary,
            running,
            groups,
            tokens: limits.tokens,
            words,
        }
    }

    /// The kernel with the offsets of the sections that say where the pages of this group are.
    #[must_use]
    pub fn of_group(&self, kernel: Kernel, group: usize) -> Kernel {
        let sections = [("STEP_PLACES", self.places), ("STEP_TABLES", self.tables)];
        define_read(kernel, sections.map(|(name, at)| (name, at + group * self.tokens)))
    }

    /// The kernel with the offsets of these sections for the first group, and what lies between those of two groups.
    #[must_use]
    pub fn of_all_groups(&self, kernel: Kernel) -> Kernel {
        self.of_group(kernel, 0).define("PAGE_GROUPS", self.groups).define("TOKENS_LIMIT", self.tokens)
    }

    /// The kernel with the offsets of the sections that it reads as macros: it is the same for all step layouts that
    /// agree in these, and compiled once for them.
    #[must_use]
    pub fn define(&self, kernel: Kernel) -> Kernel {
        let sections = [
            ("STEP_TOKENS", HEADER),
            ("STEP_POSITIONS", self.positions),
            ("STEP_SEQUENCES", self.sequences),
            ("STEP_KEPT", self.kept),
            ("STEP_WANTED", self.wanted),
            ("STEP_DRAWS", self.draws),
            ("STEP_TILES", self.tiles),
            ("STEP_PAGES", self.pages),
        ];
        define_read(kernel, sections)
    }

    /// Fills `words` with a checked step. Returns the number of words used, and the number of tiles.
    ///
    /// # Errors
    /// When the page tables are longer than the buffer.
    pub fn encode(&self, step: &StepState, words: &mut [u32]) -> Result<(usize, usize), DeviceError> {
        let pages = self.groups * step.page_table(0).len();
        let used = self.pages + pages;
        if used > self.masks {
            let what = format!("page tables of {pages} pages, of at most {}", self.masks - self.pages);
            return Err(DeviceError::Step(what));
        }
        words[HEADER..][..step.tokens.len()].copy_from_slice(&step.tokens);
        words[self.positions..][..step.positions.len()].copy_from_slice(&step.positions);
        words[self.wanted..][..step.wanted.len()].copy_from_slice(&step.wanted);
        self.encode_draws(&step.draws, words);
        let (mut tiles, mut at) = (0, 0);
        for sequence in &step.sequences {
            for group in 0..self.groups {
                let table = &step.page_table(group)[sequence.pages.clone()];
                words[self.pages + at..][..table.len()].copy_from_slice(table);
                for row in sequence.rows.clone() {
                    let position = step.positions[row] as usize;
                    let place = table[position / PAGE] * PAGE as u32 + (position % PAGE) as u32;
                    words[self.places + group * self.tokens + row] = place;
                    words[self.tables + group * self.tokens + row] = at as u32;
                }
                at += table.len();
            }
            let so_far = sequence.rows.clone().last().map_or(0, |row| step.positions[row] + 1);
            for first in sequence.rows.clone().step_by(QUERY_TILE) {
                let tile = [first as u32, (sequence.rows.end - first).min(QUERY_TILE) as u32, so_far];
                words[self.tiles + tiles * TILE_WORDS..][..TILE_WORDS].copy_from_slice(&tile);
                tiles += 1;
            }
        }
        if self.running {
            self.encode_slots(step, words);
        }
        let counts = [step.tokens.len(), step.wanted.len(), tiles, 0, step.sequences.len()];
        words[..HEADER].copy_from_slice(&counts.map(|count| count as u32));
        Ok((used, tiles))
    }

    /// Fills `words` with the slots of the sequences of a checked step.
    fn encode_slots(&self, step: &StepState, words: &mut [u32]) {
        let mut at = self.kept;
        for (i, SequenceRows { rows, slot, .. }) in step.sequences.iter().enumerate() {
            let of_sequence = [rows.start as u32, rows.len() as u32, *slot, (at - self.kept) as u32];
            words[self.sequences + i * SEQUENCE_WORDS..][..SEQUENCE_WORDS].copy_from_slice(&of_sequence);
            for (row, &slot) in rows.clone().zip(&step.kept[rows.clone()]).filter(|(_, slot)| **slot != StepState::NONE)
            {
                words[at..at + 2].copy_from_slice(&[row as u32, slot]);
                at += 2;
            }
            words[at] = StepState::NONE;
            at += 1;
        }
    }

    /// Fills `words` with checked draws. Returns their range.
    pub fn encode_draws(&self, draws: &[Draw], words: &mut [u32]) -> Range<usize> {
        for (draw, words) in draws.iter().zip(words[self.draws..].chunks_exact_mut(DRAW_WORDS)) {
            words.copy_from_slice(&words_of(draw, draw.mask.map_or(0, |mask| self.mask(mask).start)));
        }
        self.draws..self.draws + draws.len() * DRAW_WORDS
    }

    /// Fills `words` with the mask of this number, which may be shorter or longer than the vocabulary. Returns its
    /// range.
    ///
    /// # Errors
    /// When there is no mask of this number, or it allows no token.
    pub fn encode_mask(&self, mask: u32, allowed: &[u32], words: &mut [u32]) -> Result<Range<usize>, DeviceError> {
        let range = self.mask(mask);
        if first_allowed(allowed, self.vocabulary).is_none() {
            return Err(DeviceError::Step(format!("mask {mask} allows no token")));
        }
        let Some(words) = words.get_mut(range.clone()) else {
            return Err(DeviceError::Step(format!("there is no mask {mask}")));
        };
        let given = allowed.len().min(words.len());
        words[..given].copy_from_slice(&allowed[..given]);
        words[given..].fill(0);
        Ok(range)
    }

    /// The range of the mask of this number.
    fn mask(&self, mask: u32) -> Range<usize> {
        let length = self.vocabulary.div_ceil(32);
        let begin = self.masks + mask as usize * length;
        begin..begin + length
    }
}

/// The kernel with these macros, as far as its source names them.
fn define_read<const N: usize>(kernel: Kernel, sections: [(&'static str, usize); N]) -> Kernel {
    let source = kernel.source();
    let code = || source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let read = sections.into_iter().filter(|(name, _)| code().any(|line| line.contains(name)));
    read.fold(kernel, |kernel, (name, at)| kernel.define(name, at))
}

/// A draw as `kernels/sample/candidate.h` reads it, with the place of its mask.
fn words_of(draw: &Draw, mask: usize) -> [u32; DRAW_WORDS] {
    [
        draw.temperature.to_bits(),
        draw.top_k,
        draw.top_p,
        draw.log_min_p.to_bits(),
        draw.repeat_penalty.to_bits(),
        draw.presence_penalty.to_bits(),
        draw.frequency_penalty.to_bits(),
        draw.seed as u32,
        (draw.seed >> 32) as u32,
        draw.index,
        draw.history.map_or(0, |history| history + 1),
        mask as u32,
    ]
}
