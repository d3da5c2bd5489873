//! Blocks of patches that are predicted, each by itself, from one large block around them.

use candle_core::{Result, bail};
use ssl_nn::Rng;

use super::{below, uniform};

/// Draws of a context block before it may overlap one target more.
const TRIES: usize = 20;

/// A large context and several targets in each image: the masking of I-JEPA (Assran et al., 2023,
/// <https://arxiv.org/abs/2301.08243>, appendix A). The defaults are the paper's.
///
/// Sizes are drawn once for a batch, places for each image. Targets may overlap each other; the context is what they
/// leave of its block. A block that leaves too little is drawn again, after twenty times with one target fewer taken
/// away. So that a batch is dense, all lists of a kind are cut to the length of the shortest, and the last patches fall
/// away.
///
/// Scale and aspect of the targets are independent here, where the official code computes both from one number, and a
/// block may lie at the grid's lower and right edges, which the official code leaves out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiBlockMask {
    /// Number of targets of each image, at least 1.
    pub targets: usize,
    /// Share of the patches in a target, drawn between these, in (0, 1].
    pub target_scale: [f64; 2],
    /// Ratio of a target's height to its width, drawn between these, above 0.
    pub target_aspect: [f64; 2],
    /// Share of the patches in the context's square block, drawn between these, in (0, 1].
    pub context_scale: [f64; 2],
    /// A context has more patches than this.
    pub min_context: usize,
}

impl Default for MultiBlockMask {
    fn default() -> Self {
        Self {
            targets: 4,
            target_scale: [0.15, 0.2],
            target_aspect: [0.75, 1.5],
            context_scale: [0.85, 1.0],
            min_context: 10,
        }
    }
}

/// The patches of the context and of the targets of every image of a batch, rising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiBlocks {
    /// For each image as many patches.
    pub context: Vec<Vec<u32>>,
    /// For each image the targets, all of as many patches.
    pub targets: Vec<Vec<Vec<u32>>>,
}

impl MultiBlockMask {
    /// Draws the sizes from `sizes` and the places of each image from its own generator.
    ///
    /// # Errors
    /// If a setting is out of range or the grid has not more than `min_context` patches in any context.
    pub fn draw(
        &self,
        sizes: &mut Rng,
        images: impl IntoIterator<Item = Rng>,
        grid: (usize, usize),
    ) -> Result<MultiBlocks> {
        self.check(grid)?;
        let [low, high] = self.target_scale;
        let scale = uniform(sizes, low, high);
        let [low, high] = self.target_aspect;
        let target = size(grid, scale, uniform(sizes, low, high));
        let [low, high] = self.context_scale;
        let context = size(grid, uniform(sizes, low, high), 1.0);
        if context.0 * context.1 <= self.min_context {
            bail!(
                "mask: a context of {} by {} patches has not more than {}",
                context.0,
                context.1,
                self.min_context
            );
        }
        let mut drawn = MultiBlocks { context: vec![], targets: vec![] };
        for mut rng in images {
            let targets: Vec<_> = (0..self.targets).map(|_| place(&mut rng, grid, target)).collect();
            drawn.context.push(self.context(&mut rng, grid, context, &targets));
            drawn.targets.push(targets);
        }
        let shortest = drawn.context.iter().map(Vec::len).min().unwrap_or(0);
        drawn.context.iter_mut().for_each(|patches| patches.truncate(shortest));
        Ok(drawn)
    }

    /// Patches of the smallest square that contexts are cut from, `None` for a grid that is too small for any.
    pub(crate) fn smallest_context(&self, grid: (usize, usize)) -> Option<usize> {
        let (rows, columns) = (grid.0 > 1 && grid.1 > 1).then(|| size(grid, self.context_scale[0], 1.0))?;
        Some(rows * columns)
    }

    /// A context without the targets, or without the first of them if they leave too little of every block drawn.
    fn context(
        &self,
        rng: &mut Rng,
        grid: (usize, usize),
        size: (usize, usize),
        targets: &[Vec<u32>],
    ) -> Vec<u32> {
        for avoided in (1..=targets.len()).rev() {
            for _ in 0..TRIES {
                let mut block = place(rng, grid, size);
                block.retain(|patch| !targets[..avoided].iter().any(|target| target.contains(patch)));
                if block.len() > self.min_context {
                    return block;
                }
            }
        }
        place(rng, grid, size)
    }

    fn check(&self, grid: (usize, usize)) -> Result<()> {
        let within = |[low, high]: [f64; 2], most: f64| 0.0 < low && low <= high && high <= most;
        let Self { targets, target_scale, target_aspect, context_scale, .. } = *self;
        let scales = within(target_scale, 1.0) && within(context_scale, 1.0);
        if targets == 0 || !scales || !within(target_aspect, 1e6) || grid.0 < 2 || grid.1 < 2 {
            bail!("mask: {self:?} is out of range, or the grid {grid:?} below 2 by 2");
        }
        Ok(())
    }
}

/// Rows and columns of a block with this share of the grid and this ratio of both, smaller than the grid.
fn size((rows, columns): (usize, usize), scale: f64, aspect: f64) -> (usize, usize) {
    let area = (scale * (rows * columns) as f64).floor();
    let side = |square: f64, side: usize| (square.sqrt().round() as usize).clamp(1, side - 1);
    (side(area * aspect, rows), side(area / aspect, columns))
}

/// The patches of a block of this size at a uniform place.
fn place(rng: &mut Rng, (rows, columns): (usize, usize), (height, width): (usize, usize)) -> Vec<u32> {
    let (top, start) = (below(rng, rows - height + 1), below(rng, columns - width + 1));
    (top..top + height)
        .flat_map(|row| (start..start + width).map(move |c| (row * columns + c) as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use ssl_nn::{Purpose, rng};

    use super::*;

    fn draw(masks: &MultiBlockMask, step: u64, images: u64, grid: (usize, usize)) -> Result<MultiBlocks> {
        let generator = |image: u64| rng(9, Purpose::Mask, step, image, 0);
        masks.draw(&mut generator(u64::MAX), (0..images).map(generator), grid)
    }

    #[test]
    fn targets_are_rectangles_of_one_size_and_the_context_avoids_them() {
        for step in 0..30 {
            let drawn = draw(&MultiBlockMask::default(), step, 6, (14, 14)).unwrap();
            let length = drawn.context[0].len();
            assert!(length > 10);
            let area = drawn.targets[0][0].len();
            // 0.15 to 0.2 of 196 patches, rounded to whole rows and columns.
            assert!((24..=44).contains(&area), "{area}");
            for (context, targets) in drawn.context.iter().zip(&drawn.targets) {
                assert_eq!((context.len(), targets.len()), (length, 4));
                assert!(context.windows(2).all(|pair| pair[0] < pair[1]));
                for target in targets {
                    let columns = target.iter().map(|patch| patch % 14);
                    let width = 1 + columns.clone().max().unwrap() - columns.min().unwrap();
                    let height = 1 + target[area - 1] / 14 - target[0] / 14;
                    assert_eq!((height * width) as usize, area);
                    assert_eq!(target.len(), area);
                    assert!(context.iter().all(|patch| !target.contains(patch)));
                }
            }
        }
        assert_eq!(
            draw(&MultiBlockMask::default(), 1, 3, (8, 8)).unwrap(),
            draw(&MultiBlockMask::default(), 1, 3, (8, 8)).unwrap()
        );
    }

    #[test]
    fn a_context_that_targets_cover_gives_way() {
        // Four targets of 2 by 2 leave nothing of most contexts of 2 by 2 in a grid of 3 by 3.
        let masks =
            MultiBlockMask { target_scale: [0.45, 0.5], target_aspect: [1.0, 1.0], ..Default::default() };
        let small = MultiBlockMask { context_scale: [0.45, 0.5], min_context: 3, ..masks };
        let drawn = draw(&small, 0, 8, (3, 3)).unwrap();
        assert!(drawn.context.iter().all(|context| context.len() == 4));
    }

    #[test]
    fn bad_settings_are_refused() {
        let default = MultiBlockMask::default;
        for masks in [
            MultiBlockMask { targets: 0, ..default() },
            MultiBlockMask { target_scale: [0.2, 0.15], ..default() },
            MultiBlockMask { target_aspect: [0.0, 1.0], ..default() },
            MultiBlockMask { context_scale: [0.5, 1.5], ..default() },
        ] {
            assert!(draw(&masks, 0, 2, (8, 8)).unwrap_err().to_string().contains("out of range"));
        }
        let error = draw(&default(), 0, 2, (3, 3)).unwrap_err().to_string();
        assert!(error.contains("a context of 2 by 2 patches has not more than 10"), "{error}");
    }
}
