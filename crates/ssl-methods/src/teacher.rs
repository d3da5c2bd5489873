//! A network that follows another one: the momentum encoder of MoCo, the target of BYOL, the teacher of DINO.

use candle_core::{Result, Var, bail};
use ssl_nn::{Params, ema_update};

/// Where the teacher's tensors stand in the store: `teacher.NAME` follows `NAME`.
pub(crate) const PREFIX: &str = "teacher";

/// The temperature of a teacher whose targets become less sharp in the first epochs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TeacherTemperature {
    /// In the first epoch.
    pub(crate) start: f64,
    /// From epoch `epochs` on.
    pub(crate) end: f64,
    /// Epochs of the way, each with a value of its own.
    pub(crate) epochs: usize,
}

impl TeacherTemperature {
    /// In this epoch, counted from 0: `epochs` equal parts from `start` in the first to `end` in the last of them.
    pub(crate) fn at(self, epoch: usize) -> f64 {
        let Self { start, end, epochs } = self;
        match epochs.saturating_sub(1) {
            _ if epoch >= epochs => end,
            0 => start,
            parts => start + (end - start) * epoch as f64 / parts as f64,
        }
    }
}

/// The pairs of tensors of a teacher and its student, found by name.
///
/// Only what the student learns is averaged. Running statistics are not: the teacher runs in training mode and keeps
/// its own.
#[derive(Debug)]
pub(crate) struct Teacher {
    pairs: Vec<(Var, Var)>,
}

impl Teacher {
    /// Makes the teacher in `params`, built in [`ssl_nn::Scope::frozen`] under [`PREFIX`], equal to its student.
    ///
    /// # Errors
    /// If a tensor of the teacher has no counterpart.
    pub(crate) fn copy_student(params: &Params) -> Result<Self> {
        let learned: std::collections::BTreeSet<String> =
            params.trainable().into_iter().map(|(name, _)| name).collect();
        let mut pairs = Vec::new();
        for (name, teacher) in params.all() {
            let Some(own) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            let Some(student) = params.get(own) else { bail!("`{name}` has no student `{own}`") };
            teacher.set(student.as_tensor())?;
            if learned.contains(own) {
                pairs.push((teacher, student));
            }
        }
        Ok(Self { pairs })
    }

    /// `teacher ← momentum · teacher + (1 − momentum) · student`. After the backward pass only.
    ///
    /// # Errors
    /// If `momentum` is not in [0, 1].
    pub(crate) fn follow(&self, momentum: f64) -> Result<()> {
        self.pairs.iter().try_for_each(|(teacher, student)| ema_update(teacher, student, momentum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_rises_from_epoch_to_epoch() {
        let value = |epochs, epoch| TeacherTemperature { start: 0.04, end: 0.07, epochs }.at(epoch);
        assert_eq!(value(0, 0), 0.07);
        assert_eq!([value(1, 0), value(1, 1)], [0.04, 0.07]);
        assert_eq!([value(4, 0), value(4, 3), value(4, 9)], [0.04, 0.07, 0.07]);
        assert!((value(4, 1) - 0.05).abs() < 1e-12);
    }
}
