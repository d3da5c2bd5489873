//! Rectangles of patches, hidden or left visible.

use candle_core::{Result, bail};
use ssl_nn::{Rng, permutation};

use super::{below, uniform};

/// How often a block is drawn before the mask stays as it is.
const ATTEMPTS: usize = 10;

/// Rectangles, one after the other, until as many patches are hidden as wanted: the masking of BEiT (Bao et al., 2021,
/// <https://arxiv.org/abs/2106.08254>, algorithm 1), data2vec, iBOT and DINOv2, as in their code.
///
/// A block's area is uniform between `min_block` and what is still to be hidden, the logarithm of its ratio of height
/// to width between those of `min_aspect` and of its inverse, and its place uniform. It is taken if it is lower and
/// narrower than the grid and hides at least one patch more and not too many. Blocks may overlap. After ten failures in
/// a row the mask is left as it is, so that it may hide a little less than wanted, and never more.
///
/// ```
/// use ssl_methods::BlockMask;
/// use ssl_nn::{Purpose, rng};
///
/// let mask = BlockMask::BEIT.draw(&mut rng(0, Purpose::Mask, 0, 0, 0), (14, 14), 75.0)?;
/// let hidden = mask.iter().filter(|hidden| **hidden).count();
/// assert!((60..=75).contains(&hidden));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockMask {
    /// Area of the smallest block, in patches, at least 1.
    pub min_block: usize,
    /// How many patches a block may add at most; `None` for all that are still to be hidden.
    pub max_block: Option<usize>,
    /// Smallest ratio of a block's height to its width, in (0, 1]; the largest is its inverse.
    pub min_aspect: f64,
}

impl BlockMask {
    /// BEiT and data2vec, which hide 75 and 120 of 14 by 14 patches.
    pub const BEIT: Self = Self { min_block: 16, max_block: None, min_aspect: 0.3 };

    /// iBOT: blocks of at least a third of the grid's shorter side, squared.
    pub fn ibot((rows, columns): (usize, usize)) -> Self {
        let side = (rows.min(columns) / 3).max(1);
        Self { min_block: side * side, ..Self::BEIT }
    }

    /// DINOv2: blocks of at least 4 patches and at most half of the grid.
    pub fn dinov2((rows, columns): (usize, usize)) -> Self {
        Self { min_block: 4, max_block: Some(rows * columns / 2), ..Self::BEIT }
    }

    /// Hides about `target` patches, which need not be a whole number.
    ///
    /// # Errors
    /// If `target` is not in [0, the number of patches), or a setting is out of range.
    pub fn draw(&self, rng: &mut Rng, grid: (usize, usize), target: f64) -> Result<Vec<bool>> {
        let (rows, columns) = grid;
        if !(0.0..(rows * columns) as f64).contains(&target) {
            bail!("mask: {target} patches to hide are not in [0, {}) of the grid", rows * columns);
        }
        if self.min_block == 0 || !(self.min_aspect > 0.0 && self.min_aspect <= 1.0) {
            let Self { min_block, min_aspect, .. } = self;
            bail!(
                "mask: blocks of {min_block} patches must have at least 1, and the aspect {min_aspect} be in (0, 1]"
            );
        }
        let mut mask = vec![false; rows * columns];
        let mut hidden = 0;
        while (hidden as f64) < target {
            let left = (target - hidden as f64).min(self.max_block.map_or(f64::INFINITY, |most| most as f64));
            match (0..ATTEMPTS).find_map(|_| self.place(rng, &mut mask, grid, left)) {
                Some(added) => hidden += added,
                None => break,
            }
        }
        Ok(mask)
    }

    /// Draws one block, and hides it if it adds at most `left` patches; how many it added.
    fn place(&self, rng: &mut Rng, mask: &mut [bool], grid: (usize, usize), left: f64) -> Option<usize> {
        let (rows, columns) = grid;
        let area = uniform(rng, self.min_block as f64, left);
        let extreme = self.min_aspect.ln();
        let aspect = uniform(rng, extreme, -extreme).exp();
        let [height, width] = [area * aspect, area / aspect].map(|square| square.sqrt().round() as usize);
        if height >= rows || width >= columns {
            return None;
        }
        let (top, start) = (below(rng, rows - height + 1), below(rng, columns - width + 1));
        let block =
            || (top..top + height).flat_map(|row| (start..start + width).map(move |c| row * columns + c));
        let added = block().filter(|patch| !mask[*patch]).count();
        if added == 0 || added as f64 > left {
            return None;
        }
        block().for_each(|patch| mask[patch] = true);
        Some(added)
    }

    /// The masks of a batch as in DINOv2: `⌊share · images⌋` of the images have one, and the ratios of these are spread
    /// evenly between the two of `ratios`, one in each of as many equal parts; the others hide nothing.
    ///
    /// # Errors
    /// If `share` is not in [0, 1] or the ratios do not rise within [0, 1), or as [`BlockMask::draw`].
    pub fn draw_batch(
        &self,
        rng: &mut Rng,
        grid: (usize, usize),
        images: usize,
        share: f64,
        ratios: [f64; 2],
    ) -> Result<Vec<Vec<bool>>> {
        let [low, high] = ratios;
        let rise = low >= 0.0 && low <= high && high < 1.0;
        if !rise || !(0.0..=1.0).contains(&share) {
            bail!(
                "mask: a share of {share} of the images must be in [0, 1], and ratios {ratios:?} rise in [0, 1)"
            );
        }
        let patches = grid.0 * grid.1;
        let masked = (share * images as f64) as usize;
        let bound = |part: usize| low + (high - low) * part as f64 / masked as f64;
        let mut masks = vec![vec![false; patches]; images];
        for (part, mask) in masks.iter_mut().take(masked).enumerate() {
            let target = (patches as f64 * uniform(rng, bound(part), bound(part + 1))).floor();
            *mask = self.draw(rng, grid, target)?;
        }
        let order = permutation(rng, u32::try_from(images).unwrap_or(u32::MAX));
        Ok(order.into_iter().map(|image| std::mem::take(&mut masks[image as usize])).collect())
    }
}

/// One rectangle that stays visible, rolled around the grid's edges: the masking of CAPI (Darcet et al., 2025,
/// <https://arxiv.org/abs/2502.08769>), which has a ratio of 0.65 and aspects from 0.5 to 2.
///
/// Exactly `⌊ratio · patches⌋` are hidden; where the rectangle is too large its last patches are among them. The
/// logarithm of its ratio of height to width is uniform between those of `min_aspect` and of its inverse, as far as it
/// fits.
///
/// # Errors
/// If no patch stays visible, or `min_aspect` is not in (0, 1].
pub fn inverse_block_mask(
    rng: &mut Rng,
    grid: (usize, usize),
    ratio: f64,
    min_aspect: f64,
) -> Result<Vec<bool>> {
    let (rows, columns) = grid;
    let patches = rows * columns;
    if !(0.0..1.0).contains(&ratio) || patches == 0 || !(min_aspect > 0.0 && min_aspect <= 1.0) {
        bail!(
            "mask: a ratio of {ratio} of {patches} patches must be in [0, 1), and the aspect {min_aspect} in (0, 1]"
        );
    }
    let visible = patches - (ratio * patches as f64) as usize;
    let area = visible as f64;
    let least = min_aspect.max(area / (columns * columns) as f64).ln();
    let most = (1.0 / min_aspect).min((rows * rows) as f64 / area).ln();
    let aspect = uniform(rng, least, most).exp();
    // Rounding must not make it larger than the grid.
    let side = |square: f64, most: usize| ((square - 1e-9).sqrt().ceil() as usize).clamp(1, most);
    let (height, width) = (side(area * aspect, rows), side(area / aspect, columns));
    let [top, start] = [rows, columns].map(|side| below(rng, side));
    let mut mask = vec![true; patches];
    let block = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
    for (row, column) in block.take(visible) {
        mask[(top + row) % rows * columns + (start + column) % columns] = false;
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use ssl_nn::{Purpose, rng};

    use super::*;

    fn generator(image: u64) -> Rng {
        rng(7, Purpose::Mask, 0, image, 0)
    }

    fn count(mask: &[bool]) -> usize {
        mask.iter().filter(|hidden| **hidden).count()
    }

    #[test]
    fn blocks_never_hide_more_than_wanted_and_rarely_much_less() {
        for (blocks, grid, target) in [
            (BlockMask::BEIT, (14, 14), 75.0),
            (BlockMask::BEIT, (14, 14), 120.0),
            (BlockMask::dinov2((8, 8)), (8, 8), 25.6),
            (BlockMask::ibot((7, 7)), (7, 7), 19.6),
            (BlockMask { min_block: 4, ..BlockMask::BEIT }, (8, 12), 95.0),
        ] {
            let counts: Vec<usize> = (0..200)
                .map(|image| count(&blocks.draw(&mut generator(image), grid, target).unwrap()))
                .collect();
            assert!(counts.iter().all(|count| *count as f64 <= target), "{blocks:?} {target}");
            let mean = counts.iter().sum::<usize>() as f64 / 200.0;
            assert!(mean > 0.93 * target - 1.0, "{blocks:?}: {mean} of {target}");
        }
        assert_eq!(count(&BlockMask::BEIT.draw(&mut generator(0), (14, 14), 0.0).unwrap()), 0);
    }

    #[test]
    fn one_block_is_a_rectangle_within_its_aspects() {
        let blocks = BlockMask { min_block: 16, max_block: None, min_aspect: 0.5 };
        let mut whole = 0;
        for image in 0..100 {
            let mut mask = vec![false; 196];
            let Some(added) = blocks.place(&mut generator(image), &mut mask, (14, 14), 36.0) else {
                continue;
            };
            let patches: Vec<usize> = (0..196).filter(|patch| mask[*patch]).collect();
            let rows = 1 + patches[patches.len() - 1] / 14 - patches[0] / 14;
            let columns: Vec<usize> = patches.iter().map(|patch| patch % 14).collect();
            let columns = 1 + columns.iter().max().unwrap() - columns.iter().min().unwrap();
            assert_eq!((rows * columns, patches.len()), (added, added));
            assert!((3..=9).contains(&rows) && (3..=9).contains(&columns), "{rows} by {columns}");
            whole += 1;
        }
        assert!(whole > 50, "{whole}");
    }

    #[test]
    fn half_of_a_batch_is_masked_with_ratios_spread_evenly() {
        let masks =
            BlockMask::dinov2((14, 14)).draw_batch(&mut generator(1), (14, 14), 21, 0.5, [0.1, 0.5]).unwrap();
        let mut counts: Vec<usize> = masks.iter().map(|mask| count(mask)).collect();
        assert!(counts[..11].iter().any(|count| *count > 0) && counts[..11].contains(&0), "{counts:?}");
        counts.sort_unstable();
        assert_eq!(counts[..11], [0; 11]);
        for (part, count) in counts[11..].iter().enumerate() {
            let bound = |part: usize| 196.0 * (0.1 + 0.04 * part as f64);
            assert!((*count as f64) <= bound(part + 1) && *count as f64 > bound(part) - 4.0, "{counts:?}");
        }
    }

    #[test]
    fn what_stays_visible_is_one_rolled_rectangle_of_a_fixed_number_of_patches() {
        for (image, (rows, columns)) in (0..60).zip([(14, 14), (8, 8), (6, 10)].into_iter().cycle()) {
            let mask = inverse_block_mask(&mut generator(image), (rows, columns), 0.65, 0.5).unwrap();
            assert_eq!(count(&mask), (0.65 * (rows * columns) as f64) as usize);
            // Each row of the rectangle but the last is the same piece of a circle.
            let row = |r: usize| mask[r * columns..(r + 1) * columns].to_vec();
            let widest = (0..rows).min_by_key(|r| count(&row(*r))).unwrap();
            let odd: Vec<usize> =
                (0..rows).filter(|r| row(*r) != row(widest) && row(*r) != vec![true; columns]).collect();
            assert!(odd.len() <= 1, "{odd:?} {mask:?}");
            let starts =
                (0..columns).filter(|c| !row(widest)[*c] && row(widest)[(c + columns - 1) % columns]).count();
            assert!(starts <= 1);
        }
        let all = inverse_block_mask(&mut generator(0), (3, 3), 0.0, 0.5).unwrap();
        assert_eq!(count(&all), 0);
    }

    #[test]
    fn bad_settings_are_refused() {
        let error = |blocks: BlockMask, target| {
            blocks.draw(&mut generator(0), (4, 4), target).unwrap_err().to_string()
        };
        assert!(error(BlockMask::BEIT, 16.0).contains("16 patches to hide are not in [0, 16)"));
        assert!(error(BlockMask { min_block: 0, ..BlockMask::BEIT }, 4.0).contains("blocks of 0 patches"));
        assert!(
            error(BlockMask { min_aspect: 0.0, ..BlockMask::BEIT }, 4.0).contains("aspect 0 be in (0, 1]")
        );
        let batch = |share, ratios| {
            BlockMask::BEIT.draw_batch(&mut generator(0), (4, 4), 8, share, ratios).unwrap_err().to_string()
        };
        assert!(batch(1.5, [0.1, 0.5]).contains("a share of 1.5"));
        assert!(batch(0.5, [0.5, 0.1]).contains("ratios [0.5, 0.1]"));
        let error = inverse_block_mask(&mut generator(0), (4, 4), 1.0, 0.5).unwrap_err().to_string();
        assert!(error.contains("a ratio of 1 of 16 patches"), "{error}");
    }
}
