//! How the learning rate of a recipe changes with the step.

use serde::{Deserialize, Serialize};
use ssl_nn::Schedule;
use toml::Value;

type Check = std::result::Result<(), String>;

/// How the learning rate changes over a run; in a recipe the table `[schedule]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum ScheduleConfig {
    /// Warm-up, then half a cosine.
    Cosine {
        /// Epochs of linear rise from 0; may be a fraction.
        warmup_epochs: f64,
        /// Optimiser steps of the same rise, in place of `warmup_epochs`; of the two one is 0. Below the run's steps.
        #[serde(default, skip_serializing_if = "is_zero")]
        warmup_steps: usize,
        /// Value at the end as a share of the peak.
        end_factor: f64,
        /// Weight decay at the end as a multiple of that at the start, along half a cosine without warm-up: 10 in DINO.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        weight_decay_end_factor: f64,
        /// Length of both cosines over that of the run, at least 1: 1.25 in MSN, which ends before its cosines do.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        stretch: f64,
    },
    /// Warm-up, then steps down.
    Step {
        /// Epochs of linear rise from 0; may be a fraction.
        warmup_epochs: f64,
        /// Optimiser steps of the same rise, in place of `warmup_epochs`; of the two one is 0. Below the run's steps.
        #[serde(default, skip_serializing_if = "is_zero")]
        warmup_steps: usize,
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
            "cosine" => Some(Self::Cosine {
                warmup_epochs: 10.0,
                warmup_steps: 0,
                end_factor: 0.0,
                weight_decay_end_factor: 1.0,
                stretch: 1.0,
            }),
            "step" => Some(Self::Step {
                warmup_epochs: 0.0,
                warmup_steps: 0,
                milestones: vec![120, 160],
                gamma: 0.1,
            }),
            "constant" => Some(Self::Constant),
            _ => None,
        }
    }

    /// The learning rate of a run as a function of the step.
    pub fn build(&self, peak: f64, steps_per_epoch: usize, total_steps: usize) -> Schedule {
        let warmup = self.warmup(steps_per_epoch);
        match self {
            Self::Cosine { end_factor, stretch, .. } => {
                Schedule::warmup_cosine(peak, peak * end_factor, warmup, stretched(total_steps, *stretch))
            }
            Self::Step { milestones, gamma, .. } => {
                let milestones = milestones.iter().map(|m| (m * steps_per_epoch).saturating_sub(warmup));
                let rest = Schedule::Steps { start: peak, gamma: *gamma, milestones: milestones.collect() };
                rest.after_warmup(peak, warmup)
            }
            Self::Constant => Schedule::Constant(peak),
        }
    }

    /// The factor on the weight decay of a run as a function of the step.
    pub fn weight_decay(&self, total_steps: usize) -> Schedule {
        match self {
            Self::Cosine { weight_decay_end_factor, stretch, .. } if !is_one(weight_decay_end_factor) => {
                Schedule::cosine(1.0, *weight_decay_end_factor, stretched(total_steps, *stretch))
            }
            _ => Schedule::Constant(1.0),
        }
    }

    /// The keys that are not written where they have these values, their defaults.
    pub(crate) fn unwritten(&self) -> Vec<(&'static str, Value)> {
        let steps = ("warmup_steps", Value::Integer(0));
        match self {
            Self::Cosine { .. } => {
                vec![steps, ("weight_decay_end_factor", Value::Float(1.0)), ("stretch", Value::Float(1.0))]
            }
            Self::Step { .. } => vec![steps],
            Self::Constant => vec![],
        }
    }

    /// Steps of the warm-up.
    fn warmup(&self, steps_per_epoch: usize) -> usize {
        match self {
            Self::Cosine { warmup_epochs, warmup_steps, .. }
            | Self::Step { warmup_epochs, warmup_steps, .. } => {
                warmup_steps + (warmup_epochs * steps_per_epoch as f64).round() as usize
            }
            Self::Constant => 0,
        }
    }

    pub(crate) fn validate(&self, epochs: usize) -> Check {
        let (warmup, steps, factor) = match self {
            Self::Cosine { warmup_epochs, warmup_steps, end_factor, weight_decay_end_factor, stretch } => {
                if !(1.0..=100.0).contains(stretch) {
                    return Err(format!("schedule.stretch = {stretch} is not in [1, 100]"));
                }
                if !(0.0..=1000.0).contains(weight_decay_end_factor) {
                    return Err(format!(
                        "schedule.weight_decay_end_factor = {weight_decay_end_factor} is not in [0, 1000]"
                    ));
                }
                (*warmup_epochs, *warmup_steps, ("end_factor", *end_factor))
            }
            Self::Step { warmup_epochs, warmup_steps, gamma, .. } => {
                (*warmup_epochs, *warmup_steps, ("gamma", *gamma))
            }
            Self::Constant => return Ok(()),
        };
        if !(warmup >= 0.0 && warmup < epochs as f64) {
            return Err(format!(
                "schedule.warmup_epochs = {warmup} is not in 0..{epochs}, the epochs of the run (train.epochs)"
            ));
        }
        if warmup > 0.0 && steps > 0 {
            return Err(format!(
                "schedule.warmup_epochs = {warmup} and schedule.warmup_steps = {steps} are two lengths of one warm-up: \
                 one of them must be 0"
            ));
        }
        if !(0.0..=1.0).contains(&factor.1) {
            return Err(format!("schedule.{} = {} is not in [0, 1]", factor.0, factor.1));
        }
        Ok(())
    }

    /// Checks what only the data can tell: whether the warm-up ends within the `steps` of the run.
    pub(crate) fn validate_steps(&self, steps: usize) -> Check {
        match self {
            Self::Cosine { warmup_steps, .. } | Self::Step { warmup_steps, .. }
                if *warmup_steps >= steps.max(1) =>
            {
                Err(format!(
                    "schedule.warmup_steps = {warmup_steps} is not in 0..{steps}, the steps of the run (train.epochs)"
                ))
            }
            _ => Ok(()),
        }
    }
}

fn is_zero(steps: &usize) -> bool {
    *steps == 0
}

/// Steps of a cosine that is `stretch` times as long as the run.
fn stretched(total_steps: usize, stretch: f64) -> usize {
    (total_steps as f64 * stretch).round() as usize
}

fn one() -> f64 {
    1.0
}

fn is_one(factor: &f64) -> bool {
    *factor == 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fall_at_their_milestones_after_the_warmup() {
        let config =
            ScheduleConfig::Step { warmup_epochs: 1.0, warmup_steps: 0, milestones: vec![3, 4], gamma: 0.1 };
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
    fn a_warmup_in_steps_is_one_in_epochs_of_the_same_length() {
        let cosine = |warmup_epochs, warmup_steps| ScheduleConfig::Cosine {
            warmup_epochs,
            warmup_steps,
            end_factor: 0.1,
            weight_decay_end_factor: 1.0,
            stretch: 1.0,
        };
        let step = |warmup_epochs, warmup_steps| ScheduleConfig::Step {
            warmup_epochs,
            warmup_steps,
            milestones: vec![3],
            gamma: 0.1,
        };
        assert_eq!(cosine(0.0, 15).build(2.0, 10, 50), cosine(1.5, 0).build(2.0, 10, 50));
        assert_eq!(step(0.0, 15).build(2.0, 10, 50), step(1.5, 0).build(2.0, 10, 50));
    }

    #[test]
    fn the_weight_decay_rises_from_the_first_step_to_the_last() {
        let cosine = |weight_decay_end_factor| ScheduleConfig::Cosine {
            warmup_epochs: 1.0,
            warmup_steps: 0,
            end_factor: 0.0,
            weight_decay_end_factor,
            stretch: 1.0,
        };
        let factor = cosine(10.0).weight_decay(40);
        assert_eq!([factor.at(0), factor.at(40)], [1.0, 10.0]);
        assert!((factor.at(20) - 5.5).abs() < 1e-12);
        assert_eq!(cosine(1.0).weight_decay(40), Schedule::Constant(1.0));
        let error = cosine(-1.0).validate(5).unwrap_err();
        assert!(error.contains("schedule.weight_decay_end_factor = -1 is not in [0, 1000]"), "{error}");
    }

    #[test]
    fn a_stretched_cosine_ends_with_the_run_and_not_at_its_foot() {
        let cosine = |stretch| ScheduleConfig::Cosine {
            warmup_epochs: 0.0,
            warmup_steps: 10,
            end_factor: 0.0,
            weight_decay_end_factor: 2.0,
            stretch,
        };
        let (lr, decay) = (cosine(1.25).build(1.0, 10, 50), cosine(1.25).weight_decay(40));
        let whole = Schedule::warmup_cosine(1.0, 0.0, 10, 63);
        assert_eq!((lr.at(10), lr.at(49)), (1.0, whole.at(49)));
        assert!(decay.at(40) < 2.0 && decay.at(50) == 2.0);
        let error = cosine(0.5).validate(5).unwrap_err();
        assert!(error.contains("schedule.stretch = 0.5 is not in [1, 100]"), "{error}");
    }

    #[test]
    fn a_warmup_as_long_as_the_run_is_refused() {
        let cosine = |warmup_epochs, warmup_steps| ScheduleConfig::Cosine {
            warmup_epochs,
            warmup_steps,
            end_factor: 0.0,
            weight_decay_end_factor: 1.0,
            stretch: 1.0,
        };
        let error = cosine(5.0, 0).validate(5).unwrap_err();
        assert!(error.contains("schedule.warmup_epochs = 5 is not in 0..5"), "{error}");
        assert_eq!(cosine(0.0, 49).validate_steps(50), Ok(()));
        let error = cosine(0.0, 50).validate_steps(50).unwrap_err();
        assert!(error.contains("schedule.warmup_steps = 50 is not in 0..50"), "{error}");
    }
}
