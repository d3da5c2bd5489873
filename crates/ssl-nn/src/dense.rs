//! Products of rows with the weight of a linear layer, on the calling thread and over slices.

use crate::convolve::right_rows;
use crate::kernel::{Left, Run, multiply, vectorised};
use crate::pack::{Packed, Strided};
use crate::storage::Element;

/// A weight `(outputs, inputs)` as the right operand of a product.
pub(crate) struct Operand<T> {
    packed: Packed<T>,
    k: usize,
    n: usize,
}

impl<T: Element> Operand<T> {
    /// For `x Wᵀ`: `(rows, inputs)` to `(rows, outputs)`.
    pub(crate) fn forward(weight: &[T], inputs: usize) -> Self {
        let n = weight.len() / inputs.max(1);
        let from = Strided { data: weight, taps: 1, rows: inputs, start: |_, _| 0, row: 1, column: inputs };
        Self { packed: Packed::strided(1, n, &from), k: inputs, n }
    }

    /// For `dy W`: `(rows, outputs)` to `(rows, inputs)`.
    pub(crate) fn backward(weight: &[T], inputs: usize) -> Self {
        let k = weight.len() / inputs.max(1);
        let from = Strided { data: weight, taps: 1, rows: k, start: |_, _| 0, row: inputs, column: 1 };
        Self { packed: Packed::strided(1, inputs, &from), k, n: inputs }
    }

    /// `y = x · operand`.
    pub(crate) fn apply(&self, x: &[T], y: &mut [T]) {
        let rows = x.len() / self.k.max(1);
        let a = Left { data: x, row: self.k, col: 1 };
        let runs = (&[Run { a: 0, b: 0 }][..], self.k);
        multiply((rows, self.n), runs, a, self.packed.right(0), (y, self.n), false);
    }
}

/// `dw += dyᵀ x`, the gradient of a weight `(outputs, inputs)`; `packed` is scratch.
pub(crate) fn add_weight_gradient<T: Element>(
    (dy, outputs): (&[T], usize),
    (x, inputs): (&[T], usize),
    dw: &mut [T],
    packed: &mut Vec<T>,
) {
    let rows = dy.len() / outputs.max(1);
    let (b, run) = right_rows(x, inputs, rows, inputs, packed);
    // Elements of `dy` that are used together lie a row apart, a distance at which they push each other out of the
    // first-level cache. So a few columns at a time are moved together.
    let mut together = vec![T::ZERO; rows * COLUMNS.min(outputs)];
    for (first, dw) in (0..outputs).step_by(COLUMNS).zip(dw.chunks_mut((COLUMNS * inputs).max(1))) {
        let columns = COLUMNS.min(outputs - first);
        for (to, dy) in together.chunks_exact_mut(columns).zip(dy.chunks_exact(outputs)) {
            to.copy_from_slice(&dy[first..first + columns]);
        }
        let a = Left { data: &together, row: 1, col: columns };
        multiply((columns, inputs), (&[run], rows), a, b, (dw, inputs), true);
    }
}

/// Columns of `dy` that are moved together: four of the largest tiles.
const COLUMNS: usize = 56;

/// Adds `bias` to every row.
pub(crate) fn add_bias<T: Element>(rows: &mut [T], bias: &[T]) {
    vectorised!({
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
        }
    });
}

/// `sums += Σ rows`. The rows are added up first, so that a long sum is one of a few short ones.
pub(crate) fn add_columns<T: Element>(rows: &[T], sums: &mut [T]) {
    let mut total = vec![T::ZERO; sums.len()];
    vectorised!({
        for row in rows.chunks_exact(total.len()) {
            total.iter_mut().zip(row).for_each(|(sum, v)| *sum += *v);
        }
        sums.iter_mut().zip(&total).for_each(|(sum, v)| *sum += *v);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn the_three_products_of_a_linear_layer_agree_with_plain_sums() {
        for (rows, inputs, outputs) in [(1, 1, 1), (5, 16, 8), (15, 7, 33), (29, 40, 16)] {
            let (x, w) = (values(rows * inputs, 1), values(outputs * inputs, 2));
            let dy = values(rows * outputs, 3);
            let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
            let mut dw = vec![1.0; w.len()];
            Operand::forward(&w, inputs).apply(&x, &mut y);
            Operand::backward(&w, inputs).apply(&dy, &mut dx);
            add_weight_gradient((&dy, outputs), (&x, inputs), &mut dw, &mut Vec::new());
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12 * (1.0 + b.abs()), "{a} is not {b}");
            for (r, o) in (0..rows).flat_map(|r| (0..outputs).map(move |o| (r, o))) {
                close(y[r * outputs + o], (0..inputs).map(|i| x[r * inputs + i] * w[o * inputs + i]).sum());
            }
            for (r, i) in (0..rows).flat_map(|r| (0..inputs).map(move |i| (r, i))) {
                close(
                    dx[r * inputs + i],
                    (0..outputs).map(|o| dy[r * outputs + o] * w[o * inputs + i]).sum(),
                );
            }
            for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                let sum: f64 = (0..rows).map(|r| dy[r * outputs + o] * x[r * inputs + i]).sum();
                close(dw[o * inputs + i], 1.0 + sum);
            }
        }
    }

    #[test]
    fn bias_and_column_sums_go_over_all_rows() {
        let mut rows = [1.0, 2.0, 3.0, 4.0];
        add_bias(&mut rows, &[10.0, 20.0]);
        let mut sums = [1.0, 1.0];
        add_columns(&rows, &mut sums);
        assert_eq!((rows, sums), ([11.0, 22.0, 13.0, 24.0], [25.0, 47.0]));
    }
}
