//! What can go wrong in a run.

use std::io;
use std::path::{Path, PathBuf};

/// The result of a part of a run.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a run could not start, go on or end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A recipe cannot be run; nothing was read or written yet.
    #[error("recipe: {0}")]
    Recipe(String),
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The run folder cannot be used for this run.
    #[error("{}: {reason}", path.display())]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do instead.
        reason: String,
    },
    /// A checkpoint, or a run without one, is intact but belongs to another recipe or other data.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Both sides: what it holds and what this run needs.
        reason: String,
    },
    /// A number became NaN or infinite.
    #[error("step {step}: {tensor} is not finite; nothing was updated in this step")]
    NonFinite {
        /// The step, counted from 1.
        step: usize,
        /// The first bad tensor, by name.
        tensor: String,
    },
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] ssl_data::Error),
    /// A text cannot be turned into tokens.
    #[error(transparent)]
    Text(#[from] ssl_text::Error),
    /// A file of weights or a checkpoint cannot be read or written.
    #[error(transparent)]
    Weights(#[from] ssl_backbones::Error),
    /// An evaluation failed.
    #[error(transparent)]
    Eval(#[from] ssl_eval::Error),
    /// An augmentation is impossible.
    #[error("recipe: augment.{0}")]
    Augment(#[from] ssl_augment::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), source }
    }
}
