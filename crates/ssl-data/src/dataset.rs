//! The trait that every source of images implements.

use std::fmt::Debug;
use std::sync::Arc;

use ssl_augment::Image;

use crate::Result;

/// One image with its label, its caption and its partner.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The image, RGB, 8 bits a channel.
    pub image: Image,
    /// An index into [`Dataset::class_names`], or `None` where the data has no labels.
    pub label: Option<u32>,
    /// What a person says of the image, or `None` where the data has no captions.
    pub caption: Option<Arc<str>>,
    /// An image of another kind of the same thing, such as its depth, or `None` where the data has no pairs.
    pub partner: Option<Image>,
}

/// An ordered collection of images that can be read in any order, from several threads.
pub trait Dataset: Send + Sync + Debug {
    /// The number of images, at least 1.
    fn len(&self) -> usize;

    /// Whether there are no images; never so for a data set from [`open`](crate::open).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads and decodes the image at `index`, from 0 to `len() - 1`.
    ///
    /// # Errors
    ///
    /// [`Error::Index`](crate::Error::Index) beyond the end,
    /// [`Error::Decode`](crate::Error::Decode) for a broken file.
    fn get(&self, index: usize) -> Result<Sample>;

    /// The label at `index` without decoding the image; `None` without labels or beyond the end.
    fn label(&self, index: usize) -> Option<u32>;

    /// The caption at `index` without decoding the image; `None` without captions or beyond the end.
    fn caption(&self, _index: usize) -> Option<Arc<str>> {
        None
    }

    /// The names of the classes, in the order of the labels; empty without labels.
    fn class_names(&self) -> &[String];

    /// 16 hexadecimal digits that identify the data, for records of results and for checkpoints.
    ///
    /// The first 64 bits of a SHA-256: over the content for IDX and CIFAR, over the sorted relative paths and their
    /// byte sizes for folders of images, with the captions if there are any.
    fn fingerprint(&self) -> String;

    /// One line for people, such as `fashion-mnist (IDX), 10000 images of 28x28, 10 classes`.
    fn describe(&self) -> String;
}

/// What [`open`](crate::open) found.
#[derive(Debug)]
pub struct Splits {
    /// The images to train on.
    pub train: Box<dyn Dataset>,
    /// The images to test on, if the data brings any; its labels mean the same classes as those of `train`.
    pub test: Option<Box<dyn Dataset>>,
}
