//! Transformers of the library transformers: DINOv2, and MAE, BEiT and SimMIM with their losses, SimMIM with Swin too.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::backbones::{
    MaeDecoderConfig, MaskedPatches, Place, RelativePositions, SwinConfig, Vit, VitConfig, VitMlp, VitNames,
    VitOptions, VitPass, patch_pixels, sin_cos_positions,
};
use ssl_vision::nn::{cross_entropy, linear};

use super::case::Case;
use super::check::Check;
use super::pattern;
use super::store::Store;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    type Judge = fn(&Case<'_>, &mut Check<'_>) -> Result<()>;
    let kinds: [(&str, Judge); 6] = [
        ("Dinov2Model", dinov2),
        ("ViTMAEForPreTraining", mae),
        ("BeitForMaskedImageModeling", beit),
        ("ViTForMaskedImageModeling", simmim),
        ("SwinForMaskedImageModeling", simmim_of_swin),
        ("get_2d_sine_cosine_positional_embedding", positions),
    ];
    let origin = case.entry.origin.as_str();
    let Some((_, judge)) = kinds.into_iter().find(|(symbol, _)| origin.contains(symbol)) else {
        return Ok(false);
    };
    judge(case, check)?;
    Ok(true)
}

/// Judges the tokens with and without a mask, and interpolated positions.
fn dinov2(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let mlp = match case.params.optional("swiglu")?.unwrap_or(false) {
        true => VitMlp::SwiGlu,
        false => VitMlp::Gelu,
    };
    // transformers interpolates without the offset of the official code.
    let options = VitOptions { mlp, position_offset: 0.0, ..VitOptions::dinov2() };
    let config = config(case, options)?;
    let store = Store::new(case);
    let vit = config.build(&store.params.root())?;
    let store = store.filled(check, |theirs| VitNames::TransformersDinov2.place(theirs))?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let tokens = vit.forward_features(&x)?;
    check.tensor("out.tokens", &tokens)?;
    check.tensor("out.cls", &vit.split(&tokens)?.class_token.context("no class token")?)?;
    let mut all = tokens;
    if case.entry.expects("out.tokens_masked") {
        let token = store.weight("embeddings.mask_token")?;
        let masked = MaskedPatches { mask: case.tensor("in.mask")?, token: &token };
        let masked = vit.norm(&vit.run(&vit.embed(&x, Some(masked))?, &VitPass::default())?)?;
        check.tensor("out.tokens_masked", &masked)?;
        all = Tensor::cat(&[&all, &masked], 0)?;
        check.tensor("out.both", &all)?;
    }
    if case.entry.expects("out.pos_embed") {
        let (_, _, h, w) = x.dims4()?;
        let patches = vit.patch_positions((h / config.patch_size, w / config.patch_size))?;
        let own = store.weight("embeddings.position_embeddings")?.narrow(1, 0, 1)?;
        check.tensor("out.pos_embed", &Tensor::cat(&[&own, &patches.context("no positions")?], 1)?)?;
    }
    let loss = (all.to_dtype(DType::F64)? * pattern::loss_factors(all.dims())?)?.mean_all()?;
    store.judge(check, &x, &loss)
}

/// Judges the whole autoencoder for given noise.
fn mae(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let config = config(case, VitOptions::mae())?;
    let store = Store::new(case);
    let vit = config.build(&store.params.root())?;
    let dim: usize = case.params.get("decoder_hidden_size")?;
    let hidden: usize = case.params.get("decoder_intermediate_size")?;
    let decoder = MaeDecoderConfig {
        dim,
        depth: case.params.get("decoder_layers")?,
        heads: case.params.get("decoder_heads")?,
        mlp_ratio: hidden as f64 / dim as f64,
    };
    let decoder = decoder.build(&config, &store.params.root())?;
    let store = store.filled(check, place_in_mae)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let ratio: f64 = case.params.get("mask_ratio")?;
    let kept = (config.num_patches() as f64 * (1.0 - ratio)) as usize;
    let noise = case.tensor("in.noise")?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let shuffled: Vec<Vec<u32>> = noise.iter().map(|noise| order(noise)).collect();
    let restore: Vec<Vec<u32>> = shuffled.iter().map(|shuffled| order(shuffled)).collect();
    let seen: Vec<&[u32]> = shuffled.iter().map(|shuffled| &shuffled[..kept]).collect();
    let device = &Device::Cpu;
    let (restore, seen) = (Tensor::new(restore, device)?, Tensor::new(seen.concat(), device)?);
    let mask = restore.ge(kept as u32)?;
    check.tensor("out.mask", &mask)?;
    check.tensor("out.ids_restore", &restore)?;
    let tokens = vit.embed_visible(&x, &seen.reshape((noise.len(), kept))?)?;
    let tokens = vit.norm(&vit.run(&tokens, &VitPass::default())?)?;
    let logits = decoder.forward(&tokens, &restore)?;
    check.tensor("out.logits", &logits)?;
    let patches = patch_pixels(&x, config.patch_size)?;
    check.tensor("out.patches", &patches)?;
    let mut target = patches;
    if case.params.get("norm_pix_loss")? {
        let variance = (target.var_keepdim(2)? + 1e-6)?.sqrt()?;
        target = target.broadcast_sub(&target.mean_keepdim(2)?)?.broadcast_div(&variance)?;
    }
    let each = (logits - target)?.sqr()?.mean(2)?.to_dtype(DType::F64)?;
    let mask = mask.to_dtype(DType::F64)?;
    let loss = ((each * &mask)?.sum_all()? / mask.sum_all()?)?;
    store.judge(check, &x, &loss)
}

/// Judges the classes of masked patches.
fn beit(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let flag = |key: &str| case.params.optional(key).map(|flag| flag.unwrap_or(false));
    let relative_positions = match flag("use_shared_relative_position_bias")? {
        true => RelativePositions::Shared,
        false if flag("use_relative_position_bias")? => RelativePositions::Each,
        false => RelativePositions::None,
    };
    let positions = match flag("use_absolute_position_embeddings")? {
        true => VitOptions::default().positions,
        false => VitOptions::beit().positions,
    };
    let config = config(case, VitOptions { relative_positions, positions, ..VitOptions::beit() })?;
    let store = Store::new(case);
    let vit = config.build(&store.params.root())?;
    let store = store.filled(check, |theirs| VitNames::TransformersBeit.place(theirs))?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let patches = masked_patches(case, &store, &vit, &x, "beit.embeddings.mask_token")?;
    let (head, bias) = (store.weight("lm_head.weight")?, store.weight("lm_head.bias")?);
    let logits = linear(&patches, &head, Some(&bias), None)?;
    check.tensor("out.logits", &logits)?;
    let hidden = (0u32..).zip(case.values("in.mask")?).filter(|(_, hidden)| *hidden != 0.0);
    let rows = Tensor::from_iter(hidden.map(|(row, _)| row), &Device::Cpu)?;
    let labels = Tensor::new(case.labels("in.labels")?, &Device::Cpu)?;
    let loss = cross_entropy(&logits.flatten_to(1)?.index_select(&rows, 0)?, &labels, 0.0)?;
    store.judge(check, &x, &loss)
}

/// Judges the pixels of masked patches.
fn simmim(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let config = config(case, VitOptions::default())?;
    let store = Store::new(case);
    let vit = config.build(&store.params.root())?;
    let store = store.filled(check, |theirs| VitNames::TransformersVit.place(theirs))?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let patches = masked_patches(case, &store, &vit, &x, "vit.embeddings.mask_token")?;
    hidden_pixels(case, check, &store, (&x, &patches))
}

/// Judges the pixels of masked patches, from tokens that have joined several of them.
fn simmim_of_swin(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let heads: Vec<usize> = case.params.get("num_heads")?;
    let config = SwinConfig {
        image_size: case.params.get("image_size")?,
        patch_size: case.params.get("patch_size")?,
        dim: case.params.get("embed_dim")?,
        depths: case.params.get("depths")?,
        heads: *heads.first().context("no heads")?,
        window: case.params.get("window_size")?,
        ..SwinConfig::swin_tiny()
    };
    let store = Store::new(case);
    let swin = config.build(&store.params.root())?;
    let store = store.filled(check, place_in_swin)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let token = store.weight("swin.embeddings.mask_token")?;
    let masked = MaskedPatches { mask: case.tensor("in.mask")?, token: &token };
    let tokens = swin.feature_map(&x, Some(masked), None)?;
    hidden_pixels(case, check, &store, (&x, &tokens))
}

/// Judges the image that SimMIM's decoder makes of tokens `(B, N, d)`, and its absolute error where the mask of the
/// patches is not 0.
fn hidden_pixels(
    case: &Case<'_>,
    check: &mut Check<'_>,
    store: &Store<'_>,
    (x, tokens): (&Var, &Tensor),
) -> Result<()> {
    let (head, bias) = (store.weight("decoder.0.weight")?, store.weight("decoder.0.bias")?);
    let pixels = linear(tokens, &head.flatten_from(1)?, Some(&bias), None)?;
    let (batch, _, size, _) = x.dims4()?;
    // From a square of values for each place of a grid to an image.
    let images = |values: &Tensor, channels: usize| {
        let side = values.dim(1)?.isqrt();
        let p = size / side;
        let values = values.reshape((batch, side, side, channels, p, p))?.permute((0, 3, 1, 4, 2, 5))?;
        values.reshape((batch, channels, size, size))
    };
    let pixels = images(&pixels, 3)?;
    check.tensor("out.reconstruction", &pixels)?;
    let mask = case.tensor("in.mask")?.to_dtype(DType::F32)?;
    let patches = mask.dim(1)?;
    let each = size * size / patches;
    let mask = images(&mask.unsqueeze(2)?.broadcast_as((batch, patches, each))?.contiguous()?, 1)?;
    let off = (x.as_tensor() - pixels)?.abs()?.broadcast_mul(&mask)?.sum_all()?;
    let loss = ((off / (mask.sum_all()? + 1e-5)?)? / 3.0)?;
    store.judge(check, x, &loss)
}

/// Judges tables of fixed positions.
fn positions(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let sizes: Vec<[usize; 2]> = case.params.get("dim_grid")?;
    let prefix = usize::from(case.params.get::<bool>("cls_token")?);
    for (i, [dim, side]) in sizes.into_iter().enumerate() {
        let table = sin_cos_positions(dim, (side, side), prefix, DType::F64, &Device::Cpu)?;
        check.tensor(&format!("out.table{i}"), &table.squeeze(0)?)?;
    }
    Ok(())
}

/// The sizes that the case names, with these parts.
fn config(case: &Case<'_>, options: VitOptions) -> Result<VitConfig> {
    let params = case.params;
    let dim: usize = params.get("hidden_size")?;
    let of_hidden = || params.get::<usize>("intermediate_size").map(|hidden| hidden as f64 / dim as f64);
    let mlp_ratio = params.optional("mlp_ratio")?.map_or_else(of_hidden, Ok)?;
    let norm_eps = params.optional("layer_norm_eps")?.unwrap_or(options.norm_eps);
    Ok(VitConfig {
        image_size: params.get("image_size")?,
        patch_size: params.get("patch_size")?,
        dim,
        depth: params.get("layers")?,
        heads: params.get("heads")?,
        options: VitOptions { mlp_ratio, norm_eps, ..options },
        recompute: false,
    })
}

/// The tokens of the patches after the last norm, with the case's mask.
fn masked_patches(case: &Case<'_>, store: &Store<'_>, vit: &Vit, x: &Tensor, token: &str) -> Result<Tensor> {
    let token = store.weight(token)?;
    let masked = MaskedPatches { mask: case.tensor("in.mask")?, token: &token };
    let tokens = vit.norm(&vit.run(&vit.embed(x, Some(masked))?, &VitPass::default())?)?;
    Ok(vit.split(&tokens)?.patches.contiguous()?)
}

/// The numbers of the elements from the smallest to the largest.
fn order<T: PartialOrd>(values: &[T]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| {
        let [a, b] = [a, b].map(|i| &values[*i as usize]);
        a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)
    });
    order
}

/// Places in the encoder, and in the decoder, whose blocks are named like those of the encoder.
fn place_in_mae(theirs: &str) -> Option<Place> {
    let Some(rest) = theirs.strip_prefix("decoder.") else {
        return VitNames::TransformersVitMae.place(theirs);
    };
    match rest.strip_prefix("decoder_") {
        Some(block) if block.starts_with("layers.") => {
            let place = VitNames::TransformersVitMae.place(block)?;
            Some(Place { name: format!("decoder_{}", place.name), ..place })
        }
        _ => Some(Place { name: rest.to_owned(), part: 0, parts: 1 }),
    }
}

/// Places in a Swin Transformer; what joins two stages is counted to the first of them there.
fn place_in_swin(theirs: &str) -> Option<Place> {
    let whole = |name: String| Some(Place { name, part: 0, parts: 1 });
    let name = theirs.strip_prefix("swin.")?;
    if let Some(rest) = name.strip_prefix("embeddings.norm.") {
        return whole(format!("patch_embed.norm.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("embeddings.patch_embeddings.projection.") {
        return whole(format!("patch_embed.proj.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("layernorm.") {
        return whole(format!("norm.{rest}"));
    }
    let (stage, rest) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
    if rest.starts_with("downsample.") {
        return whole(format!("layers.{}.{rest}", stage.parse::<usize>().ok()? + 1));
    }
    let (block, rest) = rest.strip_prefix("blocks.")?.split_once('.')?;
    let place = format!("layers.{stage}.blocks.{block}");
    for (part, theirs) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        if let Some(kind) = rest.strip_prefix(&format!("attention.{theirs}.")) {
            return Some(Place { name: format!("{place}.attn.qkv.{kind}"), part, parts: 3 });
        }
    }
    let renamed = [
        ("attention.o_proj", "attn.proj"),
        ("attention.relative_position_bias.", "attn."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("mlp.", "mlp."),
    ];
    let (theirs, ours) = renamed.into_iter().find(|(theirs, _)| rest.starts_with(theirs))?;
    whole(format!("{place}.{ours}{}", &rest[theirs.len()..]))
}
