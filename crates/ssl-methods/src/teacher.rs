//! A network that follows another one: the momentum encoder of MoCo, the target of BYOL, the teacher of DINO.

use candle_core::{Result, Var, bail};
use ssl_nn::{Params, ema_update};

/// Where the teacher's tensors stand in the store: `teacher.NAME` follows `NAME`.
pub(crate) const PREFIX: &str = "teacher";

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
