//! How large gradients are from the first layer of the network to its last.

use std::collections::BTreeMap;

use candle_core::{Result, Var};
use ssl_backbones::BackboneConfig;

/// The layer of each parameter of the network that is trained.
pub(crate) struct Depth {
    layers: BTreeMap<String, usize>,
    count: usize,
}

impl Depth {
    /// Of those `trainable` that belong to the network `backbone`, whose names say so.
    pub(crate) fn new(backbone: &BackboneConfig, trainable: &[(String, Var)]) -> Result<Self> {
        let mut after = BTreeMap::new();
        for (name, _) in trainable {
            if let Some((_, own)) = name.split_once("backbone.") {
                after.insert(name.clone(), backbone.layers_after(own)?);
            }
        }
        let last = after.values().copied().max().unwrap_or(0);
        let layers: BTreeMap<_, _> = after.into_iter().map(|(name, after)| (name, last - after)).collect();
        let count = layers.values().max().map_or(0, |layer| layer + 1);
        Ok(Self { layers, count })
    }

    /// L2 norms over the gradients of each layer, the layer at the input first, from the squared norms of each gradient.
    pub(crate) fn norms(&self, squares: &[(&str, f64)]) -> Vec<f64> {
        let mut sums = vec![0.0; self.count];
        for (name, square) in squares {
            if let Some(layer) = self.layers.get(*name) {
                sums[*layer] += square;
            }
        }
        sums.into_iter().map(f64::sqrt).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::{Init, Params};

    use super::*;

    #[test]
    fn norms_are_those_of_layers_from_the_input_on() {
        let backbone = BackboneConfig::named("resnet18").unwrap();
        let params = Params::new(0, DType::F32, &Device::Cpu);
        backbone.build(&params.root().pp("online").pp("backbone")).unwrap();
        params.root().pp("projector").trainable("weight", (2, 2), Init::Const(1.0)).unwrap();
        let depth = Depth::new(&backbone, &params.trainable()).unwrap();
        let squares = [
            ("online.backbone.conv1.weight", 9.0),
            ("online.backbone.bn1.weight", 16.0),
            ("online.backbone.layer4.0.conv1.weight", 4.0),
            ("projector.weight", 100.0),
        ];
        assert_eq!(depth.norms(&squares), [5.0, 0.0, 0.0, 0.0, 2.0]);
    }
}
