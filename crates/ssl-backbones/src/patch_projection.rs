//! From the pixels of each patch to its token, as both kinds of transformers begin.

use candle_core::{Result, Tensor, bail};
use ssl_nn::{Init, Scope, linear};

/// Patches that one learned vector stands for, as in SimMIM, BEiT and iBOT.
#[derive(Clone, Copy, Debug)]
pub struct MaskedPatches<'a> {
    /// `(B, N)`: other than 0 where a patch is hidden.
    pub mask: &'a Tensor,
    /// The vector, of `dim` numbers in any shape. It takes the place of the patch before positions are added.
    pub token: &'a Tensor,
}

impl MaskedPatches<'_> {
    /// The tokens `(B, N, dim)` of which the hidden ones are replaced.
    pub(crate) fn replace(&self, patches: &Tensor) -> Result<Tensor> {
        let (batch, tokens, dim) = patches.dims3()?;
        let Self { mask, token } = self;
        if mask.dims() != [batch, tokens] || token.elem_count() != dim {
            bail!(
                "masked patches: expected a mask ({batch}, {tokens}) and a token of {dim} numbers, got {:?} and {:?}",
                mask.dims(),
                token.dims()
            );
        }
        let hidden = mask.ne(0f64)?.unsqueeze(2)?.broadcast_as(patches.shape())?;
        hidden.where_cond(&token.reshape((1, 1, dim))?.broadcast_as(patches.shape())?, patches)
    }
}

/// The convolution `proj` whose kernel and stride are a patch, computed as a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct PatchProjection {
    weight: Tensor,
    bias: Option<Tensor>,
    patch_size: usize,
}

impl PatchProjection {
    /// Creates `weight` `(dim, 3, patch_size, patch_size)`, and `bias` unless that has no initial value.
    pub(crate) fn new(
        patch_size: usize,
        dim: usize,
        (weight, bias): (Init, Option<Init>),
        scope: &Scope,
    ) -> Result<Self> {
        let weight = scope.trainable("weight", (dim, 3, patch_size, patch_size), weight)?;
        let bias = bias.map(|init| scope.trainable("bias", dim, init)).transpose()?;
        Ok(Self { weight, bias, patch_size })
    }

    /// The pixels `(B, N, 3·patch²)` of each patch in the order of the weight.
    pub(crate) fn pixels(&self, x: &Tensor) -> Result<Tensor> {
        let p = self.patch_size;
        let (batch, (rows, columns)) = whole_patches(x, p)?;
        let patches = x.reshape((batch, 3, rows, p, columns, p))?.permute((0, 2, 4, 1, 3, 5))?;
        patches.reshape((batch, rows * columns, 3 * p * p))
    }

    /// The tokens `(B, N, dim)` of pixels.
    pub(crate) fn project(&self, pixels: &Tensor) -> Result<Tensor> {
        linear(pixels, &self.weight.flatten_from(1)?, self.bias.as_ref(), None)
    }
}

/// Number of images, and rows and columns of patches in each.
pub(crate) fn whole_patches(x: &Tensor, patch: usize) -> Result<(usize, (usize, usize))> {
    let (batch, channels, h, w) = x.dims4()?;
    if channels != 3 || h * w == 0 || h % patch != 0 || w % patch != 0 {
        bail!("transformer: expected images (B, 3, H, W) in whole patches of {patch}, got {:?}", x.dims());
    }
    Ok((batch, (h / patch, w / patch)))
}
