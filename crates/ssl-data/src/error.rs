//! The errors of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a path and an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// One image file cannot be read, is broken, or is larger than the limits allow.
    #[error("cannot decode {}: {reason}", path.display())]
    Decode {
        /// The image file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that describes a whole data set (IDX, CIFAR, class names) is broken.
    #[error("{} cannot be used: {reason}", path.display())]
    Malformed {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, with the numbers.
        reason: String,
    },
    /// A path holds nothing that this crate recognises as images.
    #[error("{} {found}; expected {}", path.display(), crate::open::ACCEPTED)]
    Unrecognised {
        /// The path that was given.
        path: PathBuf,
        /// What stands there instead.
        found: String,
    },
    /// A folder cannot be listed or a file cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The pixels do not make an image.
    #[error(transparent)]
    Image(#[from] ssl_augment::Error),
    /// An index lies beyond the data set.
    #[error("index {index} is out of range: the data set has {len} images, counted from 0")]
    Index {
        /// The index that was asked for.
        index: usize,
        /// The number of images.
        len: usize,
    },
    /// Too many files are broken for the rest to stand for the data set.
    #[error(
        "{broken} of {len} images are broken, more than half, so skipping them would train on other data \
         than was asked for; the first: {first}"
    )]
    TooManyBroken {
        /// The number of broken images found so far.
        broken: usize,
        /// The number of images in the data set.
        len: usize,
        /// The message of the broken image with the lowest index.
        first: String,
    },
}

impl Error {
    pub(crate) fn decode(path: &Path, reason: impl Into<String>) -> Self {
        Error::Decode { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn unrecognised(path: &Path, found: impl Into<String>) -> Self {
        Error::Unrecognised { path: path.to_path_buf(), found: found.into() }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }
}
