//! One view of an image: its configuration, and the operations built from it.

use rand_core::RngCore;

use crate::color_jitter::{ColorJitter, ColorJitterConfig};
use crate::error::{Error, Result};
use crate::flip::HorizontalFlip;
use crate::gaussian_blur::GaussianBlur;
use crate::grayscale::Grayscale;
use crate::image::Image;
use crate::random_resized_crop::RandomResizedCrop;
use crate::resize::Interpolation;
use crate::resolution::Resolution;
use crate::sample::Sample;
use crate::solarize::Solarize;
use crate::transform::Transform;

/// One of the operations that make a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Operation {
    /// [`RandomResizedCrop`].
    Crop,
    /// [`HorizontalFlip`].
    Flip,
    /// [`ColorJitter`].
    Jitter,
    /// [`Grayscale`].
    Grayscale,
    /// [`GaussianBlur`].
    Blur,
    /// [`Solarize`].
    Solarize,
}

/// How a view is made. The default crops and flips, and nothing else: the usual augmentation of supervised training.
///
/// # Example
/// ```
/// use ssl_augment::{ColorJitterConfig, ViewConfig};
///
/// let config = ViewConfig { size: 32, grayscale_p: 0.2, ..ViewConfig::default() };
/// assert!(config.validate().is_ok());
///
/// let wrong = ViewConfig { grayscale_p: 1.2, ..config };
/// assert_eq!(wrong.validate().unwrap_err().to_string(), "grayscale_p is 1.2, must be in [0, 1]");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ViewConfig {
    /// Side of the view in pixels, in 1..=16384.
    pub size: usize,
    /// How many such views of each image, at least 1.
    pub copies: usize,
    /// Range of the crop's share of the image's area, in (0, 1].
    pub crop_scale: [f64; 2],
    /// Range of the crop's width / height, in (0, 1000].
    pub crop_ratio: [f64; 2],
    /// How the crop is resized.
    pub interpolation: Interpolation,
    /// Probability of a mirror image.
    pub flip_p: f64,
    /// Changes of colour.
    pub jitter: ColorJitterConfig,
    /// Probability of a grey view.
    pub grayscale_p: f64,
    /// Probability of blur.
    pub blur_p: f64,
    /// Range of the blur's standard deviation in pixels, in (0, 1000].
    pub blur_sigma: [f64; 2],
    /// Probability of solarisation.
    pub solarize_p: f64,
    /// 8-bit level from which samples are inverted.
    pub solarize_threshold: u8,
    /// The operations in the order of application: the crop once, the others at most once, and each that has a
    /// probability above 0.
    pub order: Vec<Operation>,
}

impl Default for ViewConfig {
    fn default() -> Self {
        use Operation::{Blur, Crop, Flip, Grayscale, Jitter, Solarize};
        Self {
            size: 224,
            copies: 1,
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bilinear,
            flip_p: 0.5,
            jitter: ColorJitterConfig::default(),
            grayscale_p: 0.0,
            blur_p: 0.0,
            blur_sigma: [0.1, 2.0],
            solarize_p: 0.0,
            solarize_threshold: 128,
            order: vec![Crop, Flip, Jitter, Grayscale, Blur, Solarize],
        }
    }
}

impl ViewConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field out of range, its value and the range.
    pub fn validate(&self) -> Result<()> {
        self.build().map(drop)
    }

    /// The view itself.
    ///
    /// # Errors
    /// As [`ViewConfig::validate`].
    pub fn build(&self) -> Result<View> {
        if self.copies == 0 {
            return Err(Error::parameter("copies", self.copies, "at least 1"));
        }
        self.check_order()?;
        Ok(View {
            crop: RandomResizedCrop::new(self.size, self.crop_scale, self.crop_ratio, self.interpolation)?,
            flip: HorizontalFlip::new(self.flip_p)?,
            jitter: ColorJitter::new(self.jitter)?,
            grayscale: Grayscale::new(self.grayscale_p)?,
            blur: GaussianBlur::new(self.blur_p, self.blur_sigma)?,
            solarize: Solarize::new(self.solarize_p, self.solarize_threshold)?,
            order: self.order.clone(),
        })
    }

    fn check_order(&self) -> Result<()> {
        let probabilities = [
            (Operation::Crop, 1.0),
            (Operation::Flip, self.flip_p),
            (Operation::Jitter, self.jitter.p),
            (Operation::Grayscale, self.grayscale_p),
            (Operation::Blur, self.blur_p),
            (Operation::Solarize, self.solarize_p),
        ];
        for (operation, p) in probabilities {
            let count = self.order.iter().filter(|&&other| other == operation).count();
            if 1 < count || (count == 0 && p > 0.0) {
                let value = format_args!("{:?} with {count} times {operation:?}", self.order);
                let allowed = "a list of crop and every operation with a probability above 0, each once";
                return Err(Error::parameter("order", value, allowed));
            }
        }
        Ok(())
    }
}

/// The operations of one view, ready to be applied. Made by [`ViewConfig::build`].
///
/// Draws what its operations draw, in their order. An operation in the order draws even if its probability is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    crop: RandomResizedCrop,
    flip: HorizontalFlip,
    jitter: ColorJitter,
    grayscale: Grayscale,
    blur: GaussianBlur,
    solarize: Solarize,
    order: Vec<Operation>,
}

impl View {
    /// Side of the view in pixels.
    pub fn size(&self) -> usize {
        self.crop.size()
    }

    /// What an image needs so that the crop is never enlarged.
    pub fn resolution(&self) -> Resolution {
        self.crop.resolution()
    }

    /// Makes a view; where the crop comes first, pixels outside it are neither read nor copied, and a flip right after it
    /// costs nothing.
    pub fn view<S: Sample>(&self, image: &Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        match self.order.as_slice() {
            [Operation::Crop, Operation::Flip, rest @ ..] => {
                self.run(rest, self.crop.crop_and_flip(self.flip, image, rng), rng)
            }
            [Operation::Crop, rest @ ..] => self.run(rest, self.crop.crop(image, rng), rng),
            _ => self.run(&self.order, image.clone(), rng),
        }
    }

    fn run<S: Sample>(&self, order: &[Operation], image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        order.iter().fold(image, |image, operation| match operation {
            Operation::Crop => self.crop.apply(image, rng),
            Operation::Flip => self.flip.apply(image, rng),
            Operation::Jitter => self.jitter.apply(image, rng),
            Operation::Grayscale => self.grayscale.apply(image, rng),
            Operation::Blur => self.blur.apply(image, rng),
            Operation::Solarize => self.solarize.apply(image, rng),
        })
    }
}

impl<S: Sample> Transform<S> for View {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        self.run(&self.order, image, rng)
    }
}
