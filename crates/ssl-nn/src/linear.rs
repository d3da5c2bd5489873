//! Fully connected layer.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::convolve::{parts, sum_in_order};
use crate::dense::{Operand, add_bias, add_columns, add_weight_gradient};
use crate::fresh::Fresh;
use crate::graph::{gradient, node};
use crate::init::Init;
use crate::params::Scope;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// Rows that are computed together.
const ROWS: usize = 112;

/// Settings of a linear layer; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug)]
pub struct LinearConfig {
    /// Whether there is a bias.
    pub bias: bool,
    /// Initial weight; `None` is PyTorch's uniform `±1/sqrt(inputs)`.
    pub init: Option<Init>,
    /// Initial bias; `None` is PyTorch's uniform `±1/sqrt(inputs)`.
    pub bias_init: Option<Init>,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self { bias: true, init: None, bias_init: None }
    }
}

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features; creates `weight` `(outputs, inputs)` and perhaps `bias`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(inputs: usize, outputs: usize, config: LinearConfig, scope: &Scope) -> Result<Self> {
        Self::named(inputs, outputs, config, scope, ["weight", "bias"])
    }

    /// [`Linear::new`] under other names than `weight` and `bias`.
    pub(crate) fn named(
        inputs: usize,
        outputs: usize,
        config: LinearConfig,
        scope: &Scope,
        [weight, bias]: [&str; 2],
    ) -> Result<Self> {
        let default = Init::TorchDefault { fan_in: inputs };
        let weight = scope.trainable(weight, (outputs, inputs), config.init.unwrap_or(default))?;
        let bias = || scope.trainable(bias, outputs, config.bias_init.unwrap_or(default));
        Ok(Self { weight, bias: config.bias.then(bias).transpose()? })
    }

    /// The same layer with parameters that get no gradient. They stay those of the store.
    pub fn frozen(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach) }
    }

    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `(…, inputs)` to `(…, outputs)`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref(), None)
    }

    /// [`Linear::forward`] and then `activation`, in one pass over memory.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref(), Some(activation))
    }
}

/// `activation(x Wᵀ + b)`, as `torch.nn.functional.linear` with an activation after it.
///
/// # Shapes
/// `x`: `(…, inputs)` with at least two dimensions; `weight`: `(outputs, inputs)`; `bias`: `(outputs)`; result:
/// `(…, outputs)`. `f32` or `f64`.
///
/// # Errors
/// If the shapes do not fit.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_nn::linear;
///
/// let (x, w) = (Tensor::new(&[[1f32, 2.]], &Device::Cpu)?, Tensor::new(&[[3f32, 4.]], &Device::Cpu)?);
/// assert_eq!(linear(&x, &w, None, None)?.to_vec2::<f32>()?, [[11.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let fits = x.rank() >= 2 && x.dims().last() == Some(&inputs) && outputs * inputs > 0;
    if !fits || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!(
            "linear: x {:?} does not fit the weight {:?} (outputs, inputs) and the bias {:?}",
            x.dims(),
            weight.dims(),
            bias.map(Tensor::dims)
        );
    }
    if !x.device().is_cpu() {
        let y = x.broadcast_matmul(&weight.t()?)?;
        let y = bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))?;
        return activation.map_or(Ok(y.clone()), |activation| activation.apply(&y));
    }
    dispatch!(x.dtype(), "linear", T => on_cpu::<T>(x, weight, bias, activation))
}

fn on_cpu<T: Real>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let kept: Vec<Tensor> =
        [Some(x), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous).collect::<Result<_>>()?;
    let rows = x.elem_count() / inputs;
    let (mut y, mut before) =
        (Fresh::new(rows * outputs), Fresh::new(activation.map_or(0, |_| rows * outputs)));
    {
        let (x, weight, bias) = (reader(&kept[0]), reader(&kept[1]), kept.get(2).map(reader));
        let operand = Operand::forward(weight.slice::<T>()?, inputs);
        let bias = bias.as_ref().map(|bias| bias.slice::<T>()).transpose()?;
        let product = |x: &[T], y: &mut [T]| {
            operand.apply(x, y);
            if let Some(bias) = bias {
                add_bias(y, bias);
            }
        };
        let x = x.slice::<T>()?.par_chunks(ROWS * inputs).zip(y.par_parts(ROWS * outputs));
        match activation {
            None => x.for_each(|(x, y)| product(x, y.clear())),
            Some(activation) => x.zip(before.par_parts(ROWS * outputs)).for_each(|((x, y), before)| {
                let before = before.clear();
                product(x, before);
                activation.values(before, y.clear());
            }),
        }
    }
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = outputs;
    let (inputs, before) = (kept.clone(), before.into_vec());
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    node("linear", &inputs, (y.into_vec(), shape), move |_, dy| {
        let dy = reader(dy);
        match activation {
            None => backward(&kept, dy.slice::<T>()?),
            Some(activation) => {
                let mut d_before = Fresh::new(before.len());
                let size = ROWS * before.len().div_ceil(rows.max(1));
                d_before
                    .par_parts(size)
                    .zip(before.par_chunks(size))
                    .zip(dy.slice::<T>()?.par_chunks(size))
                    .for_each(|((d_before, before), dy)| {
                        let d_before = d_before.clear();
                        activation.gradients(before, dy, d_before);
                    });
                backward(&kept, &d_before.into_vec())
            }
        }
    })
}

/// The gradients of input, weight and perhaps bias; `dy` is that of the output before an activation.
fn backward<T: Real>(inputs: &[Tensor], dy: &[T]) -> Result<Vec<Option<Tensor>>> {
    let (outputs, n) = inputs[1].dims2()?;
    let (x, weight) = (reader(&inputs[0]), reader(&inputs[1]));
    let (x, weight) = (x.slice::<T>()?, weight.slice::<T>()?);
    let wants = [0, 1, 2].map(|i| inputs.get(i).is_some_and(Tensor::track_op));
    let dx = wants[0].then(|| {
        let (operand, mut dx) = (Operand::backward(weight, n), Fresh::new(x.len()));
        let rows = dx.par_parts(ROWS * n).zip(dy.par_chunks(ROWS * outputs));
        rows.for_each(|(dx, dy)| operand.apply(dy, dx.clear()));
        dx.into_vec()
    });
    let chunks = (dy.len() / outputs).div_ceil(ROWS);
    let part = chunks.div_ceil(parts(weight.len())).max(1) * ROWS;
    let sizes = [if wants[1] { weight.len() } else { 0 }, if wants[2] { outputs } else { 0 }];
    let sums: Vec<[Vec<T>; 2]> = x
        .par_chunks(part * n)
        .zip(dy.par_chunks(part * outputs))
        .map(|(x, dy)| {
            let [mut dw, mut db] = sizes.map(|size| vec![T::ZERO; size]);
            let mut packed = Vec::new();
            for (x, dy) in x.chunks(ROWS * n).zip(dy.chunks(ROWS * outputs)) {
                if wants[1] {
                    add_weight_gradient((dy, outputs), (x, n), &mut dw, &mut packed);
                }
                if wants[2] {
                    add_columns(dy, &mut db);
                }
            }
            [dw, db]
        })
        .collect();
    let (dw, db): (Vec<_>, Vec<_>) = sums.into_iter().map(|[dw, db]| (dw, db)).unzip();
    let mut gradients = vec![dx.map(|dx| gradient(dx, &inputs[0])).transpose()?.flatten()];
    for (i, sums) in [(1, dw), (2, db)] {
        if i < inputs.len() {
            let sum = || if sums.is_empty() { vec![T::ZERO; sizes[i - 1]] } else { sum_in_order(sums) };
            gradients.push(if wants[i] { gradient(sum(), &inputs[i])? } else { None });
        }
    }
    Ok(gradients)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn forward_is_the_affine_map() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let linear = Linear::new(2, 1, LinearConfig::default(), &params.root()).unwrap();
        let w = params.get("weight").unwrap().to_vec2::<f32>().unwrap()[0].clone();
        let b = params.get("bias").unwrap().to_vec1::<f32>().unwrap()[0];
        let y = linear.forward(&Tensor::new(&[[2f32, -1.]], &Device::Cpu).unwrap()).unwrap();
        let expected = 2.0 * w[0] - w[1] + b;
        assert!((y.to_vec2::<f32>().unwrap()[0][0] - expected).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_all_shapes() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let error =
            linear(&zeros(&[2, 3]), &zeros(&[5, 4]), Some(&zeros(&[5])), None).unwrap_err().to_string();
        assert!(error.contains("[2, 3]") && error.contains("[5, 4]") && error.contains("[5]"), "{error}");
        assert!(linear(&zeros(&[4]), &zeros(&[5, 4]), None, None).is_err());
        assert!(linear(&zeros(&[2, 4]), &zeros(&[5, 4]), Some(&zeros(&[4])), None).is_err());
        assert_eq!(linear(&zeros(&[0, 4]), &zeros(&[5, 4]), None, None).unwrap().dims(), [0, 5]);
    }
}
