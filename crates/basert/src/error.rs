//! Errors of opening and running a model.

use basert_engine::{EngineError, SamplingError};
use basert_files::FileError;
use basert_graph::GraphError;
use basert_plan::DeviceError;
use basert_text::{GrammarError, TemplateError, TokenizerError};

/// Why a model could not be opened, or could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The architecture is unknown, or the file does not fit it.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The tokenizer is missing or wrong, or a text cannot be encoded.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The model.
        file: String,
        /// What is wrong.
        source: TokenizerError,
    },
    /// The chat template is wrong, or refuses the conversation.
    #[error("{file}: {source}")]
    Template {
        /// The model.
        file: String,
        /// What is wrong.
        source: TemplateError,
    },
    /// A chat is not possible, because the model has no template.
    #[error("{file} has no chat template; give one with --chat-template, or complete plain text instead")]
    NoTemplate {
        /// The model.
        file: String,
    },
    /// The model's tokenizer and its weights disagree.
    #[error("{file}: {what}")]
    Model {
        /// The model.
        file: String,
        /// How they disagree.
        what: String,
    },
    /// The device refused the model or failed.
    #[error("{file}: {source}")]
    Device {
        /// The model.
        file: String,
        /// What happened.
        source: DeviceError,
    },
    /// The model is too large for the device.
    #[error("{file}: {source}; {advice}")]
    TooLarge {
        /// The model.
        file: String,
        /// How much is missing.
        source: DeviceError,
        /// What would fit.
        advice: String,
    },
    /// The device could not be started.
    #[error("the cpu device cannot start its threads: {0}")]
    Threads(#[from] std::io::Error),
    /// The GPU is not there, or lacks what it needs.
    #[error(transparent)]
    Gpu(#[from] basert_gpu::GpuError),
    /// Kernels could not be checked or chosen.
    #[error(transparent)]
    Tune(#[from] basert_tune::Error),
    /// There is no such device on this system.
    #[error("there is no {device} device on this system")]
    NoDevice {
        /// The device.
        device: String,
    },
    /// A sequence could not be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A setting is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A grammar cannot be used, or could not be followed.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The prompt is empty.
    #[error("the prompt has no tokens; there is nothing to continue")]
    EmptyPrompt,
}
