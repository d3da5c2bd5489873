//! Rows of numbers as measures look at them: finite, and in `f64`.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// `rows`, `(N, D)` with `N ≥ least` and `D ≥ 1`, in `f64`; every one finite.
pub(crate) fn finite_rows(rows: &Tensor, least: usize) -> Result<Tensor> {
    let (n, d) = rows.dims2()?;
    if n == 0 || d == 0 {
        return Err(Error::Empty);
    }
    if n < least {
        return Err(Error::TooFew { what: "rows", found: n, least });
    }
    let rows = rows.detach().to_dtype(DType::F64)?.contiguous()?;
    // Sums carry NaN and infinity along, where a maximum may lose NaN.
    if (&rows * 0.0)?.sum_all()?.to_scalar::<f64>()? != 0.0 {
        for (row, values) in rows.to_vec2::<f64>()?.into_iter().enumerate() {
            if let Some(column) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::NonFinite { row, column, value: values[column] });
            }
        }
    }
    Ok(rows)
}

/// The rows less their mean.
pub(crate) fn centred(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.broadcast_sub(&rows.mean_keepdim(0)?)?)
}

/// `aᵀ b / by`, `(D, E)` row-major.
pub(crate) fn products(a: &Tensor, b: &Tensor, by: f64) -> Result<Vec<f64>> {
    Ok((a.t()?.matmul(b)? / by)?.flatten_all()?.to_vec1()?)
}
