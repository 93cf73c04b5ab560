//! Self-check of a device: that it multiplies matrices as `kernels/common/tile.h` says.
//!
//! Apple documents for no chip which elements of a matrix a lane holds. Kernels rely on it, so it is checked at each
//! start.

use crate::{Binding, Dispatch, Gpu, GpuError, Kernel};

/// Whether products of tiles are right on this device.
///
/// # Errors
/// When the kernel does not compile, or the device fails.
pub fn tiles_are_right(gpu: &mut dyn Gpu) -> Result<bool, GpuError> {
    let kernel = Kernel::new("check/tiles.metal", "check_tiles", 32);
    let pipeline = gpu.compile(std::slice::from_ref(&kernel), &mut |_| {})?[0];
    let [a, b, c] = [(16 * 16, 3), (32 * 16, 5), (16 * 32, 7)].map(|(len, step)| small_numbers(len, step));
    let expected = expected(&a, &b, &c);
    let mut found = vec![f32::NAN; expected.len()];
    let mut bindings = Vec::new();
    for values in [&a, &b, &c, &found] {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = Binding { buffer: gpu.allocate(bytes.len(), "the check of tiles")?, offset: 0 };
        gpu.write(at, bytes)?;
        bindings.push(at);
    }
    let out = bindings[3];
    let recording = gpu.record(&[Dispatch { pipeline, bindings, groups: [1, 1, 1], threads: 32, barrier: true }])?;
    gpu.submit(recording)?;
    gpu.read(out, bytemuck::cast_slice_mut(&mut found))?;
    Ok(found == expected)
}

/// Whole numbers from −2 to 2, without a pattern that could hide a wrong lane.
fn small_numbers(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * step + i / 7 + i * i / 11) % 5) as f32 - 2.0).collect()
}

/// The kernel's result, computed as a textbook would.
fn expected(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let dot = |x: &mut dyn Iterator<Item = (f32, f32)>| x.map(|(x, y)| x * y).sum::<f32>();
    let mut out = vec![0.0; 2 * 16 * 32 + 2 * 16];
    for i in 0..16 {
        for j in 0..32 {
            out[i * 32 + j] = dot(&mut (0..16).map(|k| (a[i * 16 + k], b[j * 16 + k])));
        }
        let row: [f32; 16] = std::array::from_fn(|k| out[i * 32 + k]);
        for j in 0..32 {
            out[16 * 32 + i * 32 + j] = dot(&mut (0..16).map(|k| (row[k], c[k * 32 + j])));
        }
        out[2 * 16 * 32 + i] = row.into_iter().fold(f32::NEG_INFINITY, f32::max);
        out[2 * 16 * 32 + 16 + i] = row.iter().sum();
    }
    out
}
