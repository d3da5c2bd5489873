//! What users do with the runner, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod bench;
mod corners;
mod eval;
mod kill;
mod parity;
mod report;
mod reproduce;
mod sanitize;
mod tokenizer;
mod views;
mod weights;
