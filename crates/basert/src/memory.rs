//! Advice for a model that is too large for a device.

use basert_plan::{DeviceError, Fit};

/// Settings that would fit, for a model for which `sessions` sessions of `context` tokens do not; none for any other
/// error.
pub(crate) fn advice(error: &DeviceError, page_tokens: usize, sessions: usize, context: usize) -> Option<String> {
    let DeviceError::TooLarge { fits, .. } = error else { return None };
    let tokens = |fit: &Fit| fit.pages / sessions * page_tokens;
    let shorter = fits.first().filter(|fit| tokens(fit) > 0).map(|fit| format!("--max-context {}", tokens(fit)));
    // Fewer pages may be enough if the last one is not full.
    let coarser =
        fits.iter().skip(1).find(|fit| tokens(fit) >= context).map(|fit| format!("--kv-bits {}", fit.kv.bits()));
    let smallest = fits.last().filter(|fit| tokens(fit) > 0);
    let both = smallest.map(|fit| format!("--kv-bits {} --max-context {}", fit.kv.bits(), tokens(fit)));
    let ways: Vec<_> = [shorter, coarser].into_iter().flatten().collect();
    Some(match (ways.as_slice(), both) {
        ([], None) => {
            "the model does not fit even without a KV cache: use a smaller model or quantisation, or --device cpu"
                .to_owned()
        }
        ([], Some(both)) => format!("{both} would fit"),
        (ways, _) => format!("{} would fit", ways.join(", or ")),
    })
}

#[cfg(test)]
mod tests {
    use basert_core::KvFormat::{F16, Q4, Q8};

    use super::*;

    fn of(fits: &[(basert_core::KvFormat, usize)]) -> String {
        let fits = fits.iter().map(|&(kv, pages)| Fit { kv, pages }).collect();
        let error = DeviceError::TooLarge { device: "metal".to_owned(), needed: 3, free: 1, fits };
        advice(&error, 64, 2, 1000).unwrap()
    }

    #[test]
    fn what_would_fit_is_said_as_options() {
        assert_eq!(of(&[(F16, 20), (Q8, 32), (Q4, 32)]), "--max-context 640, or --kv-bits 8 would fit");
        assert_eq!(of(&[(F16, 20), (Q8, 30), (Q4, 32)]), "--max-context 640, or --kv-bits 4 would fit");
        assert_eq!(of(&[(F16, 20), (Q8, 24)]), "--max-context 640 would fit");
        assert_eq!(of(&[(F16, 1), (Q8, 2), (Q4, 5)]), "--kv-bits 4 --max-context 128 would fit");
        assert!(of(&[(F16, 0), (Q8, 0), (Q4, 1)]).contains("smaller model"));
        assert_eq!(advice(&DeviceError::Step(String::new()), 64, 1, 1), None);
    }
}
