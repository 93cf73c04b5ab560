//! Views of a mapped file: the buffers that a device needs to use parts of it in place.

use std::ops::Range;

/// Views of one mapping, and the places of parts in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Views {
    /// Whole pages, counted in bytes from the start of the mapping. Two of them may overlap.
    pub views: Vec<Range<usize>>,
    /// For each part the view that contains it, and its offset there; `None` for parts larger than the largest view.
    pub places: Vec<Option<(usize, usize)>>,
}

impl Views {
    /// Views of at most `limit` bytes, in pages of `page` bytes, that cover all of these parts and no page without one.
    pub fn new(parts: &[Range<usize>], page: usize, limit: usize) -> Views {
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|&i| (parts[i].start, parts[i].end));
        let (mut views, mut places): (Vec<Range<usize>>, _) = (Vec::new(), vec![None; parts.len()]);
        for i in order {
            let part = &parts[i];
            let pages = part.start / page * page..part.end.next_multiple_of(page);
            if pages.len() > limit {
                continue;
            }
            match views.last_mut() {
                Some(view) if pages.start <= view.end && pages.end.max(view.end) - view.start <= limit => {
                    view.end = view.end.max(pages.end);
                }
                _ => views.push(pages),
            }
            let last = views.len() - 1;
            places[i] = Some((last, part.start - views[last].start));
        }
        Views { views, places }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_share_a_view_and_views_share_pages() {
        let parts = [100..5000, 5000..9000, 9000..12000, 40_000..41_000, 9000..30_000];
        let Views { views, places } = Views::new(&parts, 4096, 12_288);
        assert_eq!(views, [0..12_288, 36_864..45_056]);
        assert_eq!(places, [Some((0, 100)), Some((0, 5000)), Some((0, 9000)), Some((1, 3136)), None]);
        assert_eq!(Views::new(&parts, 4096, 8192).views, [0..8192, 4096..12_288, 36_864..45_056]);
    }

    proptest! {
        #[test]
        fn each_part_lies_wholly_in_its_view(
            parts in prop::collection::vec((0usize..1 << 16, 1usize..1 << 13), 0..40),
            page in (6u32..13).prop_map(|bits| 1usize << bits),
            pages in 1usize..20,
        ) {
            let parts: Vec<_> = parts.into_iter().map(|(start, bytes)| start..start + bytes).collect();
            let limit = page * pages;
            let Views { views, places } = Views::new(&parts, page, limit);
            for view in &views {
                prop_assert!(view.start % page == 0 && view.len() % page == 0 && view.len() <= limit);
                for at in view.clone().step_by(page) {
                    let used = parts.iter().any(|part| part.start < at + page && at < part.end);
                    prop_assert!(used, "the page at {at} has no part");
                }
            }
            for (part, place) in parts.iter().zip(&places) {
                match *place {
                    Some((view, offset)) => {
                        prop_assert_eq!(views[view].start + offset, part.start);
                        prop_assert!(part.end <= views[view].end);
                    }
                    None => prop_assert!(part.end.next_multiple_of(page) - part.start / page * page > limit),
                }
            }
        }
    }
}
