//! One block of a vision transformer: its settings and its parameters.

use candle_core::{Result, Tensor, bail};

use crate::activation::Activation;
use crate::attention::{AttentionOptions, Sizes, attention};
use crate::init::Init;
use crate::layer_norm::LayerNorm;
use crate::linear::{Linear, LinearConfig, linear};
use crate::params::Scope;
use crate::perceptron::Perceptron;
use crate::transformer::transformer_blocks;

/// Which of queries, keys and values get a bias from the layer that makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvBias {
    /// None of them.
    None,
    /// All of them, in one `attn.qkv.bias`.
    All,
    /// Queries and values, as in BEiT: a bias of the keys changes nothing after the softmax. The block then has the
    /// names of timm's BEiT: `attn.q_bias` and `attn.v_bias`, and `gamma_1` and `gamma_2` for the scales.
    QueryValue,
}

/// Whose names the layers of a block have. LayerScale and the norms of queries and keys keep timm's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockNames {
    /// `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1` and `mlp.fc2`: timm's.
    Timm,
    /// `ln_1`, `attn.in_proj_weight` and `attn.in_proj_bias`, `attn.out_proj`, `ln_2`, `mlp.c_fc` and `mlp.c_proj`:
    /// those of OpenAI's CLIP.
    Clip,
}

impl BlockNames {
    /// The two norms, the layer that ends the attention, and the two layers of the perceptron.
    fn layers(self) -> [&'static str; 5] {
        match self {
            Self::Timm => ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"],
            Self::Clip => ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"],
        }
    }

    /// The layer that makes queries, keys and values: its place, weight and bias.
    fn qkv(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Timm => ("attn.qkv", ["weight", "bias"]),
            Self::Clip => ("attn", ["in_proj_weight", "in_proj_bias"]),
        }
    }
}

/// Settings of a [`TransformerBlock`]; the defaults are those of timm's vision transformers.
#[derive(Clone, Copy, Debug)]
pub struct TransformerBlockConfig {
    /// Heads of the attention; must divide the width.
    pub heads: usize,
    /// Width of the perceptron's hidden layer over that of the block.
    pub mlp_ratio: f64,
    /// Added to the variance in both norms.
    pub norm_eps: f64,
    /// The biases of queries, keys and values.
    pub qkv_bias: QkvBias,
    /// Norm queries and keys of each head before their product (Dehghani et al., 2023,
    /// <https://arxiv.org/abs/2302.05442>), as timm's `qk_norm`. A block with it is computed layer by layer.
    pub qk_norm: bool,
    /// Start of the factor of each channel on what a branch adds (LayerScale); `None` for no such factors.
    pub layer_scale: Option<f64>,
    /// What stands between the two layers of the perceptron.
    pub perceptron: Perceptron,
    /// Initial weight of the linear layers; their biases start at 0.
    pub init: Init,
    /// Initial weight of the layers that end a branch, where it is another; BEiT shrinks it with the depth.
    pub last_init: Option<Init>,
    /// Initial weight of the perceptron's first layer, where it is another, as in the text transformer of CLIP.
    pub hidden_init: Option<Init>,
    /// The names of the layers.
    pub names: BlockNames,
}

impl Default for TransformerBlockConfig {
    fn default() -> Self {
        Self {
            heads: 3,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            qkv_bias: QkvBias::All,
            qk_norm: false,
            layer_scale: None,
            perceptron: Perceptron::Plain(Activation::Gelu),
            init: Init::Normal { std: 0.02 },
            last_init: None,
            hidden_init: None,
            names: BlockNames::Timm,
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
    pub(crate) attention: BranchLayers,
    pub(crate) mlp: BranchLayers,
    /// Of queries and of keys.
    qk_norms: Option<[LayerNorm; 2]>,
    heads: usize,
    pub(crate) perceptron: Perceptron,
}

/// The layers of a branch.
#[derive(Clone, Debug)]
pub(crate) struct BranchLayers {
    pub(crate) norm: LayerNorm,
    pub(crate) first: Linear,
    /// Biases of the first third and of the last third of the first layer's outputs, if it has none itself.
    outer_biases: Option<[Tensor; 2]>,
    pub(crate) second: Linear,
    /// A factor for each channel.
    pub(crate) scale: Option<Tensor>,
}

impl BranchLayers {
    fn frozen(&self) -> Self {
        Self {
            norm: self.norm.frozen(),
            first: self.first.frozen(),
            outer_biases: self.outer_biases.as_ref().map(|biases| biases.each_ref().map(Tensor::detach)),
            second: self.second.frozen(),
            scale: self.scale.as_ref().map(Tensor::detach),
        }
    }

    /// The bias of the first layer as it is now.
    pub(crate) fn first_bias(&self) -> Result<Option<Tensor>> {
        match &self.outer_biases {
            Some([query, value]) => Tensor::cat(&[query, &query.zeros_like()?, value], 0).map(Some),
            None => Ok(self.first.bias().cloned()),
        }
    }

    /// The output of the first layer.
    fn first(&self, x: &Tensor) -> Result<Tensor> {
        linear(&self.norm.forward(x)?, self.first.weight(), self.first_bias()?.as_ref(), None)
    }
}

impl TransformerBlock {
    /// A block of width `dim`; creates `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1` and `mlp.fc2`, with
    /// LayerScale `ls1.gamma` and `ls2.gamma`, and with norms of queries and keys `attn.q_norm` and `attn.k_norm`:
    /// timm's names. [`TransformerBlockConfig::names`] has others.
    ///
    /// # Errors
    /// If the number of heads does not divide `dim`, the perceptron has no hidden unit, or a name is taken.
    pub fn new(dim: usize, config: TransformerBlockConfig, scope: &Scope) -> Result<Self> {
        let TransformerBlockConfig { heads, mlp_ratio, norm_eps, init, .. } = config;
        if heads == 0 || dim == 0 || !dim.is_multiple_of(heads) {
            bail!("transformer block: {heads} heads do not divide the width {dim}");
        }
        let hidden = config.perceptron.hidden(dim, mlp_ratio);
        if hidden == 0 {
            bail!("transformer block: mlp_ratio = {mlp_ratio} leaves no hidden unit at width {dim}");
        }
        let last = config.last_init.unwrap_or(init);
        let settings =
            |bias, init| LinearConfig { bias, init: Some(init), bias_init: Some(Init::Const(0.0)) };
        let linear = |inputs, outputs, init, name: &str| {
            Linear::new(inputs, outputs, settings(true, init), &scope.pp(name))
        };
        let [norm1, norm2, proj, fc1, fc2] = config.names.layers();
        let (place, names) = config.names.qkv();
        let has_bias = config.qkv_bias == QkvBias::All;
        let beit = config.qkv_bias == QkvBias::QueryValue;
        let scale = |[timm, beits]: [&str; 2]| {
            let create = |start| match beit {
                true => scope.trainable(beits, dim, Init::Const(start)),
                false => scope.pp(timm).trainable("gamma", dim, Init::Const(start)),
            };
            config.layer_scale.map(create).transpose()
        };
        let of_attention = scope.pp("attn");
        let outer_bias = |name: &str| of_attention.trainable(name, dim, Init::Const(0.0));
        let attention = BranchLayers {
            norm: LayerNorm::new(dim, norm_eps, &scope.pp(norm1))?,
            first: Linear::named(dim, 3 * dim, settings(has_bias, init), &scope.pp(place), names)?,
            outer_biases: if beit { Some([outer_bias("q_bias")?, outer_bias("v_bias")?]) } else { None },
            second: linear(dim, dim, last, proj)?,
            scale: scale(["ls1", "gamma_1"])?,
        };
        let qk_norm = |name| LayerNorm::new(dim / heads, norm_eps, &of_attention.pp(name));
        let qk_norms = if config.qk_norm { Some([qk_norm("q_norm")?, qk_norm("k_norm")?]) } else { None };
        let mlp = BranchLayers {
            norm: LayerNorm::new(dim, norm_eps, &scope.pp(norm2))?,
            first: linear(dim, config.perceptron.first(hidden), config.hidden_init.unwrap_or(init), fc1)?,
            outer_biases: None,
            second: linear(hidden, dim, last, fc2)?,
            scale: scale(["ls2", "gamma_2"])?,
        };
        Ok(Self { attention, mlp, qk_norms, heads, perceptron: config.perceptron })
    }

    /// `(B, N, dim)` to the same shape.
    ///
    /// # Errors
    /// If `x` or one of `options` is not of its shape.
    pub fn forward(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Tensor> {
        transformer_blocks(x, &[(self, *options)], None)
    }

    /// Checks `x` and the options for this block.
    pub(crate) fn check(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Sizes> {
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
        let qk_norms = self.qk_norms.as_ref().map(|norms| norms.each_ref().map(LayerNorm::frozen));
        Self { attention: self.attention.frozen(), mlp: self.mlp.frozen(), qk_norms, ..self.clone() }
    }

    /// The weights `(B, heads, N, N)` of the attention for the input `x` of the block; without gradient.
    ///
    /// # Errors
    /// As [`TransformerBlock::forward`].
    pub fn attention_map(&self, x: &Tensor, options: &AttentionOptions<'_>) -> Result<Tensor> {
        crate::attention::attention_map(&self.qkv(&x.detach())?, self.heads, options)
    }

    /// Whether all of the block can be part of one operation.
    pub(crate) fn can_be_fused(&self) -> bool {
        self.qk_norms.is_none()
    }

    /// The packed queries, keys and values `(B, N, 3·dim)`.
    fn qkv(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = self.attention.first(x)?;
        let Some([query, key]) = &self.qk_norms else { return Ok(qkv) };
        let (batch, tokens, packed) = qkv.dims3()?;
        let heads = qkv.reshape((batch, tokens, 3, self.heads, packed / 3 / self.heads))?;
        let part = |i| heads.narrow(2, i, 1)?.contiguous();
        let parts = [query.forward(&part(0)?)?, key.forward(&part(1)?)?, part(2)?];
        Tensor::cat(&parts, 2)?.reshape((batch, tokens, packed))
    }

    /// The same layer by layer, for devices without a kernel of ours and for what no kernel does.
    pub(crate) fn composite(&self, x: &Tensor, options: &BlockOptions<'_>) -> Result<Tensor> {
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
        let middle = attention(&self.qkv(x)?, self.heads, &options.attention)?;
        let x = add(x, &self.attention, &middle, 0)?;
        let middle = self.perceptron.apply(&self.mlp.first(&x)?)?;
        add(&x, &self.mlp, &middle, 1)
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
        let plain =
            TransformerBlockConfig { heads: 2, layer_scale: Some(0.3), ..TransformerBlockConfig::default() };
        let others = [
            plain,
            TransformerBlockConfig { perceptron: Perceptron::SwiGlu, ..plain },
            TransformerBlockConfig { qkv_bias: QkvBias::QueryValue, ..plain },
        ];
        let blocks = others
            .iter()
            .enumerate()
            .map(|(i, config)| TransformerBlock::new(6, *config, &params.root().pp(i)).unwrap());
        let blocks: Vec<_> = blocks.collect();
        let sample = |name, shape: &[usize]| {
            Init::Normal { std: 1.0 }.sample(shape, 1, name, DType::F64, &Device::Cpu).unwrap()
        };
        let (x, bias) = (sample("x", &[3, 4, 6]), sample("bias", &[2, 4, 4]));
        let keys = Tensor::new(&[[1u8, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], &Device::Cpu).unwrap();
        let attention = AttentionOptions { bias: Some(&bias), keys: Some(&keys) };
        let factors = [sample("a", &[3]), sample("b", &[3])];
        let options = BlockOptions { attention, drop_path: Some([&factors[0], &factors[1]]) };
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (_, var) in params.trainable().iter().filter(|(_, var)| var.rank() == 1) {
            var.set(&(var.as_tensor() + sample("drift", var.dims())).unwrap()).unwrap();
        }
        for block in &blocks {
            let (ours, theirs) = (block.forward(&x, &options), block.composite(&x, &options));
            let pairs = values(ours.unwrap()).into_iter().zip(values(theirs.unwrap()));
            pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-11, "{a} {b}"));
        }
    }
}
