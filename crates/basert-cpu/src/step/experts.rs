//! Mixtures of experts: routing, and linear ops of the chosen experts.

use std::sync::Arc;

use basert_graph::{Experts, Route, Score};
use basert_plan::{DeviceError, Linear, Place, PlanNode};

use super::linear::{Biased, epilogue, matrices};
use super::{Bound, Kernel, Output, ROWS, Run, WorkerScratch};
use crate::device::Binder;
use crate::quantised::BLOCK;
use crate::tiles::TILE;
use crate::{Epilogue, FloatRows, Input, PackedMatrix, QuantisedRows, RowBlocks, Rows, Worker, elementwise, linear};

/// A linear op of the experts that each token uses.
struct BoundExperts {
    x: Place,
    route: Place,
    /// The number of experts that a token uses.
    used: usize,
    /// The matrix of each expert, with its biases.
    experts: Vec<Biased>,
    epilogue: Epilogue,
    out: Output,
}

pub(super) fn bind(
    binder: &Binder,
    node: &PlanNode,
    linear: &Linear,
    packed: &[Vec<Arc<PackedMatrix>>],
) -> Result<Box<dyn Kernel>, DeviceError> {
    let (x, route, out) = (binder.place(node.inputs[0]), binder.place(node.inputs[1]), binder.output(node.out));
    if out.0.stride != out.0.width {
        return Err(binder.unsupported("results of experts among other values".to_owned()));
    }
    let used = linear.experts.map_or(1, |experts| experts.used);
    let (experts, epilogue) = (matrices(binder, linear, packed)?, epilogue(node, linear));
    Ok(Box::new(BoundExperts { x, route, used, experts, epilogue, out }))
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

/// A router.
struct BoundRoute {
    x: Place,
    route: Route,
    bias: Option<Vec<f32>>,
    out: Output,
}

pub(super) fn bind_route(binder: &Binder, node: &PlanNode, route: Route) -> Result<Box<dyn Kernel>, DeviceError> {
    let bias = route.bias.map(|bias| binder.vector(bias)).transpose()?;
    Ok(Box::new(BoundRoute { x: binder.place(node.inputs[0]), route, bias, out: binder.output(node.out) }))
}

impl Kernel for BoundRoute {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, out) = (run.view(self.x, rows), run.view(self.out.0, rows));
        let ranks = &mut scratch.row[..x.cols()];
        for row in worker.chunks(&op.work, rows, ROWS).flatten() {
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            let (x, out) = unsafe { (x.row(row), out.row_mut(row)) };
            route(x, &self.route, self.bias.as_deref(), ranks, out);
        }
    }
}

/// Below all numbers in the total order of floats: what cannot be chosen.
const CLOSED: f32 = f32::from_bits(u32::MAX);

/// The indices of the experts with the largest scores (ties go to the first), and then their weights. `ranks` has room
/// for a number for each expert.
fn route(x: &[f32], how: &Route, bias: Option<&[f32]>, ranks: &mut [f32], out: &mut [f32]) {
    let (chosen, weights) = out.split_at_mut(how.experts.used);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = || x.iter().map(|x| (x - max).exp()).sum::<f32>();
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    // Without a bias and groups, logits are in the order of scores.
    match (bias.is_some() || how.groups > 1, how.score) {
        (false, _) => ranks.copy_from_slice(x),
        (true, Score::Sigmoid) => ranks.iter_mut().zip(x).for_each(|(rank, &x)| *rank = sigmoid(x)),
        (true, Score::Softmax) => {
            let total = total();
            ranks.iter_mut().zip(x).for_each(|(rank, x)| *rank = (x - max).exp() / total);
        }
    }
    if let Some(bias) = bias {
        ranks.iter_mut().zip(bias).for_each(|(rank, bias)| *rank += bias);
    }
    close_groups(ranks, how);
    for chosen in chosen.iter_mut() {
        let expert = largest(ranks);
        ranks[expert] = CLOSED;
        *chosen = expert as f32;
    }
    for (weight, &chosen) in weights.iter_mut().zip(&*chosen) {
        let x = x[chosen as usize];
        *weight = if how.score == Score::Softmax { (x - max).exp() } else { sigmoid(x) };
    }
    let sum = match (how.normalised, how.score) {
        (true, _) => weights.iter().sum::<f32>(),
        (false, Score::Softmax) => total(),
        (false, Score::Sigmoid) => 1.0,
    };
    weights.iter_mut().for_each(|weight| *weight = *weight / sum * how.scale);
}

/// The first of the largest.
fn largest(ranks: &[f32]) -> usize {
    (1..ranks.len()).fold(0, |best, i| if ranks[i].total_cmp(&ranks[best]).is_gt() { i } else { best })
}

/// Closes the experts of all groups but those with the largest sums of their two best.
fn close_groups(ranks: &mut [f32], how: &Route) {
    let size = ranks.len() / how.groups;
    let score = |group: usize| {
        let members = &ranks[group * size..(group + 1) * size];
        let best = largest(members);
        let others = (0..size).filter(|&i| i != best).map(|i| members[i]);
        members[best] + others.max_by(f32::total_cmp).unwrap_or(0.0)
    };
    let ahead = |a: usize, b: usize| score(a).total_cmp(&score(b)).reverse().then(a.cmp(&b)).is_lt();
    let is_closed = |group: usize| (0..how.groups).filter(|&other| ahead(other, group)).count() >= how.groups_used;
    let closed = match how.groups_used < how.groups {
        true => (0..how.groups).filter(|&group| is_closed(group)).fold(0u64, |closed, group| closed | 1 << group),
        false => 0,
    };
    for (i, rank) in ranks.iter_mut().enumerate() {
        if closed >> (i / size) & 1 == 1 {
            *rank = CLOSED;
        }
    }
}

/// The sum of what the experts of a token compute.
struct BoundCombine {
    x: Place,
    route: Place,
    used: usize,
    weighted: bool,
    /// Whether the result is added to what is there.
    add: bool,
    out: Output,
}

pub(super) fn bind_combine(binder: &Binder, node: &PlanNode, experts: Experts, weighted: bool) -> Box<dyn Kernel> {
    let (x, route) = (binder.place(node.inputs[0]), binder.place(node.inputs[1]));
    let (add, out) = (node.onto.is_some(), binder.output(node.out));
    Box::new(BoundCombine { x, route, used: experts.used, weighted, add, out })
}

impl Kernel for BoundCombine {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, route, out) = (run.view(self.x, rows), run.view(self.route, rows), run.view(self.out.0, rows));
        for row in worker.chunks(&op.work, rows, 1).flatten() {
            let sums = &mut scratch.row[..out.cols()];
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            let out = unsafe {
                combine(x.row(row), self.weighted.then(|| &route.row(row)[self.used..]), sums);
                out.row_mut(row)
            };
            if self.add { elementwise::add(run.isa, out, sums) } else { out.copy_from_slice(sums) }
        }
    }
}

/// The sum of the results `x` of a token's experts, weighted if there are weights.
fn combine(x: &[f32], weights: Option<&[f32]>, out: &mut [f32]) {
    out.fill(0.0);
    for (i, x) in x.chunks_exact(out.len()).enumerate() {
        match weights {
            Some(weights) => out.iter_mut().zip(x).for_each(|(out, x)| *out += weights[i] * x),
            None => out.iter_mut().zip(x).for_each(|(out, x)| *out += x),
        }
    }
}

/// The input of each expert that a token uses, times its weight.
struct Weigh {
    x: Place,
    route: Place,
    used: usize,
    out: Output,
}

pub(super) fn bind_weigh(binder: &Binder, node: &PlanNode, experts: Experts) -> Box<dyn Kernel> {
    let (x, route) = (binder.place(node.inputs[0]), binder.place(node.inputs[1]));
    Box::new(Weigh { x, route, used: experts.used, out: binder.output(node.out) })
}

impl Kernel for Weigh {
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, _scratch: &mut WorkerScratch) {
        let rows = run.count(self.out.1);
        let (x, route, out) = (run.view(self.x, rows), run.view(self.route, rows), run.view(self.out.0, rows));
        for row in worker.chunks(&op.work, rows, 1).flatten() {
            // SAFETY: guaranteed by the caller, and each row is one worker's.
            let (x, route, out) = unsafe { (x.row(row), route.row(row), out.row_mut(row)) };
            for (out, weight) in out.chunks_exact_mut(x.len()).zip(&route[self.used..]) {
                out.copy_from_slice(x);
                elementwise::scale(run.isa, out, *weight);
            }
        }
    }
}

impl Kernel for BoundExperts {
    fn prepares(&self) -> bool {
        true
    }

    /// The inputs of all uses of an expert are consecutive, and are multiplied together.
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        let (rows, used, count) = (run.count(self.out.1), self.used, self.experts.len());
        let Some((matrix, _)) = self.experts.first().filter(|_| rows > 0) else { return };
        let (k, units, quantised) = (matrix.k(), matrix.units(), matrix.wants_quantised());
        let (x, route) = (run.view(self.x, rows), run.view(self.route, rows));
        // SAFETY: nobody writes the route.
        let route = |token: usize| unsafe { route.row(token) };
        scratch.uses.sort(rows, used, count, |token, place| named(route(token), place, count));
        let uses = &scratch.uses;
        // SAFETY: prepared inputs have room for those of all uses, which follow each other.
        let input = |first: usize, rows: usize| unsafe {
            match quantised {
                true => {
                    let bytes = QuantisedRows::bytes(first, k);
                    Input::Quantised(QuantisedRows::from_raw(run.prepared.1.add(bytes), rows, k))
                }
                false => Input::Float(FloatRows::from_raw(run.prepared.0.add(FloatRows::len(first, k)), rows, k)),
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
                    Input::Quantised(codes) => codes.write(run.isa, at - first, values),
                    Input::Float(floats) => floats.write(at - first, values),
                }
            }
        }
        worker.barrier();

        let width = self.out.0.width / used;
        // SAFETY: the results of a token's experts lie side by side, and nothing else in its row.
        let out = unsafe { Rows::from_raw(run.view(self.out.0, rows).row_ptr(0), rows * used, width, width) };
        for (expert, units) in worker.products(&op.work, uses.experts.len(), units, 1) {
            let expert = uses.experts[expert] as usize;
            let (matrix, bias) = &self.experts[expert];
            let (numbers, first) = uses.of(expert);
            let (x, bias) = (input(first, numbers.len()), bias.as_deref());
            for rows in RowBlocks::of(x).iter() {
                let (units, places, panels) = (units.clone(), Some(numbers), &mut scratch.panels);
                // SAFETY: the columns of a unit, in the rows of one expert, are computed by whoever took it.
                unsafe { linear(run.isa, matrix, units, x, rows, bias, self.epilogue, out, places, panels) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(count: usize, normalised: bool) -> Route {
        let experts = Experts { count, used: 2 };
        Route { experts, score: Score::Softmax, bias: None, groups: 1, groups_used: 1, normalised, scale: 1.0 }
    }

    fn choose(x: &[f32], how: &Route, bias: Option<&[f32]>, out: &mut [f32]) {
        route(x, how, bias, &mut vec![0.0; x.len()], out);
    }

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
        choose(&[1.0, 2.0, 0.0, 2.0], &softmax(4, true), None, &mut out);
        assert_eq!(out, [1.0, 3.0, 0.5, 0.5]);
        choose(&[0.0, 0.0, 0.0, 0.0], &softmax(4, false), None, &mut out);
        assert_eq!(out, [0.0, 1.0, 0.25, 0.25]);
    }

    /// Biases choose and do not weigh, and groups that are not among the best are closed.
    #[test]
    fn biases_and_groups_restrict_the_choice() {
        let mut out = [0.0; 4];
        let sigmoid = Route { score: Score::Sigmoid, scale: 2.0, ..softmax(4, false) };
        choose(&[0.0; 4], &sigmoid, Some(&[0.0, 0.0, 0.1, 0.2]), &mut out);
        assert_eq!(out, [3.0, 2.0, 1.0, 1.0]);
        let grouped = Route { groups: 2, groups_used: 1, ..sigmoid };
        // The best expert is in a group whose second is bad.
        choose(&[3.0, -9.0, 2.0, 2.0], &grouped, None, &mut out);
        assert_eq!(out[..2], [2.0, 3.0]);
    }

    #[test]
    fn routes_of_no_numbers_stay_within_bounds() {
        let mut out = [0.0; 4];
        choose(&[f32::NAN; 3], &softmax(3, true), None, &mut out);
        assert!(out[..2].iter().all(|&expert| expert < 3.0));
        assert_eq!(named(&[f32::NAN, 1e9], 1, 3), 2);
    }
}
