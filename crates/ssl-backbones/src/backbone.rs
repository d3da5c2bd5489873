//! What all backbones share, and how one is chosen by name.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use ssl_nn::{DrawsAt, Scope};

use crate::regnet::RegNetConfig;
use crate::resnet::{ResNetConfig, Stem};
use crate::swin_config::SwinConfig;
use crate::vit::Vit;
use crate::vit_config::{Pooling, VitConfig, VitOptions};

/// A network from images to one vector each.
pub trait Backbone: Send + Sync {
    /// Width of the embedding.
    fn embed_dim(&self) -> usize;

    /// `(B, 3, H, W)` to `(B, embed_dim)`. With `train`, batch norms use and track the batch's statistics.
    ///
    /// # Errors
    /// If `x` is not of that shape, or too small for the network.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor>;

    /// [`Backbone::forward_t`] in training, leaving out at random what the network leaves out in training: the branches
    /// of a vision transformer with `drop_path`. It draws at `draws`, for the layers from `layer` on. A teacher passes
    /// `None` and leaves nothing out. A network without such parts ignores it.
    ///
    /// # Errors
    /// As [`Backbone::forward_t`].
    fn forward_train(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        let _ = draws;
        self.forward_t(x, true)
    }

    /// The network as a vision transformer, if it is one.
    fn vision_transformer(&self) -> Option<&Vit> {
        None
    }
}

/// An architecture by name with the settings that a recipe may change.
///
/// A setting that a kind of network does not have is `None`, and [`BackboneConfig::build`] refuses it otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// One of [`BackboneConfig::NAMES`].
    pub name: String,
    /// ResNet and RegNet: first layers, `imagenet` for large images, `cifar` for images up to about 64 pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// ResNet: channels of the first stage, in 1..=4096; the published networks have 64. ViT: width of the tokens, a
    /// multiple of 64 up to 8192, if it is not that of the named network; there is a head for every 64. Swin: width of the
    /// first stage's tokens, a multiple of 32 up to 4096, if it is another; there is a head for every 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// ViT: number of blocks, in 1..=1000, if it is not that of the named network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// ResNet: start every residual branch as zero (Goyal et al., 2017), as SimCLR does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_init_residual: Option<bool>,
    /// Swin: number of blocks of each stage, up to 8 numbers in 1..=1000, if they are not those of the named network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depths: Option<Vec<usize>>,
    /// Swin: rows, and columns, of patches that see each other, in 1..=64, if they are not 7. They divide the grid of
    /// every stage that has more of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Swin: probability that training leaves the last block's branches out for a sample, in 0..1, if it is not 0. It
    /// grows linearly from 0 at the first block. A ViT has it among its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_path: Option<f64>,
    /// ViT and Swin: side of the square images in pixels, a multiple of `patch_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// ViT and Swin: side of the square patches in pixels, in 1..=1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// ViT: its parts, where they are not those of [`VitOptions::default`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vit: Option<VitOptions>,
    /// Compute each block again in the backward pass instead of keeping what it needs: the same bits in less memory
    /// and more time; `None` for `false`. It is a matter of a run: encoder files do without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute: Option<bool>,
}

/// Width of a head in all published vision transformers.
const HEAD_WIDTH: usize = 64;

/// Width of a head in all published Swin Transformers.
const SWIN_HEAD_WIDTH: usize = 32;

/// The networks that there are.
enum Architecture {
    ResNet(ResNetConfig),
    RegNet(RegNetConfig),
    Vit(VitConfig),
    Swin(SwinConfig),
}

impl BackboneConfig {
    /// The architectures that can be built.
    pub const NAMES: [&'static str; 21] = [
        "resnet18",
        "resnet34",
        "resnet50",
        "regnet_y_400mf",
        "regnet_y_800mf",
        "regnet_y_1_6gf",
        "regnet_y_3_2gf",
        "regnet_y_8gf",
        "regnet_y_16gf",
        "regnet_y_32gf",
        "regnet_y_128gf",
        "regnet_y_256gf",
        "regnet_y_10b",
        "vit_tiny",
        "vit_small",
        "vit_base",
        "vit_large",
        "swin_tiny",
        "swin_small",
        "swin_base",
        "swin_large",
    ];

    /// The published network `name`: a ResNet with ImageNet stem and width 64, a RegNet with ImageNet stem, or a ViT or
    /// Swin for images of 224 pixels and patches of 16 or 4.
    ///
    /// # Errors
    /// If there is no such network; the message lists those there are.
    pub fn named(name: &str) -> Result<Self> {
        let none = Self {
            name: name.to_owned(),
            stem: None,
            width: None,
            depth: None,
            depths: None,
            window: None,
            drop_path: None,
            zero_init_residual: None,
            image_size: None,
            patch_size: None,
            vit: None,
            recompute: None,
        };
        Ok(match published(name).map_err(candle_core::Error::Msg)? {
            Architecture::ResNet(resnet) => Self {
                stem: Some(resnet.stem),
                width: Some(resnet.width),
                zero_init_residual: Some(resnet.zero_init_residual),
                ..none
            },
            Architecture::RegNet(regnet) => Self { stem: Some(regnet.stem), ..none },
            Architecture::Vit(vit) => {
                Self { image_size: Some(vit.image_size), patch_size: Some(vit.patch_size), ..none }
            }
            Architecture::Swin(swin) => {
                Self { image_size: Some(swin.image_size), patch_size: Some(swin.patch_size), ..none }
            }
        })
    }

    /// The same with every setting that this kind of network has; [`BackboneConfig::brief`] is the way back.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn explicit(&self) -> Result<Self> {
        let all = Self { recompute: self.recompute.or(Some(false)), ..self.clone() };
        Ok(match published(&self.name).map_err(candle_core::Error::Msg)? {
            Architecture::Vit(vit) => Self {
                width: self.width.or(Some(vit.dim)),
                depth: self.depth.or(Some(vit.depth)),
                vit: self.vit.or(Some(VitOptions::default())),
                ..all
            },
            Architecture::Swin(swin) => Self {
                width: self.width.or(Some(swin.dim)),
                depths: self.depths.clone().or(Some(swin.depths)),
                window: self.window.or(Some(swin.window)),
                drop_path: self.drop_path.or(Some(swin.drop_path)),
                ..all
            },
            Architecture::ResNet(_) | Architecture::RegNet(_) => all,
        })
    }

    /// The same without the sizes and parts of a transformer that are those of the named network, as it stands in files.
    pub fn brief(&self) -> Self {
        match published(&self.name) {
            Ok(Architecture::Vit(named)) => Self {
                width: self.width.filter(|width| *width != named.dim),
                depth: self.depth.filter(|depth| *depth != named.depth),
                vit: self.vit.filter(|vit| *vit != VitOptions::default()),
                ..self.clone()
            },
            Ok(Architecture::Swin(named)) => Self {
                width: self.width.filter(|width| *width != named.dim),
                depths: self.depths.clone().filter(|depths| *depths != named.depths),
                window: self.window.filter(|window| *window != named.window),
                drop_path: self.drop_path.filter(|drop_path| *drop_path != named.drop_path),
                ..self.clone()
            },
            _ => self.clone(),
        }
    }

    /// The vision transformer that this is, for a method that works on tokens.
    ///
    /// # Errors
    /// As [`BackboneConfig::validate`], or if it is another network.
    pub fn vision_transformer(&self) -> Result<VitConfig> {
        match self.checked()? {
            Architecture::Vit(vit) => Ok(vit),
            _ => candle_core::bail!("backbone.name = {} is not a vision transformer", self.name),
        }
    }

    /// The Swin Transformer that this is, for a method that works on its tokens.
    ///
    /// # Errors
    /// As [`BackboneConfig::validate`], or if it is another network.
    pub fn swin_transformer(&self) -> Result<SwinConfig> {
        match self.checked()? {
            Architecture::Swin(swin) => Ok(swin),
            _ => candle_core::bail!("backbone.name = {} is not a swin transformer", self.name),
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.architecture().map(drop)
    }

    /// Creates the parameters in `scope` and returns the network.
    ///
    /// # Errors
    /// As [`BackboneConfig::validate`], or if a parameter's name is taken.
    pub fn build(&self, scope: &Scope) -> Result<Box<dyn Backbone>> {
        Ok(match self.checked()? {
            Architecture::ResNet(resnet) => Box::new(resnet.build(scope)?),
            Architecture::RegNet(regnet) => Box::new(regnet.build(scope)?),
            Architecture::Vit(vit) => Box::new(vit.build(scope)?),
            Architecture::Swin(swin) => Box::new(swin.build(scope)?),
        })
    }

    /// Width of the embedding, without building the network.
    ///
    /// # Errors
    /// As [`BackboneConfig::validate`].
    pub fn embed_dim(&self) -> Result<usize> {
        Ok(match self.checked()? {
            Architecture::ResNet(resnet) => resnet.embed_dim(),
            Architecture::RegNet(regnet) => regnet.embed_dim().map_err(candle_core::Error::Msg)?,
            Architecture::Vit(vit) => vit.dim,
            Architecture::Swin(swin) => swin.embed_dim(),
        })
    }

    /// How the last feature map becomes a vector: `avg`, the mean over its pixels, `token`, the class token, `mean`, the
    /// mean of the patches' tokens, or `mean_norm`, that mean with a norm after it.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn pooling(&self) -> Result<&'static str> {
        Ok(match published(&self.name).map_err(candle_core::Error::Msg)? {
            Architecture::ResNet(_) | Architecture::RegNet(_) => "avg",
            Architecture::Swin(_) => "mean",
            Architecture::Vit(_) => match self.vit.unwrap_or_default().pooling {
                Pooling::Token => "token",
                Pooling::Mean => "mean",
                Pooling::MeanNorm => "mean_norm",
            },
        })
    }

    fn checked(&self) -> Result<Architecture> {
        self.architecture().map_err(candle_core::Error::Msg)
    }

    fn architecture(&self) -> std::result::Result<Architecture, String> {
        match published(&self.name)? {
            Architecture::ResNet(base) => {
                self.refuse_all_but(&["stem", "width", "zero_init_residual"])?;
                let width = self.width.unwrap_or(base.width);
                if !(1..=4096).contains(&width) {
                    return Err(format!("backbone.width = {width} is not in 1..=4096"));
                }
                Ok(Architecture::ResNet(ResNetConfig {
                    stem: self.stem.unwrap_or(base.stem),
                    width,
                    zero_init_residual: self.zero_init_residual.unwrap_or(base.zero_init_residual),
                    recompute: self.recompute.unwrap_or(base.recompute),
                    ..base
                }))
            }
            Architecture::RegNet(base) => {
                self.refuse_all_but(&["stem"])?;
                Ok(Architecture::RegNet(RegNetConfig {
                    stem: self.stem.unwrap_or(base.stem),
                    recompute: self.recompute.unwrap_or(base.recompute),
                    ..base
                }))
            }
            Architecture::Vit(base) => {
                self.refuse_all_but(&["width", "depth", "image_size", "patch_size", "vit"])?;
                let (dim, depth) = (self.width.unwrap_or(base.dim), self.depth.unwrap_or(base.depth));
                if !(HEAD_WIDTH..=8192).contains(&dim) || dim % HEAD_WIDTH != 0 {
                    return Err(format!(
                        "backbone.width = {dim} is not a multiple of {HEAD_WIDTH} up to 8192"
                    ));
                }
                if !(1..=1000).contains(&depth) {
                    return Err(format!("backbone.depth = {depth} is not in 1..=1000"));
                }
                let vit = VitConfig {
                    dim,
                    depth,
                    heads: dim / HEAD_WIDTH,
                    image_size: self.image_size.unwrap_or(base.image_size),
                    patch_size: self.patch_size.unwrap_or(base.patch_size),
                    options: self.vit.unwrap_or(base.options),
                    recompute: self.recompute.unwrap_or(base.recompute),
                };
                vit.validate().map_err(|reason| format!("backbone.{reason}"))?;
                Ok(Architecture::Vit(vit))
            }
            Architecture::Swin(base) => {
                let own = ["width", "depths", "window", "drop_path", "image_size", "patch_size"];
                self.refuse_all_but(&own)?;
                let dim = self.width.unwrap_or(base.dim);
                if !(SWIN_HEAD_WIDTH..=4096).contains(&dim) || !dim.is_multiple_of(SWIN_HEAD_WIDTH) {
                    return Err(format!(
                        "backbone.width = {dim} is not a multiple of {SWIN_HEAD_WIDTH} up to 4096"
                    ));
                }
                let swin = SwinConfig {
                    dim,
                    heads: dim / SWIN_HEAD_WIDTH,
                    depths: self.depths.clone().unwrap_or(base.depths),
                    window: self.window.unwrap_or(base.window),
                    drop_path: self.drop_path.unwrap_or(base.drop_path),
                    image_size: self.image_size.unwrap_or(base.image_size),
                    patch_size: self.patch_size.unwrap_or(base.patch_size),
                    recompute: self.recompute.unwrap_or(base.recompute),
                };
                swin.validate().map_err(|reason| format!("backbone.{reason}"))?;
                Ok(Architecture::Swin(swin))
            }
        }
    }

    /// Refuses settings that are given and not among those that this kind of network has.
    fn refuse_all_but(&self, own: &[&str]) -> std::result::Result<(), String> {
        let settings = [
            ("stem", self.stem.is_some()),
            ("width", self.width.is_some()),
            ("depth", self.depth.is_some()),
            ("depths", self.depths.is_some()),
            ("window", self.window.is_some()),
            ("drop_path", self.drop_path.is_some()),
            ("zero_init_residual", self.zero_init_residual.is_some()),
            ("image_size", self.image_size.is_some()),
            ("patch_size", self.patch_size.is_some()),
            ("vit", self.vit.is_some()),
        ];
        match settings.iter().find(|(key, given)| *given && !own.contains(key)) {
            Some((key, _)) => Err(format!("backbone.{key} is no setting of `{}`", self.name)),
            None => Ok(()),
        }
    }
}

fn published(name: &str) -> std::result::Result<Architecture, String> {
    Ok(match name {
        "resnet18" => Architecture::ResNet(ResNetConfig::resnet18()),
        "resnet34" => Architecture::ResNet(ResNetConfig::resnet34()),
        "resnet50" => Architecture::ResNet(ResNetConfig::resnet50()),
        "regnet_y_400mf" => Architecture::RegNet(RegNetConfig::regnet_y_400mf()),
        "regnet_y_800mf" => Architecture::RegNet(RegNetConfig::regnet_y_800mf()),
        "regnet_y_1_6gf" => Architecture::RegNet(RegNetConfig::regnet_y_1_6gf()),
        "regnet_y_3_2gf" => Architecture::RegNet(RegNetConfig::regnet_y_3_2gf()),
        "regnet_y_8gf" => Architecture::RegNet(RegNetConfig::regnet_y_8gf()),
        "regnet_y_16gf" => Architecture::RegNet(RegNetConfig::regnet_y_16gf()),
        "regnet_y_32gf" => Architecture::RegNet(RegNetConfig::regnet_y_32gf()),
        "regnet_y_128gf" => Architecture::RegNet(RegNetConfig::regnet_y_128gf()),
        "regnet_y_256gf" => Architecture::RegNet(RegNetConfig::regnet_y_256gf()),
        "regnet_y_10b" => Architecture::RegNet(RegNetConfig::regnet_y_10b()),
        "vit_tiny" => Architecture::Vit(VitConfig::vit_tiny()),
        "vit_small" => Architecture::Vit(VitConfig::vit_small()),
        "vit_base" => Architecture::Vit(VitConfig::vit_base()),
        "vit_large" => Architecture::Vit(VitConfig::vit_large()),
        "swin_tiny" => Architecture::Swin(SwinConfig::swin_tiny()),
        "swin_small" => Architecture::Swin(SwinConfig::swin_small()),
        "swin_base" => Architecture::Swin(SwinConfig::swin_base()),
        "swin_large" => Architecture::Swin(SwinConfig::swin_large()),
        name => {
            return Err(format!(
                "unknown backbone `{name}`; available: {}",
                BackboneConfig::NAMES.join(", ")
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;

    /// The bits of two steps of gradient descent: losses and gradients on the way, the whole store at the end.
    ///
    /// Each step has three passes, as a method with several views has, so that every parameter is used three times.
    fn two_steps(config: &BackboneConfig, size: usize, train: bool) -> Vec<Vec<u64>> {
        let bits = |x: &Tensor| -> Vec<u64> {
            let values = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            values.into_iter().map(f64::to_bits).collect()
        };
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let backbone = config.build(&params.root()).unwrap();
        let mut outcome = Vec::new();
        for step in 0..2 {
            let views = (0..3).map(|view| {
                let n = 2 * 3 * size * size;
                let x = (0..n).map(|i| ((i * 7919 + 31 * step + 7 * view) % 101) as f32 / 50.0 - 1.0);
                let x = Tensor::from_vec(x.collect(), (2, 3, size, size), &Device::Cpu).unwrap();
                backbone.forward_t(&x, train).unwrap()
            });
            let y = Tensor::cat(&views.collect::<Vec<_>>(), 0).unwrap();
            let loss = y.sin().unwrap().mean_all().unwrap();
            let gradients = loss.backward().unwrap();
            outcome.push(bits(&loss));
            for (name, var) in params.trainable() {
                let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
                outcome.push(bits(gradient));
                var.set(&(var.as_detached_tensor() - (gradient * 1e-3).unwrap()).unwrap()).unwrap();
            }
        }
        outcome.extend(params.all().iter().map(|(_, var)| bits(var)));
        outcome
    }

    #[test]
    fn recomputation_changes_no_bit_of_losses_gradients_and_buffers() {
        let resnet = |name, stem, width| BackboneConfig {
            stem: Some(stem),
            width: Some(width),
            ..BackboneConfig::named(name).unwrap()
        };
        let vit = BackboneConfig {
            image_size: Some(32),
            patch_size: Some(16),
            ..BackboneConfig::named("vit_tiny").unwrap()
        };
        let swin = BackboneConfig {
            image_size: Some(16),
            patch_size: Some(2),
            width: Some(32),
            depths: Some(vec![2, 1]),
            window: Some(4),
            ..BackboneConfig::named("swin_tiny").unwrap()
        };
        for (config, size) in [
            (resnet("resnet18", Stem::Cifar, 8), 16),
            (resnet("resnet18", Stem::ImageNet, 8), 64),
            (resnet("resnet50", Stem::ImageNet, 4), 48),
            (vit.clone(), 32),
            (BackboneConfig::named("regnet_y_400mf").unwrap(), 32),
            (BackboneConfig { vit: Some(VitOptions::beit()), ..vit }, 32),
            (swin, 16),
        ] {
            for train in [true, false] {
                let again = BackboneConfig { recompute: Some(true), ..config.clone() };
                let plain = two_steps(&config, size, train);
                assert!(plain == two_steps(&again, size, train), "{again:?}, train {train}");
                assert!(plain.iter().flatten().all(|bits| f64::from_bits(*bits).is_finite()));
            }
        }
    }

    #[test]
    fn a_vision_transformer_of_another_width_and_depth_has_heads_of_the_same_width() {
        let named = BackboneConfig::named("vit_tiny").unwrap();
        let small = BackboneConfig { width: Some(128), depth: Some(4), ..named.clone() };
        let vit = small.vision_transformer().unwrap();
        assert_eq!((vit.dim, vit.depth, vit.heads, small.embed_dim().unwrap()), (128, 4, 2, 128));
        assert_eq!(small.explicit().unwrap().brief().width, Some(128));
        let same = BackboneConfig { width: Some(192), depth: Some(12), ..named.clone() };
        assert_eq!(same.brief(), named);
        assert_eq!(same.vision_transformer().unwrap(), named.vision_transformer().unwrap());
        for (config, part) in [
            (
                BackboneConfig { width: Some(100), ..named.clone() },
                "backbone.width = 100 is not a multiple of 64",
            ),
            (
                BackboneConfig { width: Some(0), ..named.clone() },
                "backbone.width = 0 is not a multiple of 64",
            ),
            (BackboneConfig { depth: Some(0), ..named.clone() }, "backbone.depth = 0 is not in 1..=1000"),
            (
                BackboneConfig { depth: Some(2), ..BackboneConfig::named("resnet18").unwrap() },
                "backbone.depth is no setting of `resnet18`",
            ),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_swin_transformer_of_other_sizes_stands_in_a_file_as_far_as_they_differ() {
        let named = BackboneConfig::named("swin_base").unwrap();
        let json = r#"{"name":"swin_base","image_size":224,"patch_size":4}"#;
        assert_eq!(serde_json::to_string(&named).unwrap(), json);
        let explicit = named.explicit().unwrap();
        assert_eq!((explicit.depths.clone(), explicit.window), (Some(vec![2, 2, 18, 2]), Some(7)));
        assert_eq!(BackboneConfig { recompute: None, ..explicit.brief() }, named);
        assert_eq!(explicit.swin_transformer().unwrap(), SwinConfig::swin_base());
        let small =
            BackboneConfig { width: Some(64), depths: Some(vec![2, 2]), window: Some(4), ..named.clone() };
        let swin = small.swin_transformer().unwrap();
        assert_eq!((swin.heads, small.embed_dim().unwrap(), swin.stride()), (2, 128, 8));
        assert_eq!(small.brief(), small);
        assert_eq!(small.pooling().unwrap(), "mean");
        let resnet = || BackboneConfig::named("resnet18").unwrap();
        assert!(resnet().swin_transformer().is_err() && named.vision_transformer().is_err());
        for (config, part) in [
            (
                BackboneConfig { width: Some(48), ..named.clone() },
                "backbone.width = 48 is not a multiple of 32",
            ),
            (
                BackboneConfig { depth: Some(2), ..named.clone() },
                "backbone.depth is no setting of `swin_base`",
            ),
            (BackboneConfig { window: Some(5), ..named }, "backbone.window = 5 does not divide the 56 by 56"),
            (BackboneConfig { window: Some(7), ..resnet() }, "backbone.window is no setting of `resnet18`"),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_without_the_key_reads_and_the_key_is_not_written_unless_given() {
        let config = BackboneConfig::named("resnet18").unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert!(!json.contains("recompute"), "{json}");
        assert_eq!(serde_json::from_str::<BackboneConfig>(&json).unwrap(), config);
        let given = BackboneConfig { recompute: Some(true), ..config };
        let json = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<BackboneConfig>(&json).unwrap(), given);
    }

    #[test]
    fn the_parts_of_a_vision_transformer_stand_in_a_file_only_where_they_differ() {
        let plain = BackboneConfig::named("vit_tiny").unwrap();
        assert_eq!(
            serde_json::to_string(&plain).unwrap(),
            r#"{"name":"vit_tiny","image_size":224,"patch_size":16}"#
        );
        let explicit = plain.explicit().unwrap();
        assert_eq!(explicit.vit, Some(VitOptions::default()));
        assert_eq!(BackboneConfig { recompute: None, ..explicit.brief() }, plain);
        let mae = BackboneConfig { vit: Some(VitOptions::mae()), ..plain };
        assert_eq!(mae.brief(), mae);
        let json = serde_json::to_string(&mae).unwrap();
        assert_eq!(serde_json::from_str::<BackboneConfig>(&json).unwrap(), mae);
        // A part alone leaves the others as they are.
        let json = r#"{"name":"vit_tiny","vit":{"pooling":"mean","mlp":"swiglu"}}"#;
        let mean: BackboneConfig = serde_json::from_str(json).unwrap();
        assert_eq!((mean.pooling().unwrap(), mean.vit.unwrap().norm_eps), ("mean", 1e-6));
        let wrong = BackboneConfig { vit: mean.vit, ..BackboneConfig::named("resnet18").unwrap() };
        assert!(wrong.validate().unwrap_err().contains("backbone.vit is no setting of `resnet18`"));
        assert!(wrong.vision_transformer().is_err());
        let options = VitOptions { drop_path: 2.0, ..Default::default() };
        let wrong = BackboneConfig { vit: Some(options), ..mean };
        assert!(wrong.validate().unwrap_err().contains("backbone.vit.drop_path = 2 is not in [0, 1)"));
    }
}
