//! Losses of masked image modelling on pixels: MAE (He et al., 2021, <https://arxiv.org/abs/2111.06377>, section 3;
//! official code facebookresearch/mae) and SimMIM (Xie et al., 2021, <https://arxiv.org/abs/2111.09886>, section 3.4;
//! official code microsoft/SimMIM).

use candle_core::{D, Result, Tensor, bail};

use crate::checks;

/// The loss of MAE: the mean over all masked patches of the batch of the mean squared error of a patch.
///
/// The target is [`patchify`](crate::patchify) of the images, by choice through
/// [`normalize_patches`](crate::normalize_patches). What lies outside of the mask gets no gradient, and the mask none.
///
/// # Shapes
/// `prediction`, `target`: `(N, L, P)`; `mask`: `(N, L)` of any type, 1 for masked patches and 0 for others. Returns a
/// scalar.
///
/// # Errors
/// If the shapes do not fit, or no patch is masked.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let prediction = Tensor::new(&[[[1f64, 1.], [5., 5.]]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 0]], &Device::Cpu)?;
/// let loss = ssl_losses::mae(&prediction, &prediction.zeros_like()?, &mask)?;
/// assert_eq!(loss.to_scalar::<f64>()?, 1.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mae(prediction: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    checks::same_shape(prediction, target, "mae")?;
    let (mask, masked) = checks::token_mask(prediction, mask, "mae")?;
    let error = (prediction - target)?.sqr()?.mean(D::Minus1)?; // (N, L)
    (error * mask)?.sum_all()?.div(&masked)
}

/// The loss of SimMIM: the mean absolute error of the masked pixels over their channels.
///
/// `Σ |x̂ − x| M / (Σ M + 10⁻⁵) / C`, with the mask `M` of the pixels, counted once for all channels. Without any masked
/// pixel it is 0.
///
/// # Shapes
/// `prediction`, `image`: `(N, C, H, W)`; `mask`: `(N, h, w)` of any type, 1 for masked cells of `H/h` by `W/w` pixels and
/// 0 for others. Returns a scalar.
///
/// # Errors
/// If the shapes do not fit, or `H` is no multiple of `h` or `W` none of `w`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// // The left half is masked, and off by 3 in both channels.
/// let image = Tensor::zeros((1, 2, 4, 4), DType::F64, &Device::Cpu)?;
/// let mask = Tensor::new(&[[[1u8, 0]]], &Device::Cpu)?;
/// let loss = ssl_losses::simmim(&(&image + 3.0)?, &image, &mask)?.to_scalar::<f64>()?;
/// assert!((loss - 3.0).abs() < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn simmim(prediction: &Tensor, image: &Tensor, mask: &Tensor) -> Result<Tensor> {
    checks::same_shape(prediction, image, "simmim")?;
    let (n, c, height, width) = prediction.dims4()?;
    let (images, h, w) = mask.dims3()?;
    if images != n || h == 0 || w == 0 || !height.is_multiple_of(h) || !width.is_multiple_of(w) {
        bail!("simmim needs a mask (N, h, w) that divides images {:?}, got {:?}", image.dims(), mask.dims());
    }
    let cells = mask.detach().to_dtype(prediction.dtype())?.reshape((n, 1, h, 1, w, 1))?;
    let mask = cells.broadcast_as((n, 1, h, height / h, w, width / w))?.reshape((n, 1, height, width))?;
    let error = (prediction - image)?.abs()?.broadcast_mul(&mask)?.sum_all()?;
    error.div(&(mask.sum_all()? + 1e-5)?)? / c as f64
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};
    use crate::{normalize_patches, patchify};

    fn tokens(n: usize, l: usize, p: usize, salt: u64) -> Tensor {
        matrix(n * l, p, salt).reshape((n, l, p)).unwrap()
    }

    fn images(n: usize, salt: u64) -> Tensor {
        matrix(n * 3, 24, salt).reshape((n, 3, 4, 6)).unwrap()
    }

    fn mask() -> Tensor {
        Tensor::new(&[[1f32, 0., 1., 1., 0., 0.], [0., 0., 0., 1., 0., 0.]], &Device::Cpu).unwrap()
    }

    #[test]
    fn only_masked_patches_count_and_each_the_same() {
        let (p, t) = (tokens(2, 6, 4, 1), tokens(2, 6, 4, 2));
        let squares = (&p - &t).unwrap().sqr().unwrap().mean(2).unwrap().to_vec2::<f64>().unwrap();
        let expected = (squares[0][0] + squares[0][2] + squares[0][3] + squares[1][3]) / 4.0;
        assert!((scalar(mae(&p, &t, &mask())) - expected).abs() < 1e-12);
        let p = Var::from_tensor(&p).unwrap();
        let grads = mae(&p, &t, &mask()).unwrap().backward().unwrap();
        let grad = grads.get(&p).unwrap().abs().unwrap().sum(2).unwrap().to_vec2::<f64>().unwrap();
        let flags = mask().to_vec2::<f32>().unwrap();
        for (grad, flag) in grad.iter().flatten().zip(flags.iter().flatten()) {
            assert_eq!(*grad > 0.0, *flag > 0.0);
        }
    }

    #[test]
    fn a_prediction_of_zero_costs_the_biased_variance_of_normalised_patches() {
        let target = normalize_patches(&patchify(&images(2, 1), 2).unwrap()).unwrap();
        let loss = scalar(mae(&target.zeros_like().unwrap(), &target, &mask()));
        assert!((loss - 11.0 / 12.0).abs() < 1e-4, "{loss}");
    }

    /// The formula of SimMIM with plain numbers, for cells of 2 by 3 pixels.
    fn plain(prediction: &Tensor, image: &Tensor, mask: &Tensor) -> f64 {
        let error = (prediction - image).unwrap().abs().unwrap().flatten_all().unwrap();
        let (error, mask) = (error.to_vec1::<f64>().unwrap(), mask.to_vec3::<f32>().unwrap());
        let (mut sum, mut pixels) = (0.0, 0.0);
        for (i, error) in error.iter().enumerate() {
            let (n, c, row, column) = (i / 72, i / 24 % 3, i / 6 % 4, i % 6);
            let m = f64::from(mask[n][row / 2][column / 3]);
            sum += m * error;
            pixels += if c == 0 { m } else { 0.0 };
        }
        sum / (pixels + 1e-5) / 3.0
    }

    #[test]
    fn simmim_is_the_mean_over_masked_pixels_and_channels() {
        let (p, x) = (images(2, 1), images(2, 2));
        let mask = Tensor::new(&[[[1f32, 0.], [1., 1.]], [[0., 0.], [0., 1.]]], &Device::Cpu).unwrap();
        assert!((scalar(simmim(&p, &x, &mask)) - plain(&p, &x, &mask)).abs() < 1e-12);
        let none = mask.zeros_like().unwrap();
        assert_eq!(scalar(simmim(&p, &x, &none)), 0.0);
    }

    #[test]
    fn the_order_of_images_does_not_matter() {
        let (p, t) = (tokens(5, 6, 4, 1), tokens(5, 6, 4, 2));
        let mask = Tensor::cat(&[&mask(), &mask(), &mask()], 0).unwrap().narrow(0, 1, 5).unwrap();
        let loss = scalar(mae(&p, &t, &mask));
        assert!((scalar(mae(&permuted(&p), &permuted(&t), &permuted(&mask))) - loss).abs() < 1e-12);
        let (p, x, mask) = (images(5, 1), images(5, 2), mask.reshape((5, 2, 3)).unwrap());
        let loss = scalar(simmim(&p, &x, &mask));
        assert!((scalar(simmim(&permuted(&p), &permuted(&x), &permuted(&mask))) - loss).abs() < 1e-12);
    }

    #[test]
    fn gradients_equal_central_differences() {
        assert_gradients(&tokens(2, 6, 2, 1), &tokens(2, 6, 2, 2), |p, t| mae(p, t, &mask()));
        let mask = mask().reshape((2, 2, 3)).unwrap();
        assert_gradients(&images(2, 1), &images(2, 2), |p, x| simmim(p, x, &mask));
    }

    #[test]
    fn bad_input_is_refused() {
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let p = tokens(2, 6, 4, 1);
        refused(mae(&p, &tokens(2, 6, 3, 1), &mask()), "[2, 6, 3]");
        refused(mae(&p, &p, &mask().narrow(1, 0, 5).unwrap()), "got [2, 5]");
        refused(mae(&p, &p, &mask().zeros_like().unwrap()), "none is masked");
        let x = images(2, 1);
        let mask = |shape: (usize, usize, usize)| Tensor::ones(shape, DType::U8, &Device::Cpu).unwrap();
        refused(simmim(&x, &images(1, 1), &mask((2, 2, 3))), "[1, 3, 4, 6]");
        for shape in [(1, 2, 3), (2, 3, 3), (2, 2, 4), (2, 0, 3)] {
            refused(simmim(&x, &x, &mask(shape)), "that divides images");
        }
    }
}
