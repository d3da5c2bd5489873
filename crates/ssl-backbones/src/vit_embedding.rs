//! From images to the tokens that enter the first block of a vision transformer.

use candle_core::{DType, Device, Result, Tensor, bail};
use ssl_nn::{BicubicConfig, Init, LayerNorm, Scope, interpolate_positions};

use crate::patch_projection::{MaskedPatches, PatchProjection, whole_patches};
use crate::vit_config::{NORMAL, Positions, VitConfig, VitInit};

/// Fixed positions of sines and cosines: `(1, prefix + rows · columns, dim)`, patches row by row.
///
/// Each quarter of the channels holds one of `sin(x ω)`, `cos(x ω)`, `sin(y ω)` and `cos(y ω)`, in this order, where `x`
/// is the number of the column, `y` that of the row and `ω` goes from 1 down to 1/10000: MAE's official code. The
/// `prefix` first ones, those of class token and registers, are 0.
///
/// ```
/// use candle_core::{DType, Device};
/// use ssl_backbones::sin_cos_positions;
///
/// let positions = sin_cos_positions(4, (2, 2), 1, DType::F64, &Device::Cpu)?.squeeze(0)?.to_vec2::<f64>()?;
/// assert_eq!(positions[0], [0.0; 4]);
/// assert_eq!(positions[1], [0.0, 1.0, 0.0, 1.0]);
/// assert_eq!(positions[2], [1f64.sin(), 1f64.cos(), 0.0, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `dim` is not a multiple of 4.
pub fn sin_cos_positions(
    dim: usize,
    (rows, columns): (usize, usize),
    prefix: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    if dim == 0 || !dim.is_multiple_of(4) {
        bail!("positions of sines and cosines: the width {dim} is not a multiple of 4");
    }
    let quarter = dim / 4;
    let omega = |k: usize| 10_000f64.powf(-(k as f64) / quarter as f64);
    let of_patch = |patch: usize| {
        let [x, y] = [patch % columns, patch / columns].map(|at| at as f64);
        let wave = move |at: f64, f: fn(f64) -> f64| (0..quarter).map(move |k| f(at * omega(k)));
        wave(x, f64::sin).chain(wave(x, f64::cos)).chain(wave(y, f64::sin)).chain(wave(y, f64::cos))
    };
    let zeros = std::iter::repeat_n(0.0, prefix * dim);
    let values: Vec<f64> = zeros.chain((0..rows * columns).flat_map(of_patch)).collect();
    Tensor::from_vec(values, (1, prefix + rows * columns, dim), &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)
}

/// The pixels of each patch: `(B, 3, H, W)` to `(B, N, 3·patch²)`, patches row by row, within a patch row by row and
/// the channels of a pixel side by side: what MAE predicts.
///
/// # Errors
/// If the images do not consist of whole patches.
pub fn patch_pixels(images: &Tensor, patch: usize) -> Result<Tensor> {
    let (batch, (rows, columns)) = whole_patches(images, patch)?;
    let x = images.reshape((batch, 3, rows, patch, columns, patch))?.permute((0, 2, 4, 3, 5, 1))?;
    x.reshape((batch, rows * columns, 3 * patch * patch))
}

/// Rows of a `(B, N, D)` tensor by their numbers `(B, K)` within a sample: `(B, K, D)`.
///
/// # Errors
/// If the shapes do not fit or a number is not below `N`.
pub(crate) fn gather_tokens(x: &Tensor, numbers: &Tensor) -> Result<Tensor> {
    let (batch, tokens, dim) = x.dims3()?;
    let flat = flat_numbers(numbers, batch, tokens)?;
    x.reshape((batch * tokens, dim))?.index_select(&flat, 0)?.reshape((batch, (), dim))
}

/// `numbers` `(B, K)` within samples of `tokens` rows as numbers within all rows, one after the other.
fn flat_numbers(numbers: &Tensor, batch: usize, tokens: usize) -> Result<Tensor> {
    let mut all = checked_numbers(numbers, batch, tokens)?;
    let each = all.len() / batch.max(1);
    for (sample, numbers) in all.chunks_exact_mut(each.max(1)).enumerate() {
        numbers.iter_mut().for_each(|number| *number += (sample * tokens) as u32);
    }
    Tensor::new(all, numbers.device())
}

fn checked_numbers(numbers: &Tensor, batch: usize, tokens: usize) -> Result<Vec<u32>> {
    let (samples, each) = numbers.dims2()?;
    let all = numbers.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    match all.iter().find(|number| **number as usize >= tokens) {
        Some(number) => bail!("vision transformer: token {number} of {tokens} was asked for"),
        None if samples != batch || each == 0 => {
            bail!("vision transformer: expected numbers ({batch}, K) of tokens, got {:?}", numbers.dims())
        }
        None => Ok(all),
    }
}

/// The parameters before the first block.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    class_token: Option<Tensor>,
    registers: Option<Tensor>,
    positions: Option<Tensor>,
    projection: PatchProjection,
    norm: Option<LayerNorm>,
    config: VitConfig,
}

impl Embedding {
    pub(crate) fn new(config: VitConfig, scope: &Scope) -> Result<Self> {
        let VitConfig { patch_size, dim, options, .. } = config;
        let token_init = match options.init {
            VitInit::Timm => Init::Normal { std: 1e-6 },
            VitInit::Xavier | VitInit::Beit => NORMAL,
        };
        let class_token = || scope.trainable("cls_token", (1, 1, dim), token_init);
        let class_token = options.class_token.then(class_token).transpose()?;
        let registers =
            || scope.trainable("reg_token", (1, options.registers, dim), Init::Normal { std: 1e-6 });
        let registers = (options.registers > 0).then(registers).transpose()?;
        let positions = positions(&config, scope)?;
        let inputs = 3 * patch_size * patch_size;
        let default = Init::TorchDefault { fan_in: inputs };
        let weight_init = match options.init {
            VitInit::Timm => default,
            VitInit::Xavier => Init::Uniform { bound: (6.0 / (inputs + dim) as f64).sqrt() },
            VitInit::Beit => NORMAL,
        };
        let bias_init = if options.init == VitInit::Beit { Init::Const(0.0) } else { default };
        let inits = (weight_init, (!options.norm_first).then_some(bias_init));
        let projection = PatchProjection::new(patch_size, dim, inits, &scope.pp("patch_embed.proj"))?;
        let norm = || LayerNorm::new(dim, options.norm_eps, &scope.pp("norm_pre"));
        let norm = options.norm_first.then(norm).transpose()?;
        Ok(Self { class_token, registers, positions, projection, norm, config })
    }

    /// All tokens.
    pub(crate) fn all(&self, x: &Tensor, masked: Option<MaskedPatches<'_>>) -> Result<Tensor> {
        let (_, grid) = whole_patches(x, self.config.patch_size)?;
        let mut patches = self.projection.project(&self.projection.pixels(x)?)?;
        if let Some(masked) = masked {
            patches = masked.replace(&patches)?;
        }
        if let Some(positions) = self.of_patches(grid)? {
            patches = patches.broadcast_add(&positions)?;
        }
        self.finish(patches)
    }

    /// The class token, the registers and the tokens of the patches with the numbers `(B, K)`.
    pub(crate) fn visible(&self, x: &Tensor, numbers: &Tensor) -> Result<Tensor> {
        let (batch, grid) = whole_patches(x, self.config.patch_size)?;
        let mut patches = self.projection.project(&gather_tokens(&self.projection.pixels(x)?, numbers)?)?;
        if let Some(positions) = self.of_patches(grid)? {
            let (_, tokens, dim) = positions.dims3()?;
            let numbers = checked_numbers(numbers, batch, tokens)?;
            let numbers = Tensor::new(numbers, positions.device())?;
            let positions = positions.reshape((tokens, dim))?.index_select(&numbers, 0)?;
            patches = (patches + positions.reshape((batch, (), dim))?)?;
        }
        self.finish(patches)
    }

    /// Puts class token and registers before the patches.
    fn finish(&self, patches: Tensor) -> Result<Tensor> {
        let (batch, _, dim) = patches.dims3()?;
        let own: Vec<&Tensor> = self.class_token.iter().chain(&self.registers).collect();
        let mut tokens = patches;
        if !own.is_empty() {
            let mut prefix = Tensor::cat(&own, 1)?;
            if let (Some(positions), true) = (&self.positions, self.positions_of_prefix() > 0) {
                prefix = (prefix + positions.narrow(1, 0, self.positions_of_prefix())?)?;
            }
            let prefix = prefix.broadcast_as((batch, self.config.prefix_tokens(), dim))?;
            tokens = Tensor::cat(&[&prefix, &tokens], 1)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }

    /// Positions that are not those of patches.
    fn positions_of_prefix(&self) -> usize {
        match self.config.options.positions {
            Positions::Learned | Positions::SinCos => self.config.prefix_tokens(),
            Positions::LearnedPatches | Positions::None => 0,
        }
    }

    /// The positions `(1, N, dim)` of a grid of patches.
    pub(crate) fn of_patches(&self, (rows, columns): (usize, usize)) -> Result<Option<Tensor>> {
        let Some(positions) = &self.positions else { return Ok(None) };
        let (grid, options) = (self.config.grid(), self.config.options);
        let patches = positions.narrow(1, self.positions_of_prefix(), grid * grid)?;
        let offset = options.position_offset;
        let scale = |size: usize| (size as f64 + offset) / grid as f64;
        let scale = (offset > 0.0).then(|| (scale(rows), scale(columns)));
        let config = BicubicConfig { antialias: options.position_antialias, scale };
        interpolate_positions(&patches, (grid, grid), (rows, columns), config).map(Some)
    }
}

/// Creates `pos_embed`.
fn positions(config: &VitConfig, scope: &Scope) -> Result<Option<Tensor>> {
    let (dim, prefix, patches) = (config.dim, config.prefix_tokens(), config.num_patches());
    let learned = |tokens| scope.trainable("pos_embed", (1, tokens, dim), NORMAL).map(Some);
    match config.options.positions {
        Positions::None => Ok(None),
        Positions::Learned => learned(prefix + patches),
        Positions::LearnedPatches => learned(patches),
        Positions::SinCos => {
            let table = scope.buffer("pos_embed", (1, prefix + patches, dim), Init::Const(0.0))?;
            let grid = (config.grid(), config.grid());
            table.set(&sin_cos_positions(dim, grid, prefix, table.dtype(), table.device())?)?;
            Ok(Some(table.as_detached_tensor()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_gathered_sample_by_sample_and_wrong_numbers_refused() {
        let x = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((2, 3, 2)).unwrap();
        let numbers = Tensor::new(&[[2u32, 0], [1, 1]], &Device::Cpu).unwrap();
        let y = gather_tokens(&x, &numbers).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(y, [[[4., 5.], [0., 1.]], [[8., 9.], [8., 9.]]]);
        let error = |numbers: Tensor| gather_tokens(&x, &numbers).unwrap_err().to_string();
        assert!(error(Tensor::new(&[[3u32], [0]], &Device::Cpu).unwrap()).contains("token 3 of 3"));
        assert!(
            error(Tensor::new(&[[1u32]], &Device::Cpu).unwrap()).contains("(2, K) of tokens, got [1, 1]")
        );
    }

    #[test]
    fn pixels_of_a_patch_stand_row_by_row_with_their_channels_together() {
        let x = Tensor::arange(0f32, 48.0, &Device::Cpu).unwrap().reshape((1, 3, 4, 4)).unwrap();
        let patches = patch_pixels(&x, 2).unwrap();
        assert_eq!(patches.dims(), [1, 4, 12]);
        let second = patches.to_vec3::<f32>().unwrap()[0][1].clone();
        assert_eq!(second, [2., 18., 34., 3., 19., 35., 6., 22., 38., 7., 23., 39.]);
    }
}
