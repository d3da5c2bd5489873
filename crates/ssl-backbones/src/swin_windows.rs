//! Which tokens of a grid see each other in a Swin Transformer, and in which order they lie.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Added to the score of two tokens that lie in one window only since the grid was rolled: the official code's.
const APART: f32 = -100.0;

/// A grid cut into windows, perhaps after rolling it up and to the left.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    /// The numbers of the tokens, counted row by row, window by window.
    pub(crate) order: Vec<u32>,
    /// Windows of an image.
    pub(crate) count: usize,
    /// Tokens of a window.
    pub(crate) tokens: usize,
    /// For each place in `order`, what side of the grid's edges it came from; none where nothing was rolled.
    sides: Option<Vec<u8>>,
}

impl Windows {
    /// Windows of `side` by `side` tokens; `shifted` by half of them along each side of the grid that has several.
    ///
    /// # Errors
    /// If the grid does not consist of whole windows.
    pub(crate) fn new((rows, columns): (usize, usize), side: usize, shifted: bool) -> Result<Self> {
        if side == 0 || !rows.is_multiple_of(side) || !columns.is_multiple_of(side) || rows * columns == 0 {
            bail!("swin transformer: windows of {side} by {side} do not divide {rows} by {columns} tokens");
        }
        let shift = |length: usize| if shifted && length > side { side / 2 } else { 0 };
        let (down, right) = (shift(rows), shift(columns));
        let (tokens, across) = (side * side, columns / side);
        let count = rows * columns / tokens;
        // Rows and columns of the rolled grid.
        let places = || {
            (0..rows * columns).map(|i| {
                let (window, within) = (i / tokens, i % tokens);
                (window / across * side + within / side, window % across * side + within % side)
            })
        };
        let order = places().map(|(y, x)| ((y + down) % rows * columns + (x + right) % columns) as u32);
        let from = |(y, x)| u8::from(y + down >= rows) + 2 * u8::from(x + right >= columns);
        let sides = (down + right > 0).then(|| places().map(from).collect());
        Ok(Self { order: order.collect(), count, tokens, sides })
    }

    /// `(count, 1, tokens, tokens)`, 0 for two tokens that may see each other; `None` where all may.
    pub(crate) fn mask(&self, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let Some(sides) = &self.sides else { return Ok(None) };
        let of_window = |sides: &[u8]| {
            let pairs = sides.iter().flat_map(|a| sides.iter().map(move |b| a == b));
            pairs.map(|together| if together { 0.0 } else { APART }).collect::<Vec<f32>>()
        };
        let mask: Vec<f32> = sides.chunks_exact(self.tokens).flat_map(of_window).collect();
        let mask = Tensor::from_vec(mask, (self.count, 1, self.tokens, self.tokens), device)?;
        mask.to_dtype(dtype).map(Some)
    }
}

/// The numbers of the tokens of a grid, four that become one beside each other: first its left column from above, then
/// its right one.
///
/// # Errors
/// If a side is odd.
pub(crate) fn quads((rows, columns): (usize, usize)) -> Result<Vec<u32>> {
    if !rows.is_multiple_of(2) || !columns.is_multiple_of(2) {
        bail!("swin transformer: {rows} by {columns} tokens cannot be joined four by four");
    }
    let quad = |i: usize| {
        let (y, x) = (2 * (i / (columns / 2)), 2 * (i % (columns / 2)));
        [(y, x), (y + 1, x), (y, x + 1), (y + 1, x + 1)].map(|(y, x)| (y * columns + x) as u32)
    };
    Ok((0..rows * columns / 4).flat_map(quad).collect())
}

/// The order in which tokens that lie in the order `from` must be taken to lie in the order `to`.
pub(crate) fn change(from: &[u32], to: &[u32]) -> Vec<u32> {
    let mut places = vec![0; from.len()];
    (0u32..).zip(from).for_each(|(place, token)| places[*token as usize] = place);
    to.iter().map(|token| places[*token as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_row_by_row_and_shifted_ones_wrap_around() {
        let plain = Windows::new((4, 4), 2, false).unwrap();
        assert_eq!(plain.order, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert!(plain.mask(DType::F32, &Device::Cpu).unwrap().is_none());
        let shifted = Windows::new((4, 4), 2, true).unwrap();
        assert_eq!(shifted.order, [5, 6, 9, 10, 7, 4, 11, 8, 13, 14, 1, 2, 15, 12, 3, 0]);
        let mask = shifted.mask(DType::F32, &Device::Cpu).unwrap().unwrap().squeeze(1).unwrap();
        let mask = mask.to_vec3::<f32>().unwrap();
        assert_eq!(mask[0], [[0.0; 4]; 4]);
        // Left and right, above and below, and all four apart.
        assert_eq!(mask[1][0], [0., -100., 0., -100.]);
        assert_eq!(mask[2][0], [0., 0., -100., -100.]);
        assert_eq!(mask[3][0], [0., -100., -100., -100.]);
    }

    #[test]
    fn a_side_that_is_one_window_is_not_shifted() {
        let wide = Windows::new((2, 4), 2, true).unwrap();
        assert_eq!(wide.order, [1, 2, 5, 6, 3, 0, 7, 4]);
        let one = Windows::new((2, 2), 2, true).unwrap();
        assert_eq!(one.order, [0, 1, 2, 3]);
        assert!(one.mask(DType::F32, &Device::Cpu).unwrap().is_none());
    }

    #[test]
    fn four_tokens_are_joined_column_by_column() {
        assert_eq!(quads((2, 4)).unwrap(), [0, 4, 1, 5, 2, 6, 3, 7]);
        assert!(quads((3, 4)).unwrap_err().to_string().contains("3 by 4 tokens cannot be joined"));
        let error = Windows::new((4, 6), 4, false).unwrap_err().to_string();
        assert!(error.contains("windows of 4 by 4 do not divide 4 by 6 tokens"), "{error}");
    }

    #[test]
    fn a_change_of_order_leads_from_one_to_the_other() {
        let (from, to) = (quads((4, 4)).unwrap(), Windows::new((4, 4), 2, true).unwrap().order);
        let taken: Vec<u32> = change(&from, &to).iter().map(|place| from[*place as usize]).collect();
        assert_eq!(taken, to);
    }
}
