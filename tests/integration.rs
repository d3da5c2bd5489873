//! Integration tests over the umbrella crate.
