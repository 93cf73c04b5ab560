//! Numbers for tests.
#![allow(dead_code)]

use basert_core::{Base, Codes, Format};
use basert_cpu::{Buffer, Isa, QuantisedRows};
use half::f16;

/// xorshift64*: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in [-1, 1).
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// A matrix with every bit pattern of codes and group scales, and small finite scales of blocks.
pub fn weights(format: Format, rows: usize, k: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; rows * format.row_bytes(k).unwrap()];
    let block = format.block();
    match block.codes {
        Codes::Float => {
            let values = random.values(rows * k);
            basert_core::codec::encode(format, &values, &mut bytes).unwrap();
        }
        Codes::Quantised { base, min, .. } => {
            bytes.iter_mut().for_each(|byte| *byte = (random.bits() >> 56) as u8);
            for block in bytes.chunks_exact_mut(block.bytes) {
                let mut put = |at: usize, x: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
                if let Some((at, _)) = min {
                    put(at, random.value() * 0.1);
                }
                match base {
                    Base::F16(at) => put(at, random.value() * 0.02),
                    Base::E8M0(at) => block[at] = 118 + (random.bits() >> 61) as u8,
                }
            }
        }
    }
    bytes
}

/// The rows of `values`, quantised.
pub fn quantise(isa: Isa, values: &[f32], rows: usize, k: usize) -> Buffer {
    let mut memory = Buffer::zeroed(QuantisedRows::bytes(rows, k)).unwrap();
    let view = QuantisedRows::new(&mut memory, rows, k);
    for (row, values) in values.chunks_exact(k).enumerate() {
        // SAFETY: there is only one thread.
        unsafe { view.write(isa, row, values) };
    }
    memory
}

/// Bits, to compare exactly.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
