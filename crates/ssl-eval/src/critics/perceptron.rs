//! The critic: one perceptron for x, one for y, and the product of what they say.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand_core::RngCore;

use super::CriticConfig;
use super::pairs::Pairs;

/// Scores `f(x) · g(y)`.
pub(super) struct Critic {
    f: Perceptron,
    g: Perceptron,
}

impl Critic {
    pub(super) fn new(
        x_dim: usize,
        y_dim: usize,
        config: &CriticConfig,
        generator: &mut dyn RngCore,
    ) -> Result<Self> {
        let f = Perceptron::new(x_dim, config, generator)?;
        Ok(Self { f, g: Perceptron::new(y_dim, config, generator)? })
    }

    /// The score of each x with each y, `(M, M)`; pairs that belong together are on the diagonal.
    pub(super) fn scores(&self, pairs: &Pairs) -> Result<Tensor> {
        self.f.forward(pairs.x())?.matmul(&self.g.forward(pairs.y())?.t()?)
    }

    pub(super) fn parameters(&self) -> Vec<&Var> {
        self.f.layers.iter().chain(&self.g.layers).flat_map(|(weight, bias)| [weight, bias]).collect()
    }
}

/// Affine layers with ReLU between them.
struct Perceptron {
    /// Weights `(in, out)` and biases `(out,)`.
    layers: Vec<(Var, Var)>,
}

impl Perceptron {
    /// Uniform in `±1 / sqrt(in)`, as `torch.nn.Linear`.
    fn new(dim: usize, config: &CriticConfig, generator: &mut dyn RngCore) -> Result<Self> {
        let mut widths = vec![dim];
        widths.extend(vec![config.width; config.hidden_layers]);
        widths.push(config.embedding);
        let layer = |widths: &[usize]| {
            let (fan_in, out) = (widths[0], widths[1]);
            let bound = 1.0 / (fan_in as f64).sqrt();
            let mut draw = |n: usize| -> Vec<f32> {
                (0..n).map(|_| ((2.0 * unit(generator) - 1.0) * bound) as f32).collect()
            };
            let weight = Tensor::from_vec(draw(fan_in * out), (fan_in, out), &Device::Cpu)?;
            let bias = Tensor::from_vec(draw(out), out, &Device::Cpu)?;
            Ok((Var::from_tensor(&weight)?, Var::from_tensor(&bias)?))
        };
        Ok(Self { layers: widths.windows(2).map(layer).collect::<Result<_>>()? })
    }

    /// `(M, in)` to `(M, embedding)`.
    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let mut hidden = rows.to_dtype(DType::F32)?;
        for (i, (weight, bias)) in self.layers.iter().enumerate() {
            let input = if i == 0 { hidden } else { hidden.relu()? };
            hidden = input.matmul(weight)?.broadcast_add(bias)?;
        }
        Ok(hidden)
    }
}

/// Uniform in `[0, 1)` with 53 random bits.
fn unit(generator: &mut dyn RngCore) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
