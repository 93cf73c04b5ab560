//! The Metal device: memory, command buffers, and waiting for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use basert_files::ModelFile;
use basert_plan::chip_of_device;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSProcessInfo, NSRange};
use objc2_metal::{
    MTLBarrierScope, MTLBlitCommandEncoder, MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder,
    MTLCommandQueue, MTLComputeCommandEncoder, MTLCreateSystemDefaultDevice, MTLDevice, MTLDispatchType, MTLEvent,
    MTLFence, MTLGPUFamily, MTLHazardTrackingMode, MTLHeap, MTLHeapDescriptor, MTLResourceOptions, MTLSharedEvent,
    MTLSize, MTLStorageMode,
};

use super::compile::{Compiled, Compiler, Device};
use super::failure::failure;
use super::residency::Residency;
use super::source::{MetalSystem, Tiles};
use crate::views::Views;
use crate::{Binding, Buffer, Cache, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};
use crate::{Signature, apple_tuning, tiles_are_right};

/// The page size of every Apple Silicon Mac.
const PAGE: usize = 16 << 10;
/// The alignment that tensors in a file need to be used in place.
const ALIGNMENT: usize = 16;
/// Milliseconds after which a wait checks for failures: a command buffer that fails does not signal.
const PATIENCE: u64 = 100;
/// Assumed cores of a GPU that is not in the table of chips.
const CORES: usize = 10;

/// All memory is shared with the CPU. It is the same memory in any case, and so what the CPU writes and reads, such as
/// a step's buffer and logits, is never copied. Hazards are not tracked: the plan sets barriers.
const SHARED: MTLResourceOptions = MTLResourceOptions::from_bits_retain(
    MTLResourceOptions::StorageModeShared.bits() | MTLResourceOptions::HazardTrackingModeUntracked.bits(),
);

type Commands = Retained<ProtocolObject<dyn MTLCommandBuffer>>;
type Heap = Retained<ProtocolObject<dyn MTLHeap>>;
type Bytes = Retained<ProtocolObject<dyn MTLBuffer>>;

/// The GPU of a Mac.
///
/// Each submission is one command buffer; a fence orders it after its predecessor, so that the next can be encoded and
/// committed while it runs. A shared event counts completed ones.
pub struct MetalGpu {
    facts: GpuFacts,
    device: Device,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    /// From each command buffer to the next.
    fence: Retained<ProtocolObject<dyn MTLFence>>,
    /// Set to the number of each command buffer when it is complete.
    event: Retained<ProtocolObject<dyn MTLSharedEvent>>,
    submitted: u64,
    /// Command buffers that are not known to be complete, with their numbers.
    in_flight: VecDeque<(u64, Commands)>,
    residency: Option<Residency>,
    compiler: Compiler,
    compiled: BTreeMap<Kernel, Pipeline>,
    pipelines: Vec<(Compiled, usize)>,
    recordings: Vec<Vec<Launch>>,
    buffers: Vec<Memory>,
    heaps: Vec<Heap>,
    /// Pending fetches: the source, the length, and the command buffer before it.
    tickets: Vec<Option<(Binding, usize, u64)>>,
    lost: Option<GpuError>,
}

struct Memory {
    buffer: Bytes,
    bytes: usize,
    /// The mapped file, which is read-only, if it is one.
    file: Option<Arc<ModelFile>>,
}

/// A checked dispatch.
struct Launch {
    pipeline: usize,
    bindings: Vec<Binding>,
    groups: MTLSize,
    threads: MTLSize,
    barrier: bool,
}

// SAFETY: Metal's objects belong to no thread; those that only one may use at a time are used through `&mut self` alone,
// and command buffers are encoded and committed within one call. Mapped files are only read.
unsafe impl Send for MetalGpu {}

impl MetalGpu {
    /// Whether there is a GPU that could be opened.
    pub fn exists() -> bool {
        MTLCreateSystemDefaultDevice().is_some_and(|device| device.hasUnifiedMemory())
    }

    /// The Mac's GPU.
    ///
    /// # Errors
    /// [`GpuError::Missing`] when there is none, the system is too old, or it does not multiply matrices as kernels rely
    /// on.
    pub fn open() -> Result<MetalGpu, GpuError> {
        autoreleasepool(|_| MetalGpu::open_with(Cache::open_default()))
    }

    fn open_with(cache: Cache) -> Result<MetalGpu, GpuError> {
        let missing = |what: &str| GpuError::Missing(format!("metal: {what}"));
        let device = MTLCreateSystemDefaultDevice().ok_or_else(|| missing("there is no GPU that Metal can use"))?;
        let version = NSProcessInfo::processInfo().operatingSystemVersion();
        let macos = u32::try_from(version.majorVersion).unwrap_or(0);
        if macos < 14 {
            return Err(missing(&format!("macOS 14 is needed; this is macOS {macos}")));
        }
        if !device.hasUnifiedMemory() {
            return Err(missing("Apple Silicon is needed: this GPU has memory of its own"));
        }
        let queue = device.newCommandQueue().ok_or_else(|| missing("it gives no command queue"))?;
        let fence = device.newFence().ok_or_else(|| missing("it gives no fence"))?;
        let event = device.newSharedEvent().ok_or_else(|| missing("it gives no event"))?;
        let residency = Residency::new(&device, &queue);
        let name = device.name().to_string();
        let chip = chip_of_device(&name);
        // Tensor units are in GPUs of family 10, M5, and later ones; their library came with macOS 26.
        let tensors = macos >= 26 && device.supportsFamily(MTLGPUFamily::Apple10);
        let budget = device.recommendedMaxWorkingSetSize();
        let facts = GpuFacts {
            name: "metal".to_owned(),
            description: format!(
                "{name}, macOS {macos}.{}, {:.1} GiB for models",
                version.minorVersion,
                budget as f64 / f64::from(1 << 30)
            ),
            software: NSProcessInfo::processInfo().operatingSystemVersionString().to_string(),
            tuning: apple_tuning(if device.supportsFamily(MTLGPUFamily::Apple10) { 10 } else { 9 }),
            free_memory: None,
            largest_buffer: device.maxBufferLength() / PAGE * PAGE,
            threadgroup_memory: device.maxThreadgroupMemoryLength(),
            cores: chip.as_ref().map_or(CORES, |chip| chip.cores),
            bounds: chip.map(|chip| chip.bounds()),
        };
        let candidates: &[Tiles] =
            if tensors { &[Tiles::TensorUnits, Tiles::Simdgroups] } else { &[Tiles::Simdgroups] };
        let system = MetalSystem { macos, tiles: candidates[0] };
        let mut gpu = MetalGpu {
            facts,
            queue,
            fence,
            event,
            submitted: 0,
            in_flight: VecDeque::new(),
            residency,
            compiler: Compiler::new(device.clone(), cache, system),
            compiled: BTreeMap::new(),
            pipelines: Vec::new(),
            recordings: Vec::new(),
            buffers: Vec::new(),
            heaps: Vec::new(),
            tickets: Vec::new(),
            lost: None,
            device,
        };
        for &tiles in candidates {
            gpu.compiler.system.tiles = tiles;
            gpu.compiled.clear();
            if tiles_are_right(&mut gpu).unwrap_or(false) {
                gpu.facts.software += match tiles {
                    Tiles::TensorUnits => ", products by tensor units",
                    Tiles::Simdgroups => ", products by simdgroups",
                };
                gpu.count_memory();
                return Ok(gpu);
            }
        }
        Err(missing("products of matrices were wrong in a check, so no result could be trusted"))
    }

    fn count_memory(&mut self) {
        let budget = usize::try_from(self.device.recommendedMaxWorkingSetSize()).unwrap_or(usize::MAX);
        self.facts.free_memory = Some(budget.saturating_sub(self.device.currentAllocatedSize()));
    }

    fn refuse(&self, what: String) -> GpuError {
        GpuError::Failed(format!("metal: {what}"))
    }

    /// The buffer of a binding with at least `bytes` bytes after it, and their address for the CPU.
    fn memory(&self, at: Binding, bytes: usize) -> Result<(&Memory, NonNull<u8>), GpuError> {
        let memory = self.buffers.get(at.buffer.0 as usize);
        let memory = memory.filter(|memory| at.offset.checked_add(bytes).is_some_and(|end| end <= memory.bytes));
        let memory = memory.ok_or_else(|| {
            self.refuse(format!("{bytes} bytes at {} are not all in buffer {}", at.offset, at.buffer.0))
        })?;
        let begin = memory.buffer.contents().cast::<u8>();
        // SAFETY: the buffer is longer than the offset.
        Ok((memory, unsafe { begin.add(at.offset) }))
    }

    /// The same, for writing.
    fn own_memory(&self, at: Binding, bytes: usize) -> Result<(&Memory, NonNull<u8>), GpuError> {
        let found = self.memory(at, bytes)?;
        if found.0.file.is_some() {
            return Err(self.refuse(format!("buffer {} is a file, and only read", at.buffer.0)));
        }
        Ok(found)
    }

    /// Commits a command buffer that `encode` fills, after all earlier ones.
    fn commit(&mut self, encode: impl FnOnce(&MetalGpu, &Commands) -> Option<()>) -> Result<(), GpuError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let committed = autoreleasepool(|_| {
            let commands = self.queue.commandBufferWithUnretainedReferences()?;
            encode(self, &commands)?;
            let signalled: &ProtocolObject<dyn MTLEvent> = ProtocolObject::from_ref(&*self.event);
            commands.encodeSignalEvent_value(signalled, self.submitted + 1);
            commands.commit();
            Some(commands)
        });
        let Some(commands) = committed else {
            return Err(self.refuse("it gives no command buffer".to_owned()));
        };
        self.submitted += 1;
        self.in_flight.push_back((self.submitted, commands));
        if let Some(residency) = &self.residency {
            residency.touch();
        }
        Ok(())
    }

    /// Commits a command buffer of these launches.
    fn commit_launches(&mut self, launches: impl FnOnce(&MetalGpu) -> &[Launch]) -> Result<(), GpuError> {
        self.commit(|gpu, commands| {
            let encoder = commands.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent)?;
            if gpu.submitted > 0 {
                encoder.waitForFence(&gpu.fence);
            }
            gpu.encode(launches(gpu), &encoder);
            encoder.updateFence(&gpu.fence);
            encoder.endEncoding();
            Some(())
        })
    }

    /// Commits a command buffer of one blit.
    fn blit(
        &mut self,
        encode: impl FnOnce(&MetalGpu, &ProtocolObject<dyn MTLBlitCommandEncoder>),
    ) -> Result<(), GpuError> {
        self.commit(|gpu, commands| {
            let encoder = commands.blitCommandEncoder()?;
            if gpu.submitted > 0 {
                encoder.waitForFence(&gpu.fence);
            }
            encode(gpu, &encoder);
            encoder.updateFence(&gpu.fence);
            encoder.endEncoding();
            Some(())
        })
    }

    /// Waits for a command buffer, by its number, and those before it.
    fn wait_for(&mut self, number: u64) -> Result<(), GpuError> {
        while !self.event.waitUntilSignaledValue_timeoutMS(number, PATIENCE) {
            self.look_for_failures()?;
            // A failed command buffer has not signalled, and is not waited for again.
            if self.in_flight.front().is_none_or(|&(first, _)| first > number) {
                return Ok(());
            }
        }
        self.look_for_failures()
    }

    /// Releases completed command buffers. A failed one is reported as an error, once.
    fn look_for_failures(&mut self) -> Result<(), GpuError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let mut failed = None;
        self.in_flight.retain(|(_, commands)| match commands.status() {
            MTLCommandBufferStatus::Completed => false,
            MTLCommandBufferStatus::Error => {
                failed.get_or_insert_with(|| commands.error());
                false
            }
            _ => true,
        });
        let Some(error) = failed else { return Ok(()) };
        let (code, said) = error.map_or((0, String::new()), |e| (e.code(), e.localizedDescription().to_string()));
        let failure = failure(code, &said);
        if failure.lost {
            self.lost = Some(failure.error.clone());
        }
        Err(failure.error)
    }

    /// Registers buffers, with their heap if they are in one.
    fn keep(&mut self, buffers: Vec<(Bytes, usize)>, heap: Option<Heap>, file: Option<&Arc<ModelFile>>) -> Vec<Buffer> {
        if let Some(residency) = &self.residency {
            match &heap {
                Some(heap) => residency.add([ProtocolObject::from_ref(&**heap)]),
                None => residency.add(buffers.iter().map(|(buffer, _)| ProtocolObject::from_ref(&**buffer))),
            }
        }
        self.heaps.extend(heap);
        let first = self.buffers.len() as u32;
        self.buffers.extend(buffers.into_iter().map(|(buffer, bytes)| Memory { buffer, bytes, file: file.cloned() }));
        self.count_memory();
        (first..self.buffers.len() as u32).map(Buffer).collect()
    }

    /// A heap with buffers of these sizes.
    fn heap(&self, sizes: &[usize]) -> Option<(Heap, Vec<Bytes>)> {
        let aligned = sizes.iter().map(|&bytes| {
            let needed = self.device.heapBufferSizeAndAlignWithLength_options(bytes, SHARED);
            needed.size.next_multiple_of(needed.align.max(1))
        });
        let descriptor = MTLHeapDescriptor::new();
        descriptor.setSize(aligned.sum());
        descriptor.setStorageMode(MTLStorageMode::Shared);
        descriptor.setHazardTrackingMode(MTLHazardTrackingMode::Untracked);
        let heap = self.device.newHeapWithDescriptor(&descriptor)?;
        let buffers = sizes.iter().map(|&bytes| heap.newBufferWithLength_options(bytes, SHARED));
        let buffers = buffers.collect::<Option<_>>()?;
        Some((heap, buffers))
    }

    fn launch(&self, dispatch: &Dispatch) -> Result<Launch, GpuError> {
        let pipeline = dispatch.pipeline.0 as usize;
        let (compiled, arguments) =
            self.pipelines.get(pipeline).ok_or_else(|| self.refuse(format!("there is no pipeline {pipeline}")))?;
        for &binding in &dispatch.bindings {
            self.memory(binding, 0)?;
        }
        let Kernel { threads, function, .. } = compiled.kernel;
        if dispatch.bindings.len() != *arguments || dispatch.threads != threads || dispatch.groups.contains(&0) {
            return Err(self.refuse(format!(
                "kernel {function} has {arguments} buffers and {threads} threads; it was given {}, {} and {:?} \
                 threadgroups",
                dispatch.bindings.len(),
                dispatch.threads,
                dispatch.groups
            )));
        }
        let [x, y, z] = dispatch.groups.map(|n| n as usize);
        Ok(Launch {
            pipeline,
            bindings: dispatch.bindings.clone(),
            groups: MTLSize { width: x, height: y, depth: z },
            threads: MTLSize { width: threads as usize, height: 1, depth: 1 },
            barrier: dispatch.barrier,
        })
    }

    fn encode(&self, recording: &[Launch], encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>) {
        let mut pipeline = None;
        for (i, launch) in recording.iter().enumerate() {
            if launch.barrier && i > 0 {
                encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
            }
            if pipeline.replace(launch.pipeline) != Some(launch.pipeline) {
                encoder.setComputePipelineState(&self.pipelines[launch.pipeline].0.state);
            }
            for (index, &Binding { buffer, offset }) in launch.bindings.iter().enumerate() {
                let buffer = &self.buffers[buffer.0 as usize].buffer;
                // SAFETY: the kernel has an argument of this index and the buffer is longer than the offset, which was
                // checked when it was recorded; the kernel stays inside if plan and lowering are right.
                unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), offset, index) };
            }
            encoder.dispatchThreadgroups_threadsPerThreadgroup(launch.groups, launch.threads);
        }
    }
}

impl Gpu for MetalGpu {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError> {
        Ok(self.allocate_all(&[(bytes, what)])?[0])
    }

    fn allocate_all(&mut self, rooms: &[(usize, &str)]) -> Result<Vec<Buffer>, GpuError> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let largest = self.facts.largest_buffer;
        if let Some((bytes, what)) = rooms.iter().find(|(bytes, _)| *bytes > largest) {
            return Err(self.refuse(format!("{bytes} bytes for {what} would be one buffer, of at most {largest}")));
        }
        // Metal has no empty buffers, and fills whole words.
        let sizes: Vec<_> = rooms.iter().map(|&(bytes, _)| bytes.max(1).next_multiple_of(ALIGNMENT)).collect();
        let (heap, buffers) = match self.heap(&sizes) {
            Some((heap, buffers)) => (Some(heap), buffers),
            // A heap of that size may be impossible even if its buffers are possible individually.
            None => {
                let one = |(&size, &(bytes, what)): (&usize, &(usize, &str))| {
                    let free = self.facts.free_memory.unwrap_or(0);
                    let none = GpuError::OutOfMemory { bytes, what: what.to_owned(), free };
                    self.device.newBufferWithLength_options(size, SHARED).ok_or(none)
                };
                (None, sizes.iter().zip(rooms).map(one).collect::<Result<_, _>>()?)
            }
        };
        let kept = self.keep(buffers.into_iter().zip(rooms.iter().map(|(bytes, _)| *bytes)).collect(), heap, None);
        let first = kept[0].0 as usize;
        self.blit(|gpu, encoder| {
            for (memory, &size) in gpu.buffers[first..].iter().zip(&sizes) {
                encoder.fillBuffer_range_value(&memory.buffer, NSRange::new(0, size), 0);
            }
        })?;
        Ok(kept)
    }

    fn map(&mut self, file: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        let mut bindings = vec![None; parts.len()];
        for mapping in file.mappings() {
            let inside: Vec<_> = (0..parts.len())
                .filter(|&i| (parts[i].as_ptr() as usize).is_multiple_of(ALIGNMENT))
                .filter_map(|i| Some((i, mapping.offset_of(parts[i])?)))
                .collect();
            let ranges: Vec<_> = inside.iter().map(|&(i, offset)| offset..offset + parts[i].len()).collect();
            let Views { views, places } = Views::new(&ranges, PAGE, self.facts.largest_buffer);
            let wrap = |view: &std::ops::Range<usize>| {
                let begin = NonNull::from(&**mapping).cast::<c_void>();
                // SAFETY: a mapping begins at a page and is mapped up to the end of its last one; nobody writes it, and
                // it is kept with the file as long as the buffer.
                unsafe {
                    let begin = begin.byte_add(view.start);
                    self.device.newBufferWithBytesNoCopy_length_options_deallocator(begin, view.len(), SHARED, None)
                }
            };
            let wrapped: Vec<_> = views.iter().map(|view| Some((wrap(view)?, view.len()))).collect();
            // What the device cannot use in place has to be copied.
            let Some(wrapped) = wrapped.into_iter().collect::<Option<Vec<_>>>() else { continue };
            if wrapped.is_empty() {
                continue;
            }
            let kept = self.keep(wrapped, None, Some(file));
            for ((i, _), place) in inside.into_iter().zip(places) {
                bindings[i] = place.map(|(view, offset)| Binding { buffer: kept[view], offset });
            }
        }
        Ok(bindings)
    }

    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        let new: BTreeSet<&Kernel> = kernels.iter().filter(|kernel| !self.compiled.contains_key(kernel)).collect();
        let new: Vec<&Kernel> = new.into_iter().collect();
        let there = kernels.len() - new.len();
        progress(there);
        if !new.is_empty() {
            for compiled in self.compiler.compile(&new, &mut |ready| progress(there + ready))? {
                let kernel = compiled.kernel.clone();
                let signature = Signature::find(&kernel.source(), kernel.function);
                let buffers = |s: Signature| s.arguments.iter().filter(|argument| argument.buffer().is_some()).count();
                let arguments = signature.map(buffers).ok_or_else(|| GpuError::Compile {
                    kernel: kernel.to_string(),
                    log: "its declaration cannot be read".to_owned(),
                })?;
                self.pipelines.push((compiled, arguments));
                self.compiled.insert(kernel, Pipeline(self.pipelines.len() as u32 - 1));
            }
        }
        Ok(kernels.iter().map(|kernel| self.compiled[kernel]).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        let launches = dispatches.iter().map(|dispatch| self.launch(dispatch)).collect::<Result<_, _>>()?;
        self.recordings.push(launches);
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError> {
        self.wait_for(self.submitted)?;
        let (_, begin) = self.own_memory(to, bytes.len())?;
        // SAFETY: there is room, and no command buffer runs that could use it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), begin.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError> {
        self.memory(from, bytes)?;
        self.own_memory(to, bytes)?;
        self.blit(|gpu, encoder| {
            let buffer = |at: Binding| &*gpu.buffers[at.buffer.0 as usize].buffer;
            // SAFETY: both ranges are in their buffers, as checked above.
            unsafe {
                encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
                    buffer(from),
                    from.offset,
                    buffer(to),
                    to.offset,
                    bytes,
                );
            }
        })
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        if recording.0 as usize >= self.recordings.len() {
            return Err(self.refuse(format!("there is no recording {}", recording.0)));
        }
        self.commit_launches(|gpu| &gpu.recordings[recording.0 as usize])
    }

    /// Each dispatch is a command buffer of its own, since Metal times nothing smaller than an encoder, and command
    /// buffers in seconds.
    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError> {
        let launches = self.recordings.get(recording.0 as usize).map(Vec::len);
        let launches = launches.ok_or_else(|| self.refuse(format!("there is no recording {}", recording.0)))?;
        let one = |launch: usize| {
            self.commit_launches(|gpu| &gpu.recordings[recording.0 as usize][launch..=launch])?;
            let commands = self.in_flight.back().map(|(_, commands)| commands.clone());
            self.wait_for(self.submitted)?;
            Ok(commands.map_or(0.0, |commands| commands.GPUEndTime() - commands.GPUStartTime()))
        };
        (0..launches).map(one).collect()
    }

    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.wait_for(self.submitted)?;
        let (_, begin) = self.memory(from, bytes.len())?;
        // SAFETY: there are so many bytes, and no command buffer runs that could change them.
        unsafe { ptr::copy_nonoverlapping(begin.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError> {
        self.memory(from, bytes)?;
        let ticket = self.tickets.iter().position(Option::is_none).unwrap_or(self.tickets.len());
        if ticket == self.tickets.len() {
            self.tickets.push(None);
        }
        self.tickets[ticket] = Some((from, bytes, self.submitted));
        Ok(Ticket(ticket as u32))
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        let taken = self.tickets.get_mut(ticket.0 as usize).and_then(Option::take);
        let Some((from, fetched, number)) = taken.filter(|(_, fetched, _)| *fetched == bytes.len()) else {
            return Err(self.refuse(format!("{} bytes were not fetched with ticket {}", bytes.len(), ticket.0)));
        };
        self.wait_for(number)?;
        let (_, begin) = self.memory(from, fetched)?;
        // SAFETY: there are so many bytes. The command buffer that wrote them is complete, and none that changes them
        // was submitted since the fetch.
        unsafe { ptr::copy_nonoverlapping(begin.as_ptr(), bytes.as_mut_ptr(), fetched) };
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.wait_for(self.submitted)
    }
}

impl Drop for MetalGpu {
    fn drop(&mut self) {
        // Command buffers do not keep the memory that they use.
        for (_, commands) in self.in_flight.drain(..) {
            commands.waitUntilCompleted();
        }
    }
}
