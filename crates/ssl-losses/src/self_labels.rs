//! Labels of equal shares: the label step of SeLa (Asano et al., 2020, <https://arxiv.org/abs/1911.05371>, section 3.2).

use candle_core::{DType, Result, Tensor, bail};

/// How far factors may grow before they enter the exponents.
const LARGEST_FACTOR: f64 = 1e100;

/// How labels are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfLabels {
    /// λ: the larger, the closer to the best balanced assignment, and the more iterations.
    pub lambda: f64,
    /// The iteration ends when the factors of the samples change by less, relative to themselves and summed over them.
    pub tolerance: f64,
    /// Most iterations; 0 for the label that each sample itself finds most probable, with no shares held equal.
    pub max_iterations: usize,
}

/// What [`SelfLabels::solve`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The label of each sample, in `0..K`.
    pub labels: Vec<u32>,
    /// Iterations done.
    pub iterations: usize,
    /// Change of the factors in the last iteration, summed as for the tolerance; 0 without iterations.
    pub change: f64,
}

impl SelfLabels {
    /// Labels `N` samples with `K` labels of about `N / K` samples each, as probable as that allows.
    ///
    /// Finds the `Q` that maximises `⟨Q, log P⟩ + H(Q) / λ` among the matrices of sums `1 / K` over the samples and `1 / N`
    /// over the labels, which is `diag(r) P^λ diag(c)`, by fixing the two sums in turns; the label of a sample is its
    /// largest entry in `Q`. Factors that grow large enter the exponents, so that no `λ` and no `log P` overflows.
    ///
    /// Takes `16 N K` bytes and computes in `f64` on the CPU.
    ///
    /// # Shapes
    /// `log_p`: `(N, K)`, the logarithms of each sample's probabilities of the labels, up to a constant for each sample.
    ///
    /// # Errors
    /// If `log_p` is not of rank 2, is empty or not finite, λ is not positive and finite, or the tolerance is not positive.
    ///
    /// # Example
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use ssl_losses::SelfLabels;
    ///
    /// // Both samples prefer the first label, the second of them less.
    /// let log_p = Tensor::new(&[[0.9f64, 0.1], [0.6, 0.4]], &Device::Cpu)?.log()?;
    /// let solver = SelfLabels { lambda: 25.0, tolerance: 0.1, max_iterations: 1000 };
    /// assert_eq!(solver.solve(&log_p)?.labels, [0, 1]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn solve(&self, log_p: &Tensor) -> Result<Labels> {
        let Self { lambda, tolerance, max_iterations } = *self;
        let (n, k) = log_p.dims2()?;
        if n == 0 || k == 0 {
            bail!("self-labels need samples and labels, got {n} and {k}");
        }
        if !(lambda.is_finite() && lambda > 0.0) {
            bail!("lambda of self-labels must be positive and finite, got {lambda}");
        }
        if tolerance.is_nan() || tolerance <= 0.0 {
            bail!("tolerance of self-labels must be positive, got {tolerance}");
        }
        let log_p = log_p.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        if let Some(i) = log_p.iter().position(|log_p| !log_p.is_finite()) {
            bail!("self-labels: sample {} has the log-probability {} of label {}", i / k, log_p[i], i % k);
        }
        let logs = log_p.into_iter().map(|log_p| lambda * log_p).collect();
        let mut balance = Balance::new(logs, n, k);
        let (mut iterations, mut change) = (0, 0.0);
        while iterations < max_iterations {
            change = balance.iterate();
            iterations += 1;
            if change < tolerance {
                break;
            }
        }
        Ok(Labels { labels: balance.largest(), iterations, change })
    }
}

/// `Q = diag(r) exp(logs) diag(c)`, a row a sample.
struct Balance {
    logs: Vec<f64>,
    /// `exp(logs)`; empty until the first iteration, whose sums may be out of range.
    exps: Vec<f64>,
    /// Factor of each label.
    r: Vec<f64>,
    /// Factor of each sample.
    c: Vec<f64>,
}

impl Balance {
    fn new(logs: Vec<f64>, n: usize, k: usize) -> Self {
        Self { logs, exps: vec![], r: vec![1.0; k], c: vec![1.0; n] }
    }

    /// Fixes the sums over the samples, then those over the labels; returns the change of `c`.
    fn iterate(&mut self) -> f64 {
        if self.exps.is_empty() {
            return self.first();
        }
        let (n, k) = (self.c.len() as f64, self.r.len());
        let mut shares = vec![0.0; k];
        for (row, c) in self.exps.chunks_exact(k).zip(&self.c) {
            shares.iter_mut().zip(row).for_each(|(share, a)| *share += a * c);
        }
        self.r.iter_mut().zip(&shares).for_each(|(r, share)| *r = 1.0 / (k as f64 * share));
        let mut change = 0.0;
        for (row, c) in self.exps.chunks_exact(k).zip(&mut self.c) {
            let sum: f64 = row.iter().zip(&self.r).map(|(a, r)| a * r).sum();
            let next = 1.0 / (n * sum);
            change += (*c / next - 1.0).abs();
            *c = next;
        }
        let factors = || self.r.iter().chain(&self.c);
        if factors().any(|f| !(1.0 / LARGEST_FACTOR..LARGEST_FACTOR).contains(f)) {
            self.absorb();
        }
        change
    }

    /// The first iteration in logarithms. Afterwards some sample of every label has a share of `1 / (K N²)` or more, and
    /// every sample one of `1 / (K N)`.
    fn first(&mut self) -> f64 {
        let (n, k) = (self.c.len(), self.r.len());
        let (ln_n, ln_k) = ((n as f64).ln(), (k as f64).ln());
        let mut largest = vec![f64::NEG_INFINITY; k];
        for row in self.logs.chunks_exact(k) {
            largest.iter_mut().zip(row).for_each(|(m, a)| *m = m.max(*a));
        }
        let mut sums = vec![0.0; k];
        for row in self.logs.chunks_exact(k) {
            sums.iter_mut().zip(row).zip(&largest).for_each(|((sum, a), m)| *sum += (a - m).exp());
        }
        let ln_r: Vec<f64> = sums.iter().zip(&largest).map(|(sum, m)| ln_n - ln_k - m - sum.ln()).collect();
        let mut change = 0.0;
        for row in self.logs.chunks_exact_mut(k) {
            row.iter_mut().zip(&ln_r).for_each(|(a, ln_r)| *a += ln_r);
            let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let ln_c = -ln_n - m - row.iter().map(|a| (a - m).exp()).sum::<f64>().ln();
            row.iter_mut().for_each(|a| *a += ln_c);
            // From the same factor `1 / N` for all.
            change += ((-ln_n - ln_c).exp() - 1.0).abs();
        }
        self.exps = self.logs.iter().map(|a| a.exp()).collect();
        change
    }

    /// Moves the factors into the exponents.
    fn absorb(&mut self) {
        let k = self.r.len();
        let ln_r: Vec<f64> = self.r.iter().map(|r| r.ln()).collect();
        for (row, c) in self.logs.chunks_exact_mut(k).zip(&self.c) {
            row.iter_mut().zip(&ln_r).for_each(|(a, ln_r)| *a += ln_r + c.ln());
        }
        self.exps.iter_mut().zip(&self.logs).for_each(|(exp, a)| *exp = a.exp());
        self.r.fill(1.0);
        self.c.fill(1.0);
    }

    /// The place of the largest entry of each row, the first of equal ones.
    fn largest(&self) -> Vec<u32> {
        let k = self.r.len();
        let ln_r: Vec<f64> = self.r.iter().map(|r| r.ln()).collect();
        let label = |row: &[f64]| {
            let value = |i: usize| row[i] + ln_r[i];
            (1..k).fold(0, |best, i| if value(i) > value(best) { i } else { best }) as u32
        };
        self.logs.chunks_exact(k).map(label).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;
    use crate::sinkhorn::log_softmax;

    const SOLVER: SelfLabels = SelfLabels { lambda: 25.0, tolerance: 1e-9, max_iterations: 100_000 };

    /// Log-probabilities of `n` samples whose logits lie in `[-scale, scale]`.
    fn log_p(n: usize, k: usize, scale: f64) -> Tensor {
        let logit = |i: usize| scale * (((i * i * 7919 + i * 104_729 + 31) % 10_007) as f64 / 5003.0 - 1.0);
        let logits = Tensor::from_vec((0..n * k).map(logit).collect(), (n, k), &Device::Cpu).unwrap();
        log_softmax(&logits).unwrap()
    }

    fn counts(labels: &[u32], k: usize) -> Vec<usize> {
        (0..k as u32).map(|label| labels.iter().filter(|l| **l == label).count()).collect()
    }

    /// `Q` after an iteration until the tolerance.
    fn plan(log_p: &Tensor, solver: SelfLabels) -> Vec<Vec<f64>> {
        let (n, k) = log_p.dims2().unwrap();
        let logs = (log_p * solver.lambda).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut balance = Balance::new(logs, n, k);
        while balance.iterate() >= solver.tolerance {}
        let row = |(row, c): (&[f64], &f64)| row.iter().zip(&balance.r).map(|(a, r)| a * r * c).collect();
        balance.exps.chunks_exact(k).zip(&balance.c).map(row).collect()
    }

    #[test]
    fn both_sums_are_equal_shares() {
        let (n, k) = (60, 5);
        let q = plan(&log_p(n, k, 2.0), SelfLabels { lambda: 3.0, ..SOLVER });
        assert!(q.iter().all(|row| (row.iter().sum::<f64>() * n as f64 - 1.0).abs() < 1e-9));
        for label in 0..k {
            let share: f64 = q.iter().map(|row| row[label]).sum();
            assert!((share * k as f64 - 1.0).abs() < 1e-8, "{label}: {share}");
        }
    }

    #[test]
    fn as_many_labels_as_samples_give_the_best_permutation() {
        fn best(p: &[Vec<f64>], taken: &mut Vec<usize>) -> (f64, Vec<u32>) {
            let n = taken.len();
            if n == p.len() {
                return (0.0, vec![]);
            }
            let mut found = (f64::NEG_INFINITY, vec![]);
            for label in (0..p.len()).filter(|label| !taken.contains(label)).collect::<Vec<_>>() {
                taken.push(label);
                let (value, rest) = best(p, taken);
                taken.pop();
                if p[n][label] + value > found.0 {
                    found = (p[n][label] + value, [vec![label as u32], rest].concat());
                }
            }
            found
        }
        let log_p = log_p(6, 6, 2.0);
        let expected = best(&log_p.to_vec2::<f64>().unwrap(), &mut vec![]).1;
        assert_eq!(SelfLabels { lambda: 60.0, ..SOLVER }.solve(&log_p).unwrap().labels, expected);
        let own = SelfLabels { max_iterations: 0, ..SOLVER }.solve(&log_p).unwrap().labels;
        assert!(counts(&own, 6) != [1; 6], "the shares are equal without the solver");
    }

    #[test]
    fn labels_have_nearly_equal_shares_however_extreme_the_probabilities() {
        let (n, k) = (400, 8);
        // All samples prefer label 3 by far; in `f64` the others' probabilities to the power λ are 0.
        let bias: Vec<f64> =
            (0..k).map(|label| if label == 3 { 0.0 } else { -200.0 - label as f64 }).collect();
        let bias = Tensor::new(bias, &Device::Cpu).unwrap();
        for scale in [0.5, 3.0, 60.0] {
            let log_p = log_p(n, k, scale).broadcast_add(&bias).unwrap();
            let found = SelfLabels { tolerance: 0.1, ..SOLVER }.solve(&log_p).unwrap();
            let counts = counts(&found.labels, k);
            assert!(counts.iter().all(|count| (40..=60).contains(count)), "{scale}: {counts:?}");
            assert!(
                found.change < 0.1 && found.iterations < 10_000,
                "{scale}: {} iterations",
                found.iterations
            );
        }
    }

    #[test]
    fn the_factors_may_grow_beyond_the_range_of_numbers() {
        // The first samples have to leave for labels that only the last one makes worthwhile.
        let log_p = log_p(40, 10, 300.0);
        let found = SelfLabels { lambda: 50.0, tolerance: 1e-3, max_iterations: 2000 }.solve(&log_p).unwrap();
        assert!(found.change.is_finite());
        let shares = counts(&found.labels, 10);
        assert!(shares.iter().all(|count| (3..=5).contains(count)), "{shares:?}");
    }

    #[test]
    fn a_constant_of_a_sample_changes_nothing_and_without_iterations_it_is_the_first_choice() {
        let log_p = log_p(30, 4, 1.0);
        let constants = Tensor::arange(0f64, 30.0, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let shifted = log_p.broadcast_sub(&constants).unwrap();
        let labels = |log_p: &Tensor, solver: SelfLabels| solver.solve(log_p).unwrap().labels;
        assert_eq!(labels(&log_p, SOLVER), labels(&shifted, SOLVER));
        let own = labels(&log_p, SelfLabels { max_iterations: 0, ..SOLVER });
        assert_eq!(own, log_p.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap());
        let single = labels(&log_p.to_dtype(DType::F32).unwrap(), SOLVER);
        assert_eq!(single, labels(&log_p, SOLVER));
    }

    #[test]
    fn bad_input_is_refused() {
        let log_p = log_p(4, 3, 1.0);
        let error = |solver: SelfLabels, log_p: &Tensor| solver.solve(log_p).unwrap_err().to_string();
        for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(error(SelfLabels { lambda, ..SOLVER }, &log_p).contains(&lambda.to_string()));
        }
        assert!(error(SelfLabels { tolerance: 0.0, ..SOLVER }, &log_p).contains("tolerance"));
        let infinite = Tensor::new(&[[0f64, 0.0], [0.0, f64::NEG_INFINITY]], &Device::Cpu).unwrap();
        assert!(error(SOLVER, &infinite).contains("sample 1 has the log-probability -inf of label 1"));
        assert!(error(SOLVER, &Tensor::zeros((0, 3), DType::F64, &Device::Cpu).unwrap()).contains("got 0"));
        assert!(SOLVER.solve(&log_p.flatten_all().unwrap()).is_err());
    }
}
