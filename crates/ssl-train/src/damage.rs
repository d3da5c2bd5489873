//! Simple damages of images, to see what an encoder makes of them.

use ssl_augment::{Image, adjust_brightness, adjust_contrast, gaussian_blur, random};
use ssl_nn::Rng;

/// How an image is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    Noise,
    Blur,
    Darker,
    Brighter,
    LessContrast,
}

impl Damage {
    pub(crate) const ALL: [Self; 5] =
        [Self::Noise, Self::Blur, Self::Darker, Self::Brighter, Self::LessContrast];

    /// The strengths there are.
    pub(crate) const STRENGTHS: [u32; 3] = [1, 2, 3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Blur => "blur",
            Self::Darker => "darker",
            Self::Brighter => "brighter",
            Self::LessContrast => "less contrast",
        }
    }

    /// The image with this damage at one of the strengths: noise of deviation 12, 24 or 36 of 255; blur of 0.4, 0.8 or 1.2
    /// pixels; brightness times 0.8, 0.6 or 0.4, or 1.4, 1.8 or 2.2; contrast times 0.75, 0.5 or 0.25.
    pub(crate) fn apply(self, mut image: Image, strength: u32, rng: &mut Rng) -> Image {
        let strength = f64::from(strength);
        match self {
            Self::Noise => {
                for value in image.data_mut() {
                    let noisy = f64::from(*value) + 12.0 * strength * random::normal(rng);
                    *value = noisy.round().clamp(0.0, 255.0) as u8;
                }
                image
            }
            Self::Blur => gaussian_blur(image, 0.4 * strength),
            Self::Darker => adjust_brightness(image, 1.0 - 0.2 * strength),
            Self::Brighter => adjust_brightness(image, 1.0 + 0.4 * strength),
            Self::LessContrast => adjust_contrast(image, 1.0 - 0.25 * strength),
        }
    }
}

#[cfg(test)]
mod tests {
    use ssl_nn::{Purpose, rng};

    use super::*;

    #[test]
    fn every_damage_changes_an_image_and_more_the_stronger_it_is() {
        let levels = (0..3 * 16 * 16).map(|at| (at / 3 * 37 % 151 + 20) as u8);
        let image: Image = Image::new(16, 16, levels.collect()).unwrap();
        for damage in Damage::ALL {
            let changes = Damage::STRENGTHS.map(|strength| {
                let mut rng = rng(0, Purpose::Evaluate, 0, 0, 0);
                let damaged = damage.apply(image.clone(), strength, &mut rng);
                let difference = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b));
                image.data().iter().zip(damaged.data()).map(difference).sum::<u64>()
            });
            assert!(
                0 < changes[0] && changes[0] < changes[1] && changes[1] < changes[2],
                "{damage:?}: {changes:?}"
            );
        }
    }
}
