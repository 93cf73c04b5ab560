//! Kernels on rows against f64, and bit for bit between instruction sets.

mod common;

use basert_cpu::*;
use basert_graph::Activation;
use basert_plan::Gate;
use common::{Random, bits};

/// Runs `kernel` on every instruction set, asserts that all give the same bits, and returns the result.
fn everywhere(kernel: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let expected = kernel(Isa::Portable);
    for isa in Isa::available() {
        assert_eq!(bits(&kernel(isa)), bits(&expected), "{isa}");
    }
    expected
}

fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>, relative: f64, absolute: f64) {
    for (i, (x, expected)) in found.iter().zip(expected).enumerate() {
        let bound = absolute + relative * expected.abs();
        assert!((f64::from(*x) - expected).abs() <= bound, "{i}: {x}, not {expected}");
    }
}

#[test]
fn rms_norm_is_that_of_the_paper() {
    for len in [1, 15, 16, 48, 64, 100, 576, 1541] {
        let mut random = Random::new(len as u64);
        let (x, weight) = (random.values(len), random.values(len));
        let found = everywhere(|isa| {
            let mut out = vec![0.0; len];
            rms_norm(isa, &x, &weight, 1e-5, &mut out);
            let mut again = x.clone();
            rms_norm_in_place(isa, &mut again, &weight, 1e-5);
            assert_eq!(bits(&out), bits(&again));
            out
        });
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / len as f64;
        let expected = x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w) / (mean + 1e-5).sqrt());
        assert_close(&found, expected, 1e-6, 0.0);
    }
}

/// Values of every magnitude, and the ends of the functions' ranges.
fn wide() -> Vec<f32> {
    let mut random = Random::new(7);
    let mut values: Vec<f32> = (0..5003).map(|_| random.value() * ((random.value() * 12.0).exp())).collect();
    values.extend([0.0, -0.0, 1e-30, -1e-30, 0.624_99, 0.625, -0.625, 87.0, -87.0, 88.5, -88.5, 1e30, -1e30]);
    values
}

#[test]
fn activations_and_soft_cap_agree_with_f64() {
    let x = wide();
    let ones = vec![1.0; x.len()];
    type Exact = fn(f64) -> f64;
    let sigmoid = |x: f64, slope: f64| 1.0 / (1.0 + (-slope * x).exp());
    let gelu_tanh: Exact =
        |x| x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).exp());
    let xielu = Activation::Xielu { above: 0.8, below: 0.6, slope: 0.5, eps: -1e-6 };
    // The exponential carries the rounding of its argument, up to 88 here, and where most of a sum cancels, the smaller
    // one's.
    let table: [(Activation, Exact, f64, f64); 9] = [
        (Activation::Silu, |x| x / (1.0 + (-x).exp()), 4e-7, 1e-35),
        (Activation::Gelu, |x| 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2), 1e-6, 6e-7),
        (Activation::GeluTanh, gelu_tanh, 2e-5, 1e-35),
        (Activation::GeluSigmoid, |x| x / (1.0 + (-1.702 * x).exp()), 2e-5, 1e-35),
        (Activation::Relu, |x| x.max(0.0), 0.0, 0.0),
        (Activation::ReluSquared, |x| x.max(0.0) * x.max(0.0), 2e-7, 1e-35),
        (Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 4e-7, 1e-35),
        (Activation::Tanh, f64::tanh, 4e-7, 0.0),
        (
            xielu,
            |x| {
                let (above, below, eps) = (f64::from(0.8f32), f64::from(0.6f32), f64::from(-1e-6f32));
                if x > 0.0 { above * x * x + 0.5 * x } else { below * (x.min(eps).exp_m1() - x) + 0.5 * x }
            },
            1e-6,
            2e-7,
        ),
    ];
    for (activation, exact, relative, absolute) in table {
        let found = everywhere(|isa| {
            let mut y = x.clone();
            activate(isa, activation, &mut y);
            // A gate multiplies the same.
            let mut gated = x.clone();
            gate(isa, Gate::Product(activation), &mut gated, &ones);
            assert_eq!(bits(&y), bits(&gated));
            y
        });
        // Squares of the largest are beyond what a float holds.
        let within = |x: f32| if x.abs() < 1e18 { exact(f64::from(x)) } else { f64::from(x) };
        let found: Vec<f32> = found.iter().zip(&x).map(|(y, x)| if x.abs() < 1e18 { *y } else { *x }).collect();
        assert_close(&found, x.iter().map(|&x| within(x)), relative, absolute);
    }
    let swished = everywhere(|isa| {
        let mut y = x.clone();
        gate(isa, Gate::ClampedSwish, &mut y, &x);
        y
    });
    let exact = |x: f64| x.min(7.0) * sigmoid(x.min(7.0), 1.702) * (x.clamp(-7.0, 7.0) + 1.0);
    assert_close(&swished, x.iter().map(|&x| exact(f64::from(x))), 2e-5, 1e-6);
    let capped = everywhere(|isa| {
        let mut y = x.clone();
        soft_cap(isa, &mut y, 30.0);
        y
    });
    assert_close(&capped, x.iter().map(|&x| 30.0 * (f64::from(x) / 30.0).tanh()), 4e-7, 0.0);
    let scaled = everywhere(|isa| {
        let mut y = x.clone();
        scale(isa, &mut y, 0.3);
        add(isa, &mut y, &ones);
        y
    });
    assert!(scaled.iter().zip(&x).all(|(y, x)| *y == x * 0.3 + 1.0));
}

#[test]
fn what_is_not_a_number_stays_so() {
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; 20];
        gate(isa, Gate::Product(Activation::Silu), &mut y, &[1.0; 20]);
        assert!(y.iter().all(|y| y.is_nan()), "{isa}");
        soft_cap(isa, &mut y, 5.0);
        assert!(y.iter().all(|y| y.is_nan()), "{isa}");
        rms_norm_in_place(isa, &mut y, &[1.0; 20], 1e-5);
        assert!(y.iter().all(|y| y.is_nan()), "{isa}");
    }
}

#[test]
fn rotations_turn_pairs() {
    let mut random = Random::new(4);
    for (dim, half) in [(64, 32), (64, 16), (80, 20), (256, 128), (16, 3)] {
        let x = random.values(dim);
        let angles: Vec<f32> = random.values(half).iter().map(|x| x * 3.0).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        for style in [RotaryStyle::Halves, RotaryStyle::Pairs] {
            let found = everywhere(|isa| {
                let mut y = x.clone();
                rotate(isa, &mut y, &cos, &sin, style);
                y
            });
            let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for i in 0..half {
                let (a, b) = if style == RotaryStyle::Halves { (i, i + half) } else { (2 * i, 2 * i + 1) };
                let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                let (xa, xb) = (expected[a], expected[b]);
                (expected[a], expected[b]) = (xa * c - xb * s, xa * s + xb * c);
            }
            assert_close(&found, expected, 0.0, 2e-7);
        }
    }
}
