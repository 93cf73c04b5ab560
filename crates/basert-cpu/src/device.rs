//! The CPU as a [`Device`]: its facts, and how a plan is bound to it.

use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_graph::{Graph, Norm, Op, Rows, StateId, ValueId, Weight, WeightError, WeightId};
use basert_plan::{
    Baked, Device, DeviceError, Facts, Linear, LoadOptions, Matrix, MatrixId, Pass, Place, Plan, PlanOp, Stage,
};

use crate::attention::{Attention, Scratch};
use crate::contention::Contention;
use crate::elementwise::BoundNorm;
use crate::kv::{KvLayer, PAGE};
use crate::partials::partial_len;
use crate::step::{Bound, CpuBaked, GroupPlace, RopeTable, Shared, Uses, WorkerScratch, bind};
use crate::{Buffer, Counter, FloatRows, Isa, PackError, PackedMatrix, Pool, QuantisedRows, Source};

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
        let LoadOptions { pages, slots, kv, progress } = options;
        let page_bytes = |group| plan.page_bytes(group, kv, PAGE);
        let mut places = Vec::with_capacity(pages.len());
        let mut cache_bytes = 0usize;
        for (group, &pages) in pages.iter().enumerate() {
            places.push(GroupPlace { start: cache_bytes, pages, page_bytes: page_bytes(group) });
            cache_bytes = cache_bytes.saturating_add(pages.saturating_mul(page_bytes(group)));
        }
        let most_pages = pages.iter().copied().max().unwrap_or(0);
        let binder = Binder { device: self, plan: plan.clone(), file: file.clone(), most_pages, kv };
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
        let panels = matrices.iter().flatten().map(|matrix| matrix.scratch_bytes()).max().unwrap_or(0);
        let mut ops = Vec::with_capacity(plan.nodes.len());
        let counter = || Counter::new(self.pool.threads());
        let mut prepared_since_barrier = false;
        for node in &plan.nodes {
            let kernel = bind(&binder, node, &matrices)?;
            // Linear ops share the memory of prepared inputs, of which the plan does not know.
            let barrier = node.barrier || (kernel.prepares() && prepared_since_barrier);
            prepared_since_barrier = kernel.prepares() || (prepared_since_barrier && !barrier);
            ops.push(Bound { kernel, barrier, work: counter(), prepare: counter() });
        }
        let hidden = plan.hidden.node.iter().map(|node| {
            let kernel = bind(&binder, node, &[])?;
            Ok(Bound { kernel, barrier: true, work: counter(), prepare: counter() })
        });
        let hidden = hidden.collect::<Result<_, DeviceError>>()?;
        let shared = Shared {
            arena: binder.buffer(plan.arena_bytes, "intermediate values")?,
            cache: binder.buffer(cache_bytes, "the KV cache")?,
            states: binder.buffer(slots.saturating_mul(plan.graph.slot_bytes()), "running states")?,
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
            places: vec![Vec::new(); pages.len()],
            groups: places,
            pages,
            slots,
            kv,
            ropes,
            workers,
            contention,
            last: Pass::Logits,
        }))
    }
}

/// The context of binding a plan.
pub(crate) struct Binder<'d> {
    device: &'d CpuDevice,
    plan: Arc<Plan>,
    file: Arc<ModelFile>,
    /// Pages of the KV cache, of any group.
    most_pages: usize,
    kv: KvFormat,
}

impl Binder<'_> {
    pub fn graph(&self) -> &Graph {
        &self.plan.graph
    }

    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.plan.graph.weights[id.0]
    }

    /// A vector of weights, decoded.
    pub fn vector(&self, id: WeightId) -> Result<Vec<f32>, DeviceError> {
        Ok(self.weight(id).values(&self.file)?)
    }

    pub fn norm(&self, norm: &Norm) -> Result<BoundNorm, DeviceError> {
        let &Norm { centred, group, eps, offset, .. } = norm;
        let bias = norm.bias.map(|bias| self.vector(bias)).transpose()?;
        let weight = match norm.weight {
            Some(weight) => self.vector(weight)?.into_iter().map(|w| w + offset).collect(),
            None => vec![1.0; bias.as_ref().map_or(group, Vec::len)],
        };
        Ok(BoundNorm { centred, group, weight, bias, eps })
    }

    /// Where a value lies.
    pub fn place(&self, value: ValueId) -> Place {
        self.plan.places[value.0]
    }

    /// The same, and which tokens it has rows for.
    pub fn output(&self, value: ValueId) -> (Place, Rows) {
        (self.place(value), self.plan.values[value.0].rows)
    }

    pub fn unsupported(&self, what: String) -> DeviceError {
        DeviceError::Unsupported { device: self.device.facts.name.clone(), what }
    }

    /// Bytes of one expert's part of a repacked matrix, in whole cache lines.
    fn packed_bytes(&self, matrix: &Matrix) -> Result<usize, DeviceError> {
        let rows: Vec<_> = self.part_rows(matrix).collect();
        let bytes = PackedMatrix::packed_bytes(matrix.format, matrix.columns, &rows, matrix.order);
        let tensor = || self.weight(matrix.parts[0].0).name().to_owned();
        let bytes = bytes.map_err(|error| DeviceError::Weight { tensor: tensor(), what: error.to_string() })?;
        Ok(bytes.next_multiple_of(64))
    }

    /// The number of rows of an expert in each part of a matrix.
    fn part_rows(&self, matrix: &Matrix) -> impl Iterator<Item = usize> {
        matrix.parts.iter().map(|(id, _)| self.weight(*id).rows / matrix.experts)
    }

    /// Repacks a matrix, or the matrices of its experts, and reports to `packed` how many bytes of the file are done.
    fn pack(
        &self,
        matrix: &Matrix,
        mut memory: Buffer,
        packed: &mut dyn FnMut(usize),
    ) -> Result<Vec<Arc<PackedMatrix>>, DeviceError> {
        let weights: Vec<_> = matrix.parts.iter().map(|(id, _)| self.weight(*id)).collect();
        let (pool, order, len) = (&self.device.pool, matrix.order, self.packed_bytes(matrix)?);
        let mut done = |bytes: &[u8]| {
            self.file.release(bytes);
            packed(bytes.len());
        };
        let pack = |expert: usize| {
            let read = weights.iter().zip(self.part_rows(matrix)).map(|(weight, rows)| {
                let bytes = weight.read(&self.file, expert * rows..(expert + 1) * rows)?;
                Ok((bytes, rows))
            });
            let read = read.collect::<Result<Vec<_>, WeightError>>()?;
            let sources: Vec<_> = read.iter().map(|(bytes, rows)| Source { bytes, rows: *rows }).collect();
            let memory = memory.split_to(len);
            let packed = PackedMatrix::pack(pool, matrix.format, matrix.columns, &sources, order, memory, &mut done);
            packed.map(Arc::new).map_err(|error| {
                let part = if let PackError::NotFinite { tensor, .. } = error { tensor } else { 0 };
                DeviceError::Weight { tensor: weights[part].name().to_owned(), what: error.to_string() }
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

    /// The biases of a matrix's parts, if any has one.
    pub fn bias(&self, id: MatrixId) -> Result<Option<Vec<f32>>, DeviceError> {
        Ok(self.plan.matrices[id.0].bias(&self.plan.graph, &self.file)?)
    }

    /// First byte of a layer's keys in a page of its group, heads and dimensions.
    pub fn cache(&self, id: StateId) -> crate::step::CachePlace {
        let (group, offset) = self.plan.place_in_page(id, self.kv, PAGE);
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.cache(id);
        crate::step::CachePlace { group, offset, kv_heads, head_dim }
    }

    fn ropes(&self) -> Vec<RopeTable> {
        self.plan.graph.ropes.iter().map(|rope| RopeTable::new(rope, self.plan.limits.tokens)).collect()
    }

    /// The widest input of a linear op.
    fn widest(&self) -> usize {
        self.plan.matrices.iter().map(|matrix| matrix.columns).max().unwrap_or(0)
    }

    /// The most experts that a token uses, and the most in any op; 1 and 0 without experts.
    fn most_experts(&self) -> (usize, usize) {
        let experts = self.plan.nodes.iter().filter_map(|node| match node.op {
            PlanOp::Linear(Linear { experts, .. }) => experts,
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
        let lengths = self.attentions().map(|attention| {
            let dim = KvLayer::stored_dim(self.kv, attention.head_dim);
            attention.q_heads * partial_len(dim)
        });
        self.buffer(self.most_pages.saturating_mul(lengths.max().unwrap_or(0) * size_of::<f32>()), "partial attention")
    }

    /// The attention op that needs the most memory.
    fn largest_attention(&self) -> Option<Attention> {
        self.attentions().max_by_key(|attention| {
            (attention.row_block() * attention.group() + attention.group()) * attention.head_dim
        })
    }

    fn attentions(&self) -> impl Iterator<Item = Attention> {
        self.plan.nodes.iter().filter_map(|node| match &node.op {
            PlanOp::Plain(Op::Attention(attention)) => Some(self.attention(attention)),
            _ => None,
        })
    }

    pub fn attention(&self, op: &basert_graph::Attention) -> Attention {
        let &basert_graph::Attention { cache, heads, scale, reach, cap, alibi, .. } = op;
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.cache(cache);
        Attention { head_dim, q_heads: heads, kv_heads, scale, soft_cap: cap, reach, alibi }
    }

    fn uses(&self) -> Uses {
        let (used, count) = self.most_experts();
        Uses::new(self.plan.limits.tokens.max(self.plan.limits.wanted) * used, count)
    }

    fn worker(&self, panels: usize) -> Result<WorkerScratch, DeviceError> {
        let width = self.widest().max(self.plan.values.iter().map(|value| value.width).max().unwrap_or(0));
        Ok(WorkerScratch {
            row: vec![0.0; width],
            embedding: vec![0; 4 * self.plan.graph.weights.iter().map(|weight| weight.columns).max().unwrap_or(0)],
            row_floats: vec![0.0; FloatRows::len(1, self.widest())],
            panels: self.buffer(panels, "expanded weights")?,
            uses: self.uses(),
            row_quantised: self.buffer(QuantisedRows::bytes(1, width.next_multiple_of(32)), "a worker's row")?,
            attention: self.largest_attention().map(|attention| Scratch::new(&attention)),
            state: vec![0.0; crate::step::state_scratch(&self.plan.graph)],
        })
    }
}
