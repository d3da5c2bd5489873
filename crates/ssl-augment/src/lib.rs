//! Image augmentation for self-supervised learning: pixels in, pixels out.
#![doc = include_str!("../README.md")]

mod center_crop;
mod color_jitter;
mod enhance;
mod error;
mod flip;
mod gaussian_blur;
mod grayscale;
mod hue;
mod image;
mod lanes;
mod multi_view;
mod normalize;
mod posterize;
pub mod presets;
pub mod random;
mod random_resized_crop;
mod resample;
mod resize;
mod resolution;
mod sample;
mod solarize;
mod transform;
mod view;

pub use center_crop::{CenterCrop, ResizeCenterCrop};
pub use color_jitter::{Adjustment, Adjustments, ColorJitter, ColorJitterConfig, adjust};
pub use enhance::{adjust_brightness, adjust_contrast, adjust_saturation};
pub use error::{Error, Result};
pub use flip::{HorizontalFlip, flip_horizontal};
pub use gaussian_blur::{GaussianBlur, convolve_gaussian, gaussian_blur};
pub use grayscale::{Grayscale, to_grayscale};
pub use hue::adjust_hue;
pub use image::Image;
pub use multi_view::MultiView;
pub use normalize::Normalize;
pub use posterize::{Posterize, posterize};
pub use random_resized_crop::RandomResizedCrop;
pub use resize::{CropBox, Interpolation, resize, resized_crop, resized_crop_aliased};
pub use resolution::Resolution;
pub use sample::Sample;
pub use solarize::{Solarize, solarize};
pub use transform::Transform;
pub use view::{Operation, View, ViewConfig};
