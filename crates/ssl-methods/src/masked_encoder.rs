//! What BEiT, data2vec and, with a vision transformer, SimMIM share: an encoder that passes all patches of an image, some of them as one learned
//! token, and the blocks of patches that the first two hide.

use candle_core::{Result, Tensor};
use ssl_backbones::{BackboneConfig, MaskedPatches, Vit, VitConfig, VitPass};
use ssl_nn::{DrawsAt, Init, Params};

use crate::checks;
use crate::masks::{BlockMask, mask_tensor};
use crate::method::{Batch, StepContext};

/// A vision transformer and the token that stands for hidden patches.
#[derive(Debug)]
pub(crate) struct MaskedEncoder {
    pub(crate) vit: Vit,
    mask_token: Tensor,
}

impl MaskedEncoder {
    /// Creates `backbone.*` and `mask_token` in `params`.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer.
    pub(crate) fn new(backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let (config, root) = (backbone.vision_transformer()?, params.root());
        let vit = config.build(&root.pp("backbone"))?;
        let mask_token = root.trainable("mask_token", (1, 1, config.dim), Init::Normal { std: 0.02 })?;
        Ok(Self { vit, mask_token })
    }

    /// The patches' tokens after the last norm, `(B, N, d)`; `mask` is `(B, N)`, 1 where a patch is hidden.
    pub(crate) fn patches(&self, x: &Tensor, mask: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        let masked = MaskedPatches { mask, token: &self.mask_token };
        let pass = VitPass { draws, ..VitPass::default() };
        let h = self.vit.run(&self.vit.embed(x, Some(masked))?, &pass)?;
        self.vit.split(&self.vit.norm(&h)?)?.patches.contiguous()
    }
}

/// BEiT's blocks of hidden patches, by their settings in a recipe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HiddenBlocks {
    /// `mask_ratio`, the share of the patches that is hidden at most.
    pub(crate) ratio: f64,
    /// `min_block`, patches of the smallest block.
    pub(crate) min_block: usize,
}

impl HiddenBlocks {
    pub(crate) fn validate(self) -> std::result::Result<(), String> {
        checks::number("mask_ratio", self.ratio, 0.01..=0.99)?;
        checks::count("min_block", self.min_block, 1..=1_000_000)
    }

    /// Checks that blocks fit the grid, so that every image has a hidden patch.
    pub(crate) fn validate_grid(self, vit: &VitConfig) -> std::result::Result<(), String> {
        let Self { ratio, min_block } = self;
        let (side, hidden) = (vit.grid(), self.hidden(vit));
        if hidden < min_block as f64 {
            return Err(format!(
                "method.mask_ratio = {ratio} hides {hidden} of {} patches, less than method.min_block = {min_block}",
                vit.num_patches()
            ));
        }
        // A block may be as high as the grid less one.
        if min_block > (side - 1).pow(2) {
            return Err(format!(
                "method.min_block = {min_block} patches do not fit a grid of {side} by {side}, must be at most {}",
                (side - 1).pow(2)
            ));
        }
        Ok(())
    }

    /// Patches to hide in an image.
    fn hidden(self, vit: &VitConfig) -> f64 {
        (self.ratio * vit.num_patches() as f64).round()
    }

    /// The masks of a batch, `(B, N)`, 1 where a patch is hidden.
    pub(crate) fn draw(self, batch: &Batch, context: &StepContext, vit: &VitConfig) -> Result<Tensor> {
        let blocks = BlockMask { min_block: self.min_block, ..BlockMask::BEIT };
        let grid = (vit.grid(), vit.grid());
        let draw = |image: &usize| blocks.draw(&mut context.masks(*image, 0), grid, self.hidden(vit));
        let masks = batch.index.iter().map(draw).collect::<Result<Vec<_>>>()?;
        mask_tensor(&masks, batch.views[0].device())
    }
}
