//! What all backbones share, and how one is chosen by name.

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_nn::Scope;

use crate::resnet::{ResNetConfig, Stem};

/// A network from images to one vector each.
pub trait Backbone: Send + Sync {
    /// Width of the embedding.
    fn embed_dim(&self) -> usize;

    /// `(B, 3, H, W)` to `(B, embed_dim)`. With `train`, batch norms use and track the batch's statistics.
    ///
    /// # Errors
    /// If `x` is not of that shape, or too small for the network.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor>;
}

/// An architecture by name with the settings that a recipe may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// One of [`BackboneConfig::NAMES`].
    pub name: String,
    /// First layers: `imagenet` for large images, `cifar` for images up to about 64 pixels.
    pub stem: Stem,
    /// Channels of the first stage; the published networks have 64.
    pub width: usize,
    /// Start every residual branch as zero (Goyal et al., 2017), as SimCLR does.
    pub zero_init_residual: bool,
}

impl BackboneConfig {
    /// The architectures that can be built.
    pub const NAMES: [&'static str; 3] = ["resnet18", "resnet34", "resnet50"];

    /// The published network `name`: ImageNet stem, width 64.
    ///
    /// # Errors
    /// If there is no such network; the message lists those there are.
    pub fn named(name: &str) -> Result<Self> {
        let config =
            Self { name: name.to_owned(), stem: Stem::ImageNet, width: 64, zero_init_residual: false };
        config.resnet().map(|_| config)
    }

    /// Creates the parameters in `scope` and returns the network.
    ///
    /// # Errors
    /// If the name is unknown, the width is 0, or a parameter's name is taken.
    pub fn build(&self, scope: &Scope) -> Result<Box<dyn Backbone>> {
        Ok(Box::new(self.resnet()?.build(scope)?))
    }

    /// Width of the embedding, without building the network.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn embed_dim(&self) -> Result<usize> {
        Ok(self.resnet()?.embed_dim())
    }

    fn resnet(&self) -> Result<ResNetConfig> {
        let base = match self.name.as_str() {
            "resnet18" => ResNetConfig::resnet18(),
            "resnet34" => ResNetConfig::resnet34(),
            "resnet50" => ResNetConfig::resnet50(),
            name => bail!("unknown backbone `{name}`; available: {}", Self::NAMES.join(", ")),
        };
        Ok(ResNetConfig {
            stem: self.stem,
            width: self.width,
            zero_init_residual: self.zero_init_residual,
            ..base
        })
    }
}
