//! Every format, instruction set and number of rows against sums in f64, and against each other bit for bit.

mod common;

use basert_core::{FORMATS, Format};
use basert_cpu::*;
use basert_graph::Activation;
use basert_plan::Gate;
use common::{Random, bits, quantise, weights};

const ROWS: [usize; 11] = [1, 2, 3, 4, 5, 6, 8, 13, 16, 27, 64];

/// All outputs for `m` rows, computed by all workers of the pool in pieces of `grain` units.
#[allow(clippy::too_many_arguments)]
fn product(
    pool: &Pool,
    isa: Isa,
    matrix: &PackedMatrix,
    x: &[f32],
    grain: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    start: f32,
) -> Vec<f32> {
    let (k, n) = (matrix.k(), matrix.rows());
    let m = x.len() / k;
    let mut floats = vec![0.0; FloatRows::len(m, k)];
    let mut memory = quantise(isa, &x[..if matrix.wants_quantised() { x.len() } else { 0 }], m, k / 32 * 32);
    let input = if matrix.wants_quantised() {
        Input::Quantised(QuantisedRows::new(&mut memory, m, k))
    } else {
        let view = FloatRows::new(&mut floats, m, k);
        // SAFETY: there is only one thread.
        x.chunks_exact(k).enumerate().for_each(|(row, x)| unsafe { view.write(row, x) });
        Input::Float(view)
    };
    let mut out = vec![start; m * n];
    let view = Rows::new(&mut out, m, n);
    let counter = Counter::new(pool.threads());
    pool.run(|worker| {
        let mut scratch = Buffer::zeroed(matrix.scratch_bytes()).unwrap();
        let blocks = RowBlocks::of(input);
        for units in worker.chunks(&counter, matrix.units(), grain) {
            for rows in blocks.iter() {
                // SAFETY: each unit is claimed once.
                unsafe { linear(isa, matrix, units.clone(), input, rows, bias, epilogue, view, None, &mut scratch) };
            }
        }
    })
    .unwrap();
    out
}

/// Σ w·x in f64 with the weights as the reference codec decodes them, and a bound of its error in f32.
fn reference(format: Format, bytes: &[u8], x: &[f32], n: usize, k: usize) -> Vec<(f64, f64)> {
    let mut x = x.to_vec();
    let m = x.len() / k;
    if !format.is_float() {
        let mut memory = quantise(Isa::Portable, &x, m, k);
        let view = QuantisedRows::new(&mut memory, m, k);
        for (row, x) in x.chunks_exact_mut(k).enumerate() {
            // SAFETY: there is only one thread.
            unsafe { view.read(row, x) };
        }
    }
    let mut w = vec![0.0; n * k];
    basert_core::codec::decode(format, bytes, &mut w).unwrap();
    let largest = w.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    let dot = |x: &[f32], w: &[f32]| {
        let sum = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        let size = x.iter().map(|x| f64::from(x.abs() * largest)).sum::<f64>();
        (sum, size * 1e-6)
    };
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

#[test]
fn every_kernel_agrees_with_f64_and_bit_for_bit_with_the_others() {
    let pool = Pool::new(Some(1)).unwrap();
    for format in FORMATS.iter().map(|row| row.format) {
        let (n, k) = (37, if format.is_float() { 453 } else { 1280 });
        let mut random = Random::new(format as u64 + 1);
        let bytes = weights(format, n, k, &mut random);
        let x = random.values(64 * k);
        let matrix =
            PackedMatrix::pack_alone(&pool, format, k, &[Source { bytes: &bytes, rows: n }], Order::Stacked).unwrap();
        let expected = reference(format, &bytes, &x, n, k);
        let all = product(&pool, Isa::Portable, &matrix, &x, 100, None, Epilogue::Store, 0.0);
        for (i, (y, (expected, bound))) in all.iter().zip(&expected).enumerate() {
            assert!((f64::from(*y) - expected).abs() <= *bound, "{format} {i}: {y}, not {expected} ± {bound}");
        }
        for isa in Isa::available() {
            for m in ROWS {
                let some = product(&pool, isa, &matrix, &x[..m * k], 100, None, Epilogue::Store, 0.0);
                assert_eq!(bits(&some), bits(&all[..m * n]), "{format} {isa} {m} rows");
            }
        }
    }
}

#[test]
fn threads_and_pieces_do_not_matter() {
    let (n, k) = (333, 256);
    let mut random = Random::new(5);
    let bytes = weights(Format::Q4_K, n, k, &mut random);
    let x = random.values(1100 * k);
    let source = [Source { bytes: &bytes, rows: n }];
    let one = Pool::new(Some(1)).unwrap();
    let isa = Isa::detect();
    let matrix = PackedMatrix::pack_alone(&one, Format::Q4_K, k, &source, Order::Stacked).unwrap();
    let expected = product(&one, isa, &matrix, &x, 1000, None, Epilogue::Store, 0.0);
    for (threads, grain) in [(2, 1), (2, 4), (3, 7), (5, 3)] {
        let pool = Pool::new(Some(threads)).unwrap();
        let matrix = PackedMatrix::pack_alone(&pool, Format::Q4_K, k, &source, Order::Stacked).unwrap();
        let found = product(&pool, isa, &matrix, &x, grain, None, Epilogue::Store, 0.0);
        assert_eq!(bits(&found), bits(&expected));
    }
}

#[test]
fn rows_and_columns_that_do_not_fit_a_cache_together_are_the_same() {
    let pool = Pool::new(Some(1)).unwrap();
    let mut random = Random::new(6);
    for (format, k) in [(Format::F32, 601), (Format::Q8_0, 1504), (Format::Q6_K, 1792)] {
        // Twelve panels, which no number of pairs divides evenly.
        let n = 179;
        let bytes = weights(format, n, k, &mut random);
        let x = random.values(301 * k);
        let source = Source { bytes: &bytes, rows: n };
        let stacked = PackedMatrix::pack_alone(&pool, format, k, &[source], Order::Stacked).unwrap();
        let paired = PackedMatrix::pack_alone(&pool, format, k, &[source, source], Order::Paired).unwrap();
        for (matrix, epilogue) in
            [(&stacked, Epilogue::Store), (&paired, Epilogue::Gated(Gate::Product(Activation::Silu)))]
        {
            let run = |x: &[f32]| product(&pool, Isa::detect(), matrix, x, 100, None, epilogue, 0.0);
            let alone: Vec<f32> = x.chunks_exact(k).flat_map(run).collect();
            for m in (12..=75).chain([239, 240, 241, 301]) {
                assert!(bits(&run(&x[..m * k])) == bits(&alone[..m * n]), "{format} {m} rows");
            }
        }
    }
}

#[test]
fn stacked_sources_are_one_matrix() {
    let pool = Pool::new(Some(2)).unwrap();
    let k = 64;
    let mut random = Random::new(9);
    for format in [Format::Q4_0, Format::Q5_1, Format::MXFP4, Format::F16] {
        let bytes = weights(format, 20 + 7 + 1, k, &mut random);
        let x = random.values(3 * k);
        let row = format.row_bytes(k).unwrap();
        let whole = [Source { bytes: &bytes, rows: 28 }];
        let parts = [
            Source { bytes: &bytes[..20 * row], rows: 20 },
            Source { bytes: &bytes[20 * row..27 * row], rows: 7 },
            Source { bytes: &bytes[27 * row..], rows: 1 },
        ];
        let [whole, parts] = [&whole[..], &parts[..]].map(|sources| {
            let matrix = PackedMatrix::pack_alone(&pool, format, k, sources, Order::Stacked).unwrap();
            product(&pool, Isa::detect(), &matrix, &x, 1, None, Epilogue::Store, 0.0)
        });
        assert_eq!(bits(&whole), bits(&parts));
    }
}

#[test]
fn epilogues_do_what_they_say() {
    let pool = Pool::new(Some(2)).unwrap();
    let (n, k, m) = (41, 96, 5);
    let mut random = Random::new(11);
    let gate = weights(Format::Q4_1, n, k, &mut random);
    let up = weights(Format::Q4_1, n, k, &mut random);
    let bias = random.values(n);
    let x = random.values(m * k);
    let sources = [Source { bytes: &gate, rows: n }, Source { bytes: &up, rows: n }];
    let stacked = PackedMatrix::pack_alone(&pool, Format::Q4_1, k, &sources[..1], Order::Stacked).unwrap();
    let second = PackedMatrix::pack_alone(&pool, Format::Q4_1, k, &sources[1..], Order::Stacked).unwrap();
    let paired = PackedMatrix::pack_alone(&pool, Format::Q4_1, k, &sources, Order::Paired).unwrap();
    let mut first: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        let run = |matrix, bias, epilogue, start| product(&pool, isa, matrix, &x, 1, bias, epilogue, start);
        let plain = run(&stacked, None, Epilogue::Store, 0.0);
        let added = run(&stacked, Some(&bias), Epilogue::Add, 2.5);
        for (i, (a, b)) in plain.iter().zip(&added).enumerate() {
            assert_eq!(2.5 + (a + bias[i % n]), *b);
        }
        let up = run(&second, None, Epilogue::Store, 0.0);
        for (activation, act) in [
            (Activation::Silu, (|x| x / (1.0 + (-x).exp())) as fn(f64) -> f64),
            (Activation::GeluTanh, |x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }),
        ] {
            let gated = run(&paired, None, Epilogue::Gated(Gate::Product(activation)), 0.0);
            for ((gate, up), y) in plain.iter().zip(&up).zip(&gated) {
                let expected = act(f64::from(*gate)) * f64::from(*up);
                assert!(
                    (expected - f64::from(*y)).abs() <= 1e-6 * (1.0 + expected.abs()),
                    "{gate} {up} {y} {expected}"
                );
            }
            if activation == Activation::Silu {
                assert_eq!(first.get_or_insert_with(|| bits(&gated)), &bits(&gated), "{isa}");
            }
        }
    }
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let pool = Pool::new(Some(2)).unwrap();
    let pack = |format, k, bytes: &[u8], rows, order| {
        PackedMatrix::pack_alone(&pool, format, k, &[Source { bytes, rows }], order).map(drop)
    };
    assert!(matches!(pack(Format::Q4_0, 33, &[], 0, Order::Stacked), Err(PackError::BadWidth { block: 32, .. })));
    assert!(matches!(pack(Format::Q4_0, 0, &[], 0, Order::Stacked), Err(PackError::BadWidth { .. })));
    let short = pack(Format::Q4_0, 32, &[0; 35], 2, Order::Stacked);
    assert!(matches!(short, Err(PackError::WrongBytes { expected: 36, found: 35, .. })));
    assert!(matches!(pack(Format::Q4_0, 32, &[0; 18], usize::MAX, Order::Stacked), Err(PackError::Alloc(_))));
    assert_eq!(pack(Format::Q4_0, 32, &[0; 18], 1, Order::Paired), Err(PackError::Unpaired));
    assert_eq!(pack(Format::Q4_0, 32, &[], 0, Order::Stacked), Ok(()));
}

#[test]
fn scales_that_are_not_finite_are_found() {
    let pool = Pool::new(Some(2)).unwrap();
    let mut random = Random::new(3);
    let k = 512;
    for format in FORMATS.iter().map(|row| row.format) {
        let good = weights(format, 40, k, &mut random);
        let row = format.row_bytes(k).unwrap();
        let offsets: Vec<(usize, Vec<u8>)> = match format.block().codes {
            basert_core::Codes::Float => vec![(
                0,
                match format {
                    Format::F32 => f32::NAN.to_le_bytes().to_vec(),
                    Format::F16 => half::f16::INFINITY.to_le_bytes().to_vec(),
                    _ => half::bf16::NAN.to_le_bytes().to_vec(),
                },
            )],
            basert_core::Codes::Quantised { base, min, .. } => {
                let bad = half::f16::NAN.to_le_bytes().to_vec();
                let base = match base {
                    basert_core::Base::F16(at) => (at, bad.clone()),
                    basert_core::Base::E8M0(at) => (at, vec![255]),
                };
                std::iter::once(base).chain(min.map(|(at, _)| (at, bad))).collect()
            }
        };
        for (at, bad) in offsets {
            let mut bytes = good.clone();
            let at = 33 * row + format.block().bytes + at;
            bytes[at..at + bad.len()].copy_from_slice(&bad);
            let sources = [Source { bytes: &good, rows: 40 }, Source { bytes: &bytes, rows: 40 }];
            for order in [Order::Stacked, Order::Paired] {
                let error = PackedMatrix::pack_alone(&pool, format, k, &sources, order).map(drop);
                assert_eq!(error, Err(PackError::NotFinite { tensor: 1, row: 33 }), "{format}");
            }
        }
    }
}
