//! What critics are trained for, and what their scores of held-out pairs say.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// What turns the scores `s(x, y)` of a critic into an estimate of the mutual information.
///
/// `E` is the mean over pairs that belong together, `E'` that over all others of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// `E s − E log (1/B) Σ exp s`, where the sum is over the B `y` of a batch.
    ///
    /// Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, equation 4 and appendix
    /// A.1 (<https://arxiv.org/abs/1807.03748>). A lower bound of small variance that is never above `log B`: information
    /// beyond that is not seen, and from about `log B − 1` on the estimate is clearly too low.
    InfoNce,
    /// `1 + E s − E' exp s`, with a critic that learns `log p(x, y) / (p(x) p(y))`.
    ///
    /// Nguyen, Wainwright & Jordan, "Estimating divergence functionals and the likelihood ratio by convex risk
    /// minimization", 2010 (<https://arxiv.org/abs/0809.0853>); `s` is the critic of Poole et al., 2019, less 1. A
    /// lower bound without ceiling, whose variance grows as the exponential of the information: beyond a few nats it
    /// stays far below the truth, or one pair of the held-out rows throws it far down.
    Nwj,
    /// `E s − log E' exp clip(s, −clip, clip)`, by a critic that is trained to tell the pairs of `E` and `E'` apart.
    ///
    /// Song & Ermon, "Understanding the Limitations of Variational Mutual Information Estimators", 2020, section 5
    /// (<https://arxiv.org/abs/1910.06222>); the objective of training is the Jensen–Shannon one of the official code.
    /// Without ceiling. Not a lower bound: clipping takes variance away and adds a bias to either side, upwards where
    /// scores above `clip` are common among other pairs.
    Smile {
        /// Largest magnitude of a score in the second term, above 0.
        clip: f64,
    },
    /// `E s − log E' exp s`, the bound of Donsker & Varadhan, 1983, that MINE trains.
    ///
    /// Belghazi et al., "Mutual Information Neural Estimation", 2018, section 3 (<https://arxiv.org/abs/1801.04062>),
    /// without their moving average against the bias of gradients, since `E'` has all other pairs of a batch. Without
    /// ceiling. The logarithm of a mean over few pairs is too low on average, so the estimate is not a lower bound:
    /// where the information is high, `E'` misses its rare large terms, and the estimate may be above the truth.
    DonskerVaradhan,
}

impl Bound {
    /// SMILE with the clip of its paper, 5.
    pub const fn smile() -> Self {
        Self::Smile { clip: 5.0 }
    }

    /// The largest value that the estimate can have for batches of `batch_size`, in nats.
    ///
    /// ```
    /// use ssl_eval::Bound;
    ///
    /// assert_eq!(Bound::InfoNce.ceiling(256), Some(256f64.ln()));
    /// assert_eq!(Bound::Nwj.ceiling(256), None);
    /// ```
    pub fn ceiling(self, batch_size: usize) -> Option<f64> {
        match self {
            Self::InfoNce => Some((batch_size as f64).ln()),
            Self::Nwj | Self::Smile { .. } | Self::DonskerVaradhan => None,
        }
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Smile { clip } if clip.is_nan() || clip <= 0.0 => {
                Err(Error::Config { field: "clip", value: clip.to_string(), allowed: "above 0" })
            }
            _ => Ok(()),
        }
    }

    /// What training makes as large as it can, from the scores of a batch, `(B, B)` with matched pairs on the diagonal.
    pub(super) fn objective(self, scores: &Tensor) -> candle_core::Result<Tensor> {
        let n = scores.dim(0)?;
        let pairs = (n * (n - 1)) as f64;
        let diagonal = Tensor::arange(0, n as u32, &Device::Cpu)?.unsqueeze(1)?;
        let matched = scores.gather(&diagonal, 1)?; // (B, 1)
        let others = || {
            let lowest = Tensor::full(f32::NEG_INFINITY, (n, n), &Device::Cpu)?.to_dtype(scores.dtype())?;
            Tensor::eye(n, DType::U8, &Device::Cpu)?.where_cond(&lowest, scores)
        };
        match self {
            Self::InfoNce => (matched - log_sum_exp(scores)?)?.mean_all()? + (n as f64).ln(),
            Self::Nwj => (matched.mean_all()? - (others()?.exp()?.sum_all()? / pairs)?)? + 1.0,
            Self::DonskerVaradhan => {
                let sum = log_sum_exp(&others()?.flatten_all()?.unsqueeze(0)?)?.mean_all()?;
                (matched.mean_all()? - sum)? + pairs.ln()
            }
            Self::Smile { .. } => {
                let missed = softplus(&matched.neg()?)?.mean_all()?;
                missed.neg()? - (softplus(&others()?)?.sum_all()? / pairs)?
            }
        }
    }

    /// The estimate in nats and its standard error, from the scores of batches of held-out pairs.
    ///
    /// All scores of a row or a column change with one pair. The standard error is that of the mean of each pair's
    /// influence, its part in the first-order expansion of the estimate (Hoeffding's projection of a U-statistic).
    pub(super) fn measure(self, batches: &[Vec<Vec<f32>>]) -> (f64, f64) {
        match self {
            Self::InfoNce => {
                let (terms, influences): (Vec<f64>, Vec<f64>) =
                    batches.iter().flat_map(|scores| info_nce(scores)).unzip();
                (mean(&terms), standard_error(&influences))
            }
            Self::Nwj => {
                let Terms { matched, others } = Terms::of(batches, f64::exp);
                let influences = matched.iter().zip(&others).map(|(matched, others)| matched - 2.0 * others);
                (1.0 + mean(&matched) - mean(&others), standard_error(&influences.collect::<Vec<_>>()))
            }
            Self::DonskerVaradhan => donsker_varadhan(batches, f64::INFINITY),
            Self::Smile { clip } => donsker_varadhan(batches, clip),
        }
    }
}

/// `log Σ exp` over the last dimension: `(M, C)` to `(M, 1)`.
fn log_sum_exp(scores: &Tensor) -> candle_core::Result<Tensor> {
    let max = scores.detach().max_keepdim(1)?;
    scores.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()? + max
}

/// `log (1 + exp s)` without overflow.
fn softplus(scores: &Tensor) -> candle_core::Result<Tensor> {
    scores.relu()? + (scores.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// The term and the influence of each pair of a batch.
fn info_nce(scores: &[Vec<f32>]) -> Vec<(f64, f64)> {
    let mut chosen = vec![0.0; scores.len()];
    let mut terms = Vec::with_capacity(scores.len());
    for (i, row) in scores.iter().enumerate() {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let exps: Vec<f64> = row.iter().map(|&s| (f64::from(s) - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        chosen.iter_mut().zip(&exps).for_each(|(chosen, exp)| *chosen += exp / sum);
        terms.push(f64::from(row[i]) - max - (sum / row.len() as f64).ln());
    }
    terms.into_iter().zip(chosen).map(|(term, chosen)| (term, term - chosen)).collect()
}

fn donsker_varadhan(batches: &[Vec<Vec<f32>>], clip: f64) -> (f64, f64) {
    let clipped = |score: f64| score.clamp(-clip, clip);
    let scores = batches.iter().flatten().flatten();
    let max = scores.map(|&score| clipped(f64::from(score))).fold(f64::NEG_INFINITY, f64::max);
    let Terms { matched, others } = Terms::of(batches, |score| (clipped(score) - max).exp());
    let z = mean(&others);
    let influences = matched.iter().zip(&others).map(|(matched, others)| matched - 2.0 * others / z);
    (mean(&matched) - z.ln() - max, standard_error(&influences.collect::<Vec<_>>()))
}

/// What each held-out pair adds to the two means of a bound.
struct Terms {
    /// Its score.
    matched: Vec<f64>,
    /// The mean weight of the pairs that have its `x` or its `y`, but not both.
    others: Vec<f64>,
}

impl Terms {
    fn of(batches: &[Vec<Vec<f32>>], weight: impl Fn(f64) -> f64) -> Self {
        let (mut all_matched, mut all_others) = (Vec::new(), Vec::new());
        for scores in batches {
            let pairs = 2.0 * (scores.len() as f64 - 1.0);
            let mut others = vec![0.0; scores.len()];
            for (i, row) in scores.iter().enumerate() {
                all_matched.push(f64::from(row[i]));
                for (j, &score) in row.iter().enumerate().filter(|&(j, _)| j != i) {
                    let share = weight(f64::from(score)) / pairs;
                    others[i] += share;
                    others[j] += share;
                }
            }
            all_others.extend(others);
        }
        Self { matched: all_matched, others: all_others }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// That of the mean of `values`; infinite, if one of them is.
fn standard_error(values: &[f64]) -> f64 {
    let (n, mean) = (values.len() as f64, mean(values));
    if !mean.is_finite() {
        return f64::INFINITY;
    }
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt()
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const ALL: [Bound; 4] = [Bound::InfoNce, Bound::Nwj, Bound::Smile { clip: 5.0 }, Bound::DonskerVaradhan];

    /// Scores of `n` pairs in `[-1, 1]`, those of matched pairs one higher.
    fn scores(n: usize) -> Vec<Vec<f32>> {
        let score = |i: usize, j: usize| ((7 * i * i + 3 * j * j + i * j) as f32).sin() + f32::from(i == j);
        (0..n).map(|i| (0..n).map(|j| score(i, j)).collect()).collect()
    }

    fn tensor(scores: &[Vec<f32>]) -> Tensor {
        Tensor::new(scores.to_vec(), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }

    #[test]
    fn two_pairs_by_hand() {
        let scores = [vec![vec![1.0, 9.0], vec![-2.0, 3.0]]];
        for (bound, expected) in [
            (
                Bound::InfoNce,
                2.0 - (0.5 * (1f64.exp() + 9f64.exp())).ln() / 2.0
                    - (0.5 * ((-2f64).exp() + 3f64.exp())).ln() / 2.0,
            ),
            (Bound::Nwj, 3.0 - 0.5 * (9f64.exp() + (-2f64).exp())),
            (Bound::DonskerVaradhan, 2.0 - (0.5 * (9f64.exp() + (-2f64).exp())).ln()),
            (Bound::Smile { clip: 2.0 }, 2.0 - 2f64.cosh().ln()),
            (Bound::Smile { clip: 100.0 }, Bound::DonskerVaradhan.measure(&scores).0),
        ] {
            let nats = bound.measure(&scores).0;
            assert!(
                (nats - expected).abs() < 1e-12 * expected.abs(),
                "{bound:?}: {nats} instead of {expected}"
            );
        }
    }

    #[test]
    fn the_objective_is_what_is_measured() {
        for bound in [Bound::InfoNce, Bound::Nwj, Bound::DonskerVaradhan] {
            let objective = bound.objective(&tensor(&scores(9))).unwrap().to_scalar::<f64>().unwrap();
            assert!((objective - bound.measure(&[scores(9)]).0).abs() < 1e-12, "{bound:?}: {objective}");
        }
        // Jensen and Shannon's: log of the logistic function, of what is right.
        let log_logistic = |s: f64| -(-s).exp().ln_1p();
        let terms = [[1.0, -9.0], [2.0, 3.0]].map(|row| row.map(log_logistic));
        let expected = (terms[0][0] + terms[1][1]) / 2.0 + (terms[0][1] + terms[1][0]) / 2.0;
        let scores = tensor(&[vec![1.0, 9.0], vec![-2.0, 3.0]]);
        let objective = Bound::smile().objective(&scores).unwrap().to_scalar::<f64>().unwrap();
        assert!((objective - expected).abs() < 1e-12, "{objective} instead of {expected}");
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        for bound in ALL {
            let at = tensor(&scores(4));
            let variable = Var::from_tensor(&at).unwrap();
            let gradients = bound.objective(variable.as_tensor()).unwrap().backward().unwrap();
            let gradient = gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap();
            let gradient = gradient.to_vec1::<f64>().unwrap();
            let values = at.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for i in 0..16 {
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[i] += by;
                    let scores = Tensor::from_vec(values, (4, 4), &Device::Cpu).unwrap();
                    bound.objective(&scores).unwrap().to_scalar::<f64>().unwrap()
                };
                // The error of the difference is about h² and the rounding of the value over h: 1e-10.
                let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!(
                    (gradient[i] - difference).abs() < 1e-9,
                    "{bound:?}, {i}: {} {difference}",
                    gradient[i]
                );
            }
        }
    }

    #[test]
    fn standard_errors_are_those_of_leaving_a_pair_out() {
        const N: usize = 200;
        let all = scores(N);
        for bound in ALL {
            let without = |left_out: usize| {
                let keep = |&i: &usize| i != left_out;
                let row = |i: usize| (0..N).filter(keep).map(|j| all[i][j]).collect();
                bound.measure(&[(0..N).filter(keep).map(row).collect()]).0
            };
            let estimates: Vec<f64> = (0..N).map(without).collect();
            let mean = mean(&estimates);
            let squares: f64 = estimates.iter().map(|value| (value - mean).powi(2)).sum();
            let jackknife = (squares * (N - 1) as f64 / N as f64).sqrt();
            let error = bound.measure(std::slice::from_ref(&all)).1;
            // They differ by terms of the second order, of relative size 1 / N.
            assert!((error / jackknife - 1.0).abs() < 0.03, "{bound:?}: {error} and {jackknife}");
        }
    }

    #[test]
    fn scores_of_any_size_are_measured() {
        for size in [1e4, 1e30] {
            let scores = [vec![vec![size, -size], vec![-size, size]]];
            for bound in ALL {
                let nats = bound.measure(&scores).0;
                assert!(
                    nats > 0.0 && bound.ceiling(2).is_none_or(|ceiling| nats <= ceiling),
                    "{bound:?}: {nats}"
                );
            }
        }
    }
}
