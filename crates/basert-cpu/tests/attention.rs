//! Attention against a textbook in f64 on what the reference codec makes of keys and values, and every way of dividing it
//! against the others bit for bit.

mod common;

use basert_core::{KvFormat, codec};
use basert_cpu::*;
use basert_graph::{Alibi, Reach};
use common::{Random, bits};

/// A cache with one sequence of `len` tokens in shuffled pages, NaN wherever nothing was written, and its queries.
struct Case {
    attention: Attention,
    format: KvFormat,
    len: usize,
    memory: Buffer,
    table: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

const PAGES: usize = 7;

impl Case {
    fn new(attention: Attention, format: KvFormat, len: usize, isa: Isa) -> Case {
        attention.check().unwrap();
        let Attention { head_dim, q_heads, kv_heads, .. } = attention;
        let mut random = Random::new((head_dim + q_heads * 7 + len) as u64);
        let mut memory = Buffer::zeroed(PAGES * KvLayer::page_bytes(format, kv_heads, head_dim)).unwrap();
        // 0x7e7e is no number in f16.
        memory.fill(0x7e);
        let mut case = Case {
            format,
            len,
            memory,
            table: (0..len.div_ceil(PAGE)).map(|i| ((i * 3 + 2) % PAGES) as u32).collect(),
            keys: random.values(len * kv_heads * head_dim),
            values: random.values(len * kv_heads * head_dim),
            queries: random.values(len * q_heads * head_dim).iter().map(|x| x * 2.0).collect(),
            attention,
        };
        let (table, keys, values) = (case.table.clone(), case.keys.clone(), case.values.clone());
        let kv = case.kv();
        for t in 0..len {
            for h in 0..kv_heads {
                let at = (t * kv_heads + h) * head_dim..(t * kv_heads + h + 1) * head_dim;
                // SAFETY: there is only one thread.
                unsafe { kv.write(isa, h, table[t / PAGE] as usize, t % PAGE, &keys[at.clone()], &values[at]) };
            }
        }
        case
    }

    fn kv(&mut self) -> KvLayer<'_> {
        let Attention { head_dim, kv_heads, .. } = self.attention;
        let stride = KvLayer::page_bytes(self.format, kv_heads, head_dim);
        // SAFETY: `memory` has so many pages.
        unsafe { KvLayer::from_raw(self.memory.as_mut_ptr(), PAGES, stride, self.format, kv_heads, head_dim) }
    }

    fn width(&self) -> usize {
        self.attention.q_heads * self.attention.head_dim
    }

    /// What a textbook says of the row at `position`, given keys and values as they are stored.
    fn expected(&self, keys: &[f32], values: &[f32], position: usize) -> Vec<f64> {
        let Attention { head_dim, q_heads, kv_heads, scale, soft_cap, reach, alibi } = self.attention;
        let seen = reach.seen(position, self.len);
        let mut out = Vec::new();
        for head in 0..q_heads {
            let q = &self.queries[position * self.width() + head * head_dim..][..head_dim];
            let at = |t: usize| (t * kv_heads + head / (q_heads / kv_heads)) * head_dim;
            let weights: Vec<f64> = seen
                .clone()
                .map(|t| {
                    let k = &keys[at(t)..][..head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    let score = dot * f64::from(scale);
                    let score = soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    let slope = alibi.map_or(0.0, |alibi| f64::from(alibi.slope(head, q_heads)));
                    (score - slope * position.abs_diff(t) as f64).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..head_dim).map(|d| {
                let sum = weights.iter().zip(seen.clone()).map(|(w, t)| w * f64::from(values[at(t) + d]));
                sum.sum::<f64>() / total
            }));
        }
        out
    }

    /// Rows from `start` on, in blocks of `step` rows.
    fn attend(&mut self, isa: Isa, start: usize, step: usize) -> Vec<f32> {
        let (attention, width, len) = (self.attention, self.width(), self.len);
        let mut out = vec![0.0; (len - start) * width];
        let mut queries = self.queries[start * width..].to_vec();
        let table = self.table.clone();
        let kv = self.kv();
        let (q, view) = (Rows::new(&mut queries, len - start, width), Rows::new(&mut out, len - start, width));
        let mut scratch = Scratch::new(&attention);
        let sequence = Sequence { pages: &table, position: start, tokens: len };
        for first in (0..len - start).step_by(step) {
            let rows = first..(first + step).min(len - start);
            for head in 0..attention.kv_heads {
                // SAFETY: there is only one thread.
                unsafe { attend(isa, &attention, kv, &sequence, q, head, rows.clone(), None, view, &mut scratch) };
            }
        }
        out
    }

    /// The last row, its pages divided into pieces of `step`.
    fn attend_divided(&mut self, isa: Isa, step: usize) -> Vec<f32> {
        let (attention, width, position) = (self.attention, self.width(), self.len - 1);
        let mut out = vec![0.0; width];
        let mut queries = self.queries[position * width..].to_vec();
        let table = self.table.clone();
        let kv = self.kv();
        let (q, view) = (Rows::new(&mut queries, 1, width), Rows::new(&mut out, 1, width));
        let mut scratch = Scratch::new(&attention);
        let sequence = Sequence { pages: &table, position, tokens: position + 1 };
        let blocks = attention.blocks(&sequence, 0);
        let rows = blocks.len() * attention.group();
        let columns = kv.head_dim() + 2;
        let mut memory = vec![0.0; rows * columns];
        let partials = Rows::new(&mut memory, rows, columns);
        for head in 0..attention.kv_heads {
            for first in blocks.clone().step_by(step).rev() {
                let part = first..blocks.end.min(first + step);
                // SAFETY: there is only one thread.
                unsafe { attend_pages(isa, &attention, kv, &sequence, q, head, 0, part, partials, &mut scratch) };
            }
            // SAFETY: there is only one thread.
            unsafe { merge_pages(isa, &attention, &sequence, head, 0, partials, None, view, &mut scratch) };
        }
        out
    }
}

/// What is left of values that were stored, heads of `head_dim` being filled up to whole blocks.
fn rounded(format: KvFormat, values: &[f32], head_dim: usize) -> Vec<f32> {
    let stored = head_dim.next_multiple_of(format.block());
    let rounded = values.chunks_exact(head_dim).flat_map(|head| {
        let mut rounded = [head, &vec![0.0; stored - head_dim]].concat();
        let mut bytes = vec![0; format.bytes(stored)];
        codec::encode(format.format(), &rounded, &mut bytes).unwrap();
        codec::decode(format.format(), &bytes, &mut rounded).unwrap();
        rounded.truncate(head_dim);
        rounded
    });
    rounded.collect()
}

fn cases() -> Vec<(Attention, KvFormat, usize)> {
    let mut cases = Vec::new();
    for (i, (head_dim, q_heads, kv_heads, len)) in [
        (64, 9, 3, 135),
        (16, 2, 2, 70),
        (48, 7, 1, 129),
        (128, 8, 2, 65),
        (96, 4, 2, 129),
        (256, 2, 1, 66),
        (32, 30, 1, 20),
        (64, 5, 5, 1),
        (120, 4, 2, 70),
        (6, 3, 1, 65),
        (17, 2, 2, 9),
    ]
    .into_iter()
    .enumerate()
    {
        let kinds = [
            (None, Reach::All),
            (Some(5.0), Reach::All),
            (None, Reach::Window(50)),
            (Some(3.0), Reach::Chunk(37)),
            (Some(3.0), Reach::Window(64)),
            (None, Reach::Chunk(64)),
            (None, Reach::Window(1)),
            (None, Reach::Everything),
            (Some(5.0), Reach::Around(50)),
        ];
        // All kinds for the first shape, and every other one for each of the others: under emulation this takes a while.
        for (soft_cap, reach) in kinds.into_iter().skip(i % 2).step_by(if i == 0 { 1 } else { 2 }) {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let alibi = (reach == Reach::Window(50) || soft_cap == Some(5.0)).then_some(Alibi { most: 4.0 });
            let attention = Attention { head_dim, q_heads, kv_heads, scale, soft_cap, reach, alibi };
            cases.extend(KvFormat::ALL.into_iter().map(|format| (attention, format, len)));
        }
    }
    cases
}

#[test]
fn attention_agrees_with_a_textbook() {
    for (attention, format, len) in cases() {
        let mut case = Case::new(attention, format, len, Isa::detect());
        let width = case.width();
        let found = case.attend(Isa::detect(), 0, attention.row_block());
        let rounded = |values| rounded(format, values, attention.head_dim);
        let (keys, values) = (rounded(&case.keys), rounded(&case.values));
        // Beside codes, queries and weights have 14 bits.
        let bound = if format == KvFormat::F16 { 3e-6 } else { 3e-4 };
        for (position, found) in found.chunks_exact(width).enumerate() {
            for (i, (x, expected)) in found.iter().zip(case.expected(&keys, &values, position)).enumerate() {
                assert!(
                    (f64::from(*x) - expected).abs() < bound,
                    "{attention:?} {format} {position} {i}: {x}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn how_it_is_divided_does_not_matter() {
    for (attention, format, len) in cases() {
        let mut expected: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut case = Case::new(attention, format, len, isa);
            let width = case.width();
            let all = case.attend(isa, 0, attention.row_block());
            assert!(expected.get_or_insert_with(|| bits(&all)) == &bits(&all), "{attention:?} {format} {isa}");
            assert!(bits(&case.attend(isa, 0, 1)) == bits(&all), "{attention:?} {format} {isa}");
            let start = len / 3;
            let step = attention.row_block().min(3);
            assert!(
                bits(&case.attend(isa, start, step)) == bits(&all[start * width..]),
                "{attention:?} {format} {isa}"
            );
            for step in [1, 2, 100] {
                let last = case.attend_divided(isa, step);
                assert!(bits(&last) == bits(&all[(len - 1) * width..]), "{attention:?} {format} {isa} {step}");
            }
        }
    }
}

#[test]
fn shapes_that_the_kernels_lack_are_refused() {
    let good =
        Attention { head_dim: 64, q_heads: 8, kv_heads: 2, scale: 1.0, soft_cap: None, reach: Reach::All, alibi: None };
    assert_eq!(good.check(), Ok(()));
    for head_dim in [0, 513, 528] {
        assert_eq!(Attention { head_dim, ..good }.check(), Err(AttentionError::HeadDim(head_dim)));
    }
    for (q_heads, kv_heads) in [(8, 3), (0, 1), (4, 0), (2, 4)] {
        assert!(matches!(Attention { q_heads, kv_heads, ..good }.check(), Err(AttentionError::Heads { .. })));
    }
}

/// A token's slot is its own: what is written beside it leaves it as it was.
#[test]
fn tokens_of_a_page_can_be_written_at_the_same_time() {
    for format in KvFormat::ALL {
        let attention = Attention {
            head_dim: 64,
            q_heads: 2,
            kv_heads: 1,
            scale: 1.0,
            soft_cap: None,
            reach: Reach::All,
            alibi: None,
        };
        let mut case = Case::new(attention, format, PAGE, Isa::detect());
        let expected = case.memory.to_vec();
        case.memory.fill(0x7e);
        let (keys, values, page) = (case.keys.clone(), case.values.clone(), case.table[0] as usize);
        let kv = case.kv();
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (keys, values) = (&keys, &values);
                scope.spawn(move || {
                    for slot in (first..PAGE).step_by(4).cycle().take(PAGE * 16) {
                        let at = slot * 64..(slot + 1) * 64;
                        // SAFETY: each thread has slots of its own.
                        unsafe { kv.write(Isa::detect(), 0, page, slot, &keys[at.clone()], &values[at]) };
                    }
                });
            }
        });
        assert!(case.memory.to_vec() == expected, "{format}");
    }
}

/// Blocks of zeros, of tiny and of huge values, of one sign, and with an outlier.
#[test]
fn blocks_of_any_values_are_stored_as_the_codec_does() {
    for format in [KvFormat::Q8, KvFormat::Q4] {
        let attention = Attention {
            head_dim: 32,
            q_heads: 1,
            kv_heads: 1,
            scale: 1.0,
            soft_cap: None,
            reach: Reach::All,
            alibi: None,
        };
        for size in [0.0, 1e-30, 1e-6, 3e-4, 1.0, 700.0, 6e4] {
            for offset in [-1.0, 0.0, 1.0] {
                let mut case = Case::new(attention, format, 1, Isa::Portable);
                case.values.iter_mut().for_each(|x| *x = (*x + offset) * size);
                case.values[17] *= 3.0;
                let (keys, values, page) = (case.keys.clone(), case.values.clone(), case.table[0] as usize);
                for isa in Isa::available() {
                    // SAFETY: there is only one thread.
                    unsafe { case.kv().write(isa, 0, page, 0, &keys, &values) };
                    // With one token, its value is the result.
                    let found = case.attend(isa, 0, 1);
                    let expected = rounded(format, &values, attention.head_dim);
                    assert!(found == expected, "{format} {isa} {size} {offset}: {found:?}, not {expected:?}");
                }
            }
        }
    }
}
