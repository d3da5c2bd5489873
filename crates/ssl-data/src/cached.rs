//! Decoded images that stay in memory, within a limit.

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ssl_augment::Image;

use crate::{Dataset, Result, Sample};

/// A data set that keeps the images it has decoded until the next one would exceed a limit.
///
/// Nothing is ever thrown out: in training every image is asked for once an epoch, so that a full cache which replaced
/// its oldest image would have forgotten each before it was asked for again. Values never depend on the cache, and an
/// image that cannot be decoded gives its error every time.
#[derive(Debug)]
pub(crate) struct Cached<D> {
    dataset: D,
    slots: Vec<OnceLock<Image>>,
    max_bytes: u64,
    used_bytes: AtomicU64,
}

impl<D: Dataset> Cached<D> {
    /// Keeps at most `max_bytes` bytes: pixels, and a few words for every image of the data set.
    pub(crate) fn new(dataset: D, max_bytes: u64) -> Self {
        let slot_bytes = (dataset.len() * size_of::<OnceLock<Image>>()) as u64;
        let n_slots = if slot_bytes <= max_bytes { dataset.len() } else { 0 };
        let slots: Vec<_> = (0..n_slots).map(|_| OnceLock::new()).collect();
        let used_bytes = AtomicU64::new(if slots.is_empty() { 0 } else { slot_bytes });
        Cached { dataset, slots, max_bytes, used_bytes }
    }

    /// Keeps a copy of `image` if there is room.
    fn keep(&self, index: usize, image: &Image) {
        let Some(slot) = self.slots.get(index) else { return };
        let bytes = image.data().len() as u64;
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max_bytes);
        let has_room = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        // The copy has no spare capacity, and two threads may have decoded the same image.
        if has_room && slot.set(image.clone()).is_err() {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl<D: Dataset> Dataset for Cached<D> {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize) -> Result<Sample> {
        if let Some(image) = self.slots.get(index).and_then(OnceLock::get) {
            let (image, label, caption) = (image.clone(), self.label(index), self.caption(index));
            return Ok(Sample { image, label, caption, partner: None });
        }
        let sample = self.dataset.get(index)?;
        self.keep(index, &sample.image);
        Ok(sample)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.dataset.label(index)
    }

    fn caption(&self, index: usize) -> Option<Arc<str>> {
        self.dataset.caption(index)
    }

    fn class_names(&self) -> &[String] {
        self.dataset.class_names()
    }

    fn fingerprint(&self) -> String {
        self.dataset.fingerprint()
    }

    fn describe(&self) -> String {
        self.dataset.describe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::Error;

    /// Images of 10 x 10 pixels that count how often they are decoded; the third is broken.
    #[derive(Debug, Default)]
    struct Counting {
        decoded: AtomicUsize,
    }

    const PIXEL_BYTES: u64 = 300;
    const SLOT_BYTES: u64 = 5 * size_of::<OnceLock<Image>>() as u64;

    impl Dataset for Counting {
        fn len(&self) -> usize {
            5
        }

        fn get(&self, index: usize) -> Result<Sample> {
            self.decoded.fetch_add(1, Ordering::Relaxed);
            match index {
                2 => Err(Error::decode("2.png".as_ref(), "torn")),
                0..5 => Ok(Sample {
                    image: Image::new(10, 10, vec![index as u8; 300])?,
                    label: self.label(index),
                    caption: None,
                    partner: None,
                }),
                _ => Err(Error::Index { index, len: 5 }),
            }
        }

        fn label(&self, index: usize) -> Option<u32> {
            Some(index as u32)
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn fingerprint(&self) -> String {
            "0".repeat(16)
        }

        fn describe(&self) -> String {
            "counting".to_owned()
        }
    }

    /// Reads all images twice; how many were decoded, and what the cache holds.
    fn read_twice(max_bytes: u64) -> (usize, u64) {
        let data = Cached::new(Counting::default(), max_bytes);
        for index in (0..5).chain(0..5) {
            match data.get(index) {
                Ok(sample) => {
                    assert_eq!(sample.image.data(), [index as u8; 300]);
                    assert_eq!(sample.label, Some(index as u32));
                }
                Err(error) => assert_eq!(error.to_string(), "cannot decode 2.png: torn"),
            }
        }
        assert!(data.get(5).is_err());
        (data.dataset.decoded.into_inner() - 1, data.used_bytes.into_inner())
    }

    #[test]
    fn what_fits_is_decoded_once() {
        let all = SLOT_BYTES + 4 * PIXEL_BYTES;
        // The broken image is tried each time.
        assert_eq!(read_twice(all), (4 + 2, all));
        assert_eq!(read_twice(all - 1), (5 + 2, all - PIXEL_BYTES));
        assert_eq!(read_twice(SLOT_BYTES + PIXEL_BYTES), (7 + 2, SLOT_BYTES + PIXEL_BYTES));
        assert_eq!(read_twice(SLOT_BYTES - 1), (8 + 2, 0));
        assert_eq!(read_twice(0), (8 + 2, 0));
    }

    #[test]
    fn threads_never_exceed_the_limit() {
        let limit = SLOT_BYTES + 2 * PIXEL_BYTES;
        let data = Cached::new(Counting::default(), limit);
        std::thread::scope(|scope| {
            for first in 0..4 {
                let data = &data;
                scope.spawn(move || {
                    for i in 0..200 {
                        let index = [0, 1, 3, 4][(first + i) % 4];
                        assert_eq!(data.get(index).unwrap().image.data()[0], index as u8);
                        assert!(data.used_bytes.load(Ordering::Relaxed) <= limit);
                    }
                });
            }
        });
        let kept = data.slots.iter().filter(|slot| slot.get().is_some()).count() as u64;
        assert_eq!(data.used_bytes.into_inner(), SLOT_BYTES + kept * PIXEL_BYTES);
    }
}
