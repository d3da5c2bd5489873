//! Random changes of brightness, contrast, saturation and hue, in random order.

use rand_core::RngCore;

use crate::enhance::{adjust_brightness, adjust_contrast, adjust_saturation};
use crate::error::{self, Error, Result};
use crate::hue::adjust_hue;
use crate::image::Image;
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// How strongly colours are changed; the default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ColorJitterConfig {
    /// Probability in [0, 1] that any change is made.
    pub p: f64,
    /// Factors are of `[max(0, 1 - brightness), 1 + brightness]`; at least 0, and 0 leaves the brightness out.
    pub brightness: f64,
    /// As `brightness`.
    pub contrast: f64,
    /// As `brightness`.
    pub saturation: f64,
    /// Turns are of `[-hue, hue]` full circles; in [0, 0.5], and 0 leaves the hue out.
    pub hue: f64,
}

/// torchvision's `ColorJitter`, applied with a probability.
///
/// Draws one [`random::chance`]; then, if it is applied, what [`ColorJitter::draw`] draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    config: ColorJitterConfig,
}

/// One of the four changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// [`adjust_brightness`].
    Brightness,
    /// [`adjust_contrast`].
    Contrast,
    /// [`adjust_saturation`].
    Saturation,
    /// [`adjust_hue`].
    Hue,
}

/// The four changes, in the order of application, each with its factor (turns for the hue).
///
/// `None` leaves a change out, which is not the same as a factor of 1 or 0 turns: on `u8` the way to HSV and back
/// rounds.
pub type Adjustments = [(Adjustment, Option<f64>); 4];

impl ColorJitter {
    /// Checks the ranges.
    ///
    /// # Errors
    /// If `p` is outside [0, 1], a strength is negative or not finite, or `hue` is above 0.5.
    pub fn new(config: ColorJitterConfig) -> Result<Self> {
        error::check_probability("jitter.p", config.p)?;
        let strengths = [
            ("jitter.brightness", config.brightness),
            ("jitter.contrast", config.contrast),
            ("jitter.saturation", config.saturation),
        ];
        for (field, value) in strengths {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::parameter(field, value, "finite and at least 0"));
            }
        }
        if !(0.0..=0.5).contains(&config.hue) {
            return Err(Error::parameter("jitter.hue", config.hue, "in [0, 0.5]"));
        }
        Ok(Self { config })
    }

    /// Draws the order by [`random::shuffle`], then brightness, contrast, saturation and hue by [`random::uniform`],
    /// without those of strength 0.
    pub fn draw(&self, rng: &mut dyn RngCore) -> Adjustments {
        use Adjustment::{Brightness, Contrast, Hue, Saturation};
        let ColorJitterConfig { brightness, contrast, saturation, hue, .. } = self.config;
        let mut order = [0, 1, 2, 3];
        random::shuffle(rng, &mut order);
        let mut factor =
            |strength: f64, low: f64, high: f64| (strength > 0.0).then(|| random::uniform(rng, [low, high]));
        let drawn = [
            (Brightness, factor(brightness, (1.0 - brightness).max(0.0), 1.0 + brightness)),
            (Contrast, factor(contrast, (1.0 - contrast).max(0.0), 1.0 + contrast)),
            (Saturation, factor(saturation, (1.0 - saturation).max(0.0), 1.0 + saturation)),
            (Hue, factor(hue, -hue, hue)),
        ];
        order.map(|i: usize| drawn[i])
    }
}

impl<S: Sample> Transform<S> for ColorJitter {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if random::chance(rng, self.config.p) { adjust(image, &self.draw(rng)) } else { image }
    }
}

/// Applies the changes one after the other, each clamped (and on `u8` rounded).
pub fn adjust<S: Sample>(image: Image<S>, adjustments: &Adjustments) -> Image<S> {
    adjustments.iter().fold(image, |image, &(adjustment, factor)| match (adjustment, factor) {
        (_, None) => image,
        (Adjustment::Brightness, Some(factor)) => adjust_brightness(image, factor),
        (Adjustment::Contrast, Some(factor)) => adjust_contrast(image, factor),
        (Adjustment::Saturation, Some(factor)) => adjust_saturation(image, factor),
        (Adjustment::Hue, Some(turns)) => adjust_hue(image, turns),
    })
}
