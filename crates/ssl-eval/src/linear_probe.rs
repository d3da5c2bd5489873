//! The linear probe: how well a linear classifier does on frozen features.

use crate::accuracy::accuracy;
use crate::logistic_regression::{LogisticRegression, Solver, check_positive};
use crate::split::stratified_split;
use crate::standardize::Standardizer;
use crate::{Error, Features, LogisticRegressionConfig, Result};

/// Settings of the linear probe.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbeConfig {
    /// Inverse penalty strengths to choose from, each above 0. With one value nothing is held out.
    pub c_grid: Vec<f64>,
    /// The share of each class that is held out to choose `c`, between 0 and 1 (both exclusive).
    pub validation_fraction: f64,
    /// A fit gives up after this many steps of L-BFGS.
    pub max_iterations: usize,
    /// A fit has converged when no entry of the gradient of the mean objective is larger, above 0.
    pub tolerance: f64,
}

impl Default for LinearProbeConfig {
    fn default() -> Self {
        let LogisticRegressionConfig { max_iterations, tolerance, .. } = Default::default();
        Self {
            c_grid: vec![0.001, 0.01, 0.1, 1.0, 10.0],
            validation_fraction: 0.1,
            max_iterations,
            tolerance,
        }
    }
}

impl LinearProbeConfig {
    fn check(&self) -> Result<()> {
        if self.c_grid.is_empty() {
            return Err(Error::Config {
                field: "c_grid",
                value: "empty".into(),
                allowed: "at least one value",
            });
        }
        self.c_grid.iter().try_for_each(|&c| check_positive("c_grid", c))?;
        check_positive("tolerance", self.tolerance)?;
        if !(self.validation_fraction > 0.0 && self.validation_fraction < 1.0) {
            let value = self.validation_fraction.to_string();
            let allowed = "between 0 and 1 (both exclusive)";
            return Err(Error::Config { field: "validation_fraction", value, allowed });
        }
        Ok(())
    }

    fn with_c(&self, c: f64) -> LogisticRegressionConfig {
        LogisticRegressionConfig { c, max_iterations: self.max_iterations, tolerance: self.tolerance }
    }
}

/// The outcome of a linear probe.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbeResult {
    /// Accuracy on the test set.
    pub top1: f64,
    /// The class that it gives each test sample.
    pub classes: Vec<u32>,
    /// Accuracy on the training set.
    pub train_top1: f64,
    /// The chosen inverse penalty strength.
    pub c: f64,
    /// Whether every fit, those of the grid included, converged.
    pub converged: bool,
    /// The steps of L-BFGS, summed over all fits.
    pub iterations: usize,
}

/// Trains a logistic regression on the training features and reports its accuracy on the test features.
///
/// Features are standardised with the mean and standard deviation of the training set; constant ones are only shifted.
/// `c` is the value with the highest accuracy on a stratified hold-out of the training set (the smaller one of equals);
/// the hold-out is fixed by the order of the samples. The classifier is then fitted to the whole training set. The test
/// set serves for the final accuracy only.
///
/// # Errors
/// If a setting is out of range, the dimensions differ, a label is not below `num_classes`, the training set has one
/// class only, or no class has two samples to hold one out (unless `c_grid` has one value).
pub fn linear_probe(
    train: &Features,
    test: &Features,
    num_classes: usize,
    config: &LinearProbeConfig,
) -> Result<LinearProbeResult> {
    config.check()?;
    train.check_labels(num_classes)?;
    test.check_labels(num_classes)?;
    test.check_dim(train.dim())?;
    let standardizer = Standardizer::fit(train);
    let train = standardizer.apply(train)?;
    let choice = choose_c(&train, num_classes, config)?;
    let classifier =
        Solver::new(&train, num_classes)?.fit(&config.with_c(choice.c), choice.classifier.as_ref())?;
    let classes = classifier.predict(&standardizer.apply(test)?)?;
    Ok(LinearProbeResult {
        top1: accuracy(&classes, test.labels())?,
        classes,
        train_top1: accuracy(&classifier.predict(&train)?, train.labels())?,
        c: choice.c,
        converged: choice.converged && classifier.converged(),
        iterations: choice.iterations + classifier.iterations(),
    })
}

struct Choice {
    c: f64,
    /// The fit of `c` to the samples not held out; none if there was nothing to choose.
    classifier: Option<LogisticRegression>,
    converged: bool,
    iterations: usize,
}

fn choose_c(train: &Features, num_classes: usize, config: &LinearProbeConfig) -> Result<Choice> {
    if let [c] = config.c_grid[..] {
        return Ok(Choice { c, classifier: None, converged: true, iterations: 0 });
    }
    let split = stratified_split(train.labels(), num_classes, config.validation_fraction)?;
    let held_out = train.select(&split.held_out)?;
    let solver = Solver::new(&train.select(&split.fit)?, num_classes)?;
    let mut grid = config.c_grid.clone();
    grid.sort_by(f64::total_cmp);

    let mut choice = Choice { c: grid[0], classifier: None, converged: true, iterations: 0 };
    let mut best_top1 = -1.0;
    let mut previous: Option<LogisticRegression> = None;
    for c in grid {
        // The optimum moves little from one value to the next, so each fit starts from the one before.
        let classifier = solver.fit(&config.with_c(c), previous.as_ref())?;
        choice.converged &= classifier.converged();
        choice.iterations += classifier.iterations();
        let top1 = accuracy(&classifier.predict(&held_out)?, held_out.labels())?;
        if top1 > best_top1 {
            best_top1 = top1;
            choice.c = c;
            choice.classifier = Some(classifier.clone());
        }
        previous = Some(classifier);
    }
    Ok(choice)
}
