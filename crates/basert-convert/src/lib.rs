//! Making model files.
//!
//! A [`Recipe`] says which number format each tensor of a model gets. [`Synth`] makes a model of random weights of any
//! family, at any of the [published sizes](sizes), for measurements and tests.

#![forbid(unsafe_code)]

mod random;
mod recipe;
pub mod sizes;
mod synth;
mod vocabulary;

pub use random::Random;
pub use recipe::{Exception, Place, RECIPES, Recipe, When};
pub use synth::{Synth, SynthError};
