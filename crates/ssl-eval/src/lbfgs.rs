//! Limited-memory BFGS for a smooth convex function, with an optional preconditioner.
//!
//! Nocedal & Wright, "Numerical Optimization", 2006, algorithms 7.4 and 7.5. The line search bisects until the weak
//! Wolfe conditions hold; near the minimum, where rounding hides the decrease, it takes the approximate ones of
//! Hager & Zhang, "A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search", 2005.

use std::collections::VecDeque;

use crate::Result;
use crate::cholesky::dot;

/// The number of past steps that model the curvature.
const HISTORY: usize = 10;
/// A step must achieve this share of the decrease that the slope at its start promises.
const SUFFICIENT_DECREASE: f64 = 1e-4;
/// A step must reduce the slope to this share of the one at its start.
const SUFFICIENT_FLATTENING: f64 = 0.9;
/// The relative rounding error of the function's value.
const VALUE_NOISE: f64 = 1e-7;
const MAX_TRIALS: usize = 40;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// Converged when no entry of the gradient is larger.
    pub(crate) tolerance: f64,
    pub(crate) max_iterations: usize,
}

/// Where the search ended.
#[derive(Debug)]
pub(crate) struct Minimum {
    pub(crate) x: Vec<f64>,
    pub(crate) converged: bool,
    pub(crate) iterations: usize,
}

struct Evaluation {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// One past step: the change of `x`, that of the gradient, and `1 / (dx · dg)`.
struct Step {
    dx: Vec<f64>,
    dg: Vec<f64>,
    rho: f64,
}

/// Minimises `function`, which returns its value and gradient. `precondition` multiplies a vector by an approximate
/// inverse of the Hessian.
pub(crate) fn minimize(
    start: Vec<f64>,
    stop: Stop,
    function: impl Fn(&[f64]) -> Result<(f64, Vec<f64>)>,
    precondition: impl Fn(&mut [f64]),
) -> Result<Minimum> {
    let evaluate = |x: Vec<f64>| function(&x).map(|(value, gradient)| Evaluation { x, value, gradient });
    let mut current = evaluate(start)?;
    let mut history = VecDeque::with_capacity(HISTORY);
    let mut scale = 1.0;
    let mut iterations = 0;
    while max_abs(&current.gradient) > stop.tolerance && iterations < stop.max_iterations {
        let direction = descent_direction(&current.gradient, &history, scale, &precondition);
        let Some(next) = line_search(&current, &direction, evaluate)? else { break };
        let (dx, dg) = (difference(&next.x, &current.x), difference(&next.gradient, &current.gradient));
        let curvature = dot(&dx, &dg);
        if curvature > 0.0 {
            let mut preconditioned = dg.clone();
            precondition(&mut preconditioned);
            scale = curvature / dot(&dg, &preconditioned);
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(Step { dx, dg, rho: 1.0 / curvature });
        }
        current = next;
        iterations += 1;
    }
    let converged = max_abs(&current.gradient) <= stop.tolerance;
    Ok(Minimum { x: current.x, converged, iterations })
}

/// Minus the gradient times the modelled inverse Hessian: the two-loop recursion.
fn descent_direction(
    gradient: &[f64],
    history: &VecDeque<Step>,
    scale: f64,
    precondition: impl Fn(&mut [f64]),
) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for step in history.iter().rev() {
        let alpha = step.rho * dot(&step.dx, &direction);
        add_scaled(&mut direction, -alpha, &step.dg);
        alphas.push(alpha);
    }
    precondition(&mut direction);
    direction.iter_mut().for_each(|d| *d *= scale);
    for (step, alpha) in history.iter().zip(alphas.iter().rev()) {
        let beta = step.rho * dot(&step.dg, &direction);
        add_scaled(&mut direction, alpha - beta, &step.dx);
    }
    direction
}

/// A point along `direction` that satisfies the Wolfe conditions, or none if rounding leaves nothing to gain.
fn line_search(
    start: &Evaluation,
    direction: &[f64],
    evaluate: impl Fn(Vec<f64>) -> Result<Evaluation>,
) -> Result<Option<Evaluation>> {
    let start_slope = dot(&start.gradient, direction);
    if start_slope >= 0.0 {
        return Ok(None);
    }
    let (mut low, mut high, mut length) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..MAX_TRIALS {
        let mut x = start.x.clone();
        add_scaled(&mut x, length, direction);
        let trial = evaluate(x)?;
        let slope = dot(&trial.gradient, direction);
        let decreased = trial.value <= start.value + SUFFICIENT_DECREASE * length * start_slope;
        let decreased_by_slope = trial.value <= start.value + VALUE_NOISE * start.value.abs()
            && slope <= (2.0 * SUFFICIENT_DECREASE - 1.0) * start_slope;
        if !(decreased || decreased_by_slope) {
            high = length;
        } else if slope < SUFFICIENT_FLATTENING * start_slope {
            low = length;
        } else {
            return Ok(Some(trial));
        }
        length = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * length };
    }
    Ok(None)
}

fn add_scaled(target: &mut [f64], factor: f64, source: &[f64]) {
    target.iter_mut().zip(source).for_each(|(target, source)| *target += factor * source);
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn max_abs(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, value| value.abs().max(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Stop = Stop { tolerance: 1e-8, max_iterations: 500 };

    /// `Σᵢ i² (xᵢ − i)² / 2`, condition number `n²`.
    fn quadratic(x: &[f64]) -> Result<(f64, Vec<f64>)> {
        let terms = x.iter().zip(1..).map(|(x, i)| (f64::from(i * i), x - f64::from(i)));
        Ok((terms.clone().map(|(h, d)| h * d * d / 2.0).sum(), terms.map(|(h, d)| h * d).collect()))
    }

    #[test]
    fn finds_the_minimum_of_a_quadratic() {
        let minimum = minimize(vec![0.0; 30], STOP, quadratic, |_| {}).unwrap();
        assert!(minimum.converged);
        for (x, i) in minimum.x.iter().zip(1..) {
            assert!((x - f64::from(i)).abs() < 1e-6, "{x} is not {i}");
        }
    }

    #[test]
    fn an_exact_preconditioner_needs_one_step() {
        let inverse_hessian = |g: &mut [f64]| g.iter_mut().zip(1..).for_each(|(g, i)| *g /= f64::from(i * i));
        let minimum = minimize(vec![0.0; 30], STOP, quadratic, inverse_hessian).unwrap();
        assert!(minimum.converged);
        assert_eq!(minimum.iterations, 1);
    }

    #[test]
    fn a_function_far_from_quadratic_needs_the_line_search() {
        // Σ log cosh(10 x): nearly |10 x| away from the minimum, so that the first full step overshoots.
        let function = |x: &[f64]| {
            let value = x.iter().map(|x| (10.0 * x).abs() + (-20.0 * x.abs()).exp().ln_1p()).sum();
            Ok((value, x.iter().map(|x| 10.0 * (10.0 * x).tanh()).collect()))
        };
        let minimum = minimize(vec![3.0, -0.7, 0.1], STOP, function, |_| {}).unwrap();
        assert!(minimum.converged);
        assert!(max_abs(&minimum.x) < 1e-8);
    }

    #[test]
    fn too_few_iterations_are_reported() {
        let minimum = minimize(vec![0.0; 30], Stop { max_iterations: 3, ..STOP }, quadratic, |_| {}).unwrap();
        assert!(!minimum.converged);
        assert_eq!(minimum.iterations, 3);
    }

    #[test]
    fn a_gradient_that_lies_ends_the_search() {
        let minimum = minimize(vec![1.0], STOP, |x| Ok((x[0], vec![-1.0])), |_| {}).unwrap();
        assert!(!minimum.converged);
        assert_eq!(minimum.x, [1.0]);
    }
}
