//! Initial values of parameters, equal in distribution to PyTorch's.

use candle_core::{DType, Device, Result, Tensor};
use rand_core::RngCore;

use crate::rng::{Purpose, rng};

/// Which side of a weight the Kaiming initialisation preserves the variance on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// Inputs of one output unit: the forward pass.
    In,
    /// Outputs that one input unit feeds: the backward pass, torchvision's choice for ResNet.
    Out,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Const(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// Normal with mean 0 and variance `2 / fan` (He et al., 2015), for layers before a ReLU.
    KaimingNormal(Fan),
    /// Uniform with variance `2 / (fan_in + fan_out)` (Glorot and Bengio, 2010), as `torch.nn.init.xavier_uniform_`.
    XavierUniform,
    /// Uniform in `±1 / sqrt(fan_in)`: the default of `torch.nn.Linear` and `torch.nn.Conv2d`.
    TorchDefault {
        /// Inputs of one output unit; a bias needs its weight's.
        fan_in: usize,
    },
}

impl Init {
    /// The initial tensor of the parameter `name`: a function of the seed, the name and the shape alone.
    pub(crate) fn sample(
        self,
        shape: &[usize],
        seed: u64,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let n = shape.iter().product();
        let mut rng = rng(seed, Purpose::Init, fnv1a(name), 0, 0);
        let values: Vec<f64> = match self {
            Init::Const(value) => vec![value; n],
            Init::Normal { std } => normal(&mut rng, n, std),
            Init::Uniform { bound } => uniform(&mut rng, n, bound),
            Init::KaimingNormal(fan) => normal(&mut rng, n, (2.0 / fan_of(shape, fan) as f64).sqrt()),
            Init::XavierUniform => {
                let fans = fan_of(shape, Fan::In) + fan_of(shape, Fan::Out);
                uniform(&mut rng, n, (6.0 / fans as f64).sqrt())
            }
            Init::TorchDefault { fan_in } => uniform(&mut rng, n, 1.0 / (fan_in as f64).sqrt()),
        };
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }
}

/// Fan of a weight of shape `(out, in, kernel…)`.
pub(crate) fn fan_of(shape: &[usize], fan: Fan) -> usize {
    let kernel: usize = shape.iter().skip(2).product();
    let side = match fan {
        Fan::In => shape.get(1),
        Fan::Out => shape.first(),
    };
    (side.copied().unwrap_or(1) * kernel).max(1)
}

fn uniform(rng: &mut impl RngCore, n: usize, bound: f64) -> Vec<f64> {
    (0..n).map(|_| (2.0 * unit(rng) - 1.0) * bound).collect()
}

/// Box–Muller, one pair of normals from two uniforms.
fn normal(rng: &mut impl RngCore, n: usize, std: f64) -> Vec<f64> {
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let radius = std * (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(rng)).sin_cos();
        values.extend([radius * cos, radius * sin]);
    }
    values.truncate(n);
    values
}

/// Uniform in `[0, 1)` with 53 random bits.
fn unit(rng: &mut impl RngCore) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// FNV-1a, 64 bits: turns a parameter's name into a coordinate of the generator.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf29ce484222325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(init: Init, shape: &[usize], name: &str) -> Vec<f64> {
        init.sample(shape, 3, name, DType::F64, &Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
    }

    #[test]
    fn distributions_have_their_moments() {
        let shape = [64, 32, 3, 3];
        for (init, std) in [
            (Init::Normal { std: 0.02 }, 0.02),
            (Init::Uniform { bound: 0.3 }, 0.3 / 3f64.sqrt()),
            (Init::KaimingNormal(Fan::Out), (2.0 / (64.0 * 9.0f64)).sqrt()),
            (Init::KaimingNormal(Fan::In), (2.0 / (32.0 * 9.0f64)).sqrt()),
            (Init::XavierUniform, (2.0 / (96.0 * 9.0f64)).sqrt()),
            (Init::TorchDefault { fan_in: 288 }, 1.0 / (3.0 * 288f64).sqrt()),
        ] {
            let (mean, measured) = moments(&sample(init, &shape, "w"));
            assert!(mean.abs() < 4.0 * std / 18432f64.sqrt(), "{init:?}: mean {mean}");
            assert!((measured / std - 1.0).abs() < 0.03, "{init:?}: std {measured}, expected {std}");
        }
    }

    #[test]
    fn values_depend_on_the_name_and_on_nothing_before() {
        let init = Init::Normal { std: 1.0 };
        assert_eq!(sample(init, &[5], "a"), sample(init, &[5], "a"));
        assert_ne!(sample(init, &[5], "a"), sample(init, &[5], "b"));
    }
}
