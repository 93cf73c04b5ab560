//! One threadgroup: a coroutine for each thread, switched at barriers and operations of simdgroups.
//!
//! A runnable simdgroup is chosen at random; its lanes run in random order, each up to where it waits or ends, which
//! has to be the same place for all. So a kernel that is right under many seeds does not depend on the order of a real
//! device.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::ptr;

use corosensei::stack::{DefaultStack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::order::{Order, Random};

/// Threads of a simdgroup.
pub const LANES: usize = 32;
/// The most threads of a threadgroup.
pub const MOST_THREADS: usize = 1024;
/// Threadgroup memory of every chip, in bytes.
const THREADGROUP_BYTES: usize = 32 << 10;
/// The initial value of each byte: floats of these bytes are NaN.
const POISON: u8 = 0xff;
/// Bytes of an exchange between lanes: `bytes_of_slot` in `metal.h`, for each of them.
const EXCHANGE: usize = 64 * LANES;
/// Bytes of a stack. Kernels use little of it; untouched pages take no memory.
const STACK: usize = 256 << 10;
/// The distance between the offsets of stacks below the end of a page, and the number of offsets.
const COLOUR: usize = 7 * 64;
const COLOURS: usize = 64;

/// Memory that a kernel may touch: the twin of `simt::memory` in `metal.h`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Memory {
    pub begin: *mut u8,
    pub bytes: u64,
    pub name: *const c_char,
}

// SAFETY: it is only an address; accesses are unsafe themselves.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// A kernel's view of its threadgroup: the twin of `simt::group` in `metal.h`.
#[repr(C)]
pub struct Shared {
    wait: extern "C" fn(*const Shared, u32, *const c_char, u32),
    fail: extern "C" fn(*const Shared, u32, *const Memory, u64, u64, u32),
    arguments: *const Memory,
    threadgroup_memory: Memory,
    slots: *mut u8,
    turns: *const Cell<u32>,
    position: [u32; 3],
    groups: [u32; 3],
    threads: u32,
    running: Cell<u32>,
}

/// Runs one thread: `simt_thread` of a compiled kernel.
pub type Entry = unsafe extern "C" fn(*const Shared);

/// A launch of a kernel.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub entry: Entry,
    pub arguments: &'a [Memory],
    pub groups: [u32; 3],
    pub threads: u32,
}

/// An invalid operation of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its index in the threadgroup.
    pub thread: u32,
    /// What it did.
    pub what: String,
    /// The line of the kernel's source, or 0.
    pub line: u32,
}

impl Fault {
    fn of(thread: u32, what: String) -> Fault {
        Fault { thread, what, line: 0 }
    }
}

/// The kinds of places where a thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    scope: u32,
    operation: *const c_char,
    line: u32,
}

const WHOLE_THREADGROUP: u32 = 0;

impl Wait {
    const NOWHERE: Wait = Wait { scope: WHOLE_THREADGROUP, operation: ptr::null(), line: 0 };
}

/// The progress of the lanes of a simdgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    Waiting(Wait),
    Ended,
}

type Thread = Coroutine<(), (), (), Stack>;
type Suspender = Yielder<(), ()>;

/// The running threadgroup, through which its threads switch back to the scheduler.
#[repr(C)]
struct Group {
    shared: Shared,
    threads: Vec<Suspended>,
    fault: Cell<Option<Fault>>,
}

/// A thread that has begun: how to suspend it, and what it waits at.
#[derive(Clone)]
struct Suspended {
    suspender: Cell<*const Suspender>,
    wait: Cell<Wait>,
}

/// Runs threadgroups, one at a time, with stacks and memory that it keeps.
#[derive(Default)]
pub struct Worker {
    stacks: Vec<Stack>,
    threadgroup: Vec<u128>,
    slots: Vec<u128>,
}

// SAFETY: a stack in the pool is plain memory.
unsafe impl Send for Worker {}

/// A stack with an offset that differs from stack to stack: otherwise all stacks would compete for the same cache
/// lines.
struct Stack {
    stack: DefaultStack,
    unused: usize,
}

// SAFETY: it is a smaller part of a valid stack, with the same alignment.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        let base = self.stack.base();
        StackPointer::new(base.get() - self.unused).unwrap_or(base)
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}

impl Worker {
    /// Runs the threadgroup at `position`.
    ///
    /// # Errors
    /// The first fault; the threadgroup then has stopped.
    ///
    /// # Safety
    /// The entry must be that of a kernel compiled from a [`Source`](super::source::Source), with all its arguments
    /// given, whose memory must not be freed meanwhile.
    pub unsafe fn run(&mut self, launch: Launch, position: [u32; 3], random: &mut Random) -> Result<(), Fault> {
        let threads = launch.threads as usize;
        self.threadgroup.clear();
        self.threadgroup.resize(THREADGROUP_BYTES / 16, u128::from_ne_bytes([POISON; 16]));
        self.slots.resize(threads / LANES * 2 * EXCHANGE / 16, 0);
        let turns = vec![Cell::new(0); threads / LANES];
        let group = Group {
            shared: Shared {
                wait,
                fail,
                arguments: launch.arguments.as_ptr(),
                threadgroup_memory: Memory {
                    begin: self.threadgroup.as_mut_ptr().cast(),
                    bytes: THREADGROUP_BYTES as u64,
                    name: c"threadgroup memory".as_ptr(),
                },
                slots: self.slots.as_mut_ptr().cast(),
                turns: turns.as_ptr(),
                position,
                groups: launch.groups,
                threads: launch.threads,
                running: Cell::new(0),
            },
            threads: vec![Suspended { suspender: Cell::new(ptr::null()), wait: Cell::new(Wait::NOWHERE) }; threads],
            fault: Cell::new(None),
        };
        while self.stacks.len() < threads {
            let stack = DefaultStack::new(STACK).map_err(|e| Fault::of(0, format!("has no stack: {e}")))?;
            self.stacks.push(Stack { stack, unused: self.stacks.len() % COLOURS * COLOUR });
        }
        let stacks = self.stacks.drain(self.stacks.len() - threads..);
        let mut coroutines: Vec<Thread> = stacks.map(|stack| start(&group, launch.entry, stack)).collect();
        let result = schedule(&group, &turns, &mut coroutines, random);
        for mut coroutine in coroutines {
            // SAFETY: what is on its stack, frames of a kernel and of `wait` or `fail`, has nothing to drop.
            unsafe { coroutine.force_reset() };
            self.stacks.push(coroutine.into_stack());
        }
        result
    }
}

/// A thread that has not begun.
fn start(group: &Group, entry: Entry, stack: Stack) -> Thread {
    let group = ptr::from_ref(group);
    Coroutine::with_stack(stack, move |suspender: &Suspender, ()| {
        // SAFETY: the group outlives its threads, see `Worker::run`.
        let group = unsafe { &*group };
        group.threads[group.shared.running.get() as usize].suspender.set(suspender);
        // SAFETY: guaranteed by the caller of `Worker::run`.
        unsafe { entry(&group.shared) };
    })
}

fn schedule(group: &Group, turns: &[Cell<u32>], threads: &mut [Thread], random: &mut Random) -> Result<(), Fault> {
    let mut simdgroups = vec![Progress::Running; turns.len()];
    loop {
        let running = simdgroups.iter().filter(|s| **s == Progress::Running).count();
        if running == 0 {
            if simdgroups.iter().all(|s| *s == Progress::Ended) {
                return Ok(());
            }
            same(simdgroups.iter().enumerate().map(|(i, s)| (i * LANES, *s)))?;
            simdgroups.fill(Progress::Running);
            continue;
        }
        let chosen = random.below(running);
        let chosen = (0..simdgroups.len()).filter(|&i| simdgroups[i] == Progress::Running).nth(chosen).unwrap_or(0);
        let first = chosen * LANES;
        let mut lanes = [Progress::Running; LANES];
        let order = Order::new(LANES, random);
        for i in 0..LANES {
            let lane = order.at(i);
            group.shared.running.set((first + lane) as u32);
            lanes[lane] = match threads[first + lane].resume(()) {
                CoroutineResult::Yield(()) => Progress::Waiting(group.threads[first + lane].wait.get()),
                CoroutineResult::Return(()) => Progress::Ended,
            };
            if let Some(fault) = group.fault.take() {
                return Err(fault);
            }
        }
        same(lanes.iter().enumerate().map(|(lane, p)| (first + lane, *p)))?;
        simdgroups[chosen] = lanes[0];
        if let Progress::Waiting(Wait { scope, .. }) = lanes[0]
            && scope != WHOLE_THREADGROUP
        {
            turns[chosen].set(turns[chosen].get().wrapping_add(1));
            simdgroups[chosen] = Progress::Running;
        }
    }
}

/// Checks that all threads, or simdgroups by their first threads, wait at the same place, or that all have ended.
fn same(all: impl Iterator<Item = (usize, Progress)> + Clone) -> Result<(), Fault> {
    let waiting = |(thread, progress)| match progress {
        Progress::Waiting(wait) => Some((thread, wait)),
        _ => None,
    };
    let Some((one, wait)) = all.clone().find_map(waiting) else { return Ok(()) };
    let Some((other, progress)) = all.clone().find(|(_, p)| *p != Progress::Waiting(wait)) else { return Ok(()) };
    let at = name(wait.operation);
    Err(match progress {
        Progress::Waiting(Wait { operation, line, .. }) => Fault {
            thread: one as u32,
            what: format!("waits at {at} while thread {other} waits at {} (line {line})", name(operation)),
            line: wait.line,
        },
        _ => {
            Fault { thread: one as u32, what: format!("waits at {at} while thread {other} has ended"), line: wait.line }
        }
    })
}

fn name<'a>(name: *const c_char) -> std::borrow::Cow<'a, str> {
    // SAFETY: names are string literals of the kernel's library or of this one, or belong to the pipeline.
    unsafe { CStr::from_ptr(name) }.to_string_lossy()
}

/// The group that a kernel's thread belongs to.
fn of<'a>(shared: *const Shared) -> (&'a Group, &'a Suspended) {
    // SAFETY: kernels pass on the pointer they got, which is to the first field of a group that outlives them.
    let group = unsafe { &*shared.cast::<Group>() };
    (group, &group.threads[group.shared.running.get() as usize])
}

fn suspend(thread: &Suspended) {
    // SAFETY: the thread that calls has set it, and is within the coroutine that it belongs to.
    unsafe { (*thread.suspender.get()).suspend(()) };
}

extern "C" fn wait(shared: *const Shared, scope: u32, operation: *const c_char, line: u32) {
    let (_, thread) = of(shared);
    thread.wait.set(Wait { scope, operation, line });
    suspend(thread);
}

/// Stops the calling thread for good.
extern "C" fn fail(shared: *const Shared, fault: u32, memory: *const Memory, at: u64, bytes: u64, line: u32) {
    // SAFETY: null, or memory that the kernel was given or has declared, which it points to.
    let (memory, size) = unsafe { memory.as_ref() }.map_or(("a null pointer".into(), 0), |m| (name(m.name), m.bytes));
    let what = match fault {
        0 => format!("accesses {bytes} bytes at {} of {memory}, which has {size}", at.cast_signed()),
        1 => format!("accesses {memory} at {}, not a multiple of {bytes}", at.cast_signed()),
        2 => format!("declares {} bytes of threadgroup memory, of which there are {size}", at + bytes),
        _ => format!("reads lane {at} of a simdgroup"),
    };
    let (group, thread) = of(shared);
    group.fault.set(Some(Fault { thread: group.shared.running.get(), what, line }));
    suspend(thread);
    // The scheduler does not resume a thread that failed.
    std::process::abort();
}
