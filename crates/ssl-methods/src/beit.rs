//! BEiT (Bao et al., 2021, <https://arxiv.org/abs/2106.08254>; official code microsoft/unilm).
//!
//! A tokenizer makes one of `K` codes of each patch of an image. Blocks of patches are hidden behind a learned token, and
//! the encoder predicts the codes at their places by one linear layer; the loss is the cross-entropy. There is nothing to
//! collapse to: the codes are fixed.
//!
//! The paper's tokenizer is that of DALL-E ([`DalleTokenizer`](crate::DalleTokenizer)), whose weights the user must have.
//! Without them the codes are the centres of k-means ([`KMeansTokenizer`]), learned from patches of all images before the
//! first step or read from a file; any other is a [`Tokenizer`] for [`Beit::with_tokenizer`]. Further deviations: the
//! tokenizer sees the view of the network, for DALL-E's shrunk to 8 pixels a patch, where the official code resizes the
//! crop twice; `mask_token` stands under the root, not within the encoder; weights start from normals that are not
//! truncated. `prediction_gain` is the share of the loss of the best constant
//! prediction, the entropy of the batch's codes, that the prediction saves; both in nats make `token_information`, a lower
//! bound of what the visible patches tell of a hidden one's code. The embeddings that are watched are the means of an
//! image's visible patches.

use std::ops::RangeInclusive;
use std::path::Path;

use candle_core::{D, DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::patchify;
use ssl_nn::{DrawsAt, Init, Linear, LinearConfig, Params, cross_entropy, permutation};

use crate::checks;
use crate::clusters::{distinct, entropy};
use crate::config::{Settings, TrainingData};
use crate::masked_encoder::{HiddenBlocks, MaskedEncoder};
use crate::method::{Batch, Method, Reconstruction, StepContext, StepOutput};
use crate::reconstruction::{completed, gain, mean_of_visible, vision_transformer};
use crate::safeguard::Safeguard;
use crate::tokenizer::{KMeansTokenizer, Tokenizer, read_tokenizer};

/// Settings of BEiT; the defaults are the paper's for ViT-B, as far as the tokenizer allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeitConfig {
    /// Share of the patches that is hidden at most.
    pub mask_ratio: f64,
    /// Patches of the smallest hidden block.
    pub min_block: usize,
    /// K, the number of codes.
    pub codes: usize,
    /// Whether patches are normalised before they are compared, each by itself.
    pub normalize_patches: bool,
    /// Number of patches, spread evenly over all images, from which the tokenizer learns.
    pub tokenizer_patches: usize,
    /// Rounds of k-means at most.
    pub tokenizer_rounds: usize,
    /// Safetensors file that gives the codes: the encoder of DALL-E's autoencoder, or centres of
    /// [`KMeansTokenizer::write`]; empty for centres that the run learns.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tokenizer_weights: String,
}

impl Default for BeitConfig {
    fn default() -> Self {
        Self {
            mask_ratio: 0.383, // 75 of 196
            min_block: 16,
            codes: 8192,
            normalize_patches: false,
            tokenizer_patches: 262_144,
            tokenizer_rounds: 20,
            tokenizer_weights: String::new(),
        }
    }
}

impl BeitConfig {
    fn blocks(&self) -> HiddenBlocks {
        HiddenBlocks { ratio: self.mask_ratio, min_block: self.min_block }
    }
}

impl Settings for BeitConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        self.blocks().validate()?;
        checks::count("codes", self.codes, checks::PROTOTYPES)?;
        checks::count("tokenizer_patches", self.tokenizer_patches, self.codes..=100_000_000)?;
        checks::count("tokenizer_rounds", self.tokenizer_rounds, 1..=10_000)
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        self.blocks().validate_grid(&vision_transformer(backbone)?)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "targets that are codes, which the network cannot change",
            "a learning rate that is too high or too low, or codes that the visible patches tell nothing of",
            "optimizer.lr three times lower or higher, a longer warm-up, fewer method.codes, a lower method.mask_ratio",
        )
    }

    fn build(
        &self,
        backbone: &BackboneConfig,
        params: &Params,
        data: &TrainingData,
    ) -> Result<Box<dyn Method>> {
        Ok(Box::new(Beit::new(self, backbone, params, data)?))
    }

    fn augmentation(&self) -> &'static str {
        "beit"
    }

    fn unwritten(&self) -> &'static [(&'static str, &'static str)] {
        &[("tokenizer_weights", "")]
    }
}

/// BEiT with its encoder, its head and its tokenizer.
pub struct Beit {
    encoder: MaskedEncoder,
    /// From a token to the logits of its code.
    head: Linear,
    codes: Codes,
    config: BeitConfig,
}

/// Where the codes come from.
enum Codes {
    /// Learned before the first step from this number of images.
    Learned(KMeansTokenizer, usize),
    Given(Box<dyn Tokenizer>),
}

impl std::fmt::Debug for Beit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beit").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Beit {
    /// Creates `backbone.*`, `mask_token` and `lm_head.*` in `params`, and for codes that it learns the buffers
    /// `tokenizer.*`.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer, the images have fewer patches than there are codes, or the tokenizer's
    /// file cannot be read or has another number of codes.
    pub fn new(
        config: &BeitConfig,
        backbone: &BackboneConfig,
        params: &Params,
        data: &TrainingData,
    ) -> Result<Self> {
        let (vit, images) = (backbone.vision_transformer()?, data.images);
        if !config.tokenizer_weights.is_empty() {
            let path = Path::new(&config.tokenizer_weights);
            let tokenizer = read_tokenizer(path, vit.patch_size, data, params.device())?;
            if tokenizer.codes() != config.codes {
                bail!(
                    "beit: method.codes = {}, but {} has {} codes",
                    config.codes,
                    path.display(),
                    tokenizer.codes()
                );
            }
            return Self::with_tokenizer(config, backbone, params, tokenizer);
        }
        let patches = images * vit.num_patches();
        if patches < config.codes {
            bail!("beit: method.codes = {}, but the {images} images have {patches} patches", config.codes);
        }
        let scope = params.root().pp("tokenizer");
        let tokenizer = KMeansTokenizer::new(config.codes, vit.patch_size, config.normalize_patches, &scope)?;
        Self::build(config, backbone, params, Codes::Learned(tokenizer, images))
    }

    /// BEiT with codes of another kind; of the settings, those of the tokenizer do not matter.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer.
    pub fn with_tokenizer(
        config: &BeitConfig,
        backbone: &BackboneConfig,
        params: &Params,
        tokenizer: Box<dyn Tokenizer>,
    ) -> Result<Self> {
        Self::build(config, backbone, params, Codes::Given(tokenizer))
    }

    /// The tokenizer that learns from the images of the run, if it is not another.
    pub fn learned_tokenizer(&self) -> Option<&KMeansTokenizer> {
        match &self.codes {
            Codes::Learned(tokenizer, _) => Some(tokenizer),
            Codes::Given(_) => None,
        }
    }

    fn build(config: &BeitConfig, backbone: &BackboneConfig, params: &Params, codes: Codes) -> Result<Self> {
        let encoder = MaskedEncoder::new(backbone, params)?;
        let linear = LinearConfig {
            init: Some(Init::Normal { std: 0.02 }),
            bias_init: Some(Init::Const(0.0)),
            ..Default::default()
        };
        let dim = encoder.vit.config().dim;
        let head = Linear::new(dim, codes.tokenizer().codes(), linear, &params.root().pp("lm_head"))?;
        Ok(Self { encoder, head, codes, config: config.clone() })
    }

    /// The tokens of a batch's patches after the last norm, `(B, N, d)`, and the mask `(B, N)`, 1 where one is hidden.
    fn encode(&self, batch: &Batch, context: &StepContext, draws: Option<DrawsAt>) -> Result<[Tensor; 2]> {
        let [x] = &batch.views[..] else { bail!("beit needs 1 view, got {}", batch.views.len()) };
        let mask = self.config.blocks().draw(batch, context, self.encoder.vit.config())?;
        Ok([self.encoder.patches(x, &mask, draws)?, mask])
    }
}

impl Codes {
    fn tokenizer(&self) -> &dyn Tokenizer {
        match self {
            Self::Learned(tokenizer, _) => tokenizer,
            Self::Given(tokenizer) => &**tokenizer,
        }
    }
}

impl Method for Beit {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [h, mask] = self.encode(batch, context, context.draws(0))?;
        let codes = self.codes.tokenizer().tokenize(&batch.views[0])?;
        let hidden = numbers_of_hidden(&mask)?; // (M)
        let codes = codes.flatten_all()?.index_select(&hidden, 0)?;
        let logits = self.head.forward(&h.flatten_to(1)?.index_select(&hidden, 0)?)?; // (M, K)
        let loss = cross_entropy(&logits, &codes, 0.0)?;
        let chosen = logits.detach().argmax(D::Minus1)?;
        let same = chosen.eq(&codes)?.to_dtype(DType::F64)?.mean_all()?;
        let possible = entropy(&shares(&codes, self.codes.tokenizer().codes())?)?;
        let information = (&possible - loss.detach().to_dtype(DType::F64)?)?;
        Ok(StepOutput {
            terms: vec![
                ("prediction_gain", gain(&loss, &possible)?),
                ("token_information", information),
                ("token_accuracy", same),
                ("codes_in_batch", distinct(&codes)?),
                ("token_ceiling", possible),
            ],
            loss,
            embeddings: vec![mean_of_visible(&h, &mask)?],
            memory: vec![],
        })
    }

    fn wants_pass(&self, _: &StepContext) -> bool {
        match &self.codes {
            Codes::Learned(tokenizer, _) => tokenizer.is_learned().is_ok_and(|learned| !learned),
            Codes::Given(_) => false,
        }
    }

    fn pass(
        &mut self,
        context: &StepContext,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
    ) -> Result<()> {
        let Codes::Learned(tokenizer, images) = &mut self.codes else { return Ok(()) };
        let patches = self.encoder.vit.config().num_patches();
        let wanted = self.config.tokenizer_patches.min(*images * patches);
        let mut rows = vec![];
        for batch in batches {
            let batch = batch?;
            let [x] = &batch.views[..] else { bail!("beit needs 1 view, got {}", batch.views.len()) };
            let of_image = |(place, image): (usize, &usize)| {
                let mut order = permutation(&mut context.masks(*image, 1), patches as u32);
                order.truncate(share(*image, *images, wanted));
                order.into_iter().map(move |patch| place as u32 * patches as u32 + patch)
            };
            let chosen: Vec<u32> = batch.index.iter().enumerate().flat_map(of_image).collect();
            if !chosen.is_empty() {
                let chosen = Tensor::new(chosen, x.device())?;
                rows.push(tokenizer.patches(&x.detach())?.index_select(&chosen, 0)?);
            }
        }
        let rows = Tensor::cat(&rows, 0)?;
        tokenizer.learn(&rows, self.config.tokenizer_rounds, &mut context.batch_masks())?;
        Ok(())
    }

    /// Hidden patches become the centres of the codes that are predicted; `None` if these are no pixels.
    fn reconstruct(&self, batch: &Batch, context: &StepContext) -> Result<Option<Reconstruction>> {
        let Some(centers) = self.codes.tokenizer().appearance() else { return Ok(None) };
        let [h, mask] = self.encode(batch, context, None)?;
        let (b, n) = mask.dims2()?;
        let codes = self.head.forward(&h)?.argmax(D::Minus1)?.flatten_all()?;
        let prediction = centers.index_select(&codes, 0)?.reshape((b, n, ()))?;
        let vit = self.encoder.vit.config();
        let pixels = patchify(&batch.views[0], vit.patch_size)?;
        completed(&prediction, &pixels, mask, (vit.patch_size, vit.grid())).map(Some)
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.encoder.vit
    }
}

/// How many patches of image `image` the tokenizer learns from, so that `wanted` are spread over all `images`.
fn share(image: usize, images: usize, wanted: usize) -> usize {
    let before = |image: usize| (image as u128 * wanted as u128 / images.max(1) as u128) as usize;
    before(image + 1) - before(image)
}

/// Where the mask `(B, N)` is not 0, as numbers of all its elements, `(M)`.
fn numbers_of_hidden(mask: &Tensor) -> Result<Tensor> {
    let flags = mask.flatten_all()?.to_vec1::<u8>()?;
    let hidden: Vec<u32> = (0u32..).zip(&flags).filter(|(_, flag)| **flag != 0).map(|(i, _)| i).collect();
    if hidden.is_empty() {
        bail!("beit: no patch of the batch is hidden");
    }
    Tensor::new(hidden, mask.device())
}

/// The share of each of `k` codes among `codes`, `(k)`.
fn shares(codes: &Tensor, k: usize) -> Result<Tensor> {
    let (device, codes) = (codes.device(), codes.to_dtype(DType::U32)?.to_vec1::<u32>()?);
    let mut counts = vec![0f64; k];
    for code in &codes {
        match counts.get_mut(*code as usize) {
            Some(count) => *count += 1.0 / codes.len() as f64,
            None => bail!("beit: the tokenizer gives code {code} of {k}"),
        }
    }
    Tensor::new(counts, device)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, data, images, params, permuted, resnet, vit};

    const IMAGES: usize = 12;

    fn tiny() -> BeitConfig {
        BeitConfig { min_block: 2, codes: 6, tokenizer_patches: 100, ..BeitConfig::default() }
    }

    fn learned(params: &Params) -> Beit {
        let mut method = Beit::new(&tiny(), &vit(VitOptions::beit()), params, &data(IMAGES)).unwrap();
        assert!(method.wants_pass(&CONTEXT));
        let all = images(1, IMAGES);
        let part = |start: usize| {
            let view = all.views[0].narrow(0, start, IMAGES / 2)?;
            Ok(Batch { views: vec![view], index: (start..start + IMAGES / 2).collect(), text: None })
        };
        method.pass(&CONTEXT, &mut [0, 6].into_iter().map(part)).unwrap();
        assert!(!method.wants_pass(&CONTEXT));
        method
    }

    fn value(method: &Beit, batch: &Batch, step: usize) -> f32 {
        method.loss(batch, &StepContext { step, ..CONTEXT }).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_everything_and_spare_the_tokenizer() {
        let params = params();
        let method = learned(&params);
        assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        let buffers: Vec<_> = params.buffers().into_iter().map(|(name, _)| name).collect();
        assert_eq!(buffers, ["tokenizer.centers", "tokenizer.learned"]);
    }

    #[test]
    fn masks_follow_the_images_and_change_with_the_step() {
        let method = learned(&params());
        let batch = images(1, 6);
        assert!((value(&method, &batch, 0) - value(&method, &permuted(&batch), 0)).abs() < 1e-5);
        assert!((value(&method, &batch, 0) - value(&method, &batch, 1)).abs() > 1e-5);
    }

    #[test]
    fn a_head_of_zeros_costs_the_logarithm_of_the_codes_and_gains_nothing() {
        let params = params();
        let method = learned(&params);
        let weight = params.get("lm_head.weight").unwrap();
        weight.set(&weight.zeros_like().unwrap()).unwrap();
        let output = method.loss(&images(1, 6), &CONTEXT).unwrap();
        let loss = output.loss.to_scalar::<f32>().unwrap();
        assert!((f64::from(loss) - 6f64.ln()).abs() < 1e-5, "{loss}");
        let gain = output.terms[0].1.to_scalar::<f64>().unwrap();
        assert!(gain <= 1e-6, "{gain}");
    }

    #[test]
    fn tokens_come_from_all_images_in_equal_shares() {
        for (images, wanted) in [(12, 100), (1000, 64), (7, 7)] {
            let each: Vec<usize> = (0..images).map(|image| share(image, images, wanted)).collect();
            assert_eq!(each.iter().sum::<usize>(), wanted);
            assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn reconstructions_keep_visible_patches_and_show_centres_elsewhere() {
        let params = params();
        let (method, batch) = (learned(&params), images(1, 3));
        let Reconstruction { images, mask } = method.reconstruct(&batch, &CONTEXT).unwrap().unwrap();
        let rows = |x: &Tensor| patchify(x, 2).unwrap().flatten(0, 1).unwrap().to_vec2::<f32>().unwrap();
        let centers = params.get("tokenizer.centers").unwrap().to_vec2::<f32>().unwrap();
        let hidden = mask.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert!(hidden.contains(&1));
        for ((ours, own), hidden) in rows(&images).into_iter().zip(rows(&batch.views[0])).zip(hidden) {
            assert!(if hidden == 1 { centers.contains(&ours) } else { ours == own });
        }
    }

    /// Tells dark patches from bright ones.
    struct Brightness;

    impl Tokenizer for Brightness {
        fn codes(&self) -> usize {
            2
        }

        fn tokenize(&self, images: &Tensor) -> Result<Tensor> {
            patchify(images, 2)?.mean(2)?.gt(0f64)?.to_dtype(DType::U32)
        }
    }

    #[test]
    fn any_tokenizer_will_do() {
        let params = params();
        let network = vit(VitOptions::beit());
        let method = Beit::with_tokenizer(&tiny(), &network, &params, Box::new(Brightness)).unwrap();
        assert!(!method.wants_pass(&CONTEXT) && params.buffers().is_empty());
        assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        assert!((value(&method, &images(1, 5), 0) - 2f32.ln()).abs() < 0.2);
        assert!(method.reconstruct(&images(1, 2), &CONTEXT).unwrap().is_none());
    }

    #[test]
    fn the_codes_of_dalle_come_from_its_file() {
        let weights =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tokenizer/dalle_weights.safetensors");
        let config = BeitConfig { codes: 64, tokenizer_weights: weights.to_owned(), ..tiny() };
        let (params, network) = (params(), vit(VitOptions::beit()));
        let method = config.build(&network, &params, &data(IMAGES)).unwrap();
        assert!(!method.wants_pass(&CONTEXT) && params.buffers().is_empty());
        assert_gradients_reach(&*method, &params, &images(1, 5), &[]);
        let error =
            |config: BeitConfig| match Beit::new(&config, &network, &crate::testing::params(), &data(1)) {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
        let other = error(BeitConfig { codes: 63, ..config.clone() });
        assert!(other.contains("method.codes = 63, but ") && other.contains(" has 64 codes"), "{other}");
        let none = error(BeitConfig { tokenizer_weights: "none.safetensors".to_owned(), ..config });
        assert!(none.contains("none.safetensors"), "{none}");
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (config, part) in [
            (BeitConfig { codes: 1, ..tiny() }, "method.codes = 1 is not in 2..=1000000"),
            (BeitConfig { tokenizer_patches: 5, ..tiny() }, "method.tokenizer_patches = 5 is not in 6..="),
            (BeitConfig { tokenizer_rounds: 0, ..tiny() }, "method.tokenizer_rounds = 0 is not in 1..=10000"),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(tiny().validate_backbone(&resnet()).unwrap_err().contains("not a vision transformer"));
        let many = BeitConfig { codes: 500, tokenizer_patches: 500, ..tiny() };
        let network = vit(VitOptions::beit());
        let error = Beit::new(&many, &network, &params(), &data(IMAGES)).unwrap_err().to_string();
        assert!(error.contains("method.codes = 500, but the 12 images have 192 patches"), "{error}");
        let error = learned(&params()).loss(&images(2, 3), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("1 view, got 2"), "{error}");
        let unlearned = Beit::new(&tiny(), &network, &params(), &data(IMAGES)).unwrap();
        assert!(unlearned.loss(&images(1, 3), &CONTEXT).unwrap_err().to_string().contains("not learned yet"));
        assert_eq!(
            shares(&Tensor::new(&[0u32, 2], &Device::Cpu).unwrap(), 3).unwrap().to_vec1::<f64>().unwrap(),
            [0.5, 0.0, 0.5]
        );
    }
}
