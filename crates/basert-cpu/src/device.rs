//! The CPU as a [`Device`]: its facts, and how a plan is bound to it.

use std::sync::Arc;

use basert_core::{KvFormat, codec};
use basert_files::ModelFile;
use basert_graph::{Experts, Norm, Pairs, WeightId};
use basert_plan::{Baked, Device, DeviceError, Epilogue, Facts, LoadOptions, Matrix, Plan, PlanOp, Stage};

use crate::attention::{Attention, Scratch};
use crate::contention::Contention;
use crate::elementwise::BoundNorm;
use crate::kv::{KvLayer, PAGE};
use crate::partials::partial_len;
use crate::step::{Bound, BoundExperts, BoundLinear, CpuBaked, Kernel, RopeTable, Shared, Uses, WorkerScratch};
use crate::{Buffer, Counter, FloatRows, Isa, PackError, PackedMatrix, Pool, QuantisedRows, RotaryStyle, Source};

/// Tokens of a step beyond which prefill does not get faster.
pub const STEP_TOKENS: usize = 512;

/// The CPU.
pub struct CpuDevice {
    pool: Arc<Pool>,
    isa: Isa,
    facts: Facts,
}

impl CpuDevice {
    /// With `threads` threads, or one for each core.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: Option<usize>) -> std::io::Result<CpuDevice> {
        CpuDevice::with_isa(threads, Isa::detect())
    }

    /// With this instruction set, which the machine must have.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> std::io::Result<CpuDevice> {
        let pool = Arc::new(Pool::new(threads)?);
        let facts = Facts {
            name: "cpu".to_owned(),
            description: format!("{} threads, {isa}", pool.threads()),
            page_tokens: PAGE,
            // All instruction sets compute the same bits.
            layout: "cpu 2".to_owned(),
            step_tokens: STEP_TOKENS,
            chain: 0,
            bounds: None,
            free_memory: None,
        };
        Ok(CpuDevice { pool, isa, facts })
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

impl Device for CpuDevice {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError> {
        let LoadOptions { pages, kv, progress } = options;
        let binder = Binder { device: self, plan: plan.clone(), file: file.clone(), pages, kv };
        let (mut ready, total) = (0, plan.weight_bytes());
        let mut packed = |bytes| {
            ready += bytes;
            progress(Stage::Weights, ready, total);
        };
        // One allocation for all, so that small matrices lie on large pages too.
        let lens = plan.matrices.iter().map(|matrix| Ok(matrix.experts * binder.packed_bytes(matrix)?));
        let lens = lens.collect::<Result<Vec<_>, DeviceError>>()?;
        let mut memory = binder.buffer(lens.iter().sum(), "packed weights")?;
        let parts: Vec<_> = lens.iter().map(|&len| memory.split_to(len)).collect();
        let matrices = plan.matrices.iter().zip(parts).map(|(matrix, part)| binder.pack(matrix, part, &mut packed));
        let matrices: Vec<_> = matrices.collect::<Result<_, _>>()?;
        let panels = matrices.iter().flatten().map(PackedMatrix::scratch_bytes).max().unwrap_or(0);
        let mut matrices: Vec<_> = matrices.into_iter().map(Some).collect();
        let page_bytes = plan.graph.caches.iter().map(|cache| binder.page_bytes(cache)).sum();
        let mut ops = Vec::with_capacity(plan.ops.len());
        let counter = || Counter::new(self.pool.threads());
        let mut linear_since_barrier = false;
        for planned in &plan.ops {
            let kernel = binder.bind(&planned.op, &mut matrices)?;
            let is_linear = matches!(kernel, Kernel::Linear(_) | Kernel::Experts(_));
            // Linear ops share the memory of prepared inputs, of which the plan does not know.
            let barrier = planned.barrier || (is_linear && linear_since_barrier);
            linear_since_barrier = is_linear || (linear_since_barrier && !barrier);
            ops.push(Bound { kernel, barrier, work: counter(), prepare: counter() });
        }
        let hidden = plan.hidden.op.iter().map(|op| {
            let kernel = binder.bind(op, &mut [])?;
            Ok(Bound { kernel, barrier: true, work: counter(), prepare: counter() })
        });
        let hidden = hidden.collect::<Result<_, DeviceError>>()?;
        let shared = Shared {
            arena: binder.buffer(plan.arena_bytes, "intermediate values")?,
            cache: binder.buffer(pages.saturating_mul(page_bytes), "the KV cache")?,
            prepared: binder.prepared()?,
            partials: binder.partials()?,
        };
        let ropes = binder.ropes();
        let workers = (0..self.pool.threads()).map(|_| binder.worker(panels)).collect::<Result<_, _>>()?;
        let (pool, isa, contention) = (self.pool.clone(), self.isa, Contention::new(self.pool.threads()));
        Ok(Box::new(CpuBaked {
            pool,
            isa,
            plan,
            file,
            ops,
            hidden,
            shared,
            pages,
            page_bytes,
            kv,
            slots: Vec::new(),
            ropes,
            workers,
            contention,
        }))
    }
}

/// The context of binding a plan.
struct Binder<'d> {
    device: &'d CpuDevice,
    plan: Arc<Plan>,
    file: Arc<ModelFile>,
    /// Pages of the KV cache.
    pages: usize,
    kv: KvFormat,
}

impl Binder<'_> {
    fn tensor(&self, id: WeightId) -> Result<basert_files::Tensor<'_>, DeviceError> {
        let name = &self.plan.graph.weights[id.0].tensor;
        let missing = || DeviceError::Weight { tensor: name.clone(), what: "it is missing".to_owned() };
        self.file.tensor(name).ok_or_else(missing)
    }

    /// A vector of weights, decoded.
    fn vector(&self, id: WeightId) -> Result<Vec<f32>, DeviceError> {
        let tensor = self.tensor(id)?;
        let fail = |what: String| DeviceError::Weight { tensor: tensor.name.to_owned(), what };
        let mut values = vec![0.0; tensor.elements()];
        codec::decode(tensor.format, tensor.bytes, &mut values).map_err(|error| fail(error.to_string()))?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(fail(format!("value {i} is {}, not a finite number", values[i]))),
            None => Ok(values),
        }
    }

    fn norm(&self, norm: &Norm) -> Result<BoundNorm, DeviceError> {
        let mut weight = self.vector(norm.weight)?;
        weight.iter_mut().for_each(|w| *w += norm.offset);
        let bias = norm.bias.map(|bias| self.vector(bias)).transpose()?;
        Ok(BoundNorm { centred: norm.centred, weight, bias, eps: norm.eps })
    }

    /// Bytes of one expert's part of a repacked matrix, in whole cache lines.
    fn packed_bytes(&self, matrix: &Matrix) -> Result<usize, DeviceError> {
        let rows: Vec<_> = self.part_rows(matrix).collect();
        let bytes = PackedMatrix::packed_bytes(matrix.format, matrix.columns, &rows, matrix.order);
        let tensor = || self.plan.graph.weights[matrix.parts[0].0.0].tensor.clone();
        let bytes = bytes.map_err(|error| DeviceError::Weight { tensor: tensor(), what: error.to_string() })?;
        Ok(bytes.next_multiple_of(64))
    }

    /// The number of rows of an expert in each part of a matrix.
    fn part_rows(&self, matrix: &Matrix) -> impl Iterator<Item = usize> {
        matrix.parts.iter().map(|(id, _)| self.plan.graph.weights[id.0].rows / matrix.experts)
    }

    /// Repacks a matrix, or the matrices of its experts, and reports to `packed` how many bytes of the file are done.
    fn pack(
        &self,
        matrix: &Matrix,
        mut memory: Buffer,
        packed: &mut dyn FnMut(usize),
    ) -> Result<Vec<PackedMatrix>, DeviceError> {
        let tensors: Vec<_> = matrix.parts.iter().map(|(id, _)| self.tensor(*id)).collect::<Result<_, _>>()?;
        let (pool, order, len) = (&self.device.pool, matrix.order, self.packed_bytes(matrix)?);
        let mut done = |bytes: &[u8]| {
            self.file.release(bytes);
            packed(bytes.len());
        };
        let pack = |expert: usize| {
            let bytes = tensors.iter().map(|tensor| {
                let len = tensor.bytes.len() / matrix.experts;
                &tensor.bytes[expert * len..(expert + 1) * len]
            });
            let sources: Vec<_> =
                bytes.zip(self.part_rows(matrix)).map(|(bytes, rows)| Source { bytes, rows }).collect();
            let memory = memory.split_to(len);
            let packed = PackedMatrix::pack(pool, matrix.format, matrix.columns, &sources, order, memory, &mut done);
            packed.map_err(|error| match error {
                PackError::NotFinite { tensor, .. } => {
                    DeviceError::Weight { tensor: tensors[tensor].name.to_owned(), what: error.to_string() }
                }
                _ => DeviceError::Weight { tensor: tensors[0].name.to_owned(), what: error.to_string() },
            })
        };
        (0..matrix.experts).map(pack).collect()
    }

    fn out_of_memory(&self, bytes: usize, what: &str) -> DeviceError {
        DeviceError::OutOfMemory { device: self.device.facts.name.clone(), bytes, what: what.to_owned() }
    }

    fn buffer(&self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        Buffer::zeroed(bytes).map_err(|_| self.out_of_memory(bytes, what))
    }

    fn bind(&self, op: &PlanOp, packed: &mut [Option<Vec<PackedMatrix>>]) -> Result<Kernel, DeviceError> {
        let place = |value: basert_graph::ValueId| (self.plan.places[value.0], self.plan.values[value.0].rows);
        Ok(match *op {
            PlanOp::Embed { weight, scale, out } => {
                let tensor = self.tensor(weight)?;
                Kernel::Embed { tensor: tensor.name.to_owned(), scale, out: place(out).0 }
            }
            PlanOp::Norm { x, ref norm, residual, out } => {
                let norm = self.norm(norm)?;
                Kernel::Norm { x: place(x).0, norm, add: residual.is_some(), out: place(out) }
            }
            PlanOp::Linear { x, ref norm, ref matrices, experts, epilogue, out } => {
                let epilogue = match epilogue {
                    Epilogue::Store => crate::Epilogue::Store,
                    Epilogue::Add(_) => crate::Epilogue::Add,
                    Epilogue::Gated(activation) => crate::Epilogue::Gated(activation),
                };
                let norm = norm.as_ref().map(|norm| self.norm(norm)).transpose()?;
                let mut parts = Vec::with_capacity(matrices.len());
                let mut column = 0;
                for id in matrices {
                    let mut bias = self.bias(&self.plan.matrices[id.0])?;
                    for matrix in packed[id.0].take().into_iter().flatten() {
                        let width = matrix.rows();
                        let rest = bias.as_mut().map(|bias| bias.split_off(width));
                        parts.push((matrix, std::mem::replace(&mut bias, rest), column..column + width));
                        column += width;
                    }
                }
                if let Some(Experts { route, used, .. }) = experts {
                    let experts = parts.into_iter().map(|(matrix, bias, _)| (matrix, bias)).collect();
                    let (x, route, out) = (place(x).0, place(route).0, place(out));
                    if out.0.stride != out.0.width {
                        let what = "results of experts among other values".to_owned();
                        return Err(DeviceError::Unsupported { device: self.device.facts.name.clone(), what });
                    }
                    return Ok(Kernel::Experts(BoundExperts { x, route, used, experts, epilogue, out }));
                }
                Kernel::Linear(BoundLinear { x: place(x).0, norm, parts, epilogue, out: place(out) })
            }
            PlanOp::Route { x, normalised, out, .. } => Kernel::Route { x: place(x).0, normalised, out: place(out) },
            PlanOp::Combine { x, experts, residual, out } => {
                let route = place(experts.route).0;
                Kernel::Combine { x: place(x).0, route, add: residual.is_some(), out: place(out) }
            }
            PlanOp::RopeCache { q, k, v, ref q_norm, ref k_norm, rope, cache, out } => Kernel::RopeCache {
                q: place(q).0,
                k: place(k).0,
                v: place(v).0,
                q_norm: q_norm.as_ref().map(|norm| self.norm(norm)).transpose()?,
                k_norm: k_norm.as_ref().map(|norm| self.norm(norm)).transpose()?,
                rope: rope.0,
                cache: self.cache(cache),
                out: place(out).0,
            },
            PlanOp::Attention { q, cache, heads, scale, window, cap, sinks, out } => {
                let attention = self.attention(cache, heads, scale, window, cap);
                attention.check().map_err(|what| DeviceError::Unsupported {
                    device: self.device.facts.name.clone(),
                    what: what.to_string(),
                })?;
                let sinks = sinks.map(|sinks| self.vector(sinks)).transpose()?;
                Kernel::Attention { q: place(q).0, attention, sinks, cache: self.cache(cache), out: place(out).0 }
            }
            PlanOp::Gate { gate, up, activation, out } => {
                Kernel::Gate { gate: place(gate).0, up: place(up).0, activation, out: place(out) }
            }
            PlanOp::Add { a, b, out } => Kernel::Add { a: place(a).0, b: place(b).0, out: place(out) },
            PlanOp::Select { x, out } => Kernel::Select { x: place(x).0, out: place(out).0 },
            PlanOp::SoftCap { x, cap, out } => Kernel::SoftCap { x: place(x).0, cap, out: place(out) },
        })
    }

    /// The biases of a matrix's parts, if any has one.
    fn bias(&self, matrix: &Matrix) -> Result<Option<Vec<f32>>, DeviceError> {
        if matrix.parts.iter().all(|(_, bias)| bias.is_none()) {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(matrix.rows);
        for &(weight, bias) in &matrix.parts {
            match bias {
                Some(bias) => all.extend(self.vector(bias)?),
                None => all.resize(all.len() + self.plan.graph.weights[weight.0].rows, 0.0),
            }
        }
        Ok(Some(all))
    }

    fn page_bytes(&self, cache: &basert_graph::Cache) -> usize {
        KvLayer::page_bytes(self.kv, cache.kv_heads, cache.head_dim)
    }

    /// First byte of a layer's keys in a page, heads and dimensions.
    fn cache(&self, id: basert_graph::CacheId) -> crate::step::CachePlace {
        let caches = &self.plan.graph.caches;
        let offset = caches[..id.0].iter().map(|cache| self.page_bytes(cache)).sum();
        crate::step::CachePlace { offset, kv_heads: caches[id.0].kv_heads, head_dim: caches[id.0].head_dim }
    }

    fn ropes(&self) -> Vec<RopeTable> {
        let style = |pairs| match pairs {
            Pairs::Half => RotaryStyle::Halves,
            Pairs::Interleaved => RotaryStyle::Pairs,
        };
        let table = |rope: &basert_graph::Rope| {
            RopeTable::new(rope.frequencies.clone(), style(rope.pairs), self.plan.limits.tokens)
        };
        self.plan.graph.ropes.iter().map(table).collect()
    }

    /// The widest input of a linear op.
    fn widest(&self) -> usize {
        self.plan.matrices.iter().map(|matrix| matrix.columns).max().unwrap_or(0)
    }

    /// The most experts that a token uses, and the most in any op; 1 and 0 without experts.
    fn most_experts(&self) -> (usize, usize) {
        let experts = self.plan.ops.iter().filter_map(|op| match op.op {
            PlanOp::Linear { experts, .. } => experts,
            _ => None,
        });
        experts.fold((1, 0), |(used, count), experts| (used.max(experts.used), count.max(experts.count)))
    }

    /// Memory for the prepared inputs of a linear op: normed, and quantised.
    fn prepared(&self) -> Result<(Buffer, Buffer), DeviceError> {
        let rows = self.plan.limits.tokens.max(self.plan.limits.wanted) * self.most_experts().0;
        let width = self.widest();
        let what = "prepared inputs";
        let floats = FloatRows::len(rows, width).saturating_mul(size_of::<f32>());
        let quantised = QuantisedRows::bytes(rows, width.next_multiple_of(32));
        Ok((self.buffer(floats, what)?, self.buffer(quantised, what)?))
    }

    /// Memory for the partial results of attention over a context divided by pages.
    fn partials(&self) -> Result<Buffer, DeviceError> {
        let ops = self.plan.ops.iter().filter_map(|op| match op.op {
            PlanOp::Attention { cache, heads, .. } => {
                let dim = KvLayer::stored_dim(self.kv, self.plan.graph.caches[cache.0].head_dim);
                Some(heads * partial_len(dim))
            }
            _ => None,
        });
        self.buffer(self.pages.saturating_mul(ops.max().unwrap_or(0) * size_of::<f32>()), "partial attention")
    }

    /// The attention op that needs the most memory.
    fn largest_attention(&self) -> Option<Attention> {
        let attentions = self.plan.ops.iter().filter_map(|op| match op.op {
            PlanOp::Attention { cache, heads, scale, window, cap, .. } => {
                Some(self.attention(cache, heads, scale, window, cap))
            }
            _ => None,
        });
        attentions.max_by_key(|attention| {
            (attention.row_block() * attention.group() + attention.group()) * attention.head_dim
        })
    }

    fn attention(
        &self,
        cache: basert_graph::CacheId,
        q_heads: usize,
        scale: f32,
        window: Option<usize>,
        soft_cap: Option<f32>,
    ) -> Attention {
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.caches[cache.0];
        Attention { head_dim, q_heads, kv_heads, scale, soft_cap, window }
    }

    fn uses(&self) -> Uses {
        let (used, count) = self.most_experts();
        Uses::new(self.plan.limits.tokens.max(self.plan.limits.wanted) * used, count)
    }

    fn worker(&self, panels: usize) -> Result<WorkerScratch, DeviceError> {
        let width = self.widest().max(self.plan.values.iter().map(|value| value.width).max().unwrap_or(0));
        Ok(WorkerScratch {
            row: vec![0.0; self.widest()],
            embedding: vec![0; 4 * self.plan.graph.weights.iter().map(|weight| weight.columns).max().unwrap_or(0)],
            row_floats: vec![0.0; FloatRows::len(1, self.widest())],
            panels: self.buffer(panels, "expanded weights")?,
            uses: self.uses(),
            row_quantised: self.buffer(QuantisedRows::bytes(1, width.next_multiple_of(32)), "a worker's row")?,
            attention: self.largest_attention().map(|attention| Scratch::new(&attention)),
        })
    }
}
