//! The objective of multinomial logistic regression and its gradient.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::{Error, Features, Result};

/// Rows of a block: with a thousand features it fits a core's own cache, so both products read it from there.
const BLOCK_ROWS: usize = 256;
/// Blocks whose gradients are held at once.
const GROUP_BLOCKS: usize = 32;

/// The training samples, with a column of ones behind the features for the intercept.
#[derive(Debug)]
pub(crate) struct Design {
    /// `(N, D + 1)`.
    rows: Tensor,
    labels: Vec<u32>,
    num_classes: usize,
    width: usize,
}

impl Design {
    /// # Errors
    /// If a label is not below `num_classes` or all labels are equal.
    pub(crate) fn new(features: &Features, num_classes: usize) -> Result<Self> {
        features.check_labels(num_classes)?;
        let labels = features.labels().to_vec();
        if labels.iter().all(|&label| label == labels[0]) {
            return Err(Error::OneClass { label: labels[0] });
        }
        let width = features.dim() + 1;
        Ok(Self { rows: with_ones(features)?, labels, num_classes, width })
    }

    pub(crate) fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// The number of features plus one.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// `XᵀX / N`, `(width, width)` row-major.
    pub(crate) fn second_moments(&self) -> Result<Vec<f64>> {
        let n = self.labels.len();
        let mut moments = vec![0.0; self.width * self.width];
        for start in (0..n).step_by(8 * BLOCK_ROWS) {
            let rows = self.rows.narrow(0, start, (8 * BLOCK_ROWS).min(n - start))?;
            let products = rows.t()?.matmul(&rows)?.flatten_all()?.to_vec1::<f32>()?;
            moments.iter_mut().zip(products).for_each(|(sum, product)| *sum += f64::from(product) / n as f64);
        }
        Ok(moments)
    }

    /// The mean of `-log p(label)` plus `penalty / 2` times the squared norm of the weights (not of the intercepts),
    /// and its gradient. `theta`: `(num_classes, width)`, the intercepts in the last column.
    pub(crate) fn evaluate(&self, theta: &[f64], penalty: f64) -> Result<(f64, Vec<f64>)> {
        let n = self.labels.len();
        let theta_t = theta_tensor(theta, self.num_classes)?.t()?;
        let (mut value, mut gradient) = (0.0, vec![0.0; theta.len()]);
        // The blocks and the order of the sums do not depend on the number of threads.
        let starts: Vec<usize> = (0..n).step_by(BLOCK_ROWS).collect();
        for group in starts.chunks(GROUP_BLOCKS) {
            let parts: Vec<_> =
                group.par_iter().map(|&start| self.evaluate_block(start, &theta_t)).collect::<Result<_>>()?;
            for (block_value, block_gradient) in parts {
                value += block_value;
                gradient.iter_mut().zip(block_gradient).for_each(|(sum, g)| *sum += f64::from(g));
            }
        }
        value /= n as f64;
        for (gradient, theta) in gradient.chunks_exact_mut(self.width).zip(theta.chunks_exact(self.width)) {
            gradient.iter_mut().for_each(|g| *g /= n as f64);
            for feature in 0..self.width - 1 {
                value += penalty / 2.0 * theta[feature].powi(2);
                gradient[feature] += penalty * theta[feature];
            }
        }
        Ok((value, gradient))
    }

    /// The sum of `-log p(label)` over one block of rows, and its gradient.
    fn evaluate_block(&self, start: usize, theta_t: &Tensor) -> Result<(f64, Vec<f32>)> {
        let labels = &self.labels[start..(start + BLOCK_ROWS).min(self.labels.len())];
        let rows = self.rows.narrow(0, start, labels.len())?;
        let mut residuals = rows.matmul(theta_t)?.flatten_all()?.to_vec1::<f32>()?;
        let mut value = 0.0;
        let mut p = vec![0.0; self.num_classes];
        for (logits, &label) in residuals.chunks_exact_mut(self.num_classes).zip(labels) {
            value += log_sum_exp(logits, &mut p) - f64::from(logits[label as usize]);
            p[label as usize] -= 1.0;
            logits.iter_mut().zip(&p).for_each(|(residual, &p)| *residual = p as f32);
        }
        let residuals = Tensor::from_vec(residuals, (labels.len(), self.num_classes), &Device::Cpu)?;
        Ok((value, residuals.t()?.matmul(&rows)?.flatten_all()?.to_vec1::<f32>()?))
    }
}

/// The class probabilities of each row, `(N, num_classes)` row-major.
pub(crate) fn probabilities(features: &Features, theta: &[f64], num_classes: usize) -> Result<Vec<f64>> {
    let logits = with_ones(features)?.matmul(&theta_tensor(theta, num_classes)?.t()?)?;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let mut result = vec![0.0; logits.len()];
    for (logits, p) in logits.chunks_exact(num_classes).zip(result.chunks_exact_mut(num_classes)) {
        log_sum_exp(logits, p);
    }
    Ok(result)
}

/// Fills `p` with the softmax of the logits and returns the logarithm of its denominator.
fn log_sum_exp(logits: &[f32], p: &mut [f64]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    p.iter_mut().zip(logits).for_each(|(p, &logit)| *p = (f64::from(logit) - max).exp());
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    max + sum.ln()
}

fn with_ones(features: &Features) -> Result<Tensor> {
    let (n, dim) = (features.rows(), features.dim());
    let mut data = Vec::with_capacity(n * (dim + 1));
    for row in features.data().chunks_exact(dim) {
        data.extend_from_slice(row);
        data.push(1.0);
    }
    Ok(Tensor::from_vec(data, (n, dim + 1), &Device::Cpu)?)
}

fn theta_tensor(theta: &[f64], num_classes: usize) -> Result<Tensor> {
    let data: Vec<f32> = theta.iter().map(|&value| value as f32).collect();
    Ok(Tensor::from_vec(data, (num_classes, theta.len() / num_classes), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wavy features of `n` samples with cyclic labels.
    fn samples(n: usize, dim: usize, num_classes: usize) -> Features {
        let data = (0..n * dim).map(|i| (i as f32 * 0.7).sin() + (i % 5) as f32 * 0.1).collect();
        Features::new(data, dim, (0..n).map(|row| (row % num_classes) as u32).collect()).unwrap()
    }

    #[test]
    fn without_weights_every_class_is_as_likely() {
        let design = Design::new(&samples(40, 3, 4), 4).unwrap();
        let (value, _) = design.evaluate(&[0.0; 16], 1.0).unwrap();
        assert!((value - 4f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn the_intercept_is_not_penalised() {
        let design = Design::new(&samples(40, 3, 4), 4).unwrap();
        let theta: Vec<f64> = (0..16).map(f64::from).collect();
        let value = |penalty| design.evaluate(&theta, penalty).unwrap().0;
        let weights_squared: f64 = (0..16).filter(|i| i % 4 != 3).map(|i| f64::from(i * i)).sum();
        assert!((value(2.0) - value(0.0) - weights_squared).abs() < 1e-9);
    }

    #[test]
    fn gradient_is_that_of_finite_differences() {
        // More than one block, and a last one that is not full.
        let (num_classes, width) = (3, 5);
        let design = Design::new(&samples(BLOCK_ROWS + 77, width - 1, num_classes), num_classes).unwrap();
        let theta: Vec<f64> = (0..num_classes * width).map(|i| (i as f64).cos()).collect();
        let (_, gradient) = design.evaluate(&theta, 0.3).unwrap();
        // Wide steps, as the logits are f32: their rounding costs about 1e-8 / step, the cubic term about step² / 10.
        let step = 1.0 / 256.0;
        for index in 0..theta.len() {
            let shifted = |by: f64| {
                let mut theta = theta.clone();
                theta[index] += by;
                design.evaluate(&theta, 0.3).unwrap().0
            };
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * step);
            assert!(
                (gradient[index] - numeric).abs() < 2e-5,
                "{index}: {} is not {numeric}",
                gradient[index]
            );
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut p = [0.0; 2];
        assert_eq!(log_sum_exp(&[3e4, -3e4], &mut p), 3e4);
        assert_eq!(p, [1.0, 0.0]);
    }

    #[test]
    fn a_single_class_is_refused() {
        let features = Features::new(vec![1.0, 2.0], 1, vec![1, 1]).unwrap();
        assert!(matches!(Design::new(&features, 2), Err(Error::OneClass { label: 1 })));
    }
}
