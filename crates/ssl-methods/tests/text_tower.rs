//! The text tower of CLIP against that of transformers.

// The lints take only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ssl_methods::{TextTower, TextTowerConfig};
use ssl_nn::Params;

/// Asserts that `ours` is `theirs` but for rounding in float64.
#[track_caller]
fn assert_close(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{name}");
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for (a, b) in values(ours).iter().zip(values(theirs)) {
        assert!((a - b).abs() <= 1e-10 * (1.0 + b.abs()), "{name}: {a}, expected {b}");
    }
}

#[test]
fn values_and_gradients_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/text/clip_text_tower.safetensors");
    let golden: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect();
    let of = |prefix: &'static str| {
        golden
            .iter()
            .filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
    };
    let params = Params::new(0, DType::F64, &Device::Cpu);
    let config =
        TextTowerConfig { vocabulary: 40, context: 12, width: 16, layers: 2, heads: 4, embed_dim: 10 };
    let tower = TextTower::new(&config, &params.root()).unwrap();
    // The names are the same on both sides.
    params.load(&of("weight.").collect()).unwrap();
    let out = tower.forward(&golden["in.ids"]).unwrap();
    assert_close("the embeddings", &out, &golden["out"]);
    let gradients = (out * &golden["pattern"]).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(of("grad.").count(), params.trainable().len());
    for (name, expected) in of("grad.") {
        let ours = gradients.get(&params.get(&name).unwrap()).unwrap();
        assert_close(&name, ours, &expected);
    }
}
