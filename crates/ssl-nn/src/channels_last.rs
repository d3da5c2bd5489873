//! The order of memory in which the kernels work: `(B, H, W, C)`, so that the channels of a pixel lie together.

use rayon::prelude::*;

use crate::storage::Element;

/// `(B, C, P)` to `(B, P, C)`, where `P` are the pixels of an image.
pub(crate) fn to_channels_last<T: Element>(x: &[T], channels: usize, pixels: usize) -> Vec<T> {
    transposed(x, channels, pixels)
}

/// `(B, P, C)` to `(B, C, P)`.
pub(crate) fn to_channels_first<T: Element>(x: &[T], channels: usize, pixels: usize) -> Vec<T> {
    transposed(x, pixels, channels)
}

/// Each matrix of `rows × columns` transposed.
fn transposed<T: Element>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut y = vec![T::ZERO; x.len()];
    if rows == 1 || columns == 1 {
        y.copy_from_slice(x);
        return y;
    }
    if y.is_empty() {
        return y;
    }
    y.par_chunks_mut(rows * columns).zip(x.par_chunks(rows * columns)).for_each(|(y, x)| {
        // Blocks keep the lines of both sides in the cache.
        for start in (0..columns).step_by(16) {
            for (r, row) in x.chunks_exact(columns).enumerate() {
                for c in start..columns.min(start + 16) {
                    y[c * rows + r] = row[c];
                }
            }
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let x: Vec<f32> = (0..2 * 3 * 20).map(|i| i as f32).collect();
        let last = to_channels_last(&x, 3, 20);
        assert_eq!(last[..4], [0.0, 20.0, 40.0, 1.0]);
        assert_eq!(to_channels_first(&last, 3, 20), x);
    }
}
