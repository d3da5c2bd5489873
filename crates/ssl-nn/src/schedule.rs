//! Values that change with the step: learning rates, momenta, temperatures.

use std::f64::consts::PI;

/// A function from the step to a value.
///
/// ```
/// use ssl_nn::Schedule;
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
        Self::cosine(peak, end, total.saturating_sub(warmup)).after_warmup(peak, warmup)
    }

    /// Half a cosine from `start` at step 0 to `end` at step `total`, which it keeps.
    pub fn cosine(start: f64, end: f64, total: usize) -> Self {
        Self::Cosine { start, end, steps: total as f64, periodic: false }
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
