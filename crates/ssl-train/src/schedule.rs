//! Values that change with the step: learning rates, momenta, temperatures.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// A function from the step to a value.
///
/// ```
/// use ssl_train::Schedule;
///
/// let lr = Schedule::warmup_cosine(0.4, 0.0, 10, 110);
/// assert_eq!(lr.at(0), 0.0);
/// assert_eq!(lr.at(5), 0.2);
/// assert_eq!(lr.at(10), 0.4);
/// assert!((lr.at(60) - 0.2).abs() < 1e-12);
/// assert_eq!(lr.at(110), 0.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The same value at every step.
    Constant(f64),
    /// `start + (end − start) · (step + offset) / steps`, then `end`.
    Linear {
        /// Value at step `−offset`.
        start: f64,
        /// Value from step `steps − offset` on.
        end: f64,
        /// Length of the way.
        steps: f64,
        /// 1 if the first step is already one part of the way.
        offset: f64,
    },
    /// `end + (start − end) · (1 + cos(π · step / steps)) / 2`, then `end`.
    Cosine {
        /// Value at step 0.
        start: f64,
        /// Value from step `steps` on.
        end: f64,
        /// Length of the half wave.
        steps: f64,
        /// Whether the wave goes on after `steps` instead of staying at `end`.
        periodic: bool,
    },
    /// `start · gamma^k` after the `k`-th milestone.
    Steps {
        /// Value before the first milestone.
        start: f64,
        /// Factor at each milestone.
        gamma: f64,
        /// Steps at which the value changes, ascending.
        milestones: Vec<usize>,
    },
    /// One schedule until a step, another from there on.
    Then {
        /// The schedule of the steps before `until`.
        first: Box<Schedule>,
        /// First step of `rest`.
        until: usize,
        /// The schedule afterwards.
        rest: Box<Schedule>,
        /// Whether `rest` counts its steps from `until` rather than from 0.
        restart: bool,
    },
}

impl Schedule {
    /// Linear from 0 to `peak` over `warmup` steps, then half a cosine to `end` at step `total`.
    pub fn warmup_cosine(peak: f64, end: f64, warmup: usize, total: usize) -> Self {
        let steps = total.saturating_sub(warmup) as f64;
        Self::Cosine { start: peak, end, steps, periodic: false }.after_warmup(peak, warmup)
    }

    /// This schedule, counted from step `warmup` on, after a linear rise from 0 to `peak`.
    pub fn after_warmup(self, peak: f64, warmup: usize) -> Self {
        if warmup == 0 {
            return self;
        }
        let first = Self::Linear { start: 0.0, end: peak, steps: warmup as f64, offset: 0.0 };
        Self::Then { first: Box::new(first), until: warmup, rest: Box::new(self), restart: true }
    }

    /// The value at `step`, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Linear { start, end, steps, offset } => {
                let way = step as f64 + offset;
                if way >= *steps { *end } else { start + (end - start) * way / steps }
            }
            Self::Cosine { start, end, steps, periodic } => {
                let step = step as f64;
                if step >= *steps && !periodic {
                    return *end;
                }
                end + (start - end) * 0.5 * (1.0 + (PI * step / steps).cos())
            }
            Self::Steps { start, gamma, milestones } => {
                let passed = milestones.iter().filter(|milestone| **milestone <= step).count();
                start * gamma.powi(passed as i32)
            }
            Self::Then { first, until, .. } if step < *until => first.at(step),
            Self::Then { until, rest, restart, .. } => rest.at(if *restart { step - until } else { step }),
        }
    }
}

/// How the learning rate changes over a run; in a recipe the table `[schedule]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum ScheduleConfig {
    /// Warm-up, then half a cosine.
    Cosine {
        /// Epochs of linear rise from 0; may be a fraction.
        warmup_epochs: f64,
        /// Value at the end as a share of the peak.
        end_factor: f64,
    },
    /// Warm-up, then steps down.
    Step {
        /// Epochs of linear rise from 0; may be a fraction.
        warmup_epochs: f64,
        /// Epochs, from the start of the run, at which the rate changes.
        milestones: Vec<usize>,
        /// Factor at each milestone.
        gamma: f64,
    },
    /// The same rate throughout.
    Constant,
}

impl ScheduleConfig {
    /// The names that `name` may have.
    pub const NAMES: [&'static str; 3] = ["cosine", "step", "constant"];

    /// The schedule `name` with its defaults: 10 epochs of warm-up as in SimCLR; steps as in MoCo.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "cosine" => Some(Self::Cosine { warmup_epochs: 10.0, end_factor: 0.0 }),
            "step" => Some(Self::Step { warmup_epochs: 0.0, milestones: vec![120, 160], gamma: 0.1 }),
            "constant" => Some(Self::Constant),
            _ => None,
        }
    }

    /// The learning rate of a run as a function of the step.
    pub fn build(&self, peak: f64, steps_per_epoch: usize, total_steps: usize) -> Schedule {
        let steps = |epochs: f64| (epochs * steps_per_epoch as f64).round() as usize;
        match self {
            Self::Cosine { warmup_epochs, end_factor } => {
                Schedule::warmup_cosine(peak, peak * end_factor, steps(*warmup_epochs), total_steps)
            }
            Self::Step { warmup_epochs, milestones, gamma } => {
                let warmup = steps(*warmup_epochs);
                let milestones = milestones.iter().map(|m| (m * steps_per_epoch).saturating_sub(warmup));
                let rest = Schedule::Steps { start: peak, gamma: *gamma, milestones: milestones.collect() };
                rest.after_warmup(peak, warmup)
            }
            Self::Constant => Schedule::Constant(peak),
        }
    }

    pub(crate) fn validate(&self, epochs: usize) -> std::result::Result<(), String> {
        let (warmup, factor) = match self {
            Self::Cosine { warmup_epochs, end_factor } => (*warmup_epochs, ("end_factor", *end_factor)),
            Self::Step { warmup_epochs, gamma, .. } => (*warmup_epochs, ("gamma", *gamma)),
            Self::Constant => return Ok(()),
        };
        if !(warmup >= 0.0 && warmup < epochs as f64) {
            return Err(format!(
                "schedule.warmup_epochs = {warmup} is not in 0..{epochs}, the epochs of the run (train.epochs)"
            ));
        }
        if !(0.0..=1.0).contains(&factor.1) {
            return Err(format!("schedule.{} = {} is not in [0, 1]", factor.0, factor.1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fall_at_their_milestones_after_the_warmup() {
        let config = ScheduleConfig::Step { warmup_epochs: 1.0, milestones: vec![3, 4], gamma: 0.1 };
        let lr = config.build(1.0, 10, 50);
        let close =
            |step, value: f64| assert!((lr.at(step) - value).abs() < 1e-12, "step {step}: {}", lr.at(step));
        close(0, 0.0);
        close(5, 0.5);
        close(10, 1.0);
        close(29, 1.0);
        close(30, 0.1);
        close(40, 0.01);
    }

    #[test]
    fn a_warmup_as_long_as_the_run_is_refused() {
        let error = ScheduleConfig::Cosine { warmup_epochs: 5.0, end_factor: 0.0 }.validate(5).unwrap_err();
        assert!(error.contains("schedule.warmup_epochs = 5 is not in 0..5"), "{error}");
    }
}
