//! The loss of VICReg (Bardes et al., 2022, <https://arxiv.org/abs/2105.04906>, section 4.1; official code
//! facebookresearch/vicreg).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::statistics::{centre, off_diagonal_squares};

/// Factors of the three parts of [`vicreg`]; the default is the paper's and the official code's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VicRegWeights {
    /// λ, of the invariance.
    pub invariance: f64,
    /// μ, of the variance.
    pub variance: f64,
    /// ν, of the covariance.
    pub covariance: f64,
    /// Take the mean of the two views' variance terms, as the official code does, rather than their sum, as the paper's
    /// equation 6 does: the same as half of μ.
    pub halve_variance: bool,
}

impl Default for VicRegWeights {
    fn default() -> Self {
        Self { invariance: 25.0, variance: 25.0, covariance: 1.0, halve_variance: true }
    }
}

/// The three parts of [`vicreg`], scalars without their factors.
#[derive(Clone, Debug)]
pub struct VicRegTerms {
    /// The mean of `(x − y)²` over all entries.
    pub invariance: Tensor,
    /// `mean_j max(0, 1 − s_j)` of the standard deviations, the mean (or sum) of both views; 0 if all are at least 1.
    pub variance: Tensor,
    /// `Σ_{i≠j} Cov_ij² / D`, the sum of both views; 0 for dimensions that do not correlate.
    pub covariance: Tensor,
}

/// The parts of the loss.
///
/// `s_j = √(Var_j + 10⁻⁴)`; variances and covariances are the unbiased ones, over the rows. The paper writes the
/// invariance as a mean over images of squared distances; like its code, this divides by `D` as well.
///
/// # Shapes
/// `x`, `y`: `(N, D)`, row `n` of both from the same image.
///
/// # Errors
/// If the shapes differ or are not of rank 2, or if `N < 2`.
pub fn vicreg_terms(x: &Tensor, y: &Tensor, halve_variance: bool) -> Result<VicRegTerms> {
    let (n, _) = checks::paired(x, y, "vicreg")?;
    if n < 2 {
        bail!("vicreg needs at least 2 images for variances, got {n}");
    }
    let invariance = (x - y)?.sqr()?.mean_all()?;
    let ((v_x, c_x), (v_y, c_y)) = (view(x, n)?, view(y, n)?);
    let variance = ((v_x + v_y)? * if halve_variance { 0.5 } else { 1.0 })?;
    Ok(VicRegTerms { invariance, variance, covariance: (c_x + c_y)? })
}

/// The variance and covariance terms of one view.
fn view(x: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
    let d = x.dim(1)?;
    let x = centre(x)?;
    let s = ((x.sqr()?.sum(0)? / (n - 1) as f64)? + 1e-4)?.sqrt()?; // (D,)
    let covariance = (x.t()?.matmul(&x)? / (n - 1) as f64)?; // (D, D)
    Ok(((1.0 - s)?.relu()?.mean_all()?, (off_diagonal_squares(&covariance)? / d as f64)?))
}

/// `λ · invariance + μ · variance + ν · covariance`, with the parts of [`vicreg_terms`].
///
/// # Errors
/// As [`vicreg_terms`], and if a factor is negative or not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_losses::{VicRegWeights, vicreg};
///
/// // All images on one point: every standard deviation is √10⁻⁴, so the loss is 25 (1 − 0.01).
/// let z = Tensor::ones((4, 3), candle_core::DType::F64, &Device::Cpu)?;
/// let loss = vicreg(&z, &z, &VicRegWeights::default())?.to_scalar::<f64>()?;
/// assert!((loss - 24.75).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn vicreg(x: &Tensor, y: &Tensor, weights: &VicRegWeights) -> Result<Tensor> {
    checks::weight("the weight of the invariance", weights.invariance)?;
    checks::weight("the weight of the variance", weights.variance)?;
    checks::weight("the weight of the covariance", weights.covariance)?;
    let terms = vicreg_terms(x, y, weights.halve_variance)?;
    ((terms.invariance * weights.invariance)? + (terms.variance * weights.variance)?)?
        + (terms.covariance * weights.covariance)?
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    const CODE: VicRegWeights =
        VicRegWeights { invariance: 25.0, variance: 25.0, covariance: 1.0, halve_variance: true };
    const PAPER: VicRegWeights = VicRegWeights { halve_variance: false, ..CODE };

    fn value(x: &Tensor, y: &Tensor, weights: &VicRegWeights) -> f64 {
        scalar(vicreg(x, y, weights))
    }

    /// Four images in three uncorrelated dimensions of unbiased variance 1.
    fn white() -> Tensor {
        let signs =
            Tensor::new(&[[1f64, 1., 1.], [1., -1., -1.], [-1., 1., -1.], [-1., -1., 1.]], &Device::Cpu);
        (signs.unwrap() * 0.75f64.sqrt()).unwrap()
    }

    #[test]
    fn one_point_costs_its_variance_and_white_embeddings_nothing() {
        let point = Tensor::full(3.0, (6, 5), &Device::Cpu).unwrap();
        assert!((value(&point, &point, &CODE) - 24.75).abs() < 1e-12);
        assert!((value(&point, &point, &PAPER) - 49.5).abs() < 1e-12);
        assert!(value(&white(), &white(), &PAPER).abs() < 1e-12);
    }

    #[test]
    fn each_part_alone_has_its_closed_form() {
        let x = white();
        let parts = |x: &Tensor, y: &Tensor| {
            let terms = vicreg_terms(x, y, false).unwrap();
            [terms.invariance, terms.variance, terms.covariance].map(|t| t.to_scalar::<f64>().unwrap())
        };
        let close = |parts: [f64; 3], expected: [f64; 3]| {
            assert!(parts.iter().zip(&expected).all(|(p, e)| (p - e).abs() < 1e-9), "{parts:?}");
        };
        // A shift is seen by the invariance alone, divided by all entries; a halved scale by the variance of one view.
        close(parts(&x, &(&x + 2.0).unwrap()), [4.0, 0.0, 0.0]);
        let half = (&x * 0.5).unwrap();
        close(parts(&half, &half), [0.0, 2.0 * (1.0 - 0.2501f64.sqrt()), 0.0]);
        // Three equal dimensions of variance 1: six covariances of 1, over D, for each view.
        let equal = x.narrow(1, 0, 1).unwrap().broadcast_as((4, 3)).unwrap().contiguous().unwrap();
        close(parts(&equal, &equal), [0.0, 0.0, 4.0]);
    }

    #[test]
    fn symmetric_and_indifferent_to_a_common_shift_and_the_order_of_images() {
        let (x, y) = (matrix(8, 5, 1), matrix(8, 5, 2));
        let loss = value(&x, &y, &CODE);
        assert!((value(&y, &x, &CODE) - loss).abs() < 1e-12);
        assert!((value(&permuted(&x), &permuted(&y), &CODE) - loss).abs() < 1e-12);
        assert!((value(&(&x + 5.0).unwrap(), &(&y + 5.0).unwrap(), &CODE) - loss).abs() < 1e-9);
    }

    #[test]
    fn a_large_mean_costs_few_digits() {
        let (x, y) = (matrix(64, 8, 3), matrix(64, 8, 4));
        let far = |z: &Tensor| (z + 1000.0).unwrap().to_dtype(DType::F32).unwrap();
        let single = vicreg(&far(&x), &far(&y), &CODE).unwrap().to_scalar::<f32>().unwrap();
        let exact = value(&x, &y, &CODE);
        assert!((f64::from(single) - exact).abs() < 1e-3 * exact);
    }

    #[test]
    fn gradient_equals_central_differences_and_is_finite_for_one_point() {
        // Scaled so that some standard deviations are above 1, where the hinge is flat.
        let scales = Tensor::new(&[0.5f64, 1.0, 3.0], &Device::Cpu).unwrap();
        let (x, y) = (matrix(5, 3, 5), matrix(5, 3, 6));
        let [x, y] = [x, y].map(|z| z.broadcast_mul(&scales).unwrap());
        for weights in [CODE, PAPER] {
            assert_gradients(&x, &y, |x, y| vicreg(x, y, &weights));
        }
        let point = Tensor::ones((4, 2), DType::F64, &Device::Cpu).unwrap();
        assert_gradients(&point, &point, |x, y| vicreg(x, y, &CODE));
    }

    #[test]
    fn bad_input_is_refused() {
        let x = matrix(4, 3, 1);
        let error = vicreg(&x, &matrix(4, 2, 1), &CODE).unwrap_err().to_string();
        assert!(error.contains("[4, 3]") && error.contains("[4, 2]"), "{error}");
        let one = matrix(1, 3, 1);
        assert!(vicreg(&one, &one, &CODE).unwrap_err().to_string().contains("got 1"));
        for (bad, name) in [
            (VicRegWeights { invariance: -1.0, ..CODE }, "invariance must be"),
            (VicRegWeights { variance: f64::NAN, ..CODE }, "variance must be"),
            (VicRegWeights { covariance: f64::INFINITY, ..CODE }, "covariance must be"),
        ] {
            let error = vicreg(&x, &x, &bad).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
