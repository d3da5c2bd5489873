//! Contracts of ssl-train, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod golden_step;
mod optimizer_groups;
