//! What several blocks of a vision transformer know, in one vector: the input of DINO's and DINOv2's linear probes.

use candle_core::{Result, Tensor};

use crate::backbone::Backbone;
use crate::vit::{Vit, VitPass};

/// A vision transformer whose embedding is the class tokens of its last blocks, each after the last norm, from the earliest
/// on, and then the mean of the last block's patches: `blocks + 1` parts of the network's width (Oquab et al., 2023,
/// <https://arxiv.org/abs/2304.07193>, appendix B.3). Without a class token each block gives the mean of its patches.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{Backbone, LastBlocks, VitConfig};
/// use ssl_nn::Params;
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 3, ..VitConfig::vit_tiny() };
/// let vit = config.build(&params.root())?;
/// let last = LastBlocks::new(&vit, 2);
/// let images = Tensor::ones((5, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// assert_eq!(last.forward_t(&images, false)?.dims(), [5, 36]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LastBlocks<'a> {
    vit: &'a Vit,
    blocks: usize,
}

impl<'a> LastBlocks<'a> {
    /// The last `blocks` blocks of `vit`, or all of them if they are fewer.
    pub fn new(vit: &'a Vit, blocks: usize) -> Self {
        Self { vit, blocks: blocks.clamp(1, vit.config().depth) }
    }

    /// The number of blocks that it takes.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}

impl Backbone for LastBlocks<'_> {
    fn embed_dim(&self) -> usize {
        (self.blocks + 1) * self.vit.config().dim
    }

    fn forward_t(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        let depth = self.vit.config().depth;
        let outputs: Vec<usize> = (depth - self.blocks..depth).collect();
        let mut parts = Vec::with_capacity(self.blocks + 1);
        let mut mean = None;
        for tokens in self.vit.run_through(&self.vit.embed(x, None)?, &outputs, &VitPass::default())? {
            let tokens = self.vit.split(&self.vit.norm(&tokens)?)?;
            let of_patches = tokens.patches.mean(1)?;
            parts.push(tokens.class_token.unwrap_or_else(|| of_patches.clone()));
            mean = Some(of_patches);
        }
        parts.extend(mean);
        Tensor::cat(&parts, 1)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;
    use crate::vit_config::VitConfig;

    #[test]
    fn the_last_parts_are_the_embedding_and_the_mean_of_the_patches() {
        let params = Params::new(3, DType::F32, &Device::Cpu);
        let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 3, ..VitConfig::vit_tiny() };
        let vit = config.build(&params.root()).unwrap();
        let values: Vec<f32> = (0..2 * 3 * 64).map(|i| (i * 7919 % 101) as f32 / 50.0 - 1.0).collect();
        let x = Tensor::from_vec(values, (2, 3, 8, 8), &Device::Cpu).unwrap();
        let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
        let part = |of: &Tensor, i: usize| rows(&of.narrow(1, 12 * i, 12).unwrap());

        let two = LastBlocks::new(&vit, 2).forward_t(&x, false).unwrap();
        assert_eq!(part(&two, 1), rows(&vit.forward_t(&x, false).unwrap()));
        let patches = vit.split(&vit.forward_features(&x).unwrap()).unwrap().patches;
        assert_eq!(part(&two, 2), rows(&patches.mean(1).unwrap()));
        let all = LastBlocks::new(&vit, 9);
        assert_eq!((all.blocks(), all.embed_dim()), (3, 48));
        let all = all.forward_t(&x, false).unwrap();
        assert_eq!((part(&all, 1), part(&all, 2)), (part(&two, 0), part(&two, 1)));
        assert_ne!(part(&all, 0), part(&all, 1));
    }
}
