//! The pixel buffer: RGB, interleaved, row-major.

use crate::error::{Error, Result};
use crate::sample::Sample;

/// An RGB image of at least one pixel, interleaved `(height, width, 3)`, rows from top to bottom.
///
/// Samples are `u8` in 0..=255, or `f32` with 0 for black and 1 for white (a bicubic resize may leave that range).
///
/// # Example
/// ```
/// use ssl_augment::Image;
///
/// let red = Image::new(2, 1, vec![255u8, 0, 0, 255, 0, 0])?;
/// assert_eq!((red.width(), red.height()), (2, 1));
/// assert_eq!(red.to_float().data()[..3], [1.0, 0.0, 0.0]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Image<S: Sample = u8> {
    width: usize,
    height: usize,
    data: Vec<S>,
}

impl<S: Sample> Image<S> {
    /// Wraps a buffer of `width * height * 3` samples.
    ///
    /// # Errors
    /// If a side is 0, or the buffer has another length.
    pub fn new(width: usize, height: usize, data: Vec<S>) -> Result<Self> {
        if width == 0 {
            return Err(Error::parameter("width", width, "at least 1 pixel"));
        }
        if height == 0 {
            return Err(Error::parameter("height", height, "at least 1 pixel"));
        }
        let expected = width.saturating_mul(height).saturating_mul(3);
        if data.len() != expected {
            return Err(Error::BufferLength { width, height, expected, found: data.len() });
        }
        Ok(Self { width, height, data })
    }

    /// The same image from a buffer that is right by construction.
    pub(crate) fn from_parts(width: usize, height: usize, data: Vec<S>) -> Self {
        debug_assert_eq!(data.len(), width * height * 3);
        Self { width, height, data }
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All samples, `(height, width, 3)` row-major.
    pub fn data(&self) -> &[S] {
        &self.data
    }

    /// The buffer itself.
    pub fn into_data(self) -> Vec<S> {
        self.data
    }

    /// All pixels, row by row.
    pub fn pixels(&self) -> &[[S; 3]] {
        self.data.as_chunks().0
    }

    /// All pixels, row by row, to be changed in place.
    pub fn pixels_mut(&mut self) -> &mut [[S; 3]] {
        self.data.as_chunks_mut().0
    }

    /// All samples, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [S] {
        &mut self.data
    }
}

impl Image<u8> {
    /// The same image with samples in [0, 1]: `x / 255`.
    pub fn to_float(&self) -> Image<f32> {
        let data = self.data.iter().map(|&x| f32::from(x) / 255.0).collect();
        Image { width: self.width, height: self.height, data }
    }
}

impl Image<f32> {
    /// The same image on the 8-bit grid: `x * 255`, clamped to 0..=255 and rounded to the nearest level.
    pub fn to_u8(&self) -> Image<u8> {
        let data = self.data.iter().map(|&x| (x * 255.0).round() as u8).collect();
        Image { width: self.width, height: self.height, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_and_back_is_the_identity() {
        let image = Image::new(16, 16, (0..768).map(|i| (i % 256) as u8).collect()).unwrap();
        assert_eq!(image.to_float().to_u8(), image);
    }

    #[test]
    fn wrong_sizes_are_refused_with_their_numbers() {
        let short = Image::new(2, 2, vec![0u8; 11]).unwrap_err();
        assert_eq!(short, Error::BufferLength { width: 2, height: 2, expected: 12, found: 11 });
        assert_eq!(
            Image::new(0, 2, vec![0u8; 0]).unwrap_err().to_string(),
            "width is 0, must be at least 1 pixel"
        );
        assert!(Image::new(2, 0, vec![0f32; 0]).is_err());
        assert!(Image::new(usize::MAX, usize::MAX, vec![0u8; 3]).is_err());
    }
}
