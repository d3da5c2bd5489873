//! A trained encoder as a file: weights under torchvision's or timm's names and what one must know to use them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use ssl_nn::Params;

use crate::backbone::{Backbone, BackboneConfig};
use crate::error::{Error, Result};
use crate::swin_names::from_others;
use crate::tensor_file::TensorFile;
use crate::vit_config::VitConfig;
use crate::vit_names::VitNames;

/// Metadata key of the [`EncoderInfo`].
const INFO: &str = "ssl_vision.encoder";

/// What the weights are and how to feed them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderInfo {
    /// The architecture.
    pub backbone: BackboneConfig,
    /// The method that trained it.
    pub method: String,
    /// Side of the square input in pixels.
    pub input_size: usize,
    /// Mean of each channel, subtracted from values in `[0, 1]`.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, divided by.
    pub std: [f64; 3],
    /// How the last feature map becomes a vector: `avg`, or `token` for the class token.
    pub pooling: String,
    /// Licence of the weights.
    pub licence: String,
    /// Hash of the recipe that made them.
    pub recipe_hash: String,
    /// Version of this library.
    pub version: String,
}

/// An encoder read from a file.
pub struct Encoder {
    /// The network.
    pub backbone: Box<dyn Backbone>,
    /// Its parameters and running statistics.
    pub params: Params,
    /// What the file says about them.
    pub info: EncoderInfo,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Writes `tensors`, named as torchvision or timm names them, and `info` to a safetensors file.
///
/// `torchvision.models.resnet18` with its `fc` replaced by an identity loads the file with `strict=True`. The metadata
/// holds `format = pt` for PyTorch's readers and each field of `info` by itself.
///
/// # Errors
/// If the file cannot be written.
pub fn save_encoder(path: &Path, tensors: BTreeMap<String, Tensor>, info: &EncoderInfo) -> Result<()> {
    let json = serde_json::to_value(info).map_err(candle_core::Error::wrap)?;
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("architecture".to_owned(), info.backbone.name.clone()),
        (INFO.to_owned(), json.to_string()),
    ]);
    for (key, value) in json.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        metadata.insert(key.clone(), text);
    }
    TensorFile { tensors, metadata }.write(path)
}

/// Rebuilds the encoder that [`save_encoder`] wrote.
///
/// # Errors
/// If the file is damaged, was not written by this library, or its tensors do not fit its architecture.
pub fn load_encoder(path: &Path, device: &Device) -> Result<Encoder> {
    let file = TensorFile::read(path, device)?;
    let mismatch = |reason: String| Error::Mismatch { path: path.to_owned(), reason };
    let info = file.metadata.get(INFO).ok_or_else(|| {
        mismatch(format!(
            "holds no description of an encoder (metadata `{INFO}`); was it exported by ssl-vision?"
        ))
    })?;
    let info: EncoderInfo =
        serde_json::from_str(info).map_err(|e| mismatch(format!("its description cannot be read ({e})")))?;
    let params = Params::new(0, DType::F32, device);
    let backbone = info.backbone.build(&params.root()).map_err(|e| mismatch(e.to_string()))?;
    params.load(&file.tensors).map_err(|e| mismatch(e.to_string()))?;
    Ok(Encoder { backbone, params, info })
}

/// The tensors of the network `backbone` as another program's files have them: those of a vision transformer under
/// `names`, a Swin Transformer's under timm's, which are ours, or without names a ResNet's or RegNet's as torchvision names
/// them, which are ours too.
///
/// # Errors
/// If the network is of the other kind, or the program has no place for one of its tensors.
pub fn export_foreign(
    tensors: BTreeMap<String, Tensor>,
    names: Option<VitNames>,
    backbone: &BackboneConfig,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    match kind(names, backbone)? {
        Kind::Vit(names, vit) => names.export(&tensors, &vit),
        Kind::Swin | Kind::Convolutional => Ok(tensors),
    }
}

/// The way back from [`export_foreign`], for weights that another program trained. What is no part of the network, such as
/// heads and classifiers, is left out.
///
/// # Errors
/// If the network is of the other kind, a name is unknown, or the tensors are not all of the network's with its shapes.
pub fn import_foreign(
    theirs: BTreeMap<String, Tensor>,
    names: Option<VitNames>,
    backbone: &BackboneConfig,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let found = match kind(names, backbone)? {
        Kind::Vit(names, vit) => names.import(&theirs, &vit)?,
        Kind::Swin => from_others(theirs),
        Kind::Convolutional => theirs.into_iter().filter(|(name, _)| !name.starts_with("fc.")).collect(),
    };
    let params = Params::new(0, DType::F32, &Device::Cpu);
    backbone.build(&params.root())?;
    params.load(&found)?;
    Ok(params.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect())
}

/// What other programs' names are for.
enum Kind {
    Vit(VitNames, VitConfig),
    Swin,
    Convolutional,
}

/// The kind of network that `names` belong to.
fn kind(names: Option<VitNames>, backbone: &BackboneConfig) -> candle_core::Result<Kind> {
    let swin = backbone.swin_transformer().is_ok();
    match (names, backbone.vision_transformer()) {
        (Some(VitNames::Timm), _) if swin => Ok(Kind::Swin),
        (Some(names), vit) => Ok(Kind::Vit(names, vit?)),
        (None, vit) if swin || vit.is_ok() => {
            candle_core::bail!("torchvision's names are not those of {}", backbone.name)
        }
        (None, _) => Ok(Kind::Convolutional),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stem;

    fn info() -> EncoderInfo {
        EncoderInfo {
            backbone: BackboneConfig {
                width: Some(4),
                stem: Some(Stem::Cifar),
                ..BackboneConfig::named("resnet18").unwrap()
            },
            method: "simclr".into(),
            input_size: 28,
            mean: [0.5; 3],
            std: [0.25; 3],
            pooling: "avg".into(),
            licence: "MIT".into(),
            recipe_hash: "abc".into(),
            version: "0.1.0".into(),
        }
    }

    fn tensors(params: &Params) -> BTreeMap<String, Tensor> {
        params.all().into_iter().map(|(n, v)| (n, v.as_tensor().clone())).collect()
    }

    #[test]
    fn an_encoder_comes_back_with_equal_features() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encoder.safetensors");
        let params = Params::new(3, DType::F32, &Device::Cpu);
        let backbone = info().backbone.build(&params.root()).unwrap();
        save_encoder(&path, tensors(&params), &info()).unwrap();
        let encoder = load_encoder(&path, &Device::Cpu).unwrap();
        assert_eq!(encoder.info, info());
        let x = Tensor::ones((1, 3, 16, 16), DType::F32, &Device::Cpu).unwrap();
        let features = |b: &dyn Backbone| b.forward_t(&x, false).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(features(&*backbone), features(&*encoder.backbone));
    }

    #[test]
    fn weights_of_other_programs_go_out_and_come_back() {
        let vit = BackboneConfig {
            image_size: Some(8),
            patch_size: Some(4),
            width: Some(64),
            depth: Some(1),
            ..BackboneConfig::named("vit_tiny").unwrap()
        };
        let swin = BackboneConfig {
            image_size: Some(16),
            patch_size: Some(2),
            width: Some(32),
            depths: Some(vec![1, 1]),
            window: Some(4),
            ..BackboneConfig::named("swin_tiny").unwrap()
        };
        for (backbone, names, own) in [
            (swin.clone(), Some(VitNames::Timm), "layers.1.downsample.reduction.weight"),
            (vit.clone(), Some(VitNames::TransformersVit), "encoder.layer.0.attention.attention.key.weight"),
            (info().backbone, None, "layer1.0.conv1.weight"),
        ] {
            let params = Params::new(3, DType::F32, &Device::Cpu);
            backbone.build(&params.root()).unwrap();
            let mut theirs = export_foreign(tensors(&params), names, &backbone).unwrap();
            assert!(theirs.contains_key(own));
            let fc = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
            let classifier = match names {
                None => "fc.bias",
                Some(VitNames::Timm) => "head.fc.bias",
                Some(_) => "classifier.bias",
            };
            theirs.insert(classifier.to_owned(), fc);
            let back = import_foreign(theirs.clone(), names, &backbone).unwrap();
            for (name, tensor) in tensors(&params) {
                let values = |t: &Tensor| {
                    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
                };
                assert_eq!(values(&back[&name]), values(&tensor), "{name}");
            }
            theirs.remove(own);
            assert!(import_foreign(theirs, names, &backbone).is_err());
        }
        for other in [&vit, &swin] {
            let error = export_foreign(BTreeMap::new(), None, other).unwrap_err().to_string();
            assert!(
                error.contains(&format!("torchvision's names are not those of {}", other.name)),
                "{error}"
            );
        }
        let error = export_foreign(BTreeMap::new(), Some(VitNames::Dino), &swin).unwrap_err().to_string();
        assert!(error.contains("swin_tiny is not a vision transformer"), "{error}");
        let error =
            export_foreign(BTreeMap::new(), Some(VitNames::Mae), &info().backbone).unwrap_err().to_string();
        assert!(error.contains("resnet18 is not a vision transformer"), "{error}");
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_both_sides() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encoder.safetensors");
        let params = Params::new(3, DType::F32, &Device::Cpu);
        let narrow = BackboneConfig { width: Some(2), ..info().backbone };
        narrow.build(&params.root()).unwrap();
        save_encoder(&path, tensors(&params), &info()).unwrap();
        let error = load_encoder(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("conv1.weight") && error.contains("[2, 3, 3, 3]"), "{error}");
        TensorFile { tensors: tensors(&params), ..Default::default() }.write(&path).unwrap();
        let error = load_encoder(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("no description of an encoder"), "{error}");
    }
}
