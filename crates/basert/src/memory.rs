//! How much of the KV cache there is memory for, and advice for a model that is too large for a device.

use basert_plan::{DeviceError, Facts, Fit, PageGroup, Plan, largest};

use crate::Options;

/// Room for sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// Pages of the KV cache, of each page group.
    pub pages: Vec<usize>,
    /// Slots for running states; none for a model without.
    pub slots: usize,
}

impl Room {
    /// As much as is wished, or as there is memory for, but at least what one sequence of full length needs. Running states
    /// take up to half of the memory.
    ///
    /// # Errors
    /// What is lacking, if the limit of the memory is less than that.
    pub fn of(plan: &Plan, options: &Options, context: usize, facts: &Facts) -> Result<Room, String> {
        let slot_bytes = plan.graph.slot_bytes();
        let sessions = options.sessions.max(1);
        let one = context.div_ceil(facts.page_tokens).max(1);
        let least_slots = if slot_bytes > 0 { LEAST_SLOTS } else { 0 };
        let most_slots =
            if slot_bytes > 0 { sessions.saturating_mul(SESSION_SLOTS).saturating_add(CHECKPOINTS) } else { 0 };
        let wanted = one.saturating_mul(sessions);
        // What pages of so many tokens in all come with.
        let pages = |all: usize| pages(plan, (context, all), facts.page_tokens);
        let bytes_of = |all: usize| plan.cache_bytes(&pages(all), options.kv, facts.page_tokens);
        let within = |bytes: usize| {
            let slots = (bytes / 2).checked_div(slot_bytes).unwrap_or(0).min(most_slots).max(least_slots);
            let left = bytes.saturating_sub(slots.saturating_mul(slot_bytes));
            (largest(wanted, |all| bytes_of(all) <= left), slots)
        };
        let Some(bytes) = options.cache_bytes else {
            let free = options.cache_share.zip(facts.free_memory);
            let (all, slots) = free.map_or((wanted, most_slots), |(share, free)| {
                let left = free.saturating_sub(plan.weight_bytes() + plan.arena_bytes);
                within((left as f64 * share) as usize)
            });
            return Ok(Room { pages: pages(all.max(one)), slots });
        };
        let (all, slots) = within(bytes);
        if all < one {
            let needed = bytes_of(one).saturating_add(least_slots.saturating_mul(slot_bytes));
            return Err(format!(
                "the KV cache of {context} tokens takes {needed} bytes, more than the {bytes} available for it; \
                 a smaller --max-context or --kv-bits would do"
            ));
        }
        Ok(Room { pages: pages(all), slots })
    }
}

/// How many pages of each group go with `all` pages of layers that see everything: as many, or what windows need. Each
/// sequence of full length has its window and the tokens of a step. There are some windows more, for more sequences that are
/// short, or for the prefix cache, to go on from.
fn pages(plan: &Plan, (context, all): (usize, usize), page_tokens: usize) -> Vec<usize> {
    let sequences = all.div_ceil(context.div_ceil(page_tokens).max(1));
    let groups = plan.page_groups.iter().zip(plan.pages_of(context, page_tokens));
    let of_group = |(group, own): (&PageGroup, usize)| {
        let window = PageGroup::most(group.reach, context, 0, page_tokens);
        all.min(own.saturating_mul(sequences).saturating_add(window.saturating_mul(WINDOWS)))
    };
    groups.map(of_group).collect()
}

/// Slots with which one sequence gets on: its own, one that it shares, and a checkpoint.
const LEAST_SLOTS: usize = 3;
/// Slots of a sequence of full length: its states, and checkpoints at the end of its prompt, a little before, and at the end of
/// its last answer, from which its next turn goes on.
const SESSION_SLOTS: usize = 4;
/// Slots beside those of sequences, for checkpoints.
const CHECKPOINTS: usize = 12;
/// Windows beside those of sequences: as many as checkpoints.
const WINDOWS: usize = CHECKPOINTS;

/// Settings that would fit, for a model for which `sessions` sessions of `context` tokens do not; none for any other
/// error.
pub(crate) fn advice(error: &DeviceError, page_tokens: usize, sessions: usize, context: usize) -> Option<String> {
    let DeviceError::TooLarge { fits, .. } = error else { return None };
    let tokens = |fit: &Fit| fit.pages / sessions * page_tokens;
    let shorter = fits.first().filter(|fit| tokens(fit) > 0).map(|fit| format!("--max-context {}", tokens(fit)));
    // Fewer pages may be enough if the last one is not full.
    let coarser =
        fits.iter().skip(1).find(|fit| tokens(fit) >= context).map(|fit| format!("--kv-bits {}", fit.kv.bits()));
    let smallest = fits.last().filter(|fit| tokens(fit) > 0);
    let both = smallest.map(|fit| format!("--kv-bits {} --max-context {}", fit.kv.bits(), tokens(fit)));
    let ways: Vec<_> = [shorter, coarser].into_iter().flatten().collect();
    Some(match (ways.as_slice(), both) {
        ([], None) => {
            "the model does not fit even without a KV cache: use a smaller model or quantisation, or --device cpu"
                .to_owned()
        }
        ([], Some(both)) => format!("{both} would fit"),
        (ways, _) => format!("{} would fit", ways.join(", or ")),
    })
}

#[cfg(test)]
mod tests {
    use basert_core::KvFormat::{F16, Q4, Q8};
    use basert_files::ModelFile;

    use super::*;
    use crate::{DeviceKind, Model};

    /// Of the tiny model with windows of 8 tokens in six of its seven layers.
    #[test]
    fn windows_take_a_part_of_the_memory() {
        let file = ModelFile::open(basert_testkit::tiny().join("gemma3.gguf")).unwrap();
        let options = Options { sessions: 4, ..Options::default() };
        let plan = Model::plan_of(&file, &options).unwrap();
        let facts = DeviceKind::Cpu.open(Some(1)).unwrap().facts().clone();
        let room = |context, cache_bytes| Room::of(&plan, &Options { cache_bytes, ..options.clone() }, context, &facts);
        // A window and a step of 512 tokens take up to eleven pages, and a window alone three.
        let wanted = vec![2048, 4 * 11 + 12 * 3];
        assert_eq!(room(32768, None), Ok(Room { pages: wanted.clone(), slots: 0 }));
        assert_eq!(
            room(64, None),
            Ok(Room { pages: vec![4; 2], slots: 0 }),
            "no more than of layers that see everything"
        );
        let bytes = |pages: &[usize]| plan.cache_bytes(pages, F16, 64);
        assert_eq!(room(32768, Some(bytes(&wanted))).unwrap().pages, wanted);
        let fewer = room(32768, Some(bytes(&wanted) - 1)).unwrap().pages;
        assert_eq!(fewer, [2047, wanted[1]]);
        let one = vec![512, 11 + 12 * 3];
        assert_eq!(room(32768, Some(bytes(&one))).unwrap().pages, one);
        assert!(room(32768, Some(bytes(&one) - 1)).unwrap_err().contains(&bytes(&one).to_string()));
    }

    fn of(fits: &[(basert_core::KvFormat, usize)]) -> String {
        let fits = fits.iter().map(|&(kv, pages)| Fit { kv, pages }).collect();
        let error = DeviceError::TooLarge { device: "metal".to_owned(), needed: 3, free: 1, fits };
        advice(&error, 64, 2, 1000).unwrap()
    }

    #[test]
    fn what_would_fit_is_said_as_options() {
        assert_eq!(of(&[(F16, 20), (Q8, 32), (Q4, 32)]), "--max-context 640, or --kv-bits 8 would fit");
        assert_eq!(of(&[(F16, 20), (Q8, 30), (Q4, 32)]), "--max-context 640, or --kv-bits 4 would fit");
        assert_eq!(of(&[(F16, 20), (Q8, 24)]), "--max-context 640 would fit");
        assert_eq!(of(&[(F16, 1), (Q8, 2), (Q4, 5)]), "--kv-bits 4 --max-context 128 would fit");
        assert!(of(&[(F16, 0), (Q8, 0), (Q4, 1)]).contains("smaller model"));
        assert_eq!(advice(&DeviceError::Step(String::new()), 64, 1, 1), None);
    }
}
