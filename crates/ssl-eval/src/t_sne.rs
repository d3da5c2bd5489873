//! Pictures of embeddings: t-SNE, exact.
//!
//! Van der Maaten & Hinton, "Visualizing Data using t-SNE", 2008. Where the paper draws a random start, we start from the
//! first two principal components, as Kobak & Berens ("The art of using t-SNE for single-cell transcriptomics", 2019)
//! advise, so that a picture is the same each time; the exaggeration and the learning rate are scikit-learn's.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::principal::PrincipalComponents;
use crate::rows::{Rows, squared_distance};
use crate::{Error, Result};

/// Rows at most: their `N²` similarities take 200 MB.
const MAX_ROWS: usize = 5000;

/// The standard deviation of the start along the first component.
const START: f64 = 1e-4;

/// What the entropy of a row's neighbours may differ by from the logarithm of the perplexity, as in the authors' code.
const ENTROPY_TOLERANCE: f64 = 1e-5;

/// Settings of t-SNE.
#[derive(Clone, Debug, PartialEq)]
pub struct TSneConfig {
    /// How many neighbours a row has, softly; from 1 to a third of the other rows.
    pub perplexity: f64,
    /// Steps of gradient descent in all, at least 1.
    pub iterations: usize,
    /// What similarities are multiplied by in the first steps, at least 1.
    pub exaggeration: f64,
    /// The number of those steps, at most `iterations`. Momentum is 0.5 in them and 0.8 afterwards.
    pub exaggerated_iterations: usize,
}

impl Default for TSneConfig {
    fn default() -> Self {
        Self { perplexity: 30.0, iterations: 1000, exaggeration: 12.0, exaggerated_iterations: 250 }
    }
}

/// A picture of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct TSne {
    /// The place of each row in the plane.
    pub points: Vec<[f64; 2]>,
    /// The divergence `KL(P ‖ Q)` in nats of the similarities in the plane from those of the rows.
    pub kl: f64,
}

/// Places rows in the plane so that neighbours stay neighbours. Distances between groups and their sizes mean little.
///
/// It takes `N²` numbers of memory and as many steps an iteration, and draws no random numbers: equal rows give equal
/// pictures, for any number of threads.
///
/// # Shapes
/// `rows`: `(N, D)`, N at most 5,000.
///
/// # Errors
/// If there are too many rows, a value is not finite, or a setting is out of range.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::{TSneConfig, t_sne};
///
/// // Eight rows near 0, and eight near 9.
/// let rows = (0..16).map(|i| f64::from(i % 8) / 8.0 + f64::from(i / 8) * 9.0).collect();
/// let rows = Tensor::from_vec(rows, (16, 1), &Device::Cpu)?;
/// let picture = t_sne(&rows, &TSneConfig { perplexity: 3.0, ..Default::default() })?;
/// let left = picture.points[..8].iter().all(|point| point[0] < 0.0);
/// assert_eq!(left, picture.points[8..].iter().all(|point| point[0] > 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn t_sne(rows: &Tensor, config: &TSneConfig) -> Result<TSne> {
    let n = rows.dims2()?.0;
    config.check(n)?;
    let mut points = start(rows)?;
    let p = similarities(&Rows::read(rows)?, config.perplexity.ln());
    let rate = (n as f64 / config.exaggeration / 4.0).max(50.0);
    let (mut velocity, mut gains) = (vec![[0.0; 2]; n], vec![[1.0f64; 2]; n]);
    for iteration in 0..config.iterations {
        let early = iteration < config.exaggerated_iterations;
        let (exaggeration, momentum) = if early { (config.exaggeration, 0.5) } else { (1.0, 0.8) };
        let gradient = gradient(&p, &points, exaggeration);
        for i in 0..n {
            for axis in 0..2 {
                // Steps grow while they go one way and shrink when they turn, as in the authors' code.
                let (slope, speed) = (gradient[i][axis], &mut velocity[i][axis]);
                let turns = (slope > 0.0) == (*speed > 0.0);
                let gain = &mut gains[i][axis];
                *gain = if turns { (*gain * 0.8).max(0.01) } else { *gain + 0.2 };
                *speed = momentum * *speed - rate * *gain * slope;
                points[i][axis] += *speed;
            }
        }
        centre(&mut points);
    }
    let kl = divergence(&p, &points);
    Ok(TSne { points, kl })
}

impl TSneConfig {
    fn check(&self, rows: usize) -> Result<()> {
        let refuse = |field, value: String, allowed| Err(Error::Config { field, value, allowed });
        if rows > MAX_ROWS {
            return refuse("number of rows", rows.to_string(), "at most 5000");
        }
        if !(self.perplexity >= 1.0 && 3.0 * self.perplexity <= rows as f64 - 1.0) {
            let allowed = "1 to a third of the number of other rows";
            return refuse("perplexity", self.perplexity.to_string(), allowed);
        }
        if self.iterations == 0 {
            return refuse("iterations", "0".to_owned(), "at least 1");
        }
        if !(self.exaggeration >= 1.0 && self.exaggeration.is_finite()) {
            return refuse("exaggeration", self.exaggeration.to_string(), "at least 1 and finite");
        }
        if self.exaggerated_iterations > self.iterations {
            let value = self.exaggerated_iterations.to_string();
            return refuse("exaggerated_iterations", value, "at most iterations");
        }
        Ok(())
    }
}

/// The first two principal components, so small that all points are neighbours.
fn start(rows: &Tensor) -> Result<Vec<[f64; 2]>> {
    let (_, dim) = rows.dims2()?;
    let components = PrincipalComponents::fit(rows, dim.min(2))?;
    let deviation = components.explained_variance()[0].sqrt();
    let scale = if deviation > 0.0 { START / deviation } else { 0.0 };
    let along = components.project(rows)?.to_vec2::<f64>()?;
    Ok(along.iter().map(|row| [row[0] * scale, row.get(1).map_or(0.0, |y| y * scale)]).collect())
}

/// `(pⱼ|ᵢ + pᵢ|ⱼ) / 2N`, `(N, N)` row-major.
fn similarities(rows: &Rows, entropy: f64) -> Vec<f64> {
    let n = rows.count();
    let mut p = vec![0.0; n * n];
    p.par_chunks_exact_mut(n).enumerate().for_each(|(i, p)| {
        p.iter_mut().zip(rows.iter()).for_each(|(p, row)| *p = squared_distance(rows.row(i), row));
        neighbours(p, i, entropy);
    });
    for i in 0..n {
        for j in 0..=i {
            let mean = (p[i * n + j] + p[j * n + i]) / (2 * n) as f64;
            (p[i * n + j], p[j * n + i]) = (mean, mean);
        }
    }
    p
}

/// Turns the squared distances of row `i` into probabilities `exp(−β d) / Σ` of the given entropy; that of itself is 0.
fn neighbours(distances: &mut [f64], i: usize, entropy: f64) {
    distances[i] = f64::INFINITY;
    let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
    distances.iter_mut().for_each(|distance| *distance -= nearest);
    let others = distances.iter().filter(|distance| distance.is_finite());
    let mean = others.sum::<f64>() / (distances.len() - 1) as f64;
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, if mean > 0.0 { 1.0 / mean } else { 1.0 });
    // Equal distances have one entropy whatever beta is; 200 halvings end there.
    for _ in 0..200 {
        let excess = entropy_of(distances, beta) - entropy;
        if excess.abs() < ENTROPY_TOLERANCE {
            break;
        }
        if excess > 0.0 {
            (low, beta) = (beta, if high.is_finite() { (beta + high) / 2.0 } else { 2.0 * beta });
        } else {
            (high, beta) = (beta, (beta + low) / 2.0);
        }
    }
    distances.iter_mut().for_each(|distance| *distance = (-beta * *distance).exp());
    let sum: f64 = distances.iter().sum();
    distances.iter_mut().for_each(|weight| *weight /= sum);
}

/// The entropy of probabilities in proportion to `exp(−β d)`.
fn entropy_of(distances: &[f64], beta: f64) -> f64 {
    let (mut sum, mut energy) = (0.0, 0.0);
    for distance in distances.iter().filter(|distance| distance.is_finite()) {
        let weight = (-beta * distance).exp();
        sum += weight;
        energy += weight * distance;
    }
    sum.ln() + beta * energy / sum
}

/// `4 Σⱼ (e pᵢⱼ − qᵢⱼ) (yᵢ − yⱼ) / (1 + ‖yᵢ − yⱼ‖²)` for each point, with exaggeration `e`.
fn gradient(p: &[f64], points: &[[f64; 2]], exaggeration: f64) -> Vec<[f64; 2]> {
    let n = points.len();
    let forces = p.par_chunks_exact(n).zip(points).map(|(p, from)| {
        // Attraction, repulsion before it is divided by the sum of all kernels, and this row of that sum.
        let (mut pull, mut push, mut sum) = ([0.0; 2], [0.0; 2], 0.0);
        for (p, to) in p.iter().zip(points) {
            let apart = [from[0] - to[0], from[1] - to[1]];
            let kernel = 1.0 / (1.0 + apart[0] * apart[0] + apart[1] * apart[1]);
            sum += kernel;
            for axis in 0..2 {
                pull[axis] += p * kernel * apart[axis];
                push[axis] += kernel * kernel * apart[axis];
            }
        }
        (pull, push, sum - 1.0)
    });
    let forces: Vec<_> = forces.collect();
    let total: f64 = forces.iter().map(|(_, _, sum)| sum).sum();
    let force = |(pull, push, _): ([f64; 2], [f64; 2], f64)| {
        [0, 1].map(|axis| 4.0 * (exaggeration * pull[axis] - push[axis] / total))
    };
    forces.into_iter().map(force).collect()
}

/// `Σ pᵢⱼ log (pᵢⱼ / qᵢⱼ)`
fn divergence(p: &[f64], points: &[[f64; 2]]) -> f64 {
    let rows = p.par_chunks_exact(points.len()).zip(points).enumerate().map(|(i, (p, from))| {
        let (mut sum, mut relative) = (0.0, 0.0);
        let others = p.iter().zip(points).enumerate().filter(|(j, _)| *j != i);
        for (_, (p, to)) in others {
            let kernel = 1.0 / (1.0 + squared_distance(from, to));
            sum += kernel;
            relative += if *p > 0.0 { p * (p / kernel).ln() } else { 0.0 };
        }
        (sum, relative)
    });
    let rows: Vec<(f64, f64)> = rows.collect();
    let total: f64 = rows.iter().map(|(sum, _)| sum).sum();
    // The similarities sum to 1.
    rows.iter().map(|(_, relative)| relative).sum::<f64>() + total.ln()
}

fn centre(points: &mut [[f64; 2]]) {
    for axis in 0..2 {
        let mean = points.iter().map(|point| point[axis]).sum::<f64>() / points.len() as f64;
        points.iter_mut().for_each(|point| point[axis] -= mean);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn similarities_have_the_perplexity_and_sum_to_one() {
        let mut distances: Vec<f64> = (0..40).map(|j| f64::from(j).powi(2) * 1e3).collect();
        neighbours(&mut distances, 7, 5f64.ln());
        assert_eq!(distances[7], 0.0);
        let entropy: f64 = distances.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - 5.0).abs() < 1e-4, "{entropy}");
        let rows = Rows::new((0..40).map(|i| f64::from(i * i % 17)).collect(), 2).unwrap();
        let p = similarities(&rows, 3f64.ln());
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn gradient_is_that_of_finite_differences() {
        let rows = Rows::new((0..30).map(|i| f64::from(i * i % 19)).collect(), 3).unwrap();
        let p = similarities(&rows, 2f64.ln());
        let mut points: Vec<[f64; 2]> =
            (0..10).map(|i| [f64::from(i * 7 % 5) / 2.0, f64::from(i * i % 7) / 3.0]).collect();
        let slopes = gradient(&p, &points, 1.0);
        for i in 0..10 {
            for axis in 0..2 {
                let mut at = |step: f64| {
                    let before = points[i][axis];
                    points[i][axis] += step;
                    let value = divergence(&p, &points);
                    points[i][axis] = before;
                    value
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((slope - slopes[i][axis]).abs() < 1e-8, "{slope} is not {}", slopes[i][axis]);
            }
        }
    }

    #[test]
    fn equal_rows_stay_where_they_are_and_bad_settings_are_refused() {
        let rows = Tensor::ones((13, 3), DType::F32, &Device::Cpu).unwrap();
        let config = TSneConfig { perplexity: 4.0, iterations: 300, ..Default::default() };
        assert_eq!(t_sne(&rows, &config).unwrap().points, [[0.0; 2]; 13]);
        let error = |config: TSneConfig| t_sne(&rows, &config).unwrap_err().to_string();
        for perplexity in [0.5, 4.5, f64::NAN] {
            let found = error(TSneConfig { perplexity, ..config.clone() });
            assert!(found.contains("allowed is 1 to a third of the number of other rows"), "{found}");
        }
        assert!(error(TSneConfig { iterations: 0, ..config.clone() }).contains("iterations is 0"));
        assert!(error(TSneConfig { exaggeration: 0.9, ..config.clone() }).contains("exaggeration is 0.9"));
        let long = TSneConfig { exaggerated_iterations: 301, ..config.clone() };
        assert!(error(long).contains("exaggerated_iterations is 301"));
        let many = Tensor::ones((5001, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(t_sne(&many, &config).unwrap_err().to_string().contains("allowed is at most 5000"));
    }
}
