//! Self-distillation by DINO (Caron et al., 2021, <https://arxiv.org/abs/2104.14294>, section 3.1 and algorithm 1; official
//! code facebookresearch/dino).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::sinkhorn::log_softmax;

/// The temperatures of DINO's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DinoLoss {
    /// `τ_s`, of the student: 0.1 in the paper.
    pub student_temperature: f64,
    /// `τ_t`, of the teacher; the lower, the sharper its targets: 0.04 to 0.07 in the paper.
    pub teacher_temperature: f64,
}

impl DinoLoss {
    /// The loss, a scalar, and the targets of each of the teacher's views, `(N, K)` and detached.
    ///
    /// The targets are those of [`centered_targets`], the loss that of [`Self::predict`]. No gradient flows to the
    /// teacher's logits or the centre. Logits of 0 everywhere give `ln K`. The centre moves after its use, which is the
    /// method's business ([`updated_center`]).
    ///
    /// # Shapes
    /// `student`, `teacher`: one `(N, K)` a view, row `n` of all from the same image; `center`: `(K)`.
    ///
    /// # Errors
    /// If shapes do not fit, there is no pair of views, or a temperature is not positive.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use ssl_losses::DinoLoss;
    ///
    /// let loss = DinoLoss { student_temperature: 0.1, teacher_temperature: 0.04 };
    /// let zeros = vec![Tensor::zeros((3, 5), DType::F64, &Device::Cpu)?; 4];
    /// let center = Tensor::zeros(5, DType::F64, &Device::Cpu)?;
    /// let (value, targets) = loss.forward(&zeros, &zeros[..2], &center)?;
    /// assert!((value.to_scalar::<f64>()? - 5f64.ln()).abs() < 1e-12 && targets.len() == 2);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward(
        &self,
        student: &[Tensor],
        teacher: &[Tensor],
        center: &Tensor,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let target = |g: &Tensor| centered_targets(g, center, self.teacher_temperature);
        let targets = teacher.iter().map(target).collect::<Result<Vec<_>>>()?;
        Ok((self.predict(student, &targets)?, targets))
    }

    /// The loss for given targets, such as those of [`sinkhorn`](crate::sinkhorn()): the mean over all pairs of a target
    /// `P_t` and a view of the student other than its own of the mean over the images of `−Σ_k P_t log softmax(g_s / τ_s)`.
    ///
    /// # Shapes
    /// `student`, `targets`: one `(N, K)` a view; the views of the targets are the student's first ones.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn predict(&self, student: &[Tensor], targets: &[Tensor]) -> Result<Tensor> {
        checks::temperature(self.student_temperature)?;
        let views = student.len();
        if views < 2 || !(1..=views).contains(&targets.len()) {
            let teacher = targets.len();
            bail!("dino needs 2 views or more, the first of them for the teacher, got {views} and {teacher}");
        }
        for g in student[1..].iter().chain(targets) {
            checks::paired(&student[0], g, "dino")?;
        }
        let n = checks::some_rows(&student[0], "dino")?;
        let mut sum = Tensor::zeros((), student[0].dtype(), student[0].device())?;
        for (s, g) in student.iter().enumerate() {
            let mut others = targets.iter().enumerate().filter(|(t, _)| *t != s).map(|(_, p)| p.detach());
            let Some(first) = others.next() else { continue };
            // The cross-entropy is linear in the targets, so that one product serves all of them.
            let p_t = others.try_fold(first, |sum, p| sum + p)?; // (N, K)
            let log_p_s = log_softmax(&(g / self.student_temperature)?)?;
            sum = (sum - (p_t * log_p_s)?.sum_all()?)?;
        }
        let pairs = targets.len() * (views - 1);
        sum / (n * pairs) as f64
    }
}

/// The teacher's distributions over the prototypes, detached: `softmax((g − c) / τ_t)` of each row.
///
/// The centre `c` keeps one prototype from winning everywhere, the low temperature keeps all from winning equally.
///
/// # Shapes
/// `logits`: `(N, K)`, of no rows too; `center`: `(K)`. Returns `(N, K)`.
///
/// # Errors
/// If the shapes do not fit, or the temperature is not positive.
pub fn centered_targets(logits: &Tensor, center: &Tensor, temperature: f64) -> Result<Tensor> {
    checks::temperature(temperature)?;
    checks::center(logits, center)?;
    if logits.elem_count() == 0 {
        // A batch may have no masked patches, and candle no maximum of nothing.
        return logits.zeros_like();
    }
    let g = logits.detach().broadcast_sub(&center.detach())?;
    log_softmax(&(g / temperature)?)?.exp()
}

/// The centre after a step: `m c + (1 − m) · mean` of the rows of the teacher's logits, raw and of all its views; detached.
///
/// # Shapes
/// `center`: `(K)`; `logits`: `(M, K)`. Returns `(K)`.
///
/// # Errors
/// If the shapes do not fit, there are no rows, or the momentum is not in [0, 1].
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let (center, logits) = (Tensor::new(&[1f64, 0.], &Device::Cpu)?, Tensor::new(&[[1f64, 4.], [3., 6.]], &Device::Cpu)?);
/// let moved = ssl_losses::updated_center(&center, &logits, 0.5)?.to_vec1::<f64>()?;
/// assert_eq!(moved, [1.5, 2.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn updated_center(center: &Tensor, logits: &Tensor, momentum: f64) -> Result<Tensor> {
    checks::center(logits, center)?;
    checks::some_rows(logits, "the mean of the center")?;
    checks::momentum(momentum)?;
    (center.detach() * momentum)? + (logits.detach().mean(0)? * (1.0 - momentum))?
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::mean_entropy;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    const LOSS: DinoLoss = DinoLoss { student_temperature: 0.1, teacher_temperature: 0.04 };

    fn center(k: usize) -> Tensor {
        matrix(1, k, 99).squeeze(0).unwrap()
    }

    fn views(count: u64, n: usize, k: usize, salt: u64) -> Vec<Tensor> {
        (0..count).map(|v| matrix(n, k, salt + v)).collect()
    }

    fn value(student: &[Tensor], teacher: &[Tensor], center: &Tensor) -> f64 {
        scalar(LOSS.forward(student, teacher, center).map(|(loss, _)| loss))
    }

    #[test]
    fn logits_of_zero_and_logits_at_the_center_give_the_logarithm_of_the_prototypes() {
        let zeros = vec![Tensor::zeros((6, 5), DType::F64, &Device::Cpu).unwrap(); 4];
        let at_center = vec![center(5).broadcast_as((6, 5)).unwrap(); 2];
        assert!((value(&zeros, &at_center, &center(5)) - 5f64.ln()).abs() < 1e-12);
    }

    /// The definition with plain numbers, pair by pair.
    fn plain(student: &[Tensor], teacher: &[Tensor], center: &Tensor) -> f64 {
        let center = center.to_vec1::<f64>().unwrap();
        let exps = |row: &[f64], tau: f64| -> Vec<f64> { row.iter().map(|g| (g / tau).exp()).collect() };
        let (mut sum, mut terms) = (0.0, 0);
        for (t, teacher) in teacher.iter().enumerate() {
            for (_, student) in student.iter().enumerate().filter(|(s, _)| *s != t) {
                let rows = [teacher, student].map(|g| g.to_vec2::<f64>().unwrap());
                for (g_t, g_s) in rows[0].iter().zip(&rows[1]) {
                    let shifted: Vec<f64> = g_t.iter().zip(&center).map(|(g, c)| g - c).collect();
                    let (p_t, p_s) = (exps(&shifted, 0.04), exps(g_s, 0.1));
                    let (z_t, z_s) = (p_t.iter().sum::<f64>(), p_s.iter().sum::<f64>());
                    sum -= p_t.iter().zip(&p_s).map(|(p, q)| p / z_t * (q / z_s).ln()).sum::<f64>();
                    terms += 1;
                }
            }
        }
        sum / terms as f64
    }

    #[test]
    fn it_is_the_mean_over_all_pairs_of_different_views() {
        for (students, teachers) in [(2, 1), (2, 2), (4, 1), (5, 2), (3, 3)] {
            let (student, teacher) = (views(students, 6, 4, 10), views(teachers, 6, 4, 20));
            let expected = plain(&student, &teacher, &center(4));
            assert!((value(&student, &teacher, &center(4)) - expected).abs() < 1e-10 * expected);
        }
    }

    #[test]
    fn the_order_of_images_of_global_and_of_local_views_does_not_matter() {
        let (s, t, c) = (views(4, 5, 6, 1), views(2, 5, 6, 7), center(6));
        let loss = value(&s, &t, &c);
        let shuffled = |views: &[Tensor]| views.iter().map(permuted).collect::<Vec<_>>();
        assert!((value(&shuffled(&s), &shuffled(&t), &c) - loss).abs() < 1e-12 * loss);
        let swapped = [s[1].clone(), s[0].clone(), s[3].clone(), s[2].clone()];
        assert!((value(&swapped, &[t[1].clone(), t[0].clone()], &c) - loss).abs() < 1e-12 * loss);
    }

    #[test]
    fn a_common_shift_of_a_row_changes_nothing_and_large_logits_do_not_overflow() {
        let (s, t, c) = (views(3, 4, 5, 1), views(2, 4, 5, 7), center(5));
        let moved = |views: &[Tensor]| views.iter().map(|g| (g + 1e3).unwrap()).collect::<Vec<_>>();
        assert!((value(&moved(&s), &moved(&t), &c) - value(&s, &t, &c)).abs() < 1e-8);
        let far = |views: &[Tensor]| -> Vec<Tensor> {
            views.iter().map(|g| (g * 1e3).unwrap().to_dtype(DType::F32).unwrap()).collect()
        };
        let loss = LOSS.forward(&far(&s), &far(&t), &c.to_dtype(DType::F32).unwrap()).unwrap().0;
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
    }

    #[test]
    fn the_loss_is_the_entropy_of_the_targets_for_a_student_that_agrees() {
        let (t, c) = (matrix(5, 4, 3), center(4));
        let same = ((t.broadcast_sub(&c).unwrap() / 0.04).unwrap() * 0.1).unwrap();
        let (loss, targets) = LOSS.forward(&[same.clone(), same], std::slice::from_ref(&t), &c).unwrap();
        let entropy = scalar(mean_entropy(&targets[0]));
        assert!((loss.to_scalar::<f64>().unwrap() - entropy).abs() < 1e-12);
    }

    #[test]
    fn gradients_equal_central_differences_and_none_flows_to_teacher_and_center() {
        let (t, c) = (views(2, 3, 4, 7), center(4));
        let local = matrix(3, 4, 5);
        assert_gradients(&matrix(3, 4, 1), &matrix(3, 4, 2), |a, b| {
            Ok(LOSS.forward(&[a.clone(), b.clone(), local.clone()], &t, &c)?.0)
        });
        let [teacher, center] = [t[0].clone(), c].map(|t| Var::from_tensor(&t).unwrap());
        let student = Var::from_tensor(&local).unwrap();
        let views = [student.as_tensor().clone(), student.as_tensor().clone()];
        let (loss, targets) = LOSS.forward(&views, &[teacher.as_tensor().clone()], &center).unwrap();
        let grads = (loss + targets[0].sum_all().unwrap()).unwrap().backward().unwrap();
        assert!(grads.get(&student).is_some());
        assert!(grads.get(&teacher).is_none() && grads.get(&center).is_none());
    }

    #[test]
    fn the_center_moves_from_zero_by_a_tenth_of_the_mean() {
        let logits = matrix(6, 4, 3);
        let zero = Tensor::zeros(4, DType::F64, &Device::Cpu).unwrap();
        let moved = updated_center(&zero, &logits, 0.9).unwrap();
        let expected = (logits.mean(0).unwrap() * 0.1).unwrap();
        let error = (&moved - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f64>().unwrap() < 1e-15);
        let kept = updated_center(&moved, &logits, 1.0).unwrap();
        assert_eq!(kept.to_vec1::<f64>().unwrap(), moved.to_vec1::<f64>().unwrap());
    }

    #[test]
    fn bad_input_is_refused() {
        let (s, t, c) = (views(3, 4, 5, 1), views(2, 4, 5, 7), center(5));
        let error = |loss: DinoLoss, s: &[Tensor], t: &[Tensor], c: &Tensor| {
            loss.forward(s, t, c).unwrap_err().to_string()
        };
        assert!(error(LOSS, &s[..1], &t[..1], &c).contains("got 1 and 1"));
        assert!(error(LOSS, &s[..2], &s, &c).contains("got 2 and 3"));
        assert!(error(LOSS, &s, &[], &c).contains("got 3 and 0"));
        assert!(error(LOSS, &s, &views(2, 3, 5, 7), &c).contains("[3, 5]"));
        assert!(error(LOSS, &s, &t, &center(4)).contains("center of 5 values, got [4]"));
        assert!(error(LOSS, &views(2, 0, 5, 1), &views(1, 0, 5, 7), &c).contains("0 rows"));
        for tau in [0.0, -1.0, f64::NAN] {
            assert!(error(DinoLoss { student_temperature: tau, ..LOSS }, &s, &t, &c).contains("temperature"));
            assert!(error(DinoLoss { teacher_temperature: tau, ..LOSS }, &s, &t, &c).contains("temperature"));
        }
        for m in [-0.1, 1.1, f64::NAN] {
            assert!(updated_center(&c, &s[0], m).unwrap_err().to_string().contains("[0, 1]"));
        }
        assert!(updated_center(&c, &matrix(0, 5, 1), 0.9).unwrap_err().to_string().contains("0 rows"));
    }
}
