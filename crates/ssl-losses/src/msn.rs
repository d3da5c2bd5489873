//! The loss of masked siamese networks (Assran et al., 2022, <https://arxiv.org/abs/2204.07141>, section 3; official code
//! facebookresearch/msn).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::entropy::mean_entropy;
use crate::normalize::normalize;
use crate::sinkhorn::{log_softmax, sinkhorn};

/// Settings of MSN's loss; the default is the official configuration of ViT-S/16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MsnLoss {
    /// τ, of the similarities to the prototypes: 0.1.
    pub temperature: f64,
    /// `T`, the temperature that sharpens the targets, `p^(1/T)` shared out anew: 0.25; 1 leaves them as they are.
    pub sharpening: f64,
    /// Iterations of [`sinkhorn`] on the sharpened targets: 3; 0 leaves them as they are.
    pub sinkhorn_iterations: usize,
    /// λ, the factor of the spread: 1.
    pub spread_weight: f64,
}

impl Default for MsnLoss {
    fn default() -> Self {
        Self { temperature: 0.1, sharpening: 0.25, sinkhorn_iterations: 3, spread_weight: 1.0 }
    }
}

/// The parts of [`MsnLoss::forward`], without their factors.
#[derive(Clone, Debug)]
pub struct MsnTerms {
    /// The mean over all anchors of `−Σ_k t_k log p_k`, a scalar.
    pub cross_entropy: Tensor,
    /// `ln K − H(mean p)`, a scalar: 0 if the anchors use all prototypes equally, `ln K` if they use one.
    pub spread: Tensor,
    /// The targets `t`, `(N, K)` and detached.
    pub targets: Tensor,
}

impl MsnLoss {
    /// The loss `cross-entropy + λ (ln K − H(mean p))`, a scalar, and its parts.
    ///
    /// All embeddings and prototypes are normalised here. `p = softmax(cos / τ)` of every anchor; the target of an image
    /// is the same of its unmasked view, sharpened and passed through [`sinkhorn`]. The mean prediction is that over all
    /// anchors of all views. Gradients flow to anchors and, by them alone, to prototypes.
    ///
    /// # Shapes
    /// `anchors`: one `(N, D)` a masked or focal view; `targets`: `(N, D)`, row `n` of all from the same image;
    /// `prototypes`: `(K, D)`.
    ///
    /// # Errors
    /// If shapes do not fit, there are no views, images or prototypes, a temperature is not positive, or λ is negative.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use ssl_losses::MsnLoss;
    ///
    /// // Two images, each at a prototype of its own: nothing is left to do.
    /// let z = Tensor::eye(2, DType::F64, &Device::Cpu)?;
    /// let (loss, terms) = MsnLoss::default().forward(&[z.clone(), z.clone()], &z, &z)?;
    /// assert!(loss.to_scalar::<f64>()? < 1e-3);
    /// assert!(terms.spread.to_scalar::<f64>()?.abs() < 1e-12);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward(
        &self,
        anchors: &[Tensor],
        targets: &Tensor,
        prototypes: &Tensor,
    ) -> Result<(Tensor, MsnTerms)> {
        checks::weight("the weight of the spread", self.spread_weight)?;
        if anchors.is_empty() {
            bail!("msn needs views that predict, got none");
        }
        for z in anchors {
            checks::paired(z, targets, "msn")?;
        }
        let k = prototypes.dim(0)?;
        let targets = self.targets(targets, prototypes)?;
        let q = normalize(prototypes)?.t()?; // (D, K)
        let s = normalize(&Tensor::cat(anchors, 0)?)?.matmul(&q)?; // (V N, K)
        let log_p = log_softmax(&(s / self.temperature)?)?;
        let repeated = Tensor::cat(&vec![&targets; anchors.len()], 0)?; // (V N, K)
        let cross_entropy = (repeated * &log_p)?.sum(1)?.mean_all()?.neg()?;
        let spread = ((k as f64).ln() - mean_entropy(&log_p.exp()?.mean_keepdim(0)?)?)?;
        let loss = (&cross_entropy + (&spread * self.spread_weight)?)?;
        Ok((loss, MsnTerms { cross_entropy, spread, targets }))
    }

    /// The targets of images, detached: rows are distributions over the prototypes.
    ///
    /// Sharpening the softmax at τ by `T` is the softmax at `τT`. The iterations start from these probabilities, without a
    /// further exponential.
    fn targets(&self, z: &Tensor, prototypes: &Tensor) -> Result<Tensor> {
        checks::temperature(self.temperature)?;
        checks::temperature(self.sharpening)?;
        let (n, d) = z.dims2()?;
        let (k, width) = prototypes.dims2()?;
        if n == 0 || k == 0 || width != d {
            bail!(
                "msn needs images (N, D) and prototypes (K, D), got {:?} and {:?}",
                z.dims(),
                prototypes.dims()
            );
        }
        let s = normalize(&z.detach())?.matmul(&normalize(&prototypes.detach())?.t()?)?; // (N, K)
        let log_p = log_softmax(&(s / (self.temperature * self.sharpening))?)?;
        sinkhorn(&log_p, 1.0, self.sinkhorn_iterations)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    const PLAIN: MsnLoss =
        MsnLoss { temperature: 0.1, sharpening: 0.25, sinkhorn_iterations: 0, spread_weight: 0.7 };

    fn value(loss: MsnLoss, anchors: &[Tensor], targets: &Tensor, prototypes: &Tensor) -> f64 {
        scalar(loss.forward(anchors, targets, prototypes).map(|(loss, _)| loss))
    }

    /// The softmax of cosines over `tau`.
    fn softmax(z: &Tensor, prototypes: &Tensor, tau: f64) -> Tensor {
        let s = normalize(z).unwrap().matmul(&normalize(prototypes).unwrap().t().unwrap()).unwrap();
        log_softmax(&(s / tau).unwrap()).unwrap().exp().unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        let worst = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        worst.to_scalar::<f64>().unwrap() < 1e-12
    }

    #[test]
    fn the_spread_is_zero_for_a_uniform_mean_and_the_logarithm_of_the_prototypes_for_one_point() {
        let q = Tensor::eye(4, DType::F64, &Device::Cpu).unwrap();
        let spread = |z: &Tensor, temperature| {
            let loss = MsnLoss { temperature, ..PLAIN };
            scalar(loss.forward(std::slice::from_ref(z), z, &q).map(|(_, terms)| terms.spread))
        };
        assert!(spread(&q, 0.1).abs() < 1e-12);
        let point = q.narrow(0, 0, 1).unwrap().broadcast_as((4, 4)).unwrap().contiguous().unwrap();
        assert!((spread(&point, 0.01) - 4f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn targets_are_powers_of_probabilities_shared_out_anew() {
        let (z, q) = (matrix(5, 6, 1), matrix(4, 6, 2));
        let sharpened = softmax(&z, &q, 0.1).powf(1.0 / 0.25).unwrap();
        let sharpened = sharpened.broadcast_div(&sharpened.sum_keepdim(1).unwrap()).unwrap();
        assert!(close(&PLAIN.targets(&z, &q).unwrap(), &sharpened));
        // The iterations of the official code, on probabilities.
        let mut p = sharpened;
        for _ in 0..3 {
            p = (p.broadcast_div(&p.sum_keepdim(0).unwrap()).unwrap() / 4.0).unwrap();
            p = p.broadcast_div(&p.sum_keepdim(1).unwrap()).unwrap();
        }
        assert!(close(&MsnLoss::default().targets(&z, &q).unwrap(), &p));
    }

    #[test]
    fn it_is_the_mean_over_anchors_and_the_entropy_of_their_mean() {
        let (a, t, q) = ([matrix(5, 6, 1), matrix(5, 6, 2)], matrix(5, 6, 3), matrix(4, 6, 4));
        let targets = PLAIN.targets(&t, &q).unwrap().to_vec2::<f64>().unwrap();
        let (mut cross_entropy, mut mean) = (0.0, [0.0; 4]);
        for view in &a {
            let p = softmax(view, &q, 0.1).to_vec2::<f64>().unwrap();
            for (p, t) in p.iter().zip(&targets) {
                for k in 0..4 {
                    cross_entropy -= t[k] * p[k].ln() / 10.0;
                    mean[k] += p[k] / 10.0;
                }
            }
        }
        let spread = 4f64.ln() + mean.iter().map(|p| p * p.ln()).sum::<f64>();
        assert!((value(PLAIN, &a, &t, &q) - cross_entropy - 0.7 * spread).abs() < 1e-12);
    }

    #[test]
    fn scale_and_the_order_of_images_prototypes_and_views_do_not_matter() {
        let (a, t, q) = ([matrix(5, 6, 1), matrix(5, 6, 2)], matrix(5, 6, 3), matrix(4, 6, 4));
        let loss = value(MsnLoss::default(), &a, &t, &q);
        let other = |a: &[Tensor], t: &Tensor, q: &Tensor| {
            assert!((value(MsnLoss::default(), a, t, q) - loss).abs() < 1e-12);
        };
        other(&[a[1].clone(), a[0].clone()], &t, &q);
        other(&[permuted(&a[0]), permuted(&a[1])], &permuted(&t), &q);
        other(&a, &t, &permuted(&q));
        other(&[(&a[0] * 3.0).unwrap(), a[1].clone()], &(&t * 0.1).unwrap(), &(&q * 5.0).unwrap());
    }

    #[test]
    fn gradients_equal_central_differences_and_none_flows_to_targets() {
        let (t, q) = (matrix(4, 3, 3), matrix(5, 3, 4));
        assert_gradients(&matrix(4, 3, 1), &matrix(4, 3, 2), |a, b| {
            Ok(MsnLoss::default().forward(&[a.clone(), b.clone()], &t, &q)?.0)
        });
        // The targets move with the prototypes but pass no gradient, so that they are held here.
        let held = MsnLoss::default().targets(&t, &q).unwrap();
        let (a, prototypes) = (matrix(4, 3, 5), Var::from_tensor(&q).unwrap());
        let teacher = Var::from_tensor(&t).unwrap();
        let (loss, _) = MsnLoss::default().forward(std::slice::from_ref(&a), &teacher, &prototypes).unwrap();
        let grads = loss.backward().unwrap();
        assert!(grads.get(&teacher).is_none());
        let grad = grads.get(&prototypes).unwrap().to_vec2::<f64>().unwrap();
        let at = |i: usize, j: usize, step: f64| {
            let mut moved = q.to_vec2::<f64>().unwrap();
            moved[i][j] += step;
            let p = softmax(&a, &Tensor::new(moved, &Device::Cpu).unwrap(), 0.1);
            let cross_entropy = -scalar((&held * p.log().unwrap()).unwrap().sum_all()) / 4.0;
            cross_entropy - scalar(mean_entropy(&p.mean_keepdim(0).unwrap()))
        };
        for i in 0..5 {
            for j in 0..3 {
                let slope = (at(i, j, 1e-6) - at(i, j, -1e-6)) / 2e-6;
                assert!((slope - grad[i][j]).abs() < 1e-8 * (1.0 + slope.abs()), "{i} {j}: {slope}");
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let (a, t, q) = ([matrix(5, 6, 1)], matrix(5, 6, 3), matrix(4, 6, 4));
        let error = |loss: MsnLoss, a: &[Tensor], t: &Tensor, q: &Tensor| {
            loss.forward(a, t, q).unwrap_err().to_string()
        };
        assert!(error(PLAIN, &[], &t, &q).contains("got none"));
        assert!(error(PLAIN, &a, &matrix(4, 6, 3), &q).contains("[4, 6]"));
        assert!(error(PLAIN, &a, &t, &matrix(4, 5, 4)).contains("got [5, 6] and [4, 5]"));
        assert!(error(PLAIN, &a, &t, &matrix(0, 6, 4)).contains("got [5, 6] and [0, 6]"));
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(error(MsnLoss { temperature: bad, ..PLAIN }, &a, &t, &q).contains("temperature"));
            assert!(error(MsnLoss { sharpening: bad, ..PLAIN }, &a, &t, &q).contains("temperature"));
        }
        assert!(error(MsnLoss { spread_weight: -1.0, ..PLAIN }, &a, &t, &q).contains("spread must be"));
    }
}
