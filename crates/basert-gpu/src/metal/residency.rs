//! Keeps memory resident for the GPU.
//!
//! From macOS 15 on one residency set with all memory is attached to the queue: without it the system checks each
//! buffer of each command buffer. The system may evict an idle set, so residency of a set in use is requested
//! repeatedly. Before macOS 15 buffers are bound individually, which is slower and needs nothing here.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLAllocation, MTLCommandQueue, MTLDevice, MTLResidencySet, MTLResidencySetDescriptor};

/// The interval of requests for a set in use.
const BEAT: Duration = Duration::from_millis(500);
/// How long it counts as in use.
const REST: Duration = Duration::from_secs(180);

type Set = Retained<ProtocolObject<dyn MTLResidencySet>>;

/// A residency set and what keeps it alive.
pub(super) struct Residency {
    shared: Arc<Mutex<Shared>>,
    /// Closed when this is dropped, which ends the thread.
    _alive: Sender<()>,
}

struct Shared {
    set: Set,
    used: Instant,
}

// SAFETY: the set is an object of Metal's without a thread of its own, and the mutex lets one thread at a time use it.
unsafe impl Send for Shared {}

impl Residency {
    /// A set attached to a queue; `None` if the system has no residency sets.
    pub fn new(
        device: &ProtocolObject<dyn MTLDevice>,
        queue: &ProtocolObject<dyn MTLCommandQueue>,
    ) -> Option<Residency> {
        if !objc2::available!(macos = 15.0) {
            return None;
        }
        let set = device.newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new()).ok()?;
        queue.addResidencySet(&set);
        let shared = Arc::new(Mutex::new(Shared { set, used: Instant::now() }));
        let (alive, ended) = channel();
        let beating = shared.clone();
        let beat = move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let shared = beating.lock().unwrap_or_else(PoisonError::into_inner);
                if shared.used.elapsed() < REST {
                    shared.set.requestResidency();
                }
            }
        };
        thread::Builder::new().name("metal residency".to_owned()).spawn(beat).ok()?;
        Some(Residency { shared, _alive: alive })
    }

    /// Adds memory, all of it at once.
    pub fn add<'a>(&self, memory: impl IntoIterator<Item = &'a ProtocolObject<dyn MTLAllocation>>) {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        memory.into_iter().for_each(|memory| shared.set.addAllocation(memory));
        shared.set.commit();
        shared.set.requestResidency();
    }

    /// Marks it as in use.
    pub fn touch(&self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).used = Instant::now();
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).set.endResidency();
    }
}
