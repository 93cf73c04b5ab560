use basert_plan::Reach;

use super::*;

/// Pages of layers that see everything.
fn groups(pages: usize) -> Vec<Group> {
    vec![Group { reach: Reach::All, pool: PagePool::new(pages), bytes: 1 }]
}

/// Pages of four tokens, of a sequence that was closed.
fn insert(tree: &mut PrefixTree, groups: &mut [Group], tokens: &[u32]) -> Vec<u32> {
    insert_with(tree, groups, 0, tokens)
}

fn insert_with(tree: &mut PrefixTree, groups: &mut [Group], salt: u64, tokens: &[u32]) -> Vec<u32> {
    let table = |group: &mut Group| tokens.chunks(4).map(|_| group.pool.take().unwrap()).collect();
    let tables: Vec<Vec<u32>> = groups.iter_mut().map(table).collect();
    tree.insert(salt, tokens, &tables, true, groups);
    for (table, group) in tables.iter().zip(groups) {
        table.iter().for_each(|&page| group.release(page));
    }
    tables[0].clone()
}

/// The pages of the first group of a prefix, and its length.
fn find(tree: &mut PrefixTree, groups: &[Group], tokens: &[u32]) -> (Vec<u32>, usize) {
    find_with(tree, groups, 0, tokens)
}

fn find_with(tree: &mut PrefixTree, groups: &[Group], salt: u64, tokens: &[u32]) -> (Vec<u32>, usize) {
    let Found { mut tables, tokens, .. } = tree.find(salt, tokens, groups);
    (tables.swap_remove(0), tokens)
}

fn find_checkpoint(tree: &mut PrefixTree, groups: &[Group], tokens: &[u32]) -> (Vec<u32>, usize, Option<u32>) {
    let Found { mut tables, tokens, slot, .. } = tree.find_checkpoint(0, tokens, groups);
    (tables.pop().unwrap_or_default(), tokens, slot)
}

#[test]
fn the_longest_prefix_is_found_to_the_token() {
    let (mut tree, mut pool) = (PrefixTree::new(4), groups(16));
    let first = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
    let second = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 9, 9]);
    assert_eq!(tree.len(), 3, "a page of the same tokens is kept once");
    assert_eq!(find(&mut tree, &pool, &[1, 2, 3, 4, 5, 6, 7, 8]), (first.clone(), 7));
    assert_eq!(find(&mut tree, &pool, &[1, 2, 3, 4, 5, 1]), (first.clone(), 5));
    assert_eq!(find(&mut tree, &pool, &[1, 2, 3, 4, 9, 9, 9]), (vec![first[0], second[1]], 6));
    assert_eq!(find(&mut tree, &pool, &[1, 2, 4]), (vec![first[0]], 2));
    assert_eq!(find(&mut tree, &pool, &[2, 2]), (vec![], 0));
    assert_eq!(find(&mut tree, &pool, &[]), (vec![], 0));
}

#[test]
fn a_page_that_was_begun_is_replaced_by_one_that_has_more() {
    let (mut tree, mut pool) = (PrefixTree::new(4), groups(4));
    insert(&mut tree, &mut pool, &[1, 2]);
    let longer = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5]);
    assert_eq!((tree.len(), pool[0].pool.available()), (2, 2));
    assert_eq!(find(&mut tree, &pool, &[1, 2, 3, 4, 5]), (longer.clone(), 5));
    insert(&mut tree, &mut pool, &[1]);
    assert_eq!((find(&mut tree, &pool, &[1, 2, 3]), pool[0].pool.available()), ((vec![longer[0]], 3), 2));
}

#[test]
fn what_is_kept_is_restored_in_order_and_nothing_else() {
    let mut slots = PagePool::new(0);
    let (mut tree, mut pool) = (PrefixTree::new(4), groups(16));
    insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
    insert(&mut tree, &mut pool, &[1, 2, 3, 4, 9]);
    insert(&mut tree, &mut pool, &[8]);
    find(&mut tree, &pool, &[1, 2, 3, 4, 5, 6]);
    let kept = tree.by_use();
    let order: Vec<_> = kept.iter().map(|kept| (kept.parent, kept.tokens)).collect();
    assert_eq!(order, [(0, &[1, 2, 3, 4][..]), (1, &[5, 6, 7]), (0, &[8]), (1, &[9])]);
    let mut again = PrefixTree::new(4);
    let mut before = Vec::new();
    assert!(kept.iter().all(|&kept| again.restore(kept, &mut before)));
    assert_eq!(again.by_use(), kept);
    for (parent, tokens) in [(0, &[1, 2][..]), (0, &[8, 8]), (1, &[9]), (2, &[1]), (5, &[1]), (0, &[]), (0, &[7; 5])] {
        assert!(
            !again.restore(
                Kept { parent, salt: 0, tokens, pages: &[0], is_wanted: false, checkpoints: &[] },
                &mut before.clone()
            ),
            "{tokens:?} after {parent}"
        );
    }
    assert_eq!(again.by_use(), kept);
    assert_eq!(find(&mut again, &pool, &[1, 2, 3, 4, 9, 9]).1, 5);
    assert!(
        again.evict(0, &mut pool, &mut slots) && find(&mut again, &pool, &[8]).1 == 0,
        "the least recently used of all but the one found"
    );
    again.clear(&mut pool, &mut slots);
    assert_eq!((again.len(), pool[0].pool.available()), (0, 16));
}

#[test]
fn the_least_recently_used_leaf_goes_first_and_none_that_is_in_use() {
    let mut slots = PagePool::new(0);
    let (mut tree, mut pool) = (PrefixTree::new(4), groups(4));
    let old = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5]);
    insert(&mut tree, &mut pool, &[7]);
    insert(&mut tree, &mut pool, &[8]);
    find(&mut tree, &pool, &[7]);
    pool[0].share(old[1]);
    assert_eq!((tree.evictable(0, &pool), tree.alone(0, &pool)), (2, 3));
    assert!(
        tree.evict(0, &mut pool, &mut slots)
            && find(&mut tree, &pool, &[8]).1 == 0
            && find(&mut tree, &pool, &[7]).1 == 1
    );
    assert!(tree.evict(0, &mut pool, &mut slots) && !tree.evict(0, &mut pool, &mut slots));
    pool[0].release(old[1]);
    assert_eq!(tree.evictable(0, &pool), 2);
    assert!(tree.evict(0, &mut pool, &mut slots) && find(&mut tree, &pool, &[1, 2, 3, 4, 5]).1 == 4);
    assert!(tree.forget(0, old[0], &mut pool, &mut slots) && !tree.forget(0, old[0], &mut pool, &mut slots));
    assert_eq!((tree.len(), pool[0].pool.available()), (0, 4));
}

#[test]
fn nothing_is_found_with_another_salt() {
    let mut slots = PagePool::new(0);
    let (mut tree, mut pool) = (PrefixTree::new(4), groups(8));
    let tokens = [1, 2, 3, 4, 5];
    let mut inserted = |salt: u64| insert_with(&mut tree, &mut pool, salt, &tokens);
    let (of_7, of_9) = (inserted(7), inserted(9));
    assert_eq!(
        (find_with(&mut tree, &pool, 7, &tokens), find_with(&mut tree, &pool, 9, &tokens)),
        ((of_7, 5), (of_9, 5))
    );
    assert_eq!(
        (find(&mut tree, &pool, &tokens), find_with(&mut tree, &pool, 8, &tokens), tree.len()),
        ((vec![], 0), (vec![], 0), 4)
    );
    let kept = tree.by_use();
    let (mut again, mut before) = (PrefixTree::new(4), Vec::new());
    assert!(kept.iter().all(|&kept| again.restore(kept, &mut before)));
    assert_eq!(again.by_use(), kept);
    assert_eq!((find_with(&mut again, &pool, 7, &tokens).1, find_with(&mut again, &pool, 8, &tokens).1), (5, 0));
    while tree.evict(0, &mut pool, &mut slots) {}
    assert!(tree.roots.is_empty() && pool[0].pool.available() == 8, "salts that nothing is kept of are forgotten");
}

/// Layers that see three tokens beside those that see everything.
fn with_windows(pages: [usize; 2]) -> Vec<Group> {
    let group = |reach, pages| Group { reach, pool: PagePool::new(pages), bytes: 1 };
    vec![group(Reach::All, pages[0]), group(Reach::Window(3), pages[1])]
}

#[test]
fn a_prefix_is_taken_up_where_its_windows_are() {
    let (mut tree, mut groups, mut slots) = (PrefixTree::new(4), with_windows([16, 16]), PagePool::new(0));
    let text: Vec<u32> = (1..=14).collect();
    let pages = insert(&mut tree, &mut groups, &text);
    let found = tree.find(0, &text, &groups);
    assert_eq!((found.tables, found.tokens), (vec![pages.clone(), vec![NONE, NONE, NONE, pages[3]]], 14));
    // Those that no end needs go first, the oldest one before others.
    assert!(tree.evict(1, &mut groups, &mut slots));
    assert_eq!((find(&mut tree, &groups, &[1, 2, 3, 9]).1, find(&mut tree, &groups, &text[..7]).1), (0, 7));
    assert!(tree.evict(1, &mut groups, &mut slots));
    assert_eq!((find(&mut tree, &groups, &text[..7]).1, find(&mut tree, &groups, &text[..12]).1), (0, 12));
    assert_eq!((groups[1].pool.available(), groups[0].pool.available()), (14, 12));
    assert_eq!(find(&mut tree, &groups, &text), (pages.clone(), 14), "the end is there still");
    // Who computes it again brings back what is missing.
    insert(&mut tree, &mut groups, &text[..12]);
    assert_eq!((groups[1].pool.available(), find(&mut tree, &groups, &text[..3]).1), (12, 3));
    while tree.evict(1, &mut groups, &mut slots) {}
    assert_eq!((find(&mut tree, &groups, &text), tree.len(), tree.alone(0, &groups)), ((vec![], 0), 4, 4));
    while tree.evict(0, &mut groups, &mut slots) {}
    assert_eq!((groups[0].pool.available(), groups[1].pool.available()), (16, 16));
}

#[test]
fn beyond_a_limit_windows_that_nobody_needs_go_before_ends() {
    let (mut tree, mut groups, mut slots) = (PrefixTree::new(4), with_windows([8, 8]), PagePool::new(0));
    let text: Vec<u32> = (1..=14).collect();
    insert(&mut tree, &mut groups, &text);
    let mut left = |tree: &mut PrefixTree, groups: &mut [Group]| {
        assert!(tree.evict_any(groups, &mut slots));
        (tree.alone(0, groups), tree.alone(1, groups), find(tree, groups, &text).1)
    };
    assert_eq!(left(&mut tree, &mut groups), (4, 3, 14));
    assert_eq!(left(&mut tree, &mut groups), (4, 2, 14));
    assert_eq!(left(&mut tree, &mut groups), (3, 1, 12), "the last page, with its window");
}

/// Where the second text parted from the first, a third one can be taken up, though the rest of the window is gone.
#[test]
fn windows_before_which_texts_part_are_worth_more() {
    let (mut tree, mut groups, mut slots) = (PrefixTree::new(4), with_windows([32, 32]), PagePool::new(0));
    let text: Vec<u32> = (1..=20).collect();
    insert(&mut tree, &mut groups, &text);
    insert(&mut tree, &mut groups, &[&text[..10], &[50, 51, 52]].concat());
    for _ in 0..2 {
        assert!(tree.evict(1, &mut groups, &mut slots));
    }
    assert_eq!(find(&mut tree, &groups, &[&text[..10], &[60, 61]].concat()).1, 10);
    assert_eq!(find(&mut tree, &groups, &[1, 2, 3, 9]).1, 0);
}

#[test]
fn a_prefix_with_states_is_found_up_to_its_last_checkpoint() {
    let (mut tree, mut pool, mut slots) = (PrefixTree::new(4), groups(16), PagePool::new(4));
    let pages = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(find_checkpoint(&mut tree, &pool, &[1, 2, 3, 4, 5]), (vec![], 0, None));
    for length in [3, 6, 9] {
        let slot = slots.take().unwrap();
        tree.keep(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..length], slot, &mut slots);
        slots.release(slot);
    }
    assert_eq!((slots.available(), tree.evictable_slots(&slots)), (2, 2), "of tokens without pages none is kept");
    assert_eq!(find_checkpoint(&mut tree, &pool, &[1, 2, 3, 4, 5, 6, 7]), (pages.clone(), 6, Some(1)));
    assert_eq!(find_checkpoint(&mut tree, &pool, &[1, 2, 3, 4, 5, 9]), (pages[..1].to_vec(), 3, Some(0)));
    assert_eq!(find_checkpoint(&mut tree, &pool, &[1, 2, 9]), (vec![], 0, None));
    let other = insert(&mut tree, &mut pool, &[1, 2, 3, 4, 5, 6, 8, 8]);
    assert_eq!(
        find_checkpoint(&mut tree, &pool, &[1, 2, 3, 4, 5, 6, 8]),
        (pages.clone(), 6, Some(1)),
        "beside the page found"
    );
    assert!(tree.forget(0, other[1], &mut pool, &mut slots));
    let kept: Vec<_> = tree.by_use().iter().map(|kept| kept.checkpoints.to_vec()).collect();
    assert_eq!(kept, [vec![Checkpoint { position: 3, slot: 0 }], vec![Checkpoint { position: 2, slot: 1 }]]);
    slots.share(0);
    assert!(tree.evict_slot(&mut slots) && !tree.evict_slot(&mut slots), "one is in use");
    assert_eq!(find_checkpoint(&mut tree, &pool, &[1, 2, 3, 4, 5, 6, 7]).1, 3);
    slots.release(0);
    while tree.evict(0, &mut pool, &mut slots) {}
    assert_eq!((slots.available(), pool[0].pool.available()), (4, 16), "checkpoints go with their page");
}
