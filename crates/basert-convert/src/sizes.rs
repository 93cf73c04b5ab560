//! Published sizes of model families (`sizes.toml`).

use serde::Deserialize;
use std::collections::BTreeMap;

/// Families by name.
pub type Families = BTreeMap<String, Family>;

/// A family, and what its sizes have in common.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Tensors that not every model of the architecture has, by their names in the architecture file.
    #[serde(default)]
    pub tensors: Vec<String>,
    /// Hyperparameters, by their names in the architecture file.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// Sizes by name.
    pub sizes: BTreeMap<String, Size>,
}

/// One size: what it adds to its family.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// The published model.
    pub model: String,
    /// Further tensors.
    #[serde(default)]
    pub tensors: Vec<String>,
    /// The scaling of rotary frequencies that the file holds as divisors.
    pub rope_factors: Option<Llama3Scaling>,
    /// Hyperparameters, which come before those of the family.
    pub parameters: BTreeMap<String, Parameter>,
}

/// A hyperparameter, of the type that files keep it in.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// A number of things.
    Count(u32),
    /// Any other number.
    Number(f32),
    /// A name.
    Text(String),
}

/// The rotary scaling of Llama 3: see [`basert_graph::llama3_factors`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// By how much the context was extended.
    pub factor: f64,
    /// Waves in the old context below which a frequency is divided by all of the factor.
    pub low: f64,
    /// Waves in the old context from which on it stays.
    pub high: f64,
    /// The context before.
    pub context: f64,
}

/// The families of `sizes.toml`.
///
/// # Errors
/// None in a build whose tests pass.
pub fn built_in() -> Result<Families, toml::de::Error> {
    toml::from_str(include_str!("sizes.toml"))
}
