//! What can go wrong with a file of weights.

use std::io;
use std::path::PathBuf;

/// The result of reading or writing weights.
pub type Result<T> = std::result::Result<T, Error>;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not those that were written, or not a safetensors file at all.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is intact but does not fit what it is used for.
    #[error("{}: {reason}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Both sides: what it holds and what was expected.
        reason: String,
    },
    /// A file of the hub could not be had.
    #[error("{address}: {reason}")]
    Hub {
        /// Its address.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
