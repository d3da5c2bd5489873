//! The blocks of vision transformers (Dosovitskiy et al., 2020, <https://arxiv.org/abs/2010.11929>) as one operation.
//!
//! A block has two branches of the same form, `x + scale · second(middle(first(norm(x))))`, whose middle is the
//! attention of whole samples or an activation. Each is computed for a few rows at a time, which stay in the cache from
//! the norm to the sum. The backward pass needs `x` and what comes out of `first`; norm and middle it computes again,
//! which costs little beside the products.

use candle_core::{Result, Tensor, bail};

use crate::activation::Activation;
use crate::attention::{AttentionOptions, Heads, Sizes, attention, slice_of};
use crate::branch::Branch;
use crate::graph::{Gradients, gradient, node};
use crate::init::Init;
use crate::layer_norm::LayerNorm;
use crate::linear::{Linear, LinearConfig};
use crate::params::Scope;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// Settings of a [`TransformerBlock`]; the defaults are those of timm's vision transformers.
#[derive(Clone, Copy, Debug)]
pub struct TransformerBlockConfig {
    /// Heads of the attention; must divide the width.
    pub heads: usize,
    /// Width of the perceptron's hidden layer over that of the block.
    pub mlp_ratio: f64,
    /// Added to the variance in both norms.
    pub norm_eps: f64,
    /// Whether the layer that makes queries, keys and values has a bias.
    pub qkv_bias: bool,
    /// Start of the factor of each channel on what a branch adds (LayerScale); `None` for no such factors.
    pub layer_scale: Option<f64>,
    /// The activation of the perceptron.
    pub activation: Activation,
    /// Initial weight of the linear layers; their biases start at 0.
    pub init: Init,
}

impl Default for TransformerBlockConfig {
    fn default() -> Self {
        Self {
            heads: 3,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            qkv_bias: true,
            layer_scale: None,
            activation: Activation::Gelu,
            init: Init::Normal { std: 0.02 },
        }
    }
}

/// What a pass through a block may add to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockOptions<'a> {
    /// Of the attention.
    pub attention: AttentionOptions<'a>,
    /// Factors of what the attention and the perceptron add to each sample, `(B)` each, without gradient: drop path
    /// sets some to 0 and the others to the inverse of the share that is kept.
    pub drop_path: Option<[&'a Tensor; 2]>,
}

/// `x + attention(norm1(x))`, then `x + mlp(norm2(x))`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{BlockOptions, Params, TransformerBlock, TransformerBlockConfig};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let block = TransformerBlock::new(12, TransformerBlockConfig::default(), &params.root().pp("blocks.0"))?;
/// let tokens = Tensor::ones((2, 5, 12), DType::F32, &Device::Cpu)?;
/// assert_eq!(block.forward(&tokens, &BlockOptions::default())?.dims(), [2, 5, 12]);
/// assert!(params.names().contains(&"blocks.0.attn.qkv.weight".to_owned()));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    attention: BranchLayers,
    mlp: BranchLayers,
    heads: usize,
    activation: Activation,
}

/// The layers of a branch.
#[derive(Clone, Debug)]
struct BranchLayers {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    /// A factor for each channel.
    scale: Option<Tensor>,
}

impl BranchLayers {
    fn frozen(&self) -> Self {
        Self {
            norm: self.norm.frozen(),
            first: self.first.frozen(),
            second: self.second.frozen(),
            scale: self.scale.as_ref().map(Tensor::detach),
        }
    }
}

impl TransformerBlock {
    /// A block of width `dim`; creates `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1` and `mlp.fc2`, and with
    /// LayerScale `ls1.gamma` and `ls2.gamma`: timm's names.
    ///
    /// # Errors
    /// If the number of heads does not divide `dim`, the perceptron has no hidden unit, or a name is taken.
    pub fn new(dim: usize, config: TransformerBlockConfig, scope: &Scope) -> Result<Self> {
        let TransformerBlockConfig { heads, mlp_ratio, norm_eps, init, .. } = config;
        if heads == 0 || dim == 0 || !dim.is_multiple_of(heads) {
            bail!("transformer block: {heads} heads do not divide the width {dim}");
        }
        let hidden = (dim as f64 * mlp_ratio) as usize;
        if hidden == 0 {
            bail!("transformer block: mlp_ratio = {mlp_ratio} leaves no hidden unit at width {dim}");
        }
        let linear = |inputs, outputs, bias, name: &str| {
            let config = LinearConfig { bias, init: Some(init), bias_init: Some(Init::Const(0.0)) };
            Linear::new(inputs, outputs, config, &scope.pp(name))
        };
        let scale = |name: &str| {
            config
                .layer_scale
                .map(|start| scope.pp(name).trainable("gamma", dim, Init::Const(start)))
                .transpose()
        };
        let attention = BranchLayers {
            norm: LayerNorm::new(dim, norm_eps, &scope.pp("norm1"))?,
            first: linear(dim, 3 * dim, config.qkv_bias, "attn.qkv")?,
            second: linear(dim, dim, true, "attn.proj")?,
            scale: scale("ls1")?,
        };
        let mlp = BranchLayers {
            norm: LayerNorm::new(dim, norm_eps, &scope.pp("norm2"))?,
            first: linear(dim, hidden, true, "mlp.fc1")?,
            second: linear(hidden, dim, true, "mlp.fc2")?,
            scale: scale("ls2")?,
        };
        Ok(Self { attention, mlp, heads, activation: config.activation })
    }

    /// `(B, N, dim)` to the same shape.
    ///
    /// # Errors
    /// If `x` or one of `options` is not of its shape.
    pub fn forward(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Tensor> {
        transformer_blocks(x, &[(self, *options)], None)
    }

    /// Checks `x` and the options for this block.
    fn check(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Sizes> {
        let (batch, tokens, dim) = x.dims3()?;
        let width = self.attention.norm.dim();
        if dim != width || batch * tokens == 0 {
            bail!("transformer block: expected (B, N, {width}) with at least one token, got {:?}", x.dims());
        }
        if let Some(factors) =
            options.drop_path.into_iter().flatten().find(|factors| factors.dims() != [batch])
        {
            bail!("transformer block: expected {batch} factors of drop path, got {:?}", factors.dims());
        }
        let sizes = Sizes { tokens, heads: self.heads, width: dim / self.heads };
        options.attention.check(x, batch, sizes)?;
        Ok(sizes)
    }

    /// The same block with parameters that get no gradient, as in a teacher. They stay those of the store.
    pub fn frozen(&self) -> Self {
        Self { attention: self.attention.frozen(), mlp: self.mlp.frozen(), ..self.clone() }
    }

    /// The weights `(B, heads, N, N)` of the attention for the input `x` of the block; without gradient.
    ///
    /// # Errors
    /// As [`TransformerBlock::forward`].
    pub fn attention_map(&self, x: &Tensor, options: &AttentionOptions<'_>) -> Result<Tensor> {
        let qkv = self.attention.first.forward(&self.attention.norm.forward(&x.detach())?)?;
        crate::attention::attention_map(&qkv, self.heads, options)
    }

    /// The same layer by layer, for devices without a kernel of ours.
    fn composite(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Tensor> {
        let add = |x: &Tensor, layers: &BranchLayers, middle: &Tensor, branch: usize| {
            let mut y = layers.second.forward(middle)?;
            if let Some(scale) = &layers.scale {
                y = y.broadcast_mul(scale)?;
            }
            if let Some(factors) = options.drop_path {
                y = y.broadcast_mul(&factors[branch].to_dtype(x.dtype())?.reshape(((), 1, 1))?)?;
            }
            x + y
        };
        let first = |layers: &BranchLayers, x: &Tensor| layers.first.forward(&layers.norm.forward(x)?);
        let middle = attention(&first(&self.attention, x)?, self.heads, &options.attention)?;
        let x = add(x, &self.attention, &middle, 0)?;
        let middle = self.activation.apply(&first(&self.mlp, &x)?)?;
        add(&x, &self.mlp, &middle, 1)
    }
}

/// Runs blocks one after the other, each with its options.
///
/// That is the same as [`TransformerBlock::forward`] block by block and cheaper: on the CPU it is one operation. Where
/// only the `first` tokens of the result are wanted, such as the class token, the last perceptron is computed for those
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
    if !x.device().is_cpu() || blocks.is_empty() {
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
        let tensors = [
            Some(norm_weight),
            Some(norm_bias),
            Some(layers.first.weight()),
            layers.first.bias(),
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
    activation: Activation,
}

/// What the backward pass needs of a block.
struct Saved<T> {
    /// The tokens that entered it; those of the first block are a tensor.
    input: Vec<T>,
    rest: Rest<T>,
}

/// The packed queries, keys and values; the sum between the branches; what enters the activation.
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
            activation: block.activation,
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
            self.mlp.with(self.factors(1, first), |branch| branch.forward(&between, &self.activation))?;
        Ok((y, Rest { qkv, between, hidden }))
    }

    /// The gradient of `x`, and those of [`Run::inputs`].
    fn backward(&self, x: &[T], saved: &Rest<T>, dy: &[T], first: usize) -> Result<(Vec<T>, Gradients)> {
        let Sizes { tokens, .. } = self.sizes;
        let bias = self.bias.as_ref().map(reader);
        let heads = Heads { sizes: self.sizes, bias: slice_of(&bias)?, keys: self.keys.as_deref() };
        let (mut d_between, of_mlp) = self.mlp.with(self.factors(1, first), |branch| {
            branch.backward((&saved.between, &saved.hidden), dy, &self.activation, 0)
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let config = TransformerBlockConfig::default();
        let new = |dim, config| TransformerBlock::new(dim, config, &params.root().pp(params.names().len()));
        assert!(new(10, config).unwrap_err().to_string().contains("3 heads do not divide the width 10"));
        let flat = TransformerBlockConfig { mlp_ratio: 0.1, ..config };
        assert!(new(6, flat).unwrap_err().to_string().contains("mlp_ratio = 0.1"));
        let block = new(6, config).unwrap();
        let x = |n, dim| Tensor::zeros((2, n, dim), DType::F32, &Device::Cpu).unwrap();
        let error = |x: &Tensor, options| block.forward(x, &options).unwrap_err().to_string();
        assert!(error(&x(3, 7), BlockOptions::default()).contains("expected (B, N, 6)"));
        assert!(error(&x(0, 6), BlockOptions::default()).contains("at least one token"));
        let three = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        let options = BlockOptions { drop_path: Some([&three, &three]), ..Default::default() };
        assert!(error(&x(3, 6), options).contains("expected 2 factors"));
    }

    #[test]
    fn the_path_for_other_devices_agrees() {
        let params = Params::new(0, DType::F64, &Device::Cpu);
        let config =
            TransformerBlockConfig { heads: 2, layer_scale: Some(0.3), ..TransformerBlockConfig::default() };
        let block = TransformerBlock::new(6, config, &params.root()).unwrap();
        let sample = |name, shape: &[usize]| {
            Init::Normal { std: 1.0 }.sample(shape, 1, name, DType::F64, &Device::Cpu).unwrap()
        };
        let (x, bias) = (sample("x", &[3, 4, 6]), sample("bias", &[2, 4, 4]));
        let keys = Tensor::new(&[[1u8, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], &Device::Cpu).unwrap();
        let attention = AttentionOptions { bias: Some(&bias), keys: Some(&keys) };
        let factors = [sample("a", &[3]), sample("b", &[3])];
        let options = BlockOptions { attention, drop_path: Some([&factors[0], &factors[1]]) };
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (ours, theirs) = (block.forward(&x, &options), block.composite(&x, &options));
        let pairs = values(ours.unwrap()).into_iter().zip(values(theirs.unwrap()));
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
    }
}
