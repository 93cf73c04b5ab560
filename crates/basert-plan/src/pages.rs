//! Page groups: which layers share a page table, how many bytes their pages have, and how many pages a sequence needs.
//!
//! A layer with a sliding window does not need the keys and values before it. So layers that see equally far back have
//! pages, and page numbers, of their own: a group. All tables of a sequence are indexed by position; a table of a group
//! that does not see everything has no pages at its beginning once the sequence is long enough.

use std::ops::Range;

use basert_core::KvFormat;
use basert_graph::{Graph, Op, Reach, StateId};

use crate::Plan;

/// Layers that see equally far back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageGroup {
    /// How far.
    pub reach: Reach,
    /// Their keys and values, in the order in which they lie in a page.
    pub caches: Vec<StateId>,
}

impl PageGroup {
    /// The groups of a graph. The first one keeps all of a sequence, even if no layer does: then its pages have no bytes,
    /// and only count tokens.
    pub(crate) fn all(graph: &Graph) -> Vec<PageGroup> {
        let mut groups = vec![PageGroup { reach: Reach::All, caches: Vec::new() }];
        for id in (0..graph.states.len()).map(StateId).filter(|id| graph.states[id.0].paged().is_some()) {
            let reach = reach_of(graph, id);
            match groups.iter_mut().find(|group| group.reach == reach) {
                Some(group) => group.caches.push(id),
                None => groups.push(PageGroup { reach, caches: vec![id] }),
            }
        }
        groups
    }

    /// The pages that are needed to go on from `position`: those of tokens before it that it or a later token sees, as
    /// indices into a page table.
    pub fn needed(reach: Reach, position: usize, page_tokens: usize) -> Range<usize> {
        let end = position.div_ceil(page_tokens);
        (first_seen(reach, position) / page_tokens).min(end)..end
    }

    /// The most pages that a sequence of `tokens` tokens holds while it is computed in steps of at most `step` tokens:
    /// those of the window, of the step, and two for what is partly within them. That lets a sequence also keep what the
    /// tokens of its last page saw, so it can go back a little.
    pub fn most(reach: Reach, tokens: usize, step: usize, page_tokens: usize) -> usize {
        let all = tokens.div_ceil(page_tokens);
        match reach {
            Reach::Window(seen) | Reach::Chunk(seen) => {
                all.min(seen.saturating_add(step).div_ceil(page_tokens).saturating_add(2))
            }
            Reach::All | Reach::After(_) | Reach::Everything | Reach::Around(_) => all,
        }
    }
}

/// The largest number up to `most` that fits, if all smaller ones do; 0 if none does.
pub fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut beyond) = (0, most.saturating_add(1));
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    fitting
}

/// The first position that the token at `position`, or a later one, sees.
fn first_seen(reach: Reach, position: usize) -> usize {
    // Where tokens see later ones, a sequence is computed at once.
    if reach.is_causal() { reach.seen(position, position + 1).start } else { 0 }
}

/// How far back any layer looks into a cache, which several may share.
fn reach_of(graph: &Graph, id: StateId) -> Reach {
    let reaches = graph.nodes.iter().filter_map(|node| match node.op {
        Op::Attention(attention) if attention.cache == id => Some(attention.reach),
        _ => None,
    });
    let furthest = reaches.reduce(|a, b| match (a, b) {
        (Reach::Window(a), Reach::Window(b)) => Reach::Window(a.max(b)),
        (a, b) if a == b => a,
        _ => Reach::All,
    });
    // What sees all but the first tokens is with what sees all.
    furthest.filter(|reach| matches!(reach, Reach::Window(_) | Reach::Chunk(_))).unwrap_or(Reach::All)
}

impl Plan {
    /// Bytes of a page of a group.
    pub fn page_bytes(&self, group: usize, kv: KvFormat, page_tokens: usize) -> usize {
        let caches = self.page_groups[group].caches.iter().map(|&id| self.graph.cache(id).token_bytes(kv));
        caches.fold(0, |sum: usize, bytes| sum.saturating_add(bytes.saturating_mul(page_tokens)))
    }

    /// Bytes of so many pages of each group.
    pub fn cache_bytes(&self, pages: &[usize], kv: KvFormat, page_tokens: usize) -> usize {
        let groups = pages.iter().enumerate();
        let bytes = groups.map(|(group, pages)| pages.saturating_mul(self.page_bytes(group, kv, page_tokens)));
        bytes.fold(0, usize::saturating_add)
    }

    /// The group of a cache, and the first byte of its keys and values in a page.
    pub fn place_in_page(&self, id: StateId, kv: KvFormat, page_tokens: usize) -> (usize, usize) {
        let is_its = |group: &PageGroup| group.caches.contains(&id);
        let group = self.page_groups.iter().position(is_its).unwrap_or(0);
        let before = self.page_groups[group].caches.iter().take_while(|&&other| other != id);
        let bytes = before.map(|&id| self.graph.cache(id).token_bytes(kv) * page_tokens);
        (group, bytes.sum())
    }

    /// How far each group sees, beside its number of pages.
    pub fn reaches(&self, pages: &[usize]) -> Vec<(Reach, usize)> {
        self.page_groups.iter().map(|group| group.reach).zip(pages.iter().copied()).collect()
    }

    /// The pages of each group with which one sequence of `tokens` tokens can be computed.
    pub fn pages_of(&self, tokens: usize, page_tokens: usize) -> Vec<usize> {
        let groups = self.page_groups.iter();
        groups.map(|group| PageGroup::most(group.reach, tokens, self.limits.tokens, page_tokens)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found() {
        for limit in 0..20 {
            assert_eq!(largest(12, |n| n <= limit), limit.min(12));
        }
        assert_eq!(largest(usize::MAX, |n| n < 1 << 40), (1 << 40) - 1);
    }

    /// Whatever is taken, what a sequence needs, and what it keeps to go back a page, is no more than `most`.
    #[test]
    fn pages_are_those_that_are_seen() {
        assert_eq!(PageGroup::needed(Reach::All, 130, 64), 0..3);
        assert_eq!(PageGroup::needed(Reach::Window(64), 128, 64), 1..2);
        assert_eq!(PageGroup::needed(Reach::Window(65), 128, 64), 1..2);
        assert_eq!(PageGroup::needed(Reach::Window(66), 128, 64), 0..2);
        assert_eq!(PageGroup::needed(Reach::Chunk(128), 128, 64), 2..2, "a chunk sees nothing before it");
        assert_eq!(PageGroup::needed(Reach::Chunk(100), 130, 64), 1..3);
        assert_eq!(PageGroup::needed(Reach::Around(8), 130, 64), 0..3);
        for reach in [Reach::Window(1), Reach::Window(7), Reach::Window(16), Reach::Chunk(5), Reach::Chunk(8)] {
            for (computed, step) in (0usize..40).flat_map(|computed| (1..12).map(move |step| (computed, step))) {
                let kept = PageGroup::needed(reach, computed.saturating_sub(4), 4).start;
                let held = (computed + step).div_ceil(4) - kept;
                assert!(held <= PageGroup::most(reach, computed + step, step, 4), "{reach:?} {computed} {step}");
            }
        }
    }
}
