//! Exported encoders: the file, and the same features from the ResNet of candle-transformers.
//!
//! With `SSL_VISION_EXPORT_DIR` set, the encoders and their features stay in that folder, for
//! `python/check_export.py` to compare with PyTorch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Func, Module, VarBuilder};
use candle_transformers::models::resnet;
use safetensors::{Dtype, SafeTensors};
use ssl_vision::backbones::{
    Backbone, BackboneConfig, EncoderInfo, Pooling, Positions, Stem, TensorFile, VitMlp, VitOptions,
    load_encoder, save_encoder,
};
use ssl_vision::nn::{Init, Params};
use tempfile::TempDir;

/// Two libraries add the products of a convolution in different order; the features are of the order of 1.
const TOLERANCE: f32 = 1e-4;

#[test]
fn candle_transformers_computes_the_same_features() {
    type Build = fn(VarBuilder) -> candle_core::Result<Func>;
    let cases: [(&str, Build); 2] =
        [("resnet18", resnet::resnet18_no_final_layer), ("resnet50", resnet::resnet50_no_final_layer)];
    for (name, build) in cases {
        let folder = Folder::new();
        let export = Export::write(folder.path(), name, BackboneConfig::named(name).unwrap());
        let bytes = fs::read(&export.encoder).unwrap();
        let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
        let features = build(vb).unwrap().forward(&export.images).unwrap();
        let difference = max_abs(&(features - &export.features).unwrap());
        assert!(difference < TOLERANCE, "{name}: features differ by {difference}");
        assert!(spread(&export.features) > 0.1, "{name}: both images have the same features");
    }
}

#[test]
fn a_narrow_encoder_with_the_small_stem_is_rebuilt_from_its_file_alone() {
    let folder = Folder::new();
    let config = BackboneConfig {
        stem: Some(Stem::Cifar),
        width: Some(16),
        ..BackboneConfig::named("resnet18").unwrap()
    };
    let export = Export::write(folder.path(), "resnet18-cifar-16", config);
    let encoder = load_encoder(&export.encoder, &Device::Cpu).unwrap();
    let features = encoder.backbone.forward_t(&export.images, false).unwrap();
    assert_eq!(features.to_vec2::<f32>().unwrap(), export.features.to_vec2::<f32>().unwrap());
    assert!(spread(&features) > 0.1, "both images have the same features");
}

#[test]
fn regnets_with_both_stems_are_rebuilt_from_their_files_alone() {
    for (name, stem) in [("regnet_y_400mf", Stem::ImageNet), ("regnet_y_400mf-cifar", Stem::Cifar)] {
        let folder = Folder::new();
        let config = BackboneConfig { stem: Some(stem), ..BackboneConfig::named("regnet_y_400mf").unwrap() };
        let export = Export::write(folder.path(), name, config);
        let encoder = load_encoder(&export.encoder, &Device::Cpu).unwrap();
        let features = encoder.backbone.forward_t(&export.images, false).unwrap();
        assert_eq!(features.to_vec2::<f32>().unwrap(), export.features.to_vec2::<f32>().unwrap());
        // Features of an untrained RegNet differ by about 0.1.
        assert!(spread(&features) > 0.01, "both images have the same features");
    }
}

#[test]
fn a_vision_transformer_is_rebuilt_from_its_file_alone() {
    let folder = Folder::new();
    let config = BackboneConfig {
        image_size: Some(64),
        patch_size: Some(16),
        ..BackboneConfig::named("vit_tiny").unwrap()
    };
    let export = Export::write(folder.path(), "vit_tiny-16-64", config);
    let encoder = load_encoder(&export.encoder, &Device::Cpu).unwrap();
    let features = encoder.backbone.forward_t(&export.images, false).unwrap();
    assert_eq!(features.to_vec2::<f32>().unwrap(), export.features.to_vec2::<f32>().unwrap());
    assert!(spread(&features) > 0.1, "both images have the same features");
}

#[test]
fn vision_transformers_of_other_parts_are_rebuilt_from_their_files_alone() {
    let gated = VitOptions {
        registers: 4,
        positions: Positions::LearnedPatches,
        mlp: VitMlp::SwiGlu,
        pooling: Pooling::Mean,
        ..VitOptions::dinov2()
    };
    for (name, vit) in [
        ("vit_tiny-mae", VitOptions::mae()),
        ("vit_tiny-beit", VitOptions::beit()),
        ("vit_tiny-clip", VitOptions::clip()),
        ("vit_tiny-registers", gated),
    ] {
        let folder = Folder::new();
        let config = BackboneConfig {
            image_size: Some(64),
            vit: Some(vit),
            ..BackboneConfig::named("vit_tiny").unwrap()
        };
        let export = Export::write(folder.path(), name, config);
        let encoder = load_encoder(&export.encoder, &Device::Cpu).unwrap();
        let features = encoder.backbone.forward_t(&export.images, false).unwrap();
        assert_eq!(features.to_vec2::<f32>().unwrap(), export.features.to_vec2::<f32>().unwrap());
        assert!(spread(&features) > 0.01, "both images have the same features");
    }
}

#[test]
fn a_swin_transformer_is_rebuilt_from_its_file_alone() {
    let folder = Folder::new();
    let config = BackboneConfig {
        image_size: Some(64),
        window: Some(4),
        depths: Some(vec![2, 2, 2, 1]),
        ..BackboneConfig::named("swin_tiny").unwrap()
    };
    let export = Export::write(folder.path(), "swin_tiny-4-64", config);
    let encoder = load_encoder(&export.encoder, &Device::Cpu).unwrap();
    let features = encoder.backbone.forward_t(&export.images, false).unwrap();
    assert_eq!(features.to_vec2::<f32>().unwrap(), export.features.to_vec2::<f32>().unwrap());
    assert!(spread(&features) > 0.01, "both images have the same features");
}

#[test]
fn the_metadata_says_how_to_use_the_weights() {
    let (_folder, path) = untrained_resnet18();
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    for (key, expected) in [
        ("format", "pt"),
        ("architecture", "resnet18"),
        ("method", "simclr"),
        ("input_size", "64"),
        ("pooling", "avg"),
        ("licence", "CC0-1.0"),
        ("recipe_hash", "0123456789abcdef"),
    ] {
        assert_eq!(metadata.get(key).map(String::as_str), Some(expected), "{key}");
    }
    let numbers = |key: &str| serde_json::from_str::<[f64; 3]>(&metadata[key]).unwrap();
    assert_eq!((numbers("mean"), numbers("std")), (info_of_resnet18().mean, info_of_resnet18().std));
    let backbone: BackboneConfig = serde_json::from_str(&metadata["backbone"]).unwrap();
    assert_eq!(backbone, BackboneConfig::named("resnet18").unwrap());
}

#[test]
fn names_and_shapes_are_those_of_torchvision() {
    let (_folder, path) = untrained_resnet18();
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    assert_eq!(names, torchvision_resnet18());
    for name in names {
        let tensor = file.tensor(name).unwrap();
        if name.ends_with("num_batches_tracked") {
            assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::I64, &[][..]), "{name}");
        } else {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        }
    }
    assert_eq!(file.tensor("conv1.weight").unwrap().shape(), [64, 3, 7, 7]);
    assert_eq!(file.tensor("layer4.0.downsample.0.weight").unwrap().shape(), [512, 256, 1, 1]);
}

/// Under the usual umask of 022 that is 0644, where a temporary file that was renamed would have 0600.
#[cfg(unix)]
#[test]
fn the_mode_is_that_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;

    let (folder, path) = untrained_resnet18();
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(format!("{:o}", mode(&path)), format!("{:o}", mode(&plain)));
}

/// An encoder's file with features that this library computed from it.
struct Export {
    encoder: PathBuf,
    /// `(2, 3, 64, 64)`.
    images: Tensor,
    /// `(2, embed_dim)`, in evaluation mode.
    features: Tensor,
}

impl Export {
    /// Writes `NAME.safetensors` and `NAME-features.safetensors`.
    fn write(folder: &Path, name: &str, config: BackboneConfig) -> Self {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let backbone = config.build(&params.root()).unwrap();
        leave_initial_state(&params, &*backbone);
        let images = noise("images", &[2, 3, 64, 64]);
        let features = backbone.forward_t(&images, false).unwrap();
        let encoder = folder.join(format!("{name}.safetensors"));
        save_encoder(&encoder, tensors(&params), &info(config)).unwrap();
        let pair = [("images", images.clone()), ("features", features.clone())];
        let pair = pair.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        TensorFile { tensors: pair, ..Default::default() }
            .write(&folder.join(format!("{name}-features.safetensors")))
            .unwrap();
        Self { encoder, images, features }
    }
}

/// Where the exports go: `SSL_VISION_EXPORT_DIR`, or a folder that is removed in the end.
enum Folder {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn new() -> Self {
        match std::env::var_os("SSL_VISION_EXPORT_DIR") {
            Some(folder) => Folder::Kept(folder.into()),
            None => Folder::Temporary(tempfile::tempdir().unwrap()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Folder::Kept(path) => path,
            Folder::Temporary(folder) => folder.path(),
        }
    }
}

/// Gives every norm its own scale and shift, every bias a value, and running statistics from a few batches. At their
/// initial values a reader that mixed them up would not be noticed.
fn leave_initial_state(params: &Params, backbone: &dyn Backbone) {
    for (name, var) in params.trainable().into_iter().filter(|(_, var)| var.rank() == 1) {
        let drift = (noise(&name, var.dims()) * 0.2).unwrap();
        var.set(&(var.as_tensor() + drift).unwrap()).unwrap();
    }
    for step in 0..3 {
        backbone.forward_t(&noise(&format!("batch {step}"), &[4, 3, 64, 64]), true).unwrap();
    }
}

/// Normal numbers that depend on `name` alone.
fn noise(name: &str, shape: &[usize]) -> Tensor {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    params.root().trainable(name, shape, Init::Normal { std: 1.0 }).unwrap()
}

fn untrained_resnet18() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.safetensors");
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let info = info_of_resnet18();
    info.backbone.build(&params.root()).unwrap();
    save_encoder(&path, tensors(&params), &info).unwrap();
    (folder, path)
}

fn info_of_resnet18() -> EncoderInfo {
    info(BackboneConfig::named("resnet18").unwrap())
}

fn info(backbone: BackboneConfig) -> EncoderInfo {
    EncoderInfo {
        backbone,
        method: "simclr".to_owned(),
        input_size: 64,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        pooling: "avg".to_owned(),
        licence: "CC0-1.0".to_owned(),
        recipe_hash: "0123456789abcdef".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

fn tensors(params: &Params) -> BTreeMap<String, Tensor> {
    params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect()
}

/// The sorted keys of `torchvision.models.resnet18().state_dict()` without those of `fc`.
fn torchvision_resnet18() -> Vec<String> {
    // A convolution and its norm, in the stem, the blocks, and the shortcuts of all stages but the first.
    let mut pairs = vec![("conv1".to_owned(), "bn1".to_owned())];
    for stage in 1..=4 {
        for block in [0, 1] {
            let at = |part: &str| format!("layer{stage}.{block}.{part}");
            pairs.extend([(at("conv1"), at("bn1")), (at("conv2"), at("bn2"))]);
            if stage > 1 && block == 0 {
                pairs.push((at("downsample.0"), at("downsample.1")));
            }
        }
    }
    let norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
    let mut names: Vec<_> = pairs.iter().map(|(conv, _)| format!("{conv}.weight")).collect();
    names.extend(pairs.iter().flat_map(|(_, bn)| norm.map(|part| format!("{bn}.{part}"))));
    names.sort_unstable();
    names
}

fn max_abs(x: &Tensor) -> f32 {
    x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Largest difference between the features of two images.
fn spread(features: &Tensor) -> f32 {
    max_abs(&(features.get(0).unwrap() - features.get(1).unwrap()).unwrap())
}
