//! The Cholesky factorisation of a symmetric positive definite matrix.

use rayon::prelude::*;

/// Rows that are eliminated together, so that they stay in a cache while the rows below pass by.
const PANEL: usize = 64;

/// A lower triangular `L` with `L Lᵀ = A`.
#[derive(Debug)]
pub(crate) struct Cholesky {
    size: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factors `matrix`, `(size, size)` row-major, of which only the lower triangle is read. Pivots below `min_pivot`
    /// are raised to it, so the product stays positive definite when rounding has made `matrix` a little indefinite.
    pub(crate) fn factor(matrix: Vec<f64>, size: usize, min_pivot: f64) -> Self {
        let mut lower = matrix;
        for start in (0..size).step_by(PANEL) {
            let end = (start + PANEL).min(size);
            for i in start..end {
                let (above, row) = lower.split_at_mut(i * size);
                eliminate(above, size, start..i, row);
                let pivot = row[i] - dot(&row[..i], &row[..i]);
                row[i] = pivot.max(min_pivot).sqrt();
            }
            let (above, below) = lower.split_at_mut(end * size);
            below.par_chunks_exact_mut(size).for_each(|row| eliminate(above, size, start..end, row));
        }
        Self { size, lower }
    }

    /// The logarithm of the determinant of `A`.
    pub(crate) fn log_det(&self) -> f64 {
        2.0 * self.lower.iter().step_by(self.size + 1).map(|pivot| pivot.ln()).sum::<f64>()
    }

    /// Replaces `b` by the solution of `L x = b`.
    pub(crate) fn solve_lower(&self, b: &mut [f64]) {
        for i in 0..self.size {
            let row = &self.lower[i * self.size..][..=i];
            b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
        }
    }

    /// Replaces the right-hand side `b` by the solution of `A x = b`.
    pub(crate) fn solve(&self, b: &mut [f64]) {
        self.solve_lower(b);
        for i in (0..self.size).rev() {
            let row = &self.lower[i * self.size..][..=i];
            b[i] /= row[i];
            let x = b[i];
            b[..i].iter_mut().zip(row).for_each(|(b, l)| *b -= l * x);
        }
    }
}

/// Turns the given columns of `row` from entries of `A` into entries of `L`.
fn eliminate(above: &[f64], size: usize, columns: std::ops::Range<usize>, row: &mut [f64]) {
    for j in columns {
        let pivot_row = &above[j * size..][..=j];
        row[j] = (row[j] - dot(&row[..j], &pivot_row[..j])) / pivot_row[j];
    }
}

/// Eight running sums, which the compiler keeps in vector registers.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_of_a_small_matrix() {
        // [[4, 2], [2, 10]] = L Lᵀ with L = [[2, 0], [1, 3]].
        let cholesky = Cholesky::factor(vec![4.0, 2.0, 2.0, 10.0], 2, 0.0);
        assert_eq!([cholesky.lower[0], cholesky.lower[2], cholesky.lower[3]], [2.0, 1.0, 3.0]);
        let mut x = [8.0, 22.0];
        cholesky.solve(&mut x);
        assert_eq!(x, [1.0, 2.0]);
    }

    #[test]
    fn solves_beyond_one_panel() {
        let size = 2 * PANEL + 3;
        // Diagonally dominant, so positive definite.
        let entry = |i: usize, j: usize| if i == j { size as f64 } else { ((i + j) as f64).sin() };
        let matrix: Vec<f64> = (0..size * size).map(|index| entry(index / size, index % size)).collect();
        let expected: Vec<f64> = (0..size).map(|i| (i as f64).cos()).collect();
        let mut x: Vec<f64> = matrix.chunks(size).map(|row| dot(row, &expected)).collect();
        Cholesky::factor(matrix, size, 0.0).solve(&mut x);
        for (x, expected) in x.iter().zip(&expected) {
            assert!((x - expected).abs() < 1e-12, "{x} is not {expected}");
        }
    }

    #[test]
    fn a_singular_matrix_gets_a_pivot() {
        let mut x = [1.0, 1.0];
        Cholesky::factor(vec![1.0, 1.0, 1.0, 1.0], 2, 0.25).solve(&mut x);
        assert!(x.iter().all(|x| x.is_finite()), "{x:?}");
    }
}
