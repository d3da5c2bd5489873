//! Group norm (Wu and He, 2018, <https://arxiv.org/abs/1803.08494>).

use candle_core::{Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::init::Init;
use crate::params::Scope;
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// `(x - mean) / sqrt(variance + eps)` over each group of channels of each sample, then a scale and a shift for each
/// channel, as `torch.nn.GroupNorm`. One group for each channel is instance norm, one in all is layer norm.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{GroupNorm, Params};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let norm = GroupNorm::new(2, 6, 1e-5, &params.root().pp("norm"))?;
/// let y = norm.forward(&Tensor::ones((4, 6, 5, 5), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0); // what is equal is at its mean
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// A norm of `channels` channels in `groups` groups; creates `weight`, all 1, and `bias`, all 0. PyTorch's `eps` is
    /// 1e-5.
    ///
    /// # Errors
    /// If the groups do not divide the channels, or a name is taken.
    pub fn new(groups: usize, channels: usize, eps: f64, scope: &Scope) -> Result<Self> {
        check_groups(groups, channels)?;
        let weight = scope.trainable("weight", channels, Init::Const(1.0))?;
        let bias = scope.trainable("bias", channels, Init::Const(0.0))?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// `(B, C, …)` to the same shape.
    ///
    /// # Errors
    /// As [`group_norm`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, self.groups, &self.weight, &self.bias, self.eps)
    }
}

/// Group norm of `x` `(B, C, …)` in `groups` groups, with `weight` and `bias` `(C)`.
///
/// # Errors
/// If the shapes do not fit, there are no values, the groups do not divide the channels, or the type is not `f32` or
/// `f64`.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let sizes = Sizes::of(x, groups)?;
    if weight.dims() != [sizes.channels] || bias.dims() != [sizes.channels] {
        bail!(
            "group norm: x {:?} needs weight and bias ({}), got {:?} and {:?}",
            x.dims(),
            sizes.channels,
            weight.dims(),
            bias.dims()
        );
    }
    if !x.device().is_cpu() {
        return sizes.composite(x, weight, bias, eps);
    }
    dispatch!(x.dtype(), "group norm", T => on_cpu::<T>(x, sizes, [weight, bias], T::from_f64(eps)))
}

fn check_groups(groups: usize, channels: usize) -> Result<()> {
    if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
        bail!("group norm: {groups} groups do not divide {channels} channels");
    }
    Ok(())
}

/// A tensor `(B, C, …)` seen as `(B, groups, C / groups · space)`.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    groups: usize,
    channels: usize,
    space: usize,
}

impl Sizes {
    fn of(x: &Tensor, groups: usize) -> Result<Self> {
        let [batch, channels, rest @ ..] = x.dims() else {
            bail!("group norm: expected (B, C, …), got {:?}", x.dims())
        };
        check_groups(groups, *channels)?;
        let space = rest.iter().product();
        if space == 0 {
            bail!("group norm: {:?} has no values to take a mean of", x.dims());
        }
        Ok(Self { batch: *batch, groups, channels: *channels, space })
    }

    /// Values of a group, and of a sample.
    fn lengths(self) -> (usize, usize) {
        let sample = self.channels * self.space;
        (sample / self.groups, sample)
    }

    /// Channels of group `g` with their values.
    fn channels_of(self, g: usize) -> std::ops::Range<usize> {
        let channels = self.channels / self.groups;
        g * channels..(g + 1) * channels
    }

    /// The same in candle's operations, for devices without a kernel of ours.
    fn composite(self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let rows = x.reshape((self.batch, self.groups, self.lengths().0))?;
        let centred = rows.broadcast_sub(&rows.mean_keepdim(2)?)?;
        let std = (centred.sqr()?.mean_keepdim(2)? + eps)?.sqrt()?;
        let shape = (self.batch, self.channels, self.space);
        let normed = centred.broadcast_div(&std)?.reshape(shape)?;
        let of_channels = |v: &Tensor| v.reshape((1, self.channels, 1));
        normed.broadcast_mul(&of_channels(weight)?)?.broadcast_add(&of_channels(bias)?)?.reshape(x.shape())
    }
}

fn on_cpu<T: Real>(x: &Tensor, sizes: Sizes, [weight, bias]: [&Tensor; 2], eps: T) -> Result<Tensor> {
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let (_, sample) = sizes.lengths();
    let mut y = vec![T::ZERO; x.elem_count()];
    let mut stats = vec![[T::ZERO; 2]; sizes.batch * sizes.groups];
    {
        let (x, weight, bias) = (reader(&x), reader(&weight), reader(&bias));
        let (x, affine) = (x.slice::<T>()?, (weight.slice::<T>()?, bias.slice::<T>()?));
        y.par_chunks_mut(sample)
            .zip(x.par_chunks(sample))
            .zip(stats.par_chunks_mut(sizes.groups))
            .for_each(|((y, x), stats)| forward_sample(sizes, x, affine, eps, y, stats));
    }
    let (kept, kept_weight, kept_bias, shape) = (x.clone(), weight.clone(), bias.clone(), x.shape());
    node("group-norm", &[&x, &weight, &bias], (y, shape), move |_, dy| {
        let channels = sizes.channels;
        let mut dx = vec![T::ZERO; kept.elem_count()];
        // For each sample the gradients of the weights, then those of the biases.
        let mut parts = vec![T::ZERO; 2 * sizes.batch * channels];
        {
            let (x, weight, dy) = (reader(&kept), reader(&kept_weight), reader(dy));
            let (x, weight, dy) = (x.slice::<T>()?, weight.slice::<T>()?, dy.slice::<T>()?);
            dx.par_chunks_mut(sample)
                .zip(x.par_chunks(sample))
                .zip(dy.par_chunks(sample))
                .zip(stats.par_chunks(sizes.groups))
                .zip(parts.par_chunks_mut(2 * channels))
                .for_each(|((((dx, x), dy), stats), part)| {
                    backward_sample(sizes, (x, weight, stats), dy, dx, part.split_at_mut(channels));
                });
        }
        let mut sums = vec![T::ZERO; 2 * channels];
        for part in parts.chunks_exact(2 * channels) {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
        }
        let db = sums.split_off(channels);
        Ok(vec![gradient(dx, &kept)?, gradient(sums, &kept_weight)?, gradient(db, &kept_bias)?])
    })
}

/// Norms one sample and keeps mean and inverse standard deviation of each group.
fn forward_sample<T: Real>(
    sizes: Sizes,
    x: &[T],
    (weight, bias): (&[T], &[T]),
    eps: T,
    y: &mut [T],
    stats: &mut [[T; 2]],
) {
    let (group, _) = sizes.lengths();
    let n = T::from_f64(group as f64);
    let groups = x.chunks_exact(group).zip(y.chunks_exact_mut(group)).zip(stats);
    for (g, ((x, y), stats)) in groups.enumerate() {
        let mean = sum_by(x, x, |x, _| x) / n;
        let variance = sum_by(x, x, |x, _| (x - mean) * (x - mean)) / n;
        let scale = T::ONE / (variance + eps).sqrt();
        *stats = [mean, scale];
        let channels = x.chunks_exact(sizes.space).zip(y.chunks_exact_mut(sizes.space));
        for (c, (x, y)) in sizes.channels_of(g).zip(channels) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - mean) * scale * weight[c] + bias[c]);
        }
    }
}

/// Writes the gradients of one sample and of its weights and biases.
fn backward_sample<T: Real>(
    sizes: Sizes,
    (x, weight, stats): (&[T], &[T], &[[T; 2]]),
    dy: &[T],
    dx: &mut [T],
    (dw, db): (&mut [T], &mut [T]),
) {
    let (group, space) = (sizes.lengths().0, sizes.space);
    let n = T::from_f64(group as f64);
    let groups = x.chunks_exact(group).zip(dy.chunks_exact(group)).zip(dx.chunks_exact_mut(group)).zip(stats);
    for (g, (((x, dy), dx), &[mean, scale])) in groups.enumerate() {
        let (mut sum, mut slope) = (T::ZERO, T::ZERO);
        for (c, (x, dy)) in sizes.channels_of(g).zip(x.chunks_exact(space).zip(dy.chunks_exact(space))) {
            dw[c] = sum_by(dy, x, |dy, x| dy * (x - mean) * scale);
            db[c] = sum_by(dy, dy, |dy, _| dy);
            sum += db[c] * weight[c];
            slope += dw[c] * weight[c];
        }
        let (sum, slope) = (sum / n, slope / n);
        let rows = x.chunks_exact(space).zip(dy.chunks_exact(space)).zip(dx.chunks_exact_mut(space));
        for (c, ((x, dy), dx)) in sizes.channels_of(g).zip(rows) {
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                *dx = scale * (*dy * weight[c] - sum - (*x - mean) * scale * slope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let message = |x: &[usize], groups, weight| {
            let weight = tensor(&[weight]);
            group_norm(&tensor(x), groups, &weight, &weight, 1e-5).unwrap_err().to_string()
        };
        assert!(message(&[2, 6, 3], 4, 6).contains("4 groups do not divide 6 channels"));
        assert!(message(&[2, 6, 3], 0, 6).contains("0 groups"));
        assert!(message(&[2, 6, 3], 3, 5).contains("(6), got [5]"));
        assert!(message(&[2, 6, 0], 3, 6).contains("no values"));
        assert!(message(&[6], 3, 6).contains("expected (B, C"));
    }

    #[test]
    fn the_path_for_other_devices_agrees() {
        let normal = |shape: &[usize], name: &str| {
            Init::Normal { std: 1.0 }.sample(shape, 1, name, DType::F64, &Device::Cpu).unwrap()
        };
        let (x, weight, bias) = (normal(&[3, 6, 2, 5], "x"), normal(&[6], "weight"), normal(&[6], "bias"));
        let ours = group_norm(&x, 3, &weight, &bias, 1e-3).unwrap();
        let theirs = Sizes::of(&x, 3).unwrap().composite(&x, &weight, &bias, 1e-3).unwrap();
        let gap = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(gap < 1e-12, "{gap}");
    }
}
