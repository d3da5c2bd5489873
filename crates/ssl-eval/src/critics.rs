//! Mutual information by critics: perceptrons that learn which rows belong together, measured on rows that they have not
//! seen.
//!
//! Poole et al., "On Variational Bounds of Mutual Information", 2019 (<https://arxiv.org/abs/1905.06922>), compares the
//! bounds; each variant of [`Bound`] names its own paper. The critic is the separable one of that paper's section 3, a
//! product of an embedding of x and one of y. In the papers every step sees new samples; here rows are few, so training
//! stops by a second part of them and the estimate is made on a third.

mod adam;
mod bound;
mod pairs;
mod perceptron;

use candle_core::Tensor;
use rand_core::RngCore;

pub use self::bound::Bound;

use self::adam::Adam;
use self::pairs::{Pairs, Parts, permutation};
use self::perceptron::Critic;
use crate::features::check_size;
use crate::logistic_regression::check_positive;
use crate::{Error, Features, Result};

/// Steps between two looks at the validation part.
const CHECK_EVERY: usize = 25;

/// Settings of the critics and their training.
#[derive(Clone, Debug, PartialEq)]
pub struct CriticConfig {
    /// Width of the hidden layers, at least 1.
    pub width: usize,
    /// Columns of the embeddings whose product is the score, at least 1.
    pub embedding: usize,
    /// The number of hidden layers; without any, scores are bilinear.
    pub hidden_layers: usize,
    /// Steps of the optimiser at most.
    pub max_steps: usize,
    /// Training stops when the objective of the validation part has not risen for so many steps, at least 1.
    pub patience: usize,
    /// Pairs of a step, and of a batch of held-out ones: 2 to the size of the smallest part.
    pub batch_size: usize,
    /// Learning rate of Adam, above 0.
    pub learning_rate: f64,
    /// Decoupled weight decay, at least 0.
    pub weight_decay: f64,
    /// The share of the rows that the estimate is made on, above 0; with `validation_share` below 1.
    pub test_share: f64,
    /// The share of the rows that say when to stop, above 0.
    pub validation_share: f64,
}

impl Default for CriticConfig {
    fn default() -> Self {
        Self {
            width: 128,
            embedding: 64,
            hidden_layers: 1,
            max_steps: 2000,
            patience: 200,
            batch_size: 256,
            learning_rate: 5e-4,
            weight_decay: 1.0,
            test_share: 0.25,
            validation_share: 0.15,
        }
    }
}

impl CriticConfig {
    /// Checks all settings but `batch_size`, whose range depends on the number of rows.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn check(&self) -> Result<()> {
        for (field, value) in
            [("width", self.width), ("embedding", self.embedding), ("patience", self.patience)]
        {
            if value == 0 {
                return Err(Error::Config { field, value: value.to_string(), allowed: "at least 1" });
            }
        }
        check_positive("learning_rate", self.learning_rate)?;
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            let value = self.weight_decay.to_string();
            return Err(Error::Config { field: "weight_decay", value, allowed: "at least 0 and finite" });
        }
        let shares = [("test_share", self.test_share), ("validation_share", self.validation_share)];
        let outside = shares.into_iter().find(|(_, share)| !(*share > 0.0 && *share < 1.0));
        let together = self.test_share + self.validation_share >= 1.0;
        if let Some((field, share)) = outside.or(together.then_some(shares[0])) {
            let allowed = "above 0 and below 1, also together with the other held-out share";
            return Err(Error::Config { field, value: share.to_string(), allowed });
        }
        Ok(())
    }
}

/// An estimate by a critic.
#[derive(Clone, Debug, PartialEq)]
pub struct CriticInformation {
    /// The estimate on the test part, in nats; below 0 if the critic has learnt nothing that holds there, and minus
    /// infinity if `exp s` of [`Bound::Nwj`] overflows, with an infinite error.
    pub nats: f64,
    /// What the estimate cannot exceed, in nats, for a bound that has such a limit.
    pub ceiling: Option<f64>,
    /// The standard error of `nats` for this critic: how far other rows of the test part would have moved it. That
    /// another training would have led to another critic is not in it.
    pub standard_error: f64,
    /// The step of the optimiser that the critic is from, the best of the validation part.
    pub steps: usize,
}

/// Estimates the mutual information of rows of `x` and of `y` in nats by a critic that is trained for it; labels are not
/// read.
///
/// `generator` parts the rows for training, validation and test, and draws the initial weights and the batches. Columns
/// are standardised by the training rows. Test rows beyond the last full batch are left out.
///
/// # Bias, variance, ceiling
/// Each [`Bound`] says its own. A critic that is measured on rows that it has not seen makes [`Bound::InfoNce`] and
/// [`Bound::Nwj`] lower bounds up to the noise of those rows, for any critic; how far below the truth depends on what a
/// critic of this size learns from this many rows. [`Bound::Smile`] and [`Bound::DonskerVaradhan`] may exceed the truth.
/// No estimate that holds with confidence can be above about the logarithm of the number of rows, whatever the bound
/// (McAllester & Stratos, "Formal Limitations on the Measurement of Mutual Information", 2020,
/// <https://arxiv.org/abs/1811.04251>). The README has a table of all estimators for Gaussians.
///
/// The result is a function of the arguments and the state of `generator`, equal for every number of threads. Training
/// ends early, and the best critic so far stands, if a gradient is no longer finite.
///
/// # Errors
/// If the numbers of rows differ, a setting is out of range, or a part has no full batch.
///
/// # Example
/// ```
/// use rand_chacha::ChaCha8Rng;
/// use rand_core::SeedableRng;
/// use ssl_eval::{Bound, CriticConfig, Features, critic_information};
///
/// // y is x with a hundredth of noise, which is far more information than a batch of 64 can show.
/// let sine = |i: u16, power: i32| f64::from(i).powi(power).sin();
/// let x = Features::new((0..600).map(|i| sine(i, 2) as f32).collect(), 1, vec![0; 600])?;
/// let y = (0..600).map(|i| (sine(i, 2) + 0.01 * sine(i, 3)) as f32).collect();
/// let y = Features::new(y, 1, vec![0; 600])?;
///
/// let config = CriticConfig { batch_size: 64, max_steps: 200, ..Default::default() };
/// let found = critic_information(&x, &y, Bound::InfoNce, &config, &mut ChaCha8Rng::seed_from_u64(1))?;
/// assert_eq!(found.ceiling, Some(64f64.ln()));
/// assert!(found.nats > 1.0 && found.nats < 64f64.ln());
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn critic_information(
    x: &Features,
    y: &Features,
    bound: Bound,
    config: &CriticConfig,
    generator: &mut dyn RngCore,
) -> Result<CriticInformation> {
    config.check()?;
    bound.check()?;
    check_size("number of rows of y", y.rows(), x.rows())?;
    let parts = Parts::draw(x, y, config, generator)?;
    let critic = Critic::new(x.dim(), y.dim(), config, generator)?;
    let steps = train(&critic, &parts, bound, config, generator)?;
    let batches = parts.test.batches(config.batch_size)?;
    let scores: Vec<_> =
        batches.iter().map(|batch| critic.scores(batch)?.to_vec2()).collect::<candle_core::Result<_>>()?;
    let (nats, standard_error) = bound.measure(&scores);
    Ok(CriticInformation { nats, ceiling: bound.ceiling(config.batch_size), standard_error, steps })
}

/// Trains `critic`, leaves it with the parameters that are best for the validation part, and returns their step.
fn train(
    critic: &Critic,
    parts: &Parts,
    bound: Bound,
    config: &CriticConfig,
    generator: &mut dyn RngCore,
) -> Result<usize> {
    let parameters = critic.parameters();
    let copies = || parameters.iter().map(|p| p.copy()).collect::<candle_core::Result<Vec<Tensor>>>();
    let validation = parts.validation.batches(config.batch_size)?;
    let mut best = (objective(critic, &validation, bound)?, 0, copies()?);
    let mut adam = Adam::new(&parameters);
    let mut order = Vec::new();
    for step in 1..=config.max_steps {
        if order.len() < config.batch_size {
            order = permutation(parts.train.rows()?, generator);
        }
        let batch = parts.train.select(&order.split_off(order.len() - config.batch_size))?;
        let gradients = bound.objective(&critic.scores(&batch)?)?.neg()?.backward()?;
        if !adam.step(&parameters, &gradients, config)? {
            break;
        }
        if step % CHECK_EVERY == 0 || step == config.max_steps {
            let value = objective(critic, &validation, bound)?;
            if value > best.0 {
                best = (value, step, copies()?);
            } else if step >= best.1 + config.patience {
                break;
            }
        }
    }
    parameters.iter().zip(&best.2).try_for_each(|(parameter, value)| parameter.set(value))?;
    Ok(best.1)
}

/// The mean of the objective over batches.
fn objective(critic: &Critic, batches: &[Pairs], bound: Bound) -> Result<f64> {
    let mut sum = 0.0;
    for batch in batches {
        sum += f64::from(bound.objective(&critic.scores(batch)?)?.to_scalar::<f32>()?);
    }
    Ok(sum / batches.len() as f64)
}
