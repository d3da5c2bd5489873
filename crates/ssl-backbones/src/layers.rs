//! How far a parameter is from the end of its network, for learning rates that fall from the last layers to the first.

use crate::backbone::BackboneConfig;

/// Stages of a residual network.
const STAGES: usize = 4;

impl BackboneConfig {
    /// Layers from the parameter `name` of this network to its end: 0 of a vision transformer's last norm, 1 of its last
    /// block or of a residual network's last stage, and one more than all of these of what comes before the first. Bao et
    /// al., 2021 (<https://arxiv.org/abs/2106.08254>) count so for vision transformers, and SimMIM's code for Swin, where
    /// what joins the tokens of two stages counts as the last block before it.
    ///
    /// # Errors
    /// If the network cannot be built.
    ///
    /// # Example
    /// ```
    /// use ssl_backbones::BackboneConfig;
    ///
    /// let vit = BackboneConfig::named("vit_tiny")?;
    /// assert_eq!(vit.layers_after("blocks.11.mlp.fc1.weight")?, 1);
    /// assert_eq!(vit.layers_after("patch_embed.proj.weight")?, 13);
    /// let resnet = BackboneConfig::named("resnet18")?;
    /// assert_eq!(resnet.layers_after("layer4.0.conv1.weight")?, 1);
    /// assert_eq!(resnet.layers_after("conv1.weight")?, 5);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn layers_after(&self, name: &str) -> candle_core::Result<usize> {
        if let Ok(vit) = self.vision_transformer() {
            return Ok(layers_after_token(name, vit.depth));
        }
        if let Ok(swin) = self.swin_transformer() {
            return Ok(layers_after_window(name, &swin.depths));
        }
        self.validate().map_err(candle_core::Error::Msg)?;
        let stage = name.strip_prefix("layer").or_else(|| name.strip_prefix("trunk_output.block"));
        Ok(STAGES + 1 - number(stage).unwrap_or(0).min(STAGES))
    }
}

/// [`BackboneConfig::layers_after`] of a vision transformer with `depth` blocks.
pub fn layers_after_token(name: &str, depth: usize) -> usize {
    match number(name.strip_prefix("blocks.")) {
        Some(block) => depth.saturating_sub(block),
        None if name.starts_with("norm.") || name.starts_with("fc_norm.") => 0,
        None => depth + 1,
    }
}

/// [`BackboneConfig::layers_after`] of a Swin Transformer with so many blocks in its stages.
fn layers_after_window(name: &str, depths: &[usize]) -> usize {
    let all: usize = depths.iter().sum();
    let Some(rest) = name.strip_prefix("layers.") else {
        return if name.starts_with("norm.") { 0 } else { all + 1 };
    };
    let before: usize = depths.iter().take(number(Some(rest)).unwrap_or(0)).sum();
    let block = rest.split_once('.').and_then(|(_, rest)| number(rest.strip_prefix("blocks.")));
    (all + 1).saturating_sub(before + block.map_or(0, |block| block + 1))
}

/// The number that a name begins with.
fn number(rest: Option<&str>) -> Option<usize> {
    rest?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;

    #[test]
    fn every_parameter_of_every_kind_of_network_has_its_place() {
        for (name, layers) in [("resnet18", 5), ("regnet_y_400mf", 5), ("vit_tiny", 13), ("swin_tiny", 13)] {
            let config = BackboneConfig::named(name).unwrap();
            let params = Params::new(0, DType::F32, &Device::Cpu);
            config.build(&params.root()).unwrap();
            let trainable = params.trainable();
            let places: Vec<usize> =
                trainable.iter().map(|(name, _)| config.layers_after(name).unwrap()).collect();
            let least = if name.ends_with("_tiny") { 0 } else { 1 };
            let (low, high) = (places.iter().min().copied(), places.iter().max().copied());
            assert_eq!((low, high), (Some(least), Some(layers)), "{name}");
            assert!((least..=layers).all(|layer| places.contains(&layer)), "{name}: {places:?}");
        }
    }
}
