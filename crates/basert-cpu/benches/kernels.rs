//! How fast the kernels are, beside what the machine can do: `cargo bench -p basert-cpu [-- FILTER… ISA]`.
//!
//! The peaks are measured in the same run, since a shared machine differs from minute to minute: `memory` reads a large
//! buffer, `dot` repeats the integer dot product of 64 bytes on registers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use basert_core::{FORMATS, Format, KvFormat};
use basert_cpu::*;
use basert_graph::Reach;

/// Larger than the last-level cache, so that a product with one row streams from memory.
const LARGE: usize = 1 << 30;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let (isas, arguments): (Vec<_>, Vec<_>) =
        arguments.into_iter().partition(|argument| argument.parse::<Isa>().is_ok());
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| name.contains(argument.as_str()));
    let isa = isas.last().and_then(|isa| isa.parse().ok()).unwrap_or_else(Isa::detect);
    let most = Pool::new(None).expect("threads").threads();
    for threads in if most == 1 { vec![1] } else { vec![1, most] } {
        let pool = Pool::new(Some(threads)).expect("threads");
        println!("{isa}, {threads} thread{}", if threads == 1 { "" } else { "s" });
        if wanted("memory") {
            println!("  memory             {:6.1} GB/s", machine::bandwidth(&pool).expect("memory") / 1e9);
        }
        if wanted("dot") {
            println!("  dot                {:6.0} GOP/s", machine::rate(&pool, isa).expect("no panic") / 1e9);
        }
        if wanted("barrier") {
            println!("  barrier            {:6.2} µs", barrier(&pool));
        }
        for format in FORMATS.iter().map(|row| row.format).filter(|format| wanted(format.name())) {
            product(&pool, isa, format);
        }
        for format in KvFormat::ALL.into_iter().filter(|_| wanted("attention")) {
            attention(&pool, isa, format);
        }
    }
}

/// The shortest of several runs: what the machine can do when nobody disturbs.
fn best(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < Duration::from_millis(250) {
        let one = Instant::now();
        run();
        best = best.min(one.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn barrier(pool: &Pool) -> f64 {
    const REPEAT: usize = 1000;
    let seconds = best(|| pool.run(|worker| (0..REPEAT).for_each(|_| worker.barrier())).expect("no panic"));
    seconds / REPEAT as f64 * 1e6
}

/// A product with one row over many small matrices, as a model's layers are; with a few rows; and with many.
fn product(pool: &Pool, isa: Isa, format: Format) {
    let (k, n) = (if format.block().elements > 32 { 1536 } else { 576 }, 1536);
    let bytes: Vec<u8> = {
        let values: Vec<f32> = (0..k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect();
        let mut row = vec![0; format.row_bytes(k).expect("whole blocks")];
        basert_core::codec::encode(format, &values, &mut row).expect("whole blocks");
        row.repeat(n)
    };
    let sources = [Source { bytes: &bytes, rows: n }];
    let one = || PackedMatrix::pack_alone(pool, format, k, &sources, Order::Stacked).expect("packs");
    let packing = best(|| drop(one()));
    // One allocation for all, on large pages, as a model's weights have.
    let bytes_each = PackedMatrix::packed_bytes(format, k, &[n], Order::Stacked).expect("a size");
    let mut memory = Buffer::zeroed(LARGE).expect("memory");
    let matrices: Vec<PackedMatrix> = (0..LARGE / bytes_each.next_multiple_of(64))
        .map(|_| {
            let memory = memory.split_to(bytes_each);
            PackedMatrix::pack(pool, format, k, &sources, Order::Stacked, memory, &mut |_| {}).expect("packs")
        })
        .collect();
    let mut out = Vec::new();
    // Seconds that `window` matrices take at best, when each run takes the next ones, or always the same.
    let mut run = |m: usize, window: usize, next: bool| {
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 31 % 97) as f32 - 48.0) / 48.0).collect();
        let mut memory = Buffer::zeroed(QuantisedRows::bytes(m, k)).expect("memory");
        let mut floats = vec![0.0; FloatRows::len(m, k)];
        let (quantised, floats) = (QuantisedRows::new(&mut memory, m, k), FloatRows::new(&mut floats, m, k));
        for (row, x) in x.chunks_exact(k).enumerate() {
            // SAFETY: there is only one thread.
            unsafe {
                quantised.write(isa, row, x);
                floats.write(row, x);
            }
        }
        let input = if format.is_float() { Input::Float(floats) } else { Input::Quantised(quantised) };
        out.resize(m * n, 0.0);
        let counters: Vec<Counter> = (0..window).map(|_| Counter::new(pool.threads())).collect();
        let scratch = || Mutex::new(Buffer::zeroed(matrices[0].scratch_bytes()).expect("memory"));
        let scratch: Vec<_> = (0..pool.threads()).map(|_| scratch()).collect();
        let out = Rows::new(&mut out, m, n);
        let mut windows = matrices.chunks_exact(window).cycle();
        let first = &matrices[..window];
        best(|| {
            counters.iter().for_each(Counter::reset);
            let matrices = if next { windows.next().unwrap_or(first) } else { first };
            pool.run(|worker| {
                let mut scratch = scratch[worker.index()].lock().expect("no panic");
                for (matrix, counter) in matrices.iter().zip(&counters) {
                    for units in worker.chunks(counter, matrix.units(), 4) {
                        let store = Epilogue::Store;
                        // SAFETY: each unit is claimed once.
                        unsafe { linear(isa, matrix, units, input, 0..m, None, store, out, None, &mut scratch) };
                    }
                    worker.barrier();
                }
            })
            .expect("no panic");
        })
    };
    let window = (16 << 20) / bytes.len();
    let memory = run(1, window, true);
    let cached = run(1, 1, false);
    let operations = |m: usize, seconds: f64| (2 * m * n * k) as f64 / seconds / 1e9;
    println!(
        "  {:7} 1 row {:5.1} GB/s, cached {:5.1}   rows 4 {:5.0}, 8 {:5.0}, 240 {:5.0} GOP/s   pack {:5.2} GB/s, {:4.2} of the file",
        format.name(),
        (window * matrices[0].bytes()) as f64 / memory / 1e9,
        matrices[0].bytes() as f64 / cached / 1e9,
        operations(4, run(4, 4, true) / 4.0),
        operations(8, run(8, 4, true) / 4.0),
        operations(240, run(240, 1, true)),
        bytes.len() as f64 / packing / 1e9,
        matrices[0].bytes() as f64 / bytes.len() as f64,
    );
}

/// One token's attention, with the heads of SmolLM2, over contexts that stream from memory, and over four pages again and
/// again.
fn attention(pool: &Pool, isa: Isa, format: KvFormat) {
    let shape = Attention {
        head_dim: 64,
        q_heads: 9,
        kv_heads: 3,
        scale: 0.125,
        soft_cap: None,
        reach: Reach::All,
        alibi: None,
    };
    let page_bytes = KvLayer::page_bytes(format, shape.kv_heads, shape.head_dim);
    let pages = LARGE / page_bytes;
    let mut memory = Buffer::zeroed(pages * page_bytes).expect("memory");
    let start = memory.as_mut_ptr();
    // SAFETY: the memory has so many pages, and no other use while there is a view.
    let kv = unsafe { KvLayer::from_raw(start, pages, page_bytes, format, shape.kv_heads, shape.head_dim) };
    let vector: Vec<f32> = (0..shape.head_dim).map(|i| ((i * 31 % 97) as f32 - 48.0) / 48.0).collect();
    for (page, head, slot) in
        (0..pages * shape.kv_heads * PAGE).map(|i| (i / PAGE / shape.kv_heads, i / PAGE % shape.kv_heads, i % PAGE))
    {
        // SAFETY: there is only one thread.
        unsafe { kv.write(isa, head, page, slot, &vector, &vector) };
    }
    let table: Vec<u32> = (0..pages as u32).collect();
    let mut queries = vector.repeat(shape.q_heads);
    let q = Rows::new(&mut queries, 1, shape.q_heads * shape.head_dim);
    let (rows, width) = (pages * shape.group(), shape.head_dim + 2);
    let mut partials = vec![0.0; shape.kv_heads * rows * width];
    let partials = Rows::new(&mut partials, shape.kv_heads * rows, width);
    let scratch: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(Scratch::new(&shape))).collect();
    let counter = Counter::new(pool.threads());
    // Seconds that a page takes at best, when each run takes the next `window` pages, or `repeat` times the same.
    let run = |window: usize, repeat: usize| {
        let mut windows = table.chunks_exact(window).cycle();
        let piece = window.min(8);
        let units = shape.kv_heads * window / piece;
        best(|| {
            let pages = if repeat > 1 { &table[..window] } else { windows.next().unwrap_or(&table) };
            let (position, tokens) = (window * PAGE - 1, window * PAGE);
            let sequence = Sequence { pages, position, tokens };
            counter.reset();
            pool.run(|worker| {
                let mut scratch = scratch[worker.index()].lock().expect("no panic");
                for unit in worker.chunks(&counter, units * repeat, 1).flatten() {
                    let (first, head) = (unit % units / shape.kv_heads * piece, unit % shape.kv_heads);
                    // SAFETY: rows of partials are a head's; what several write, if they do, nobody reads.
                    unsafe {
                        let partials = Rows::from_raw(partials.row_ptr(head * rows), rows, width, width);
                        let blocks = first..first + piece;
                        attend_pages(isa, &shape, kv, &sequence, q, head, 0, blocks, partials, &mut scratch);
                    }
                }
            })
            .expect("no panic");
        }) / (window * repeat) as f64
    };
    let (memory, cached) = (run((16 << 20) / page_bytes / 8 * 8, 1), run(4, 50));
    let rates = |seconds: f64| {
        let values = 2 * shape.kv_heads * PAGE * shape.head_dim;
        (page_bytes as f64 / seconds / 1e9, values as f64 / seconds / 1e9)
    };
    let ((memory, values), (cached, cached_values)) = (rates(memory), rates(cached));
    println!(
        "  attention {format} {memory:5.1} GB/s, {values:5.2} values/ns   cached {cached:5.1} GB/s, {cached_values:5.2} values/ns"
    );
}
