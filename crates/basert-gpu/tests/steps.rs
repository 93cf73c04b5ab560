//! What a GPU is asked for in a step: the exact calls, without an allocation, and no two dispatches at once of which one
//! writes what the other touches.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_gpu::{Binding, Call, Dispatch, Kernel, Recorder, Recording, Signature};
use basert_plan::{DeviceError, Draw, FUSIONS, Fit, Limits, Plan};

use common::{GREEDY, families, load, load_pages, model, one_token, prompt, recurrent};

/// The system's allocator, which counts what each thread asks it for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it is the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: what the caller promises is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(what: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    what();
    ALLOCATIONS.get() - before
}

#[test]
fn a_step_is_one_submission() {
    let recorder = Recorder::new("apple", 20);
    let mut baked = load(&recorder, &model("qwen3"), KvFormat::F16).unwrap();
    let loading = recorder.recorded().calls.clone();
    assert!(matches!(loading[..3], [Call::Compile(_), Call::Map(_), Call::Allocate(_)]), "{loading:?}");
    assert!(loading.iter().all(|call| !matches!(call, Call::Submit(_) | Call::Record(_))));

    let calls = |what: &mut dyn FnMut()| {
        recorder.recorded().calls.clear();
        what();
        recorder.recorded().calls.clone()
    };
    let step = one_token(5);
    let [first, next] = [Recording(0), Recording(1)];
    let found = calls(&mut || baked.submit(&step).unwrap());
    assert!(
        matches!(found[..], [Call::Write(_), Call::Record(_), Call::Submit(r), Call::Fetch(4)] if r == first),
        "{found:?}"
    );
    let found = calls(&mut || baked.chain().unwrap());
    assert!(matches!(found[..], [Call::Record(_), Call::Submit(r), Call::Fetch(4)] if r == next), "{found:?}");
    for _ in 2..8 {
        assert_eq!(calls(&mut || baked.chain().unwrap()), [Call::Submit(next), Call::Fetch(4)]);
    }
    assert!(matches!(baked.chain(), Err(DeviceError::Step(_))), "a ninth step");
    for _ in 0..8 {
        assert_eq!(calls(&mut || baked.wait().unwrap()), [Call::Collect(4)]);
    }
    let found = calls(&mut || baked.submit(&step).unwrap());
    assert!(matches!(found[..], [Call::Write(_), Call::Submit(r), Call::Fetch(4)] if r == first), "{found:?}");
}

/// What is timed is the list that is submitted otherwise, and every op of the plan but what selects is in it.
#[test]
fn a_profile_times_the_dispatches_of_the_step() {
    let recorder = Recorder::new("apple", 20);
    let model = model("qwen3");
    let mut baked = load(&recorder, &model, KvFormat::F16).unwrap();
    let step = one_token(5);
    baked.submit(&step).unwrap();
    baked.wait().unwrap();
    recorder.recorded().calls.clear();
    let spans = baked.profile(&step).unwrap();
    let recorded = recorder.recorded();
    assert!(matches!(recorded.calls[..], [Call::Write(_), Call::Time(Recording(0))]), "{:?}", recorded.calls);
    let functions = recorded.lists[0].iter().map(|dispatch| recorded.kernels[dispatch.pipeline.0 as usize].function);
    assert!(functions.eq(spans.iter().map(|span| span.kernel.as_str())));
    for (i, node) in model.1.nodes.iter().enumerate() {
        let selects = node.name() == "select";
        assert_eq!(spans.iter().any(|span| span.ops.contains(&i)), !selects, "{}", node.name());
    }
}

#[test]
fn a_mask_is_brought_while_the_step_runs_and_drawing_is_a_submission_of_its_own() {
    let recorder = Recorder::new("apple", 20);
    let model = model("qwen3");
    let mut baked = load(&recorder, &model, KvFormat::F16).unwrap();
    let mask_bytes = model.1.graph.vocabulary.div_ceil(32) * 4;
    let mut step = one_token(5);
    step.draws.clear();
    for round in 0..2 {
        recorder.recorded().calls.clear();
        baked.submit(&step).unwrap();
        baked.set_mask(0, &[6]).unwrap();
        baked.draw(&[Draw { mask: Some(0), ..GREEDY }]).unwrap();
        baked.wait().unwrap();
        let mut calls = recorder.recorded().calls.clone();
        let records = calls.iter().filter(|call| matches!(call, Call::Record(_))).count();
        assert_eq!(records, if round == 0 { 2 } else { 0 });
        calls.retain(|call| !matches!(call, Call::Record(_)));
        let [Call::Write(_), Call::Submit(_), after @ ..] = &calls[..] else { panic!("{calls:?}") };
        let draw = [Call::Write(48), Call::Submit(Recording(1)), Call::Fetch(4), Call::Collect(4)];
        assert_eq!((after[0], &after[1..]), (Call::Write(mask_bytes), &draw[..]));
    }
    let refused = |result: Result<(), DeviceError>, what: &str| {
        let Err(DeviceError::Step(said)) = result else { panic!("{result:?}") };
        assert!(said.contains(what), "{said}");
    };
    refused(baked.draw(&[GREEDY]), "no logits");
    refused(baked.chain(), "no tokens were drawn");
    baked.submit(&step).unwrap();
    refused(baked.draw(&[GREEDY; 2]), "2 draws for 1 rows");
    refused(baked.draw(&[Draw { mask: Some(4), ..GREEDY }]), "mask 4, of 4");
    refused(baked.set_mask(4, &[1]), "no mask 4");
    refused(baked.set_mask(0, &[0; 1000]), "allows no token");
    refused(baked.set_mask(0, &[]), "allows no token");
}

#[test]
fn a_step_of_a_known_shape_allocates_nothing() {
    let recorder = Recorder::new("apple", 20);
    let mut baked = load(&recorder, &model("qwen3"), KvFormat::F16).unwrap();
    let (token, many) = (one_token(5), prompt(40));
    let round = |baked: &mut Box<dyn basert_plan::Baked>| {
        baked.submit(&token).unwrap();
        baked.chain().unwrap();
        baked.wait().unwrap();
        baked.wait().unwrap();
        baked.submit(&many).unwrap();
        baked.set_mask(0, &[6]).unwrap();
        baked.draw(&[Draw { mask: Some(0), ..GREEDY }]).unwrap();
        baked.wait().unwrap();
    };
    assert!(allocations(|| round(&mut baked)) > 0, "the first time, lists are recorded");
    // What the recorder itself remembers has room by now.
    recorder.recorded().calls.clear();
    recorder.recorded().submitted.clear();
    assert_eq!(allocations(|| round(&mut baked)), 0);
}

/// The macro's value as a number.
fn number(kernel: &Kernel, name: &str) -> usize {
    let value = kernel.macros.iter().find(|(known, _)| *known == name);
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// What a dispatch touches: a buffer, which part of it, and whether it writes there.
#[derive(Debug)]
struct Touch {
    buffer: u32,
    part: Range<usize>,
    columns: Range<usize>,
    write: bool,
}

/// The buffers in the order in which a device takes them: weights, the cache, the arena, and the others.
const CACHE: u32 = 1;
const ARENA: u32 = 2;

impl Touch {
    fn of(plan: &Plan, kernel: &Kernel, Binding { buffer, offset }: Binding, write: bool) -> Touch {
        let buffer = buffer.0;
        let (part, columns) = match buffer {
            // Layers have caches of their own, told apart by where they begin.
            CACHE => (offset..offset + 1, 0..usize::MAX),
            ARENA => {
                // A product writes the columns of its matrix; everything else all columns of a value.
                let starts = plan.places.iter().filter(|place| place.stride > 0 && place.offset <= offset);
                let place = starts.max_by_key(|place| place.offset).unwrap();
                let column = (offset - place.offset) / 4;
                let paired = kernel.macros.iter().any(|(_, value)| value == "EPILOGUE_GATE");
                let width = number(kernel, "ROWS_OF_W") / if paired { 2 } else { 1 };
                let columns = if write && width > 0 && kernel.function != "embed" {
                    column..column + width
                } else {
                    0..usize::MAX
                };
                (place.offset..place.offset + 1, columns)
            }
            _ => (0..1, 0..usize::MAX),
        };
        Touch { buffer, part, columns, write }
    }

    fn conflicts(&self, other: &Touch) -> bool {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        self.buffer == other.buffer
            && overlap(&self.part, &other.part)
            && overlap(&self.columns, &other.columns)
            && (self.write || other.write)
    }
}

fn touches(plan: &Plan, kernels: &[Kernel], dispatch: &Dispatch) -> Vec<Touch> {
    let kernel = &kernels[dispatch.pipeline.0 as usize];
    let signature = Signature::find(&kernel.source(), kernel.function).unwrap();
    let writes = signature.arguments.iter().filter(|a| a.buffer().is_some()).map(|a| !a.kind.contains("const"));
    dispatch.bindings.iter().zip(writes).map(|(&at, write)| Touch::of(plan, kernel, at, write)).collect()
}

#[test]
fn dispatches_that_no_barrier_divides_do_not_conflict() {
    let mut together = 0;
    for family in families() {
        let model = model(&family);
        for (kv, tuning) in [(KvFormat::F16, "apple"), (KvFormat::F16, "cuda"), (KvFormat::Q8, "apple")] {
            let recorder = Recorder::new(tuning, 20);
            // Heads of some of the models are not whole blocks.
            let Ok(mut baked) = load(&recorder, &model, kv) else { continue };
            let has_states = model.1.graph.slot_bytes() > 0;
            for position in [0, 5, 700] {
                let mut step = one_token(position);
                step.keep((position > 0).then_some(0), [(0, 0)]);
                baked.submit(&step).unwrap();
                if !has_states {
                    baked.chain().unwrap();
                    baked.wait().unwrap();
                }
                baked.wait().unwrap();
            }
            for tokens in [2, 9, 40] {
                let mut step = prompt(tokens);
                step.keep(None, [(tokens - 1, 0)]);
                baked.submit(&step).unwrap();
                baked.draw(&[GREEDY]).unwrap();
                baked.wait().unwrap();
            }
            let recorded = recorder.recorded();
            for list in &recorded.lists {
                let mut running: Vec<Touch> = Vec::new();
                for (i, dispatch) in list.iter().enumerate() {
                    if dispatch.barrier {
                        running.clear();
                    }
                    let touches = touches(&model.1, &recorded.kernels, dispatch);
                    for touch in &touches {
                        let other = running.iter().find(|other| touch.conflicts(other));
                        let function = recorded.kernels[dispatch.pipeline.0 as usize].function;
                        assert!(other.is_none(), "{family}: dispatch {i}, {function}: {touch:?} and {other:?}");
                    }
                    together += usize::from(!running.is_empty());
                    running.extend(touches);
                }
            }
        }
    }
    assert!(together > 20, "only {together} dispatches have no barrier before them");
}

/// Which are compiled, and cached, once for contexts of any length.
#[test]
fn a_longer_context_takes_the_same_kernels() {
    let kernels = |pages: usize| {
        let recorder = Recorder::new("apple", 20);
        load_pages(&recorder, &model("qwen3"), KvFormat::F16, pages).unwrap();
        recorder.recorded().kernels.clone()
    };
    assert_eq!(kernels(2), kernels(400));
}

#[test]
fn a_model_without_room_is_refused_before_anything_is_taken() {
    let model = model("qwen3");
    let whole = Recorder::new("apple", 20);
    load(&whole, &model, KvFormat::F16).unwrap();
    let sum = |recorder: &Recorder| {
        let calls = recorder.recorded().calls.clone();
        calls.iter().map(|call| if let Call::Allocate(bytes) = call { *bytes } else { 0 }).sum::<usize>()
    };
    let cramped = Recorder::new("apple", 20).with_memory(sum(&whole) - 50_000);
    let Err(DeviceError::TooLarge { needed, free, fits, .. }) = load(&cramped, &model, KvFormat::F16) else { panic!() };
    assert_eq!(cramped.recorded().calls, []);
    assert!(free < needed && needed - free < 50_000 + 4096, "{needed} needed, {free} free");
    let [Fit { kv: KvFormat::F16, pages }, Fit { kv: KvFormat::Q8, pages: coarser }, Fit { kv: KvFormat::Q4, .. }] =
        fits[..]
    else {
        panic!("{fits:?}")
    };
    assert!(0 < pages && pages < 16 && coarser == 16, "{fits:?}");
    assert!(load(&Recorder::new("apple", 20).with_memory(needed), &model, KvFormat::F16).is_ok());
}

/// The slots that a step uses are said by the host, so no step follows another without it.
#[test]
fn running_states_are_kept_in_slots() {
    let (file, graph) = recurrent::model().unwrap();
    let bytes = graph.slot_bytes();
    let plan = Arc::new(Plan::build(graph, Limits { tokens: 64, wanted: 4 }, &FUSIONS));
    let recorder = Recorder::new("apple", 20);
    let mut baked = load(&recorder, &(file, plan), KvFormat::F16).unwrap();
    assert!(recorder.recorded().calls.contains(&Call::Allocate(4 * bytes)));
    let mut step = one_token(0);
    step.keep(None, [(0, 3)]);
    baked.submit(&step).unwrap();
    assert!(matches!(baked.chain(), Err(DeviceError::Step(_))));
    baked.wait().unwrap();
    recorder.recorded().calls.clear();
    let mut states = vec![0; bytes];
    baked.read_slot(3, &mut states).unwrap();
    baked.write_slot(0, &states).unwrap();
    assert_eq!(recorder.recorded().calls, [Call::Read(bytes), Call::Wait, Call::Write(bytes)]);
}
