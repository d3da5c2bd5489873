//! Images as rows of patches, in the order of MAE (He et al., 2021, <https://arxiv.org/abs/2111.06377>; official code
//! facebookresearch/mae).

use candle_core::{D, Result, Tensor, bail};

/// Cuts images into patches: `(N, C, H, W)` to `(N, L, p·p·C)`.
///
/// Patches follow each other row by row of the image. Within a patch the order is row, column, channel.
///
/// # Errors
/// If the images are not of rank 4, or if their height or width is no multiple of `size`, or `size` is 0.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_losses::{patchify, unpatchify};
///
/// let image = Tensor::arange(0f32, 32., &Device::Cpu)?.reshape((1, 2, 4, 4))?;
/// let patches = patchify(&image, 2)?;
/// assert_eq!(patches.to_vec3::<f32>()?[0][1], [2., 18., 3., 19., 6., 22., 7., 23.]);
/// let back = unpatchify(&patches, 2, (2, 2))?;
/// assert_eq!(back.flatten_all()?.to_vec1::<f32>()?, image.flatten_all()?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn patchify(images: &Tensor, size: usize) -> Result<Tensor> {
    let (n, c, height, width) = images.dims4()?;
    if size == 0 || !height.is_multiple_of(size) || !width.is_multiple_of(size) {
        bail!("images of {height} by {width} pixels cannot be cut into patches of {size}");
    }
    let (h, w) = (height / size, width / size);
    let cut = images.reshape((n, c, h, size, w, size))?;
    let cut = cut.permute((0, 2, 4, 3, 5, 1))?; // (N, h, w, p, p, C)
    cut.reshape((n, h * w, size * size * c))
}

/// The images of patches, the inverse of [`patchify`]: `(N, h·w, p·p·C)` to `(N, C, h·p, w·p)`, where `grid` is `(h, w)`.
///
/// # Errors
/// If the patches are not of rank 3 or do not fit `size` and `grid`.
pub fn unpatchify(patches: &Tensor, size: usize, grid: (usize, usize)) -> Result<Tensor> {
    let (n, l, values) = patches.dims3()?;
    let (h, w) = grid;
    let area = size * size;
    if area == 0 || l != h * w || !values.is_multiple_of(area) {
        bail!("{l} patches of {values} values are no grid of {h} by {w} patches of {size} by {size} pixels");
    }
    let cut = patches.reshape((n, h, w, size, size, values / area))?;
    let cut = cut.permute((0, 5, 1, 3, 2, 4))?; // (N, C, h, p, w, p)
    cut.reshape((n, values / area, h * size, w * size))
}

/// Every patch less its mean and over its standard deviation: the targets of MAE with normalised pixels.
///
/// `(t − mean) / √(Var + 10⁻⁶)` of each patch over all its pixels and channels, with the unbiased variance. A patch of one
/// colour in all channels becomes 0.
///
/// # Shapes
/// `(N, L, P)` to the same, `P ≥ 2`.
///
/// # Errors
/// If a patch has fewer than 2 values.
pub fn normalize_patches(patches: &Tensor) -> Result<Tensor> {
    let (_, _, values) = patches.dims3()?;
    if values < 2 {
        bail!("patches need at least 2 values for a variance, got {values}");
    }
    let centred = patches.broadcast_sub(&patches.mean_keepdim(D::Minus1)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / (values - 1) as f64)?; // (N, L, 1)
    centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix};

    fn images(n: usize, c: usize, h: usize, w: usize) -> Tensor {
        matrix(n * c, h * w, 1).reshape((n, c, h, w)).unwrap()
    }

    #[test]
    fn a_value_lies_where_the_definition_puts_it() {
        let x = images(2, 3, 4, 6);
        let patches = patchify(&x, 2).unwrap();
        assert_eq!(patches.dims(), [2, 6, 12]);
        let pixels = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let rows = patches.to_vec3::<f64>().unwrap();
        for (n, image) in rows.iter().enumerate() {
            for (l, patch) in image.iter().enumerate() {
                for (i, value) in patch.iter().enumerate() {
                    let (row, column, channel) = (2 * (l / 3) + i / 6, 2 * (l % 3) + i / 3 % 2, i % 3);
                    assert_eq!(*value, pixels[((n * 3 + channel) * 4 + row) * 6 + column]);
                }
            }
        }
    }

    #[test]
    fn unpatchify_is_the_inverse_and_both_pass_gradients() {
        let x = Var::from_tensor(&images(2, 3, 8, 4)).unwrap();
        let back = unpatchify(&patchify(&x, 4).unwrap(), 4, (2, 1)).unwrap();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&back), values(&x));
        let grads = back.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), values(&(x.as_tensor() * 2.0).unwrap()));
    }

    #[test]
    fn normalised_patches_have_mean_0_and_variance_1_and_flat_ones_are_0() {
        let flat = Tensor::full(0.3, (1, 2, 12), &Device::Cpu).unwrap();
        let x = Tensor::cat(&[matrix(3, 12, 2).unsqueeze(0).unwrap(), flat], 1).unwrap(); // (1, 5, 12)
        let rows = normalize_patches(&x).unwrap().to_vec3::<f64>().unwrap().remove(0);
        for row in &rows[..3] {
            let (mean, square) =
                (row.iter().sum::<f64>() / 12.0, row.iter().map(|v| v * v).sum::<f64>() / 11.0);
            assert!(mean.abs() < 1e-12 && (square - 1.0).abs() < 1e-4, "{mean} {square}");
        }
        assert!(rows[3..].iter().flatten().all(|v| v.abs() < 1e-9));
    }

    #[test]
    fn the_gradient_of_normalised_patches_equals_central_differences() {
        let pattern = matrix(3, 4, 9).unsqueeze(0).unwrap();
        let [a, b] = [1, 2].map(|salt| matrix(3, 4, salt).unsqueeze(0).unwrap());
        let value = |x: &Tensor| (normalize_patches(x)? * &pattern)?.sum_all();
        assert_gradients(&a, &b, |a, b| value(a)? + value(b)?);
    }

    #[test]
    fn bad_input_is_refused() {
        let x = images(1, 3, 4, 6);
        for size in [0, 4, 5] {
            let error = patchify(&x, size).unwrap_err().to_string();
            assert!(
                error.contains(&format!("4 by 6 pixels cannot be cut into patches of {size}")),
                "{error}"
            );
        }
        let patches = patchify(&x, 2).unwrap();
        for (size, grid) in [(0, (2, 3)), (5, (2, 3)), (2, (2, 2))] {
            assert!(unpatchify(&patches, size, grid).unwrap_err().to_string().contains("6 patches of 12"));
        }
        assert!(
            normalize_patches(&patches.narrow(2, 0, 1).unwrap()).unwrap_err().to_string().contains("got 1")
        );
        assert!(patchify(&patches, 2).is_err() && unpatchify(&x, 2, (2, 3)).is_err());
    }
}
