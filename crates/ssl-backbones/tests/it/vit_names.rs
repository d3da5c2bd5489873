//! Vision transformers of timm and transformers: read under their names they compute what they compute there, and
//! written again they are the same file.
//!
//! The networks lie in `tests/golden/vit_names`; `tests/python/vit_names.py` made them. With `SSL_VISION_EXPORT_DIR` set,
//! networks of ours go into that folder under the names of each library, for the same script to load there.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use ssl_backbones::{
    Backbone, Pooling, Positions, RelativePositions, TensorFile, Vit, VitConfig, VitMlp, VitNames,
    VitOptions, VitQkvBias,
};
use ssl_nn::{Init, Params};

/// The tokens are of the order of 1, and both sides compute in `f32`.
const TOLERANCE: f32 = 1e-4;

type Tensors = BTreeMap<String, Tensor>;

/// Name of the file, names of its tensors, parts of the network.
fn cases() -> Vec<(&'static str, VitNames, VitOptions)> {
    let plain = VitOptions::default();
    let dinov2 = VitOptions::dinov2();
    let registers = VitOptions { registers: 2, positions: Positions::LearnedPatches, ..dinov2 };
    let swiglu = VitOptions { mlp: VitMlp::SwiGlu, ..plain };
    let gated_dinov2 = VitOptions { mlp: VitMlp::SwiGlu, ..dinov2 };
    let no_class = VitOptions { class_token: false, pooling: Pooling::Mean, ..plain };
    let beit = VitOptions::beit();
    let each = VitOptions { relative_positions: RelativePositions::Each, ..beit };
    vec![
        ("timm_vit", VitNames::Timm, plain),
        ("timm_registers", VitNames::Timm, registers),
        ("timm_all_positions", VitNames::Timm, VitOptions { registers: 1, ..plain }),
        ("timm_swiglu", VitNames::Timm, swiglu),
        ("timm_qk_norm", VitNames::Timm, VitOptions { qk_norm: true, qkv_bias: VitQkvBias::None, ..plain }),
        ("timm_no_class", VitNames::Timm, no_class),
        ("timm_clip", VitNames::Timm, VitOptions::clip()),
        ("timm_beit_shared", VitNames::Timm, beit),
        ("timm_beit_each", VitNames::Timm, each),
        ("dino", VitNames::Dino, plain),
        ("dinov2", VitNames::Dinov2, dinov2),
        ("dinov2_registers", VitNames::Dinov2, registers),
        ("dinov2_swiglu", VitNames::Dinov2, gated_dinov2),
        ("mae", VitNames::Mae, VitOptions::mae()),
        ("transformers_vit", VitNames::TransformersVit, plain),
        ("transformers_vit_mae", VitNames::TransformersVitMae, VitOptions::mae()),
        ("transformers_dinov2", VitNames::TransformersDinov2, dinov2),
        ("transformers_dinov2_swiglu", VitNames::TransformersDinov2, gated_dinov2),
        ("transformers_dinov2_registers", VitNames::TransformersDinov2, registers),
        ("transformers_beit_shared", VitNames::TransformersBeit, beit),
        ("transformers_beit_each", VitNames::TransformersBeit, each),
        ("transformers_data2vec", VitNames::TransformersData2Vec, beit),
        ("transformers_clip", VitNames::TransformersClip, VitOptions::clip()),
        ("timm_fc_norm", VitNames::Timm, VitOptions { pooling: Pooling::MeanNorm, ..plain }),
        (
            "transformers_beit_fc_norm",
            VitNames::TransformersBeit,
            VitOptions { pooling: Pooling::MeanNorm, ..each },
        ),
    ]
}

fn network(options: VitOptions, seed: u64) -> (VitConfig, Params, Vit) {
    let config =
        VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, options, ..VitConfig::vit_tiny() };
    let params = Params::new(seed, DType::F32, &Device::Cpu);
    let vit = config.build(&params.root()).unwrap();
    (config, params, vit)
}

/// The tokens, or the embedding as one of them where only that has a norm.
fn output(vit: &Vit, images: &Tensor) -> Result<Tensor> {
    match vit.config().options.pooling {
        Pooling::MeanNorm => vit.forward_t(images, false)?.unsqueeze(1),
        Pooling::Token | Pooling::Mean => vit.forward_features(images),
    }
}

fn read(name: &str) -> (Tensors, Tensor, Tensor) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vit_names");
    let file = candle_core::safetensors::load(path.join(format!("{name}.safetensors")), &Device::Cpu);
    let mut tensors: Tensors = file.unwrap().into_iter().collect();
    let (images, tokens) = (tensors.remove("in.images").unwrap(), tensors.remove("out.tokens").unwrap());
    (tensors, images, tokens)
}

fn values(tensors: &Tensors) -> BTreeMap<&str, (Vec<usize>, Vec<f32>)> {
    let of = |tensor: &Tensor| (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap());
    tensors.iter().map(|(name, tensor)| (name.as_str(), of(tensor))).collect()
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn networks_of_other_libraries_compute_the_same_here_and_are_written_as_they_were_read() {
    for (name, names, options) in cases() {
        let (theirs, images, tokens) = read(name);
        let (config, params, vit) = network(options, 0);
        let ours = names.import(&theirs, &config).unwrap();
        params.load(&ours).unwrap();
        let found = output(&vit, &images).unwrap();
        let found = found.narrow(1, 0, tokens.dim(1).unwrap()).unwrap();
        let difference = largest(&(found - tokens).unwrap());
        assert!(difference < TOLERANCE, "{name}: {difference}");
        let written = names.export(&ours, &config).unwrap();
        if name == "transformers_dinov2_registers" {
            // The position of the class token is part of that token here.
            assert!(written.iter().zip(&theirs).all(|(a, b)| (a.0, a.1.dims()) == (b.0, b.1.dims())));
            assert_eq!(values(&names.import(&written, &config).unwrap()), values(&ours));
        } else {
            assert_eq!(values(&written), values(&theirs), "{name}");
        }
    }
}

#[test]
fn networks_of_ours_are_written_for_other_libraries() {
    let Some(folder) = std::env::var_os("SSL_VISION_EXPORT_DIR") else { return };
    for (name, names, options) in cases() {
        let (config, params, vit) = network(options, 1);
        leave_initial_state(&params).unwrap();
        let ours = params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        let mut tensors = names.export(&ours, &config).unwrap();
        let images = noise("images", &[2, 3, 8, 8]).unwrap();
        tensors.insert("out.tokens".to_owned(), output(&vit, &images).unwrap().detach());
        tensors.insert("in.images".to_owned(), images);
        let path = Path::new(&folder).join(format!("{name}.safetensors"));
        TensorFile { tensors, metadata: BTreeMap::new() }.write(&path).unwrap();
    }
}

/// At their initial values tensors that were mixed up would not be noticed.
fn leave_initial_state(params: &Params) -> Result<()> {
    params.trainable().into_iter().try_for_each(|(name, var)| {
        let drift = (noise(&name, var.dims())? * 0.2)?;
        var.set(&(var.as_detached_tensor() + drift)?)
    })
}

/// Normal numbers that depend on `name` alone.
fn noise(name: &str, shape: &[usize]) -> Result<Tensor> {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    Ok(params.root().trainable(name, shape, Init::Normal { std: 1.0 })?.detach())
}
