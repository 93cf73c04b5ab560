//! Ops with running states, and steps of several sequences that have them.

use basert_core::Format;
use basert_plan::{Baked, DeviceError, StepState};

use super::{COMPARED, Case, Kind, Row, TOKENS};

/// How many of the next tokens of each sequence are computed together, where there are several: more sequences than a GPU has
/// threadgroups for, if it is a small one.
const CUTS: [usize; 9] = [1, 6, 2, 1, 5, 3, 4, 1, 6];
/// Steps of these.
const ROUNDS: usize = 6;
/// Two for each of them.
pub(super) const SLOTS: usize = 2 * CUTS.len();

/// Convolutions, and linear attention: heads of all sizes, how they share keys, what decays, and what a token adds.
pub(super) fn rows() -> Vec<Row> {
    let table = [
        (6, 2, 32, 32, 4, "delta = true", true),
        (6, 3, 64, 16, 3, "delta = true, tiled = true", false),
        (6, 2, 48, 32, 2, "delta = false, tiled = true", true),
        (2, 1, 128, 64, 4, "delta = true, scale = 0.5", true),
        (1, 1, 256, 96, 4, "delta = true", false),
        // Odd sizes, of which states are not aligned.
        (5, 1, 12, 21, 4, "delta = true", false),
        (3, 3, 7, 35, 6, "delta = true", true),
        (3, 3, 2, 33, 1, "delta = false", false),
        // Heads of one value.
        (128, 1, 16, 1, 4, "delta = false", true),
    ];
    table
        .into_iter()
        .map(|(heads, keys, key_dim, value_dim, taps, how, by_row)| {
            // Rows of pairs of values, and heads of one.
            row([heads, keys, key_dim, value_dim, taps], how, by_row).essential([32, 16].contains(&key_dim))
        })
        .collect()
}

fn row([heads, keys, key_dim, value_dim, taps]: [usize; 5], how: &str, by_row: bool) -> Row {
    let width = heads * value_dim;
    let linear = |to: &str| format!("{{ op = 'linear', in = 'x', weight = 'w{to}', out = '{to}' }},");
    let decays = heads * if by_row { key_dim } else { 1 };
    // Keys are short, so that the delta rule does not overshoot. The rates of rows come from those of heads.
    let ops = format!(
        "{}{}{}{}{}{{ op = 'conv', in = 'v', weight = 'taps', bias = 'term', out = 'v' }},\
         {{ op = 'conv', in = 'k', weight = 'key_taps', out = 'k' }},\
         {{ op = 'scale', in = 'k', factor = {}, out = 'k' }}, {{ op = 'affine', in = 'a', bias = 'shift', out = 'a' }},\
         {{ op = 'activate', in = 'a', kind = \"'softplus'\", out = 'a' }}, {{ op = 'scale', in = 'a', factor = 0.3, out = 'a' }},\
         {{ op = 'affine', in = 'a', weight = 'rate', decay = true, out = 'a' }},\
         {{ op = 'activate', in = 'b', kind = \"'sigmoid'\", out = 'b' }},\
         {{ op = 'linear_attention', q = 'q', k = 'k', v = 'v', decay = 'a', beta = 'b', heads = {heads}, key_heads = {keys},\
          {how}, out = 'o' }},\
         {{ op = 'affine', in = 'v', weight = 'skip', bias = 'term', out = 'v' }}, {{ op = 'add', in = ['o', 'v'], out = 'y' }}",
        linear("q"),
        linear("k"),
        linear("v"),
        linear("a"),
        linear("b"),
        0.6 / (key_dim as f32).sqrt(),
    );
    let tensors = [
        ("embed", &[TOKENS.max(width), 64][..], Format::F32),
        ("wq", &[keys * key_dim, 64], Format::F32),
        ("wk", &[keys * key_dim, 64], Format::F32),
        ("wv", &[width, 64], Format::F32),
        ("wa", &[heads, 64], Format::F32),
        ("wb", &[heads, 64], Format::F32),
        ("taps", &[width, taps], Format::F32),
        ("key_taps", &[keys * key_dim, 3], Format::F32),
        ("term", &[width], Format::F32),
        ("shift", &[1], Format::F32),
        ("rate", &[decays], Format::F32),
        ("skip", &[heads], Format::F32),
    ];
    let how = format!("{heads}/{keys} {key_dim}×{value_dim} {how}{}", if by_row { " by row" } else { "" });
    Row::new(format!("linear attention {how}, {taps} taps"), Kind::Recurrent, &ops, &tensors)
}

impl Case {
    /// The logits of several sequences that begin as the prompt, each cut otherwise, from steps that all of them share. Their states
    /// are kept where they were, or in another slot, or in the middle of a sequence's part of a step, after which it goes on
    /// from there. Logits of tokens after these are those that are expected.
    pub(super) fn of_sequences(&self, baked: &mut dyn Baked) -> Result<impl Iterator<Item = Vec<f32>>, DeviceError> {
        let width = self.expected.len() / COMPARED;
        let mut all = CUTS.map(|_| self.expected.clone());
        // How many tokens of each sequence are computed, and in which of its slots the states after them are.
        let mut done = CUTS.map(|_| (0, None));
        let mut step = StepState::default();
        for round in 0..ROUNDS {
            step.clear();
            let before = done;
            for (i, (cut, (position, slot))) in CUTS.into_iter().zip(&mut done).enumerate() {
                step.push(&self.prompt[*position..][..cut], *position, &[[0]], cut);
                let own = slot.unwrap_or(2 * i as u32);
                let other = own ^ 1;
                let (kept, next) = match round % 3 {
                    0 => (vec![(cut - 1, own)], (cut, own)),
                    1 => (vec![(cut - 1, other)], (cut, other)),
                    _ if cut == 1 => (vec![(0, own)], (1, own)),
                    _ => (vec![(cut / 2 - 1, other), (cut - 1, own)], (cut / 2, other)),
                };
                step.keep(*slot, kept);
                (*position, *slot) = (*position + next.0, Some(next.1));
            }
            baked.submit(&step)?;
            baked.wait()?;
            let mut rows = 0..;
            for ((logits, cut), (position, _)) in all.iter_mut().zip(CUTS).zip(before) {
                for (to, row) in logits.chunks_exact_mut(width).skip(position).take(cut).zip(&mut rows) {
                    to.copy_from_slice(baked.logits(row));
                }
            }
        }
        Ok(all.into_iter())
    }
}
