//! How many pixels an image needs so that its views are made by shrinking alone.

/// The resolution that views need of an image: with less, a crop would have to be enlarged.
///
/// Whoever reads a larger image may reduce it down to this before views are made of it, at the price of a little sharpness.
/// Asked of [`MultiView::resolution`](crate::MultiView::resolution) and
/// [`ResizeCenterCrop::resolution`](crate::ResizeCenterCrop::resolution).
///
/// # Example
/// ```
/// use ssl_augment::{MultiView, presets};
///
/// let needed = MultiView::new(&presets::simclr(224, 1.0))?.resolution();
/// assert!(needed.is_met_by(4000, 3000));
/// assert!(needed.is_met_by(2000, 1500));
/// // The smallest crop, 8 % of the area and 3:4, would be 212 pixels wide.
/// assert!(!needed.is_met_by(1000, 750));
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Width times height in pixels.
    pub pixels: u64,
    /// The shorter side in pixels.
    pub shorter_side: u64,
}

impl Resolution {
    /// Whether an image of `width` x `height` pixels has this resolution or more.
    pub fn is_met_by(self, width: u64, height: u64) -> bool {
        self.shorter_side <= width.min(height) && self.pixels <= width.saturating_mul(height)
    }

    /// What `self` and `other` need together.
    pub fn max(self, other: Self) -> Self {
        Self {
            pixels: self.pixels.max(other.pixels),
            shorter_side: self.shorter_side.max(other.shorter_side),
        }
    }
}
