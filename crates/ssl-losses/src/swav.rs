//! The swapped prediction of SwAV (Caron et al., 2020, <https://arxiv.org/abs/2006.09882>, equations 1 and 2).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::sinkhorn::{log_softmax, sinkhorn};

/// How the swapped prediction makes and predicts its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwavLoss {
    /// How many views, the first ones, have codes; each is predicted from all other views.
    pub assigning_views: usize,
    /// τ, the temperature of the predictions.
    pub temperature: f64,
    /// ε of [`sinkhorn`].
    pub epsilon: f64,
    /// Iterations of [`sinkhorn`].
    pub iterations: usize,
}

impl SwavLoss {
    /// The loss, a scalar, and the codes of the assigning views, each `(N, K)` and detached.
    ///
    /// For each assigning view `i` the codes `q_i` are those of [`sinkhorn`] on its scores, below those of the queue if
    /// there is one. The loss is the mean over `i` and over the other views `v` of the mean cross-entropy
    /// `−Σ_k q_ik log softmax(s_v / τ)_k`. Scores of 0 everywhere give `ln K`.
    ///
    /// # Shapes
    /// `scores`: one `(N, K)` a view, row `n` of all from the same image. `queues`: none, or one `(M, K)` an assigning
    /// view.
    ///
    /// # Errors
    /// If shapes or the number of views or queues do not fit, or the temperature or ε is not positive.
    pub fn forward(&self, scores: &[Tensor], queues: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        let assigning = self.assigning_views;
        checks::temperature(self.temperature)?;
        if scores.len() < 2 || !(1..=scores.len()).contains(&assigning) {
            bail!("swav needs 2 views or more, some of which assign, got {} and {assigning}", scores.len());
        }
        if !queues.is_empty() && queues.len() != assigning {
            bail!("swav needs a queue for each of {assigning} assigning views, got {}", queues.len());
        }
        for s in &scores[1..] {
            checks::paired(&scores[0], s, "swav")?;
        }
        let codes = self.codes(scores, queues)?;
        Ok((self.predict(scores, &codes)?, codes))
    }

    /// The codes of the assigning views, detached.
    fn codes(&self, scores: &[Tensor], queues: &[Tensor]) -> Result<Vec<Tensor>> {
        let n = scores[0].dim(0)?;
        let code = |i: usize| match queues.get(i) {
            None => sinkhorn(&scores[i], self.epsilon, self.iterations),
            Some(queue) => {
                let all = Tensor::cat(&[&queue.detach(), &scores[i].detach()], 0)?; // (M + N, K)
                sinkhorn(&all, self.epsilon, self.iterations)?.narrow(0, queue.dim(0)?, n)
            }
        };
        (0..self.assigning_views).map(code).collect()
    }

    /// The mean cross-entropy of each code with the predictions of the other views.
    fn predict(&self, scores: &[Tensor], codes: &[Tensor]) -> Result<Tensor> {
        let mut sum = Tensor::zeros((), scores[0].dtype(), scores[0].device())?;
        for (v, s) in scores.iter().enumerate() {
            let log_p = log_softmax(&(s / self.temperature)?)?;
            for (_, q) in codes.iter().enumerate().filter(|(i, _)| *i != v) {
                sum = (sum - (q * &log_p)?.sum(1)?.mean_all()?)?;
            }
        }
        sum / (codes.len() * (scores.len() - 1)) as f64
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    const LOSS: SwavLoss = SwavLoss { assigning_views: 2, temperature: 0.1, epsilon: 0.05, iterations: 3 };

    fn scores(n: usize, k: usize, salt: usize) -> Tensor {
        let data = (0..n * k).map(|i| ((i * 7919 + 31 * salt) % 257) as f64 / 128.0 - 1.0).collect();
        Tensor::from_vec(data, (n, k), &Device::Cpu).unwrap()
    }

    fn value(loss: SwavLoss, scores: &[Tensor]) -> f64 {
        loss.forward(scores, &[]).unwrap().0.to_scalar().unwrap()
    }

    #[test]
    fn scores_of_zero_give_the_logarithm_of_the_prototypes() {
        let zeros = vec![Tensor::zeros((6, 5), DType::F64, &Device::Cpu).unwrap(); 4];
        assert!((value(LOSS, &zeros) - 5f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_code_predicts_all_views_but_its_own() {
        let views: Vec<_> = (0..3).map(|salt| scores(6, 5, salt)).collect();
        let term = |i: usize, v: usize| {
            let q = sinkhorn(&views[i], 0.05, 3).unwrap();
            let p = log_softmax(&(&views[v] / 0.1).unwrap()).unwrap();
            -(q * p).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() / 6.0
        };
        let expected = (term(0, 1) + term(0, 2) + term(1, 0) + term(1, 2)) / 4.0;
        assert!((value(LOSS, &views) - expected).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_images_and_of_assigning_views_does_not_matter() {
        let views: Vec<_> = (0..3).map(|salt| scores(6, 5, salt)).collect();
        let order = Tensor::new(&[3u32, 0, 5, 1, 4, 2], &Device::Cpu).unwrap();
        let permuted: Vec<_> = views.iter().map(|s| s.index_select(&order, 0).unwrap()).collect();
        let swapped = [views[1].clone(), views[0].clone(), views[2].clone()];
        assert!((value(LOSS, &views) - value(LOSS, &permuted)).abs() < 1e-12);
        assert!((value(LOSS, &views) - value(LOSS, &swapped)).abs() < 1e-12);
    }

    /// The gradients of assigning and other views, with the codes of the start in the differences: they get none.
    #[test]
    fn gradients_equal_central_differences_with_the_codes_held() {
        let views: Vec<_> = (1..4).map(|salt| Var::from_tensor(&scores(4, 3, salt)).unwrap()).collect();
        let now = || views.iter().map(|view| view.as_tensor().clone()).collect::<Vec<_>>();
        let queues = [scores(5, 3, 5), scores(5, 3, 6)];
        for queues in [&[][..], &queues[..]] {
            let (loss, codes) = LOSS.forward(&now(), queues).unwrap();
            let grads = loss.backward().unwrap();
            for (v, view) in views.iter().enumerate() {
                let grad = grads.get(view).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                let start = view.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                for (i, grad) in grad.iter().enumerate() {
                    let moved = |step: f64| {
                        let mut moved = start.clone();
                        moved[i] += step;
                        view.set(&Tensor::from_vec(moved, (4, 3), &Device::Cpu).unwrap()).unwrap();
                        LOSS.predict(&now(), &codes).unwrap().to_scalar::<f64>().unwrap()
                    };
                    let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                    moved(0.0);
                    assert!((slope - grad).abs() < 1e-7, "view {v}, {i}: {grad} is not {slope}");
                }
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let (a, b) = (scores(4, 3, 0), scores(4, 2, 0));
        let error = |loss: SwavLoss, scores: &[Tensor], queues: &[Tensor]| {
            loss.forward(scores, queues).unwrap_err().to_string()
        };
        assert!(error(LOSS, &[a.clone(), b.clone()], &[]).contains("[4, 2]"));
        assert!(error(LOSS, std::slice::from_ref(&a), &[]).contains("2 views or more"));
        let pair = [a.clone(), a.clone()];
        assert!(error(SwavLoss { assigning_views: 3, ..LOSS }, &pair, &[]).contains("got 2 and 3"));
        assert!(error(LOSS, &pair, &[a]).contains("got 1"));
        assert!(error(SwavLoss { temperature: 0.0, ..LOSS }, &pair, &[]).contains("temperature"));
    }
}
