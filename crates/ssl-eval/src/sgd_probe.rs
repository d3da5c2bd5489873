//! Linear probes as papers train them: by SGD on frozen features, with the settings of each by name.
//!
//! Papers show the classifier a new random crop of each image in every epoch; here it sees the same features each time, which
//! is a hundred times cheaper and a point or two lower or higher. MAE's batch norm without parameters is standardisation by
//! the whole training set, which is what it comes to for features that do not change. The protocols with LARS are for data
//! sets as large as ImageNet: with few steps of large batches their weights hardly move.

use candle_core::{Device, Tensor};
use rand_core::RngCore;

use crate::accuracy::accuracy;
use crate::draw::{choose, normal};
use crate::split::stratified_split;
use crate::standardize::Standardizer;
use crate::{Error, Features, Result};

/// LARS's trust coefficient.
const TRUST: f64 = 1e-3;

/// How the learning rate falls.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeSchedule {
    /// Half a cosine to 0, step by step, after a linear rise over so many epochs.
    Cosine {
        /// Epochs of the rise.
        warmup_epochs: usize,
    },
    /// A tenth of it from each of these shares of the epochs on.
    Steps {
        /// In `(0, 1)`, ascending.
        shares: Vec<f64>,
    },
}

/// What the classifier sees of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeInput {
    /// As they are.
    AsIs,
    /// Each dimension with mean 0 and deviation 1 over the training set.
    Standardized,
    /// Each row of length 1.
    UnitLength,
}

/// Settings of a probe by SGD.
#[derive(Clone, Debug, PartialEq)]
pub struct SgdProbeConfig {
    /// Learning rates for a batch of 256; they are scaled by `batch_size / 256`. Of several, the best on held-out training
    /// samples is taken.
    pub learning_rates: Vec<f64>,
    /// Samples of a step, at most those that there are.
    pub batch_size: usize,
    /// Passes over the training samples.
    pub epochs: usize,
    /// Momentum, in `[0, 1)`.
    pub momentum: f64,
    /// Whether it is Nesterov's.
    pub nesterov: bool,
    /// Weight decay of the weights, not of the intercepts.
    pub weight_decay: f64,
    /// Whether LARS scales the steps of the weights.
    pub lars: bool,
    /// How the learning rate falls.
    pub schedule: ProbeSchedule,
    /// What the classifier sees.
    pub input: ProbeInput,
    /// Share of each class that is held out to choose the learning rate, in `(0, 1)`.
    pub validation_fraction: f64,
}

impl SgdProbeConfig {
    /// The protocols by name.
    pub const NAMES: [&str; 9] =
        ["moco", "moco-v3", "simsiam", "byol", "swav", "barlow-twins", "dino", "dinov2", "mae"];

    /// A paper's settings, or `None` for a name that is not one of [`NAMES`](Self::NAMES). VICReg's are those of Barlow Twins.
    pub fn named(name: &str) -> Option<Self> {
        let base = Self {
            learning_rates: vec![0.1],
            batch_size: 256,
            epochs: 100,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            lars: false,
            schedule: ProbeSchedule::Cosine { warmup_epochs: 0 },
            input: ProbeInput::AsIs,
            validation_fraction: 0.1,
        };
        Some(match name {
            // He et al., 2019, section 4.1.
            "moco" => {
                let schedule = ProbeSchedule::Steps { shares: vec![0.6, 0.8] };
                Self { learning_rates: vec![30.0], schedule, ..base }
            }
            "moco-v3" => Self { batch_size: 1024, epochs: 90, ..base },
            "simsiam" => Self { batch_size: 4096, epochs: 90, lars: true, ..base },
            "byol" => {
                Self { learning_rates: vec![0.2], batch_size: 1024, epochs: 80, nesterov: true, ..base }
            }
            "swav" | "barlow-twins" => Self { learning_rates: vec![0.3], weight_decay: 1e-6, ..base },
            "dino" => Self { learning_rates: vec![0.001], batch_size: 1024, ..base },
            // Oquab et al., 2023, appendix B.3: the grid of the official code; that over blocks is the caller's.
            "dinov2" => {
                let learning_rates =
                    [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1].to_vec();
                Self { learning_rates, batch_size: 1024, epochs: 10, ..base }
            }
            "mae" => {
                let schedule = ProbeSchedule::Cosine { warmup_epochs: 10 };
                let input = ProbeInput::Standardized;
                Self { batch_size: 16_384, epochs: 90, lars: true, schedule, input, ..base }
            }
            _ => return None,
        })
    }

    /// Steps of a training on `rows` samples.
    pub fn steps(&self, rows: usize) -> usize {
        self.epochs * (rows / self.batch_size.min(rows.max(1)).max(1))
    }

    fn check(&self) -> Result<()> {
        let refuse = |field, value: String, allowed| Err(Error::Config { field, value, allowed });
        if self.learning_rates.is_empty() || !self.learning_rates.iter().all(|lr| *lr > 0.0 && lr.is_finite())
        {
            return refuse("learning_rates", format!("{:?}", self.learning_rates), "one or more above 0");
        }
        if self.batch_size == 0 || self.epochs == 0 {
            return refuse(
                "batch_size and epochs",
                format!("{} and {}", self.batch_size, self.epochs),
                "at least 1",
            );
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", self.momentum.to_string(), "0 to 1 (exclusive)");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return refuse("weight_decay", self.weight_decay.to_string(), "0 or above");
        }
        if !(self.validation_fraction > 0.0 && self.validation_fraction < 1.0) {
            return refuse(
                "validation_fraction",
                self.validation_fraction.to_string(),
                "between 0 and 1 (exclusive)",
            );
        }
        Ok(())
    }
}

/// The outcome of a probe by SGD.
#[derive(Clone, Debug, PartialEq)]
pub struct SgdProbeResult {
    /// Accuracy on the test set, after the last epoch.
    pub top1: f64,
    /// The class of each test sample.
    pub classes: Vec<u32>,
    /// The learning rate that was taken, for a batch of 256.
    pub learning_rate: f64,
    /// The number of the features that were taken, where there were several.
    pub input: usize,
}

/// Trains a linear classifier by SGD on the training features, from weights of deviation 0.01, and reports its accuracy on
/// the test features, which are not looked at before.
///
/// # Errors
/// If a setting is out of range, the dimensions differ, a label is not below `num_classes`, no class has two samples where one
/// must be held out, or the classifier has diverged.
///
/// # Example
/// ```
/// use rand_chacha::ChaCha8Rng;
/// use rand_core::SeedableRng;
/// use ssl_eval::{Features, SgdProbeConfig, sgd_probe};
///
/// let features = Features::new((0..64).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect(), 1, (0..64).map(|i| i % 2).collect())?;
/// let config = SgdProbeConfig::named("swav").ok_or("unknown")?;
/// let found = sgd_probe(&features, &features, 2, &config, &mut ChaCha8Rng::seed_from_u64(0))?;
/// assert_eq!(found.top1, 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sgd_probe(
    train: &Features,
    test: &Features,
    num_classes: usize,
    config: &SgdProbeConfig,
    rng: &mut dyn RngCore,
) -> Result<SgdProbeResult> {
    sgd_probe_of(&[(train.clone(), test.clone())], num_classes, config, rng)
}

/// [`sgd_probe`] of those of several features of the same samples that do best on the held-out training samples: training and
/// test features each, as of other blocks of a network. Every learning rate is tried on each.
///
/// # Errors
/// As [`sgd_probe`], or if there are no features.
pub fn sgd_probe_of(
    inputs: &[(Features, Features)],
    num_classes: usize,
    config: &SgdProbeConfig,
    rng: &mut dyn RngCore,
) -> Result<SgdProbeResult> {
    config.check()?;
    let inputs = inputs.iter().map(|(train, test)| {
        train.check_labels(num_classes)?;
        test.check_labels(num_classes)?;
        test.check_dim(train.dim())?;
        seen(train, test, config.input)
    });
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let (mut input, mut learning_rate) = (0, config.learning_rates[0]);
    if inputs.len() * config.learning_rates.len() > 1 {
        let mut best = -1.0;
        for (number, (train, _)) in inputs.iter().enumerate() {
            let split = stratified_split(train.labels(), num_classes, config.validation_fraction)?;
            let (fit, held_out) = (train.select(&split.fit)?, train.select(&split.held_out)?);
            for &lr in &config.learning_rates {
                // One that diverges is not the best.
                let Ok(classes) = Classifier::train(&fit, num_classes, config, lr, rng)?.predict(&held_out)
                else {
                    continue;
                };
                let top1 = accuracy(&classes, held_out.labels())?;
                if top1 > best {
                    (best, input, learning_rate) = (top1, number, lr);
                }
            }
        }
    }
    let (train, test) = inputs.get(input).ok_or(Error::Empty)?;
    let classes = Classifier::train(train, num_classes, config, learning_rate, rng)?.predict(test)?;
    Ok(SgdProbeResult { top1: accuracy(&classes, test.labels())?, classes, learning_rate, input })
}

/// Training and test features as the classifier sees them.
fn seen(train: &Features, test: &Features, input: ProbeInput) -> Result<(Features, Features)> {
    Ok(match input {
        ProbeInput::AsIs => (train.clone(), test.clone()),
        ProbeInput::Standardized => {
            let standardizer = Standardizer::fit(train);
            (standardizer.apply(train)?, standardizer.apply(test)?)
        }
        ProbeInput::UnitLength => (unit_length(train)?, unit_length(test)?),
    })
}

fn unit_length(features: &Features) -> Result<Features> {
    let mut data = features.data().to_vec();
    for row in data.chunks_exact_mut(features.dim()) {
        let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    Features::new(data, features.dim(), features.labels().to_vec())
}

/// `softmax(W x + b)`, with the velocities of its parameters.
struct Classifier {
    /// `(C, D)`, then the intercepts `(C)`, row-major.
    parameters: [Vec<f32>; 2],
    velocities: [Vec<f32>; 2],
    dim: usize,
}

impl Classifier {
    fn train(
        features: &Features,
        num_classes: usize,
        config: &SgdProbeConfig,
        lr: f64,
        rng: &mut dyn RngCore,
    ) -> Result<Self> {
        let (n, dim) = (features.rows(), features.dim());
        let weights: Vec<f32> = (0..num_classes * dim).map(|_| (0.01 * normal(rng)) as f32).collect();
        let parameters = [weights, vec![0.0; num_classes]];
        let velocities = parameters.each_ref().map(|values| vec![0.0; values.len()]);
        let mut own = Self { parameters, velocities, dim };
        let x = Tensor::from_slice(features.data(), (n, dim), &Device::Cpu)?;
        let batch = config.batch_size.min(n);
        let steps = n / batch;
        let peak = lr * batch as f64 / 256.0;
        let rows: Vec<u32> = (0..n as u32).collect();
        for epoch in 0..config.epochs {
            let order = choose(rng, &rows, n);
            for (place, index) in order.chunks_exact(batch).enumerate() {
                let labels: Vec<u32> = index.iter().map(|row| features.labels()[*row as usize]).collect();
                let x = x.index_select(&Tensor::new(index, &Device::Cpu)?, 0)?;
                own.step(&x, &labels, config, peak * factor(config, epoch * steps + place, steps))?;
            }
        }
        Ok(own)
    }

    /// One step on the rows `x`, `(B, D)`, at the rate `lr`.
    fn step(&mut self, x: &Tensor, labels: &[u32], config: &SgdProbeConfig, lr: f64) -> Result<()> {
        let c = self.parameters[1].len();
        let mut residuals = self.logits(x)?;
        for (row, label) in residuals.chunks_exact_mut(c).zip(labels) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|value| *value = (*value - most).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|value| *value /= sum * labels.len() as f32);
            row[*label as usize] -= 1.0 / labels.len() as f32;
        }
        let of_intercepts = (0..c).map(|class| residuals.iter().skip(class).step_by(c).sum()).collect();
        let residuals = Tensor::from_vec(residuals, (labels.len(), c), &Device::Cpu)?;
        let of_weights = residuals.t()?.matmul(x)?.flatten_all()?.to_vec1::<f32>()?;
        let gradients: [Vec<f32>; 2] = [of_weights, of_intercepts];
        for (i, gradient) in gradients.into_iter().enumerate() {
            let (w, v) = (&mut self.parameters[i], &mut self.velocities[i]);
            let decay = if i == 0 { config.weight_decay as f32 } else { 0.0 };
            let gradient: Vec<f32> = gradient.iter().zip(w.iter()).map(|(g, w)| g + decay * w).collect();
            let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let (size, slope) = (norm(w), norm(&gradient));
            let scaled = config.lars && i == 0 && size > 0.0 && slope > 0.0;
            let trust = if scaled { (TRUST * size / slope) as f32 } else { 1.0 };
            let momentum = config.momentum as f32;
            for ((w, v), g) in w.iter_mut().zip(v).zip(gradient) {
                let g = trust * g;
                *v = momentum * *v + g;
                *w -= lr as f32 * if config.nesterov { g + momentum * *v } else { *v };
            }
        }
        Ok(())
    }

    fn predict(&self, features: &Features) -> Result<Vec<u32>> {
        let x = Tensor::from_slice(features.data(), (features.rows(), self.dim), &Device::Cpu)?;
        let logits = self.logits(&x)?;
        if let Some(at) = logits.iter().position(|value| !value.is_finite()) {
            let c = self.parameters[1].len();
            return Err(Error::NonFinite { row: at / c, column: at % c, value: f64::from(logits[at]) });
        }
        let best = |row: &[f32]| {
            let mut best = 0;
            row.iter().enumerate().for_each(|(class, value)| {
                if *value > row[best] {
                    best = class
                }
            });
            best as u32
        };
        Ok(logits.chunks_exact(self.parameters[1].len()).map(best).collect())
    }

    /// `(N, C)` row-major.
    fn logits(&self, x: &Tensor) -> Result<Vec<f32>> {
        let [w, b] = &self.parameters;
        let w = Tensor::from_slice(w, (b.len(), self.dim), &Device::Cpu)?;
        let mut logits = x.matmul(&w.t()?)?.flatten_all()?.to_vec1::<f32>()?;
        logits.chunks_exact_mut(b.len()).for_each(|row| row.iter_mut().zip(b).for_each(|(l, b)| *l += b));
        Ok(logits)
    }
}

/// The share of the peak that the rate of a step has.
fn factor(config: &SgdProbeConfig, step: usize, steps_per_epoch: usize) -> f64 {
    let done = step as f64 / (config.epochs * steps_per_epoch) as f64;
    match &config.schedule {
        ProbeSchedule::Steps { shares } => {
            0.1f64.powi(shares.iter().filter(|share| done >= **share).count() as i32)
        }
        ProbeSchedule::Cosine { warmup_epochs } => {
            let warmup = *warmup_epochs as f64 / config.epochs as f64;
            match done < warmup {
                true => done / warmup,
                false => 0.5 * (1.0 + (std::f64::consts::PI * (done - warmup) / (1.0 - warmup)).cos()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::draw::uniform;

    /// Three noisy clouds.
    fn clouds(n: usize, seed: u64) -> Features {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let centres = [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]];
        let values = (0..n).flat_map(|i| centres[i % 3].map(|x| x + 2.0 * (uniform(&mut rng) - 0.5)));
        let data = values.map(|x| x as f32).collect();
        Features::new(data, 2, (0..n).map(|i| (i % 3) as u32).collect()).unwrap()
    }

    #[test]
    fn every_protocol_tells_clouds_apart_and_repeats_itself() {
        let (train, test) = (clouds(600, 1), clouds(300, 2));
        for name in SgdProbeConfig::NAMES {
            let config = SgdProbeConfig::named(name).unwrap();
            let probe = || sgd_probe(&train, &test, 3, &config, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
            let found = probe();
            // LARS moves weights by a thousandth a step, and DINOv2's ten epochs are ten steps here.
            let few = config.lars || config.steps(600) < 50;
            assert!(found.top1 > if few { 0.3 } else { 0.95 }, "{name}: {found:?}");
            assert_eq!(found, probe(), "{name}");
        }
        assert_eq!(SgdProbeConfig::named("none"), None);
    }

    #[test]
    fn rates_fall_as_they_should() {
        let steps = SgdProbeConfig::named("moco").unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(factor(&steps, 599, 10), 1.0) && close(factor(&steps, 600, 10), 0.1));
        assert!(close(factor(&steps, 800, 10), 0.01));
        let cosine = SgdProbeConfig { epochs: 90, ..SgdProbeConfig::named("mae").unwrap() };
        assert!(close(factor(&cosine, 50, 10), 0.5) && close(factor(&cosine, 100, 10), 1.0));
        assert!(close(factor(&cosine, 500, 10), 0.5));
    }

    #[test]
    fn one_step_is_that_of_the_formula() {
        // At weights of 0 every class has a third of the probability.
        let mut own = Classifier {
            parameters: [vec![0.0; 3], vec![0.0; 3]],
            velocities: [vec![0.0; 3], vec![0.0; 3]],
            dim: 1,
        };
        let x = Tensor::new(&[[3f32]], &Device::Cpu).unwrap();
        own.step(&x, &[1], &SgdProbeConfig::named("swav").unwrap(), 0.5).unwrap();
        let expected = [[-0.5, 1.0, -0.5], [-1.0 / 6.0, 1.0 / 3.0, -1.0 / 6.0]];
        for (own, expected) in own.parameters.iter().zip(expected) {
            assert!(own.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{own:?}");
        }
    }

    #[test]
    fn of_several_features_those_are_taken_that_tell_most() {
        let (train, test) = (clouds(600, 1), clouds(300, 2));
        let blind = |of: &Features| {
            let data = of.data().iter().map(|value| value.fract()).collect();
            Features::new(data, 2, of.labels().to_vec()).unwrap()
        };
        let inputs = [(blind(&train), blind(&test)), (train, test)];
        let config = SgdProbeConfig::named("swav").unwrap();
        let found = sgd_probe_of(&inputs, 3, &config, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert!(found.input == 1 && found.top1 > 0.95, "{found:?}");
        let none = sgd_probe_of(&[], 3, &config, &mut ChaCha8Rng::seed_from_u64(3)).unwrap_err();
        assert!(matches!(none, Error::Empty), "{none}");
    }

    #[test]
    fn a_grid_takes_the_rate_that_does_best_on_held_out_samples() {
        let config =
            SgdProbeConfig { learning_rates: vec![1e-7, 0.3], ..SgdProbeConfig::named("swav").unwrap() };
        let (train, test) = (clouds(600, 1), clouds(300, 2));
        let found = sgd_probe(&train, &test, 3, &config, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert_eq!(found.learning_rate, 0.3);
        let bad = SgdProbeConfig { learning_rates: vec![], ..config };
        let error = sgd_probe(&train, &test, 3, &bad, &mut ChaCha8Rng::seed_from_u64(3)).unwrap_err();
        assert!(error.to_string().contains("learning_rates is []"), "{error}");
    }
}
