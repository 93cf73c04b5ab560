//! The prefix cache: pages of the KV cache that outlive their sequences, found by their tokens.
//!
//! A node of the tree is a page; the path to it spells the tokens of all pages before it and its own, so a page is
//! found only by exactly the tokens from which it was computed. If tokens diverge in the middle of a page, the page is
//! valid up to there: a sequence that continues from it writes to a copy.
//!
//! There is a root for each salt: pages below it are only found with the same salt.

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use crate::PagePool;
use crate::engine::Checkpoint;

/// The time at which pages are restored: there are not as many pages.
const RESTORED: u64 = 1 << 32;

/// A tree of pages, each keyed by its tokens. No key of a node is a prefix of another.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    page_tokens: usize,
    nodes: Vec<Node>,
    /// Roots by salt: nodes without a page, each with at least one child.
    roots: BTreeMap<u64, usize>,
    /// Free indices of removed nodes.
    vacant: Vec<usize>,
    clock: u64,
    /// Whether pages were added or removed since the last save.
    pub changed: bool,
}

/// A page of the tree, in a list that also has its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept<'a> {
    /// The number of the page before it, counted from 1; 0 for the first page of a prefix.
    pub parent: u32,
    /// The salt, for the first page of a prefix.
    pub salt: u64,
    pub tokens: &'a [u32],
    pub page: u32,
    /// Their positions count from the beginning of the page.
    pub checkpoints: &'a [Checkpoint],
}

#[derive(Debug, Default)]
struct Node {
    tokens: Arc<[u32]>,
    page: u32,
    parent: usize,
    children: BTreeMap<Arc<[u32]>, usize>,
    /// Running states after some of its tokens, by position in the page, and when they were last used.
    checkpoints: Vec<Checkpoint>,
    checkpoints_used: u64,
    /// When it was last used; only for nodes with a page.
    used: u64,
    /// Of a root.
    salt: u64,
}

impl PrefixTree {
    pub fn new(page_tokens: usize) -> PrefixTree {
        PrefixTree {
            page_tokens,
            nodes: Vec::new(),
            roots: BTreeMap::new(),
            vacant: Vec::new(),
            clock: 0,
            changed: false,
        }
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len() - self.roots.len()
    }

    /// The pages of the longest cached prefix of `tokens` with this salt, and the prefix's length. The last page may
    /// hold more tokens than that length includes.
    pub fn find(&mut self, salt: u64, tokens: &[u32]) -> (Vec<u32>, usize) {
        let path = self.path(salt, tokens);
        (path.iter().map(|&(node, _)| self.nodes[node].page).collect(), path.iter().map(|(_, common)| common).sum())
    }

    /// The same of the longest prefix of which running states are kept, with the slot that has them.
    pub fn find_checkpoint(&mut self, salt: u64, tokens: &[u32]) -> (Vec<u32>, usize, Option<u32>) {
        let path = self.path(salt, tokens);
        for (i, &(node, _)) in path.iter().enumerate().rev() {
            let found = self.checkpoints_beside(node, &tokens[i * self.page_tokens..]);
            let Some((Checkpoint { position, slot }, node)) = found.max_by_key(|(kept, _)| kept.position) else {
                continue;
            };
            self.nodes[node].checkpoints_used = self.clock;
            self.nodes[node].used = self.clock;
            let pages = path[..i].iter().map(|&(node, _)| node).chain([node]).map(|node| self.nodes[node].page);
            return (pages.collect(), i * self.page_tokens + position, Some(slot));
        }
        (Vec::new(), 0, None)
    }

    /// Keeps the running states after `tokens`, whose pages are in the tree, as a further user of their slot.
    pub fn keep(&mut self, salt: u64, tokens: &[u32], slot: u32, slots: &mut PagePool) {
        let path = self.path(salt, tokens);
        let found: usize = path.iter().map(|(_, common)| common).sum();
        let Some(&(node, position)) = path.last().filter(|_| found == tokens.len()) else { return };
        let rest = &tokens[tokens.len() - position..];
        let is_known = self.checkpoints_beside(node, rest).any(|(kept, _)| kept.position == position);
        let node = &mut self.nodes[node];
        node.checkpoints_used = self.clock;
        if !is_known {
            slots.share(slot);
            node.checkpoints.push(Checkpoint { position, slot });
            self.changed = true;
        }
    }

    /// The checkpoints of a page, and of those beside it, that follow only tokens with which `rest` begins, and their
    /// pages' nodes: pages that begin with the same tokens and go on otherwise have the same states up to there.
    fn checkpoints_beside(&self, node: usize, rest: &[u32]) -> impl Iterator<Item = (Checkpoint, usize)> {
        let siblings = self.nodes[self.nodes[node].parent].children.values();
        siblings.flat_map(move |&sibling| {
            let Node { ref tokens, ref checkpoints, .. } = self.nodes[sibling];
            let common = tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            checkpoints.iter().filter(move |kept| kept.position <= common).map(move |kept| (*kept, sibling))
        })
    }

    /// The nodes that lead along `tokens`, each with the number of tokens that it has in common with them.
    fn path(&mut self, salt: u64, tokens: &[u32]) -> Vec<(usize, usize)> {
        self.clock += 1;
        let (mut path, mut found) = (Vec::new(), 0);
        let Some(&(mut node)) = self.roots.get(&salt) else { return path };
        while let Some((child, common)) = self.closest(node, &tokens[found..]) {
            self.nodes[child].used = self.clock;
            path.push((child, common));
            found += common;
            if common < self.page_tokens {
                break;
            }
            node = child;
        }
        path
    }

    /// Adds the pages that hold `tokens` with this salt, as a further user of those that are not cached yet.
    pub fn insert(&mut self, salt: u64, tokens: &[u32], pages: &[u32], pool: &mut PagePool) {
        self.clock += 1;
        if tokens.is_empty() || pages.is_empty() {
            return;
        }
        let mut node = self.root(salt);
        for (chunk, &page) in tokens.chunks(self.page_tokens).zip(pages) {
            node = match self.closest(node, chunk) {
                Some((child, common)) if common == chunk.len() => child,
                // The cached page holds the beginning of this page, and is replaced by it.
                Some((child, common)) if common == self.nodes[child].tokens.len() => {
                    self.changed = true;
                    pool.share(page);
                    pool.release(self.nodes[child].page);
                    let old = std::mem::replace(&mut self.nodes[child].tokens, chunk.into());
                    self.nodes[child].page = page;
                    let key = self.nodes[child].tokens.clone();
                    self.nodes[node].children.remove(&old);
                    self.nodes[node].children.insert(key, child);
                    child
                }
                _ => {
                    pool.share(page);
                    self.add(node, chunk.into(), page)
                }
            };
            self.nodes[node].used = self.clock;
        }
    }

    /// Evicts the least recently used page among those that no sequence uses and no page follows. Returns whether there
    /// was one.
    pub fn evict(&mut self, pool: &mut PagePool, slots: &mut PagePool) -> bool {
        let unused = |&id: &usize| {
            let node = &self.nodes[id];
            node.used > 0 && node.children.is_empty() && !pool.is_shared(node.page)
        };
        match (0..self.nodes.len()).filter(unused).min_by_key(|&id| self.nodes[id].used) {
            Some(id) => {
                self.remove(id, pool, slots);
                true
            }
            None => false,
        }
    }

    /// Evicts one of the least recently used checkpoints that no sequence uses. Returns whether there was one.
    pub fn evict_slot(&mut self, slots: &mut PagePool) -> bool {
        let unused = |kept: &Checkpoint| !slots.is_shared(kept.slot);
        let nodes = self.nodes.iter_mut().filter(|node| node.checkpoints.iter().any(unused));
        let Some(node) = nodes.min_by_key(|node| node.checkpoints_used) else { return false };
        let Some(at) = node.checkpoints.iter().position(unused) else { return false };
        slots.release(node.checkpoints.swap_remove(at).slot);
        self.changed = true;
        true
    }

    /// How many checkpoints can be evicted.
    pub fn evictable_slots(&self, slots: &PagePool) -> usize {
        let kept = self.nodes.iter().flat_map(|node| &node.checkpoints);
        kept.filter(|kept| !slots.is_shared(kept.slot)).count()
    }

    /// Removes a page that a sequence wants for itself, if it is in the tree and no page follows it. Returns whether it
    /// was removed.
    pub fn forget(&mut self, page: u32, pool: &mut PagePool, slots: &mut PagePool) -> bool {
        let is_it = |&id: &usize| {
            let node = &self.nodes[id];
            node.used > 0 && node.page == page && node.children.is_empty()
        };
        let found = (0..self.nodes.len()).find(is_it);
        found.inspect(|&id| self.remove(id, pool, slots)).is_some()
    }

    /// How many pages can be evicted, one after the other.
    pub fn evictable(&self, pool: &PagePool) -> usize {
        let mut kept = vec![false; self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.used > 0) {
            let mut at = id;
            while pool.is_shared(node.page) && self.nodes[at].used > 0 && !kept[at] {
                kept[at] = true;
                at = self.nodes[at].parent;
            }
        }
        self.len() - kept.iter().filter(|&&kept| kept).count()
    }

    /// The number of pages that only the tree holds.
    pub fn alone(&self, pool: &PagePool) -> usize {
        self.nodes.iter().filter(|node| node.used > 0 && !pool.is_shared(node.page)).count()
    }

    /// All pages, parents before children, and otherwise the most recently used first.
    pub fn by_use(&self) -> Vec<Kept<'_>> {
        let mut kept = Vec::with_capacity(self.len());
        let of = |node: usize, parent: u32| {
            self.nodes[node].children.values().map(move |&child| (self.nodes[child].used, child, parent))
        };
        let mut next: BinaryHeap<(u64, usize, u32)> = self.roots.values().flat_map(|&root| of(root, 0)).collect();
        while let Some((_, id, parent)) = next.pop() {
            let node = &self.nodes[id];
            let salt = self.nodes[node.parent].salt;
            let Node { ref tokens, page, ref checkpoints, .. } = *node;
            kept.push(Kept { parent, salt, tokens, page, checkpoints });
            next.extend(of(id, kept.len() as u32));
        }
        kept
    }

    /// Adds a page to a tree that was empty before the pages in `before` were restored, in the order of
    /// [`PrefixTree::by_use`]. Returns whether its place in the tree is valid.
    pub fn restore(&mut self, kept: Kept<'_>, before: &mut Vec<usize>) -> bool {
        let Kept { parent, salt, tokens, page, checkpoints } = kept;
        let is_inside = |kept: &Checkpoint| (1..=tokens.len()).contains(&kept.position);
        if !(1..=self.page_tokens).contains(&tokens.len()) || !checkpoints.iter().all(is_inside) {
            return false;
        }
        let parent = match (parent as usize).checked_sub(1) {
            None => self.root(salt),
            Some(parent) => match before.get(parent) {
                Some(&parent) if self.nodes[parent].tokens.len() == self.page_tokens => parent,
                _ => return false,
            },
        };
        let is_new = || {
            let closest = self.closest(parent, tokens);
            closest.is_none_or(|(child, common)| common < tokens.len().min(self.nodes[child].tokens.len()))
        };
        if !is_new() {
            return false;
        }
        // Each is older than the previous one.
        let older = before.len() as u64;
        self.clock = RESTORED;
        let id = self.add(parent, tokens.into(), page);
        self.nodes[id].used = RESTORED - older;
        self.nodes[id].checkpoints_used = RESTORED - older;
        self.nodes[id].checkpoints = checkpoints.to_vec();
        before.push(id);
        true
    }

    /// Removes all pages.
    pub fn clear(&mut self, pool: &mut PagePool, slots: &mut PagePool) {
        self.nodes.iter().filter(|node| node.used > 0).for_each(|node| pool.release(node.page));
        self.nodes.iter().flat_map(|node| &node.checkpoints).for_each(|kept| slots.release(kept.slot));
        *self = PrefixTree::new(self.page_tokens);
    }

    /// The child whose key has the longest common prefix with `tokens`, and its length.
    fn closest(&self, node: usize, tokens: &[u32]) -> Option<(usize, usize)> {
        let chunk = &tokens[..tokens.len().min(self.page_tokens)];
        let children = &self.nodes[node].children;
        // The key with the longest common prefix is adjacent in lexical order.
        let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Included(chunk))).next_back();
        let after = children.range::<[u32], _>((Bound::Excluded(chunk), Bound::Unbounded)).next();
        let common = |key: &[u32]| key.iter().zip(chunk).take_while(|(a, b)| a == b).count();
        let closest = before.into_iter().chain(after).map(|(key, &child)| (child, common(key)));
        closest.max_by_key(|&(_, common)| common).filter(|&(_, common)| common > 0)
    }

    /// The root of this salt.
    fn root(&mut self, salt: u64) -> usize {
        if let Some(&root) = self.roots.get(&salt) {
            return root;
        }
        let root = self.place(Node { salt, ..Node::default() });
        self.roots.insert(salt, root);
        root
    }

    fn add(&mut self, parent: usize, tokens: Arc<[u32]>, page: u32) -> usize {
        self.changed = true;
        let node = Node { tokens: tokens.clone(), page, parent, used: self.clock, ..Node::default() };
        let id = self.place(node);
        self.nodes[parent].children.insert(tokens, id);
        id
    }

    fn place(&mut self, node: Node) -> usize {
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Removes a node without children.
    fn remove(&mut self, id: usize, pool: &mut PagePool, slots: &mut PagePool) {
        self.changed = true;
        let node = std::mem::take(&mut self.nodes[id]);
        pool.release(node.page);
        node.checkpoints.iter().for_each(|kept| slots.release(kept.slot));
        let parent = &mut self.nodes[node.parent];
        parent.children.remove(&node.tokens);
        if parent.used == 0 && parent.children.is_empty() {
            self.roots.remove(&parent.salt);
            self.vacant.push(node.parent);
        }
        self.vacant.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of four tokens, of a sequence that was closed.
    fn insert(tree: &mut PrefixTree, pool: &mut PagePool, tokens: &[u32]) -> Vec<u32> {
        let pages: Vec<u32> = tokens.chunks(4).map(|_| pool.take().unwrap()).collect();
        tree.insert(0, tokens, &pages, pool);
        pages.iter().for_each(|&page| pool.release(page));
        pages
    }

    #[test]
    fn the_longest_prefix_is_found_to_the_token() {
        let (mut tree, mut pool) = (PrefixTree::new(4), PagePool::new(16));
        let first = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
        let second = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 9, 9]);
        assert_eq!(tree.len(), 3, "a page of the same tokens is kept once");
        assert_eq!(tree.find(0, &[1, 2, 3, 4, 5, 6, 7, 8]), (first.clone(), 7));
        assert_eq!(tree.find(0, &[1, 2, 3, 4, 5, 1]), (first.clone(), 5));
        assert_eq!(tree.find(0, &[1, 2, 3, 4, 9, 9, 9]), (vec![first[0], second[1]], 6));
        assert_eq!(tree.find(0, &[1, 2, 4]), (vec![first[0]], 2));
        assert_eq!(tree.find(0, &[2, 2]), (vec![], 0));
        assert_eq!(tree.find(0, &[]), (vec![], 0));
    }

    #[test]
    fn a_page_that_was_begun_is_replaced_by_one_that_has_more() {
        let (mut tree, mut pool) = (PrefixTree::new(4), PagePool::new(4));
        insert(&mut tree, &mut pool, &[1, 2]);
        let longer = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5]);
        assert_eq!((tree.len(), pool.available()), (2, 2));
        assert_eq!(tree.find(0, &[1, 2, 3, 4, 5]), (longer.clone(), 5));
        insert(&mut tree, &mut pool, &[1]);
        assert_eq!((tree.find(0, &[1, 2, 3]), pool.available()), ((vec![longer[0]], 3), 2));
    }

    #[test]
    fn what_is_kept_is_restored_in_order_and_nothing_else() {
        let mut slots = PagePool::new(0);
        let (mut tree, mut pool) = (PrefixTree::new(4), PagePool::new(16));
        insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
        insert(&mut tree, &mut pool, &[1, 2, 3, 4, 9]);
        insert(&mut tree, &mut pool, &[8]);
        tree.find(0, &[1, 2, 3, 4, 5, 6]);
        let kept = tree.by_use();
        let order: Vec<_> = kept.iter().map(|kept| (kept.parent, kept.tokens)).collect();
        assert_eq!(order, [(0, &[1, 2, 3, 4][..]), (1, &[5, 6, 7]), (0, &[8]), (1, &[9])]);
        let mut again = PrefixTree::new(4);
        let mut before = Vec::new();
        assert!(kept.iter().all(|&kept| again.restore(kept, &mut before)));
        assert_eq!(again.by_use(), kept);
        for (parent, tokens) in
            [(0, &[1, 2][..]), (0, &[8, 8]), (1, &[9]), (2, &[1]), (5, &[1]), (0, &[]), (0, &[7; 5])]
        {
            assert!(
                !again.restore(Kept { parent, salt: 0, tokens, page: 0, checkpoints: &[] }, &mut before.clone()),
                "{tokens:?} after {parent}"
            );
        }
        assert_eq!(again.by_use(), kept);
        assert_eq!(again.find(0, &[1, 2, 3, 4, 9, 9]).1, 5);
        assert!(
            again.evict(&mut pool, &mut slots) && again.find(0, &[8]).1 == 0,
            "the least recently used of all but the one found"
        );
        again.clear(&mut pool, &mut slots);
        assert_eq!((again.len(), pool.available()), (0, 16));
    }

    #[test]
    fn the_least_recently_used_leaf_goes_first_and_none_that_is_in_use() {
        let mut slots = PagePool::new(0);
        let (mut tree, mut pool) = (PrefixTree::new(4), PagePool::new(4));
        let old = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5]);
        insert(&mut tree, &mut pool, &[7]);
        insert(&mut tree, &mut pool, &[8]);
        tree.find(0, &[7]);
        pool.share(old[1]);
        assert_eq!((tree.evictable(&pool), tree.alone(&pool)), (2, 3));
        assert!(tree.evict(&mut pool, &mut slots) && tree.find(0, &[8]).1 == 0 && tree.find(0, &[7]).1 == 1);
        assert!(tree.evict(&mut pool, &mut slots) && !tree.evict(&mut pool, &mut slots));
        pool.release(old[1]);
        assert_eq!(tree.evictable(&pool), 2);
        assert!(tree.evict(&mut pool, &mut slots) && tree.find(0, &[1, 2, 3, 4, 5]).1 == 4);
        assert!(tree.forget(old[0], &mut pool, &mut slots) && !tree.forget(old[0], &mut pool, &mut slots));
        assert_eq!((tree.len(), pool.available()), (0, 4));
    }

    #[test]
    fn nothing_is_found_with_another_salt() {
        let mut slots = PagePool::new(0);
        let (mut tree, mut pool) = (PrefixTree::new(4), PagePool::new(8));
        let tokens = [1, 2, 3, 4, 5];
        let mut inserted = |salt: u64| {
            let pages = [pool.take().unwrap(), pool.take().unwrap()];
            tree.insert(salt, &tokens, &pages, &mut pool);
            pages.iter().for_each(|&page| pool.release(page));
            pages.to_vec()
        };
        let (of_7, of_9) = (inserted(7), inserted(9));
        assert_eq!((tree.find(7, &tokens), tree.find(9, &tokens)), ((of_7, 5), (of_9, 5)));
        assert_eq!((tree.find(0, &tokens), tree.find(8, &tokens), tree.len()), ((vec![], 0), (vec![], 0), 4));
        let kept = tree.by_use();
        let (mut again, mut before) = (PrefixTree::new(4), Vec::new());
        assert!(kept.iter().all(|&kept| again.restore(kept, &mut before)));
        assert_eq!(again.by_use(), kept);
        assert_eq!((again.find(7, &tokens).1, again.find(8, &tokens).1), (5, 0));
        while tree.evict(&mut pool, &mut slots) {}
        assert!(tree.roots.is_empty() && pool.available() == 8, "salts that nothing is kept of are forgotten");
    }

    #[test]
    fn a_prefix_with_states_is_found_up_to_its_last_checkpoint() {
        let (mut tree, mut pool, mut slots) = (PrefixTree::new(4), PagePool::new(16), PagePool::new(4));
        let pages = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(tree.find_checkpoint(0, &[1, 2, 3, 4, 5]), (vec![], 0, None));
        for length in [3, 6, 9] {
            let slot = slots.take().unwrap();
            tree.keep(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..length], slot, &mut slots);
            slots.release(slot);
        }
        assert_eq!((slots.available(), tree.evictable_slots(&slots)), (2, 2), "of tokens without pages none is kept");
        assert_eq!(tree.find_checkpoint(0, &[1, 2, 3, 4, 5, 6, 7]), (pages.clone(), 6, Some(1)));
        assert_eq!(tree.find_checkpoint(0, &[1, 2, 3, 4, 5, 9]), (pages[..1].to_vec(), 3, Some(0)));
        assert_eq!(tree.find_checkpoint(0, &[1, 2, 9]), (vec![], 0, None));
        let other = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 8, 8]);
        assert_eq!(
            tree.find_checkpoint(0, &[1, 2, 3, 4, 5, 6, 8]),
            (pages.clone(), 6, Some(1)),
            "beside the page found"
        );
        assert!(tree.forget(other[1], &mut pool, &mut slots));
        let kept: Vec<_> = tree.by_use().iter().map(|kept| kept.checkpoints.to_vec()).collect();
        assert_eq!(kept, [vec![Checkpoint { position: 3, slot: 0 }], vec![Checkpoint { position: 2, slot: 1 }]]);
        slots.share(0);
        assert!(tree.evict_slot(&mut slots) && !tree.evict_slot(&mut slots), "one is in use");
        assert_eq!(tree.find_checkpoint(0, &[1, 2, 3, 4, 5, 6, 7]).1, 3);
        slots.release(0);
        while tree.evict(&mut pool, &mut slots) {}
        assert_eq!((slots.available(), pool.available()), (4, 16), "checkpoints go with their page");
    }
}
