//! How far the embeddings of a batch are spread: the first sign of a collapse.

use candle_core::{DType, Result, Tensor};

/// How far the normalised embeddings of a batch are spread over the sphere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean over dimensions of the standard deviation over samples, times `√D`: 1 for directions spread evenly over
    /// the sphere, 0 for a collapsed encoder (Chen & He, 2021, section 4.1).
    pub std: f64,
    /// Dimensions that the embeddings fill: the participation ratio `(Σλ)² / Σλ²` of the eigenvalues `λ` of their
    /// covariance, from 1 for points on a line to `min(N − 1, D)`; 0 for one point.
    pub dimensions: f64,
    /// The mean length of the embeddings before they are normalised.
    pub norm: f64,
}

impl Spread {
    /// The spread of the first view's embeddings `(N, D)`; zeros if there are none.
    pub(crate) fn of(embeddings: &[Tensor]) -> Result<Self> {
        let Some(z) = embeddings.first() else { return Ok(Self { std: 0.0, dimensions: 0.0, norm: 0.0 }) };
        let z = z.to_dtype(DType::F64)?;
        let (n, d) = z.dims2()?;
        let lengths = (z.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?;
        let norm = lengths.mean_all()?.to_scalar()?;
        let z = z.broadcast_div(&lengths)?;
        let z = z.broadcast_sub(&z.mean_keepdim(0)?)?;
        let std = z.sqr()?.mean(0)?.sqrt()?.mean_all()?.to_scalar::<f64>()? * (d as f64).sqrt();
        // ‖Z Zᵀ‖ = ‖Zᵀ Z‖: the smaller product will do.
        let t = z.t()?.contiguous()?;
        let gram = if n < d { z.matmul(&t)? } else { t.matmul(&z)? };
        let (trace, squares) =
            (z.sqr()?.sum_all()?.to_scalar::<f64>()?, gram.sqr()?.sum_all()?.to_scalar::<f64>()?);
        // Rounding alone gives one point some shape.
        let point = std < 1e-6 || squares == 0.0;
        Ok(Self { std, dimensions: if point { 0.0 } else { trace * trace / squares }, norm })
    }

    /// As terms of the log.
    pub(crate) fn terms(self) -> [(&'static str, f64); 3] {
        [
            ("embedding_std", self.std),
            ("embedding_dimensions", self.dimensions),
            ("embedding_norm", self.norm),
        ]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn spread(rows: &[[f64; 2]]) -> Spread {
        Spread::of(&[Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap()]).unwrap()
    }

    #[test]
    fn a_circle_is_healthy_and_a_point_and_a_line_are_not() {
        let circle = spread(&[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -1.0]]);
        assert!((circle.std - 1.0).abs() < 1e-9 && (circle.dimensions - 2.0).abs() < 1e-9, "{circle:?}");
        assert!((circle.norm - 1.75).abs() < 1e-9, "{circle:?}");
        let line = spread(&[[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0]]);
        assert!(line.std > 0.5 && (line.dimensions - 1.0).abs() < 1e-9, "{line:?}");
        let point = spread(&[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]);
        assert!(point.std < 1e-9 && point.dimensions == 0.0, "{point:?}");
    }
}
