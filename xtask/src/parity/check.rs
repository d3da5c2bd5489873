//! The comparison: which tensor is due, how far it is off, and what that means.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;

use super::case::{Entry, elements};

/// Compares the results of a case, one by one, with what its file expects.
#[derive(Debug)]
pub(crate) struct Check<'a> {
    entry: &'a Entry,
    /// Results that have not been given yet.
    due: BTreeMap<String, Tensor>,
    summary: Summary,
}

/// How far a case is off.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Largest difference of two elements.
    pub(crate) max_abs: f64,
    /// Largest difference in a tensor over the largest expected magnitude in it.
    pub(crate) max_rel: f64,
    /// The bound of the tensor that came closest to its own.
    pub(crate) tolerance: String,
    /// The part of that bound which was used; above 1 is a failure.
    pub(crate) used: f64,
    pub(crate) failures: Vec<String>,
}

/// What counts as equal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// `|a - e| <= atol + rtol |e|` for each element.
    Elements { rtol: f64, atol: f64 },
    /// `‖a - e‖ <= rtol ‖e‖`.
    Norm { rtol: f64 },
}

impl<'a> Check<'a> {
    pub(crate) fn new(entry: &'a Entry, due: BTreeMap<String, Tensor>) -> Self {
        Self { entry, due, summary: Summary::default() }
    }

    /// Judges the result `name`, if the file expects it.
    pub(crate) fn tensor(&mut self, name: &str, actual: &Tensor) -> Result<()> {
        if !self.due.contains_key(name) {
            return Ok(());
        }
        self.values(name, actual.dims(), &elements(actual)?)
    }

    /// Judges the result `name`, given as numbers, if the file expects it.
    pub(crate) fn values(&mut self, name: &str, shape: &[usize], actual: &[f64]) -> Result<()> {
        let Some(expected) = self.due.remove(name) else { return Ok(()) };
        if expected.dims() != shape {
            let message = format!("`{name}` has shape {shape:?}, expected {:?}", expected.dims());
            self.summary.failures.push(message);
            return Ok(());
        }
        self.compare(&format!("`{name}`"), actual, &elements(&expected)?, self.bound(name));
        Ok(())
    }

    /// Judges the scalar `name`, if the file expects it.
    pub(crate) fn scalar(&mut self, name: &str, actual: f64) -> Result<()> {
        self.values(name, &[], &[actual])
    }

    /// Judges a number that is not a tensor of the file.
    pub(crate) fn number(&mut self, what: &str, actual: f64, expected: f64, [rtol, atol]: [f64; 2]) {
        self.compare(what, &[actual], &[expected], Bound::Elements { rtol, atol });
    }

    /// Notes a failure that no number shows.
    pub(crate) fn fail(&mut self, message: String) {
        self.summary.failures.push(message);
    }

    /// Leaves out a result that no program but the reference can produce.
    pub(crate) fn exempt(&mut self, name: &str) {
        self.due.remove(name);
    }

    /// The verdict; results still due are failures.
    pub(crate) fn finish(mut self) -> Summary {
        let missing = self.due.keys().map(|name| format!("`{name}` was not produced"));
        self.summary.failures.extend(missing);
        self.summary
    }

    fn bound(&self, name: &str) -> Bound {
        if let Some(&rtol) = self.entry.l2_rtol.get(name) {
            return Bound::Norm { rtol };
        }
        let [rtol, atol] = self.entry.tol.get(name).copied().unwrap_or([self.entry.rtol, self.entry.atol]);
        Bound::Elements { rtol, atol }
    }

    fn compare(&mut self, name: &str, actual: &[f64], expected: &[f64], bound: Bound) {
        let error = |(a, e): (&f64, &f64)| if a == e { 0.0 } else { (a - e).abs() };
        let errors: Vec<f64> = actual.iter().zip(expected).map(error).collect();
        let used = match bound {
            Bound::Elements { rtol, atol } => {
                largest(errors.iter().zip(expected).map(|(error, e)| ratio(*error, atol + rtol * e.abs())))
            }
            Bound::Norm { rtol } => ratio(norm(&errors), rtol * norm(expected)),
        };
        let max_abs = largest(errors.iter().copied());
        let max_rel = ratio(max_abs, largest(expected.iter().map(|e| e.abs())));
        let summary = &mut self.summary;
        if used > 1.0 || used.is_nan() {
            summary.failures.push(describe(name, actual, expected, &errors, bound, used));
        }
        summary.max_abs = largest([summary.max_abs, max_abs].into_iter());
        summary.max_rel = largest([summary.max_rel, max_rel].into_iter());
        if summary.tolerance.is_empty() || used > summary.used || used.is_nan() {
            (summary.tolerance, summary.used) = (bound.to_string(), used);
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::Elements { rtol: 0.0, atol: 0.0 } => write!(f, "exact"),
            Bound::Elements { rtol: 0.0, atol } => write!(f, "{atol}"),
            Bound::Elements { rtol, atol } => write!(f, "{rtol:e} rel + {atol:e}"),
            Bound::Norm { rtol } => write!(f, "{rtol:e} of the norm"),
        }
    }
}

fn describe(name: &str, actual: &[f64], expected: &[f64], errors: &[f64], bound: Bound, used: f64) -> String {
    let worst = (0..errors.len()).max_by(|&i, &j| errors[i].total_cmp(&errors[j])).unwrap_or(0);
    let (a, e) = (actual[worst], expected[worst]);
    let excess = if used.is_finite() { format!(", {used:.1} times the tolerance") } else { String::new() };
    format!("{name}: element {worst} is {a}, expected {e}{excess} ({bound})")
}

/// The largest of numbers that are at least 0, or NaN if one is.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |max, value| if value > max || value.is_nan() { value } else { max })
}

/// `error / bound`, where no error needs no bound.
fn ratio(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}

/// L2 norm.
pub(crate) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}
