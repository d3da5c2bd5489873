//! Batch normalisation (Ioffe & Szegedy, 2015) with PyTorch's conventions, optionally followed by a ReLU in the same
//! pass over memory.

use candle_core::{DType, Result, Tensor, Var, bail};

use crate::activation::relu;
use crate::channel_norm::{ChannelNorm, Statistics};
use crate::channels_last::{to_channels_first, to_channels_last};
use crate::graph::{gradient, node};
use crate::init::Init;
use crate::params::Scope;
use crate::storage::{Element, dispatch, reader};

/// Which learned parameters follow the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affine {
    /// `weight` and `bias`.
    ScaleAndShift,
    /// `weight` alone: SimCLR's last projector layer.
    Scale,
    /// Neither.
    None,
}

/// Settings of a batch norm; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormConfig {
    /// Added to the variance.
    pub eps: f64,
    /// Share of the new batch in the running statistics.
    pub momentum: f64,
    /// Learned parameters.
    pub affine: Affine,
    /// Initial value of `weight`; 0 makes a residual branch start as nothing.
    pub weight_init: f64,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, affine: Affine::ScaleAndShift, weight_init: 1.0 }
    }
}

/// Batch norm over `(B, C)` or `(B, C, H, W)`.
///
/// In training it normalises with the batch's mean and biased variance and updates the running mean and the running
/// *unbiased* variance; in evaluation it uses the running statistics. These are buffers, as is
/// `num_batches_tracked`.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    num_batches_tracked: Var,
    config: BatchNormConfig,
}

impl BatchNorm {
    /// A batch norm over `channels` channels.
    ///
    /// # Errors
    /// If there are no channels, or a name is taken.
    pub fn new(channels: usize, config: BatchNormConfig, scope: &Scope) -> Result<Self> {
        if channels == 0 {
            bail!("batch norm: expected at least one channel, got 0");
        }
        let learned = |name, value| scope.trainable(name, channels, Init::Const(value));
        let fixed = |value| scope.constant(channels, value);
        let (weight, bias) = match config.affine {
            Affine::ScaleAndShift => (learned("weight", config.weight_init)?, learned("bias", 0.0)?),
            Affine::Scale => (learned("weight", config.weight_init)?, fixed(0.0)?),
            Affine::None => (fixed(1.0)?, fixed(0.0)?),
        };
        Ok(Self {
            weight,
            bias,
            running_mean: scope.buffer("running_mean", channels, Init::Const(0.0))?,
            running_var: scope.buffer("running_var", channels, Init::Const(1.0))?,
            num_batches_tracked: scope.counter("num_batches_tracked")?,
            config,
        })
    }

    /// Normalises `x` of shape `(B, C)` or `(B, C, H, W)`; same shape out.
    ///
    /// # Errors
    /// If the number of channels differs, or in training if a channel has fewer than two values.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.apply(x, train, false)
    }

    /// [`BatchNorm::forward_t`] followed by a ReLU.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_t`].
    pub fn forward_relu_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.apply(x, train, true)
    }

    fn apply(&self, x: &Tensor, train: bool, relu: bool) -> Result<Tensor> {
        let dims = Dims::of(x, self.weight.elem_count())?;
        if train && dims.count() < 2 {
            bail!("batch norm: training needs at least two values per channel, got shape {:?}", x.dims());
        }
        if !x.device().is_cpu() {
            return self.composite(x, dims, train, relu);
        }
        let x = x.contiguous()?;
        dispatch!(x.dtype(), "batch norm", T => self.on_cpu::<T>(&x, dims, train, relu))
    }

    fn on_cpu<T: Element>(&self, x: &Tensor, dims: Dims, train: bool, relu: bool) -> Result<Tensor> {
        let Dims { channels, space, .. } = dims;
        let images = move |x: &Tensor| -> Result<Vec<T>> {
            Ok(to_channels_last(reader(x).slice::<T>()?, channels, space))
        };
        let z = images(x)?;
        let norm = self.channel_norm(&z, train)?;
        let y = to_channels_first(&norm.apply(&z, relu), channels, space);
        let inputs = [x.clone(), self.weight.clone(), self.bias.clone()];
        node("batch norm", &[x, &self.weight, &self.bias], (y, x.shape()), move |_, dy| {
            let (dx, dw, db) = norm.gradients(&images(&inputs[0])?, &images(dy)?, relu);
            let dx = to_channels_first(&dx, channels, space);
            [dx, dw, db].into_iter().zip(&inputs).map(|(data, like)| gradient(data, like)).collect()
        })
    }

    /// The normalisation of `z` (rows, channels): by its own statistics, which are tracked, or by the running ones.
    pub(crate) fn channel_norm<T: Element>(&self, z: &[T], train: bool) -> Result<ChannelNorm<T>> {
        let channels = self.weight.elem_count();
        self.channel_norm_by(train.then(|| Statistics::measure(z, channels)), z.len() / channels)
    }

    /// The normalisation by the statistics of a batch of so many rows, which are tracked, or by the running ones.
    pub(crate) fn channel_norm_by<T: Element>(
        &self,
        batch: Option<Statistics>,
        rows: usize,
    ) -> Result<ChannelNorm<T>> {
        let train = batch.is_some();
        let statistics = match batch {
            Some(_) if rows < 2 => {
                bail!("batch norm: training needs at least two values per channel, got {rows}")
            }
            Some(batch) => {
                let tensor = |v: &[f64]| Tensor::new(v, self.weight.device())?.to_dtype(self.weight.dtype());
                self.track(&tensor(&batch.mean)?, &tensor(&batch.var)?, rows)?;
                batch
            }
            None => Statistics { mean: to_f64(&self.running_mean)?, var: to_f64(&self.running_var)? },
        };
        let (weight, bias) = (reader(&self.weight), reader(&self.bias));
        Ok(ChannelNorm::new(&statistics, self.config.eps, weight.slice()?, bias.slice()?, train))
    }

    /// The running mean, the running variance and the number of batches: what training changes in a forward pass.
    pub fn buffers(&self) -> [Var; 3] {
        [&self.running_mean, &self.running_var, &self.num_batches_tracked].map(Var::clone)
    }

    /// Weight and bias.
    pub(crate) fn tensors(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// Moves the running statistics towards those of a batch with `n` values per channel.
    fn track(&self, mean: &Tensor, biased_var: &Tensor, n: usize) -> Result<()> {
        let m = self.config.momentum;
        let unbiased = n as f64 / (n - 1) as f64;
        let towards = |running: &Var, batch: Tensor| running.set(&((running.affine(1.0 - m, 0.0)? + batch)?));
        towards(&self.running_mean, mean.affine(m, 0.0)?)?;
        towards(&self.running_var, biased_var.affine(m * unbiased, 0.0)?)?;
        self.num_batches_tracked.set(&(self.num_batches_tracked.as_tensor() + 1.0)?)
    }

    /// The same in candle's operations, for devices without a kernel of ours.
    fn composite(&self, x: &Tensor, dims: Dims, train: bool, with_relu: bool) -> Result<Tensor> {
        let shape = (1, dims.channels, 1);
        let flat = x.reshape((dims.batch, dims.channels, dims.space))?;
        let (mean, var) = if train {
            let mean = flat.mean_keepdim((0, 2))?;
            let var = flat.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2))?;
            self.track(&mean.detach().flatten_all()?, &var.detach().flatten_all()?, dims.count())?;
            (mean, var)
        } else {
            (self.running_mean.reshape(shape)?, self.running_var.reshape(shape)?)
        };
        let scale = (self.weight.reshape(shape)? / (var + self.config.eps)?.sqrt()?)?;
        let y = flat.broadcast_sub(&mean)?.broadcast_mul(&scale)?;
        let y = y.broadcast_add(&self.bias.reshape(shape)?)?.reshape(x.shape())?;
        if with_relu { relu(&y) } else { Ok(y) }
    }
}

fn to_f64(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.to_vec1()
}

/// A tensor `(B, C, …)` seen as `(batch, channels, space)`.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    channels: usize,
    space: usize,
}

impl Dims {
    fn of(x: &Tensor, channels: usize) -> Result<Self> {
        match x.dims() {
            [batch, c, rest @ ..] if *c == channels && matches!(rest.len(), 0 | 2) => {
                Ok(Self { batch: *batch, channels, space: rest.iter().product() })
            }
            dims => {
                bail!("batch norm over {channels} channels: expected (B, C) or (B, C, H, W), got {dims:?}")
            }
        }
    }

    /// Values per channel.
    fn count(self) -> usize {
        self.batch * self.space
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Params;

    #[test]
    fn training_normalises_and_tracks_the_unbiased_variance() {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let bn = BatchNorm::new(1, BatchNormConfig::default(), &params.root()).unwrap();
        let x = Tensor::new(&[[1f64], [2.], [3.], [6.]], &Device::Cpu).unwrap();
        let y = bn.forward_t(&x, true).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (mean, biased) = (3.0, 3.5);
        for (y, x) in y.iter().zip([1.0, 2.0, 3.0, 6.0]) {
            assert!((y - (x - mean) / f64::sqrt(biased + 1e-5)).abs() < 1e-12);
        }
        let buffer = |name| to_f64(params.get(name).unwrap().as_tensor()).unwrap()[0];
        assert!((buffer("running_mean") - 0.3).abs() < 1e-12);
        assert!((buffer("running_var") - (0.9 + 0.1 * biased * 4.0 / 3.0)).abs() < 1e-12);
        assert_eq!(params.get("num_batches_tracked").unwrap().to_scalar::<i64>().unwrap(), 1);
    }

    #[test]
    fn evaluation_changes_no_buffer_and_agrees_with_the_composite_path() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let bn = BatchNorm::new(3, BatchNormConfig::default(), &params.root()).unwrap();
        let x = Init::Normal { std: 2.0 }.sample(&[5, 3, 4, 7], 1, "x", DType::F32, &Device::Cpu).unwrap();
        bn.forward_t(&x, true).unwrap();
        let before = to_f64(params.get("running_var").unwrap().as_tensor()).unwrap();
        for train in [false, true] {
            let fused = bn.forward_relu_t(&x, train).unwrap();
            if !train {
                assert_eq!(to_f64(params.get("running_var").unwrap().as_tensor()).unwrap(), before);
            }
            let composite = bn.composite(&x, Dims::of(&x, 3).unwrap(), train, true).unwrap();
            let gap = (fused - composite).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(gap.to_scalar::<f32>().unwrap() < 1e-5, "train {train}: {gap}");
        }
    }

    #[test]
    fn one_value_per_channel_is_refused_in_training() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let bn = BatchNorm::new(2, BatchNormConfig::default(), &params.root()).unwrap();
        let x = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let error = bn.forward_t(&x, true).unwrap_err().to_string();
        assert!(error.contains("at least two values per channel, got shape [1, 2]"), "{error}");
        assert!(bn.forward_t(&x, false).is_ok());
        let error = BatchNorm::new(0, BatchNormConfig::default(), &params.root().pp("none")).unwrap_err();
        assert!(error.to_string().contains("at least one channel"), "{error}");
    }
}
