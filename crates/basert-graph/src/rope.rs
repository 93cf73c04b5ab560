//! Frequencies of rotary embeddings.
//!
//! Su et al. 2021, arXiv 2104.09864; the scalings as Hugging Face `transformers` defines them
//! (`modeling_rope_utils.py`).

/// How frequencies are scaled for a longer context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scaling {
    /// No scaling.
    None,
    /// All are divided by the factor.
    Linear { factor: f64 },
    /// Low frequencies are divided by the factor, high ones are kept, with a ramp in between.
    Llama3 { factor: f64, low: f64, high: f64, original_context: f64 },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): between the pairs that rotate `fast` and `slow` times over the
    /// original context is a ramp from kept frequencies to those divided by the factor. If `truncated`, its ends are
    /// rounded to whole pairs.
    Yarn { factor: f64, fast: f64, slow: f64, original_context: f64, truncated: bool },
}

/// Radians per position of the `dim / 2` pairs: base^(−2i/dim), scaled.
pub(crate) fn frequencies(dim: usize, base: f64, scaling: Scaling) -> Vec<f32> {
    // The pair that makes this number of rotations over the original context.
    let pair =
        |turns: f64, context: f64| dim as f64 * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    (0..dim / 2)
        .map(|i| {
            let frequency = base.powf(-2.0 * i as f64 / dim as f64);
            let scaled = match scaling {
                Scaling::None => frequency,
                Scaling::Linear { factor } => frequency / factor,
                Scaling::Llama3 { factor, low, high, original_context } => {
                    let waves = original_context * frequency / std::f64::consts::TAU;
                    let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                }
                Scaling::Yarn { factor, fast, slow, original_context, truncated } => {
                    let (mut first, mut last) = (pair(fast, original_context), pair(slow, original_context));
                    if truncated {
                        (first, last) = (first.floor(), last.ceil());
                    }
                    let (first, last) = (first.max(0.0), last.min(dim as f64 - 1.0));
                    let divided = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                    frequency * (1.0 - divided + divided / factor)
                }
            };
            scaled as f32
        })
        .collect()
}

/// The divisors of the frequencies of `dim / 2` pairs under Llama 3's scaling: files that name no scaling hold them as
/// a tensor. `context` is the training context before scaling by `factor`.
pub fn llama3_factors(dim: usize, base: f64, factor: f64, (low, high): (f64, f64), context: f64) -> Vec<f32> {
    let scaled = frequencies(dim, base, Scaling::Llama3 { factor, low, high, original_context: context });
    frequencies(dim, base, Scaling::None).iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pair_turns_a_radian_a_position() {
        let plain = frequencies(64, 10000.0, Scaling::None);
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        assert!((plain[16] - 0.01).abs() < 1e-9);
        assert_eq!(frequencies(64, 10000.0, Scaling::Linear { factor: 8.0 })[0], 0.125);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let plain = frequencies(128, 500000.0, Scaling::None);
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        let scaled = frequencies(128, 500000.0, scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-4);
        assert!((0..64).any(|i| (1.01..7.9).contains(&(plain[i] / scaled[i]))));
    }
}
