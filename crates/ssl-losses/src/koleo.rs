//! KoLeo (Sablayrolles et al., 2018, <https://arxiv.org/abs/1806.03198>, section 3), which DINOv2 (Oquab et al., 2023,
//! <https://arxiv.org/abs/2304.07193>, section 4; official code facebookresearch/dinov2) puts on its class tokens: it
//! drives every embedding away from its nearest neighbour.

use candle_core::{D, Result, Tensor, bail};

use crate::normalize::normalize;

/// What keeps distances and logarithms of equal points finite.
const EPSILON: f64 = 1e-8;

/// `−mean_i ln(‖x_i − x_j(i) + ε‖₂ + ε)` of the normalised rows, where `j(i)` is the [nearest
/// neighbour](nearest_neighbors) and ε is 1e-8.
///
/// Up to constants it is minus the estimator of the differential entropy by Kozachenko and Leonenko. As in the official
/// code, ε is added to every coordinate of the difference. Gradients flow to both ends of a distance; the choice of the
/// neighbour has none. Use it on one crop at a time: the other crop of an image would be its nearest neighbour.
///
/// Rows that are equal up to rounding are finite, with gradients up to 1e7: to give `f32` rows that can be equal a
/// meaningful gradient is not in the power of the loss.
///
/// # Shapes
/// `x`: `(N, D)`; rows need not be normalised. Returns a scalar.
///
/// # Errors
/// If `x` is not of rank 2 or has fewer than 2 rows.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Four points on a circle have neighbours at distance √2.
/// let x = Tensor::new(&[[1f64, 0.], [0., 1.], [-1., 0.], [0., -1.]], &Device::Cpu)?;
/// let loss = ssl_losses::koleo(&x)?.to_scalar::<f64>()?;
/// assert!((loss + 2f64.sqrt().ln()).abs() < 1e-7);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn koleo(x: &Tensor) -> Result<Tensor> {
    let x_n = normalize(x)?;
    let nearest = x_n.index_select(&nearest_neighbors(x)?, 0)?; // (N, D)
    let difference = ((&x_n - nearest)? + EPSILON)?;
    let distance = difference.sqr()?.sum(D::Minus1)?.sqrt()?;
    (distance + EPSILON)?.log()?.mean_all()?.neg()
}

/// The index of the other row with the greatest cosine, for every row: `(N, D)` to `(N)` of `u32`.
///
/// # Errors
/// As [`koleo`].
pub fn nearest_neighbors(x: &Tensor) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    if n < 2 {
        bail!("koleo needs at least 2 images for neighbours, got {n}");
    }
    let x = normalize(&x.detach())?;
    // Cosines are at least -1, so that no row is its own neighbour.
    let itself = (Tensor::eye(n, x.dtype(), x.device())? * 4.0)?;
    (x.matmul(&x.t()?)? - itself)?.argmax(D::Minus1)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    #[test]
    fn points_on_a_circle_have_the_closed_form() {
        for n in [3usize, 5, 12] {
            let angles = (0..n).map(|i| std::f64::consts::TAU * i as f64 / n as f64);
            let points: Vec<f64> = angles.flat_map(|a| [3.0 * a.cos(), 3.0 * a.sin()]).collect();
            let x = Tensor::from_vec(points, (n, 2), &Device::Cpu).unwrap();
            let expected = -(2.0 * (std::f64::consts::PI / n as f64).sin() + 1e-8).ln();
            assert!((scalar(koleo(&x)) - expected).abs() < 1e-7);
        }
    }

    #[test]
    fn neighbours_are_the_nearest_by_angle_and_never_the_row_itself() {
        let x = Tensor::new(&[[1f64, 0.], [100., 1.], [0., 1.], [-1., 1.]], &Device::Cpu).unwrap();
        assert_eq!(nearest_neighbors(&x).unwrap().to_vec1::<u32>().unwrap(), [1, 0, 3, 2]);
        let opposite = Tensor::new(&[[1f64, 0.], [-1., 0.]], &Device::Cpu).unwrap();
        assert_eq!(nearest_neighbors(&opposite).unwrap().to_vec1::<u32>().unwrap(), [1, 0]);
    }

    #[test]
    fn scale_and_order_do_not_matter_and_spreading_lowers_it() {
        let x = matrix(8, 5, 1);
        let loss = scalar(koleo(&x));
        assert!((scalar(koleo(&permuted(&x))) - loss).abs() < 1e-12);
        assert!((scalar(koleo(&(&x * 7.0).unwrap())) - loss).abs() < 1e-12);
        assert!(scalar(koleo(&(x + 3.0).unwrap())) > loss + 0.5, "all rows in one direction");
    }

    #[test]
    fn equal_rows_are_finite() {
        let x = Var::from_tensor(&Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let loss = koleo(&x).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap() > 10.0);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }

    #[test]
    fn gradient_equals_central_differences() {
        assert_gradients(&matrix(5, 3, 1), &matrix(7, 4, 2), |a, b| koleo(a)? + koleo(b)?);
    }

    #[test]
    fn one_image_is_refused() {
        assert!(koleo(&matrix(1, 3, 1)).unwrap_err().to_string().contains("got 1"));
        assert!(koleo(&matrix(4, 3, 1).flatten_all().unwrap()).is_err());
    }
}
