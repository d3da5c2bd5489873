//! Preconditions that the losses share.

use candle_core::{Error, Result, Tensor, bail};

/// The sizes `(N, D)` of two tensors that must have the same.
pub(crate) fn paired(a: &Tensor, b: &Tensor, op: &'static str) -> Result<(usize, usize)> {
    let dims = a.dims2()?;
    if a.shape() != b.shape() {
        let (lhs, rhs) = (a.shape().clone(), b.shape().clone());
        return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op }.bt());
    }
    Ok(dims)
}

/// A temperature must be a positive number.
pub(crate) fn temperature(value: f64) -> Result<()> {
    if !(value.is_finite() && value > 0.0) {
        bail!("the temperature must be positive and finite, got {value}");
    }
    Ok(())
}

/// A factor of a part of a loss must be a number from 0 on.
pub(crate) fn weight(name: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value >= 0.0) {
        bail!("{name} must be finite and at least 0, got {value}");
    }
    Ok(())
}
