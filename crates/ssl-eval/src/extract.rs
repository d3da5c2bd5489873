//! From batches of images to features: a frozen backbone, or the pixels themselves as a baseline.

use candle_core::{DType, Tensor};
use ssl_backbones::Backbone;

use crate::features::check_size;
use crate::{Features, Result};

/// The embeddings of all images, in the order of the batches, computed in eval mode and cut off from the graph.
///
/// One batch is held at a time. The backbone is not changed: running statistics are used, not updated.
///
/// # Shapes
/// A batch is `(B, 3, H, W)` with B labels; its embeddings `(B, D)` with D the backbone's `embed_dim`.
///
/// # Errors
/// If a batch cannot be read, the backbone fails, a batch has not one label an image, there is no image, or an
/// embedding is not finite (the error names its row, counted over all batches).
pub fn extract(
    backbone: &dyn Backbone,
    batches: impl Iterator<Item = candle_core::Result<(Tensor, Vec<u32>)>>,
) -> Result<Features> {
    let (mut data, mut labels) = (Vec::new(), Vec::new());
    for batch in batches {
        let (images, batch_labels) = batch?;
        let embeddings = backbone.forward_t(&images, false)?.detach();
        let (rows, dim) = embeddings.dims2()?;
        check_size("number of labels in a batch", batch_labels.len(), rows)?;
        check_size("embedding dimension", dim, backbone.embed_dim())?;
        data.extend(to_vec(&embeddings)?);
        labels.extend(batch_labels);
    }
    Features::new(data, backbone.embed_dim(), labels)
}

/// The flattened images as features: the baseline that a backbone has to beat.
///
/// If all images are grey, that is their three channels are equal, one channel is kept. Extract training and test
/// images alike, before a normalisation that treats the channels differently.
///
/// # Shapes
/// A batch is `(B, 3, H, W)` with B labels; the features are `(N, 3 H W)`, or `(N, H W)` of grey images.
///
/// # Errors
/// If a batch cannot be read, is not `(B, 3, H, W)`, has not one label an image, differs in size from the first, or
/// holds a value that is not finite; or if there is no image.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// let grey = Tensor::ones((2, 3, 4, 4), DType::F32, &Device::Cpu)?;
/// let features = ssl_eval::raw_pixels([Ok((grey, vec![0, 1]))].into_iter())?;
/// assert_eq!((features.rows(), features.dim()), (2, 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn raw_pixels(
    batches: impl Iterator<Item = candle_core::Result<(Tensor, Vec<u32>)>>,
) -> Result<Features> {
    let (mut data, mut labels) = (Vec::new(), Vec::new());
    let (mut pixels, mut all_grey) = (0, true);
    for batch in batches {
        let (images, batch_labels) = batch?;
        let (count, channels, height, width) = images.dims4()?;
        check_size("number of channels", channels, 3)?;
        check_size("number of labels in a batch", batch_labels.len(), count)?;
        if labels.is_empty() {
            pixels = height * width;
        }
        check_size("number of pixels of an image", height * width, pixels)?;
        let values = to_vec(&images)?;
        if all_grey && !values.chunks_exact(3 * pixels).all(|image| is_grey(image, pixels)) {
            all_grey = false;
            data = data.chunks_exact(pixels).flat_map(|channel| channel.repeat(3)).collect();
        }
        let kept = if all_grey { pixels } else { 3 * pixels };
        data.extend(values.chunks_exact(3 * pixels).flat_map(|image| &image[..kept]));
        labels.extend(batch_labels);
    }
    Features::new(data, if all_grey { pixels } else { 3 * pixels }, labels)
}

fn is_grey(image: &[f32], pixels: usize) -> bool {
    let (red, rest) = image.split_at(pixels);
    rest.chunks_exact(pixels).all(|channel| channel == red)
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
