//! NVIDIA GPUs: kernels compiled by NVRTC and run by the driver. Building needs neither.

mod bounds;
mod compile;
mod nvrtc;
mod source;
mod staging;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError, ctx, device, event, function, graph, module, primary_ctx, stream};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as OfFunction};

use bounds::bounds;
pub use compile::CudaCompiler;
use staging::{FETCHED, Staging, TICKETS};

use crate::{Binding, Buffer, Cache, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};

/// The driver's name in errors.
const DRIVER: &str = "NVIDIA's driver";

/// The oldest compute capability with what the kernels need: products of 16 × 16 matrices of halves.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);
/// The first with programmatic dependent launch.
const DEPENDENT_LAUNCH: (u32, u32) = (9, 0);
/// The first version of CUDA, as 1000 · major + 10 · minor, that has all functions called here.
const LEAST_DRIVER: u32 = 12_000;
/// The first whose graphs keep programmatic dependent launch.
const DEPENDENT_LAUNCH_IN_GRAPHS: u32 = 12_030;

/// How a GPU is used, for tests and measurements; results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaOptions {
    /// Whether a kernel may begin before its predecessor has ended, if GPU and driver support that.
    pub dependent_launch: bool,
    /// Whether recordings are graphs of the driver, which are started as a whole; otherwise their kernels are launched
    /// one by one.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions { dependent_launch: true, graphs: true }
    }
}

/// An NVIDIA GPU.
///
/// Everything goes through one stream, which executes it in order. After the driver has reported a failure, such as an
/// access outside of memory, its context is lost, and every call reports the same failure.
pub struct CudaGpu {
    facts: GpuFacts,
    dependent_launch: bool,
    graphs: bool,
    compiler: CudaCompiler,
    compiled: BTreeMap<Kernel, Pipeline>,
    functions: Vec<Function>,
    buffers: Vec<Memory>,
    recordings: Vec<Recorded>,
    failed: Option<String>,
    // Dropped in this order.
    staging: Staging,
    context: Context,
}

/// A device's context and the stream in it.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

struct Function {
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// The kernel's, for errors.
    name: String,
    arguments: usize,
    threads: u32,
}

struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
}

/// A dispatch with all arguments of the driver's launch.
struct Launch {
    function: sys::CUfunction,
    arguments: Vec<sys::CUdeviceptr>,
    groups: [u32; 3],
    threads: u32,
}

/// A list of launches, and the graph captured from it, if any.
struct Recorded {
    launches: Vec<Launch>,
    graph: Option<sys::CUgraphExec>,
}

// SAFETY: the driver's functions may be called from any thread in whose context they belong, and every method makes the
// context current first. The pointers are the driver's handles, and to memory that nothing else refers to.
unsafe impl Send for CudaGpu {}

impl CudaGpu {
    /// The number of GPUs; 0 without a driver.
    pub fn count() -> usize {
        driver_version()
            .and_then(|_| result::init().ok())
            .and_then(|()| device::get_count().ok())
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(0)
    }

    /// The name and location of the kernel compiler that is used with the installed driver, or without one.
    ///
    /// # Errors
    /// [`GpuError::Missing`], which says how to get it.
    pub fn compiler() -> Result<String, GpuError> {
        let nvrtc = nvrtc::Nvrtc::find(driver_version().map(|version| version / 1000))?;
        Ok(format!("{}, {}", nvrtc.name(), nvrtc.file.display()))
    }

    /// The GPU to which the driver gives this number, from 0 on.
    ///
    /// # Errors
    /// [`GpuError::Missing`] when there is no such GPU, no driver or no compiler, or one that is too old; the error
    /// says what was looked for and what would be right.
    pub fn open(ordinal: usize) -> Result<CudaGpu, GpuError> {
        CudaGpu::open_with(ordinal, CudaOptions::default(), Cache::open_default())
    }

    /// As [`CudaGpu::open`], with options and another cache of compiled kernels.
    ///
    /// # Errors
    /// As [`CudaGpu::open`].
    pub fn open_with(ordinal: usize, options: CudaOptions, cache: Cache) -> Result<CudaGpu, GpuError> {
        let version = driver_version().ok_or_else(|| {
            GpuError::Missing(format!(
                "{DRIVER} is not installed: its library libcuda.so.1 is not among the system's. Install it; into a \
                 container the host's is passed, as with `docker run --gpus all`"
            ))
        })?;
        if version < LEAST_DRIVER {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(GpuError::Missing(format!(
                "{DRIVER} is for CUDA {major}.{minor}; one for CUDA 12.0 is needed"
            )));
        }
        let missing = |e: DriverError| GpuError::Missing(format!("{DRIVER} cannot be used: {}", said(&e)));
        result::init().map_err(missing)?;
        let count = device::get_count().map_err(missing)?;
        let number = i32::try_from(ordinal).ok().filter(|number| *number < count).ok_or_else(|| {
            GpuError::Missing(format!("there is no GPU cuda:{ordinal}: {DRIVER} knows {count}, numbered from 0"))
        })?;
        let device = device::get(number).map_err(missing)?;
        // SAFETY: the device comes from the driver.
        let fact = |fact| unsafe { device::get_attribute(device, fact) }.map(|fact| fact as u32).map_err(missing);
        let capability = (
            fact(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            fact(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let cores = fact(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // Results do not depend on these, so a GPU that does not state them is accepted.
        let stated = |what| fact(what).unwrap_or(0);
        let kilohertz = stated(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
        let memory_kilohertz = stated(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
        let bus_bits = stated(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
        let threadgroup_memory = fact(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)? as usize;
        let model = device::get_name(device).map_err(missing)?;
        if capability < LEAST_CAPABILITY {
            let ((major, minor), (needed, and)) = (capability, LEAST_CAPABILITY);
            return Err(GpuError::Missing(format!(
                "cuda:{ordinal}, {model}, has compute capability {major}.{minor}; {needed}.{and} is needed"
            )));
        }
        let compiler = CudaCompiler::new(capability, Some(version / 1000), cache)?;

        let context = Context::new(device).map_err(missing)?;
        let staging = Staging::new().map_err(missing)?;
        let (free, total) = result::mem_get_info().map_err(missing)?;
        let (major, minor) = capability;
        let gibibytes = total as f64 / f64::from(1 << 30);
        Ok(CudaGpu {
            facts: GpuFacts {
                name: format!("cuda:{ordinal}"),
                description: format!("{model}, compute capability {major}.{minor}, {gibibytes:.1} GiB"),
                software: format!("driver for CUDA {}.{}, {}", version / 1000, version % 1000 / 10, compiler.name()),
                tuning: "cuda",
                free_memory: Some(free),
                largest_buffer: usize::MAX,
                threadgroup_memory,
                cores,
                bounds: bounds(capability, cores, kilohertz, [memory_kilohertz, bus_bits]),
            },
            dependent_launch: options.dependent_launch
                && capability >= DEPENDENT_LAUNCH
                && (version >= DEPENDENT_LAUNCH_IN_GRAPHS || !options.graphs),
            graphs: options.graphs,
            compiler,
            compiled: BTreeMap::new(),
            functions: Vec::new(),
            buffers: Vec::new(),
            recordings: Vec::new(),
            failed: None,
            staging,
            context,
        })
    }

    /// Makes the context current, unless it is lost.
    fn enter(&mut self) -> Result<(), GpuError> {
        if let Some(failure) = &self.failed {
            return Err(GpuError::Failed(failure.clone()));
        }
        let entered = self.context.enter();
        self.check("making its context current", entered)
    }

    /// Remembers the failure of a call of the driver.
    fn check<T>(&mut self, what: &str, result: Result<T, DriverError>) -> Result<T, GpuError> {
        result.map_err(|e| {
            let failure = format!("{} failed in {what}: {}", self.facts.name, said(&e));
            self.failed = Some(failure.clone());
            GpuError::Failed(failure)
        })
    }

    fn refuse(&self, what: String) -> GpuError {
        GpuError::Failed(format!("{}: {what}", self.facts.name))
    }

    /// The address of `bytes` bytes.
    fn address(&self, at: Binding, bytes: usize) -> Result<sys::CUdeviceptr, GpuError> {
        let memory = self.buffers.get(at.buffer.0 as usize);
        memory
            .filter(|memory| at.offset.checked_add(bytes).is_some_and(|end| end <= memory.bytes))
            .map(|memory| memory.address + at.offset as u64)
            .ok_or_else(|| {
                let length = memory.map_or(0, |memory| memory.bytes);
                self.refuse(format!("{bytes} bytes at {} of buffer {} of {length} bytes", at.offset, at.buffer.0))
            })
    }

    fn load(&mut self, kernel: &Kernel, compiled: &[u8]) -> Result<Pipeline, GpuError> {
        let name = CString::new(kernel.function).map_err(|_| self.refuse(format!("{kernel}: a zero in its name")))?;
        let what = format!("loading kernel {kernel}");
        // SAFETY: the compiler's image contains its own length.
        let module = self.check(&what, unsafe { module::load_data(compiled.as_ptr().cast()) })?;
        // SAFETY: the module was loaded.
        let function = self.check(&what, unsafe { module::get_function(module, name) })?;
        // This query also loads the function onto the GPU, which must not happen while a graph is captured.
        let limit = OfFunction::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        // SAFETY: the function was found.
        let limit = self.check(&what, unsafe { function::get_function_attribute(function, limit) })?;
        if i64::from(kernel.threads) > i64::from(limit) {
            return Err(self.refuse(format!("kernel {kernel} can have {limit} threads, not {}", kernel.threads)));
        }
        let arguments = source::CudaSource::new(kernel).map_err(|why| self.refuse(why))?.buffers;
        let name = kernel.function.to_owned();
        self.functions.push(Function { module, function, name, arguments, threads: kernel.threads });
        Ok(Pipeline(self.functions.len() as u32 - 1))
    }

    fn launch(&self, dispatch: &Dispatch) -> Result<Launch, GpuError> {
        let function = self.functions.get(dispatch.pipeline.0 as usize);
        let function = function.ok_or_else(|| self.refuse(format!("there is no pipeline {}", dispatch.pipeline.0)))?;
        let arguments = dispatch.bindings.iter().map(|b| self.address(*b, 0)).collect::<Result<Vec<_>, _>>()?;
        let (groups, threads) = (dispatch.groups, dispatch.threads);
        if arguments.len() != function.arguments || threads != function.threads || groups.contains(&0) {
            return Err(self.refuse(format!(
                "kernel {} has {} buffers and {} threads; it was given {}, {threads} and {groups:?} threadgroups",
                function.name,
                function.arguments,
                function.threads,
                arguments.len()
            )));
        }
        Ok(Launch { function: function.function, arguments, groups, threads })
    }
}

impl Gpu for CudaGpu {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError> {
        self.enter()?;
        let free = self.check("asking for free memory", result::mem_get_info())?.0;
        let refused = GpuError::OutOfMemory { bytes, what: what.to_owned(), free };
        if bytes > free {
            return Err(refused);
        }
        // The driver does not allocate zero bytes.
        let room = bytes.max(16);
        // SAFETY: nothing sees the memory before it holds zeros, since the stream is in order.
        let address = match unsafe { result::malloc_sync(room) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(refused),
            given => self.check(&format!("allocating {bytes} bytes for {what}"), given)?,
        };
        self.buffers.push(Memory { address, bytes });
        // SAFETY: the memory was just given.
        let zeroed = unsafe { result::memset_d8_async(address, 0, room, self.context.stream) };
        self.check("zeroing memory", zeroed)?;
        self.facts.free_memory = Some(self.check("asking for free memory", result::mem_get_info())?.0);
        Ok(Buffer(self.buffers.len() as u32 - 1))
    }

    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        self.enter()?;
        let new: BTreeSet<&Kernel> = kernels.iter().filter(|kernel| !self.compiled.contains_key(kernel)).collect();
        let new: Vec<&Kernel> = new.into_iter().collect();
        let there = kernels.len() - new.len();
        progress(there);
        let compiled = self.compiler.compile(&new, &mut |ready| progress(there + ready))?;
        for (kernel, compiled) in new.into_iter().zip(compiled) {
            let pipeline = self.load(kernel, &compiled)?;
            self.compiled.insert(kernel.clone(), pipeline);
        }
        Ok(kernels.iter().map(|kernel| self.compiled[kernel]).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        self.enter()?;
        let launches = dispatches.iter().map(|dispatch| self.launch(dispatch)).collect::<Result<Vec<_>, _>>()?;
        let graph = if self.graphs && !launches.is_empty() {
            let captured = self.context.capture(&launches, self.dependent_launch);
            Some(self.check("recording", captured)?)
        } else {
            None
        };
        self.recordings.push(Recorded { launches, graph });
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError> {
        self.enter()?;
        let to = self.address(to, bytes.len())?;
        // SAFETY: `address` checked that there is room; stream and staging are of one context.
        let written = unsafe { self.staging.write(to, bytes, self.context.stream) };
        self.check("writing", written)
    }

    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError> {
        self.enter()?;
        let (from, to) = (self.address(from, bytes)?, self.address(to, bytes)?);
        // SAFETY: `address` checked that both ranges are in memory.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.context.stream) };
        self.check("copying", copied)
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        self.enter()?;
        let submitted = match self.recordings.get(recording.0 as usize) {
            // SAFETY: the graph was made for this context.
            Some(&Recorded { graph: Some(exec), .. }) => unsafe { graph::launch(exec, self.context.stream) },
            Some(Recorded { graph: None, launches }) => {
                launches.iter().try_for_each(|launch| self.context.launch(launch, self.dependent_launch))
            }
            None => return Err(self.refuse(format!("there is no recording {}", recording.0))),
        };
        self.check("submitting", submitted)
    }

    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError> {
        self.enter()?;
        let Some(Recorded { launches, .. }) = self.recordings.get(recording.0 as usize) else {
            return Err(self.refuse(format!("there is no recording {}", recording.0)));
        };
        let timed = self.context.time(launches);
        self.check("timing", timed)
    }

    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.enter()?;
        let from = self.address(from, bytes.len())?;
        // SAFETY: `address` saw that the bytes are there; stream and staging are of one context.
        let read = unsafe { self.staging.read(from, bytes, self.context.stream) };
        self.check("reading", read)
    }

    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError> {
        self.enter()?;
        let from = self.address(from, bytes)?;
        let Some(ticket) = self.staging.ticket().filter(|_| bytes <= FETCHED) else {
            return Err(
                self.refuse(format!("fetching {bytes} bytes; at most {TICKETS} times {FETCHED} can be fetched"))
            );
        };
        // SAFETY: `address` saw that the bytes are there; stream and staging are of one context.
        let fetched = unsafe { self.staging.fetch(ticket, from, bytes, self.context.stream) };
        self.check("fetching", fetched)?;
        Ok(Ticket(ticket as u32))
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.enter()?;
        let ticket = ticket.0 as usize;
        if self.staging.out(ticket) != Some(bytes.len()) {
            return Err(self.refuse(format!("{} bytes were not fetched with ticket {ticket}", bytes.len())));
        }
        let collected = self.staging.collect(ticket, bytes);
        self.check("collecting", collected)
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: the stream is there as long as the context.
        let waited = unsafe { stream::synchronize(self.context.stream) };
        self.check("waiting", waited)
    }
}

impl Drop for CudaGpu {
    fn drop(&mut self) {
        // Failures here cannot be handled, and after a failure every call fails.
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: everything was created in this context, is released once, and is not used by the GPU any more after
        // the stream is done.
        unsafe {
            let _ = stream::synchronize(self.context.stream);
            for recorded in self.recordings.drain(..) {
                if let Some(exec) = recorded.graph {
                    let _ = graph::exec_destroy(exec);
                }
            }
            for function in self.functions.drain(..) {
                let _ = module::unload(function.module);
            }
            for memory in self.buffers.drain(..) {
                let _ = result::free_sync(memory.address);
            }
        }
    }
}

impl Context {
    fn new(device: sys::CUdevice) -> Result<Context, DriverError> {
        // SAFETY: the device comes from the driver.
        let context = unsafe { primary_ctx::retain(device) }?;
        let mut this = Context { device, context, stream: stream::null() };
        this.enter()?;
        this.stream = stream::create(stream::StreamKind::NonBlocking)?;
        Ok(this)
    }

    fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { ctx::set_current(self.context) }
    }

    /// A graph of launches, in order.
    fn capture(&self, launches: &[Launch], dependent: bool) -> Result<sys::CUgraphExec, DriverError> {
        // SAFETY: the stream is of this context; a capture that was begun is ended, and a graph destroyed.
        unsafe {
            stream::begin_capture(self.stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
            let launched = launches.iter().try_for_each(|launch| self.launch(launch, dependent));
            let captured = stream::end_capture(self.stream);
            let (_, captured) = (launched?, captured?);
            let exec = graph::instantiate(captured, sys::CUgraphInstantiate_flags(0));
            let _ = graph::destroy(captured);
            let exec = exec?;
            graph::upload(exec, self.stream)?;
            Ok(exec)
        }
    }

    /// Launches kernels in order, with an event after each, and returns the seconds between events.
    fn time(&self, launches: &[Launch]) -> Result<Vec<f64>, DriverError> {
        let event = || event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let events = (0..=launches.len()).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        let timed = || {
            // SAFETY: events and stream are of this context.
            unsafe { event::record(events[0], self.stream) }?;
            for (launch, &event) in launches.iter().zip(&events[1..]) {
                self.launch(launch, false)?;
                // SAFETY: as above.
                unsafe { event::record(event, self.stream) }?;
            }
            // SAFETY: the stream is there as long as the context.
            unsafe { stream::synchronize(self.stream) }?;
            // SAFETY: both events were recorded and are complete.
            let between = |pair: &[sys::CUevent]| unsafe { event::elapsed(pair[0], pair[1]) };
            events.windows(2).map(|pair| Ok(f64::from(between(pair)?) / 1e3)).collect()
        };
        let seconds = timed();
        for event in events {
            // SAFETY: it was created above, and is not used again.
            let _ = unsafe { event::destroy(event) };
        }
        seconds
    }

    /// Launches a kernel. A `dependent` kernel may begin as soon as every threadgroup of its predecessor has released
    /// it, and waits for the predecessor's end itself, before it touches anything.
    fn launch(&self, launch: &Launch, dependent: bool) -> Result<(), DriverError> {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let [x, y, z] = launch.groups;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(dependent),
        };
        let mut arguments: Vec<*mut c_void> =
            launch.arguments.iter().map(|address| (&raw const *address).cast_mut().cast()).collect();
        // SAFETY: the function takes as many pointers as are given, which was checked; the driver copies them, and the
        // configuration, before it returns.
        unsafe {
            sys::cuLaunchKernelEx(&config, launch.function, arguments.as_mut_ptr(), std::ptr::null_mut()).result()
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the stream was created in the context, which was retained once; neither is used again.
        unsafe {
            if !self.stream.is_null() {
                let _ = stream::destroy(self.stream);
            }
            let _ = primary_ctx::release(self.device);
        }
    }
}

/// The version of CUDA that the driver supports, if there is one.
fn driver_version() -> Option<u32> {
    // SAFETY: this loads the driver's library, which relies on nothing of ours.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut version = 0;
    // SAFETY: the pointer is to the integer that is set. Every driver has this function.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    u32::try_from(version).ok()
}

/// The error's name and description.
fn said(error: &DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let meaning = error.error_string().map(|meaning| meaning.to_string_lossy().into_owned());
    format!("{} ({})", name.unwrap_or_else(|_| format!("{:?}", error.0)), meaning.unwrap_or_default())
}
