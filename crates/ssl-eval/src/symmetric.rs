//! Eigenvalues and eigenvectors of symmetric matrices, by nalgebra.

use nalgebra::{DMatrix, SymmetricEigen};

use crate::{Error, Result};

/// Rounds of the iteration, more than any matrix has needed: it takes some two for each eigenvalue.
const MAX_ROUNDS: usize = 1_000_000;

/// The eigenvalues of a symmetric matrix in descending order, with their vectors.
#[derive(Debug)]
pub(crate) struct Eigen {
    /// `λ₁ ≥ λ₂ ≥ …`.
    pub(crate) values: Vec<f64>,
    /// Unit vectors, one after the other: `(size, size)` row-major.
    pub(crate) vectors: Vec<f64>,
}

impl Eigen {
    /// Those of `matrix`, `(size, size)` row-major, of which one triangle is read.
    pub(crate) fn of(matrix: &[f64], size: usize) -> Result<Self> {
        check_finite(matrix, size)?;
        let matrix = DMatrix::from_row_slice(size, size, matrix);
        let eigen =
            SymmetricEigen::try_new(matrix, f64::EPSILON, MAX_ROUNDS).ok_or(Error::Eigenvalues { size })?;
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
        let values = order.iter().map(|at| eigen.eigenvalues[*at]).collect();
        let vectors =
            order.iter().flat_map(|at| eigen.eigenvectors.column(*at).iter().copied().collect::<Vec<_>>());
        Ok(Self { values, vectors: vectors.collect() })
    }
}

/// The eigenvalues of `matrix`, `(size, size)` row-major and symmetric, in descending order.
pub(crate) fn eigenvalues(matrix: &[f64], size: usize) -> Result<Vec<f64>> {
    check_finite(matrix, size)?;
    let values = DMatrix::from_row_slice(size, size, matrix).symmetric_eigenvalues();
    let mut values: Vec<f64> = values.iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(values)
}

fn check_finite(matrix: &[f64], size: usize) -> Result<()> {
    match matrix.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::NonFinite { row: at / size, column: at % size, value: matrix[at] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_vectors_of_a_known_matrix() {
        // Q diag(5, 2, −1) Qᵀ with Q a turn of the first two axes by the angle whose cosine is 0.6.
        let matrix = [0.36 * 5.0 + 0.64 * 2.0, 0.48 * 3.0, 0.0, 0.48 * 3.0, 0.64 * 5.0 + 0.36 * 2.0, 0.0];
        let matrix = [&matrix[..], &[0.0, 0.0, -1.0]].concat();
        let eigen = Eigen::of(&matrix, 3).unwrap();
        for values in [&eigen.values, &eigenvalues(&matrix, 3).unwrap()] {
            assert!(values.iter().zip([5.0, 2.0, -1.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{values:?}");
        }
        for (vector, expected) in eigen.vectors.chunks_exact(3).zip([[0.6, 0.8, 0.0], [0.8, -0.6, 0.0]]) {
            let cosine: f64 = vector.iter().zip(expected).map(|(a, b)| a * b).sum();
            assert!((cosine.abs() - 1.0).abs() < 1e-12, "{vector:?}");
        }
    }

    #[test]
    fn a_matrix_that_is_not_finite_is_refused() {
        assert!(matches!(
            eigenvalues(&[1.0, f64::NAN, 0.0, 1.0], 2),
            Err(Error::NonFinite { column: 1, .. })
        ));
    }
}
