//! Alignment and uniformity on the hypersphere (Wang & Isola, 2020, <https://arxiv.org/abs/2005.10242>, section 4; official
//! code SsnL/align_uniform).

use candle_core::{D, Result, Tensor, bail};

use crate::checks;
use crate::log_sum_exp::log_sum_exp;
use crate::normalize::normalize;
use crate::nt_xent::self_mask;

/// `mean_n ‖x_n − y_n‖₂^α` of the normalised rows: 0 for views that agree; the paper has α = 2.
///
/// # Shapes
/// `x`, `y`: `(N, D)`, row `n` of both from the same image. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2, there are no rows, or α is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f64, 0.]], &Device::Cpu)?;
/// let y = Tensor::new(&[[0f64, 1.]], &Device::Cpu)?;
/// assert!((ssl_losses::alignment(&x, &y, 2.0)?.to_scalar::<f64>()? - 2.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn alignment(x: &Tensor, y: &Tensor, alpha: f64) -> Result<Tensor> {
    positive("alpha", alpha)?;
    checks::paired(x, y, "alignment")?;
    checks::some_rows(x, "alignment")?;
    let squares = (normalize(x)? - normalize(y)?)?.sqr()?.sum(D::Minus1)?;
    match alpha == 2.0 {
        true => squares.mean_all(),
        // A root has an infinite slope at 0.
        false => squares.maximum(1e-24)?.powf(alpha / 2.0)?.mean_all(),
    }
}

/// `log mean_{i<j} exp(−t ‖x_i − x_j‖₂²)` of the normalised rows: 0 if all agree, the less the more evenly they cover the
/// sphere; the paper has t = 2.
///
/// # Shapes
/// `x`: `(N, D)`. Returns a scalar.
///
/// # Errors
/// If `x` is not of rank 2 or has fewer than 2 rows, or t is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Two opposite points, 2 apart.
/// let x = Tensor::new(&[[1f64, 0.], [-1., 0.]], &Device::Cpu)?;
/// assert!((ssl_losses::uniformity(&x, 2.0)?.to_scalar::<f64>()? + 8.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn uniformity(x: &Tensor, t: f64) -> Result<Tensor> {
    positive("t", t)?;
    let (n, _) = x.dims2()?;
    if n < 2 {
        bail!("uniformity needs at least 2 images for distances, got {n}");
    }
    let x = normalize(x)?;
    let squares = x.sqr()?.sum_keepdim(1)?; // (N, 1), of ones but for rows of 0
    let distances = (x.matmul(&x.t()?)? * -2.0)?.broadcast_add(&squares)?.broadcast_add(&squares.t()?)?;
    let exponents = ((distances * -t)? + self_mask(n, &x)?)?; // (N, N), every pair twice
    log_sum_exp(&exponents.flatten_all()?)? - ((n * (n - 1)) as f64).ln()
}

fn positive(name: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value > 0.0) {
        bail!("{name} must be positive and finite, got {value}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    #[test]
    fn one_point_is_aligned_and_not_uniform() {
        let ones = Tensor::ones((5, 3), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(scalar(alignment(&ones, &ones, 2.0)), 0.0);
        assert!(scalar(uniformity(&ones, 2.0)).abs() < 1e-12);
    }

    #[test]
    fn the_mean_goes_over_pairs_of_different_rows() {
        let x = matrix(5, 3, 1);
        let rows = normalize(&x).unwrap().to_vec2::<f64>().unwrap();
        let square = |i: usize, j: usize| (0..3).map(|d| (rows[i][d] - rows[j][d]).powi(2)).sum::<f64>();
        let pairs = (0..5).flat_map(|i| (i + 1..5).map(move |j| (i, j)));
        let mean = pairs.map(|(i, j)| (-1.5 * square(i, j)).exp()).sum::<f64>() / 10.0;
        assert!((scalar(uniformity(&x, 1.5)) - mean.ln()).abs() < 1e-12);
        assert!((scalar(alignment(&x, &x.neg().unwrap(), 3.0)) - 8.0).abs() < 1e-12);
    }

    #[test]
    fn scale_and_the_order_of_images_do_not_matter() {
        let (x, y) = (matrix(5, 3, 1), matrix(5, 3, 2));
        let (align, uniform) = (scalar(alignment(&x, &y, 2.0)), scalar(uniformity(&x, 2.0)));
        assert!((scalar(alignment(&y, &x, 2.0)) - align).abs() < 1e-12);
        assert!(
            (scalar(alignment(&permuted(&x), &(permuted(&y) * 4.0).unwrap(), 2.0)) - align).abs() < 1e-12
        );
        assert!((scalar(uniformity(&(permuted(&x) * 4.0).unwrap(), 2.0)) - uniform).abs() < 1e-12);
    }

    #[test]
    fn gradients_equal_central_differences_and_are_finite_for_views_that_agree() {
        for alpha in [1.0, 2.0, 3.0] {
            assert_gradients(&matrix(4, 3, 1), &matrix(4, 3, 2), |x, y| alignment(x, y, alpha));
        }
        assert_gradients(&matrix(4, 3, 1), &matrix(5, 2, 2), |x, y| {
            uniformity(x, 2.0)? + uniformity(y, 1.0)?
        });
        let x = Var::from_tensor(&matrix(3, 2, 1)).unwrap();
        let grads = alignment(&x, &x.copy().unwrap(), 1.0).unwrap().backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }

    #[test]
    fn bad_input_is_refused() {
        let x = matrix(4, 3, 1);
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(alignment(&x, &matrix(4, 2, 1), 2.0), "[4, 2]");
        refused(alignment(&matrix(0, 2, 1), &matrix(0, 2, 1), 2.0), "0 rows");
        refused(uniformity(&matrix(1, 3, 1), 2.0), "got 1");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(alignment(&x, &x, bad), "alpha");
            refused(uniformity(&x, bad), "t must be");
        }
    }
}
