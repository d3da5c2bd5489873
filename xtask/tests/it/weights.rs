//! Encoders go to the files of other programs and come back.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use ssl_vision::backbones::{BackboneConfig, Encoder, EncoderInfo, load_encoder, save_encoder};
use ssl_vision::nn::Params;

fn xtask(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments.split_whitespace()).output().unwrap()
}

fn succeeds(arguments: &str) -> String {
    let output = xtask(arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(arguments: &str) -> String {
    let output = xtask(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.lines().count() == 1, "{arguments}: {errors}");
    errors
}

/// An untrained encoder for images of 16 pixels.
fn write_encoder(path: &Path, backbone: BackboneConfig) {
    let params = Params::new(4, DType::F32, &Device::Cpu);
    backbone.build(&params.root()).unwrap();
    let info = EncoderInfo {
        pooling: backbone.pooling().unwrap().to_owned(),
        backbone,
        method: "none".to_owned(),
        input_size: 16,
        mean: [0.5; 3],
        std: [0.5; 3],
        licence: "NOASSERTION".to_owned(),
        recipe_hash: "none".to_owned(),
        version: "0".to_owned(),
    };
    let tensors = params.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    save_encoder(path, tensors, &info).unwrap();
}

fn features(encoder: &Encoder) -> Vec<Vec<f32>> {
    let x = Tensor::arange(0f32, 1536.0, &Device::Cpu).unwrap().sin().unwrap();
    let x = x.reshape((2, 3, 16, 16)).unwrap();
    encoder.backbone.forward_t(&x, false).unwrap().to_vec2().unwrap()
}

#[test]
fn an_encoder_goes_out_under_other_names_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let vit = BackboneConfig {
        image_size: Some(16),
        patch_size: Some(8),
        width: Some(64),
        depth: Some(2),
        ..BackboneConfig::named("vit_tiny").unwrap()
    };
    let resnet = BackboneConfig { width: Some(2), ..BackboneConfig::named("resnet18").unwrap() };
    let of_vit = "--backbone vit_tiny --set backbone.patch_size=8 --set backbone.width=64 --set backbone.depth=2 \
        --set backbone.vit.norm_eps=1e-6";
    for (own, backbone, names, settings) in [
        ("vit.safetensors", vit, "transformers-vit", of_vit),
        ("resnet.safetensors", resnet, "torchvision", "--backbone resnet18 --set backbone.width=2"),
    ] {
        let (own, theirs, back) = (path(own), path("theirs.safetensors"), path("back.safetensors"));
        write_encoder(Path::new(&own), backbone);
        succeeds(&format!("export --weights {own} --format {names} --out {theirs}"));
        assert!(load_encoder(Path::new(&theirs), &Device::Cpu).is_err(), "it says nothing of the network");
        let said = succeeds(&format!(
            "import --weights {theirs} --names {names} {settings} --set augment.size=16 --licence MIT --out {back}"
        ));
        assert!(said.contains("back.safetensors") && said.contains("tensors of"), "{said}");
        let [before, after] = [own, back].map(|path| load_encoder(Path::new(&path), &Device::Cpu).unwrap());
        assert_eq!(features(&before), features(&after));
        assert_eq!((after.info.input_size, after.info.licence.as_str()), (16, "MIT"));
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (own, out) = (folder.path().join("own.safetensors"), folder.path().join("out.safetensors"));
    write_encoder(&own, BackboneConfig { width: Some(2), ..BackboneConfig::named("resnet18").unwrap() });
    let (own, out) = (own.display(), out.display());
    let error = fails(&format!("export --weights {own} --format dinov2 --out {out}"));
    assert!(
        error.contains("--format dinov2") && error.contains("resnet18 is not a vision transformer"),
        "{error}"
    );
    let import = |more: &str| fails(&format!("import --weights {own} --out {out} {more}"));
    let error = import("--names timm --backbone vit_tiny");
    assert!(error.contains("own.safetensors: --names timm") && error.contains("is no tensor of"), "{error}");
    let error = import("--names torchvision --backbone resnet18");
    assert!(error.contains("conv1.weight"), "{error}");
    let error = import("--names torchvision --backbone resnet18 --set optimizer.lr=1");
    assert!(error.contains("optimizer.lr=1: expected a key of the tables backbone and augment"), "{error}");
}
