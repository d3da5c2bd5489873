//! Preconditions that the losses share.

use candle_core::{DType, Error, Result, Tensor, bail};

/// The sizes `(N, D)` of two tensors that must have the same.
pub(crate) fn paired(a: &Tensor, b: &Tensor, op: &'static str) -> Result<(usize, usize)> {
    let dims = a.dims2()?;
    same_shape(a, b, op)?;
    Ok(dims)
}

/// Two tensors must have the same shape.
pub(crate) fn same_shape(a: &Tensor, b: &Tensor, op: &'static str) -> Result<()> {
    if a.shape() != b.shape() {
        let (lhs, rhs) = (a.shape().clone(), b.shape().clone());
        return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op }.bt());
    }
    Ok(())
}

/// The mask of tokens `(N, L, D)`, detached and of their type, and its sum, a scalar that must not be 0.
pub(crate) fn token_mask(tokens: &Tensor, mask: &Tensor, op: &str) -> Result<(Tensor, Tensor)> {
    let (n, l, _) = tokens.dims3()?;
    if mask.dims() != [n, l] {
        bail!("{op} needs a mask for {n} images of {l} tokens, got {:?}", mask.dims());
    }
    let mask = mask.detach().to_dtype(tokens.dtype())?;
    let masked = mask.sum_all()?;
    if masked.to_dtype(DType::F64)?.to_scalar::<f64>()? == 0.0 {
        bail!("{op} needs masked tokens, of {n} images of {l} tokens none is masked");
    }
    Ok((mask, masked))
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

/// The number of rows of a matrix that must have some.
pub(crate) fn some_rows(z: &Tensor, what: &str) -> Result<usize> {
    match z.dim(0)? {
        0 => bail!("{what} needs images, got 0 rows"),
        n => Ok(n),
    }
}

/// A centre must have one value for each column of the logits.
pub(crate) fn center(logits: &Tensor, center: &Tensor) -> Result<()> {
    let (_, k) = logits.dims2()?;
    if center.dims() != [k] {
        bail!("the logits need a center of {k} values, got {:?}", center.dims());
    }
    Ok(())
}

/// A momentum must lie in [0, 1].
pub(crate) fn momentum(value: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&value) {
        bail!("the momentum must be in [0, 1], got {value}");
    }
    Ok(())
}
