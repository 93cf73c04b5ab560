//! The sampler: chooses a token from logits.
//!
//! In this order: logit bias; repeat, presence and frequency penalties; and then either the largest logit
//! (temperature 0), or temperature, top-k, top-p, min-p, and sampling from the remaining candidates.
//!
//! Every step is the same on every device, to the bit: see `bit_exact.rs`.
//!
//! Sampling uses the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030): the token with the largest
//! `logit / temperature + g`, with independent Gumbel noise g for each token, is distributed as the softmax. The noise
//! is a function of the seed, the position in the answer and the token, so it does not depend on the order of the
//! candidates, nor on how a device adds numbers.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use basert_plan::{Draw, first_allowed};

use crate::block_maxima::{BLOCK, Maxima};
use crate::{Philox, Sampling, SamplingError, bit_exact};

/// Samples the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: Philox,
    /// Number of tokens sampled so far.
    drawn: u32,
    /// How often each token is in the answer, and 0 for those that are only in the prompt.
    seen: BTreeMap<u32, u32>,
    logits: Vec<f32>,
    maxima: Maxima,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for the answer to `prompt`.
    ///
    /// # Errors
    /// When a setting is outside its range.
    pub fn new(mut sampling: Sampling, prompt: &[u32]) -> Result<Sampler, SamplingError> {
        // Logits divided by less could become infinite.
        const LEAST_TEMPERATURE: f32 = 1e-5;
        sampling.check()?;
        if sampling.temperature < LEAST_TEMPERATURE {
            sampling.temperature = 0.0;
        }
        let counts_prompt = sampling.repeat_penalty != 1.0;
        let seen = prompt.iter().filter(|_| counts_prompt).map(|&token| (token, 0)).collect();
        let random = Philox::new(sampling.seed);
        let maxima = Maxima::default();
        Ok(Sampler { sampling, random, drawn: 0, seen, logits: Vec::new(), maxima, candidates: Vec::new() })
    }

    /// Samples a token from logits, and counts it as part of the answer. A token whose logit is NaN is impossible; if
    /// all are, the first token is returned.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if !self.has_penalties() && self.sampling.logit_bias.is_empty() {
            return self.next_by(logits, 0);
        }
        let mut own = std::mem::take(&mut self.logits);
        own.clear();
        own.extend_from_slice(logits);
        self.next_of_own(own, 0)
    }

    /// Like [`Sampler::next`], among the tokens whose bit is set in `mask`: bit t % 32 of word t / 32 for token t. None
    /// if the mask allows no token.
    pub fn next_of(&mut self, logits: &[f32], mask: &[u32]) -> Option<u32> {
        let first = first_allowed(mask, logits.len())?;
        let may_come = |token: usize| mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
        let mut own = std::mem::take(&mut self.logits);
        own.clear();
        own.extend(
            logits.iter().enumerate().map(|(token, &logit)| if may_come(token) { logit } else { f32::NEG_INFINITY }),
        );
        Some(self.next_of_own(own, first))
    }

    /// Samples with bias and penalties; the buffer `own` is kept for the next token.
    fn next_of_own(&mut self, mut own: Vec<f32>, first: u32) -> u32 {
        self.adjust(&mut own);
        let token = self.next_by(&own, first);
        self.logits = own;
        token
    }

    fn next_by(&mut self, logits: &[f32], first: u32) -> u32 {
        let token = self.choose(logits).unwrap_or(first);
        self.accept(token);
        token
    }

    /// Counts a token as part of the answer that a device sampled by [`Sampler::draw_on_device`].
    pub fn accept(&mut self, token: u32) {
        self.drawn += 1;
        *self.seen.entry(token).or_default() += 1;
    }

    /// How a device samples the next token, with the history of this number if there are penalties; none if no device
    /// can, because there is a logit bias.
    pub fn draw_on_device(&self, history: u32) -> Option<Draw> {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = self.sampling;
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        self.sampling.logit_bias.is_empty().then_some(Draw {
            temperature,
            top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
            top_p: if top_p < 1.0 { parts(top_p) } else { Draw::PARTS },
            log_min_p: min_p.ln(),
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            index: self.drawn,
            history: self.has_penalties().then_some(history),
            mask: None,
        })
    }

    /// The history for a device: see [`Draw::IN_PROMPT`].
    pub fn history(&self, vocabulary: usize) -> Vec<u16> {
        let mut counts = vec![0; vocabulary];
        for (&token, &count) in &self.seen {
            if let Some(entry) = counts.get_mut(token as usize) {
                // Tokens of the answer count as seen whether or not they are also in the prompt.
                *entry = Draw::IN_PROMPT | (count.min(u32::from(Draw::IN_PROMPT - 1)) as u16);
            }
        }
        counts
    }

    /// Whether a penalty needs the history.
    pub fn has_penalties(&self) -> bool {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        repeat_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    /// Samples a token; none if no token is possible.
    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        self.maxima.find(logits);
        if temperature == 0.0 {
            self.maxima.first(logits)
        } else if top_k == 0 && top_p == 1.0 && min_p == 0.0 {
            self.draw_from_all(logits)
        } else {
            self.truncate(logits);
            self.draw()
        }
    }

    /// Applies bias and penalties.
    fn adjust(&self, logits: &mut [f32]) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, ref logit_bias, .. } = self.sampling;
        for (&token, &bias) in logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if !self.has_penalties() {
            return;
        }
        for (&token, &count) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
            if count > 0 {
                *logit = (-frequency_penalty).mul_add(count as f32, *logit - presence_penalty);
            }
        }
    }

    /// Finds the candidates that top-k, top-p and min-p allow, with their logits divided by the temperature.
    fn truncate(&mut self, logits: &[f32]) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let max = bit_exact::scaled(self.maxima.largest(), temperature);
        // The tokens that are likely enough are few, and at least `k` tokens reach the k-th largest block maximum.
        let mut some = match top_k {
            0 if top_p < 1.0 => 64,
            0 => usize::MAX,
            _ => top_k,
        };
        let total = (top_k == 0 && top_p < 1.0).then(|| self.total(logits, max));
        loop {
            let all = self.gather(logits, some, max - REACH);
            if top_k > 0 && top_k < self.candidates.len() {
                self.candidates.select_nth_unstable_by(top_k - 1, likelier);
                self.candidates.truncate(top_k);
            }
            if top_p == 1.0 || keep_nucleus(&mut self.candidates, max, total, top_p) || all {
                break;
            }
            some = some.saturating_mul(8);
        }
        if min_p > 0.0 {
            let least = max + min_p.ln();
            self.candidates.retain(|c| c.0 >= least);
        }
    }

    /// Makes the likeliest candidates, `some` of them or more, and none with less than `least`. Returns whether these
    /// are all that have as much.
    fn gather(&mut self, logits: &[f32], some: usize, least: f32) -> bool {
        let temperature = self.sampling.temperature;
        let border = bit_exact::scaled(self.maxima.nth(some), temperature);
        let (all, least) = (border <= least, border.max(least));
        // What is behind by more than rounding makes of that need not be divided.
        let near = least * temperature;
        let near = near - near.abs() * 1e-6 - f32::MIN_POSITIVE;
        let near = if near.is_finite() { near } else { f32::NEG_INFINITY };
        self.candidates.clear();
        for (first, logits, _) in self.maxima.blocks(logits).filter(|&(_, _, highest)| highest >= near) {
            for (&logit, token) in logits.iter().zip(first..) {
                if logit >= near && logit > f32::NEG_INFINITY {
                    let scaled = bit_exact::scaled(logit, temperature);
                    if scaled >= least {
                        self.candidates.push((scaled, token));
                    }
                }
            }
        }
        all
    }

    /// The sum of the weights of all tokens.
    fn total(&self, logits: &[f32], max: f32) -> u64 {
        let temperature = self.sampling.temperature;
        let has_weight = |highest| bit_exact::scaled(highest, temperature) >= max - REACH;
        let blocks = self.maxima.blocks(logits).filter(|&(_, _, highest)| has_weight(highest));
        blocks.map(|(_, logits, _)| bit_exact::total(logits, temperature, max)).sum()
    }

    /// Samples from the candidates: the one with the largest sum of logit and Gumbel noise.
    fn draw(&self) -> Option<u32> {
        let mut best = *self.candidates.iter().min_by(|a, b| likelier(a, b))?;
        best.0 += bit_exact::gumbel(self.bits(best.1));
        for &(logit, token) in &self.candidates {
            if logit + bit_exact::MOST_GUMBEL >= best.0 {
                challenge(&mut best, logit, token, self.bits(token));
            }
        }
        Some(best.1)
    }

    /// The token that [`draw`](Self::draw) samples if nothing is truncated.
    fn draw_from_all(&self, logits: &[f32]) -> Option<u32> {
        let scaled = |logit| bit_exact::scaled(logit, self.sampling.temperature);
        let likeliest = self.maxima.first(logits)?;
        let mut best = (scaled(logits[likeliest as usize]) + bit_exact::gumbel(self.bits(likeliest)), likeliest);
        let mut bits = [[0; BLOCK / 4]; 4];
        for (first, logits, highest) in self.maxima.blocks(logits) {
            // Most blocks are too far behind for any noise, and most others for the largest noise in the block.
            let least = least_to_win(&best, scaled(highest));
            if bit_exact::noise_bits(u32::MAX) < least
                || bit_exact::noise_bits(self.random.block(first / 4, self.drawn, &mut bits)) < least
            {
                continue;
            }
            for (i, (&logit, token)) in logits.iter().zip(first..).enumerate() {
                let bits = bits[i % 4][i / 4];
                if bit_exact::noise_bits(bits) >= least && logit > f32::NEG_INFINITY {
                    challenge(&mut best, scaled(logit), token, bits);
                }
            }
        }
        Some(best.1)
    }

    /// The random bits of this position and token.
    fn bits(&self, token: u32) -> u32 {
        self.random.at([token / 4, self.drawn, 0, 0])[(token % 4) as usize]
    }
}

/// The least noise bits with which a candidate may exceed the best one.
fn least_to_win(best: &(f32, u32), logit: f32) -> u32 {
    // Logits may be so large that their difference is not exact.
    bit_exact::least_bits(best.0 - logit - best.0.abs() * 1e-6)
}

/// Replaces the best candidate if this one exceeds it with its noise.
fn challenge(best: &mut (f32, u32), logit: f32, token: u32, bits: u32) {
    if bit_exact::noise_bits(bits) >= least_to_win(best, logit) {
        let noisy = (logit + bit_exact::gumbel(bits), token);
        if likelier(&noisy, best).is_lt() {
            *best = noisy;
        }
    }
}

/// What is further behind the most likely token than this, divided by the temperature, can neither win by noise, which
/// lies between −2.9 and 16.7, nor has a weight.
const REACH: f32 = 20.0;

/// Descending order of logits, with ties in order of token ids.
fn likelier(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Leaves the most likely candidates that have probability `p` together, of which all have the weight `total`, or what
/// these have; `max` is the largest logit. Returns whether they have as much.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, max: f32, total: Option<u64>, p: f32) -> bool {
    // Bucketed by distance from the maximum, so that few have to be sorted: those in the bucket where the nucleus ends.
    const BINS: usize = 32 * REACH as usize + 1;
    let bin = |c: &(f32, u32)| (((max - c.0) * 32.0) as usize).min(BINS - 1);
    // Integers, whose sum does not depend on their order.
    let mut weights = vec![0; candidates.len()];
    bit_exact::weights(candidates, max, &mut weights);
    let mut bins = [0; BINS];
    candidates.iter().zip(&weights).for_each(|(c, &weight)| bins[bin(c)] += u64::from(weight));
    let sum = bins.iter().sum();
    let mut missing = share(total.unwrap_or(sum), p);
    if sum < missing {
        return false;
    }
    let mut last = 0;
    while last + 1 < BINS && bins[last] < missing {
        missing -= bins[last];
        last += 1;
    }
    let weighted = candidates.iter().copied().zip(weights);
    let mut of_last: Vec<_> = weighted.filter(|(c, _)| bin(c) == last).collect();
    of_last.sort_unstable_by(|(a, _), (b, _)| likelier(a, b));
    candidates.retain(|c| bin(c) < last);
    for (candidate, weight) in of_last {
        candidates.push(candidate);
        missing = missing.saturating_sub(u64::from(weight));
        if missing == 0 {
            break;
        }
    }
    true
}

/// `p` times a total of at most 2^43, rounded up.
fn share(total: u64, p: f32) -> u64 {
    (total * u64::from(parts(p))).div_ceil(u64::from(Draw::PARTS))
}

/// A probability in parts of [`Draw::PARTS`], rounded up.
fn parts(p: f32) -> u32 {
    (f64::from(p) * f64::from(Draw::PARTS)).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    fn counts(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for seed in 0..draws as u64 {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }, &[]).unwrap();
            counts[sampler.next(logits) as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 8] = [2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -4.0];

    /// Chi-squared with 7 degrees of freedom exceeds 24.3 once in a thousand times.
    #[test]
    fn draws_follow_the_softmax() {
        for temperature in [0.5, 1.0, 2.0] {
            let draws = 20_000;
            let counts = counts(&Sampling { temperature, ..Sampling::default() }, &LOGITS, draws);
            let expected = probabilities(&LOGITS, temperature).into_iter().map(|p| p * draws as f64);
            let chi: f64 = counts.iter().zip(expected).map(|(&n, e)| (n as f64 - e).powi(2) / e).sum();
            assert!(chi < 24.3, "temperature {temperature}: chi-squared {chi}, counts {counts:?}");
        }
    }

    #[test]
    fn draws_of_one_answer_are_independent() {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[]).unwrap();
        let tokens: Vec<u32> = (0..4000).map(|_| sampler.next(&[0.0, 0.0])).collect();
        let ones = tokens.iter().filter(|&&t| t == 1).count();
        let repeats = tokens.windows(2).filter(|w| w[0] == w[1]).count();
        assert!((1850..2150).contains(&ones) && (1850..2150).contains(&repeats), "{ones} ones, {repeats} repeats");
    }

    fn support(sampling: Sampling) -> Vec<u32> {
        let counts = counts(&Sampling { temperature: 1.0, ..sampling }, &LOGITS, 4000);
        (0..8).filter(|&t| counts[t as usize] > 0).collect()
    }

    #[test]
    fn truncations_keep_what_they_say() {
        assert_eq!(support(Sampling { top_k: 2, ..Sampling::default() }), [0, 1]);
        // Probabilities are 0.38, 0.23, 0.14, …
        assert_eq!(support(Sampling { top_p: 0.38, ..Sampling::default() }), [0]);
        assert_eq!(support(Sampling { top_p: 0.6, ..Sampling::default() }), [0, 1]);
        assert_eq!(support(Sampling { min_p: 0.3, ..Sampling::default() }), [0, 1, 2]);
        assert_eq!(support(Sampling { top_k: 3, min_p: 0.5, ..Sampling::default() }), [0, 1]);
    }

    /// Without leaving anything out before it has to be.
    fn textbook(sampling: &Sampling, logits: &[f32], index: u32) -> u32 {
        let scaled = logits.iter().map(|logit| logit / sampling.temperature + 0.0);
        let mut candidates: Vec<(f32, u32)> = scaled.zip(0..).filter(|c| c.0 > f32::NEG_INFINITY).collect();
        candidates.sort_by(likelier);
        if sampling.top_k > 0 {
            candidates.truncate(sampling.top_k);
        }
        let Some(&(max, _)) = candidates.first() else { return 0 };
        let weights: Vec<u64> = candidates.iter().map(|c| u64::from(bit_exact::weight(c.0 - max))).collect();
        let wanted = share(weights.iter().sum(), sampling.top_p);
        if sampling.top_p < 1.0 {
            let enough = |n: &usize| weights[..*n].iter().sum::<u64>() >= wanted;
            candidates.truncate((1..=candidates.len()).find(enough).unwrap());
        }
        if sampling.min_p > 0.0 {
            candidates.retain(|c| c.0 >= max + sampling.min_p.ln());
        }
        let random = Philox::new(sampling.seed);
        for (logit, token) in &mut candidates {
            *logit += bit_exact::gumbel(random.at([*token / 4, index, 0, 0])[(*token % 4) as usize]);
        }
        candidates.into_iter().min_by(likelier).unwrap().1
    }

    #[test]
    fn choices_are_those_of_a_textbook() {
        let random = Philox::new(7);
        for case in 0..600 {
            let number = |i: u32| random.at([i, case, 1, 0])[0];
            let pick = |i: u32, of: &[f32]| of[number(i) as usize % of.len()];
            let spread = pick(0, &[0.0, 1.0, 5.0, 20.0, 1e3]);
            let vocabulary = pick(1, &[1.0, 7.0, 33.0, 3000.0]) as u32;
            let normal = |i: u32| (0..4).map(|j| (number(10 + 4 * i + j) >> 8) as f32 / 8_388_608.0 - 1.0).sum::<f32>();
            let mut logits: Vec<f32> = (0..vocabulary).map(|i| normal(i) * spread).collect();
            logits.iter_mut().step_by(5).for_each(|logit| *logit = logit.round());
            logits.iter_mut().skip(3).step_by(11).for_each(|logit| *logit = f32::NEG_INFINITY);
            let sampling = Sampling {
                temperature: pick(2, &[1e-4, 0.2, 0.8, 1.0, 3.0, 1e3]),
                top_k: pick(3, &[0.0, 0.0, 1.0, 40.0]) as usize,
                top_p: pick(4, &[1.0, 1.0, 0.9, 0.3]),
                min_p: pick(5, &[0.0, 0.0, 0.05]),
                seed: u64::from(case),
                ..Sampling::default()
            };
            let mut sampler = Sampler::new(sampling.clone(), &[]).unwrap();
            for index in 0..3 {
                assert_eq!(sampler.next(&logits), textbook(&sampling, &logits, index), "{sampling:?} {logits:?}");
            }
        }
    }

    /// Where 64 blocks, which are looked at first, are not all: for a flat distribution they have too little.
    #[test]
    fn a_nucleus_of_some_blocks_or_of_all_is_that_of_a_textbook() {
        let random = Philox::new(11);
        for (case, (spread, top_p)) in [(0.0, 0.95), (0.3, 0.5), (2.0, 0.95), (6.0, 0.9)].into_iter().enumerate() {
            let noise = |token: u32| (random.at([token, case as u32, 0, 0])[0] >> 8) as f32 / 8_388_608.0 - 1.0;
            let logits: Vec<f32> = (0..9000).map(|token| noise(token) * spread * 3.0).collect();
            let sampling = Sampling { temperature: 0.9, top_p, seed: case as u64, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling.clone(), &[]).unwrap();
            for index in 0..3 {
                assert_eq!(sampler.next(&logits), textbook(&sampling, &logits, index), "{spread} {top_p}");
            }
        }
    }

    #[test]
    fn the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort() {
        let candidates: Vec<(f32, u32)> = (0..50_000).map(|t| ((t * 7919 % 50_000) as f32 * 2e-4, t)).collect();
        let mut sorted = candidates.clone();
        sorted.sort_by(likelier);
        for p in [0.1f32, 0.5, 0.9, 0.999] {
            let mut kept = candidates.clone();
            assert!(keep_nucleus(&mut kept, sorted[0].0, None, p));
            kept.sort_by(likelier);
            let keep = kept.len();
            let total: f64 = sorted.iter().map(|c| f64::from(c.0 - sorted[0].0).exp()).sum();
            let mass = |n: usize| sorted[..n].iter().map(|c| f64::from(c.0 - sorted[0].0).exp()).sum::<f64>() / total;
            let p64 = f64::from(p);
            // Parts of 2^−20, and weights rounded down to whole numbers.
            assert!(mass(keep) >= p64 - 4e-6 && mass(keep - 1) < p64 + 4e-6, "{p}: {keep}");
            assert_eq!(kept, sorted[..keep]);
        }
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let choose = |sampling: Sampling, prompt: &[u32], n: usize| {
            let mut sampler = Sampler::new(sampling, prompt).unwrap();
            (0..n).map(|_| sampler.next(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(choose(Sampling::default(), &[], 2), [0, 0]);
        let presence = Sampling { presence_penalty: 0.7, ..Sampling::default() };
        assert_eq!(choose(presence, &[0], 3), [0, 1, 0]);
        let frequency = Sampling { frequency_penalty: 0.3, ..Sampling::default() };
        assert_eq!(choose(frequency, &[], 4), [0, 0, 1, 0]);
        let repeat = Sampling { repeat_penalty: 1.5, ..Sampling::default() };
        assert_eq!(choose(repeat, &[0], 1), [1]);
        let bias = Sampling { logit_bias: BTreeMap::from([(7, 100.0), (999, 5.0)]), ..Sampling::default() };
        assert_eq!(choose(bias, &[], 1), [7]);
    }

    #[test]
    fn only_tokens_of_the_mask_are_chosen() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() }, &[]).unwrap();
            assert!((0..100).all(|_| [Some(2), Some(5)].contains(&sampler.next_of(&LOGITS, &[0b10_0100]))));
            assert_eq!(sampler.next_of(&LOGITS, &[1 << 9]), None);
            assert_eq!(sampler.next_of(&[0.0, f32::NEG_INFINITY], &[0b10]), Some(1));
        }
    }

    #[test]
    fn a_temperature_next_to_nothing_takes_the_likeliest() {
        for (logits, likeliest) in [([-2.0, -1.0, -3.0], 1), ([1.0, 2.0, 3.0], 2)] {
            let mut sampler = Sampler::new(Sampling { temperature: 1e-40, ..Sampling::default() }, &[]).unwrap();
            assert!((0..20).all(|_| sampler.next(&logits) == likeliest));
        }
    }

    #[test]
    fn a_seed_means_a_text() {
        let text = |seed| {
            let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, &[]).unwrap();
            (0..32).map(|_| sampler.next(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (sampling, part) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature is -1"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top-p is 0"),
            (Sampling { min_p: f32::NAN, ..Sampling::default() }, "min-p is NaN"),
            (Sampling { repeat_penalty: 0.0, ..Sampling::default() }, "repeat penalty is 0"),
        ] {
            let error = Sampler::new(sampling, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_logits_give_a_token(
            logits in proptest::collection::vec(proptest::num::f32::ANY, 1..50),
            temperature in 0f32..3.0, top_k in 0usize..60, top_p in 0.01f32..1.0, min_p in 0f32..1.0,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let token = Sampler::new(sampling.clone(), &[]).unwrap().next(&logits);
            proptest::prop_assert!((token as usize) < logits.len());
            if temperature >= 1e-5 {
                proptest::prop_assert_eq!(token, textbook(&sampling, &logits, 0));
            }
        }
    }
}
