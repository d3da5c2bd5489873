//! Embeddings of more images than fit one forward pass.

use candle_core::Tensor;
use ssl_backbones::Backbone;

use crate::error::Result;

/// Images of one forward pass of [`embeddings`].
const BATCH: usize = 128;

/// The embeddings `(N, D)` of the images `x`, `(N, 3, S, S)`, in evaluation mode and cut off from the graph, 128 images at a
/// time.
///
/// # Errors
/// If there is no image, or the backbone refuses them.
pub fn embeddings(backbone: &dyn Backbone, x: &Tensor) -> Result<Tensor> {
    let n = x.dim(0)?;
    forward(backbone, (0..n).step_by(BATCH).map(|start| Ok(x.narrow(0, start, BATCH.min(n - start))?)))
}

/// The embeddings `(N, D)` of all `batches`, `(B, 3, S, S)` each, of which one is held at a time.
pub(crate) fn forward(
    backbone: &dyn Backbone,
    batches: impl Iterator<Item = Result<Tensor>>,
) -> Result<Tensor> {
    let parts = batches.map(|x| Ok(backbone.forward_t(&x?, false)?.detach()));
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::Device;

    use super::*;

    /// Means of the channels; remembers how many images each pass had.
    struct Means(Mutex<Vec<usize>>);

    impl Backbone for Means {
        fn embed_dim(&self) -> usize {
            3
        }

        fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
            assert!(!train);
            self.0.lock().unwrap().push(x.dim(0)?);
            x.flatten_from(2)?.mean(2)
        }
    }

    #[test]
    fn every_image_has_its_embedding_and_no_pass_more_than_a_batch() {
        let (n, means) = (2 * BATCH + 3, Means(Mutex::default()));
        let x = Tensor::arange(0f32, (n * 12) as f32, &Device::Cpu).unwrap().reshape((n, 3, 2, 2)).unwrap();
        let found = embeddings(&means, &x).unwrap().to_vec2::<f32>().unwrap();
        let expected = x.flatten_from(2).unwrap().mean(2).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, expected);
        assert_eq!(*means.0.lock().unwrap(), [BATCH, BATCH, 3]);
    }
}
