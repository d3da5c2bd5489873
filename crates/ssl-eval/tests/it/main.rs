//! Contracts of ssl-eval, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// What holds of clusters for any features.
mod clustering;
/// Pairs of rows of known information.
mod correlated;
/// Mutual information by critics.
mod critics;
/// Features from a backbone and from pixels.
mod extract;
/// What holds of Gaussian measures of information.
mod gaussian;
/// Values of other libraries.
mod golden;
/// What holds of kNN for any features.
mod knn;
/// Mutual information by nearest neighbours.
mod ksg;
/// What holds of LiDAR for any views.
mod lidar;
/// What holds of the linear probe and of logistic regression for any features.
mod linear_probe;

/// What holds of retrieval for any features.
mod retrieval;
/// What holds of spectra for any embeddings.
mod spectrum;
/// What holds of pictures by t-SNE.
mod t_sne;

use candle_core::{Device, Tensor};
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

/// Numbers of the standard normal distribution, by Box and Muller.
fn normal(n: usize, dim: usize, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut draw = || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    Tensor::from_vec((0..n * dim).map(|_| draw()).collect(), (n, dim), &Device::Cpu).unwrap()
}

/// An orthogonal matrix: Householder's reflection of a random direction.
fn reflection(dim: usize, seed: u64) -> Tensor {
    let v = normal(dim, 1, seed);
    let twice = (v.matmul(&v.t().unwrap()).unwrap() * 2.0).unwrap();
    let scale = v.sqr().unwrap().sum_all().unwrap();
    let eye = Tensor::eye(dim, candle_core::DType::F64, &Device::Cpu).unwrap();
    (eye - twice.broadcast_div(&scale).unwrap()).unwrap()
}

/// Runs `f` on a pool of so many threads.
fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}
