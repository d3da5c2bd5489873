//! What every operation on images has in common.

use std::fmt::Debug;

use rand_core::RngCore;

use crate::image::Image;
use crate::sample::Sample;

/// An operation on images, possibly random.
///
/// All randomness comes from `rng`, and each transform documents what it draws. It never fails: bad parameters are
/// refused by the constructors. The image is taken by value, so that work in place needs no copy.
pub trait Transform<S: Sample = u8>: Send + Sync + Debug {
    /// Applies the operation.
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S>;
}
