//! Making model files.
//!
//! A [`Recipe`] chooses the number format of each tensor of a model. [`Synth`] makes a model of random weights of any
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
