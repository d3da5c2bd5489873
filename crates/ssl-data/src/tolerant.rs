//! What a broken file among many means.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Dataset, Error, Result, Sample};

/// What to do with a file that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Return its error.
    #[default]
    Stop,
    /// Return another image in its place and remember it.
    Skip,
}

/// A data set under a policy for broken files.
///
/// Under [`OnError::Skip`] the next readable image stands in for a broken one, from the first after the last. That
/// depends on nothing but the files, so a run sees the same images however many threads read them. [`Sample::label`]
/// is then the label of the image that stands in, and [`Sample::caption`] its caption, while [`Dataset::label`] and
/// [`Dataset::caption`] still answer for the broken one.
#[derive(Debug)]
pub struct Tolerant {
    dataset: Box<dyn Dataset>,
    policy: OnError,
    broken: Mutex<BTreeMap<usize, String>>,
}

impl Tolerant {
    /// Puts `dataset` under `policy`.
    pub fn new(dataset: Box<dyn Dataset>, policy: OnError) -> Self {
        Tolerant { dataset, policy, broken: Mutex::new(BTreeMap::new()) }
    }

    /// The broken images met so far: their indices and what is wrong with each, with its path.
    ///
    /// Always empty under [`OnError::Stop`].
    pub fn broken(&self) -> BTreeMap<usize, String> {
        self.lock().clone()
    }

    fn get_or_next(&self, index: usize) -> Result<Sample> {
        let mut candidate = index;
        loop {
            if !self.is_known_broken(candidate)? {
                match self.dataset.get(candidate) {
                    Err(error @ Error::Decode { .. }) => self.lock().insert(candidate, error.to_string()),
                    sample_or_error => return sample_or_error,
                };
            }
            candidate = (candidate + 1) % self.len();
        }
    }

    /// An error if most images are known to be broken, which ends every search for a readable one.
    fn is_known_broken(&self, index: usize) -> Result<bool> {
        let broken = self.lock();
        let (n_broken, len) = (broken.len(), self.len());
        match broken.values().next() {
            Some(first) if len / 2 < n_broken => {
                Err(Error::TooManyBroken { broken: n_broken, len, first: first.clone() })
            }
            _ => Ok(broken.contains_key(&index)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, String>> {
        // A thread that panicked cannot have left the map half written.
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataset for Tolerant {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    /// As the data set itself under [`OnError::Stop`]. Under [`OnError::Skip`] a broken image is replaced.
    ///
    /// # Errors
    ///
    /// Under [`OnError::Skip`], [`Error::TooManyBroken`] as soon as more than half of the images are known to be broken,
    /// and from then on for every index.
    fn get(&self, index: usize) -> Result<Sample> {
        match self.policy {
            OnError::Stop => self.dataset.get(index),
            OnError::Skip => self.get_or_next(index),
        }
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
