//! Randomness as a function of coordinates instead of a stream.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// The generator returned by [`rng`]: ChaCha with 8 rounds.
pub type Rng = ChaCha8Rng;

/// What a random number is for. Two purposes never share numbers, whatever their other coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// The order of the images within an epoch.
    Shuffle = 2,
    /// Augmentation of one view of one image.
    Augment = 3,
    /// Splits of a data set into parts.
    Split = 4,
    /// Elements that a dropout sets to 0.
    Dropout = 5,
    /// Samples that a residual branch leaves out.
    DropPath = 6,
    /// Which samples share the statistics of a split batch norm.
    ShuffleBatchNorm = 7,
    /// Views of a pass over all images between two steps.
    Pass = 8,
    /// Labels that images have before any are found.
    Labels = 9,
    /// Patches that a method hides.
    Mask = 10,
    /// Which of its texts an image is shown with.
    Caption = 11,
    /// Views of the images whose features are measured during a run.
    Measure = 12,
    /// Which samples an evaluation chooses.
    Evaluate = 13,
}

/// The generator at the coordinates `(seed, purpose, epoch, sample, view)`.
///
/// A run that draws all its randomness from here does not depend on the number of threads, nor on where it was
/// interrupted: whoever knows the coordinates knows the numbers. Coordinates that a purpose does not need are 0.
///
/// ```
/// use rand_core::RngCore;
/// use ssl_nn::{Purpose, rng};
///
/// let draw = |view| rng(42, Purpose::Augment, 3, 17, view).next_u64();
/// assert_eq!(draw(0), draw(0));
/// assert_ne!(draw(0), draw(1));
/// ```
pub fn rng(seed: u64, purpose: Purpose, epoch: u64, sample: u64, view: u32) -> Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&sample.to_le_bytes());
    key[24..28].copy_from_slice(&view.to_le_bytes());
    key[28..].copy_from_slice(&(purpose as u32).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A random order of `0..n`, by Fisher and Yates from the end; takes `n − 1` numbers of 64 bits.
///
/// ```
/// use ssl_nn::{Purpose, permutation, rng};
///
/// let mut order = permutation(&mut rng(0, Purpose::ShuffleBatchNorm, 0, 0, 0), 5);
/// order.sort();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// ```
pub fn permutation(rng: &mut Rng, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..order.len()).rev() {
        // The product's upper half is in 0..=last, uniform but for a share of n / 2^64.
        let product = u128::from(rng.next_u64()) * (last as u128 + 1);
        order.swap(last, (product >> 64) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        let mut rng = rng(1, Purpose::ShuffleBatchNorm, 0, 0, 0);
        for _ in 0..24_000 {
            *counts.entry(permutation(&mut rng, 4)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // Five standard deviations of a binomial count.
        assert!(counts.values().all(|count| count.abs_diff(1000) < 160), "{counts:?}");
    }

    #[test]
    fn every_coordinate_counts() {
        let first = |mut rng: Rng| rng.next_u64();
        let draws = [
            first(rng(0, Purpose::Augment, 0, 0, 0)),
            first(rng(1, Purpose::Augment, 0, 0, 0)),
            first(rng(0, Purpose::Shuffle, 0, 0, 0)),
            first(rng(0, Purpose::Augment, 1, 0, 0)),
            first(rng(0, Purpose::Augment, 0, 1, 0)),
            first(rng(0, Purpose::Augment, 0, 0, 1)),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[i + 1..].iter().all(|b| a != b), "draw {i} is repeated");
        }
    }

    #[test]
    fn the_numbers_are_fixed_for_ever() {
        // A change of these values would make every old checkpoint resume differently.
        let mut rng = rng(2026, Purpose::Init, 1, 2, 3);
        assert_eq!([rng.next_u32(), rng.next_u32()], [557759452, 3777138513]);
    }
}
