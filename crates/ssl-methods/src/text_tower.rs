//! The text transformer of CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>, section 2.4; official code
//! openai/CLIP, after GPT-2).
//!
//! Tokens see those before them. What the last block says at the end token, the highest of all ids, is normed and
//! projected: that is the text's embedding. Nothing behind the end token matters, so the longest text of a batch decides
//! how many positions are computed.

use candle_core::{DType, Device, Result, Tensor, bail};
use ssl_nn::{
    Activation, AttentionOptions, BlockNames, BlockOptions, Init, LayerNorm, Perceptron, Scope,
    TransformerBlock, TransformerBlockConfig, transformer_blocks,
};

/// PyTorch's default, added to the variance in every norm.
const NORM_EPS: f64 = 1e-5;

/// Sizes of a [`TextTower`]; the defaults are those of ViT-B/32 and of the tokens of CLIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTowerConfig {
    /// The number of tokens.
    pub vocabulary: usize,
    /// The most tokens of a text, start and end included.
    pub context: usize,
    /// Width of the blocks.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads of each block; must divide `width`.
    pub heads: usize,
    /// Width of the embedding.
    pub embed_dim: usize,
}

impl Default for TextTowerConfig {
    fn default() -> Self {
        Self { vocabulary: 49_408, context: 77, width: 512, layers: 12, heads: 8, embed_dim: 512 }
    }
}

/// A causal transformer from token ids to one vector for each text.
#[derive(Clone, Debug)]
pub struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    projection: Tensor,
}

impl TextTower {
    /// Creates `token_embedding.weight`, `positional_embedding`, `transformer.resblocks.*`, `ln_final.*` and
    /// `text_projection` in `scope`: OpenAI's names.
    ///
    /// # Errors
    /// If a size is 0, the number of heads does not divide the width, or a name is taken.
    pub fn new(config: &TextTowerConfig, scope: &Scope) -> Result<Self> {
        let TextTowerConfig { vocabulary, context, width, layers, heads, embed_dim } = *config;
        if vocabulary * context * width * layers * embed_dim == 0 {
            bail!("text tower: a size of {config:?} is 0");
        }
        let normal = |scale: f64| Init::Normal { std: scale.powf(-0.5) };
        let embedding = scope.pp("token_embedding");
        let tokens = embedding.trainable("weight", (vocabulary, width), Init::Normal { std: 0.02 })?;
        let positions =
            scope.trainable("positional_embedding", (context, width), Init::Normal { std: 0.01 })?;
        let block = TransformerBlockConfig {
            heads,
            norm_eps: NORM_EPS,
            perceptron: Perceptron::Plain(Activation::QuickGelu),
            init: normal(width as f64),
            hidden_init: Some(normal((2 * width) as f64)),
            last_init: Some(normal((width * 2 * layers) as f64)),
            names: BlockNames::Clip,
            ..TransformerBlockConfig::default()
        };
        let place = scope.pp("transformer").pp("resblocks");
        let blocks = (0..layers).map(|i| TransformerBlock::new(width, block, &place.pp(i)));
        Ok(Self {
            tokens,
            positions,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::new(width, NORM_EPS, &scope.pp("ln_final"))?,
            projection: scope.trainable("text_projection", (width, embed_dim), normal(width as f64))?,
        })
    }

    /// Token ids `(N, C)` of a type of integers to embeddings `(N, embed_dim)`; `C` is at most the context.
    ///
    /// # Errors
    /// If there are too many ids, or one is not below the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (n, most) = ids.dims2()?;
        let (context, width) = self.positions.dims2()?;
        if n * most == 0 || most > context {
            bail!("text tower: expected ids (N, C) with C in 1..={context}, got {:?}", ids.dims());
        }
        let ids = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        self.check(&ids)?;
        let ends: Vec<usize> = ids.iter().map(|ids| first_of_the_highest(ids)).collect();
        let used = ends.iter().max().map_or(1, |end| end + 1);
        let flat: Vec<u32> = ids.iter().flat_map(|ids| &ids[..used]).copied().collect();
        let device = self.tokens.device();
        let x = self.tokens.index_select(&Tensor::new(flat, device)?, 0)?.reshape((n, used, width))?;
        let x = x.broadcast_add(&self.positions.narrow(0, 0, used)?)?;
        let mask = causal_mask(used, x.dtype(), device)?;
        let attention = AttentionOptions { bias: Some(&mask), keys: None };
        let options = BlockOptions { attention, drop_path: None };
        let blocks: Vec<_> = self.blocks.iter().map(|block| (block, options)).collect();
        let x = transformer_blocks(&x, &blocks, None)?.reshape((n * used, width))?;
        let ends: Vec<u32> = ends.iter().enumerate().map(|(row, end)| (row * used + end) as u32).collect();
        let x = self.norm.forward(&x.index_select(&Tensor::new(ends, device)?, 0)?)?; // (N, width)
        x.matmul(&self.projection)
    }

    fn check(&self, ids: &[Vec<u32>]) -> Result<()> {
        let vocabulary = self.tokens.dim(0)?;
        match ids.iter().flatten().find(|id| **id as usize >= vocabulary) {
            Some(id) => bail!("text tower: there is no token {id}, only {vocabulary}"),
            None => Ok(()),
        }
    }
}

/// Where the end token stands; there may be others of it behind as padding.
fn first_of_the_highest(ids: &[u32]) -> usize {
    let highest = ids.iter().max();
    ids.iter().position(|id| Some(id) == highest).unwrap_or(0)
}

/// `(1, N, N)`: 0 where a token (row) may see another (column), minus infinity behind it.
fn causal_mask(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let row = |i: usize| (0..n).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..n).flat_map(row).collect();
    Tensor::from_vec(mask, (1, n, n), device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::params;

    const TINY: TextTowerConfig =
        TextTowerConfig { vocabulary: 12, context: 7, width: 8, layers: 2, heads: 2, embed_dim: 5 };

    fn ids(rows: &[&[u32]]) -> Tensor {
        Tensor::new(rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>(), &Device::Cpu).unwrap()
    }

    fn values(y: Tensor) -> Vec<Vec<f32>> {
        y.to_vec2().unwrap()
    }

    #[test]
    fn what_stands_behind_the_end_changes_nothing() {
        let tower = TextTower::new(&TINY, &params().root()).unwrap();
        let padded = values(tower.forward(&ids(&[&[10, 3, 11, 0, 0, 0], &[10, 3, 4, 5, 11, 0]])).unwrap());
        let other = values(tower.forward(&ids(&[&[10, 3, 11, 7, 11, 11], &[10, 3, 4, 5, 11, 2]])).unwrap());
        assert_eq!(padded, other);
        let alone = values(tower.forward(&ids(&[&[10, 3, 11]])).unwrap());
        assert!(alone[0].iter().zip(&padded[0]).all(|(a, b)| (a - b).abs() < 1e-5), "{alone:?} {padded:?}");
        assert!(padded[0].iter().zip(&padded[1]).any(|(a, b)| (a - b).abs() > 1e-3));
    }

    #[test]
    fn the_order_of_tokens_counts() {
        let tower = TextTower::new(&TINY, &params().root()).unwrap();
        let y = values(tower.forward(&ids(&[&[10, 3, 4, 11], &[10, 4, 3, 11]])).unwrap());
        assert!(y[0].iter().zip(&y[1]).any(|(a, b)| (a - b).abs() > 1e-4), "{y:?}");
    }

    #[test]
    fn tensors_have_the_names_and_the_start_of_the_official_code() {
        let params = params();
        let config = TextTowerConfig { vocabulary: 300, width: 64, heads: 4, ..TINY };
        TextTower::new(&config, &params.root()).unwrap();
        let block = |i: usize| {
            let names = [
                ("ln_1.weight", 0.0),
                ("ln_1.bias", 0.0),
                ("attn.in_proj_weight", 64f64.powf(-0.5)),
                ("attn.in_proj_bias", 0.0),
                ("attn.out_proj.weight", 256f64.powf(-0.5)),
                ("attn.out_proj.bias", 0.0),
                ("ln_2.weight", 0.0),
                ("ln_2.bias", 0.0),
                ("mlp.c_fc.weight", 128f64.powf(-0.5)),
                ("mlp.c_fc.bias", 0.0),
                ("mlp.c_proj.weight", 256f64.powf(-0.5)),
                ("mlp.c_proj.bias", 0.0),
            ];
            names.map(|(name, std)| (format!("transformer.resblocks.{i}.{name}"), std))
        };
        let rest = [
            ("token_embedding.weight", 0.02),
            ("positional_embedding", 0.01),
            ("ln_final.weight", 0.0),
            ("ln_final.bias", 0.0),
            ("text_projection", 64f64.powf(-0.5)),
        ];
        let expected: Vec<_> = rest
            .map(|(name, std)| (name.to_owned(), std))
            .into_iter()
            .chain(block(0))
            .chain(block(1))
            .collect();
        assert_eq!(params.names().len(), expected.len());
        for (name, std) in expected {
            let var = params.get(&name).unwrap_or_else(|| panic!("no {name}"));
            let values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let found = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt();
            // Five standard errors.
            let tolerance = 5.0 * std / (2.0 * values.len() as f64).sqrt();
            assert!((f64::from(found) - std).abs() <= tolerance, "{name}: {found}, expected {std}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tower = TextTower::new(&TINY, &params().root()).unwrap();
        let error = |rows: &[&[u32]]| tower.forward(&ids(rows)).unwrap_err().to_string();
        assert!(error(&[&[1, 12]]).contains("no token 12, only 12"));
        assert!(error(&[&[0; 8]]).contains("C in 1..=7, got [1, 8]"));
        let sizes = |config| TextTower::new(&config, &params().root()).unwrap_err().to_string();
        assert!(sizes(TextTowerConfig { layers: 0, ..TINY }).contains("layers: 0"));
        assert!(sizes(TextTowerConfig { heads: 3, ..TINY }).contains("3 heads do not divide the width 8"));
    }
}
