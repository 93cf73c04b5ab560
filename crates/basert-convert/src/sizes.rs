//! Published sizes of model families (`sizes.toml`).

use serde::Deserialize;
use std::collections::BTreeMap;

/// Families by what GGUF files call them.
pub type Families = BTreeMap<String, Family>;

/// A family, with what its sizes have in common.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Its optional tensors, by their names in the architecture file.
    #[serde(default)]
    pub tensors: Vec<String>,
    /// Hyperparameters, by their names in the architecture file.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// Further metadata, which other engines need, by the key without the architecture's name.
    #[serde(default)]
    pub keys: BTreeMap<String, Parameter>,
    /// Sizes by name.
    pub sizes: BTreeMap<String, Size>,
}

/// One size: its additions to the family.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// The published model.
    pub model: String,
    /// How many billions of parameters its publisher counts.
    pub billions: Option<f64>,
    /// More optional tensors.
    #[serde(default)]
    pub tensors: Vec<String>,
    /// Tensors that not all layers have, with the layers that do.
    #[serde(default)]
    pub layers_with: BTreeMap<String, Vec<usize>>,
    /// The rotary scaling, which the file holds as divisors of frequencies.
    pub rope_factors: Option<Llama3Scaling>,
    /// Hyperparameters, which override those of the family.
    pub parameters: BTreeMap<String, Parameter>,
    /// Further metadata, which overrides that of the family.
    #[serde(default)]
    pub keys: BTreeMap<String, Parameter>,
}

/// A hyperparameter, with its type in files.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// A truth value.
    Flag(bool),
    /// A count.
    Count(u32),
    /// Any other number.
    Number(f32),
    /// A name.
    Text(String),
    /// A truth value of each layer.
    Flags(Vec<bool>),
    /// Several counts.
    Counts(Vec<u32>),
}

/// The rotary scaling of Llama 3: see [`basert_graph::llama3_factors`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// The factor by which the context was extended.
    pub factor: f64,
    /// Frequencies with fewer periods than this in the old context are divided by the whole factor.
    pub low: f64,
    /// Frequencies with at least this number of periods in the old context are kept.
    pub high: f64,
    /// The old context.
    pub context: f64,
}

/// The families of `sizes.toml`.
///
/// # Errors
/// Never in a build whose tests pass.
pub fn built_in() -> Result<Families, toml::de::Error> {
    toml::from_str(include_str!("sizes.toml"))
}
