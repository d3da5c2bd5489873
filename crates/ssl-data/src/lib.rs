//! Where images come from: formats on disk, decoding, limits.
//!
//! ```
//! use image::{ImageFormat, RgbImage};
//! use ssl_data::{OpenOptions, open};
//!
//! let folder = tempfile::tempdir()?;
//! for (class, value) in [("cat", 10), ("dog", 20)] {
//!     std::fs::create_dir(folder.path().join(class))?;
//!     let image = RgbImage::from_pixel(4, 3, image::Rgb([value; 3]));
//!     image.save_with_format(folder.path().join(class).join("a.png"), ImageFormat::Png)?;
//! }
//!
//! let splits = open(folder.path(), &OpenOptions::default())?;
//! assert_eq!(splits.train.class_names(), ["cat", "dog"]);
//! assert!(splits.test.is_none());
//!
//! let sample = splits.train.get(1)?;
//! assert_eq!((sample.image.width(), sample.image.height(), sample.label), (4, 3, Some(1)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = include_str!("../README.md")]

mod cached;
mod captions;
mod cifar;
mod class_names;
mod dataset;
mod decode;
mod delimited;
mod error;
mod fingerprint;
mod folder;
mod idx;
mod jpeg;
mod open;
mod packed;
#[cfg(feature = "parquet")]
mod parquet_captions;
mod reduced;
mod tolerant;
mod truncation;

pub use captions::CaptionFile;
pub use dataset::{Dataset, Sample, Splits};
pub use decode::{Limits, decode_bytes, decode_file};
pub use error::{Error, Result};
pub use open::{OpenOptions, open};
pub use ssl_augment::{Image, Resolution};
pub use tolerant::{OnError, Tolerant};
