//! The loss of Barlow Twins (Zbontar et al., 2021, <https://arxiv.org/abs/2103.03230>, equation 1; official code
//! facebookresearch/barlowtwins).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::statistics::{off_diagonal_squares, standardize};

/// The two parts of [`barlow_twins`], scalars.
#[derive(Clone, Debug)]
pub struct BarlowTwinsTerms {
    /// `Σ_i (1 − C_ii)²`, from 0 for views that agree in every dimension.
    pub invariance: Tensor,
    /// `Σ_{i≠j} C_ij²`, 0 for dimensions that say different things.
    pub redundancy: Tensor,
}

/// The parts of the loss: how far the cross-correlation `C = ẑ_aᵀ ẑ_b / N` of the two views is from the identity.
///
/// `ẑ` is [`standardize`]d over the batch: `C_ii` lies in [-1, 1]. Both are plain sums over the entries, as in the paper and
/// its code, so that they grow with `D`.
///
/// # Shapes
/// `z_a`, `z_b`: `(N, D)`, row `n` of both from the same image.
///
/// # Errors
/// If the shapes differ or are not of rank 2, or if `N < 2`.
pub fn barlow_twins_terms(z_a: &Tensor, z_b: &Tensor) -> Result<BarlowTwinsTerms> {
    let (n, _) = checks::paired(z_a, z_b, "barlow_twins")?;
    if n < 2 {
        bail!("barlow_twins needs at least 2 images for correlations, got {n}");
    }
    let (z_a, z_b) = (standardize(z_a)?, standardize(z_b)?);
    let c = (z_a.t()?.matmul(&z_b)? / n as f64)?; // (D, D)
    let diagonal = (z_a * z_b)?.mean(0)?;
    let invariance = (1.0 - diagonal)?.sqr()?.sum_all()?;
    Ok(BarlowTwinsTerms { invariance, redundancy: off_diagonal_squares(&c)? })
}

/// `Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²`, with the parts of [`barlow_twins_terms`]; the paper has λ = 0.0051.
///
/// # Errors
/// As [`barlow_twins_terms`], and if λ is negative or not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Two columns that do not correlate, and agree between the views: nothing is left to do.
/// let z = Tensor::new(&[[1f32, 1.], [1., -1.], [-1., 1.], [-1., -1.]], &Device::Cpu)?;
/// assert!(ssl_losses::barlow_twins(&z, &z, 0.0051)?.to_scalar::<f32>()? < 1e-8);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn barlow_twins(z_a: &Tensor, z_b: &Tensor, lambda: f64) -> Result<Tensor> {
    checks::weight("lambda", lambda)?;
    let BarlowTwinsTerms { invariance, redundancy } = barlow_twins_terms(z_a, z_b)?;
    invariance + (redundancy * lambda)?
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    fn value(z_a: &Tensor, z_b: &Tensor, lambda: f64) -> f64 {
        scalar(barlow_twins(z_a, z_b, lambda))
    }

    /// The definition, entry by entry.
    fn plain(z_a: &Tensor, z_b: &Tensor, lambda: f64) -> f64 {
        let (n, d) = z_a.dims2().unwrap();
        let columns = |z: &Tensor| z.t().unwrap().to_vec2::<f64>().unwrap();
        let standard = |column: &Vec<f64>| {
            let mean = column.iter().sum::<f64>() / n as f64;
            let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            column.iter().map(|v| (v - mean) / (variance + 1e-5).sqrt()).collect::<Vec<_>>()
        };
        let (a, b) = (columns(z_a), columns(z_b));
        let mut sum = 0.0;
        for i in 0..d {
            for j in 0..d {
                let (a, b) = (standard(&a[i]), standard(&b[j]));
                let c = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>() / n as f64;
                sum += if i == j { (1.0 - c).powi(2) } else { lambda * c * c };
            }
        }
        sum
    }

    #[test]
    fn it_is_the_sum_over_all_entries() {
        let (a, b) = (matrix(7, 4, 1), matrix(7, 4, 2));
        for lambda in [0.0, 0.0051, 1.0] {
            assert!((value(&a, &b, lambda) - plain(&a, &b, lambda)).abs() < 1e-12);
        }
    }

    #[test]
    fn uncorrelated_columns_that_agree_cost_nothing_and_constant_ones_everything() {
        let hadamard =
            Tensor::new(&[[1f64, 1., 1.], [1., -1., -1.], [-1., 1., -1.], [-1., -1., 1.]], &Device::Cpu)
                .unwrap();
        assert!(value(&hadamard, &hadamard, 1.0) < 1e-9);
        let constant = Tensor::full(0.7, (5, 6), &Device::Cpu).unwrap();
        assert!((value(&constant, &constant, 1.0) - 6.0).abs() < 1e-12);
        // All columns equal: nothing but redundancy, D (D - 1) entries of 1.
        let equal = matrix(8, 1, 3).broadcast_as((8, 5)).unwrap().contiguous().unwrap();
        assert!((value(&equal, &equal, 1.0) - 20.0).abs() < 2e-3);
        assert!(value(&equal, &equal, 0.0) < 1e-8);
    }

    #[test]
    fn symmetric_and_indifferent_to_scale_shift_and_the_order_of_images() {
        let (a, b) = (matrix(8, 5, 4), matrix(8, 5, 5));
        let loss = value(&a, &b, 0.1);
        assert!((value(&b, &a, 0.1) - loss).abs() < 1e-12);
        assert!((value(&permuted(&a), &permuted(&b), 0.1) - loss).abs() < 1e-12);
        let moved = ((&a * 50.0).unwrap() + 9.0).unwrap();
        // Up to the constant beside the variance, which is 3e-5 of it.
        assert!((value(&moved, &b, 0.1) - loss).abs() < 5e-4);
    }

    #[test]
    fn a_large_mean_costs_few_digits() {
        let (a, b) = (matrix(64, 8, 6), matrix(64, 8, 7));
        let far = |z: &Tensor| (z + 1000.0).unwrap().to_dtype(DType::F32).unwrap();
        let single = barlow_twins(&far(&a), &far(&b), 0.1).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(single) - value(&a, &b, 0.1)).abs() < 1e-3);
    }

    #[test]
    fn gradient_equals_central_differences() {
        let (a, b) = (matrix(5, 3, 8), matrix(5, 3, 9));
        assert_gradients(&a, &b, |a, b| barlow_twins(a, b, 0.3));
    }

    #[test]
    fn bad_input_is_refused() {
        let a = matrix(4, 3, 1);
        let error = barlow_twins(&a, &matrix(4, 2, 1), 0.1).unwrap_err().to_string();
        assert!(error.contains("[4, 3]") && error.contains("[4, 2]"), "{error}");
        let one = matrix(1, 3, 1);
        assert!(barlow_twins(&one, &one, 0.1).unwrap_err().to_string().contains("got 1"));
        for lambda in [-0.1, f64::NAN, f64::INFINITY] {
            let error = barlow_twins(&a, &a, lambda).unwrap_err().to_string();
            assert!(error.contains("lambda must be"), "{error}");
        }
    }
}
