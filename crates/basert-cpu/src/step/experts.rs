//! Mixtures of experts: routing, and linear ops of the chosen experts.

use basert_plan::Place;

use super::{Bound, Output, Run, WorkerScratch};
use crate::quantised::BLOCK;
use crate::tiles::TILE;
use crate::{Epilogue, FloatRows, Input, PackedMatrix, QuantisedRows, RowBlocks, Rows, Worker, linear};

/// A linear op of the experts that each token uses.
pub(crate) struct BoundExperts {
    pub x: Place,
    pub route: Place,
    /// The number of experts that a token uses.
    pub used: usize,
    /// The matrix of each expert, with its biases.
    pub experts: Vec<(PackedMatrix, Option<Vec<f32>>)>,
    pub epilogue: Epilogue,
    pub out: Output,
}

/// Which tokens use which experts, sorted by expert. Each use has a number: the token times the uses per token, plus
/// its place among these.
#[derive(Default)]
pub(crate) struct Uses {
    numbers: Vec<u32>,
    /// For each expert its first place in `numbers`, and finally their total.
    first: Vec<u32>,
    /// The experts in use.
    experts: Vec<u32>,
}

impl Uses {
    /// With capacity for `uses` uses of `experts` experts.
    pub fn new(uses: usize, experts: usize) -> Uses {
        Uses { numbers: vec![0; uses], first: vec![0; experts + 2], experts: Vec::with_capacity(experts) }
    }

    /// Sorts the uses of `rows` tokens by `expert(token, place)`, one of `count`.
    fn sort(&mut self, rows: usize, used: usize, count: usize, expert: impl Fn(usize, usize) -> usize) {
        let first = &mut self.first[..count + 2];
        first.fill(0);
        let uses = || (0..rows * used).map(|number| (number, expert(number / used, number % used)));
        uses().for_each(|(_, expert)| first[expert + 2] += 1);
        (2..first.len()).for_each(|i| first[i] += first[i - 1]);
        for (number, expert) in uses() {
            self.numbers[first[expert + 1] as usize] = number as u32;
            first[expert + 1] += 1;
        }
        self.experts.clear();
        self.experts.extend((0..count as u32).filter(|&expert| first[expert as usize] < first[expert as usize + 1]));
    }

    /// The numbers of an expert's uses, and how many come before them.
    fn of(&self, expert: usize) -> (&[u32], usize) {
        let (first, end) = (self.first[expert] as usize, self.first[expert + 1] as usize);
        (&self.numbers[first..end], first)
    }
}

/// The expert that a token's route names at `place`.
fn named(route: &[f32], place: usize, count: usize) -> usize {
    (route[place] as usize).min(count - 1)
}

/// The indices of the experts with the largest softmax of `x` (ties go to the first), and then their weights.
pub(super) fn route(x: &[f32], normalised: bool, out: &mut [f32]) {
    let (chosen, weights) = out.split_at_mut(out.len() / 2);
    // Each expert is the largest one after its predecessor in this order.
    let ahead = |a: usize, b: usize| x[a].total_cmp(&x[b]).reverse().then(a.cmp(&b)).is_lt();
    let mut last = None;
    for chosen in chosen.iter_mut() {
        let after = (0..x.len()).filter(|&i| last.is_none_or(|last| ahead(last, i)));
        let next = after.reduce(|a, b| if ahead(b, a) { b } else { a }).unwrap_or(0);
        *chosen = next as f32;
        last = Some(next);
    }
    let max = x[chosen[0] as usize];
    let sum = |weights: &[f32]| weights.iter().sum::<f32>();
    for (weight, &chosen) in weights.iter_mut().zip(&*chosen) {
        *weight = (x[chosen as usize] - max).exp();
    }
    let total = if normalised { sum(weights) } else { x.iter().map(|x| (x - max).exp()).sum() };
    weights.iter_mut().for_each(|weight| *weight /= total);
}

/// The weighted sum of the results `x` of a token's experts.
pub(super) fn combine(x: &[f32], route: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (x, weight) in x.chunks_exact(out.len()).zip(&route[route.len() / 2..]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
    }
}

impl Run<'_> {
    /// A linear op of experts: the inputs of all uses of an expert are consecutive, and are multiplied together.
    ///
    /// # Safety
    /// As for [`Run::execute`].
    pub(super) unsafe fn experts(
        &self,
        op: &Bound,
        bound: &BoundExperts,
        worker: &Worker,
        scratch: &mut WorkerScratch,
    ) {
        let (rows, used, count) = (self.count(bound.out.1), bound.used, bound.experts.len());
        let Some((matrix, _)) = bound.experts.first().filter(|_| rows > 0) else { return };
        let (k, units, quantised) = (matrix.k(), matrix.units(), matrix.wants_quantised());
        let (x, route) = (self.view(bound.x, rows), self.view(bound.route, rows));
        // SAFETY: nobody writes the route.
        let route = |token: usize| unsafe { route.row(token) };
        scratch.uses.sort(rows, used, count, |token, place| named(route(token), place, count));
        let uses = &scratch.uses;
        // SAFETY: prepared inputs have room for those of all uses, which follow each other.
        let input = |first: usize, rows: usize| unsafe {
            match quantised {
                true => {
                    let bytes = QuantisedRows::bytes(first, k);
                    Input::Quantised(QuantisedRows::from_raw(self.prepared.1.add(bytes), rows, k))
                }
                false => Input::Float(FloatRows::from_raw(self.prepared.0.add(FloatRows::len(first, k)), rows, k)),
            }
        };
        debug_assert!(!quantised || k.is_multiple_of(BLOCK));

        for at in worker.chunks(&op.prepare, rows * used, TILE).flatten() {
            let number = uses.numbers[at] as usize;
            let (token, place) = (number / used, number % used);
            let (numbers, first) = uses.of(named(route(token), place, count));
            // SAFETY: nobody writes the input of the op, and each prepared row is one worker's.
            unsafe {
                let columns = if x.cols() == k { 0..k } else { place * k..(place + 1) * k };
                let values = x.columns(columns).row(token);
                match input(first, numbers.len()) {
                    Input::Quantised(codes) => codes.write(self.isa, at - first, values),
                    Input::Float(floats) => floats.write(at - first, values),
                }
            }
        }
        worker.barrier();

        let width = bound.out.0.width / used;
        // SAFETY: the results of a token's experts lie side by side, and nothing else in its row.
        let out = unsafe { Rows::from_raw(self.view(bound.out.0, rows).row_ptr(0), rows * used, width, width) };
        for (expert, units) in worker.products(&op.work, uses.experts.len(), units, 1) {
            let expert = uses.experts[expert] as usize;
            let (matrix, bias) = &bound.experts[expert];
            let (numbers, first) = uses.of(expert);
            let (x, bias) = (input(first, numbers.len()), bias.as_deref());
            for rows in RowBlocks::of(x).iter() {
                let (units, places, panels) = (units.clone(), Some(numbers), &mut scratch.panels);
                // SAFETY: the columns of a unit, in the rows of one expert, are computed by whoever took it.
                unsafe { linear(self.isa, matrix, units, x, rows, bias, bound.epilogue, out, places, panels) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_sorted_by_expert() {
        let mut uses = Uses::new(6, 4);
        let experts = [[3, 1], [1, 0], [3, 0]];
        uses.sort(3, 2, 4, |token, place| experts[token][place]);
        assert_eq!(uses.experts, [0, 1, 3]);
        assert_eq!(uses.of(0), (&[3, 5][..], 0));
        assert_eq!(uses.of(1), (&[1, 2][..], 2));
        assert_eq!(uses.of(2), (&[][..], 4));
        assert_eq!(uses.of(3), (&[0, 4][..], 4));
    }

    #[test]
    fn the_largest_are_chosen_and_the_first_of_equals() {
        let mut out = [0.0; 4];
        route(&[1.0, 2.0, 0.0, 2.0], true, &mut out);
        assert_eq!(out, [1.0, 3.0, 0.5, 0.5]);
        route(&[0.0, 0.0, 0.0, 0.0], false, &mut out);
        assert_eq!(out, [0.0, 1.0, 0.25, 0.25]);
    }

    #[test]
    fn routes_of_no_numbers_stay_within_bounds() {
        let mut out = [0.0; 4];
        route(&[f32::NAN; 3], true, &mut out);
        assert!(out[..2].iter().all(|&expert| expert < 3.0));
        assert_eq!(named(&[f32::NAN, 1e9], 1, 3), 2);
    }
}
