//! The op table ([`basert_tune::ops`]) against the oracle. On the CPU, and on the GPU that `BASERT_TEST_GPU` names or its
//! simulation.

use basert::plan::Device;
use basert_cpu::{CpuDevice, Isa};
use basert_gpu::{GpuDevice, SimtGpu, SimtOptions};
use basert_tune::ops::{COMPARED, Kind, Row, table};

use crate::gpu;

/// Rows, with so many tokens at once.
fn check(device: &dyn Device, at_once: &[usize], rows: impl Iterator<Item = Row>) {
    let mut wrong = Vec::new();
    for row in rows {
        let case = row.case().unwrap();
        match case.check(device, at_once) {
            Ok(error) => println!("{:50} {error:.1e}", case.name),
            Err(what) => wrong.push(what),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn cpu_ops_agree_with_the_oracle() {
    check(&CpuDevice::new(Some(2)).unwrap(), &[1, 4, 7, COMPARED], table().into_iter());
}

#[test]
fn running_states_agree_with_the_oracle_on_every_instruction_set() {
    for isa in Isa::available() {
        let rows = table().into_iter().filter(|row| row.kind == Kind::Recurrent);
        check(&CpuDevice::with_isa(Some(2), isa).unwrap(), &[3, COMPARED], rows);
    }
}

#[test]
fn gpu_ops_agree_with_the_oracle() {
    let device = gpu::device();
    // Each size is a kernel more to be compiled.
    let at_once: &[usize] = if device.facts().name == "simt" { &[1, COMPARED] } else { &[1, 2, 4, 16, COMPARED] };
    check(&*device, at_once, table().into_iter());
}

/// A device with more cores than tiles of queries divides long contexts for them.
#[test]
fn contexts_are_divided_for_tiles() {
    let options = SimtOptions { workers: 12, ..SimtOptions::default() };
    let device = GpuDevice::new(SimtGpu::new(options).unwrap()).unwrap();
    let rows = table().into_iter().filter(|row| row.name.starts_with("attention 64 6/2") && row.name.ends_with("640"));
    check(&device, &[COMPARED], rows);
}
