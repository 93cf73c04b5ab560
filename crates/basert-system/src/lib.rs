//! This machine: the folders of a user's files ([`folders`]), and the programs that may be started ([`programs`]).

#![forbid(unsafe_code)]

pub mod folders;
pub mod programs;
