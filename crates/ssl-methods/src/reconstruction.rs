//! What the methods share that predict what a mask hides.

use candle_core::{D, DType, Result, Tensor};
use ssl_backbones::{BackboneConfig, Pooling, RelativePositions, VitConfig};
use ssl_losses::unpatchify;

use crate::method::Reconstruction;

/// The network of a method that works on tokens.
pub(crate) fn vision_transformer(backbone: &BackboneConfig) -> std::result::Result<VitConfig, String> {
    backbone.validate()?;
    let vit = backbone.vision_transformer().map_err(|_| {
        format!("backbone.name = {} is not a vision transformer, which the method needs", backbone.name)
    })?;
    match vit.options.pooling {
        Pooling::Token | Pooling::Mean => Ok(vit),
        Pooling::MeanNorm => {
            Err("backbone.vit.pooling = mean_norm leaves the tokens without a norm, which the \
                                  method needs; it is for fine-tuned weights"
                .to_owned())
        }
    }
}

/// A network that can pass some tokens alone.
pub(crate) fn without_relative_positions(vit: &VitConfig) -> std::result::Result<(), String> {
    match vit.options.relative_positions {
        RelativePositions::None => Ok(()),
        _ => Err("backbone.vit.relative_positions is not none, but the method leaves tokens out".to_owned()),
    }
}

/// A network whose class token can be compared.
pub(crate) fn with_class_token(vit: &VitConfig) -> std::result::Result<(), String> {
    match vit.options.class_token {
        true => Ok(()),
        false => Err("backbone.vit.class_token = false, but the method compares class tokens".to_owned()),
    }
}

/// The mean `(1, 1, P)` of the hidden ones of patches `(B, N, P)`, repeated in their shape; `mask` is `(B, N)`, 1 where
/// a patch is hidden.
pub(crate) fn mean_of_hidden(patches: &Tensor, mask: &Tensor) -> Result<Tensor> {
    weighted_mean(patches, mask, (0, 1))?.broadcast_as(patches.shape())
}

/// The mean `(B, D)` over the visible ones of the tokens `(B, N, D)` of each image, detached.
pub(crate) fn mean_of_visible(tokens: &Tensor, mask: &Tensor) -> Result<Tensor> {
    weighted_mean(&tokens.detach(), &mask.eq(0f64)?, 1)?.squeeze(1)
}

fn weighted_mean<D: candle_core::shape::Dims + Copy>(
    x: &Tensor,
    weights: &Tensor,
    dims: D,
) -> Result<Tensor> {
    let weights = weights.to_dtype(x.dtype())?.unsqueeze(2)?;
    x.broadcast_mul(&weights)?.sum_keepdim(dims)?.broadcast_div(&weights.sum_keepdim(dims)?)
}

/// Images of the patches `pixels`, `(B, N, 3 p²)`, with those of `prediction` where `mask`, `(B, N)`, is not 0; there are
/// `side` by `side` patches of `p` by `p` pixels.
pub(crate) fn completed(
    prediction: &Tensor,
    pixels: &Tensor,
    mask: Tensor,
    (p, side): (usize, usize),
) -> Result<Reconstruction> {
    let hidden = mask.unsqueeze(2)?.broadcast_as(pixels.shape())?;
    let patches = hidden.where_cond(prediction, pixels)?.detach();
    Ok(Reconstruction { images: unpatchify(&patches, p, (side, side))?, mask })
}

/// Every token with mean 0 and variance 1 over its features, as a layer norm without parameters: targets of data2vec and
/// I-JEPA.
pub(crate) fn feature_normalized(tokens: &Tensor) -> Result<Tensor> {
    let centred = tokens.broadcast_sub(&tokens.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)
}

/// The share of the loss of the mean patch that a prediction saves: 1 if it is exact, 0 if it is no better.
pub(crate) fn gain(loss: &Tensor, of_mean: &Tensor) -> Result<Tensor> {
    let [loss, of_mean] = [loss, of_mean].map(|loss| loss.detach().to_dtype(DType::F64));
    // Where all patches are alike there is nothing to save.
    1.0 - (loss? / (of_mean? + 1e-6)?)?
}

/// How the errors of a prediction are taken to be distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Normally: losses are mean squares.
    Gaussian,
    /// By Laplace's law: losses are mean absolute values.
    Laplace,
}

/// How many bits a value of a hidden patch costs less by the prediction than by the mean: what the visible patches are
/// shown to tell of it, by the bound of Barber and Agakov (2003). Errors of mean square `s²` cost `½ log₂ s²` bits and a
/// constant, those of mean absolute value `b` cost `log₂ b`. Below 0 for a prediction that is worse than the mean.
pub(crate) fn bits_per_dimension(loss: &Tensor, of_mean: &Tensor, noise: Noise) -> Result<Tensor> {
    let [loss, of_mean] = [loss, of_mean].map(|loss| loss.detach().to_dtype(DType::F64));
    let bits = ((of_mean? + 1e-12)?.log()? - (loss? + 1e-12)?.log()?)? / std::f64::consts::LN_2;
    match noise {
        Noise::Gaussian => bits? * 0.5,
        Noise::Laplace => bits,
    }
}

/// What methods report that predict features: the [`gain`] over the mean target, and the standard deviation of the
/// targets `(M, D)` over all patches of the batch, 0 if they have become the same.
pub(crate) fn target_terms(
    loss: &Tensor,
    of_mean: &Tensor,
    targets: &Tensor,
) -> Result<Vec<(&'static str, Tensor)>> {
    let deviation = targets.var(0)?.sqrt()?.mean_all()?;
    Ok(vec![("prediction_gain", gain(loss, of_mean)?), ("target_std", deviation)])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn means_are_those_of_hidden_and_of_visible_patches() {
        let x = Tensor::new(&[[[1f32, 2.], [3., 4.]], [[5., 6.], [7., 9.]]], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[[1u8, 0], [0, 1]], &Device::Cpu).unwrap();
        let hidden = mean_of_hidden(&x, &mask).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(hidden, [[[4., 5.5], [4., 5.5]], [[4., 5.5], [4., 5.5]]]);
        assert_eq!(mean_of_visible(&x, &mask).unwrap().to_vec2::<f32>().unwrap(), [[3., 4.], [5., 6.]]);
    }

    #[test]
    fn the_gain_is_one_for_no_loss_and_zero_for_that_of_the_mean() {
        let scalar = |x: f32| Tensor::new(x, &Device::Cpu).unwrap();
        for (loss, of_mean, expected) in [(0.0, 2.0, 1.0), (2.0, 2.0, 0.0), (1.0, 4.0, 0.75)] {
            let gain = gain(&scalar(loss), &scalar(of_mean)).unwrap().to_scalar::<f64>().unwrap();
            assert!((gain - expected).abs() < 1e-5, "{gain}");
        }
        for (noise, expected) in [(Noise::Gaussian, 1.0), (Noise::Laplace, 2.0)] {
            let bits = bits_per_dimension(&scalar(1.0), &scalar(4.0), noise).unwrap();
            assert!((bits.to_scalar::<f64>().unwrap() - expected).abs() < 1e-6, "{noise:?}: {bits}");
        }
        assert!(gain(&scalar(0.0), &scalar(0.0)).unwrap().to_scalar::<f64>().unwrap().is_finite());
    }
}
