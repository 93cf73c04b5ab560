//! Options for opening a model, and for sharing it between requests.

use std::path::PathBuf;
use std::time::Duration;

use basert_core::KvFormat;
use basert_engine::Speculation;

use crate::DeviceKind;

/// Options for opening a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// The device.
    pub device: DeviceKind,
    /// Number of threads of the CPU device; none means one for each core.
    pub threads: Option<usize>,
    /// Limit on the tokens of a prompt and its answer; none means what the model was trained for, but at most
    /// [`Options::DEFAULT_CONTEXT`].
    pub max_context: Option<usize>,
    /// How the KV cache stores keys and values.
    pub kv: KvFormat,
    /// Number of sequences of full length that the KV cache has room for. Its memory is allocated as it is used.
    pub sessions: usize,
    /// Limit on the answers that are decoded together: the rows of logits of a step.
    pub answers: usize,
    /// Limit on the bytes of the KV cache, which then has room for fewer sequences, but for at least one.
    pub cache_bytes: Option<usize>,
    /// The share of the device's memory that is free after the weights which the KV cache may take, if
    /// [`Options::cache_bytes`] is none; it has room for one sequence in any case.
    pub cache_share: Option<f64>,
    /// Whether the KV cache of requests that ended is kept, for others that begin with the same tokens, until the room
    /// is needed. In models with sliding windows it also has what lies behind them, without which a sequence that goes back
    /// is computed from its beginning.
    pub prefix_cache: bool,
    /// Limit on the tokens of a step; none means what suits the device.
    pub step_tokens: Option<usize>,
    /// Whether the model's head for multi-token prediction is loaded, to propose draft tokens.
    pub mtp: Mtp,
    /// Further architecture files, which take precedence over the built-in ones.
    pub arch_files: Vec<PathBuf>,
    /// The source of a chat template to use instead of the model's own.
    pub chat_template: Option<String>,
}

impl Options {
    /// The largest context that is used by default.
    pub const DEFAULT_CONTEXT: usize = 8192;
    /// The default of [`Options::answers`].
    pub const ANSWERS: usize = 64;
    /// The most that [`Options::answers`] can be: logits of all of them have to fit the memory.
    pub const MOST_ANSWERS: usize = 512;
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: DeviceKind::default(),
            threads: None,
            max_context: None,
            kv: KvFormat::default(),
            sessions: 4,
            answers: Options::ANSWERS,
            cache_bytes: None,
            cache_share: None,
            prefix_cache: true,
            step_tokens: None,
            mtp: Mtp::default(),
            arch_files: Vec::new(),
            chat_template: None,
        }
    }
}

/// Whether a model's head for multi-token prediction is loaded. It takes memory for its weights, and for keys and values of
/// one more layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtp {
    /// It is not.
    #[default]
    Off,
    /// If there is one, and the device does not sample tokens by itself: steps that run ahead of the host leave no time to
    /// draft.
    Auto,
    /// It is; a model without one is refused.
    On,
}

/// How requests share a model.
#[derive(Debug, Clone)]
pub struct Scheduling {
    /// Limit on the answers that run at once, at most [`Options::answers`]; further ones wait.
    pub parallel: usize,
    /// How long a step may take while answers are decoded.
    pub step_gap: Duration,
    /// Speculative decoding, which does not change the text.
    pub speculation: Speculation,
}

impl Default for Scheduling {
    fn default() -> Self {
        Scheduling { parallel: 16, step_gap: Duration::from_millis(150), speculation: Speculation::Auto }
    }
}
