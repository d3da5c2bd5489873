//! Multinomial logistic regression with an L2 penalty, solved to its unique optimum.

use crate::accuracy::best_class;
use crate::lbfgs::{self, Stop};
use crate::objective::{self, Design};
use crate::precondition::HessianBound;
use crate::{Error, Features, Result};

/// Settings of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticRegressionConfig {
    /// The inverse of the strength of the penalty, above 0.
    pub c: f64,
    /// The fit gives up after this many steps of L-BFGS.
    pub max_iterations: usize,
    /// The fit has converged when no entry of the gradient of the mean objective is larger, above 0.
    pub tolerance: f64,
}

impl Default for LogisticRegressionConfig {
    fn default() -> Self {
        Self { c: 1.0, max_iterations: 1000, tolerance: 1e-4 }
    }
}

/// A linear classifier: the minimum of `Σᵢ CEᵢ + ‖W‖² / (2 C)`, with intercepts that are not penalised.
///
/// This is the objective of scikit-learn's `LogisticRegression`. Products are `f32`, sums over samples `f64`.
///
/// # Example
/// ```
/// use ssl_eval::{Features, LogisticRegression, LogisticRegressionConfig};
///
/// let train = Features::new(vec![-2.0, -1.0, 1.0, 2.0], 1, vec![0, 0, 1, 1])?;
/// let classifier = LogisticRegression::fit(&train, 2, &LogisticRegressionConfig::default())?;
/// assert!(classifier.converged());
/// assert_eq!(classifier.predict(&train)?, [0, 0, 1, 1]);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LogisticRegression {
    /// `(num_classes, dim + 1)`, the intercepts in the last column.
    theta: Vec<f64>,
    num_classes: usize,
    converged: bool,
    iterations: usize,
}

impl LogisticRegression {
    /// Fits a classifier to the training features as they are: standardise them first if their scales differ.
    ///
    /// # Errors
    /// If a setting is out of range, a label is not below `num_classes`, or all labels are equal. A fit that has not
    /// converged is not an error: see [`converged`](Self::converged).
    pub fn fit(train: &Features, num_classes: usize, config: &LogisticRegressionConfig) -> Result<Self> {
        Solver::new(train, num_classes)?.fit(config, None)
    }

    /// The weights, `(num_classes, dim)` row-major.
    pub fn coefficients(&self) -> Vec<f64> {
        let classes = self.theta.chunks_exact(self.width());
        classes.flat_map(|class| &class[..class.len() - 1]).copied().collect()
    }

    /// The intercept of each class.
    pub fn intercepts(&self) -> Vec<f64> {
        self.theta.chunks_exact(self.width()).map(|class| class[class.len() - 1]).collect()
    }

    /// Whether the gradient fell below the tolerance.
    pub fn converged(&self) -> bool {
        self.converged
    }

    /// The number of steps that the fit took.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// The probability of each class for each row, `(N, num_classes)` row-major.
    ///
    /// # Errors
    /// If the dimension is not that of the training features.
    pub fn probabilities(&self, features: &Features) -> Result<Vec<f64>> {
        features.check_dim(self.width() - 1)?;
        objective::probabilities(features, &self.theta, self.num_classes)
    }

    /// The most probable class of each row.
    ///
    /// # Errors
    /// If the dimension is not that of the training features.
    pub fn predict(&self, features: &Features) -> Result<Vec<u32>> {
        let probabilities = self.probabilities(features)?;
        Ok(probabilities.chunks_exact(self.num_classes).map(best_class).collect())
    }

    fn width(&self) -> usize {
        self.theta.len() / self.num_classes
    }
}

/// What fits of the same samples with different penalties share.
#[derive(Debug)]
pub(crate) struct Solver {
    design: Design,
    bound: HessianBound,
    samples: usize,
}

impl Solver {
    pub(crate) fn new(train: &Features, num_classes: usize) -> Result<Self> {
        let design = Design::new(train, num_classes)?;
        let bound = HessianBound::new(&design)?;
        Ok(Self { design, bound, samples: train.rows() })
    }

    /// Fits from where `start` ended, or from zero.
    pub(crate) fn fit(
        &self,
        config: &LogisticRegressionConfig,
        start: Option<&LogisticRegression>,
    ) -> Result<LogisticRegression> {
        check_positive("c", config.c)?;
        check_positive("tolerance", config.tolerance)?;
        let num_classes = self.design.num_classes();
        let theta =
            start.map_or_else(|| vec![0.0; num_classes * self.design.width()], |fit| fit.theta.clone());
        let penalty = 1.0 / (config.c * self.samples as f64);
        let preconditioner = self.bound.preconditioner(penalty);
        let minimum = lbfgs::minimize(
            theta,
            Stop { tolerance: config.tolerance, max_iterations: config.max_iterations },
            |theta| self.design.evaluate(theta, penalty),
            |vector| preconditioner.apply(vector),
        )?;
        let lbfgs::Minimum { x: theta, converged, iterations } = minimum;
        Ok(LogisticRegression { theta, num_classes, converged, iterations })
    }
}

pub(crate) fn check_positive(field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(Error::Config { field, value: value.to_string(), allowed: "above 0 and finite" })
    }
}
