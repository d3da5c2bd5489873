//! Features from batches, with a backbone that is only a mean.

use std::sync::Mutex;

use candle_core::{D, DType, Device, Tensor, Var};
use ssl_backbones::Backbone;
use ssl_eval::{Error, extract, raw_pixels};

type Batch = candle_core::Result<(Tensor, Vec<u32>)>;

/// The mean of each channel times a trainable factor; remembers in which mode it ran.
struct ChannelMeans {
    factor: Var,
    modes: Mutex<Vec<bool>>,
}

impl ChannelMeans {
    fn new(factor: f32) -> Self {
        Self { factor: Var::new(factor, &Device::Cpu).unwrap(), modes: Mutex::default() }
    }
}

impl Backbone for ChannelMeans {
    fn embed_dim(&self) -> usize {
        3
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        self.modes.lock().unwrap().push(train);
        x.flatten_from(2)?.mean(D::Minus1)?.broadcast_mul(&self.factor)
    }
}

/// Images of 2 × 2 pixels, each channel of one value.
fn batch(images: &[[f32; 3]], labels: &[u32]) -> Batch {
    let values = images.iter().flatten().flat_map(|&value| [value; 4]).collect();
    Ok((Tensor::from_vec(values, (images.len(), 3, 2, 2), &Device::Cpu)?, labels.to_vec()))
}

#[test]
fn batches_are_joined_in_eval_mode() {
    let backbone = ChannelMeans::new(2.0);
    let batches = [batch(&[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &[3, 1]), batch(&[[7.0, 8.0, 9.0]], &[0])];
    let features = extract(&backbone, batches.into_iter()).unwrap();
    assert_eq!(features.data(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0]);
    assert_eq!((features.dim(), features.labels()), (3, &[3, 1, 0][..]));
    assert_eq!(*backbone.modes.lock().unwrap(), [false, false]);
}

#[test]
fn an_embedding_that_is_not_finite_is_named() {
    let batches = [batch(&[[1.0; 3], [2.0; 3]], &[0, 0]), batch(&[[1.0; 3], [1.0, f32::NAN, 1.0]], &[0, 0])];
    let error = extract(&ChannelMeans::new(1.0), batches.into_iter()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { row: 3, column: 1, .. }), "{error}");
}

#[test]
fn bad_batches_are_refused() {
    let backbone = ChannelMeans::new(1.0);
    assert!(matches!(extract(&backbone, std::iter::empty()), Err(Error::Empty)));
    let error = extract(&backbone, [batch(&[[1.0; 3]], &[0, 1])].into_iter()).unwrap_err();
    assert_eq!(error.to_string(), "number of labels in a batch is 2, expected 1");
    let unread: Batch = Err(candle_core::Error::Msg("a torn page".into()));
    let error = extract(&backbone, [unread].into_iter()).unwrap_err();
    assert!(matches!(error, Error::Candle(_)), "{error}");
    // The mean of five channels has five features, not the three that were promised.
    let wide = Tensor::ones((1, 5, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let error = extract(&backbone, [Ok((wide, vec![0]))].into_iter()).unwrap_err();
    assert_eq!(error.to_string(), "embedding dimension is 5, expected 3");
}

#[test]
fn grey_images_keep_one_channel() {
    let batches = [batch(&[[1.0; 3]], &[0]), batch(&[[2.0; 3]], &[1])];
    let features = raw_pixels(batches.into_iter()).unwrap();
    assert_eq!(features.data(), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    assert_eq!(features.dim(), 4);
}

#[test]
fn one_coloured_image_keeps_the_channels_of_all() {
    let batches = [batch(&[[1.0; 3]], &[0]), batch(&[[2.0, 3.0, 4.0]], &[1]), batch(&[[5.0; 3]], &[2])];
    let features = raw_pixels(batches.into_iter()).unwrap();
    assert_eq!(features.dim(), 12);
    assert_eq!(features.row(0), [1.0; 12]);
    assert_eq!(features.row(1), [2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0]);
    assert_eq!(features.row(2), [5.0; 12]);
}

#[test]
fn images_that_are_not_alike_are_refused() {
    assert!(matches!(raw_pixels(std::iter::empty()), Err(Error::Empty)));
    let image = |channels, size| {
        let pixels = Tensor::ones((1, channels, size, size), DType::F32, &Device::Cpu);
        pixels.map(|pixels| (pixels, vec![0]))
    };
    let error = raw_pixels([image(1, 2)].into_iter()).unwrap_err();
    assert_eq!(error.to_string(), "number of channels is 1, expected 3");
    let error = raw_pixels([image(3, 2), image(3, 4)].into_iter()).unwrap_err();
    assert_eq!(error.to_string(), "number of pixels of an image is 16, expected 4");
}
