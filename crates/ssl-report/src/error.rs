//! The errors of this crate.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can pass in that cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes of an image are not those of a PNG file.
    #[error("the image of {bytes} bytes is not a PNG file: {reason}")]
    Png {
        /// How many bytes there are.
        bytes: usize,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A heatmap has another number of values than cells.
    #[error("{title:?} has {values} values, must have {rows} x {columns} = {}", rows * columns)]
    Cells {
        /// The title of the heatmap.
        title: String,
        /// How many values there are.
        values: usize,
        /// The number of names of rows.
        rows: usize,
        /// The number of names of columns.
        columns: usize,
    },
}
