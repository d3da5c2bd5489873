//! The rate of this crate's matrix products, for benchmarks.

use candle_core::Result;

use crate::conv2d::Conv2dConfig;
use crate::convolve::sweep;
use crate::geometry::Geometry;
use crate::pack::Packed;

/// A product of two square matrices of `f32`, the right one packed, on all threads of rayon's pool.
///
/// What a layer can reach at best: it has to pack its weights and to move its images as well.
pub struct Probe {
    geometry: Geometry,
    left: Vec<f32>,
    right: Packed<f32>,
}

impl Probe {
    /// Matrices of `side` rows and columns.
    ///
    /// # Errors
    /// If `side` is 0.
    pub fn new(side: usize) -> Result<Self> {
        let geometry = Geometry::new((1, side, side, 1), (side, side, 1, 1), Conv2dConfig::default())?;
        let value = |i: usize| (i % 17) as f32 - 8.0;
        let left = (0..side * side).map(value).collect();
        Ok(Self { geometry, left, right: Packed::new(1, side, side, |_, k, n| value(k * side + n + 3)) })
    }

    /// The product, row by row.
    pub fn multiply(&self) -> Vec<f32> {
        sweep(&self.geometry, &self.left, &self.right, |_, _| ())
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("side", &self.geometry.c_in).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_multiplies() {
        let product = Probe::new(19).unwrap().multiply();
        let value = |i: usize| (i % 17) as f32 - 8.0;
        for (r, c) in [(0, 0), (3, 18), (18, 5)] {
            let expected: f32 = (0..19).map(|k| value(r * 19 + k) * value(k * 19 + c + 3)).sum();
            assert_eq!(product[r * 19 + c], expected);
        }
    }
}
