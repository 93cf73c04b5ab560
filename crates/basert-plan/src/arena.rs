//! Where intermediate values lie, and where barriers are needed.

use std::ops::Range;

use basert_graph::ValueId;

use crate::plan::{Place, Plan, PlanNode};

/// Alignment of values in bytes: a cache line, and a SIMD vector.
const ALIGNMENT: usize = 64;

/// Places the output of an op over the input that it may overwrite, if nothing reads that afterwards and it is no other
/// input as well.
pub(crate) fn share(plan: &mut Plan) {
    for i in 0..plan.nodes.len() {
        let node = &plan.nodes[i];
        let Some(overwritten) = node.op.signature().overwrites else { continue };
        let (x, out) = (node.inputs[overwritten], node.out);
        let others = node.inputs.iter().enumerate().filter(|&(at, _)| at != overwritten);
        let alone = others.into_iter().all(|(_, &other)| !plan.overlap(x, other));
        let fits = plan.values[x.0].width == plan.values[out.0].width;
        if alone && fits && plan.values[out.0].within.is_none() && plan.dead_after(x, i) {
            plan.values[out.0].within = Some((x, 0));
        }
    }
}

/// Gives every value a place. Values whose lifetimes overlap do not share memory; the largest are placed first, each at
/// the lowest offset that is free during its lifetime.
pub(crate) fn place(plan: &mut Plan) {
    let lives = lifetimes(plan);
    let mut order: Vec<usize> = (0..plan.values.len()).filter(|&v| lives[v].is_some()).collect();
    order.sort_by_key(|&v| (std::cmp::Reverse(bytes(plan, v)), v));
    let mut placed: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    plan.places = vec![Place::default(); plan.values.len()];
    for v in order {
        let Some(life) = lives[v].clone() else { continue };
        let size = bytes(plan, v);
        let mut offset = 0;
        let mut taken: Vec<_> =
            placed.iter().filter(|(other, _)| overlap(other, &life)).map(|(_, range)| range.clone()).collect();
        taken.sort_by_key(|range| range.start);
        for range in taken {
            if range.start >= offset + size {
                break;
            }
            offset = offset.max(range.end);
        }
        placed.push((life, offset..offset + size));
        plan.arena_bytes = plan.arena_bytes.max(offset + size);
        plan.places[v].offset = offset;
    }
    for v in 0..plan.values.len() {
        let (root, column) = plan.root(ValueId(v));
        let (offset, stride) = (plan.places[root.0].offset, plan.values[root.0].width);
        plan.places[v] = Place { offset, stride, column, width: plan.values[v].width };
    }
}

/// Lifetimes of the values with a place of their own: positions of the ops from the first that writes it to the last
/// that uses it or a value within it.
fn lifetimes(plan: &Plan) -> Vec<Option<Range<usize>>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; plan.values.len()];
    let mut touch = |value, i: usize| {
        for (holder, _) in plan.holders(value) {
            let life = lives[holder.0].get_or_insert(i..i + 1);
            life.end = life.end.max(i + 1);
        }
    };
    // The host writes it before the head's first op.
    if let Some(head) = plan.head {
        touch(head.given, head.after);
    }
    for (i, node) in plan.nodes.iter().enumerate() {
        node.reads().chain([node.out]).for_each(|value| touch(value, i));
    }
    // What the host reads also outlives a step of the head.
    plan.outputs().for_each(|output| touch(output, plan.nodes.len()));
    // A step for hidden states ends here, so they live until then.
    touch(plan.hidden.value, plan.hidden.after);
    lives
}

fn bytes(plan: &Plan, value: usize) -> usize {
    let value = &plan.values[value];
    (plan.limits.rows(value.rows) * value.width * size_of::<f32>()).next_multiple_of(ALIGNMENT)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Puts a barrier before every op that uses memory which an op since the last barrier wrote, or writes memory which one
/// of them used. Memory means bytes of the arena, whichever values lie there, and states.
pub(crate) fn set_barriers(plan: &mut Plan) {
    let accesses: Vec<_> = plan.nodes.iter().map(|node| accesses(plan, node)).collect();
    for (node, barrier) in plan.nodes.iter_mut().zip(barriers(&accesses)) {
        node.barrier = barrier;
    }
}

/// Before which of these accesses, executed in this order, all earlier ones must be complete.
fn barriers(accesses: &[Vec<Access>]) -> Vec<bool> {
    let mut since: Vec<&Access> = Vec::new();
    let needs =
        |accesses: &Vec<Access>, since: &[&Access]| accesses.iter().any(|a| since.iter().any(|b| a.conflicts(b)));
    let mut barriers = Vec::with_capacity(accesses.len());
    for accesses in accesses {
        let barrier = needs(accesses, &since);
        if barrier {
            since.clear();
        }
        since.extend(accesses);
        barriers.push(barrier);
    }
    barriers
}

#[derive(Debug, Clone)]
struct Access {
    memory: Memory,
    write: bool,
}

#[derive(Debug, Clone)]
enum Memory {
    Arena(Range<usize>),
    State(usize),
}

impl Access {
    fn conflicts(&self, other: &Access) -> bool {
        let same = match (&self.memory, &other.memory) {
            (Memory::Arena(a), Memory::Arena(b)) => overlap(a, b),
            (Memory::State(a), Memory::State(b)) => a == b,
            _ => false,
        };
        same && (self.write || other.write)
    }
}

fn accesses(plan: &Plan, node: &PlanNode) -> Vec<Access> {
    let ranges = |value: ValueId| {
        plan.holders(value).map(|(root, _)| {
            let start = plan.places[root.0].offset;
            Memory::Arena(start..start + bytes(plan, root.0))
        })
    };
    let signature = node.op.signature();
    let read = node.reads().flat_map(ranges).chain(signature.reads.map(|state| Memory::State(state.0)));
    let written = ranges(node.out).chain(signature.writes.map(|state| Memory::State(state.0)));
    let read = read.map(|memory| Access { memory, write: false });
    read.chain(written.map(|memory| Access { memory, write: true })).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn any_access() -> impl Strategy<Value = Access> {
        let arena = (0usize..40, 1usize..12).prop_map(|(start, bytes)| Memory::Arena(start..start + bytes));
        let memory = prop_oneof![arena, (0usize..3).prop_map(Memory::State)];
        (memory, any::<bool>()).prop_map(|(memory, write)| Access { memory, write })
    }

    /// The bytes that these accesses touch, or write: those of states after those of the arena.
    fn bytes(accesses: &[Access], written: bool) -> BTreeSet<usize> {
        let chosen = accesses.iter().filter(|access| access.write || !written);
        chosen
            .flat_map(|access| match &access.memory {
                Memory::Arena(range) => range.clone().collect::<Vec<_>>(),
                Memory::State(state) => vec![1000 + state],
            })
            .collect()
    }

    fn race(a: &[Access], b: &[Access]) -> bool {
        !bytes(a, true).is_disjoint(&bytes(b, false)) || !bytes(a, false).is_disjoint(&bytes(b, true))
    }

    proptest! {
        /// Dispatches without a barrier between them can run concurrently, and no barrier is superfluous.
        #[test]
        fn what_overlaps_in_time_does_not_conflict(list in prop::collection::vec(prop::collection::vec(any_access(), 0..4), 0..24)) {
            let barriers = barriers(&list);
            let mut begin = 0;
            for i in 0..list.len() {
                let before = &list[begin..i];
                let conflict = before.iter().any(|other| race(&list[i], other));
                prop_assert_eq!(barriers[i], conflict, "dispatch {} after those from {}", i, begin);
                if barriers[i] {
                    begin = i;
                }
            }
        }
    }
}
