//! Contracts of ssl-eval, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Pairs of rows of known information.
mod correlated;
/// Mutual information by critics.
mod critics;
/// Features from a backbone and from pixels.
mod extract;
/// Values of other libraries.
mod golden;
/// What holds of kNN for any features.
mod knn;
/// Mutual information by nearest neighbours.
mod ksg;
/// What holds of the linear probe and of logistic regression for any features.
mod linear_probe;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ssl_eval::Features;

/// `n` samples of cyclic classes, each spread by up to `spread` around its class's centre in `[-1, 1]^dim`.
fn clusters(n: usize, dim: usize, num_classes: usize, spread: f32, seed: u64) -> Features {
    let mut centres = symmetric_unit(1);
    let centres: Vec<f32> = (0..num_classes * dim).map(|_| centres()).collect();
    let mut noise = symmetric_unit(seed);
    let labels: Vec<u32> = (0..n).map(|row| (row % num_classes) as u32).collect();
    let data = labels.iter().flat_map(|&label| &centres[label as usize * dim..][..dim]);
    let data = data.map(|centre| centre + spread * noise()).collect();
    Features::new(data, dim, labels).unwrap()
}

/// Numbers that are uniform in `[-1, 1)`.
fn symmetric_unit(seed: u64) -> impl FnMut() -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    move || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// Runs `f` on a pool of so many threads.
fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}
