//! The blocks of vision transformers (Dosovitskiy et al., 2020, <https://arxiv.org/abs/2010.11929>) as one operation.
//!
//! A block has two branches of the same form, `x + scale · second(middle(first(norm(x))))`, whose middle is the
//! attention of whole samples or that of a perceptron. Each is computed for a few rows at a time, which stay in the
//! cache from the norm to the sum. The backward pass needs `x` and what comes out of `first`; norm and middle it computes again,
//! which costs little beside the products.

use candle_core::{Result, Tensor, bail};

use crate::attention::{Heads, Sizes, slice_of};
use crate::branch::Branch;
use crate::graph::{Gradients, gradient, node};
use crate::perceptron::Between;
use crate::real::Real;
use crate::storage::{dispatch, reader};
use crate::transformer_block::{BlockOptions, BranchLayers, TransformerBlock};

/// Runs blocks one after the other, each with its options.
///
/// That is the same as [`TransformerBlock::forward`] block by block and cheaper: on the CPU it is one operation, unless
/// a block norms its queries and keys. Where only the `first` tokens of the result are wanted, such as the class token, the last perceptron is computed for those
/// alone.
///
/// # Shapes
/// `x`: `(B, N, dim)`; result: `(B, first, dim)`, or `(B, N, dim)` without `first`.
///
/// # Errors
/// If `x` or one of the options is not of its shape, or `first` is not in `1..=N`.
pub fn transformer_blocks(
    x: &Tensor,
    blocks: &[(&TransformerBlock, BlockOptions<'_>)],
    first: Option<usize>,
) -> Result<Tensor> {
    let sizes = blocks.iter().map(|(block, options)| block.check(x, options)).collect::<Result<Vec<_>>>()?;
    let (_, tokens, _) = x.dims3()?;
    let first = first.unwrap_or(tokens);
    if first == 0 || first > tokens {
        bail!("transformer blocks: first = {first} is not in 1..={tokens}, the tokens of x {:?}", x.dims());
    }
    let fused = blocks.iter().all(|(block, _)| block.can_be_fused());
    if !x.device().is_cpu() || blocks.is_empty() || !fused {
        let y = blocks.iter().try_fold(x.clone(), |x, (block, options)| block.composite(&x, options))?;
        return y.narrow(1, 0, first);
    }
    dispatch!(x.dtype(), "transformer blocks", T => {
        let runs = blocks.iter().zip(sizes).map(|((block, options), sizes)| Run::<T>::new(block, sizes, options));
        on_cpu(x, runs.collect::<Result<_>>()?, first)
    })
}

fn on_cpu<T: Real>(x: &Tensor, runs: Vec<Run<T>>, first: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, tokens, dim) = x.dims3()?;
    let mut saved: Vec<Saved<T>> = Vec::with_capacity(runs.len());
    let mut input = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let wanted = if i + 1 == runs.len() { first } else { tokens };
        let (y, rest) = match i {
            0 => run.forward(reader(&x).slice::<T>()?, wanted)?,
            _ => run.forward(&input, wanted)?,
        };
        saved.push(Saved { input: std::mem::replace(&mut input, y), rest });
    }
    let inputs: Vec<Tensor> =
        std::iter::once(x).chain(runs.iter().flat_map(|run| run.inputs().into_iter().cloned())).collect();
    let kept = inputs[0].clone();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    node("transformer blocks", &inputs, (input, (batch, first, dim)), move |_, dy| {
        let (x, dy) = (reader(&kept), reader(dy));
        let mut of_blocks = Vec::with_capacity(runs.len());
        let mut below = Vec::new();
        for (i, (run, saved)) in runs.iter().zip(&saved).enumerate().rev() {
            let input = if i == 0 { x.slice::<T>()? } else { &saved.input };
            let (wanted, dy) =
                if i + 1 == runs.len() { (first, dy.slice::<T>()?) } else { (tokens, &below[..]) };
            let (dx, gradients) = run.backward(input, &saved.rest, dy, wanted)?;
            of_blocks.push(gradients);
            below = dx;
        }
        let mut gradients = vec![gradient(below, &kept)?];
        gradients.extend(of_blocks.into_iter().rev().flatten());
        Ok(gradients)
    })
}

fn factors<T: Real>(factors: [&Tensor; 2]) -> Result<[Vec<T>; 2]> {
    let [a, b] = factors;
    Ok([a.to_dtype(T::DTYPE)?.to_vec1()?, b.to_dtype(T::DTYPE)?.to_vec1()?])
}

/// The tensors of a branch, contiguous.
struct BranchTensors {
    /// Weight and bias of the norm, weight and bias of the first and of the second layer, scale.
    tensors: [Option<Tensor>; 7],
    eps: f64,
}

impl BranchTensors {
    fn new(layers: &BranchLayers) -> Result<Self> {
        let (norm_weight, norm_bias) = layers.norm.tensors();
        let first_bias = layers.first_bias()?;
        let tensors = [
            Some(norm_weight),
            Some(norm_bias),
            Some(layers.first.weight()),
            first_bias.as_ref(),
            Some(layers.second.weight()),
            layers.second.bias(),
            layers.scale.as_ref(),
        ];
        let mut owned = [const { None }; 7];
        for (owned, tensor) in owned.iter_mut().zip(tensors) {
            *owned = tensor.map(Tensor::contiguous).transpose()?;
        }
        Ok(Self { tensors: owned, eps: layers.norm.eps() })
    }

    fn present(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().flatten()
    }

    /// Runs `f` with the elements.
    fn with<T: Real, R>(
        &self,
        (tokens, factors): (usize, Option<&[T]>),
        f: impl FnOnce(Branch<'_, T>) -> R,
    ) -> Result<R> {
        let readers = self.tensors.each_ref().map(|tensor| tensor.as_ref().map(reader));
        let mut slices = [None; 7];
        for (slice, reader) in slices.iter_mut().zip(&readers) {
            *slice = slice_of::<T, _>(reader)?;
        }
        let wanted = self.tensors.each_ref().map(|t| t.as_ref().is_some_and(Tensor::track_op));
        let [norm_weight, norm_bias, first, first_bias, second, second_bias, scale] = slices;
        Ok(f(Branch {
            norm: (norm_weight.unwrap_or_default(), norm_bias.unwrap_or_default()),
            eps: T::from_f64(self.eps),
            first: (first.unwrap_or_default(), first_bias),
            second: (second.unwrap_or_default(), second_bias),
            scale,
            tokens,
            factors,
            wanted,
        }))
    }
}

/// A pass through a block with all that it needs but the tokens.
struct Run<T> {
    attention: BranchTensors,
    mlp: BranchTensors,
    bias: Option<Tensor>,
    keys: Option<Vec<u8>>,
    factors: Option<[Vec<T>; 2]>,
    sizes: Sizes,
    between: Between,
}

/// What the backward pass needs of a block.
struct Saved<T> {
    /// The tokens that entered it; those of the first block are a tensor.
    input: Vec<T>,
    rest: Rest<T>,
}

/// The packed queries, keys and values; the sum between the branches; what comes out of the
/// perceptron's first layer.
struct Rest<T> {
    qkv: Vec<T>,
    between: Vec<T>,
    hidden: Vec<T>,
}

impl<T: Real> Run<T> {
    fn new(block: &TransformerBlock, sizes: Sizes, options: &BlockOptions<'_>) -> Result<Self> {
        Ok(Self {
            attention: BranchTensors::new(&block.attention)?,
            mlp: BranchTensors::new(&block.mlp)?,
            bias: options.attention.bias.map(Tensor::contiguous).transpose()?,
            keys: options.attention.keys_on_cpu()?,
            factors: options.drop_path.map(factors::<T>).transpose()?,
            sizes,
            between: Between { perceptron: block.perceptron, first: block.mlp.first.weight().dims2()?.0 },
        })
    }

    fn inputs(&self) -> Vec<&Tensor> {
        self.attention.present().chain(self.mlp.present()).chain(&self.bias).collect()
    }

    /// The factors of a branch, each for so many rows.
    fn factors(&self, branch: usize, tokens: usize) -> (usize, Option<&[T]>) {
        (tokens, self.factors.as_ref().map(|factors| &factors[branch][..]))
    }

    /// The `first` tokens of the result.
    fn forward(&self, x: &[T], first: usize) -> Result<(Vec<T>, Rest<T>)> {
        let Sizes { tokens, .. } = self.sizes;
        let bias = self.bias.as_ref().map(reader);
        let heads = Heads { sizes: self.sizes, bias: slice_of(&bias)?, keys: self.keys.as_deref() };
        let (mut between, qkv) =
            self.attention.with(self.factors(0, tokens), |branch| branch.forward(x, &heads))?;
        if first < tokens {
            let dim = self.sizes.dim();
            between = between.chunks(tokens * dim).flat_map(|x| &x[..first * dim]).copied().collect();
        }
        let (y, hidden) =
            self.mlp.with(self.factors(1, first), |branch| branch.forward(&between, &self.between))?;
        Ok((y, Rest { qkv, between, hidden }))
    }

    /// The gradient of `x`, and those of [`Run::inputs`].
    fn backward(&self, x: &[T], saved: &Rest<T>, dy: &[T], first: usize) -> Result<(Vec<T>, Gradients)> {
        let Sizes { tokens, .. } = self.sizes;
        let bias = self.bias.as_ref().map(reader);
        let heads = Heads { sizes: self.sizes, bias: slice_of(&bias)?, keys: self.keys.as_deref() };
        let (mut d_between, of_mlp) = self.mlp.with(self.factors(1, first), |branch| {
            branch.backward((&saved.between, &saved.hidden), dy, &self.between, 0)
        })?;
        if first < tokens {
            let dim = self.sizes.dim();
            let mut all = vec![T::ZERO; x.len()];
            for (all, first) in all.chunks_mut(tokens * dim).zip(d_between.chunks(first * dim)) {
                all[..first.len()].copy_from_slice(first);
            }
            d_between = all;
        }
        let bias_len = self.bias.as_ref().filter(|bias| bias.track_op()).map_or(0, Tensor::elem_count);
        let (dx, mut of_attention) = self.attention.with(self.factors(0, tokens), |branch| {
            branch.backward((x, &saved.qkv), &d_between, &heads, bias_len)
        })?;
        let of_bias = of_attention.pop();
        let mut gradients = Vec::new();
        for (tensors, sums) in [(&self.attention, of_attention), (&self.mlp, of_mlp)] {
            for (tensor, sum) in tensors.tensors.iter().zip(sums) {
                if let Some(tensor) = tensor {
                    gradients.push(gradient(sum, tensor)?);
                }
            }
        }
        if let Some(bias) = &self.bias {
            gradients.push(of_bias.map(|sum| gradient(sum, bias)).transpose()?.flatten());
        }
        Ok((dx, gradients))
    }
}
