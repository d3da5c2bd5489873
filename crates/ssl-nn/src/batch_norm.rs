//! Batch normalisation (Ioffe & Szegedy, 2015) with PyTorch's conventions, optionally followed by a ReLU in the same
//! pass over memory.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, Var, WithDType, bail};
use rayon::prelude::*;

use crate::activation::{rectify, relu};
use crate::init::Init;
use crate::params::Scope;
use crate::storage::{Element, dispatch, reader, slice};

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
    /// If a name is taken.
    pub fn new(channels: usize, config: BatchNormConfig, scope: &Scope) -> Result<Self> {
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
        let statistics = Arc::new(OnceLock::new());
        if !train {
            let mean = to_f64(&self.running_mean)?;
            let _ = statistics.set(Statistics { mean, var: to_f64(&self.running_var)? });
        }
        let op = BatchNormOp { dims, eps: self.config.eps, train, relu, statistics: statistics.clone() };
        let y = x.contiguous()?.apply_op3(&self.weight, &self.bias, op)?;
        if let (true, Some(batch)) = (train, statistics.get()) {
            let tensor = |v: &[f64]| Tensor::new(v, x.device())?.to_dtype(x.dtype());
            self.track(&tensor(&batch.mean)?, &tensor(&batch.var)?, dims.count())?;
        }
        Ok(y)
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

    /// For each channel the sum over its segments of `f(start of the segment, channel)`, in a fixed order.
    fn sums<const N: usize>(self, f: impl Fn(usize, usize) -> [f64; N] + Sync) -> Vec<[f64; N]> {
        // Neighbouring channels of a (B, C) matrix share cache lines, so one task takes many of them.
        let grain = if self.space < 16 { 64 } else { 1 };
        let sum = |channel| {
            (0..self.batch).fold([0.0; N], |mut total, image| {
                let part = f((image * self.channels + channel) * self.space, channel);
                total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
                total
            })
        };
        (0..self.channels).into_par_iter().with_min_len(grain).map(sum).collect()
    }

    /// Calls `f(channel, range of the segment, segment)` for every segment of `out`.
    fn segments<T: Send>(self, out: &mut [T], f: impl Fn(usize, usize, &mut [T]) + Sync) {
        let image_len = self.channels * self.space;
        if out.is_empty() {
            return;
        }
        out.par_chunks_mut(image_len).enumerate().for_each(|(image, out)| {
            for (channel, out) in out.chunks_exact_mut(self.space).enumerate() {
                f(channel, image * image_len + channel * self.space, out);
            }
        });
    }
}

/// Mean and biased variance per channel.
#[derive(Debug)]
struct Statistics {
    mean: Vec<f64>,
    var: Vec<f64>,
}

struct BatchNormOp {
    dims: Dims,
    eps: f64,
    train: bool,
    relu: bool,
    /// Set before the forward pass in evaluation, by the forward pass in training.
    statistics: Arc<OnceLock<Statistics>>,
}

impl BatchNormOp {
    fn measure<T: Element>(&self, x: &[T]) -> Statistics {
        let (dims, n) = (self.dims, self.dims.count() as f64);
        let sums = dims.sums(|at, _| [sum_by(&x[at..at + dims.space], |v| v)]);
        let mean: Vec<f64> = sums.iter().map(|[sum]| sum / n).collect();
        let squares = dims.sums(|at, channel| {
            let mean = T::from_f64(mean[channel]);
            [sum_by(&x[at..at + dims.space], |v| (v - mean) * (v - mean))]
        });
        Statistics { mean, var: squares.iter().map(|[sum]| sum / n).collect() }
    }

    fn inverse_std(&self, var: f64) -> f64 {
        1.0 / (var + self.eps).sqrt()
    }

    fn normalise<T: Element>(&self, x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let statistics = self.statistics.get_or_init(|| self.measure(x));
        let mut y = vec![T::ZERO; x.len()];
        self.dims.segments(&mut y, |channel, at, y| {
            let scale = weight[channel] * T::from_f64(self.inverse_std(statistics.var[channel]));
            let (mean, shift) = (T::from_f64(statistics.mean[channel]), bias[channel]);
            let x = &x[at..at + y.len()];
            if self.relu {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = rectify((*x - mean) * scale + shift));
            } else {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - mean) * scale + shift);
            }
        });
        y
    }

    /// Gradients of the input, the weight and the bias.
    fn gradients<T: Element>(
        &self,
        statistics: &Statistics,
        x: &[T],
        weight: &[T],
        y: &[T],
        dy: &[T],
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let (dims, n) = (self.dims, self.dims.count() as f64);
        let passes = |y: T| !self.relu || y > T::ZERO;
        let sums = dims.sums(|at, channel| {
            let mean = T::from_f64(statistics.mean[channel]);
            let range = at..at + dims.space;
            let (x, y, dy) = (&x[range.clone()], &y[range.clone()], &dy[range]);
            sum_pairs(x, y, dy, |x, y, dy| if passes(y) { (dy, dy * (x - mean)) } else { (T::ZERO, T::ZERO) })
        });
        let mut dx = vec![T::ZERO; x.len()];
        dims.segments(&mut dx, |channel, at, dx| {
            let [sum_dy, sum_dy_centred] = sums[channel];
            let inverse_std = self.inverse_std(statistics.var[channel]);
            let scale = weight[channel] * T::from_f64(inverse_std);
            // Without batch statistics the mean and the variance are constants and carry no gradient.
            let (mean_dy, slope) = match self.train {
                true => (sum_dy / n, inverse_std * inverse_std * sum_dy_centred / n),
                false => (0.0, 0.0),
            };
            let (mean, mean_dy, slope) =
                (T::from_f64(statistics.mean[channel]), T::from_f64(mean_dy), T::from_f64(slope));
            let range = at..at + dx.len();
            let inputs = x[range.clone()].iter().zip(&y[range.clone()]).zip(&dy[range]);
            for (dx, ((x, y), dy)) in dx.iter_mut().zip(inputs) {
                let dy = if passes(*y) { *dy } else { T::ZERO };
                *dx = scale * (dy - mean_dy - (*x - mean) * slope);
            }
        });
        let d_weight =
            sums.iter().zip(&statistics.var).map(|([_, s], var)| T::from_f64(s * self.inverse_std(*var)));
        (dx, d_weight.collect(), sums.iter().map(|[s, _]| T::from_f64(*s)).collect())
    }
}

impl CustomOp3 for BatchNormOp {
    fn name(&self) -> &'static str {
        "ssl-batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        weight: &CpuStorage,
        weight_at: &Layout,
        bias: &CpuStorage,
        bias_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        dispatch!(x.dtype(), "batch-norm", T => {
            let y = self.normalise::<T>(slice(x, x_at)?, slice(weight, weight_at)?, slice(bias, bias_at)?);
            Ok((T::to_cpu_storage_owned(y), x_at.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(statistics) = self.statistics.get() else { bail!("batch norm: backward before forward") };
        let grad = grad.contiguous()?;
        dispatch!(x.dtype(), "batch-norm", T => {
            let (xs, ws, ys, dy) = (reader(x), reader(weight), reader(y), reader(&grad));
            let (dx, dw, db) =
                self.gradients::<T>(statistics, xs.slice()?, ws.slice()?, ys.slice()?, dy.slice()?);
            let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
            Ok((
                if x.track_op() { tensor(dx, x)? } else { None },
                if weight.track_op() { tensor(dw, weight)? } else { None },
                if bias.track_op() { tensor(db, bias)? } else { None },
            ))
        })
    }
}

/// Partial sums kept side by side, so that the additions vectorise and rounding errors stay small.
const LANES: usize = 16;

fn sum_by<T: Element>(x: &[T], f: impl Fn(T) -> T) -> f64 {
    let mut lanes = [T::ZERO; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(*v);
    }
    lanes.iter().map(|v| v.to_f64()).sum()
}

fn sum_pairs<T: Element>(x: &[T], y: &[T], dy: &[T], f: impl Fn(T, T, T) -> (T, T)) -> [f64; 2] {
    let (mut first, mut second) = ([T::ZERO; LANES], [T::ZERO; LANES]);
    for ((x, y), dy) in x.chunks(LANES).zip(y.chunks(LANES)).zip(dy.chunks(LANES)) {
        for (lane, ((x, y), dy)) in x.iter().zip(y).zip(dy).enumerate() {
            let (a, b) = f(*x, *y, *dy);
            first[lane] += a;
            second[lane] += b;
        }
    }
    [first.iter().map(|v| v.to_f64()).sum(), second.iter().map(|v| v.to_f64()).sum()]
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
    }
}
