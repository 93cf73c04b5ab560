//! How kernels are specialised on a device: the first rule of a table whose limits hold.

use serde::Deserialize;

use crate::GpuError;
use crate::cache::cache_dir;

/// The shape of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Rows of the input, at most.
    pub tokens: usize,
    /// Rows of the weights.
    pub rows: usize,
    /// Columns of both.
    pub columns: usize,
}

/// When a rule holds: up to these sizes, where they are given.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Limits {
    tokens: Option<usize>,
    rows: Option<usize>,
    columns: Option<usize>,
}

/// How a product of few rows is computed (`linear/gemv.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Gemv {
    /// Rows of weights that a simdgroup has, an even number.
    pub each: usize,
    /// Simdgroups of a threadgroup.
    pub simdgroups: usize,
    /// How many of them divide the columns.
    pub split: usize,
}

/// How a product of many rows is computed (`linear/gemm.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Gemm {
    /// Rows of the output that a threadgroup has.
    pub m: usize,
    /// Columns of the output that it has.
    pub n: usize,
    /// Its simdgroups.
    pub simdgroups: usize,
    /// How many of them are one below the other.
    pub simdgroups_m: usize,
}

/// How attention of single tokens is computed (`attention/decode.metal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Decode {
    /// Simdgroups of a threadgroup.
    pub simdgroups: usize,
    /// Query values that a simdgroup holds at most: heads that share keys, times their size.
    pub values: usize,
    /// Threadgroups wanted for each core, where a long context is divided.
    pub groups_per_core: usize,
    /// Tokens of the shortest part of a divided context, in whole pages.
    pub least_split: usize,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Rule<T> {
    #[serde(flatten)]
    limits: Limits,
    #[serde(flatten)]
    choice: T,
}

/// The table of a kind of device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Tokens of the largest step that is worth it.
    pub step_tokens: usize,
    /// Products of at most so many rows are computed as those of few.
    pub few_tokens: usize,
    /// Whether products of few rows have their inputs quantised, for a device that multiplies four bytes at once.
    pub integer_dots: bool,
    gemv: Vec<Rule<Gemv>>,
    gemm: Vec<Rule<Gemm>>,
    /// Attention of single tokens.
    pub decode: Decode,
}

/// The tables that come with the project.
const TABLES: [(&str, &str); 4] = [
    ("apple", include_str!("../tuning/apple.toml")),
    ("apple10", include_str!("../tuning/apple10.toml")),
    ("cuda", include_str!("../tuning/cuda.toml")),
    ("simt", include_str!("../tuning/simt.toml")),
];

impl Tuning {
    /// The table of this name: the one in `~/.cache/baseRT/tuning/NAME.toml`, if this machine has its own, or else the
    /// one that comes with the project.
    ///
    /// # Errors
    /// When the machine's own table is not well-formed.
    pub fn of_device(name: &str) -> Result<Tuning, GpuError> {
        let Some(path) = cache_dir().map(|root| root.join("tuning").join(format!("{name}.toml"))) else {
            return Ok(Tuning::named(name));
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                GpuError::Failed(format!(
                    "{}: {}; remove it to use the built-in table",
                    path.display(),
                    error.message()
                ))
            }),
            Err(_) => Ok(Tuning::named(name)),
        }
    }

    /// The table of this name that comes with the project.
    ///
    /// # Panics
    /// When there is none, or it is not well-formed, which a test rules out.
    pub fn named(name: &str) -> Tuning {
        let (_, text) = TABLES.iter().find(|(table, _)| *table == name).expect("every device has its table");
        toml::from_str(text).expect("tables are well-formed")
    }

    /// How a product of few rows is computed.
    pub fn gemv(&self, product: Product) -> Gemv {
        choose(&self.gemv, product)
    }

    /// How a product of many rows is computed.
    pub fn gemm(&self, product: Product) -> Gemm {
        choose(&self.gemm, product)
    }
}

fn choose<T: Copy>(rules: &[Rule<T>], product: Product) -> T {
    let within = |value: usize, limit: Option<usize>| limit.is_none_or(|limit| value <= limit);
    let holds = |limits: &Limits| {
        within(product.tokens, limits.tokens)
            && within(product.rows, limits.rows)
            && within(product.columns, limits.columns)
    };
    rules.iter().find(|rule| holds(&rule.limits)).expect("the last rule has no limits").choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_well_formed_and_their_rules_legal() {
        for (name, _) in TABLES {
            let tuning = Tuning::named(name);
            for Rule { choice, .. } in &tuning.gemv {
                assert!(choice.each.is_multiple_of(2) && choice.simdgroups.is_multiple_of(choice.split), "{choice:?}");
            }
            for Rule { choice, .. } in &tuning.gemm {
                assert!(choice.m.is_multiple_of(16 * choice.simdgroups_m), "{choice:?}");
                let across = choice.simdgroups / choice.simdgroups_m;
                assert!(across * choice.simdgroups_m == choice.simdgroups && choice.n.is_multiple_of(16 * across));
                assert!((choice.m + choice.n) * 32 * 2 * 2 <= 32 << 10, "{choice:?} takes too much threadgroup memory");
            }
            let free = |limits: &Limits| limits.tokens.or(limits.rows).or(limits.columns).is_none();
            assert!(tuning.gemv.last().is_some_and(|rule| free(&rule.limits)));
            assert!(tuning.gemm.last().is_some_and(|rule| free(&rule.limits)));
        }
    }
}
