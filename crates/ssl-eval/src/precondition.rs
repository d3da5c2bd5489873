//! A preconditioner for multinomial logistic regression from an upper bound of its Hessian.
//!
//! The Hessian of the mean loss is at most `(I - 1 1ᵀ / K) ⊗ XᵀX / 2N` (Böhning, "Multinomial logistic regression
//! algorithm", 1992), wherever it is taken. Features of images are strongly correlated, so its inverse saves most
//! of the iterations.

use rayon::prelude::*;

use crate::Result;
use crate::cholesky::Cholesky;
use crate::objective::Design;

/// Above this width a factorisation costs more than it saves.
const MAX_WIDTH: usize = 2304;
/// What rounding in `f32` may add to or take from an eigenvalue, relative to the mean of the diagonal.
const ROUNDING: f64 = 1e-5;

/// The part of the bound that does not depend on the penalty.
#[derive(Debug)]
pub(crate) struct HessianBound {
    width: usize,
    /// `XᵀX / 2N`, if not too wide.
    curvature: Option<Vec<f64>>,
}

/// The inverse of the bound, class by class; the identity for wide features.
#[derive(Debug)]
pub(crate) struct Preconditioner {
    width: usize,
    factor: Option<Cholesky>,
}

impl HessianBound {
    pub(crate) fn new(design: &Design) -> Result<Self> {
        let width = design.width();
        if width > MAX_WIDTH {
            return Ok(Self { width, curvature: None });
        }
        let mut curvature = design.second_moments()?;
        curvature.iter_mut().for_each(|value| *value /= 2.0);
        Ok(Self { width, curvature: Some(curvature) })
    }

    /// The preconditioner for a penalty of `penalty / 2` times the squared norm of the weights.
    pub(crate) fn preconditioner(&self, penalty: f64) -> Preconditioner {
        let width = self.width;
        let factor = self.curvature.clone().map(|mut matrix| {
            let mean = (0..width).map(|i| matrix[i * width + i]).sum::<f64>() / width as f64;
            for i in 0..width {
                let is_intercept = i == width - 1;
                matrix[i * width + i] += ROUNDING * mean + if is_intercept { 0.0 } else { penalty };
            }
            Cholesky::factor(matrix, width, ROUNDING * mean)
        });
        Preconditioner { width, factor }
    }
}

impl Preconditioner {
    /// Multiplies each class of `theta`, `(num_classes, width)`, by the inverse.
    pub(crate) fn apply(&self, theta: &mut [f64]) {
        if let Some(factor) = &self.factor {
            theta.par_chunks_exact_mut(self.width).for_each(|class| factor.solve(class));
        }
    }
}
