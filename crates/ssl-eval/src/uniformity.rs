//! How evenly embeddings cover the sphere, over all pairs of them.
//!
//! Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
//! 2020 (<https://arxiv.org/abs/2005.10242>), section 4.1.2. As a loss, with gradients and all similarities in memory, it
//! is `ssl_losses::uniformity`.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::nearest::{dot, read_rows};
use crate::rows::Rows;

/// Rows of a tile, which is multiplied with one of as many: 1 MiB of similarities.
const TILE: usize = 512;

/// What squared distances are multiplied by, as in the paper.
const T: f32 = 2.0;

/// Sums that run side by side, which the compiler keeps in vector registers.
const LANES: usize = 16;

/// `log mean_{i<j} exp(−2 ‖x_i − x_j‖²)` of the L2-normalised rows: 0 if all agree, the less the more evenly they cover
/// the sphere.
///
/// A row of zeros stays one. All pairs count; their similarities are `f32`, their sum `f64`. Memory beyond the rows is two
/// copies of them and a few MiB.
///
/// # Shapes
/// `rows`: `(N, D)`.
///
/// # Errors
/// If there are less than two rows, or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Two opposite points, 2 apart.
/// let rows = Tensor::new(&[[1f32, 0.], [-3., 0.]], &Device::Cpu)?;
/// assert!((ssl_eval::uniformity(&rows)? + 8.0).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn uniformity(rows: &Tensor) -> Result<f64> {
    let rows = Rows::read_two(rows)?;
    let n = rows.count() as f64;
    let tiles = Tile::all(rows.on_sphere())?;
    let pairs: Vec<_> = (0..tiles.len()).flat_map(|a| (a..tiles.len()).map(move |b| (a, b))).collect();
    let sum = |&(a, b): &(usize, usize)| if a == b { tiles[a].within() } else { tiles[a].between(&tiles[b]) };
    // Added in the order of the pairs, for any number of threads.
    let sums: Vec<f64> = pairs.par_iter().map(sum).collect::<candle_core::Result<_>>()?;
    Ok((sums.iter().sum::<f64>() / (n * (n - 1.0) / 2.0)).ln())
}

/// Some rows of length 1.
#[derive(Debug)]
struct Tile {
    /// `(n, D)`.
    rows: Tensor,
    /// The squared length of each row: 1 but for rounding and rows of zeros.
    squares: Vec<f32>,
}

impl Tile {
    fn all(rows: Rows) -> Result<Vec<Self>> {
        let dim = rows.dim();
        let tile = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let squares = values.chunks_exact(dim).map(|row| dot(row, row) as f32).collect();
            let rows = Tensor::from_vec(values, ((), dim), &Device::Cpu)?;
            Ok(Self { rows, squares })
        };
        rows.into_values().par_chunks(TILE * dim).map(tile).collect()
    }

    /// The sum of `exp(−2 d²)` over pairs of a row of this tile and one of `other`.
    fn between(&self, other: &Self) -> candle_core::Result<f64> {
        self.sum(other, |_| 0)
    }

    /// The same over pairs of different rows of this tile.
    fn within(&self) -> candle_core::Result<f64> {
        self.sum(self, |row| row + 1)
    }

    /// The same over each row of this tile and those of `other` from `first(row)` on.
    fn sum(&self, other: &Self, first: impl Fn(usize) -> usize) -> candle_core::Result<f64> {
        let similarities = self.rows.matmul(&other.rows.t()?)?; // (n, m)
        read_rows(&similarities, |rows| {
            let rows = rows.zip(&self.squares).enumerate();
            rows.map(|(at, (row, square))| {
                let first = first(at);
                sum_of_exp(*square, &row[first..], &other.squares[first..])
            })
            .sum()
        })
    }
}

/// `Σ exp(−2 d²)` with `d² = square + squares − 2 similarities`. The terms are `f32`, and so are sums of up to 32 of them.
fn sum_of_exp(square: f32, similarities: &[f32], squares: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (similarities, squares) = (similarities.chunks_exact(LANES), squares.chunks_exact(LANES));
    let tail = similarities.remainder().iter().zip(squares.remainder());
    let tail: f32 = tail.map(|(s, other)| exp(T * (2.0 * s - square - other))).sum();
    for (similarities, squares) in similarities.zip(squares) {
        for lane in 0..LANES {
            sums[lane] += exp(T * (2.0 * similarities[lane] - square - squares[lane]));
        }
    }
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + f64::from(tail)
}

/// `exp(x)` for x in [−8, 0] up to rounding, and 1 for 0, without a call, so that a loop of it becomes vector
/// instructions: the series of `exp(x / 16)` to the 16th power.
fn exp(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let y = x / 16.0;
    let mut power = 1.0 / 40320.0;
    for coefficient in COEFFICIENTS {
        power = power * y + coefficient;
    }
    for _ in 0..4 {
        power *= power;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[[f64; 2]]) -> Result<f64> {
        uniformity(&Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu)?)
    }

    #[test]
    fn pairs_by_hand() {
        // Squared distances of 2, 4 and 2; lengths do not matter.
        let expected = ((2.0 * (-4f64).exp() + (-8f64).exp()) / 3.0).ln();
        assert!((of(&[[1.0, 0.0], [0.0, 1e-200], [-1e200, 0.0]]).unwrap() - expected).abs() < 1e-6);
        // A row of zeros is 1 from every other one, and one point is not uniform at all.
        assert!((of(&[[1.0, 0.0], [0.0, 0.0]]).unwrap() + 2.0).abs() < 1e-6);
        assert!(of(&[[3.0, 4.0]; 5]).unwrap().abs() < 1e-6);
    }

    #[test]
    fn exponentials_are_right_up_to_rounding() {
        assert_eq!(exp(0.0), 1.0);
        let (mut mean, count) = (0.0, 8001);
        for x in (0..count).map(|i| -i as f32 / 1000.0) {
            let error = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            // The series' error of 1e-7 sixteen times, and half a bit of 6e-8 fifteen times in four squarings.
            assert!(error.abs() < 2.5e-6, "{x}: {error}");
            mean += error / f64::from(count);
        }
        // A sum of many has next to nothing of it.
        assert!(mean.abs() < 1e-7, "{mean}");
    }

    #[test]
    fn bad_input_is_refused() {
        let error = |rows: &[[f64; 2]]| of(rows).unwrap_err().to_string();
        assert!(error(&[[1.0, 0.0]]).contains("number of rows is 1"));
        assert!(error(&[[1.0, 0.0], [f64::NAN, 0.0]]).contains("expected a finite number"));
    }
}
