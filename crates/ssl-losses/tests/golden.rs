//! The losses of masked images against whole models of transformers (`tests/golden/README.md`): from the images, masks and
//! predictions of a reference to its targets and its loss.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ssl_losses::{mae, normalize_patches, patchify, simmim, unpatchify};

/// The tensors of a case, in f64.
fn case(name: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/backbones"));
    let path = folder.join(format!("{name}.safetensors"));
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F64).unwrap())).collect()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn mae_has_the_patches_and_the_loss_of_the_reference() {
    for (name, normalized) in [("vit_mae", false), ("vit_mae_normpix", true)] {
        let case = case(name);
        let patches = patchify(&case["in.x"], 8).unwrap();
        // The file has the plain patches in both cases, rounded to f32.
        assert!(worst(&patches, &case["out.patches"]) < 1e-6, "{name}");
        assert_eq!(worst(&unpatchify(&patches, 8, (4, 4)).unwrap(), &case["in.x"]), 0.0);
        let target = if normalized { normalize_patches(&patches).unwrap() } else { patches };
        let loss = mae(&case["out.logits"], &target, &case["out.mask"]).unwrap();
        assert!(worst(&loss, &case["out.loss"]) < 1e-6, "{name}: {loss}");
    }
}

#[test]
fn simmim_has_the_loss_of_the_reference() {
    for (name, grid) in [("simmim_vit", 4), ("simmim_swin", 16)] {
        let case = case(name);
        let mask = case["in.mask"].reshape((2, grid, grid)).unwrap();
        let loss = simmim(&case["out.reconstruction"], &case["in.x"], &mask).unwrap();
        assert!(worst(&loss, &case["out.loss"]) < 1e-6, "{name}: {loss}");
    }
}
