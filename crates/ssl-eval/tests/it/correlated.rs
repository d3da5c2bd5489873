//! Pairs of Gaussian rows whose mutual information has a closed form.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ssl_eval::Features;

/// `n` pairs of `dim` columns each: `y = rho x + sqrt(1 − rho²) noise`, all normal.
pub(crate) fn gaussians(n: usize, dim: usize, rho: f64, seed: u64) -> [Features; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let pairs = (0..n * dim).map(|_| {
        let radius = (-2.0 * (1.0 - unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit()).sin_cos();
        ((radius * cos) as f32, (radius * (rho * cos + (1.0 - rho * rho).sqrt() * sin)) as f32)
    });
    let (x, y) = pairs.unzip();
    [x, y].map(|data| Features::new(data, dim, vec![0; n]).unwrap())
}

/// The mutual information of [`gaussians`] in nats.
pub(crate) fn truth(dim: usize, rho: f64) -> f64 {
    -(dim as f64) / 2.0 * (1.0 - rho * rho).ln()
}
