//! The errors of this crate.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a text and its tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The vocabulary in this crate cannot be read.
    #[error("the vocabulary of CLIP cannot be used: {0}")]
    Vocabulary(String),
    /// A text has no tokens.
    #[error("the text {text:?} cannot be cut into tokens: {reason}")]
    Text {
        /// The text.
        text: String,
        /// Why not.
        reason: String,
    },
}
