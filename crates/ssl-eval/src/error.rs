//! What can go wrong in an evaluation.

/// The result of an evaluation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an evaluation was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its range.
    #[error("{field} is {value}, allowed is {allowed}")]
    Config {
        /// The name of the setting.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// There are no samples.
    #[error("there are no samples to evaluate")]
    Empty,
    /// Two sizes that must agree do not.
    #[error("{what} is {found}, expected {expected}")]
    Size {
        /// What was measured.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The size it must have.
        expected: usize,
    },
    /// A label names no class.
    #[error("label of row {row} is {label}, allowed is 0 to {num_classes} (exclusive)")]
    Label {
        /// The row of the label, counted from 0.
        row: usize,
        /// The label.
        label: u32,
        /// The number of classes.
        num_classes: usize,
    },
    /// A feature or score is NaN or infinite.
    #[error("value of row {row}, column {column} is {value}, expected a finite number")]
    NonFinite {
        /// The row of the value, counted from 0.
        row: usize,
        /// The column of the value, counted from 0.
        column: usize,
        /// The value.
        value: f64,
    },
    /// A classifier needs two classes to tell apart.
    #[error("all training samples have label {label}, expected at least two classes")]
    OneClass {
        /// The only label.
        label: u32,
    },
    /// The training set is too small to hold samples out of it.
    #[error(
        "no class has two training samples, so c cannot be chosen on held-out ones: give one value in c_grid"
    )]
    HoldOut,
    /// The iteration for eigenvalues did not end.
    #[error("the eigenvalues of a symmetric matrix of {size} rows could not be found")]
    Eigenvalues {
        /// Rows of the matrix.
        size: usize,
    },
    /// What a measure divides by is 0: all rows are equal, or all of them are 0.
    #[error("{what} is 0, expected a positive number")]
    Zero {
        /// What was measured.
        what: &'static str,
    },
    /// A covariance has no inverse.
    #[error("the covariance of {what} is singular: more rows than features are needed, or shrinkage")]
    Singular {
        /// What the covariance is of.
        what: &'static str,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
