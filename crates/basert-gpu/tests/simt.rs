//! The simulated GPU: right kernels give right results in any order, and planted mistakes are found.

use std::sync::Arc;

use basert_files::ModelFile;
use basert_gpu::{Binding, Buffer, Dispatch, Gpu, GpuError, Kernel, SimtGpu, SimtOptions, tiles_are_right};
use half::f16;

fn gpu(seed: u64) -> SimtGpu {
    SimtGpu::new(SimtOptions { seed, ..SimtOptions::default() }).unwrap()
}

fn kernel(text: &'static str, threads: u32) -> Kernel {
    Kernel::of_text("test.metal", text, "test", threads)
}

fn buffer(gpu: &mut SimtGpu, bytes: &[u8]) -> Buffer {
    let buffer = gpu.allocate(bytes.len(), "a test").unwrap();
    gpu.write(Binding { buffer, offset: 0 }, bytes).unwrap();
    buffer
}

/// Runs a kernel on buffers, and gives the bytes of the last one afterwards.
fn run(seed: u64, kernel: &Kernel, groups: [u32; 3], buffers: &[&[u8]]) -> Result<Vec<u8>, GpuError> {
    let mut gpu = gpu(seed);
    let pipeline = gpu.compile(std::slice::from_ref(kernel), &mut |_| {})?[0];
    let bindings: Vec<_> = buffers.iter().map(|b| Binding { buffer: buffer(&mut gpu, b), offset: 0 }).collect();
    let dispatch = Dispatch { pipeline, bindings: bindings.clone(), groups, threads: kernel.threads, barrier: true };
    let recording = gpu.record(&[dispatch])?;
    gpu.submit(recording)?;
    let mut bytes = vec![0; buffers.last().unwrap().len()];
    gpu.read(*bindings.last().unwrap(), &mut bytes)?;
    Ok(bytes)
}

fn fault(kernel: &Kernel, buffers: &[&[u8]]) -> String {
    match run(0, kernel, [2, 1, 1], buffers) {
        Err(GpuError::Failed(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn values<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// The sum of each second row of 300, plus twice that of the row before.
const SUMS: &str = r#"
#include "common/base.h"
kernel void test(
    device const float *x [[buffer(0)]],
    device float *out [[buffer(1)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float partial[SIMDGROUPS];
    float before = 0.0f;
    for (uint row = 0; row < 2; ++row) {
        float sum = 0.0f;
        for (uint i = thread_index; i < 300; i += THREADS) sum += x[(group.x * 2 + row) * 300 + i];
        sum = simd_sum(sum);
        if (lane == 0) partial[simdgroup] = sum;
        FIRST
        float all = 0.0f;
        for (uint i = 0; i < SIMDGROUPS; ++i) all += partial[i];
        SECOND
        before = all + 2.0f * before;
    }
    if (simdgroup == SIMDGROUPS - 1 && lane == 5) out[group.x] = before;
}
"#;
const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";

fn sums(seed: u64, first: &str, second: &str) -> Vec<f32> {
    let kernel = kernel(SUMS, 128).define("FIRST", first).define("SECOND", second);
    let x: Vec<f32> = (0..8 * 600).map(|i| (i % 7) as f32).collect();
    values::<f32>(&run(seed, &kernel, [8, 1, 1], &[bytemuck::cast_slice(&x), &[0; 32]]).unwrap())
}

fn expected_sums() -> Vec<f32> {
    let row = |r: usize| (r * 300..(r + 1) * 300).map(|i| (i % 7) as f32).sum::<f32>();
    (0..8).map(|g| row(2 * g + 1) + 2.0 * row(2 * g)).collect()
}

#[test]
fn a_reduction_is_right_in_any_order() {
    for seed in 0..20 {
        assert_eq!(sums(seed, BARRIER, BARRIER), expected_sums(), "seed {seed}");
    }
}

#[test]
fn a_missing_barrier_shows() {
    let nothing = "";
    assert!(sums(0, nothing, BARRIER).iter().any(|x| x.is_nan()), "what was not yet written is poison");
    let wrong = (0..20).filter(|&seed| sums(seed, BARRIER, nothing) != expected_sums()).count();
    assert!(wrong > 10, "what is overwritten too early is seen under {wrong} of 20 seeds");
}

/// 16 × 16 products with the transpose, and that product's with a third matrix.
const TILES: &str = r#"
#include "common/base.h"
#include "common/tile.h"
kernel void test(
    device const uint4 *a [[buffer(0)]],
    device const uint4 *b [[buffer(1)]],
    device const uint4 *c [[buffer(2)]],
    device float *out [[buffer(3)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half as[16 * 32];
    threadgroup half bs[16 * 32];
    threadgroup half cs[16 * 16];
    for (uint i = thread_index; i < 64; i += THREADS) {
        *(threadgroup uint4 *)(as + tile_at(4, i / 4, i % 4)) = a[i];
        *(threadgroup uint4 *)(bs + tile_at(4, i / 4, i % 4)) = b[i];
        if (i < 32) *(threadgroup uint4 *)(cs + tile_at(2, i / 2, i % 2)) = c[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_sums product, sums;
    tile_clear(product);
    tile_clear(sums);
    for (uint chunk = 0; chunk < 4; chunk += 2) {
        const tile_operand rows = tile_load_rows(as, 4, 0, chunk, lane);
        tile_multiply(product, rows, tile_load_columns(bs, 4, 0, chunk, lane));
    }
    tile_multiply(sums, tile_round(product), tile_load_straight(cs, 2, 0, 0, lane));
    for (uint e = 0; e < 8; ++e) {
        const uint row = tile_row(lane) + 8 * (e / 2 % 2), column = tile_column(lane) + 8 * (e / 4) + e % 2;
        out[row * 16 + column] = tile_get(sums, e);
    }
}
"#;

#[test]
fn tile_products_are_right_in_any_order() {
    let matrix = |rows: usize, columns: usize, salt: usize| -> Vec<f16> {
        (0..rows * columns).map(|i| f16::from_f32(((i * 7 + salt) % 11) as f32 - 5.0)).collect()
    };
    let (a, b, c) = (matrix(16, 32, 1), matrix(16, 32, 2), matrix(16, 16, 3));
    let product = |i: usize, j: usize| (0..32).map(|k| a[i * 32 + k].to_f32() * b[j * 32 + k].to_f32()).sum::<f32>();
    let expected: Vec<f32> =
        (0..256).map(|at| (0..16).map(|k| product(at / 16, k) * c[k * 16 + at % 16].to_f32()).sum::<f32>()).collect();
    for seed in 0..5 {
        let bytes = [bytemuck::cast_slice(&a), bytemuck::cast_slice(&b), bytemuck::cast_slice(&c), &[0; 1024]];
        assert_eq!(values::<f32>(&run(seed, &kernel(TILES, 32), [1, 1, 1], &bytes).unwrap()), expected, "seed {seed}");
    }
}

/// One statement in a kernel of 64 threads, with an array of the threadgroup and a buffer of 64 words.
const STATEMENT: &str = r#"
#include "common/base.h"
kernel void test(
    device const uint *read [[buffer(0)]],
    device uint *written [[buffer(1)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup uint shared[64];
    threadgroup float other[64];
    shared[thread_index] = thread_index;
    other[thread_index] = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    STATEMENT
    written[thread_index] = shared[thread_index ^ 1];
}
"#;

#[track_caller]
fn finds(statement: &str, parts: &[&str]) {
    let what = fault(&kernel(STATEMENT, 64).define("STATEMENT", statement), &[&[0; 256], &[0; 256]]);
    for part in parts {
        assert!(what.contains(part), "{what}\n does not say `{part}`");
    }
}

#[test]
fn a_statement_without_mistakes_is_fine() {
    let fine = kernel(STATEMENT, 64).define("STATEMENT", "if (group.x > 5) return;");
    let written = run(0, &fine, [3, 1, 1], &[&[0; 256], &[0; 256]]).unwrap();
    let expected: Vec<u32> = (0..64).map(|i| i ^ 1).collect();
    assert_eq!(values::<u32>(&written), expected);
}

#[test]
fn accesses_beyond_an_array_of_the_threadgroup_are_found() {
    finds(
        "shared[thread_index + 1] = 0;",
        &["test STATEMENT=", "thread 63 of threadgroup (", "4 bytes at 256 of shared, which has 256", "at `STATEMENT`"],
    );
    finds("shared[int(thread_index) - 3] = 0;", &["of shared"]);
    finds("*(threadgroup uint4 *)(shared + 64) = uint4(0);", &["16 bytes at 256 of shared"]);
}

#[test]
fn accesses_beyond_a_buffer_are_found() {
    finds("written[thread_index + read[thread_index + 8]] = 1;", &["of read, which has 256"]);
    finds("written[thread_index * 2] = 1;", &["of written, which has 256"]);
    finds("written[0u - 1u] = 1;", &["of written"]);
    finds(
        "device const uchar *bytes = (device const uchar *)read - 1; written[0] = *bytes;",
        &["1 bytes at -1 of read"],
    );
}

#[test]
fn misaligned_accesses_are_found() {
    finds(
        "written[0] = ((device const uint4 *)(read + thread_index / 64 + 1))[0].x;",
        &["accesses read at 4, not a multiple of 16"],
    );
    finds("*(threadgroup uint2 *)(shared + 1) = uint2(0, 0);", &["accesses shared at 4, not a multiple of 8"]);
}

#[test]
fn divergent_barriers_are_found() {
    finds("if (thread_index < 32) threadgroup_barrier(mem_flags::mem_none);", &["threadgroup_barrier", "has ended"]);
    finds(
        "if (thread_index != 7) threadgroup_barrier(mem_flags::mem_none);",
        &["threadgroup_barrier", "thread 7 has ended"],
    );
    finds("if (lane == 3) return; simdgroup_barrier(mem_flags::mem_none);", &["simdgroup_barrier", "thread 3"]);
    finds("if (lane < 3) simd_sum(1.0f); else simd_max(1.0f);", &["simd_sum", "simd_max"]);
    finds("if (lane == 9) return; written[1] = simd_shuffle_xor(lane, 1);", &["simd_shuffle_xor", "has ended"]);
}

#[test]
fn lanes_that_are_not_there_are_found() {
    finds("written[0] = simd_shuffle(lane, 32 + lane);", &["reads lane", "of a simdgroup"]);
    finds("written[0] = simd_shuffle_xor(lane, 32);", &["reads lane"]);
}

#[test]
fn simdgroups_may_leave_early_where_no_barrier_follows() {
    let fine = kernel(STATEMENT, 64).define("STATEMENT", "if (thread_index < 32) return; written[0] = simd_sum(lane);");
    run(0, &fine, [3, 1, 1], &[&[0; 256], &[0; 256]]).unwrap();
}

#[test]
fn what_is_declared_has_to_fit() {
    let large = kernel(
        "#include <metal_stdlib>\nusing namespace metal;\n\
         kernel void test(device uint *x [[buffer(0)]]) {\n threadgroup uint4 large[2049];\n large[0] = uint4(x[0]);\n}\n",
        32,
    );
    let what = fault(&large, &[&[0; 16]]);
    assert!(what.contains("declares 32784 bytes of threadgroup memory, of which there are 32768"), "{what}");
}

#[test]
fn what_does_not_compile_says_why() {
    let wrong =
        kernel("#include <metal_stdlib>\nkernel void test(device uint *x [[buffer(0)]])\n{\n x[0] = unknown;\n}\n", 32);
    let mut gpu = gpu(0);
    let pipeline = gpu.compile(&[wrong], &mut |_| {}).unwrap()[0];
    let dispatch = Dispatch { pipeline, bindings: Vec::new(), groups: [1; 3], threads: 32, barrier: true };
    let Err(GpuError::Compile { kernel, log }) = gpu.record(&[dispatch]) else { panic!() };
    assert!(kernel.starts_with("test") && log.contains("test.metal:4") && log.contains("unknown"), "{kernel}: {log}");
}

/// Two launches, of which the second reads what the first wrote.
#[test]
fn a_missing_barrier_between_launches_shows() {
    let add = kernel(
        "#include <metal_stdlib>\nusing namespace metal;\n\
         kernel void test(device uint *x [[buffer(0)]], uint i [[thread_index_in_threadgroup]])\n\
         {\n if (i == 0) x[0] = x[0] * 3 + BY;\n}\n",
        32,
    );
    let result = |seed, barrier| {
        let mut gpu = gpu(seed);
        let pipelines = gpu.compile(&[1, 2].map(|by| add.clone().define("BY", by)), &mut |_| {}).unwrap();
        let at = Binding { buffer: gpu.allocate(16, "a test").unwrap(), offset: 0 };
        let launch = |i: usize| Dispatch {
            pipeline: pipelines[i],
            bindings: vec![at],
            groups: [1; 3],
            threads: 32,
            barrier: barrier || i == 0,
        };
        let recording = gpu.record(&[launch(0), launch(1)]).unwrap();
        gpu.submit(recording).unwrap();
        let mut word = [0; 4];
        gpu.read(at, &mut word).unwrap();
        u32::from_ne_bytes(word)
    };
    assert!((0..10).all(|seed| result(seed, true) == 5));
    assert!((0..10).any(|seed| result(seed, false) != 5));
}

#[test]
fn launches_are_checked_when_they_are_recorded() {
    let mut gpu = gpu(0);
    let kernel = kernel(STATEMENT, 64).define("STATEMENT", "");
    let pipeline = gpu.compile(&[kernel], &mut |_| {}).unwrap()[0];
    let buffer = gpu.allocate(256, "a test").unwrap();
    let at = |offset| Binding { buffer, offset };
    let right = Dispatch { pipeline, bindings: vec![at(0), at(16)], groups: [1; 3], threads: 64, barrier: true };
    for (dispatch, said) in [
        (Dispatch { bindings: vec![at(0)], ..right.clone() }, "nothing is bound to written"),
        (Dispatch { bindings: vec![at(0), at(8)], ..right.clone() }, "written is bound at 8"),
        (Dispatch { bindings: vec![at(0), at(512)], ..right.clone() }, "written: offset 512 is beyond the end"),
        (Dispatch { threads: 32, ..right.clone() }, "compiled for 64"),
        (Dispatch { threads: 65, ..right.clone() }, "whole simdgroups"),
    ] {
        let error = gpu.record(&[dispatch]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    gpu.record(&[right]).unwrap();
}

#[test]
fn the_check_of_tiles_passes_in_any_order() {
    for seed in 0..3 {
        assert!(tiles_are_right(&mut gpu(seed)).unwrap(), "seed {seed}");
    }
}

#[test]
fn files_are_used_where_they_are_mapped_and_only_read() {
    let file = Arc::new(ModelFile::open(basert_testkit::tiny().join("quantised/q4_0.gguf")).unwrap());
    let tensors: Vec<_> = file.tensors().map(|tensor| tensor.bytes).collect();
    let mut gpu = gpu(0);
    let places = gpu.map(&file, &tensors).unwrap();
    for (tensor, place) in tensors.iter().zip(&places) {
        let mut found = vec![0; tensor.len()];
        let place = place.expect("tensors of GGUF files are aligned");
        gpu.read(place, &mut found).unwrap();
        assert!(found == *tensor);
        assert!(gpu.write(place, &[0]).unwrap_err().to_string().contains("only read"));
    }
    let unaligned = &tensors[0][1..17];
    assert_eq!(gpu.map(&file, &[unaligned, &[0; 64]]).unwrap(), [None, None]);

    let writes =
        kernel("#include \"common/base.h\"\nkernel void test(device float *x [[buffer(0)]])\n{ x[0] = 1.0f; }", 32);
    let pipeline = gpu.compile(std::slice::from_ref(&writes), &mut |_| {}).unwrap()[0];
    let bindings = vec![places[0].unwrap()];
    let refused = gpu.record(&[Dispatch { pipeline, bindings, groups: [1, 1, 1], threads: 32, barrier: true }]);
    assert!(refused.unwrap_err().to_string().contains("x is written, and bound to a file"));
}
