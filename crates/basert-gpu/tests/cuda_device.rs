//! What a CUDA GPU does with memory, recordings and mistakes. One test, since a mistake costs the process its context.
//! Without a GPU it checks only that its absence is explained. `--nocapture` shows what things take.

use std::time::Instant;

use basert_gpu::{Binding, Buffer, Cache, CudaGpu, CudaOptions, Dispatch, Gpu, GpuError, Kernel, tiles_are_right};

#[test]
fn a_cuda_gpu_does_what_it_is_told_in_order() {
    if CudaGpu::count() == 0 {
        let Err(GpuError::Missing(why)) = CudaGpu::open(0) else { panic!("there is a GPU") };
        assert!(why.contains("driver"), "{why}");
        eprintln!("not run: {why}");
        return;
    }
    let count = CudaGpu::count();
    let beyond = CudaGpu::open(count).map(|_| ()).unwrap_err();
    assert!(beyond.to_string().contains(&format!("no GPU cuda:{count}")), "{beyond}");

    let folder = tempfile::tempdir().unwrap();
    let open = |options| CudaGpu::open_with(0, options, Cache::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
    let mut gpu = open(CudaOptions::default());
    println!("{:?}", gpu.facts());
    assert!(tiles_are_right(&mut gpu).unwrap());
    memory(&mut gpu);
    tickets(&mut gpu);
    refusals(&mut gpu);
    drop(gpu);
    for dependent_launch in [false, true] {
        for graphs in [false, true] {
            let options = CudaOptions { dependent_launch, graphs };
            recordings(&mut open(options), &format!("{options:?}"));
        }
    }
    failure(&mut open(CudaOptions::default()));
    println!("all as it should be");
}

fn at(buffer: Buffer, offset: usize) -> Binding {
    Binding { buffer, offset }
}

/// Bytes that differ along the way.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn memory(gpu: &mut CudaGpu) {
    let free = gpu.facts().free_memory.unwrap();
    let (length, other) = (100_000_003, 70_000_000);
    let a = gpu.allocate(length, "a").unwrap();
    let b = gpu.allocate(other, "b").unwrap();
    gpu.allocate(0, "nothing").unwrap();
    assert!(gpu.facts().free_memory.unwrap() < free);
    let mut read = vec![1; length];
    gpu.read(at(a, 0), &mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 0), "fresh memory holds zeros");

    // More than the ring holds, and then pieces over it that only an order leaves whole.
    let mut expected = pattern(length, 0);
    let begin = Instant::now();
    gpu.write(at(a, 0), &expected).unwrap();
    gpu.wait().unwrap();
    println!("write: {:.2} GB/s", length as f64 / 1e9 / begin.elapsed().as_secs_f64());
    for i in 0..200 {
        let (offset, piece) = (i * 400_001, pattern(1 + i * 1000, i as u32));
        gpu.write(at(a, offset), &piece).unwrap();
        expected[offset..offset + piece.len()].copy_from_slice(&piece);
    }
    gpu.copy(at(a, 16), at(b, 32), other - 32).unwrap();
    gpu.write(at(a, 0), &[7; 64]).unwrap();
    let begin = Instant::now();
    gpu.read(at(a, 0), &mut read).unwrap();
    println!("read: {:.2} GB/s", length as f64 / 1e9 / begin.elapsed().as_secs_f64());
    assert!(read[..64] == [7; 64] && read[64..] == expected[64..], "writes are carried out in order");
    let mut copied = vec![0; other - 32];
    gpu.read(at(b, 32), &mut copied).unwrap();
    assert!(copied == expected[16..other - 16], "a copy comes before a later write");
    gpu.write(at(a, length), &[]).unwrap();
    gpu.read(at(a, 0), &mut []).unwrap();
}

fn tickets(gpu: &mut CudaGpu) {
    let a = gpu.allocate(16 * 4096, "fetched").unwrap();
    let mut tickets = Vec::new();
    for i in 0..16 {
        gpu.write(at(a, i * 4096), &pattern(4096, i as u32)).unwrap();
        tickets.push(gpu.fetch(at(a, i * 4096), 4096 - i).unwrap());
    }
    assert!(gpu.fetch(at(a, 0), 4).is_err(), "all tickets are out");
    gpu.write(at(a, 0), &[0; 16 * 4096]).unwrap();
    // In another order than they were taken in.
    for i in [3, 0, 15, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] {
        let mut bytes = vec![0; 4096 - i];
        gpu.collect(tickets[i], &mut bytes).unwrap();
        assert!(bytes == pattern(4096, i as u32)[..4096 - i], "ticket {i}");
        assert!(gpu.collect(tickets[i], &mut bytes).is_err(), "a ticket is taken once");
    }
    assert!(gpu.fetch(at(a, 0), 4097).is_err());
}

/// What is refused before the driver sees it costs nothing.
fn refusals(gpu: &mut CudaGpu) {
    let Err(GpuError::OutOfMemory { what, free, .. }) = gpu.allocate(1 << 50, "too much") else { panic!() };
    assert!(what == "too much" && free > 0);
    let a = gpu.allocate(100, "a").unwrap();
    assert!(gpu.write(at(a, 90), &[0; 11]).unwrap_err().to_string().contains("11 bytes at 90"));
    assert!(gpu.read(at(Buffer(1000), 0), &mut [0]).is_err());
    assert!(gpu.copy(at(a, 0), at(a, 60), 50).is_err());
    let pipeline = gpu.compile(&[add(64, 1)], &mut |_| ()).unwrap()[0];
    let right = dispatch(pipeline, [a; 4], [1, 1, 1], 64);
    assert!(gpu.record(std::slice::from_ref(&right)).is_ok());
    for wrong in [
        Dispatch { threads: 32, ..right.clone() },
        Dispatch { groups: [1, 0, 1], ..right.clone() },
        Dispatch { bindings: vec![at(a, 0); 3], ..right.clone() },
        Dispatch { bindings: vec![at(a, 101); 4], ..right.clone() },
    ] {
        assert!(matches!(gpu.record(&[wrong]), Err(GpuError::Failed(_))));
    }
    gpu.wait().unwrap();
}

/// out = a + b on rows of `width` values, of which a threadgroup does `threads`.
fn add(threads: u32, width: usize) -> Kernel {
    Kernel::new("elementwise/elementwise.metal", "elementwise", threads)
        .define("FUNCTION", 0)
        .define("WIDTH", width)
        .define("A_STRIDE", width)
        .define("B_STRIDE", width)
        .define("OUT_STRIDE", width)
        .define("COUNT", 0)
}

fn dispatch(pipeline: basert_gpu::Pipeline, buffers: [Buffer; 4], groups: [u32; 3], threads: u32) -> Dispatch {
    Dispatch { pipeline, bindings: buffers.map(|buffer| at(buffer, 0)).to_vec(), groups, threads, barrier: true }
}

/// A chain of sums, each from what the one before wrote, by threadgroups that divide it in another way.
fn recordings(gpu: &mut CudaGpu, options: &str) {
    const VALUES: usize = 1 << 18;
    const LENGTH: usize = 200;
    const TIMES: usize = 50;
    // Rows, values in each, threads of a threadgroup.
    let shapes = [(64, VALUES / 64, 256), (1024, VALUES / 1024, 64), (1, VALUES, 1024)];
    let kernels = shapes.map(|(_, width, threads)| add(threads, width));
    let mut ready = Vec::new();
    let begin = Instant::now();
    let pipelines = gpu.compile(&kernels, &mut |count| ready.push(count)).unwrap();
    println!("{options}\n  compile: {:?}", begin.elapsed());
    assert_eq!((ready.first(), ready.last()), (Some(&0), Some(&3)));
    assert_eq!(gpu.compile(&kernels, &mut |_| ()).unwrap(), pipelines, "a kernel is compiled once");

    let [even, odd, step] = ["even", "odd", "rows"].map(|what| gpu.allocate(VALUES * 4, what).unwrap());
    let one = gpu.allocate(VALUES * 4, "ones").unwrap();
    gpu.write(at(one, 0), &1f32.to_ne_bytes().repeat(VALUES)).unwrap();
    gpu.write(at(step, 0), &1024u32.to_ne_bytes()).unwrap();
    let chain: Vec<Dispatch> = (0..LENGTH)
        .map(|i| {
            let (rows, width, threads) = shapes[i % 3];
            let (from, to) = if i % 2 == 0 { (even, odd) } else { (odd, even) };
            let groups = [(width as u32).div_ceil(threads), rows, 1];
            dispatch(pipelines[i % 3], [from, one, to, step], groups, threads)
        })
        .collect();
    let begin = Instant::now();
    let recording = gpu.record(&chain).unwrap();
    println!("  record {LENGTH} kernels: {:?}", begin.elapsed());
    let nothing = gpu.record(&[]).unwrap();
    gpu.wait().unwrap();

    let begin = Instant::now();
    for _ in 0..TIMES {
        gpu.submit(recording).unwrap();
    }
    let submitted = begin.elapsed();
    gpu.wait().unwrap();
    println!(
        "  {TIMES} times: {:?} a kernel, {:?} on the host to submit all of a recording",
        begin.elapsed() / (TIMES * LENGTH) as u32,
        submitted / TIMES as u32
    );
    gpu.submit(nothing).unwrap();
    let mut read = vec![0; VALUES * 4];
    let mut all_are = |gpu: &mut CudaGpu, expected: usize| {
        gpu.read(at(even, 0), &mut read).unwrap();
        let wrong = read.chunks(4).position(|x| f32::from_ne_bytes(x.try_into().unwrap()) != expected as f32);
        assert_eq!(wrong, None, "{options}: a value that is not {expected}");
    };
    all_are(gpu, LENGTH * TIMES);

    // Between two submissions, a write is seen by the second and not by the first.
    gpu.write(at(even, 0), &vec![0; VALUES * 4]).unwrap();
    gpu.submit(recording).unwrap();
    gpu.write(at(one, 0), &2f32.to_ne_bytes().repeat(VALUES)).unwrap();
    gpu.submit(recording).unwrap();
    all_are(gpu, LENGTH * 3);

    // How long a small step takes with what goes in and out.
    let begin = Instant::now();
    for _ in 0..TIMES {
        gpu.write(at(step, 0), &[0; 4]).unwrap();
        gpu.submit(recording).unwrap();
        let ticket = gpu.fetch(at(even, 0), 4).unwrap();
        gpu.collect(ticket, &mut [0; 4]).unwrap();
    }
    println!("  write, {LENGTH} kernels that do nothing, fetch, collect: {:?}", begin.elapsed() / TIMES as u32);
}

/// After an access outside of memory every call says so.
fn failure(gpu: &mut CudaGpu) {
    let a = gpu.allocate(4096, "a").unwrap();
    let astray = add(64, 64).define("A_STRIDE", "(1ul << 40)");
    let pipeline = gpu.compile(&[astray], &mut |_| ()).unwrap()[0];
    let recording = gpu.record(&[dispatch(pipeline, [a; 4], [1, 2, 1], 64)]).unwrap();
    gpu.write(at(a, 0), &2u32.to_ne_bytes()).unwrap();
    gpu.submit(recording).unwrap();
    let first = gpu.wait().unwrap_err();
    assert!(first.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{first}");
    assert_eq!(gpu.submit(recording).unwrap_err(), first);
    assert_eq!(gpu.allocate(16, "more").unwrap_err(), first);
    println!("{first}");
}
