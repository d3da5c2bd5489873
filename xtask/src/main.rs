//! The runner. 
fn main() {}
