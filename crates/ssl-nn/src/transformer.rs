//! The block of vision transformers (Dosovitskiy et al., 2020, <https://arxiv.org/abs/2010.11929>) as one operation.
//!
//! A block has two branches of the same form, `x + scale · second(middle(first(norm(x))))`, whose middle is the
//! attention of whole samples or an activation. Each is computed for a few rows at a time, which stay in the cache from
//! the norm to the sum. The backward pass needs `x` and what comes out of `first`; norm and middle it computes again,
//! which costs little beside the products.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::attention::{AttentionOptions, Heads, Scratch as AttentionScratch, Sizes, attention, slice_of};
use crate::convolve::{parts, sum_in_order};
use crate::dense::{Operand, add_bias, add_columns, add_weight_gradient};
use crate::fresh::Fresh;
use crate::graph::{Gradients, gradient, node};
use crate::init::Init;
use crate::kernel::wide;
use crate::layer_norm::{LayerNorm, backward_rows, forward_rows};
use crate::linear::{Linear, LinearConfig};
use crate::params::Scope;
use crate::real::Real;
use crate::scratch::with_scratch;
use crate::storage::{dispatch, reader};

/// Rows that are computed together.
const ROWS: usize = 112;

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
        let (batch, tokens, dim) = x.dims3()?;
        if dim != self.attention.norm.dim() || batch * tokens == 0 {
            let width = self.attention.norm.dim();
            bail!("transformer block: expected (B, N, {width}) with at least one token, got {:?}", x.dims());
        }
        for factors in options.drop_path.into_iter().flatten().filter(|factors| factors.dims() != [batch]) {
            bail!("transformer block: expected {batch} factors of drop path, got {:?}", factors.dims());
        }
        let sizes = Sizes { tokens, heads: self.heads, width: dim / self.heads };
        options.attention.check(x, batch, sizes)?;
        if !x.device().is_cpu() {
            return self.composite(x, options);
        }
        dispatch!(x.dtype(), "transformer block", T => self.on_cpu::<T>(x, sizes, options))
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

    fn on_cpu<T: Real>(&self, x: &Tensor, sizes: Sizes, options: &BlockOptions<'_>) -> Result<Tensor> {
        let attention = BranchTensors::new(&self.attention)?;
        let mlp = BranchTensors::new(&self.mlp)?;
        let bias = options.attention.bias.map(Tensor::contiguous).transpose()?;
        let keys = options.attention.keys_on_cpu()?;
        let factors = options.drop_path.map(factors::<T>).transpose()?;
        let run = Run {
            x: x.contiguous()?,
            attention,
            mlp,
            bias,
            keys,
            factors,
            sizes,
            activation: self.activation,
        };
        let saved = run.forward()?;
        let inputs = run.inputs().into_iter().cloned().collect::<Vec<_>>();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let Saved { y, rest } = saved;
        node("transformer block", &inputs, (y, x.shape()), move |_, dy| run.backward(&rest, dy))
    }
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

/// A pass through a block with all that it needs.
struct Run<T> {
    x: Tensor,
    attention: BranchTensors,
    mlp: BranchTensors,
    bias: Option<Tensor>,
    keys: Option<Vec<u8>>,
    factors: Option<[Vec<T>; 2]>,
    sizes: Sizes,
    activation: Activation,
}

/// What a forward pass yields.
struct Saved<T> {
    y: Vec<T>,
    rest: Rest<T>,
}

/// What the backward pass needs of it: the packed queries, keys and values; the sum between the branches; what enters
/// the activation.
struct Rest<T> {
    qkv: Vec<T>,
    between: Vec<T>,
    hidden: Vec<T>,
}

impl<T: Real> Run<T> {
    fn inputs(&self) -> Vec<&Tensor> {
        let branches = self.attention.present().chain(self.mlp.present());
        std::iter::once(&self.x).chain(branches).chain(&self.bias).collect()
    }

    fn place(&self, branch: usize) -> (usize, Option<&[T]>) {
        (self.sizes.tokens, self.factors.as_ref().map(|factors| &factors[branch][..]))
    }

    fn forward(&self) -> Result<Saved<T>> {
        let x = reader(&self.x);
        let x = x.slice::<T>()?;
        let bias = self.bias.as_ref().map(reader);
        let heads = Heads { sizes: self.sizes, bias: slice_of(&bias)?, keys: self.keys.as_deref() };
        let (between, qkv) = self.attention.with(self.place(0), |branch| branch.forward(x, &heads))?;
        let (y, hidden) =
            self.mlp.with(self.place(1), |branch| branch.forward(&between, &self.activation))?;
        Ok(Saved { y, rest: Rest { qkv, between, hidden } })
    }

    fn backward(&self, saved: &Rest<T>, dy: &Tensor) -> Result<Gradients> {
        let (x, dy) = (reader(&self.x), reader(dy));
        let (x, dy) = (x.slice::<T>()?, dy.slice::<T>()?);
        let bias = self.bias.as_ref().map(reader);
        let heads = Heads { sizes: self.sizes, bias: slice_of(&bias)?, keys: self.keys.as_deref() };
        let (d_between, of_mlp) = self.mlp.with(self.place(1), |branch| {
            branch.backward((&saved.between, &saved.hidden), dy, &self.activation, 0)
        })?;
        let bias_len = self.bias.as_ref().filter(|bias| bias.track_op()).map_or(0, Tensor::elem_count);
        let (dx, of_attention) = self
            .attention
            .with(self.place(0), |branch| branch.backward((x, &saved.qkv), &d_between, &heads, bias_len))?;
        let mut gradients = vec![gradient(dx, &self.x)?];
        let mut of_bias = None;
        for (tensors, sums) in [(&self.attention, of_attention), (&self.mlp, of_mlp)] {
            let mut sums = sums.into_iter();
            for (tensor, sum) in tensors.tensors.iter().zip(&mut sums) {
                if let Some(tensor) = tensor {
                    gradients.push(gradient(sum, tensor)?);
                }
            }
            of_bias = of_bias.or(sums.next().filter(|sum| !sum.is_empty()));
        }
        if let Some(bias) = &self.bias {
            gradients.push(of_bias.map(|sum| gradient(sum, bias)).transpose()?.flatten());
        }
        Ok(gradients)
    }
}

/// What stands between the two layers of a branch.
trait Middle<T>: Sync {
    /// Rows that are computed together.
    fn rows(&self) -> usize;

    /// The output for the rows from `start` on.
    fn forward(&self, start: usize, first: &[T], middle: &mut [T], scratch: &mut AttentionScratch<T>);

    /// The output once more, the gradient of the input, and what is added to further gradients.
    fn backward(
        &self,
        start: usize,
        first: &[T],
        d_middle: &[T],
        outputs: (&mut [T], &mut [T]),
        more: &mut [T],
        scratch: &mut AttentionScratch<T>,
    );

    /// Width of the output for that of the input.
    fn width(&self, first: usize) -> usize;
}

impl<T: Real> Middle<T> for Heads<'_, T> {
    fn rows(&self) -> usize {
        ROWS.div_ceil(self.sizes.tokens) * self.sizes.tokens
    }

    fn width(&self, first: usize) -> usize {
        first / 3
    }

    fn forward(&self, start: usize, first: &[T], middle: &mut [T], scratch: &mut AttentionScratch<T>) {
        let (i, sample) = (start / self.sizes.tokens, self.sizes.tokens * self.sizes.dim());
        for (i, (qkv, y)) in (i..).zip(first.chunks_exact(3 * sample).zip(middle.chunks_exact_mut(sample))) {
            Heads::forward(self, i, qkv, y, scratch);
        }
    }

    fn backward(
        &self,
        start: usize,
        first: &[T],
        d_middle: &[T],
        (middle, d_first): (&mut [T], &mut [T]),
        more: &mut [T],
        scratch: &mut AttentionScratch<T>,
    ) {
        let (i, sample) = (start / self.sizes.tokens, self.sizes.tokens * self.sizes.dim());
        let inputs = first.chunks_exact(3 * sample).zip(d_middle.chunks_exact(sample));
        let outputs = d_first.chunks_exact_mut(3 * sample).zip(middle.chunks_exact_mut(sample));
        for (i, ((qkv, dy), (dqkv, y))) in (i..).zip(inputs.zip(outputs)) {
            Heads::backward(self, i, qkv, dy, dqkv, Some(y), more, scratch);
        }
    }
}

impl<T: Real> Middle<T> for Activation {
    fn rows(&self) -> usize {
        ROWS
    }

    fn width(&self, first: usize) -> usize {
        first
    }

    fn forward(&self, _: usize, first: &[T], middle: &mut [T], _: &mut AttentionScratch<T>) {
        self.values(first, middle);
    }

    fn backward(
        &self,
        _: usize,
        first: &[T],
        d_middle: &[T],
        (middle, d_first): (&mut [T], &mut [T]),
        _: &mut [T],
        _: &mut AttentionScratch<T>,
    ) {
        self.values_and_gradients(first, d_middle, middle, d_first);
    }
}

/// The elements of a branch.
#[derive(Clone, Copy)]
struct Branch<'a, T> {
    norm: (&'a [T], &'a [T]),
    eps: T,
    first: (&'a [T], Option<&'a [T]>),
    second: (&'a [T], Option<&'a [T]>),
    scale: Option<&'a [T]>,
    /// Rows of a sample.
    tokens: usize,
    /// A factor for each sample.
    factors: Option<&'a [T]>,
    /// Which gradients are wanted, in the order of [`BranchTensors`].
    wanted: [bool; 7],
}

/// Memory that a thread uses again for every few rows.
struct Rows<T> {
    norm: Vec<T>,
    stats: Vec<[T; 2]>,
    middle: Vec<T>,
    d_middle: Vec<T>,
    d_first: Vec<T>,
    d_norm: Vec<T>,
    dz: Vec<T>,
    packed: Vec<T>,
    attention: AttentionScratch<T>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        let [norm, middle, d_middle, d_first, d_norm, dz, packed] = [(); 7].map(|()| Vec::new());
        let (stats, attention) = (Vec::new(), AttentionScratch::default());
        Self { norm, stats, middle, d_middle, d_first, d_norm, dz, packed, attention }
    }
}

impl<T: Real> Branch<'_, T> {
    fn dim(&self) -> usize {
        self.norm.0.len()
    }

    /// Outputs of the first layer.
    fn hidden(&self) -> usize {
        self.first.0.len() / self.dim()
    }

    /// `y` and the output of the first layer.
    fn forward(&self, x: &[T], middle: &impl Middle<T>) -> (Vec<T>, Vec<T>) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let width = middle.width(hidden);
        let (first, second) = (Operand::forward(self.first.0, dim), Operand::forward(self.second.0, width));
        let (mut y, mut kept) = (Fresh::new(x.len()), Fresh::new(x.len() / dim * hidden));
        let rows = middle.rows();
        x.par_chunks(rows * dim)
            .zip(y.par_parts(rows * dim))
            .zip(kept.par_parts(rows * hidden))
            .enumerate()
            .for_each(|(i, ((x, y), kept))| {
                let (y, kept) = (y.clear(), kept.clear());
                with_scratch(|room: &mut Rows<T>| {
                    self.normalise(x, room);
                    first.apply(&room.norm, kept);
                    if let Some(bias) = self.first.1 {
                        add_bias(kept, bias);
                    }
                    room.middle.resize(x.len() / dim * width, T::ZERO);
                    middle.forward(i * rows, kept, &mut room.middle, &mut room.attention);
                    second.apply(&room.middle, y);
                });
                self.finish(i * rows, x, y);
            });
        (y.into_vec(), kept.into_vec())
    }

    fn normalise(&self, x: &[T], room: &mut Rows<T>) {
        room.norm.resize(x.len(), T::ZERO);
        room.stats.resize(x.len() / self.dim(), [T::ZERO; 2]);
        wide(|| forward_rows(x, self.norm, self.eps, &mut room.norm, &mut room.stats));
    }

    /// `y = x + factor · scale · (y + bias)` for the rows from `start` on.
    fn finish(&self, start: usize, x: &[T], y: &mut [T]) {
        if let Some(bias) = self.second.1 {
            add_bias(y, bias);
        }
        wide(|| {
            for (i, (x, y)) in x.chunks_exact(self.dim()).zip(y.chunks_exact_mut(self.dim())).enumerate() {
                self.weigh(start + i, y);
                y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
            }
        });
    }

    /// Multiplies a row by the factor of its sample and the scale of each channel.
    #[inline(always)]
    fn weigh(&self, row: usize, y: &mut [T]) {
        if let Some(scale) = self.scale {
            y.iter_mut().zip(scale).for_each(|(y, scale)| *y *= *scale);
        }
        if let Some(factors) = self.factors {
            let factor = factors[row / self.tokens];
            y.iter_mut().for_each(|y| *y *= factor);
        }
    }

    /// The gradient of `x`, and those of the branch's tensors in their order, followed by `more` of the middle. A
    /// gradient that nobody wants is empty.
    fn backward(
        &self,
        (x, kept): (&[T], &[T]),
        dy: &[T],
        middle: &impl Middle<T>,
        more: usize,
    ) -> (Vec<T>, Vec<Vec<T>>) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let width = middle.width(hidden);
        let operands = Operands {
            first: Operand::backward(self.first.0, dim),
            second: Operand::backward(self.second.0, width),
            // What the scale multiplied is needed for its gradient.
            again: self.wanted[6].then(|| Operand::forward(self.second.0, width)),
        };
        let lens = [dim, dim, self.first.0.len(), hidden, self.second.0.len(), dim, dim, more];
        let wanted = self.wanted.into_iter().chain([more > 0]);
        let lens: Vec<usize> =
            lens.into_iter().zip(wanted).map(|(n, wanted)| if wanted { n } else { 0 }).collect();
        let mut dx = Fresh::new(x.len());
        let rows = middle.rows();
        let chunks = (x.len() / dim).div_ceil(rows);
        let part = chunks.div_ceil(parts(lens.iter().sum())).max(1) * rows;
        let sums: Vec<Vec<Vec<T>>> = x
            .par_chunks(part * dim)
            .zip(kept.par_chunks(part * hidden))
            .zip(dy.par_chunks(part * dim))
            .zip(dx.par_parts(part * dim))
            .enumerate()
            .map(|(p, (((x, kept), dy), dx))| {
                let mut sums: Vec<Vec<T>> = lens.iter().map(|n| vec![T::ZERO; *n]).collect();
                let inputs = x.chunks(rows * dim).zip(kept.chunks(rows * hidden)).zip(dy.chunks(rows * dim));
                for (i, (((x, kept), dy), dx)) in inputs.zip(dx.clear().chunks_mut(rows * dim)).enumerate() {
                    let start = p * part + i * rows;
                    with_scratch(|room| {
                        self.backward_rows(start, (x, kept, dy), &operands, middle, dx, &mut sums, room);
                    });
                }
                sums
            })
            .collect();
        (dx.into_vec(), sum_each(sums, lens.len()))
    }

    fn backward_rows(
        &self,
        start: usize,
        (x, kept, dy): (&[T], &[T], &[T]),
        operands: &Operands<T>,
        middle: &impl Middle<T>,
        dx: &mut [T],
        sums: &mut [Vec<T>],
        room: &mut Rows<T>,
    ) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let (rows, width) = (x.len() / dim, middle.width(hidden));
        let [d_norm_weight, d_norm_bias, d_first, d_first_bias, d_second, d_second_bias, d_scale, more] =
            sums
        else {
            return;
        };
        self.normalise(x, room);
        room.middle.resize(rows * width, T::ZERO);
        room.d_middle.resize(rows * width, T::ZERO);
        room.d_first.resize(rows * hidden, T::ZERO);
        room.d_norm.resize(rows * dim, T::ZERO);
        room.dz.clear();
        room.dz.extend_from_slice(dy);
        wide(|| {
            room.dz.chunks_exact_mut(dim).enumerate().for_each(|(i, dz)| self.weigh(start + i, dz));
        });
        operands.second.apply(&room.dz, &mut room.d_middle);
        let outputs = (&mut room.middle[..], &mut room.d_first[..]);
        middle.backward(start, kept, &room.d_middle, outputs, more, &mut room.attention);
        if let Some(again) = &operands.again {
            again.apply(&room.middle, &mut room.d_norm);
            self.add_scale_gradient(start, dy, &mut room.d_norm, d_scale);
        }
        if self.wanted[4] {
            add_weight_gradient((&room.dz, dim), (&room.middle, width), d_second, &mut room.packed);
        }
        if self.wanted[5] {
            add_columns(&room.dz, d_second_bias);
        }
        if self.wanted[2] {
            add_weight_gradient((&room.d_first, hidden), (&room.norm, dim), d_first, &mut room.packed);
        }
        if self.wanted[3] {
            add_columns(&room.d_first, d_first_bias);
        }
        operands.first.apply(&room.d_first, &mut room.d_norm);
        let norm = (x, self.norm.0, &room.stats[..]);
        // The room of `dz` is free again: the gradient of the norm's weight and bias in these rows.
        room.dz.clear();
        room.dz.resize(2 * dim, T::ZERO);
        let (dw, db) = room.dz.split_at_mut(dim);
        wide(|| {
            backward_rows(norm, &room.d_norm, dx, (dw, db));
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
            d_norm_weight.iter_mut().zip(dw).for_each(|(sum, v)| *sum += *v);
            d_norm_bias.iter_mut().zip(db).for_each(|(sum, v)| *sum += *v);
        });
    }

    /// `d_scale += Σ factor · dy · z`, where `z`, still without the bias, is what the scale multiplied.
    fn add_scale_gradient(&self, start: usize, dy: &[T], z: &mut [T], d_scale: &mut [T]) {
        if let Some(bias) = self.second.1 {
            add_bias(z, bias);
        }
        for (i, (z, dy)) in z.chunks_exact_mut(self.dim()).zip(dy.chunks_exact(self.dim())).enumerate() {
            let factor = self.factors.map_or(T::ONE, |factors| factors[(start + i) / self.tokens]);
            z.iter_mut().zip(dy).for_each(|(z, dy)| *z *= *dy * factor);
        }
        add_columns(z, d_scale);
    }
}

/// The weights as the backward pass needs them.
struct Operands<T> {
    first: Operand<T>,
    second: Operand<T>,
    again: Option<Operand<T>>,
}

/// The sums over the parts, each in the order of the parts.
fn sum_each<T: Real>(parts: Vec<Vec<Vec<T>>>, n: usize) -> Vec<Vec<T>> {
    let mut by_tensor: Vec<Vec<Vec<T>>> = (0..n).map(|_| Vec::with_capacity(parts.len())).collect();
    for part in parts {
        by_tensor.iter_mut().zip(part).for_each(|(tensor, sum)| tensor.push(sum));
    }
    by_tensor.into_iter().map(sum_in_order).collect()
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
