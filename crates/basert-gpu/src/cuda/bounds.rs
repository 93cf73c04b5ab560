//! Peak rates of NVIDIA GPUs.

use basert_plan::Bounds;

/// Operations per cycle of a streaming multiprocessor in products of halves, from this compute capability on. Source:
/// NVIDIA's papers on each architecture; with sums in halves, since some GPUs are half as fast with `f32` sums.
const OPERATIONS: [((u32, u32), u32); 7] =
    [((8, 0), 2048), ((8, 6), 1024), ((8, 7), 2048), ((8, 9), 1024), ((9, 0), 4096), ((10, 0), 8192), ((12, 0), 1024)];

/// The bounds of `cores` cores at the maximum clocks that the driver states, with a memory bus of this number of bits
/// and double data rate. `None` if the driver states no clock, as on some virtual machines.
pub(super) fn bounds(capability: (u32, u32), cores: usize, kilohertz: u32, memory: [u32; 2]) -> Option<Bounds> {
    let (_, operations) = OPERATIONS.into_iter().rfind(|(least, _)| *least <= capability)?;
    let [memory_kilohertz, bus_bits] = memory.map(f64::from);
    let bandwidth = 2.0 * memory_kilohertz * 1e3 * bus_bits / 8.0;
    let rate = f64::from(operations) * cores as f64 * f64::from(kilohertz) * 1e3;
    (bandwidth > 0.0 && rate > 0.0).then_some(Bounds { bandwidth, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVIDIA's numbers, in GB/s and TFLOP/s, at the corresponding clocks.
    #[test]
    fn bounds_are_those_of_known_gpus() {
        let known = [
            ((8, 0), 108, 1_410_000, [1_593_000, 5120], 2039.0, 312.0),
            ((8, 6), 82, 1_695_000, [9_751_000, 384], 936.0, 142.0),
            ((8, 9), 128, 2_520_000, [10_501_000, 384], 1008.0, 330.0),
            ((9, 0), 132, 1_830_000, [2_619_000, 5120], 3352.0, 989.0),
            ((12, 0), 170, 2_407_000, [14_001_000, 512], 1792.0, 419.0),
        ];
        for (capability, cores, kilohertz, memory, bandwidth, rate) in known {
            let bounds = bounds(capability, cores, kilohertz, memory).unwrap();
            assert!((bounds.bandwidth / 1e9 / bandwidth - 1.0).abs() < 0.01, "{capability:?}: {bounds:?}");
            assert!((bounds.rate / 1e12 / rate - 1.0).abs() < 0.01, "{capability:?}: {bounds:?}");
        }
    }

    #[test]
    fn nothing_is_made_up() {
        assert_eq!(bounds((9, 0), 132, 0, [2_619_000, 5120]), None);
        assert_eq!(bounds((9, 0), 132, 1_830_000, [0, 5120]), None);
        assert_eq!(bounds((7, 5), 40, 1_590_000, [5_001_000, 256]), None);
    }
}
