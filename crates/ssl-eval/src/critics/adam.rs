//! The optimiser of the critics.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

use super::CriticConfig;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Gradients of a larger norm are shortened to it: those of `exp s` have rare ones that would stall the steps behind.
const MAX_NORM: f64 = 1.0;

/// Adam (Kingma & Ba, 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter, 2019) of matrices.
pub(super) struct Adam {
    /// Moving averages of each parameter's gradient and of its square.
    moments: Vec<(Vec<f64>, Vec<f64>)>,
    steps: i32,
}

impl Adam {
    pub(super) fn new(parameters: &[&Var]) -> Self {
        let zeros = |parameter: &&Var| vec![0.0; parameter.elem_count()];
        Self { moments: parameters.iter().map(|p| (zeros(p), zeros(p))).collect(), steps: 0 }
    }

    /// Makes a step downhill; false, and no step, if a gradient is not finite.
    pub(super) fn step(
        &mut self,
        parameters: &[&Var],
        gradients: &GradStore,
        config: &CriticConfig,
    ) -> Result<bool> {
        let mut values = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let gradient = gradients.get(parameter.as_tensor());
            values.push(match gradient {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; parameter.elem_count()],
            });
        }
        let norm = values.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok(false);
        }
        self.steps += 1;
        let scale = (MAX_NORM / norm).min(1.0);
        let rate = config.learning_rate / (1.0 - BETA1.powi(self.steps));
        let second_correction = 1.0 - BETA2.powi(self.steps);
        for ((parameter, gradient), (m, v)) in parameters.iter().zip(values).zip(&mut self.moments) {
            let decay = if parameter.rank() > 1 { config.learning_rate * config.weight_decay } else { 0.0 };
            let mut data = parameter.flatten_all()?.to_vec1::<f32>()?;
            for (((value, g), m), v) in data.iter_mut().zip(gradient).zip(m).zip(v) {
                let g = scale * f64::from(g);
                *m += (1.0 - BETA1) * (g - *m);
                *v += (1.0 - BETA2) * (g * g - *v);
                let step = rate * *m / ((*v / second_correction).sqrt() + EPSILON);
                *value = (f64::from(*value) * (1.0 - decay) - step) as f32;
            }
            parameter.set(&Tensor::from_vec(data, parameter.shape(), &Device::Cpu)?)?;
        }
        Ok(true)
    }
}
