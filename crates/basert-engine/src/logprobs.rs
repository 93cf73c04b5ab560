//! Log probabilities of the model itself: before penalties, temperature and other sampling settings.

/// The log probability of a token, and those of the likeliest tokens at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The likeliest tokens with their log probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// The log probabilities of `token` and of the `top` likeliest tokens, from logits.
    pub fn of(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).filter(|x| !x.is_nan()).sum();
        let log_sum = sum.ln();
        let logprob = |logit: f32| (f64::from(logit - max) - log_sum) as f32;
        // The likeliest so far, with ties in order of token ids; `top` is small.
        let mut likeliest: Vec<(f32, u32)> = Vec::with_capacity(top.min(logits.len()));
        for (&logit, id) in logits.iter().zip(0..) {
            let is_likelier = |than: &(f32, u32)| logit.total_cmp(&than.0).is_gt();
            let is_full = likeliest.len() == top;
            if !is_full || likeliest.last().is_some_and(is_likelier) {
                likeliest.truncate(top - usize::from(is_full));
                likeliest.insert(likeliest.partition_point(|other| !is_likelier(other)), (logit, id));
            }
        }
        TokenLogprobs {
            logprob: logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
            top: likeliest.into_iter().map(|(logit, id)| (id, logprob(logit))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_softmax_in_order() {
        let logits = [1.0f32, 3.0, 2.0, 3.0];
        let found = TokenLogprobs::of(&logits, 2, 3);
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = |x: f64| (x - sum.ln()) as f32;
        assert!((found.logprob - expected(2.0)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((found.top[0].1 - expected(3.0)).abs() < 1e-6);
        assert_eq!(TokenLogprobs::of(&logits, 0, 0).top, []);
        assert_eq!(TokenLogprobs::of(&logits, 9, 99).top.len(), 4);
        assert!(found.top.capacity() == 3, "many are kept for long prompts");
    }
}
