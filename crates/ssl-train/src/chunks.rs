//! Long slices in chunks that threads share out. Sums are added up in the order of the chunks, whoever computed them.

use rayon::prelude::*;

/// Elements of a chunk: 256 KiB of each operand.
pub(crate) const CHUNK: usize = 1 << 16;

/// `Σ f(x)²` in `f64` over the elements `x` of two slices of one length.
pub(crate) fn sum_of_squares(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> =
        a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).map(|(a, b)| chunk_of_squares(a, b, &f)).collect();
    sums.iter().sum()
}

/// Eight partial sums, so that the additions need not wait for one another.
fn chunk_of_squares(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f(f64::from(*a), f64::from(*b)).powi(2);
        }
    }
    sums.iter().sum()
}
