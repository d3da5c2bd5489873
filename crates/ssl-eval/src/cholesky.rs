//! The Cholesky factorisation of a symmetric positive definite matrix.

use rayon::prelude::*;

/// A pivot that keeps less than this part of its diagonal entry is rounding: the column depends on those before it.
const DEPENDENT: f64 = 1e-12;

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

    /// Factors a matrix that must have an inverse; `None` if it has none, or none that rounding leaves.
    pub(crate) fn definite(matrix: Vec<f64>, size: usize) -> Option<Self> {
        let diagonal: Vec<f64> = matrix.iter().step_by(size + 1).copied().collect();
        let factor = Self::factor(matrix, size, f64::MIN_POSITIVE);
        let has_inverse = |(pivot, entry)| pivot > DEPENDENT * entry && entry > 0.0;
        let definite = factor.pivots().zip(diagonal).all(has_inverse);
        definite.then_some(factor)
    }

    /// The logarithm of the determinant of `A`.
    pub(crate) fn log_det(&self) -> f64 {
        self.pivots().map(f64::ln).sum()
    }

    /// The squared diagonal of `L`.
    fn pivots(&self) -> impl Iterator<Item = f64> {
        self.lower.iter().step_by(self.size + 1).map(|root| root * root)
    }

    /// Replaces `b` by `L⁻¹ b`: vectors of covariance `A` get the identity.
    pub(crate) fn whiten(&self, b: &mut [f64]) {
        for i in 0..self.size {
            let row = &self.lower[i * self.size..][..=i];
            b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
        }
    }

    /// Replaces `b` by `L⁻ᵀ b`.
    pub(crate) fn whiten_transposed(&self, b: &mut [f64]) {
        for i in (0..self.size).rev() {
            let row = &self.lower[i * self.size..][..=i];
            b[i] /= row[i];
            let x = b[i];
            b[..i].iter_mut().zip(row).for_each(|(b, l)| *b -= l * x);
        }
    }

    /// Replaces the right-hand side `b` by the solution of `A x = b`.
    pub(crate) fn solve(&self, b: &mut [f64]) {
        self.whiten(b);
        self.whiten_transposed(b);
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
    fn a_determinant_needs_an_inverse() {
        let log_det =
            |matrix: [f64; 4]| Cholesky::definite(matrix.to_vec(), 2).map(|factor| factor.log_det());
        assert!((log_det([4.0, 2.0, 2.0, 10.0]).unwrap() - 36f64.ln()).abs() < 1e-12);
        // However different the scales are.
        assert!((log_det([1e-20, 0.0, 0.0, 1e20]).unwrap()).abs() < 1e-12);
        for singular in [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 2.0, 1.0], [0.0; 4]] {
            assert!(log_det(singular).is_none(), "{singular:?}");
        }
    }

    #[test]
    fn a_singular_matrix_gets_a_pivot() {
        let mut x = [1.0, 1.0];
        Cholesky::factor(vec![1.0, 1.0, 1.0, 1.0], 2, 0.25).solve(&mut x);
        assert!(x.iter().all(|x| x.is_finite()), "{x:?}");
    }
}
