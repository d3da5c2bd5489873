//! A learned bias of the attention for each distance between two patches (Shaw et al., 2018; Bao et al., 2021, BEiT,
//! <https://arxiv.org/abs/2106.08254>, official code microsoft/unilm).

use candle_core::{Result, Tensor, bail};

use crate::init::Init;
use crate::params::Scope;

/// The table of biases of a grid of patches with a class token, as in BEiT.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{AttentionOptions, Params, RelativePositionBias, attention};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let bias = RelativePositionBias::new((2, 3), 4, &params.root())?.bias()?;
/// assert_eq!(bias.dims(), [4, 7, 7]);
/// let qkv = Tensor::zeros((1, 7, 24), DType::F32, &Device::Cpu)?;
/// attention(&qkv, 4, &AttentionOptions { bias: Some(&bias), ..Default::default() })?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RelativePositionBias {
    table: Tensor,
    index: Tensor,
    tokens: usize,
}

impl RelativePositionBias {
    /// For `grid` (rows, columns) of patches; creates `relative_position_bias_table`
    /// `((2·rows - 1)·(2·columns - 1) + 3, heads)`, all 0: a row for each distance, then those from the class token to
    /// a patch, from a patch to the class token, and from the class token to itself.
    ///
    /// # Errors
    /// If the grid has no patches, there are no heads, or the name is taken.
    pub fn new((rows, columns): (usize, usize), heads: usize, scope: &Scope) -> Result<Self> {
        if rows * columns * heads == 0 {
            bail!(
                "relative position bias: a grid of {rows}x{columns} patches and {heads} heads, at least 1 each"
            );
        }
        let distances = (2 * rows - 1) * (2 * columns - 1);
        let table =
            scope.trainable("relative_position_bias_table", (distances + 3, heads), Init::Const(0.0))?;
        let tokens = 1 + rows * columns;
        let index = (0..tokens * tokens).map(|i| {
            let row = match (i / tokens, i % tokens) {
                (0, 0) => distances + 2,
                (_, 0) => distances + 1,
                (0, _) => distances,
                (query, key) => {
                    let at = |patch: usize| (patch / columns, patch % columns);
                    let ((y, x), (key_y, key_x)) = (at(query - 1), at(key - 1));
                    (y + rows - 1 - key_y) * (2 * columns - 1) + x + columns - 1 - key_x
                }
            };
            row as u32
        });
        let index = Tensor::from_iter(index, table.device())?;
        Ok(Self { table, index, tokens })
    }

    /// What is added to the scores: `(heads, N, N)` for the `N` tokens of the grid, the class token first.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn bias(&self) -> Result<Tensor> {
        let bias = self.table.index_select(&self.index, 0)?; // (N·N, heads)
        bias.t()?.contiguous()?.reshape(((), self.tokens, self.tokens)) // (heads, N, N)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn equal_distances_share_a_row_of_the_table() {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let layer = RelativePositionBias::new((2, 3), 2, &params.root()).unwrap();
        let table = params.get("relative_position_bias_table").unwrap();
        assert_eq!(table.dims(), [3 * 5 + 3, 2]);
        let numbered: Vec<f64> = (0..36).map(|i| f64::from(i / 2 + 100 * (i % 2))).collect();
        table.set(&Tensor::from_vec(numbered, (18, 2), &Device::Cpu).unwrap()).unwrap();
        let bias = layer.bias().unwrap().to_vec3::<f64>().unwrap();
        assert_eq!((bias[0][0][0], bias[0][0][4], bias[0][4][0]), (17.0, 15.0, 16.0));
        for (q, k) in (0..6).flat_map(|q| (0..6).map(move |k| (q, k))) {
            let (dy, dx) = (q / 3 - k / 3, q % 3 - k % 3);
            let row = f64::from((dy + 1) * 5 + dx + 2);
            let (q, k) = (q as usize + 1, k as usize + 1);
            assert_eq!((bias[0][q][k], bias[1][q][k]), (row, row + 100.0));
        }
        let grads = layer.bias().unwrap().sum_all().unwrap().backward().unwrap();
        let counts = grads.get(&table).unwrap().to_vec2::<f64>().unwrap();
        // Six patches have distance 0, and each sees the class token and is seen by it.
        assert_eq!((counts[7][0], counts[15][0], counts[16][1], counts[17][1]), (6.0, 6.0, 6.0, 1.0));
        assert!(RelativePositionBias::new((0, 3), 2, &params.root().pp("other")).is_err());
    }
}
