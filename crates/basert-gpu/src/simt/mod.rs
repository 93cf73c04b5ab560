//! A simulated GPU on the CPU: kernels run thread by thread, and invalid accesses and barriers are reported.
//!
//! Each kernel is compiled by the machine's C++ compiler ([`compiler`]), from its own source with bounds-checked
//! pointers ([`source`], `metal.h`). Threadgroups run as coroutines ([`threadgroup`]), in an order fixed by a seed:
//! launches without a barrier between them, threadgroups, simdgroups and lanes may run in any order, so a kernel or a
//! plan that lacks a barrier gives another result under another seed.

mod compiler;
mod memory;
mod order;
mod source;
mod threadgroup;

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use basert_files::ModelFile;
use compiler::{Compiled, Compiler};
use memory::Allocation;
use order::{Order, Random};
use threadgroup::{Fault, LANES, Launch, MOST_THREADS, Memory, Worker};

use crate::lower::THREADGROUP_BYTES;
use crate::views::Views;
use crate::{Binding, Buffer, Cache, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};

/// The least threadgroups per system thread.
const LEAST_GROUPS: u64 = 4;
/// The alignment of offsets of bindings.
const OFFSETS: usize = 16;
/// Views of files are small, so that models have several.
const LARGEST_VIEW: usize = 1 << 20;
/// The alignment of views of files.
const VIEW_PAGE: usize = 4096;

/// How kernels are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimtOptions {
    /// Fixes the order of everything that may run in any order.
    pub seed: u64,
    /// System threads over which threadgroups are spread.
    pub workers: usize,
}

impl Default for SimtOptions {
    fn default() -> SimtOptions {
        SimtOptions { seed: 0, workers: thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// The CPU as a GPU that finds bugs in kernels.
pub struct SimtGpu {
    facts: GpuFacts,
    options: SimtOptions,
    compiler: Compiler,
    workers: Vec<Worker>,
    buffers: Vec<Allocation>,
    /// Kernels, compiled if a recording has needed them.
    pipelines: Vec<(Kernel, Option<Loaded>)>,
    recordings: Vec<Vec<Run>>,
    /// Fetched bytes that were not collected yet, and the number of fetches.
    fetched: HashMap<Ticket, Vec<u8>>,
    fetches: u32,
    /// Launches so far.
    launched: u64,
}

/// A kernel, and its arguments: of each buffer's index, its name and whether it is only read.
struct Loaded {
    compiled: Compiled,
    arguments: Vec<Option<(CString, bool)>>,
}

/// A dispatch, ready to be run.
struct Run {
    pipeline: usize,
    arguments: Vec<Memory>,
    groups: [u32; 3],
    threads: u32,
    barrier: bool,
}

impl SimtGpu {
    /// A machine without memory in use.
    ///
    /// # Errors
    /// When there is no C++ compiler.
    pub fn new(options: SimtOptions) -> Result<SimtGpu, GpuError> {
        let compiler = Compiler::find(Cache::open_default())?;
        let options = SimtOptions { workers: options.workers.max(1), ..options };
        let facts = GpuFacts {
            name: "simt".to_owned(),
            description: "the CPU, running GPU kernels thread by thread".to_owned(),
            software: compiler.name(),
            tuning: "simt",
            free_memory: memory::available(),
            largest_buffer: usize::MAX,
            threadgroup_memory: THREADGROUP_BYTES,
            cores: options.workers,
            bounds: None,
        };
        let workers = (0..options.workers).map(|_| Worker::default()).collect();
        Ok(SimtGpu {
            facts,
            options,
            compiler,
            workers,
            buffers: Vec::new(),
            pipelines: Vec::new(),
            recordings: Vec::new(),
            fetched: HashMap::new(),
            fetches: 0,
            launched: 0,
        })
    }

    /// The memory from a binding to the end of its buffer.
    fn memory(&self, binding: Binding) -> Result<(*mut u8, usize), GpuError> {
        let Binding { buffer: Buffer(id), offset } = binding;
        let buffer = self.buffers.get(id as usize).ok_or_else(|| failed(format!("there is no buffer {id}")))?;
        let rest = buffer.bytes().checked_sub(offset).ok_or_else(|| {
            failed(format!("offset {offset} is beyond the end of buffer {id}, which has {} bytes", buffer.bytes()))
        })?;
        Ok((buffer.begin().wrapping_add(offset), rest))
    }

    /// The same, with at least `bytes` bytes.
    fn bytes(&self, binding: Binding, bytes: usize) -> Result<*mut u8, GpuError> {
        let (begin, rest) = self.memory(binding)?;
        if bytes > rest {
            return Err(failed(format!(
                "{bytes} bytes at {} of buffer {}: it ends after {rest}",
                binding.offset, binding.buffer.0
            )));
        }
        Ok(begin)
    }

    /// The same, for writing.
    fn own_bytes(&self, binding: Binding, bytes: usize) -> Result<*mut u8, GpuError> {
        let begin = self.bytes(binding, bytes)?;
        if self.buffers[binding.buffer.0 as usize].is_mapped() {
            return Err(failed(format!("buffer {} is a file, and only read", binding.buffer.0)));
        }
        Ok(begin)
    }

    /// Compiles the kernels of these dispatches that are not compiled yet, on all workers.
    fn make_ready(&mut self, dispatches: &[Dispatch]) -> Result<(), GpuError> {
        let mut needed: Vec<usize> = dispatches.iter().map(|dispatch| dispatch.pipeline.0 as usize).collect();
        needed.sort_unstable();
        needed.dedup();
        needed.retain(|&id| self.pipelines.get(id).is_some_and(|(_, loaded)| loaded.is_none()));
        let next = AtomicU64::new(0);
        let (sender, receiver) = mpsc::channel();
        let (pipelines, compiler, workers) = (&self.pipelines, &self.compiler, self.workers.len());
        let compiled: Vec<_> = thread::scope(|scope| {
            for _ in 0..workers.min(needed.len()) {
                let (sender, next, needed) = (sender.clone(), &next, &needed);
                scope.spawn(move || {
                    while let Some(&id) = needed.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        // The receiver is gone after an error.
                        if sender.send((id, compiler.compile(&pipelines[id].0))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            receiver.into_iter().map(|(id, compiled)| Ok((id, compiled?))).collect::<Result<_, GpuError>>()
        })?;
        for (id, compiled) in compiled {
            self.pipelines[id].1 = Some(Loaded::new(compiled));
        }
        Ok(())
    }

    fn prepare(&self, dispatch: &Dispatch) -> Result<Run, GpuError> {
        let Pipeline(id) = dispatch.pipeline;
        let loaded = self.pipelines.get(id as usize).and_then(|(_, loaded)| loaded.as_ref());
        let loaded = loaded.ok_or_else(|| failed(format!("there is no pipeline {id}")))?;
        let refuse = |what: String| failed(format!("{}: {what}", loaded.compiled.kernel));
        let threads = dispatch.threads;
        if threads == 0 || !(threads as usize).is_multiple_of(LANES) || threads as usize > MOST_THREADS {
            return Err(refuse(format!(
                "{threads} threads: whole simdgroups of {LANES}, up to {MOST_THREADS}, are wanted"
            )));
        }
        if threads != loaded.compiled.kernel.threads {
            return Err(refuse(format!(
                "{threads} threads, but it is compiled for {}",
                loaded.compiled.kernel.threads
            )));
        }
        let argument = |(i, argument): (usize, &Option<(CString, bool)>)| {
            let nothing = Memory { begin: std::ptr::null_mut(), bytes: 0, name: c"".as_ptr() };
            let Some((name, only_read)) = argument else { return Ok(nothing) };
            let said = name.to_string_lossy();
            let binding =
                *dispatch.bindings.get(i).ok_or_else(|| refuse(format!("nothing is bound to {said}, buffer({i})")))?;
            if !binding.offset.is_multiple_of(OFFSETS) {
                return Err(refuse(format!("{said} is bound at {}, not a multiple of {OFFSETS}", binding.offset)));
            }
            let (begin, bytes) = self.memory(binding).map_err(|e| refuse(format!("{said}: {e}")))?;
            if !only_read && self.buffers[binding.buffer.0 as usize].is_mapped() {
                return Err(refuse(format!("{said} is written, and bound to a file")));
            }
            Ok(Memory { begin, bytes: bytes as u64, name: name.as_ptr() })
        };
        let arguments = loaded.arguments.iter().enumerate().map(argument).collect::<Result<_, _>>()?;
        Ok(Run { pipeline: id as usize, arguments, groups: dispatch.groups, threads, barrier: dispatch.barrier })
    }

    fn run(&mut self, recording: usize, index: usize) -> Result<(), GpuError> {
        let run = &self.recordings[recording][index];
        let Some(Loaded { compiled, .. }) = &self.pipelines[run.pipeline].1 else {
            return Err(failed("a kernel was not compiled when it was recorded".to_owned()));
        };
        let launch =
            Launch { entry: compiled.entry, arguments: &run.arguments, groups: run.groups, threads: run.threads };
        self.launched += 1;
        let mut random = Random::new(self.options.seed, self.launched);
        let count = run.groups.iter().map(|&n| u64::from(n)).product::<u64>();
        if count == 0 {
            return Ok(());
        }
        let order = Order::new(count as usize, &mut random);
        let seed = random.next();
        let next = AtomicU64::new(0);
        let fault = Mutex::new(None);
        let work = |worker: &mut Worker| {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                if place >= count {
                    break;
                }
                let group = order.at(place as usize) as u64;
                let (x, y) = (u64::from(run.groups[0]), u64::from(run.groups[1]));
                let position = [group % x, group / x % y, group / x / y].map(|i| i as u32);
                // SAFETY: the kernel was compiled from such a source, each of its arguments was given memory by
                // `prepare`, and buffers are kept as long as the recordings that name them.
                let result = unsafe { worker.run(launch, position, &mut Random::new(seed, group)) };
                if let Err(found) = result {
                    next.store(count, Ordering::Relaxed);
                    let mut first = fault.lock().unwrap_or_else(|e| e.into_inner());
                    first.get_or_insert((position, found));
                }
            }
        };
        let useful = (count / LEAST_GROUPS).clamp(1, self.workers.len() as u64) as usize;
        if let Some((here, others)) = self.workers[..useful].split_first_mut() {
            thread::scope(|scope| {
                for worker in others {
                    scope.spawn(|| work(worker));
                }
                work(here);
            });
        }
        match fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some((position, fault)) => Err(describe(&compiled.kernel, position, &fault)),
            None => Ok(()),
        }
    }
}

impl Gpu for SimtGpu {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError> {
        let allocation = Allocation::zeroed(bytes).ok_or_else(|| {
            let free = memory::available().unwrap_or(0);
            GpuError::OutOfMemory { bytes, what: what.to_owned(), free }
        })?;
        self.buffers.push(allocation);
        Ok(Buffer(self.buffers.len() as u32 - 1))
    }

    fn map(&mut self, file: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        let mut bindings = vec![None; parts.len()];
        for mapping in file.mappings() {
            let inside: Vec<_> = (0..parts.len())
                .filter(|&i| (parts[i].as_ptr() as usize).is_multiple_of(OFFSETS))
                .filter_map(|i| Some((i, mapping.offset_of(parts[i])?)))
                .collect();
            let ranges: Vec<_> = inside.iter().map(|&(i, offset)| offset..offset + parts[i].len()).collect();
            let Views { views, places } = Views::new(&ranges, VIEW_PAGE, LARGEST_VIEW);
            let first = self.buffers.len();
            for view in views {
                self.buffers.push(Allocation::mapped(file, &mapping[view.start..view.end.min(mapping.len())]));
            }
            for ((i, _), place) in inside.into_iter().zip(places) {
                bindings[i] = place.map(|(view, offset)| Binding { buffer: Buffer((first + view) as u32), offset });
            }
        }
        Ok(bindings)
    }

    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        // A model has many kernels, for steps of all sizes, and a test needs few of them: they are compiled when a
        // recording needs them.
        let first = self.pipelines.len() as u32;
        self.pipelines.extend(kernels.iter().map(|kernel| (kernel.clone(), None)));
        progress(kernels.len());
        Ok((first..self.pipelines.len() as u32).map(Pipeline).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        self.make_ready(dispatches)?;
        let runs = dispatches.iter().map(|dispatch| self.prepare(dispatch)).collect::<Result<_, _>>()?;
        self.recordings.push(runs);
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError> {
        let to = self.own_bytes(to, bytes.len())?;
        // SAFETY: there are so many bytes, and no kernel runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError> {
        let (from, to) = (self.bytes(from, bytes)?, self.own_bytes(to, bytes)?);
        // SAFETY: there are so many bytes at both, and no kernel runs.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        let Recording(id) = recording;
        let runs = self.recordings.get(id as usize).ok_or_else(|| failed(format!("there is no recording {id}")))?;
        let mut starts: Vec<usize> = (0..runs.len()).filter(|&i| i == 0 || runs[i].barrier).collect();
        starts.push(runs.len());
        for bounds in starts.windows(2) {
            // Launches without a barrier between them may run in any order.
            let together = bounds[1] - bounds[0];
            let order = Order::new(together, &mut Random::new(self.options.seed, self.launched));
            for place in 0..together {
                self.run(id as usize, bounds[0] + order.at(place))?;
            }
        }
        Ok(())
    }

    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError> {
        let Recording(id) = recording;
        let runs = self.recordings.get(id as usize).map(Vec::len);
        let runs = runs.ok_or_else(|| failed(format!("there is no recording {id}")))?;
        let one = |index| {
            let start = Instant::now();
            self.run(id as usize, index)?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..runs).map(one).collect()
    }

    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        let from = self.bytes(from, bytes.len())?;
        // SAFETY: there are so many bytes, and no kernel runs.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError> {
        let mut fetched = vec![0; bytes];
        self.read(from, &mut fetched)?;
        let ticket = Ticket(self.fetches);
        self.fetches = self.fetches.wrapping_add(1);
        self.fetched.insert(ticket, fetched);
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        let fetched =
            self.fetched.remove(&ticket).ok_or_else(|| failed("nothing was fetched under this ticket".into()))?;
        let fetched =
            fetched.get(..bytes.len()).ok_or_else(|| failed(format!("only {} bytes were fetched", fetched.len())))?;
        bytes.copy_from_slice(fetched);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}

impl Loaded {
    fn new(compiled: Compiled) -> Loaded {
        let mut arguments = Vec::new();
        for argument in &compiled.signature.arguments {
            if let Some(i) = argument.buffer() {
                arguments.resize(arguments.len().max(i + 1), None);
                let only_read = argument.kind.split_whitespace().any(|word| word == "const" || word == "constant");
                arguments[i] = CString::new(argument.name.as_str()).ok().map(|name| (name, only_read));
            }
        }
        Loaded { compiled, arguments }
    }
}

fn failed(what: String) -> GpuError {
    GpuError::Failed(what)
}

fn describe(kernel: &Kernel, [x, y, z]: [u32; 3], fault: &Fault) -> GpuError {
    let Fault { thread, what, line } = fault;
    let source = kernel.source();
    let place = (*line as usize).checked_sub(1).and_then(|i| source.lines().nth(i));
    let place = place.map_or(String::new(), |text| format!(", at `{}`", text.trim()));
    failed(format!("{kernel}: thread {thread} of threadgroup ({x}, {y}, {z}) {what}{place}"))
}
