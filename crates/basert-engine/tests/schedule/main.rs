//! The scheduler on a device whose logits are a hash of all tokens that it was given. Whatever happens to a request
//! (company, preemption, a cached prefix, pieces of any size), its text has to be that of the hash.

mod ahead;
mod answers;
mod anything;
mod asking;
mod constraints;
mod device;
mod fairness;
mod guesses;
mod vectors;
