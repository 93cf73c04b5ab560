//! What a model computes.
//!
//! A family of models is one architecture file (`arch/*.toml`): where its hyperparameters are stored, what its tensors
//! are called, and which ops of the catalogue it is made of. [`Graph::open`] finds the family of a model file and
//! evaluates its architecture for that file. The result is a list of [`Op`]s, concrete in everything but the number of
//! tokens in a step. `basert-plan` and the devices decide how the ops are executed.

#![forbid(unsafe_code)]

mod arch;
mod build;
pub mod expr;
mod graph;
mod op;
mod parameters;
mod rope;
mod tensors;
mod weight;

pub use arch::{
    Architecture, Expression, HeadOps, Keys, Ops, Parameter, PooledOps, Refusal, StoredParameter, TensorName,
};
pub use graph::{
    Cache, Graph, Head, Node, Pairs, Pooled, Rope, RopeId, Rows, State, StateId, Value, ValueId, WeightId,
};
pub use op::{
    Activation, Affine, Alibi, Attention, Conv, Experts, Index, LinearAttention, Norm, Op, Part, Reach, Route, Score,
    Signature, Temper,
};
pub use parameters::Metadata;
pub use rope::llama3_factors;
pub use tensors::{TensorRole, TensorShape};
pub use weight::{Cut, Taken, Weight, WeightError};

/// Why no graph could be built from a model file.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The architecture file itself is wrong.
    #[error("architecture file {file}: {what}")]
    Architecture {
        /// The file.
        file: String,
        /// What is wrong and where.
        what: String,
    },
    /// No architecture file matches this model.
    #[error(
        "{file}: the architecture '{found}' is not known; known are {known}. \
         A file that describes it can be given with --arch-file"
    )]
    UnknownArchitecture {
        /// The model file.
        file: String,
        /// The architecture that it states.
        found: String,
        /// The known architectures, joined.
        known: String,
    },
    /// The model file does not say what its architecture is.
    #[error("{file}: {what}")]
    Model {
        /// The model file.
        file: String,
        /// Which field or tensor, what was expected and what was found.
        what: String,
    },
}
