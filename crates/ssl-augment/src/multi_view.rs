//! Several views of one image.

use rand_core::RngCore;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::resolution::Resolution;
use crate::sample::Sample;
use crate::view::{View, ViewConfig};

/// All views of an image, in the order of their configurations.
///
/// # Example
/// ```
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
/// use ssl_augment::{Image, MultiView, presets};
///
/// let views = MultiView::new(&presets::swav(224))?;
/// assert_eq!(views.len(), 8);
/// assert_eq!(views.sizes(), [224, 224, 96, 96, 96, 96, 96, 96]);
///
/// let image = Image::new(320, 240, vec![128u8; 320 * 240 * 3])?;
/// let images = views.views(&image, |view| ChaCha8Rng::seed_from_u64(view as u64));
/// assert_eq!(images[7].width(), 96);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MultiView {
    views: Vec<View>,
}

impl MultiView {
    /// `copies` views of each configuration.
    ///
    /// # Errors
    /// If there is no configuration, there are more than 1024 views, or a field is out of range.
    pub fn new(configs: &[ViewConfig]) -> Result<Self> {
        let n_views = configs.iter().fold(0_usize, |sum, config| sum.saturating_add(config.copies));
        if configs.is_empty() || 1024 < n_views {
            return Err(Error::parameter("views", n_views, "in 1..=1024"));
        }
        let mut views = Vec::with_capacity(n_views);
        for config in configs {
            let view = config.build()?;
            views.extend(std::iter::repeat_n(view, config.copies));
        }
        Ok(Self { views })
    }

    /// Number of views of each image: the sum of all copies.
    pub fn len(&self) -> usize {
        self.views.len()
    }

    /// Always false: there is at least one view.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Side of each view in pixels.
    pub fn sizes(&self) -> Vec<usize> {
        self.views.iter().map(View::size).collect()
    }

    /// What an image needs so that no crop of any view is enlarged.
    pub fn resolution(&self) -> Resolution {
        self.views.iter().map(View::resolution).fold(Resolution::default(), Resolution::max)
    }

    /// Makes all views. The generator of view `i` is `rng(i)`, so that no view depends on another.
    pub fn views<S: Sample, R: RngCore>(&self, image: &Image<S>, rng: impl Fn(usize) -> R) -> Vec<Image<S>> {
        self.views.iter().enumerate().map(|(i, view)| view.view(image, &mut rng(i))).collect()
    }
}
