//! The embeddings of a labelled data set, computed once and kept.

use std::ops::Range;

use crate::{Error, Result};

/// Finite features of labelled samples: `(N, D)` with N ≥ 1 and D ≥ 1, row-major, and N labels.
///
/// # Example
/// ```
/// let features = ssl_eval::Features::new(vec![0.0, 1.0, 2.0, 3.0], 2, vec![7, 8])?;
/// assert_eq!((features.rows(), features.dim()), (2, 2));
/// assert_eq!(features.row(1), [2.0, 3.0]);
/// assert!(ssl_eval::Features::new(vec![0.0, f32::NAN], 2, vec![7]).is_err());
/// # Ok::<(), ssl_eval::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    data: Vec<f32>,
    dim: usize,
    labels: Vec<u32>,
}

impl Features {
    /// Features from `data`, row-major `(N, dim)`, and one label a row.
    ///
    /// # Errors
    /// If there is no row, `dim` is 0, `data` does not hold `labels.len() * dim` values, or one of them is not finite.
    pub fn new(data: Vec<f32>, dim: usize, labels: Vec<u32>) -> Result<Self> {
        if labels.is_empty() {
            return Err(Error::Empty);
        }
        if dim == 0 {
            return Err(Error::Config { field: "dim", value: dim.to_string(), allowed: "at least 1" });
        }
        check_size("number of values", data.len(), labels.len() * dim)?;
        if let Some(index) = data.iter().position(|value| !value.is_finite()) {
            let value = f64::from(data[index]);
            return Err(Error::NonFinite { row: index / dim, column: index % dim, value });
        }
        Ok(Self { data, dim, labels })
    }

    /// The number of samples, N.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// The number of features of a sample, D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All features, `(N, D)` row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The label of each row.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The D features of one sample.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.dim..(row + 1) * self.dim]
    }

    /// The same samples with some of their features, those of the range `columns`.
    ///
    /// # Errors
    /// If the range is empty or does not lie below [`dim`](Self::dim).
    pub fn columns(&self, columns: Range<usize>) -> Result<Self> {
        check_size("end of the columns", columns.end.min(self.dim), columns.end)?;
        let rows = self.data.chunks_exact(self.dim);
        let data = rows.flat_map(|row| row.get(columns.clone()).unwrap_or_default()).copied().collect();
        Self::new(data, columns.len(), self.labels.clone())
    }

    /// The samples of the given rows, in that order.
    pub(crate) fn select(&self, rows: &[usize]) -> Result<Self> {
        let data = rows.iter().flat_map(|&row| self.row(row)).copied().collect();
        let labels = rows.iter().map(|&row| self.labels[row]).collect();
        Self::new(data, self.dim, labels)
    }

    pub(crate) fn check_dim(&self, expected: usize) -> Result<()> {
        check_size("feature dimension", self.dim, expected)
    }

    pub(crate) fn check_labels(&self, num_classes: usize) -> Result<()> {
        match self.labels.iter().position(|&label| label as usize >= num_classes) {
            Some(row) => Err(Error::Label { row, label: self.labels[row], num_classes }),
            None => Ok(()),
        }
    }
}

pub(crate) fn check_size(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Size { what, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_must_agree() {
        assert!(matches!(Features::new(vec![], 3, vec![]), Err(Error::Empty)));
        assert!(matches!(Features::new(vec![], 0, vec![0]), Err(Error::Config { field: "dim", .. })));
        let error = Features::new(vec![1.0; 5], 3, vec![0, 1]).unwrap_err();
        assert_eq!(error.to_string(), "number of values is 5, expected 6");
    }

    #[test]
    fn non_finite_values_are_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Features::new(vec![0.0, 0.0, 0.0, value], 2, vec![0, 1]).unwrap_err();
            assert!(matches!(error, Error::NonFinite { row: 1, column: 1, .. }), "{error}");
        }
    }

    #[test]
    fn labels_are_checked_against_the_classes() {
        let features = Features::new(vec![0.0; 3], 1, vec![0, 2, 1]).unwrap();
        assert!(features.check_labels(3).is_ok());
        assert!(matches!(features.check_labels(2), Err(Error::Label { row: 1, label: 2, num_classes: 2 })));
    }

    #[test]
    fn selected_rows_keep_their_labels() {
        let features = Features::new(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2, vec![7, 8, 9]).unwrap();
        let selected = features.select(&[2, 0]).unwrap();
        assert_eq!(selected, Features::new(vec![4.0, 5.0, 0.0, 1.0], 2, vec![9, 7]).unwrap());
    }

    #[test]
    fn columns_are_cut_out_of_every_row() {
        let features = Features::new(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 3, vec![7, 8]).unwrap();
        assert_eq!(
            features.columns(1..3).unwrap(),
            Features::new(vec![1.0, 2.0, 4.0, 5.0], 2, vec![7, 8]).unwrap()
        );
        assert!(features.columns(2..4).is_err() && features.columns(1..1).is_err());
    }
}
