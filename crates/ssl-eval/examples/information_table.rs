//! Errors of the estimators of mutual information for Gaussians, whose information is known, as a Markdown table.
//!
//! ```text
//! cargo run --release -p ssl-eval --example information_table
//! ```

// An example reports by printing.
#![allow(clippy::print_stdout)]

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ssl_eval::{
    Bound, CriticConfig, Features, GaussianInformation, KsgAlgorithm, KsgConfig, Result, Shrinkage,
    critic_information, ksg_information,
};

const ROWS: usize = 4000;
const DIMS: [usize; 4] = [2, 8, 16, 64];
const RHOS: [f64; 5] = [0.0, 0.3, 0.6, 0.9, 0.99];
const SEED: u64 = 1;

/// A column of the table.
#[derive(Clone, Copy)]
enum Estimator {
    /// Canonical correlations without shrinkage.
    Gaussian,
    Ksg(KsgAlgorithm),
    Critic(Bound),
}

const ESTIMATORS: [(&str, Estimator); 7] = [
    ("Gaussian", Estimator::Gaussian),
    ("KSG 1", Estimator::Ksg(KsgAlgorithm::Cubes)),
    ("KSG 2", Estimator::Ksg(KsgAlgorithm::Rectangles)),
    ("InfoNCE", Estimator::Critic(Bound::InfoNce)),
    ("NWJ", Estimator::Critic(Bound::Nwj)),
    ("SMILE", Estimator::Critic(Bound::smile())),
    ("MINE", Estimator::Critic(Bound::DonskerVaradhan)),
];

fn main() -> Result<()> {
    println!("| d | rho | truth |{}", ESTIMATORS.map(|(name, _)| format!(" {name} |")).concat());
    println!("|---:|---:|---:|{}", "---:|".repeat(ESTIMATORS.len()));
    for dim in DIMS {
        for rho in RHOS {
            let (x, y) = gaussians(dim, rho)?;
            // Zero, rather than minus zero.
            let truth = 0.0 - dim as f64 / 2.0 * (1.0 - rho * rho).ln();
            print!("| {dim} | {rho} | {truth:.2} |");
            for (_, estimator) in ESTIMATORS {
                print!(" {} |", error(estimator, &x, &y, truth)?);
            }
            println!();
        }
    }
    Ok(())
}

/// The estimate less the truth, with the standard error if the estimator has one.
fn error(estimator: Estimator, x: &Features, y: &Features, truth: f64) -> Result<String> {
    match estimator {
        Estimator::Gaussian => {
            let found = GaussianInformation::between(&tensor(x)?, &tensor(y)?, Shrinkage::None)?;
            Ok(signed(found.nats() - truth))
        }
        Estimator::Ksg(algorithm) => {
            let nats = ksg_information(x, y, &KsgConfig { algorithm, ..Default::default() })?;
            Ok(signed(nats - truth))
        }
        Estimator::Critic(bound) => {
            let mut generator = ChaCha8Rng::seed_from_u64(SEED);
            let found = critic_information(x, y, bound, &CriticConfig::default(), &mut generator)?;
            Ok(format!("{} ± {:.2}", signed(found.nats - truth), found.standard_error))
        }
    }
}

fn tensor(features: &Features) -> Result<Tensor> {
    Ok(Tensor::from_slice(features.data(), (features.rows(), features.dim()), &Device::Cpu)?)
}

/// Two decimals, with the sign of minus and without one for zero.
fn signed(value: f64) -> String {
    format!("{:.2}", (100.0 * value).round() / 100.0 + 0.0).replace('-', "−")
}

/// Normal x and `y = rho x + sqrt(1 − rho²) noise`.
fn gaussians(dim: usize, rho: f64) -> Result<(Features, Features)> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let pairs = (0..ROWS * dim).map(|_| {
        let radius = (-2.0 * (1.0 - unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit()).sin_cos();
        ((radius * cos) as f32, (radius * (rho * cos + (1.0 - rho * rho).sqrt() * sin)) as f32)
    });
    let (x, y) = pairs.unzip();
    Ok((Features::new(x, dim, vec![0; ROWS])?, Features::new(y, dim, vec![0; ROWS])?))
}
