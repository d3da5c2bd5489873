//! Rows of numbers in `f64`, whose values are known to be finite.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::features::check_size;
use crate::{Error, Result};

/// Rows whose products are computed together, how many such parts are held at once, and columns of a block: blocks below
/// the diagonal of the symmetric result are not computed.
const PRODUCT_ROWS: usize = 4096;
const PRODUCT_PARTS: usize = 8;
const PRODUCT_COLUMNS: usize = 128;

/// A table `(N, D)` of finite numbers, N ≥ 1 and D ≥ 1.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    values: Vec<f64>,
    dim: usize,
}

/// The products of all pairs of columns, or of all pairs of rows if those are fewer.
#[derive(Debug)]
pub(crate) struct Gram {
    /// `(size, size)` row-major.
    pub(crate) values: Vec<f64>,
    /// `min(N, D)`.
    pub(crate) size: usize,
}

impl Rows {
    /// Reads `tensor`, `(N, D)` of any float type.
    ///
    /// # Errors
    /// If it has another rank, no values, or one that is not finite.
    pub(crate) fn read(tensor: &Tensor) -> Result<Self> {
        let (_, dim) = tensor.dims2()?;
        Self::new(flat(tensor)?, dim)
    }

    /// As [`read`](Self::read), for what needs two rows.
    pub(crate) fn read_two(tensor: &Tensor) -> Result<Self> {
        let rows = Self::read(tensor)?;
        if rows.count() < 2 {
            let value = rows.count().to_string();
            return Err(Error::Config { field: "number of rows", value, allowed: "at least 2" });
        }
        Ok(rows)
    }

    /// `values` in rows of `dim`.
    ///
    /// # Errors
    /// If there are none, or one is not finite.
    pub(crate) fn new(values: Vec<f64>, dim: usize) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NonFinite { row: at / dim, column: at % dim, value: values[at] });
        }
        Ok(Self { values, dim })
    }

    /// The number of rows, N.
    pub(crate) fn count(&self) -> usize {
        self.values.len() / self.dim
    }

    /// The number of columns, D.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.dim)
    }

    pub(crate) fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.dim)
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.dim..][..self.dim]
    }

    /// The first `count` rows, with rows of zeros where there are not so many.
    pub(crate) fn first(mut self, count: usize) -> Self {
        self.values.resize(count * self.dim, 0.0);
        self
    }

    pub(crate) fn par_rows(&self) -> impl IndexedParallelIterator<Item = &[f64]> {
        self.values.par_chunks_exact(self.dim)
    }

    pub(crate) fn par_rows_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [f64]> {
        self.values.par_chunks_exact_mut(self.dim)
    }

    /// The means of groups of `size` consecutive rows: `(N / size, D)`.
    pub(crate) fn group_means(&self, size: usize) -> Self {
        let group = |values: &[f64]| Self { values: values.to_vec(), dim: self.dim }.mean();
        Self { values: self.values.chunks(size * self.dim).flat_map(group).collect(), dim: self.dim }
    }

    /// The mean of each column.
    pub(crate) fn mean(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.dim];
        for row in self.iter() {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let n = self.count() as f64;
        sums.into_iter().map(|sum| sum / n).collect()
    }

    /// These rows less `origin`.
    pub(crate) fn minus(mut self, origin: &[f64]) -> Self {
        self.par_rows_mut().for_each(|row| {
            row.iter_mut().zip(origin).for_each(|(value, origin)| *value -= origin);
        });
        self
    }

    /// These rows less their mean.
    pub(crate) fn centred(self) -> Self {
        let mean = self.mean();
        self.minus(&mean)
    }

    /// These rows, each divided by its length; a row of zeros stays one.
    pub(crate) fn on_sphere(mut self) -> Self {
        self.par_rows_mut().for_each(|row| {
            // Scaled by the largest value first, whose square might overflow or vanish.
            let largest = row.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
            if largest > 0.0 {
                row.iter_mut().for_each(|value| *value /= largest);
                let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
                row.iter_mut().for_each(|value| *value /= norm);
            }
        });
        self
    }

    /// These rows, each followed by the one of `other`: `(N, D + D')`.
    pub(crate) fn beside(&self, other: &Self) -> Result<Self> {
        check_size("number of rows", other.count(), self.count())?;
        let values = self.iter().zip(other.iter()).flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
        Ok(Self { values, dim: self.dim + other.dim })
    }

    /// A tensor `(N, D)` of type `f64` on the CPU.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.values, (self.count(), self.dim), &Device::Cpu)?)
    }

    /// All values, row-major.
    pub(crate) fn into_values(self) -> Vec<f64> {
        self.values
    }

    /// Columns as rows: `(D, N)`.
    pub(crate) fn transposed(&self) -> Result<Self> {
        Ok(Self { values: flat(&self.tensor()?.t()?)?, dim: self.count() })
    }

    /// `XᵀX`, `(D, D)` row-major.
    pub(crate) fn products(&self) -> Result<Vec<f64>> {
        let dim = self.dim;
        let firsts = || (0..dim).step_by(PRODUCT_COLUMNS);
        let mut products = vec![0.0; dim * dim];
        for group in self.values.chunks(PRODUCT_PARTS * PRODUCT_ROWS * dim) {
            let parts = group.par_chunks(PRODUCT_ROWS * dim).map(|rows| upper_bands(rows, dim));
            // Added in the order of the rows, for any number of threads.
            for bands in parts.collect::<Result<Vec<Vec<_>>>>()? {
                for (band, first) in bands.iter().zip(firsts()) {
                    let sums = products.chunks_exact_mut(dim).skip(first);
                    for (sums, values) in sums.zip(band.chunks_exact(dim - first)) {
                        sums[first..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                }
            }
        }
        for (row, column) in (0..dim).flat_map(|row| (0..row).map(move |column| (row, column))) {
            products[row * dim + column] = products[column * dim + row];
        }
        Ok(products)
    }

    /// `XᵀX` or `XXᵀ`, whichever is smaller: both have the squared singular values as eigenvalues.
    pub(crate) fn smaller_gram(&self) -> Result<Gram> {
        if self.dim <= self.count() {
            return Ok(Gram { values: self.products()?, size: self.dim });
        }
        let x = self.tensor()?;
        Ok(Gram { values: flat(&x.matmul(&x.t()?)?)?, size: self.count() })
    }
}

/// The products of columns with themselves and all later ones, in bands `(columns, dim - first)` of some columns from
/// `first` on.
fn upper_bands(rows: &[f64], dim: usize) -> Result<Vec<Vec<f64>>> {
    let x = Tensor::from_slice(rows, (rows.len() / dim, dim), &Device::Cpu)?;
    let band = |first: usize| {
        let columns = x.narrow(1, first, PRODUCT_COLUMNS.min(dim - first))?;
        flat(&columns.t()?.matmul(&x.narrow(1, first, dim - first)?)?)
    };
    (0..dim).step_by(PRODUCT_COLUMNS).map(band).collect()
}

/// `‖a − b‖²`, in eight running sums, which the compiler keeps in vector registers.
pub(crate) fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += (a - b) * (a - b));
    }
    sums.iter().sum()
}

/// All values of a tensor in `f64`, row-major.
pub(crate) fn flat(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_grams_have_the_same_trace_and_the_smaller_is_taken() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0];
        for dim in [2, 3] {
            let rows = Rows::new(values.to_vec(), dim).unwrap();
            let gram = rows.smaller_gram().unwrap();
            assert_eq!(gram.size, 2);
            assert_eq!(gram.values[0] + gram.values[3], values.iter().map(|x| x * x).sum::<f64>());
        }
    }

    #[test]
    fn products_are_those_of_the_definition_beyond_one_block() {
        let (n, dim) = (PRODUCT_ROWS + 3, PRODUCT_COLUMNS + 2);
        // Small integers, whose sums are exact.
        let rows = Rows::new((0..n * dim).map(|at| (at * 7 % 31) as f64 - 15.0).collect(), dim).unwrap();
        let products = rows.products().unwrap();
        for (i, j) in [(0, 0), (0, dim - 1), (dim - 1, 0), (dim - 1, 5), (dim - 2, dim - 1)] {
            assert_eq!(products[i * dim + j], rows.iter().map(|row| row[i] * row[j]).sum::<f64>());
        }
    }

    #[test]
    fn centred_rows_have_mean_zero_and_stand_beside_others() {
        let rows = Rows::new(vec![1.0, 2.0, 3.0, 6.0], 2).unwrap();
        let centred = rows.clone().centred();
        assert_eq!(centred.values, [-1.0, -2.0, 1.0, 2.0]);
        assert_eq!(rows.beside(&centred).unwrap().values, [1.0, 2.0, -1.0, -2.0, 3.0, 6.0, 1.0, 2.0]);
        assert!(matches!(rows.beside(&Rows::new(vec![0.0], 1).unwrap()), Err(Error::Size { .. })));
    }

    #[test]
    fn what_is_not_there_or_not_finite_is_refused() {
        let tensor = |values: Vec<f32>, shape: (usize, usize)| Tensor::from_vec(values, shape, &Device::Cpu);
        assert!(matches!(Rows::read(&tensor(vec![], (0, 3)).unwrap()), Err(Error::Empty)));
        assert!(matches!(Rows::read(&tensor(vec![], (3, 0)).unwrap()), Err(Error::Empty)));
        let error = Rows::read(&tensor(vec![0.0, 1.0, f32::NAN, 0.0], (2, 2)).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 1, column: 0, .. }));
        let error = Rows::read_two(&tensor(vec![0.0; 3], (1, 3)).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "number of rows is 1, allowed is at least 2");
    }
}
