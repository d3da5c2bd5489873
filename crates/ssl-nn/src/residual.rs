//! Chains of convolutions and batch norms as single operations, in channels-last order.
//!
//! candle's backward pass clears and adds up a gradient for every edge of its graph, two passes over memory each, and
//! keeps every tensor on the way. A residual block as one operation has one edge, keeps only the outputs of its
//! convolutions, and normalises, adds and rectifies in the passes that move the data anyway.

use candle_core::{Result, Shape, Tensor, bail};

use crate::activation::{add_relu, masked, passed};
use crate::batch_norm::BatchNorm;
use crate::channel_norm::{ChannelNorm, Measure};
use crate::conv2d::Conv2d;
use crate::convolve::{forward_then, input_gradient, input_gradient_then, weight_gradient};
use crate::geometry::Geometry;
use crate::graph::{Gradients, gradient, node};
use crate::input::Input;
use crate::kernel::vectorised;
use crate::real::Real;
use crate::squeeze_excitation::{Excitation, Sizes, SqueezeExcitation};
use crate::storage::{Element, dispatch, reader};

/// A convolution and the batch norm after it.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    /// The convolution.
    pub conv: Conv2d,
    /// The batch norm over its output.
    pub norm: BatchNorm,
}

/// What is added to the end of a branch before the last ReLU.
#[derive(Clone, Copy, Debug)]
pub enum Shortcut<'a> {
    /// Nothing: the block is a plain chain of layers.
    None,
    /// The input of the block.
    Identity,
    /// One layer of the input of the block.
    Projection(&'a ConvNorm),
}

/// `relu(shortcut(x) + branch(x))` of a residual network (He et al., 2015): the layers of `branch` have a ReLU between
/// them.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// At least one layer.
    pub branch: &'a [ConvNorm],
    /// Weighs the channels before the last layer of the branch, which then has at least two.
    pub gate: Option<&'a SqueezeExcitation>,
    /// What is added to the branch.
    pub shortcut: Shortcut<'a>,
}

/// `relu(norm(conv(x)))` of an image: `(B, C_in, H, W)` to `(B, H', W', C_out)`, channels last.
///
/// # Errors
/// As the convolution and the batch norm.
pub fn stem(x: &Tensor, layer: &ConvNorm, train: bool) -> Result<Tensor> {
    let block = Residual { branch: std::slice::from_ref(layer), gate: None, shortcut: Shortcut::None };
    residual_blocks(&x.permute((0, 2, 3, 1))?.contiguous()?, &[block], train)
}

/// A single block of [`residual_blocks`], whose shortcut is one layer or `x` itself.
///
/// # Errors
/// As [`residual_blocks`].
pub fn residual_block(
    x: &Tensor,
    branch: &[ConvNorm],
    shortcut: Option<&ConvNorm>,
    train: bool,
) -> Result<Tensor> {
    let shortcut = shortcut.map_or(Shortcut::Identity, Shortcut::Projection);
    residual_blocks(x, &[Residual { branch, gate: None, shortcut }], train)
}

/// Residual blocks one after the other, as one operation: `(B, H, W, C_in)` to `(B, H', W', C_out)`, channels last.
///
/// # Errors
/// If there are no blocks, if a branch is empty, if branch and shortcut differ in shape, or as the convolutions and the
/// batch norms.
pub fn residual_blocks(x: &Tensor, blocks: &[Residual<'_>], train: bool) -> Result<Tensor> {
    if blocks.is_empty() || blocks.iter().any(|block| block.branch.is_empty()) {
        bail!("residual block: the branch has no layers");
    }
    if blocks.iter().any(|block| block.gate.is_some() && block.branch.len() < 2) {
        bail!("residual block: the gate stands before the last of two layers or more, the branch has one");
    }
    if !x.device().is_cpu() {
        return blocks.iter().try_fold(x.clone(), |x, block| composite(&x, block, train));
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "residual block", T => on_cpu::<T>(x, blocks, train))
}

fn on_cpu<T: Real>(x: Tensor, blocks: &[Residual<'_>], train: bool) -> Result<Tensor> {
    let mut inputs = vec![x.clone()];
    let mut chains: Vec<(Chain<T>, Saved<T>)> = Vec::with_capacity(blocks.len());
    // The output of the last block so far; those before are the inputs of the next.
    let mut last: Option<(Vec<T>, Shape)> = None;
    for block in blocks {
        let x = match last.take() {
            Some((y, shape)) => Tensor::from_vec(y, shape, x.device())?,
            None => x.clone(),
        };
        let chain = Chain::new(&x, block)?;
        let (y, saved) = chain.forward(block, train)?;
        last = Some((y, chain.output_shape().into()));
        inputs.extend_from_slice(&chain.inputs[1..]);
        chains.push((chain, saved));
    }
    let Some(output) = last else { bail!("residual block: the branch has no layers") };
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let wants_dx = x.track_op();
    node("residual block", &inputs, output, move |y, dy| {
        let mut gradients = Gradients::new();
        let mut dy =
            Tensor::from_vec(masked(reader(dy).slice::<T>()?, reader(y).slice()?), y.shape(), y.device())?;
        for (i, (chain, saved)) in chains.iter().enumerate().rev() {
            let mut these = chain.backward(saved, &dy, i > 0, i > 0 || wants_dx)?;
            if i > 0
                && let Some(dx) = these.remove(0)
            {
                dy = dx;
            }
            these.append(&mut gradients);
            gradients = these;
        }
        Ok(gradients)
    })
}

/// The same layer by layer, for devices without a kernel of ours.
fn composite(x: &Tensor, block: &Residual<'_>, train: bool) -> Result<Tensor> {
    let Residual { branch, gate, shortcut } = *block;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let layer = |x: &Tensor, layer: &ConvNorm| layer.norm.forward_t(&layer.conv.forward(x)?, train);
    let mut y = x.clone();
    for (i, unit) in branch.iter().enumerate() {
        y = if i == 0 { y } else { y.relu()? };
        if let (Some(gate), true) = (gate, i + 1 == branch.len()) {
            y = gate.composite(&y.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))?.contiguous()?;
        }
        y = layer(&y, unit)?;
    }
    let y = match shortcut {
        Shortcut::None => y.relu()?,
        Shortcut::Identity => add_relu(&y, &x)?,
        Shortcut::Projection(unit) => add_relu(&y, &layer(&x, unit)?)?,
    };
    y.permute((0, 2, 3, 1))?.contiguous()
}

/// The sizes and tensors of a chain on the CPU.
struct Chain<T> {
    /// `x`, for each layer of the branch and then of the shortcut its kernel, scale and shift, and those of the gate.
    inputs: Vec<Tensor>,
    branch: Vec<Geometry>,
    /// `None` if the input itself is added; a projection's sizes.
    projection: Option<Geometry>,
    /// The gate's sizes, and where its tensors begin.
    gate: Option<(Sizes, usize)>,
    identity: bool,
    element: std::marker::PhantomData<fn() -> T>,
}

/// What the backward pass needs.
struct Saved<T> {
    /// Each convolution's output and its normalisation, those of the shortcut last.
    layers: Vec<(Vec<T>, ChannelNorm<T>)>,
    gate: Option<Excitation<T>>,
}

impl<T: Real> Chain<T> {
    fn new(x: &Tensor, block: &Residual<'_>) -> Result<Self> {
        let Residual { branch, gate, shortcut } = *block;
        let (batch, h, w, c) = x.dims4()?;
        let mut inputs = vec![x.clone()];
        let mut add = |unit: &ConvNorm, size: (usize, usize, usize, usize)| {
            let weight = unit.conv.weight().contiguous()?;
            let geometry = Geometry::new(size, weight.dims4()?, unit.conv.config())?;
            inputs.push(weight);
            inputs.extend(unit.norm.tensors().map(Tensor::clone));
            Ok::<_, candle_core::Error>(geometry)
        };
        let mut size = (batch, c, h, w);
        let mut geometries = Vec::with_capacity(branch.len());
        for unit in branch {
            let g = add(unit, size)?;
            size = (batch, g.c_out, g.out_h, g.out_w);
            geometries.push(g);
        }
        let (projection, other) = match shortcut {
            Shortcut::None => (None, size),
            Shortcut::Identity => (None, (batch, c, h, w)),
            Shortcut::Projection(unit) => {
                let g = add(unit, (batch, c, h, w))?;
                (Some(g), (batch, g.c_out, g.out_h, g.out_w))
            }
        };
        if size != other {
            bail!(
                "residual block: the branch ends in {size:?}, the shortcut in {other:?} (batch, channels, rows, columns)"
            );
        }
        let gate = match gate {
            Some(gate) => {
                let g = &geometries[geometries.len() - 1];
                let at = inputs.len();
                for i in 0..4 {
                    inputs.push(gate.part(i)?);
                }
                Some((gate.sizes((g.batch, g.h, g.w, g.c_in))?, at))
            }
            None => None,
        };
        let identity = matches!(shortcut, Shortcut::Identity);
        Ok(Self { inputs, branch: geometries, projection, gate, identity, element: std::marker::PhantomData })
    }

    fn output_shape(&self) -> (usize, usize, usize, usize) {
        let g = &self.branch[self.branch.len() - 1];
        (g.batch, g.out_h, g.out_w, g.c_out)
    }

    fn forward(&self, block: &Residual<'_>, train: bool) -> Result<(Vec<T>, Saved<T>)> {
        let Residual { branch, shortcut, .. } = *block;
        let x = reader(&self.inputs[0]);
        let x = x.slice::<T>()?;
        let layer = |i: usize, g: &Geometry, unit: &ConvNorm, x: Input<'_, T>| {
            let measure = train.then(|| Measure::new(g.c_out));
            let z = forward_then(g, x, reader(&self.inputs[1 + 3 * i]).slice::<T>()?, |at, z| {
                if let Some(measure) = &measure {
                    measure.add(at, z);
                }
            });
            let norm = unit.norm.channel_norm_by(measure.map(Measure::finish), g.batch * g.positions())?;
            Ok::<_, candle_core::Error>((z, norm))
        };
        let mut saved: Vec<(Vec<T>, ChannelNorm<T>)> = Vec::with_capacity(self.branch.len() + 1);
        let mut excitation = None;
        for (i, (g, unit)) in self.branch.iter().zip(branch).enumerate() {
            let done = match saved.last() {
                Some((z, norm)) => match self.gate_before(i) {
                    Some((sizes, at)) => {
                        let mut x = norm.apply(z, true);
                        excitation = Some(sizes.excite(&mut x, &self.inputs[at..at + 4])?);
                        layer(i, g, unit, Input::plain(&x))?
                    }
                    None => layer(i, g, unit, Input::rectified(z, norm))?,
                },
                None => layer(i, g, unit, Input::plain(x))?,
            };
            saved.push(done);
        }
        let last = saved.len() - 1;
        if let (Some(g), Shortcut::Projection(unit)) = (&self.projection, shortcut) {
            saved.push(layer(saved.len(), g, unit, Input::plain(x))?);
        }
        let (z, norm) = &saved[last];
        let y = match saved.get(last + 1) {
            Some((other, other_norm)) => norm.add_norm_relu(z, other_norm, other),
            None if self.identity => norm.add_relu(z, x),
            None => norm.apply(z, true),
        };
        Ok((y, Saved { layers: saved, gate: excitation }))
    }

    /// The gate, if it stands before layer `i`.
    fn gate_before(&self, i: usize) -> Option<(Sizes, usize)> {
        self.gate.filter(|_| i + 1 == self.branch.len())
    }

    /// The gradients of [`Self::inputs`], that of `x` if it is wanted.
    ///
    /// `dy` is the gradient before the last ReLU. If `x` is `rectified`, so is its gradient: where `x` came through the
    /// ReLU of the block before, while the cache holds what is added up anyway.
    fn backward(&self, saved: &Saved<T>, dy: &Tensor, rectified: bool, wants_dx: bool) -> Result<Gradients> {
        let (x, dy) = (reader(&self.inputs[0]), reader(dy));
        let (x, dy) = (x.slice::<T>()?, dy.slice::<T>()?);
        let mut gradients: Gradients = vec![None; self.inputs.len()];
        let mut through_projection = None;
        if let Some(g) = &self.projection {
            let i = self.branch.len();
            let dz = self.norm_gradient(saved, i, (dy, false), &mut gradients)?;
            self.weight_gradient(i, g, Input::plain(x), &dz, &mut gradients)?;
            through_projection = wants_dx.then(|| self.input_gradient(i, g, &dz)).transpose()?;
        }
        let mut below = Vec::new();
        for (i, g) in self.branch.iter().enumerate().rev() {
            let last = i + 1 == self.branch.len();
            let from = if last { (dy, false) } else { (&below[..], true) };
            let dz = self.norm_gradient(saved, i, from, &mut gradients)?;
            let before = i.checked_sub(1).map(|before| &saved.layers[before]);
            if let (Some(gate), Some(kept), Some((z, norm))) = (self.gate_before(i), &saved.gate, before) {
                let mut x = norm.apply(z, true);
                below = self.input_gradient(i, g, &dz)?;
                self.gate_gradient(gate, kept, &mut x, &mut below, &mut gradients)?;
                self.weight_gradient(i, g, Input::plain(&x), &dz, &mut gradients)?;
                continue;
            }
            let input = before.map_or(Input::plain(x), |(z, norm)| Input::rectified(z, norm));
            self.weight_gradient(i, g, input, &dz, &mut gradients)?;
            below = if i > 0 {
                self.input_gradient(i, g, &dz)?
            } else if wants_dx {
                let weight = reader(&self.inputs[1]);
                let through_shortcut = through_projection.as_deref().or(self.identity.then_some(dy));
                input_gradient_then(g, weight.slice()?, &dz, |at, dx| match (through_shortcut, rectified) {
                    (Some(shortcut), true) => add_passed(dx, &shortcut[at..], &x[at..]),
                    (Some(shortcut), false) => add(dx, &shortcut[at..]),
                    (None, true) => pass(dx, &x[at..]),
                    (None, false) => (),
                })
            } else {
                Vec::new()
            };
        }
        if wants_dx {
            gradients[0] = Some(Tensor::from_vec(below, self.inputs[0].shape(), self.inputs[0].device())?);
        }
        Ok(gradients)
    }

    /// Back through the gate, whose input `x` becomes its output and whose output's gradient `d` becomes the input's.
    fn gate_gradient(
        &self,
        (sizes, at): (Sizes, usize),
        kept: &Excitation<T>,
        x: &mut [T],
        d: &mut [T],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let own = sizes.gradients(x, d, kept, &self.inputs[at..at + 4])?;
        for (place, data) in (at..).zip(own) {
            gradients[place] = gradient(data, &self.inputs[place])?;
        }
        sizes.weigh(x, kept);
        Ok(())
    }

    /// Back through the batch norm of layer `i`.
    fn norm_gradient(
        &self,
        saved: &Saved<T>,
        i: usize,
        (dy, relu): (&[T], bool),
        gradients: &mut Gradients,
    ) -> Result<Vec<T>> {
        let (z, norm) = &saved.layers[i];
        let (dz, d_weight, d_bias) = norm.gradients(z, dy, relu);
        for (place, data) in [(2 + 3 * i, d_weight), (3 + 3 * i, d_bias)] {
            gradients[place] = gradient(data, &self.inputs[place])?;
        }
        Ok(dz)
    }

    fn weight_gradient(
        &self,
        i: usize,
        g: &Geometry,
        x: Input<'_, T>,
        dz: &[T],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let weight = &self.inputs[1 + 3 * i];
        if weight.track_op() {
            gradients[1 + 3 * i] = gradient(weight_gradient(g, x, dz), weight)?;
        }
        Ok(())
    }

    fn input_gradient(&self, i: usize, g: &Geometry, dz: &[T]) -> Result<Vec<T>> {
        Ok(input_gradient(g, reader(&self.inputs[1 + 3 * i]).slice::<T>()?, dz))
    }
}

/// `x += y`.
fn add<T: Element>(x: &mut [T], y: &[T]) {
    vectorised!(for (x, y) in x.iter_mut().zip(y) {
        *x += *y;
    });
}

/// `dx += dy`, passed back through the ReLU that made `x`.
fn add_passed<T: Element>(dx: &mut [T], dy: &[T], x: &[T]) {
    let (dy, x) = (&dy[..dx.len()], &x[..dx.len()]);
    vectorised!(for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = passed(*dx + *dy, *x);
    });
}

/// Passes `dx` back through the ReLU that made `x`.
fn pass<T: Element>(dx: &mut [T], x: &[T]) {
    vectorised!(for (dx, x) in dx.iter_mut().zip(x) {
        *dx = passed(*dx, *x);
    });
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{BatchNormConfig, Conv2dConfig, Params};

    fn layer(params: &Params, name: &str, c_in: usize, c_out: usize) -> ConvNorm {
        let scope = params.root().pp(name);
        ConvNorm {
            conv: Conv2d::new(c_in, c_out, 1, Conv2dConfig::default(), &scope).unwrap(),
            norm: BatchNorm::new(c_out, BatchNormConfig::default(), &scope.pp("norm")).unwrap(),
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let branch = [layer(&params, "a", 3, 5)];
        let x = |batch| Tensor::zeros((batch, 1, 1, 3), DType::F32, &Device::Cpu).unwrap();
        let message =
            |x: &Tensor, branch: &[ConvNorm]| residual_block(x, branch, None, true).unwrap_err().to_string();
        assert!(message(&x(2), &[]).contains("no layers"));
        assert!(
            message(&x(2), &branch).contains("the branch ends in (2, 5, 1, 1), the shortcut in (2, 3, 1, 1)")
        );
        let same = [layer(&params, "b", 3, 3)];
        assert!(message(&x(1), &same).contains("at least two values per channel, got 1"));
        assert!(residual_block(&x(2), &same, None, true).is_ok());
    }

    #[test]
    fn the_path_for_other_devices_agrees() {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let branch = [layer(&params, "a", 3, 4), layer(&params, "b", 4, 6)];
        let shortcut = layer(&params, "c", 3, 6);
        let x =
            crate::Init::Normal { std: 1.0 }.sample(&[2, 3, 2, 3], 1, "x", DType::F64, &Device::Cpu).unwrap();
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let ours = values(residual_block(&x, &branch, Some(&shortcut), true).unwrap());
        let block = Residual { branch: &branch, gate: None, shortcut: Shortcut::Projection(&shortcut) };
        let theirs = values(composite(&x, &block, true).unwrap());
        ours.iter().zip(theirs).for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} {b}"));
    }
}
