//! What the tests of all methods share.

use candle_core::{DType, Device, Tensor};
use ssl_backbones::{BackboneConfig, Stem, VitOptions};
use ssl_nn::Params;

use crate::config::TrainingData;
use crate::method::{Batch, Method, StepContext};

/// A step at the beginning of a run.
pub(crate) const CONTEXT: StepContext =
    StepContext { step: 0, total_steps: 10, steps_per_epoch: 5, part: 0, seed: 3 };

/// An empty store.
pub(crate) fn params() -> Params {
    Params::new(11, DType::F32, &Device::Cpu)
}

/// A ResNet-18 of width 4 for small images.
pub(crate) fn resnet() -> BackboneConfig {
    BackboneConfig { stem: Some(Stem::Cifar), width: Some(4), ..BackboneConfig::named("resnet18").unwrap() }
}

/// A vision transformer of 2 blocks of width 64 for images of 8 x 8 pixels, which are 4 x 4 patches.
pub(crate) fn vit(options: VitOptions) -> BackboneConfig {
    BackboneConfig {
        image_size: Some(8),
        patch_size: Some(2),
        width: Some(64),
        depth: Some(2),
        vit: Some(options),
        ..BackboneConfig::named("vit_tiny").unwrap()
    }
}

/// A Swin Transformer of two stages, of 2 blocks and of 1, for images of 8 x 8 pixels, which are 4 x 4 patches in windows
/// of 2 x 2.
pub(crate) fn swin() -> BackboneConfig {
    BackboneConfig {
        image_size: Some(8),
        patch_size: Some(2),
        width: Some(32),
        depths: Some(vec![2, 1]),
        window: Some(2),
        ..BackboneConfig::named("swin_tiny").unwrap()
    }
}

/// So many images with values from -2 to 2.
pub(crate) fn data(images: usize) -> TrainingData {
    TrainingData { images, mean: [0.5; 3], std: [0.25; 3] }
}

/// The batch with its images in another order.
pub(crate) fn permuted(batch: &Batch) -> Batch {
    let order: Vec<usize> = (0..batch.index.len()).rev().collect();
    let rows: Vec<u32> = order.iter().map(|i| *i as u32).collect();
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    let views = batch.views.iter().map(|view| view.index_select(&rows, 0).unwrap()).collect();
    Batch { views, index: order.iter().map(|i| batch.index[*i]).collect(), text: None }
}

/// A batch of `views` views of 8 x 8 pixels of `n` images.
pub(crate) fn images(views: usize, n: usize) -> Batch {
    batch(&vec![8; views], n)
}

/// A batch of views of these sizes of `n` images, with pixels without a pattern.
pub(crate) fn batch(sizes: &[usize], n: usize) -> Batch {
    let view = |(salt, &size): (usize, &usize)| {
        let pixel = |i: usize| ((i * 7919 + 13 * salt) % 251) as f32 / 125.0 - 1.0;
        let data: Vec<f32> = (0..n * 3 * size * size).map(pixel).collect();
        Tensor::from_vec(data, (n, 3, size, size), &Device::Cpu).unwrap()
    };
    Batch { views: sizes.iter().enumerate().map(view).collect(), index: (0..n).collect(), text: None }
}

/// Asserts that a backward pass gives every trainable parameter a finite, non-zero gradient, except those whose names
/// begin with one of `without`, which get none, as no buffer does; and that a second forward pass has the same loss.
pub(crate) fn assert_gradients_reach(method: &dyn Method, params: &Params, batch: &Batch, without: &[&str]) {
    let loss = method.loss(batch, &CONTEXT).unwrap().loss;
    let grads = loss.backward().unwrap();
    for (name, var) in params.trainable() {
        let grad = grads.get(&var);
        if without.iter().any(|prefix| name.starts_with(prefix)) {
            assert!(grad.is_none(), "{name} has a gradient");
            continue;
        }
        let grad = grad.unwrap_or_else(|| panic!("{name} has no gradient"));
        let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
    }
    assert!(params.buffers().iter().all(|(_, var)| grads.get(var).is_none()));
    let again = method.loss(batch, &CONTEXT).unwrap().loss;
    assert_eq!(loss.to_scalar::<f32>().unwrap(), again.to_scalar::<f32>().unwrap());
}

/// Asserts that the loss of two views changes neither with their order nor with that of the images, and returns it.
pub(crate) fn assert_order_does_not_matter(method: &dyn Method) -> f32 {
    let loss = |batch: &Batch| method.loss(batch, &CONTEXT).unwrap().loss.to_scalar::<f32>().unwrap();
    let batch = images(2, 6);
    let reversed = Batch { views: batch.views.iter().rev().cloned().collect(), ..batch.clone() };
    let order = Tensor::new(&[3u32, 0, 5, 1, 4, 2], &Device::Cpu).unwrap();
    let views = batch.views.iter().map(|view| view.index_select(&order, 0).unwrap()).collect();
    let value = loss(&batch);
    for other in [reversed, Batch { views, ..batch.clone() }] {
        let difference = (value - loss(&other)).abs();
        assert!(difference < 1e-5 * (1.0 + value.abs()), "{value} differs by {difference}");
    }
    value
}
