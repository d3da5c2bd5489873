//! What a convolution reads: a tensor as it lies, or one that is normalised and rectified on the way.
//!
//! Between two convolutions of a branch stand a batch norm and a ReLU. Written out, their result goes to memory and
//! comes back, in the forward pass and once more for the weight gradient. Here a convolution asks for a few rows at a
//! time and finds them in the cache.

use std::borrow::Cow;
use std::ops::Range;

use crate::channel_norm::ChannelNorm;
use crate::storage::Element;

/// A tensor in channels-last order, and the norm before the ReLU that it goes through first.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a, T> {
    data: &'a [T],
    norm: Option<&'a ChannelNorm<T>>,
}

impl<'a, T: Element> Input<'a, T> {
    /// `data` as it is.
    pub(crate) fn plain(data: &'a [T]) -> Self {
        Self { data, norm: None }
    }

    /// `relu(norm(z))`.
    pub(crate) fn rectified(z: &'a [T], norm: &'a ChannelNorm<T>) -> Self {
        Self { data: z, norm: Some(norm) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements of some whole pixels, for which `room` is there.
    pub(crate) fn part<'b>(&self, elements: Range<usize>, room: &'b mut Vec<T>) -> &'b [T]
    where
        'a: 'b,
    {
        let data = &self.data[elements];
        let Some(norm) = self.norm else { return data };
        room.resize(data.len(), T::ZERO);
        norm.rectify(data, room);
        room
    }

    /// All elements.
    pub(crate) fn whole(&self) -> Cow<'a, [T]> {
        match self.norm {
            Some(norm) => Cow::Owned(norm.apply(self.data, true)),
            None => Cow::Borrowed(self.data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_norm::Statistics;
    use crate::conv2d::Conv2dConfig;
    use crate::convolve::{forward_then, weight_gradient};
    use crate::geometry::Geometry;

    #[test]
    fn a_convolution_reads_the_same_bits_on_the_way_as_from_memory() {
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
        };
        // Several images at a time, some rows of one, many channels, and without Winograd's method.
        for (size, c_out, kernel, padding) in [
            ((5, 16, 6, 7), 24, 3, 1),
            ((2, 64, 40, 33), 16, 3, 1),
            ((1, 16, 64, 64), 16, 3, 3),
            ((9, 256, 7, 5), 272, 3, 0),
            ((2, 24, 5, 5), 32, 1, 0),
        ] {
            let (batch, c, h, w) = size;
            let config = Conv2dConfig { padding, ..Default::default() };
            let g = Geometry::new(size, (c_out, c, kernel, kernel), config).unwrap();
            let z = values(batch * c * h * w, 1);
            let (scale, shift) = (values(c, 2), values(c, 3));
            let norm = ChannelNorm::new(&Statistics::measure(&z, c), 1e-5, &scale, &shift, true);
            let x = norm.apply(&z, true);
            let weight = values(c_out * g.k(), 4);
            let dy = values(batch * g.output_len(), 5);
            let passes =
                |x: Input<'_, f32>| (forward_then(&g, x, &weight, |_, _| ()), weight_gradient(&g, x, &dy));
            assert!(passes(Input::rectified(&z, &norm)) == passes(Input::plain(&x)), "{g:?}");
        }
    }
}
