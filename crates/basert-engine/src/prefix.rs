//! The prefix cache: pages of the KV cache that outlive their sequences, found by their tokens.
//!
//! A node of the tree has the pages of one stretch of tokens, one of each page group; the path to it spells all tokens
//! before it and its own, so pages are found only by exactly the tokens from which they were computed. If tokens diverge
//! in the middle of a page, the page is valid up to there: a sequence that continues from it writes to a copy.
//!
//! A node always has a page of the first group. Those of groups with a window may be gone: then a prefix can be taken up
//! only where all pages of the window before are there. Which of them are worth most is known: those before the ends of
//! texts, before where texts part, and before where one was taken up.
//!
//! There is a root for each salt: pages below it are only found with the same salt.

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use crate::engine::Checkpoint;
use crate::pages::{Group, NONE, PagePool, reusable};

/// The time at which pages are restored: there are not as many pages.
const RESTORED: u64 = 1 << 32;

/// A tree of pages, each keyed by its tokens. No key of a node is a prefix of another.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    page_tokens: usize,
    nodes: Vec<Node>,
    /// Roots by salt: nodes without pages, each with at least one child.
    roots: BTreeMap<u64, usize>,
    /// Free indices of removed nodes.
    vacant: Vec<usize>,
    clock: u64,
    /// Whether pages were added or removed since the last save.
    pub changed: bool,
}

/// A prefix that was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its page tables, one for each group, without the pages that nothing after it sees. The last page may hold more
    /// tokens.
    pub tables: Vec<Vec<u32>>,
    /// Its length.
    pub tokens: usize,
    /// The slot with the running states after it, if there have to be any.
    pub slot: Option<u32>,
    /// The nodes along it.
    nodes: Vec<usize>,
}

/// A node of the tree, in a list that also has its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept<'a> {
    /// The number of the node before it, counted from 1; 0 for the first one of a prefix.
    pub parent: u32,
    /// The salt, for the first node of a prefix.
    pub salt: u64,
    pub tokens: &'a [u32],
    /// Its page of each group, or [`NONE`].
    pub pages: &'a [u32],
    /// Whether its pages of groups with a window are worth more than others.
    pub is_wanted: bool,
    /// Their positions count from the beginning of the page.
    pub checkpoints: &'a [Checkpoint],
}

#[derive(Debug, Default)]
struct Node {
    tokens: Arc<[u32]>,
    /// Its page of each group, or [`NONE`].
    pages: Vec<u32>,
    parent: usize,
    children: BTreeMap<Arc<[u32]>, usize>,
    /// Running states after some of its tokens, by position in the page, and when they were last used.
    checkpoints: Vec<Checkpoint>,
    checkpoints_used: u64,
    /// Whether its pages of groups with a window are in one that is worth keeping, and when they last were.
    window_used: (bool, u64),
    /// When it was last used; only for nodes with pages.
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

    /// The number of nodes with pages.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len() - self.roots.len()
    }

    /// The longest cached prefix of `tokens` with this salt that can be taken up.
    pub fn find(&mut self, salt: u64, tokens: &[u32], groups: &[Group]) -> Found {
        let path = self.path(salt, tokens);
        let nodes: Vec<usize> = path.iter().map(|&(node, _)| node).collect();
        let length = path.iter().map(|(_, common)| common).sum();
        let length = reusable(groups, self.page_tokens, length, |group, i| self.nodes[nodes[i]].pages[group] != NONE);
        self.found(nodes, length, None, groups)
    }

    /// The same of the longest prefix of which running states are kept.
    pub fn find_checkpoint(&mut self, salt: u64, tokens: &[u32], groups: &[Group]) -> Found {
        let path = self.path(salt, tokens);
        for (i, &(node, _)) in path.iter().enumerate().rev() {
            let mut found: Vec<_> = self.checkpoints_beside(node, &tokens[i * self.page_tokens..]).collect();
            found.sort_by_key(|(kept, _)| kept.position);
            for (Checkpoint { position, slot }, node) in found.into_iter().rev() {
                let nodes: Vec<usize> = path[..i].iter().map(|&(node, _)| node).chain([node]).collect();
                let length = i * self.page_tokens + position;
                let has = |group: usize, i: usize| self.nodes[nodes[i]].pages[group] != NONE;
                if reusable(groups, self.page_tokens, length, has) == length {
                    self.nodes[node].checkpoints_used = self.clock;
                    self.nodes[node].used = self.clock;
                    return self.found(nodes, length, Some(slot), groups);
                }
            }
        }
        Found::default()
    }

    /// The prefix of so many tokens along these nodes.
    fn found(&self, mut nodes: Vec<usize>, tokens: usize, slot: Option<u32>, groups: &[Group]) -> Found {
        nodes.truncate(tokens.div_ceil(self.page_tokens));
        let table = |(number, group): (usize, &Group)| {
            let needed = group.needed(tokens, self.page_tokens);
            let page =
                |(i, &node): (usize, &usize)| if needed.contains(&i) { self.nodes[node].pages[number] } else { NONE };
            nodes.iter().enumerate().map(page).collect()
        };
        Found { tables: groups.iter().enumerate().map(table).collect(), tokens, slot, nodes }
    }

    /// Says that a prefix was taken up, and may be again.
    pub fn taken_up(&mut self, found: &Found, groups: &[Group]) {
        self.want(&found.nodes, found.tokens, groups);
    }

    /// Says that the windows before `position`, which the nodes lead to, are worth keeping.
    fn want(&mut self, nodes: &[usize], position: usize, groups: &[Group]) {
        let windows = groups.iter().skip(1).map(|group| group.needed(position, self.page_tokens).start);
        let first = windows.min().unwrap_or(nodes.len());
        for &node in nodes.iter().skip(first) {
            self.nodes[node].window_used = (true, self.clock);
        }
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

    /// Adds the pages that hold `tokens` with this salt, as a further user of those that are not cached yet. `ends` says
    /// whether the text ends there, so that another one may go on. Returns the nodes along the tokens.
    pub fn insert(
        &mut self,
        salt: u64,
        tokens: &[u32],
        tables: &[Vec<u32>],
        ends: bool,
        groups: &mut [Group],
    ) -> Vec<usize> {
        self.clock += 1;
        let mut path = Vec::new();
        if tokens.is_empty() || tables.is_empty() {
            return path;
        }
        let mut node = self.root(salt);
        for (i, chunk) in tokens.chunks(self.page_tokens).enumerate() {
            let own = || tables.iter().map(|table| table[i]).collect::<Vec<u32>>();
            node = match self.closest(node, chunk) {
                Some((child, common)) if common == chunk.len() => {
                    if common == self.nodes[child].tokens.len() {
                        self.fill(child, own(), groups);
                    }
                    child
                }
                // The cached page holds the beginning of this page, and is replaced by it.
                Some((child, common)) if common == self.nodes[child].tokens.len() => {
                    self.changed = true;
                    let pages = share(own(), groups);
                    release(&std::mem::replace(&mut self.nodes[child].pages, pages), groups);
                    let old = std::mem::replace(&mut self.nodes[child].tokens, chunk.into());
                    let key = self.nodes[child].tokens.clone();
                    self.nodes[node].children.remove(&old);
                    self.nodes[node].children.insert(key, child);
                    child
                }
                closest => {
                    if !self.nodes[node].children.is_empty() {
                        // Where two texts part, a third may.
                        let parting = i * self.page_tokens + closest.map_or(0, |(_, common)| common);
                        self.want(&path, parting, groups);
                    }
                    self.add(node, chunk.into(), share(own(), groups))
                }
            };
            self.nodes[node].used = self.clock;
            path.push(node);
        }
        if ends {
            // Another text may also go on a little before.
            self.want(&path, tokens.len().saturating_sub(self.page_tokens), groups);
        }
        path
    }

    /// Adds a further user to those pages that a node lacks.
    fn fill(&mut self, node: usize, pages: Vec<u32>, groups: &mut [Group]) {
        let Node { pages: known, window_used, .. } = &mut self.nodes[node];
        for ((known, page), group) in known.iter_mut().zip(pages).zip(groups) {
            if *known == NONE && page != NONE {
                group.share(page);
                *known = page;
                self.changed = true;
                window_used.1 = self.clock;
            }
        }
    }

    /// The pages of a node.
    pub fn pages(&self, node: usize) -> &[u32] {
        &self.nodes[node].pages
    }

    /// Evicts a page of a group, and what cannot do without it. Returns whether there was one that no sequence uses: of
    /// the first group the least recently used that no page follows; of others, first those that were in no window that
    /// is worth keeping.
    pub fn evict(&mut self, group: usize, groups: &mut [Group], slots: &mut PagePool) -> bool {
        if group > 0 {
            let found = self.unused(group, groups).min_by_key(|&id| self.nodes[id].window_used);
            return found.inspect(|&id| self.drop_page(id, group, groups)).is_some();
        }
        let last = self.unused(group, groups).filter(|&id| self.nodes[id].children.is_empty());
        let found = last.min_by_key(|&id| self.nodes[id].used);
        found.inspect(|&id| self.remove(id, groups, slots)).is_some()
    }

    /// Evicts a page that is worth least: one of a window that is not worth keeping, or else the least recently used one of
    /// the first group. Returns whether there was one that no sequence uses.
    pub fn evict_any(&mut self, groups: &mut [Group], slots: &mut PagePool) -> bool {
        for group in 1..groups.len() {
            let unwanted = self.unused(group, groups).filter(|&id| !self.nodes[id].window_used.0);
            if let Some(id) = unwanted.min_by_key(|&id| self.nodes[id].window_used) {
                self.drop_page(id, group, groups);
                return true;
            }
        }
        (0..groups.len()).any(|group| self.evict(group, groups, slots))
    }

    /// The nodes with a page of a group that no sequence uses.
    fn unused(&self, group: usize, groups: &[Group]) -> impl Iterator<Item = usize> {
        let pool = &groups[group].pool;
        let is_unused = move |&id: &usize| {
            let node = &self.nodes[id];
            node.used > 0 && node.pages[group] != NONE && !pool.is_shared(node.pages[group])
        };
        (0..self.nodes.len()).filter(is_unused)
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

    /// Removes a page of a group that a sequence wants for itself, if it is in the tree and nothing there depends on it.
    /// Returns whether it was removed.
    pub fn forget(&mut self, group: usize, page: u32, groups: &mut [Group], slots: &mut PagePool) -> bool {
        let is_it = |&id: &usize| {
            let node = &self.nodes[id];
            node.used > 0 && node.pages[group] == page && (group > 0 || node.children.is_empty())
        };
        let found = (0..self.nodes.len()).find(is_it);
        let Some(id) = found else { return false };
        if group > 0 {
            self.drop_page(id, group, groups);
        } else {
            self.remove(id, groups, slots);
        }
        true
    }

    /// How many pages of a group can be evicted, one after the other.
    pub fn evictable(&self, group: usize, groups: &[Group]) -> usize {
        if group > 0 {
            return self.alone(group, groups);
        }
        let pool = &groups[group].pool;
        let mut kept = vec![false; self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.used > 0) {
            let mut at = id;
            while pool.is_shared(node.pages[group]) && self.nodes[at].used > 0 && !kept[at] {
                kept[at] = true;
                at = self.nodes[at].parent;
            }
        }
        self.len() - kept.iter().filter(|&&kept| kept).count()
    }

    /// The number of pages of a group that only the tree holds.
    pub fn alone(&self, group: usize, groups: &[Group]) -> usize {
        self.unused(group, groups).count()
    }

    /// All nodes, parents before children, and otherwise the most recently used first.
    pub fn by_use(&self) -> Vec<Kept<'_>> {
        let mut kept = Vec::with_capacity(self.len());
        let of = |node: usize, parent: u32| {
            self.nodes[node].children.values().map(move |&child| (self.nodes[child].used, child, parent))
        };
        let mut next: BinaryHeap<(u64, usize, u32)> = self.roots.values().flat_map(|&root| of(root, 0)).collect();
        while let Some((_, id, parent)) = next.pop() {
            let node = &self.nodes[id];
            let salt = self.nodes[node.parent].salt;
            let Node { ref tokens, ref pages, window_used: (is_wanted, _), ref checkpoints, .. } = *node;
            kept.push(Kept { parent, salt, tokens, pages, is_wanted, checkpoints });
            next.extend(of(id, kept.len() as u32));
        }
        kept
    }

    /// Adds a node to a tree that was empty before those in `before` were restored, in the order of
    /// [`PrefixTree::by_use`]. Returns whether its place in the tree is valid.
    pub fn restore(&mut self, kept: Kept<'_>, before: &mut Vec<usize>) -> bool {
        let Kept { parent, salt, tokens, pages, is_wanted, checkpoints } = kept;
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
        let id = self.add(parent, tokens.into(), pages.to_vec());
        let used = RESTORED - older;
        let node = &mut self.nodes[id];
        (node.used, node.checkpoints_used, node.window_used) = (used, used, (is_wanted, used));
        node.checkpoints = checkpoints.to_vec();
        before.push(id);
        true
    }

    /// Removes all pages.
    pub fn clear(&mut self, groups: &mut [Group], slots: &mut PagePool) {
        self.nodes.iter().for_each(|node| release(&node.pages, groups));
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

    fn add(&mut self, parent: usize, tokens: Arc<[u32]>, pages: Vec<u32>) -> usize {
        self.changed = true;
        let (used, window_used) = (self.clock, (false, self.clock));
        let node = Node { tokens: tokens.clone(), pages, parent, used, window_used, ..Node::default() };
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

    /// Removes a page of a group that not every node has.
    fn drop_page(&mut self, id: usize, group: usize, groups: &mut [Group]) {
        self.changed = true;
        groups[group].release(std::mem::replace(&mut self.nodes[id].pages[group], NONE));
    }

    /// Removes a node without children.
    fn remove(&mut self, id: usize, groups: &mut [Group], slots: &mut PagePool) {
        self.changed = true;
        let node = std::mem::take(&mut self.nodes[id]);
        release(&node.pages, groups);
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

/// Adds a further user to these pages, one of each group.
fn share(pages: Vec<u32>, groups: &mut [Group]) -> Vec<u32> {
    pages.iter().zip(groups).for_each(|(&page, group)| group.share(page));
    pages
}

/// Removes a user of these pages, one of each group.
fn release(pages: &[u32], groups: &mut [Group]) {
    pages.iter().zip(groups).for_each(|(&page, group)| group.release(page));
}

#[cfg(test)]
mod tests;
