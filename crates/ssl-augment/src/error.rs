//! The one error type of this crate, and the parameter checks that produce it.

use std::fmt::Display;

/// What can go wrong: a parameter out of range, or a buffer of the wrong length. Applying a built transform cannot fail.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter lies outside its allowed range.
    #[error("{field} is {value}, must be {allowed}")]
    Parameter {
        /// Name of the parameter, as in [`ViewConfig`](crate::ViewConfig) where it has one.
        field: &'static str,
        /// The refused value.
        value: String,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// The number of samples does not match the image size.
    #[error("an RGB image of {width} x {height} pixels has {expected} samples, the buffer has {found}")]
    BufferLength {
        /// Width of the image in pixels.
        width: usize,
        /// Height of the image in pixels.
        height: usize,
        /// `width * height * 3`.
        expected: usize,
        /// Length of the buffer given.
        found: usize,
    },
    /// A crop box reaches outside its image, or is empty.
    #[error(
        "a crop of {width} x {height} pixels at ({left}, {top}) must be at least 1 x 1 and lie within the image of \
         {image_width} x {image_height}"
    )]
    CropBox {
        /// Left edge of the box in pixels.
        left: usize,
        /// Top edge of the box in pixels.
        top: usize,
        /// Width of the box in pixels.
        width: usize,
        /// Height of the box in pixels.
        height: usize,
        /// Width of the image in pixels.
        image_width: usize,
        /// Height of the image in pixels.
        image_height: usize,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Largest side of an image that a transform is asked to make.
const MAX_SIDE: usize = 16_384;

impl Error {
    pub(crate) fn parameter(field: &'static str, value: impl Display, allowed: &'static str) -> Self {
        Self::Parameter { field, value: value.to_string(), allowed }
    }
}

pub(crate) fn check_side(field: &'static str, side: usize) -> Result<()> {
    if (1..=MAX_SIDE).contains(&side) {
        Ok(())
    } else {
        Err(Error::parameter(field, side, "in 1..=16384 pixels"))
    }
}

pub(crate) fn check_probability(field: &'static str, p: f64) -> Result<()> {
    if (0.0..=1.0).contains(&p) { Ok(()) } else { Err(Error::parameter(field, p, "in [0, 1]")) }
}

/// An interval `[low, high]` with `0 < low <= high <= limit`.
pub(crate) fn check_interval(
    field: &'static str,
    [low, high]: [f64; 2],
    limit: f64,
    allowed: &'static str,
) -> Result<()> {
    if 0.0 < low && low <= high && high <= limit {
        Ok(())
    } else {
        Err(Error::parameter(field, format_args!("[{low}, {high}]"), allowed))
    }
}
