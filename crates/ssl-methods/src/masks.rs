//! Which patches of an image a method hides: masks as functions of a generator.
//!
//! A grid is `(rows, columns)` of patches, which are numbered row by row; a mask has a flag for each of them, true
//! where the patch is hidden. Whoever draws from [`StepContext::masks`](crate::StepContext::masks) gets masks that
//! depend on seed, step and image alone.

mod blocks;
mod multi_block;

use candle_core::{Device, Result, Tensor, bail};
use rand_core::RngCore;
use ssl_nn::{Rng, permutation};

pub use blocks::{BlockMask, inverse_block_mask};
pub use multi_block::{MultiBlockMask, MultiBlocks};

/// Patches at random, as many in every image: the masking of MAE (He et al., 2021, <https://arxiv.org/abs/2111.06377>).
///
/// ```
/// use ssl_methods::RandomMask;
/// use ssl_nn::{Purpose, rng};
///
/// let mask = RandomMask::draw(&mut rng(0, Purpose::Mask, 0, 0, 0), 16, 0.75)?;
/// assert_eq!((mask.visible().len(), mask.hidden().len()), (4, 12));
/// assert!(mask.visible().iter().all(|patch| !mask.flags()[*patch as usize]));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomMask {
    /// All patches, those that stay visible first.
    order: Vec<u32>,
    visible: usize,
}

impl RandomMask {
    /// How many of `patches` stay visible if `ratio` of them are hidden: `⌊patches (1 − ratio)⌋`, as MAE's code counts.
    pub fn num_visible(patches: usize, ratio: f64) -> usize {
        (patches as f64 * (1.0 - ratio)) as usize
    }

    /// Hides `ratio` of `patches`; takes `patches − 1` numbers of 64 bits.
    ///
    /// # Errors
    /// If no patch stays visible or none is hidden.
    pub fn draw(rng: &mut Rng, patches: usize, ratio: f64) -> Result<Self> {
        let visible = Self::num_visible(patches, ratio);
        if visible == 0 || visible >= patches {
            bail!(
                "mask: a ratio of {ratio} leaves {visible} of {patches} patches visible, must be some and not all"
            );
        }
        Ok(Self { order: permutation(rng, u32::try_from(patches).unwrap_or(u32::MAX)), visible })
    }

    /// The visible patches, in the random order in which an encoder takes them.
    pub fn visible(&self) -> &[u32] {
        &self.order[..self.visible]
    }

    /// The hidden patches.
    pub fn hidden(&self) -> &[u32] {
        &self.order[self.visible..]
    }

    /// Where each patch is found if the visible ones come first and the hidden ones follow: MAE's `ids_restore`.
    pub fn restore(&self) -> Vec<u32> {
        let mut places = vec![0; self.order.len()];
        for (place, patch) in self.order.iter().enumerate() {
            places[*patch as usize] = place as u32;
        }
        places
    }

    /// The mask.
    pub fn flags(&self) -> Vec<bool> {
        flags(self.order.len(), self.hidden())
    }
}

/// Square cells of `cell` by `cell` patches at random: the masking of SimMIM (Xie et al., 2021,
/// <https://arxiv.org/abs/2111.09886>).
///
/// `⌈ratio · cells⌉` are hidden; takes `cells − 1` numbers of 64 bits.
///
/// # Errors
/// If the grid does not consist of whole cells, or no cell stays visible or none is hidden.
pub fn cell_mask(rng: &mut Rng, grid: (usize, usize), cell: usize, ratio: f64) -> Result<Vec<bool>> {
    let (rows, columns) = grid;
    if cell == 0 || !rows.is_multiple_of(cell) || !columns.is_multiple_of(cell) {
        bail!("mask: cells of {cell} by {cell} patches do not divide a grid of {rows} by {columns}");
    }
    let (across, cells) = (columns / cell, (rows / cell) * (columns / cell));
    let hidden = (ratio * cells as f64).ceil() as usize;
    if hidden == 0 || hidden >= cells {
        bail!("mask: a ratio of {ratio} hides {hidden} of {cells} cells, must be some and not all");
    }
    let order = permutation(rng, u32::try_from(cells).unwrap_or(u32::MAX));
    let chosen = flags(cells, &order[..hidden]);
    Ok((0..rows * columns).map(|i| chosen[i / columns / cell * across + i % columns / cell]).collect())
}

/// The masks of a batch as a tensor `(B, N)` of type `U8`, 1 where a patch is hidden.
///
/// # Errors
/// If the masks are not all of one length.
pub fn mask_tensor(masks: &[Vec<bool>], device: &Device) -> Result<Tensor> {
    let patches = masks.first().map_or(0, Vec::len);
    if let Some(other) = masks.iter().find(|mask| mask.len() != patches) {
        bail!("masks of {patches} and of {} patches make no batch", other.len());
    }
    let all: Vec<u8> = masks.iter().flatten().map(|hidden| u8::from(*hidden)).collect();
    Tensor::from_vec(all, (masks.len(), patches), device)
}

/// The mask of `patches` that hides those of the list.
fn flags(patches: usize, hidden: &[u32]) -> Vec<bool> {
    let mut flags = vec![false; patches];
    hidden.iter().for_each(|patch| flags[*patch as usize] = true);
    flags
}

/// A number between `low` and `high`, from the upper 53 bits of one number of 64; `high` may be the smaller one.
pub(crate) fn uniform(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * ((rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
}

/// A number of `0..n`, uniform but for a share of `n / 2^64`, from one number of 64 bits.
fn below(rng: &mut Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use ssl_nn::{Purpose, rng};

    use super::*;

    fn generator(image: u64) -> Rng {
        rng(5, Purpose::Mask, 0, image, 0)
    }

    #[test]
    fn random_masks_have_maes_counts_and_hide_every_patch_equally_often() {
        for (patches, ratio, visible) in [(196, 0.75, 49), (49, 0.75, 12), (64, 0.75, 16), (36, 0.5, 18)] {
            let mask = RandomMask::draw(&mut generator(1), patches, ratio).unwrap();
            assert_eq!((mask.visible().len(), mask.hidden().len()), (visible, patches - visible));
            let mut all = [mask.visible(), mask.hidden()].concat();
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..patches as u32));
            let (restore, flags) = (mask.restore(), mask.flags());
            let order = [mask.visible(), mask.hidden()].concat();
            assert!((0..patches).all(|patch| order[restore[patch] as usize] as usize == patch));
            assert!((0..patches).all(|patch| flags[patch] == (restore[patch] as usize >= visible)));
        }
        let mut counts = [0u32; 9];
        for image in 0..9000 {
            let mask = RandomMask::draw(&mut generator(image), 9, 2.0 / 3.0).unwrap();
            mask.visible().iter().for_each(|patch| counts[*patch as usize] += 1);
        }
        // Five standard deviations of a binomial count with n = 9000, p = 1/3.
        assert!(counts.iter().all(|count| count.abs_diff(3000) < 224), "{counts:?}");
    }

    #[test]
    fn cells_are_hidden_as_a_whole_and_their_number_is_rounded_up() {
        // SimMIM at 192 pixels: 6 by 6 cells of 32 pixels, patches of 4.
        let mask = cell_mask(&mut generator(1), (48, 48), 8, 0.6).unwrap();
        assert_eq!(mask.iter().filter(|hidden| **hidden).count(), 22 * 64);
        for i in 0..48 * 48 {
            let (row, column) = (i / 48 / 8 * 8, i % 48 / 8 * 8);
            assert_eq!(mask[i], mask[row * 48 + column]);
        }
        let wide = cell_mask(&mut generator(2), (2, 6), 2, 0.5).unwrap();
        assert_eq!(wide.iter().filter(|hidden| **hidden).count(), 8);
        assert_eq!(wide[..6], wide[6..]);
    }

    #[test]
    fn a_mask_depends_on_the_generators_coordinates_alone() {
        let drawn = |image| {
            let random = RandomMask::draw(&mut generator(image), 64, 0.75).unwrap().flags();
            let cells = cell_mask(&mut generator(image), (8, 8), 2, 0.6).unwrap();
            let blocks = BlockMask::BEIT.draw(&mut generator(image), (14, 14), 75.0).unwrap();
            let inverse = inverse_block_mask(&mut generator(image), (8, 8), 0.65, 0.5).unwrap();
            [random, cells, blocks, inverse]
        };
        assert_eq!(drawn(3), drawn(3));
        assert!(drawn(3).iter().zip(drawn(4)).all(|(a, b)| *a != b));
    }

    #[test]
    fn what_hides_nothing_or_everything_is_refused() {
        let error = |mask: Result<Vec<bool>>| mask.unwrap_err().to_string();
        let random = |patches, ratio| RandomMask::draw(&mut generator(0), patches, ratio).map(|m| m.flags());
        assert!(error(random(3, 0.75)).contains("a ratio of 0.75 leaves 0 of 3 patches visible"));
        assert!(error(random(4, 0.0)).contains("leaves 4 of 4 patches visible"));
        let cells = |cell, ratio| cell_mask(&mut generator(0), (4, 4), cell, ratio);
        assert!(error(cells(2, 0.8)).contains("a ratio of 0.8 hides 4 of 4 cells"));
        assert!(error(cells(2, 0.0)).contains("hides 0 of 4"));
        for cell in [0, 3] {
            assert!(error(cells(cell, 0.5)).contains("do not divide a grid of 4 by 4"));
        }
    }

    #[test]
    fn masks_of_one_length_make_a_batch() {
        let masks = [vec![true, false], vec![false, false]];
        assert_eq!(mask_tensor(&masks, &Device::Cpu).unwrap().to_vec2::<u8>().unwrap(), [[1, 0], [0, 0]]);
        let error = mask_tensor(&[vec![true], vec![]], &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("masks of 1 and of 0 patches"), "{error}");
    }
}
