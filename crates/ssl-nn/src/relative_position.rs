//! A learned bias of the attention for each distance between two patches (Shaw et al., 2018; Bao et al., 2021, BEiT,
//! <https://arxiv.org/abs/2106.08254>, official code microsoft/unilm; Liu et al., 2021, Swin,
//! <https://arxiv.org/abs/2103.14030>).

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::graph::{gradient, node};
use crate::init::Init;
use crate::params::Scope;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// The table of biases of a grid of patches, with a class token as in BEiT or without one as in Swin.
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
    /// The row of the table for each query and key.
    rows: Arc<[u32]>,
    tokens: usize,
}

impl RelativePositionBias {
    /// For `grid` (rows, columns) of patches; creates `relative_position_bias_table`
    /// `((2·rows - 1)·(2·columns - 1) + 3, heads)`, all 0: a row for each distance, then those from the class token to
    /// a patch, from a patch to the class token, and from the class token to itself.
    ///
    /// # Errors
    /// If the grid has no patches, there are no heads, or the name is taken.
    pub fn new(grid: (usize, usize), heads: usize, scope: &Scope) -> Result<Self> {
        Self::of(grid, (heads, true), Init::Const(0.0), scope)
    }

    /// For a square window of `side` by `side` patches without a class token; creates `relative_position_bias_table`
    /// `((2·side - 1)², heads)`, normal with deviation 0.02.
    ///
    /// # Errors
    /// As [`RelativePositionBias::new`].
    pub fn of_window(side: usize, heads: usize, scope: &Scope) -> Result<Self> {
        Self::of((side, side), (heads, false), Init::Normal { std: 0.02 }, scope)
    }

    fn of(
        (rows, columns): (usize, usize),
        (heads, class_token): (usize, bool),
        init: Init,
        scope: &Scope,
    ) -> Result<Self> {
        if rows * columns * heads == 0 {
            bail!(
                "relative position bias: a grid of {rows}x{columns} patches and {heads} heads, at least 1 each"
            );
        }
        let distances = (2 * rows - 1) * (2 * columns - 1);
        let (of_class, before) = if class_token { (3, 1) } else { (0, 0) };
        let table = scope.trainable("relative_position_bias_table", (distances + of_class, heads), init)?;
        let tokens = before + rows * columns;
        let row = |i: usize| {
            let row = match ((i / tokens).checked_sub(before), (i % tokens).checked_sub(before)) {
                (None, None) => distances + 2,
                (Some(_), None) => distances + 1,
                (None, Some(_)) => distances,
                (Some(query), Some(key)) => {
                    let at = |patch: usize| (patch / columns, patch % columns);
                    let ((y, x), (key_y, key_x)) = (at(query), at(key));
                    (y + rows - 1 - key_y) * (2 * columns - 1) + x + columns - 1 - key_x
                }
            };
            row as u32
        };
        Ok(Self { table, rows: (0..tokens * tokens).map(row).collect(), tokens })
    }

    /// What is added to the scores: `(heads, N, N)` for the `N` tokens of the grid, the class token first if there is one.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn bias(&self) -> Result<Tensor> {
        if !self.table.device().is_cpu() {
            let rows = Tensor::new(&*self.rows, self.table.device())?;
            let bias = self.table.index_select(&rows, 0)?; // (N·N, heads)
            return bias.t()?.contiguous()?.reshape(((), self.tokens, self.tokens)); // (heads, N, N)
        }
        dispatch!(self.table.dtype(), "relative position bias", T => self.on_cpu::<T>())
    }

    /// One operation, whose gradient of the table is summed by itself before it meets others.
    fn on_cpu<T: Real>(&self) -> Result<Tensor> {
        let table = self.table.contiguous()?;
        let (distances, heads) = table.dims2()?;
        let of_head = |table: &[T], head: usize| {
            self.rows.iter().map(|row| table[*row as usize * heads + head]).collect::<Vec<T>>()
        };
        let bias = {
            let table = reader(&table);
            let table = table.slice::<T>()?;
            (0..heads).flat_map(|head| of_head(table, head)).collect::<Vec<T>>()
        };
        let (rows, kept) = (self.rows.clone(), table.clone());
        node("relative position bias", &[&table], (bias, (heads, self.tokens, self.tokens)), move |_, dy| {
            let mut sum = vec![T::ZERO; distances * heads];
            for (head, dy) in reader(dy).slice::<T>()?.chunks_exact(rows.len()).enumerate() {
                for (row, dy) in rows.iter().zip(dy) {
                    sum[*row as usize * heads + head] += *dy;
                }
            }
            Ok(vec![gradient(sum, &kept)?])
        })
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
        let window = RelativePositionBias::of_window(2, 2, &params.root().pp("window")).unwrap();
        let table = params.get("window.relative_position_bias_table").unwrap();
        assert_eq!(table.dims(), [9, 2]);
        let numbered = Tensor::arange(0f64, 18.0, &Device::Cpu).unwrap().reshape((9, 2)).unwrap();
        table.set(&numbered).unwrap();
        // From a token to the one below it on the left the row is 0 of -1, 0, 1 and the column 2.
        assert_eq!(window.bias().unwrap().to_vec3::<f64>().unwrap()[0][1], [10., 8., 4., 2.]);
    }
}
