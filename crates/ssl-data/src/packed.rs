//! Images of one size, held in memory as they came from an IDX or CIFAR file.

use std::fmt;

use ssl_augment::Image;

use crate::fingerprint::Fingerprint;
use crate::{Dataset, Error, Result, Sample};

/// How the pixels of one image lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One byte a pixel.
    Grey,
    /// All red bytes, then all green, then all blue.
    PlanarRgb,
}

impl Layout {
    fn channels(self) -> usize {
        match self {
            Layout::Grey => 1,
            Layout::PlanarRgb => 3,
        }
    }
}

/// The parts of a [`Packed`] data set, as a file format delivers them.
pub(crate) struct Parts {
    /// The name and format, such as `CIFAR-10 (binary)`.
    pub(crate) name: String,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) layout: Layout,
    /// One image after another.
    pub(crate) pixels: Vec<u8>,
    /// One label an image, each an index into `class_names`.
    pub(crate) labels: Option<Vec<u8>>,
    pub(crate) class_names: Vec<String>,
}

/// Images of one size in memory; grey ones become RGB when they are read.
pub(crate) struct Packed {
    parts: Parts,
    fingerprint: String,
}

impl Packed {
    pub(crate) fn new(parts: Parts) -> Self {
        let mut fingerprint = Fingerprint::new("packed");
        for number in [parts.width, parts.height, parts.layout.channels()] {
            fingerprint.add_number(number as u64);
        }
        fingerprint.add(&parts.pixels);
        if let Some(labels) = &parts.labels {
            fingerprint.add(labels);
        }
        Packed { fingerprint: fingerprint.finish(), parts }
    }

    fn image_bytes(&self) -> usize {
        self.parts.width * self.parts.height * self.parts.layout.channels()
    }
}

impl Dataset for Packed {
    fn len(&self) -> usize {
        self.parts.pixels.len() / self.image_bytes()
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let out_of_range = Error::Index { index, len: self.len() };
        let pixels = self.parts.pixels.chunks_exact(self.image_bytes()).nth(index).ok_or(out_of_range)?;
        let rgb = match self.parts.layout {
            Layout::Grey => pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
            Layout::PlanarRgb => interleave(pixels),
        };
        let image = Image::new(self.parts.width, self.parts.height, rgb)?;
        Ok(Sample { image, label: self.label(index), caption: None, partner: None })
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.parts.labels.as_ref()?.get(index).copied().map(u32::from)
    }

    fn class_names(&self) -> &[String] {
        &self.parts.class_names
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn describe(&self) -> String {
        let Parts { name, width, height, class_names, .. } = &self.parts;
        let labels = match class_names.len() {
            0 => "no labels".to_owned(),
            n => format!("{n} classes"),
        };
        format!("{name}, {} images of {width}x{height}, {labels}", self.len())
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({})", self.describe())
    }
}

fn interleave(planes: &[u8]) -> Vec<u8> {
    let plane = planes.len() / 3;
    (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(layout: Layout, pixels: Vec<u8>) -> Parts {
        Parts { name: "toy".into(), width: 2, height: 1, layout, pixels, labels: None, class_names: vec![] }
    }

    #[test]
    fn grey_is_replicated() {
        let data = Packed::new(parts(Layout::Grey, vec![1, 2, 3, 4]));
        assert_eq!(data.len(), 2);
        assert_eq!(data.get(1).unwrap().image.data(), [3, 3, 3, 4, 4, 4]);
    }

    #[test]
    fn planes_are_interleaved() {
        let data = Packed::new(parts(Layout::PlanarRgb, vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(data.get(0).unwrap().image.data(), [1, 3, 5, 2, 4, 6]);
    }

    #[test]
    fn an_index_beyond_the_end_is_an_error() {
        let data = Packed::new(parts(Layout::Grey, vec![1, 2]));
        assert!(matches!(data.get(1), Err(Error::Index { index: 1, len: 1 })));
        assert!(matches!(data.get(usize::MAX), Err(Error::Index { .. })));
        assert_eq!(data.label(0), None);
    }

    #[test]
    fn the_fingerprint_sees_pixels_labels_and_layout() {
        let plain = || parts(Layout::Grey, vec![0; 6]);
        let labelled = |labels: [u8; 3]| Parts { labels: Some(labels.to_vec()), ..plain() };
        let variants = [
            plain(),
            parts(Layout::Grey, vec![0, 0, 0, 0, 0, 1]),
            parts(Layout::PlanarRgb, vec![0; 6]),
            labelled([0, 1, 0]),
            labelled([1, 0, 0]),
        ];
        let mut prints: Vec<String> =
            variants.into_iter().map(|parts| Packed::new(parts).fingerprint()).collect();
        assert!(prints.iter().all(|print| print.len() == 16));
        assert_eq!(prints[0], Packed::new(plain()).fingerprint());
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), 5);
    }
}
